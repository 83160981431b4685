"""Inputs and variants of linear attention that several test files share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rotary.conformance import linear_cases
from rotary.conformance.linear_oracle import Variant
from rotary.linear import LinearAttention

BATCH, HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 2, 4, 2, 8, 6
SEQ, CHUNK = 70, 16

VARIANTS = {
    "plain": Variant(),
    "rope": Variant(rotary_dim=KEY_DIM),
    "partial": Variant(rotary_dim=4, layout="interleaved", rotary_side="trailing"),
    "xpos": Variant(rotary_dim=KEY_DIM, scale_base=64.0),
    "both": Variant("relu", rotary_dim=KEY_DIM, placement="both", normalize=False),
    "before_map": Variant(rotary_dim=KEY_DIM, placement="before_map"),
    "relu": Variant("relu", rotary_dim=KEY_DIM),
    "relu2": Variant("relu2", rotary_dim=KEY_DIM, scale=0.25),
    "identity": Variant("identity", rotary_dim=KEY_DIM, normalize=False),
    "exp": Variant("exp", rotary_dim=KEY_DIM, eps=1e-3),
    "retnet": Variant("identity", rotary_dim=KEY_DIM, decay="retnet", normalize=False),
    "gate": Variant(rotary_dim=KEY_DIM, decay="gate", normalize=False),
    "gate, normalised": Variant(rotary_dim=KEY_DIM, decay="gate"),
}


def attention(variant: Variant, arithmetic: str = "fast", **options: Any) -> LinearAttention:
    """Return the library's description of a variant of the oracle."""
    return linear_cases.attention(
        variant, arithmetic, key_dim=KEY_DIM, **{"chunk_size": CHUNK, **options}
    )


class Sample(NamedTuple):
    """Inputs of a call."""

    q: Any
    k: Any
    v: Any
    gate: Any
    """None unless the variant is gated."""

    def tokens(self, *index: Any) -> Sample:
        """Return some of the tokens."""
        parts = (x[:, :, index[0]] for x in self if x is not None)
        return Sample(*parts) if self.gate is not None else Sample(*parts, None)

    def rows(self, rows: slice) -> Sample:
        """Return some rows of the batch."""
        return Sample(*(None if x is None else x[rows] for x in self))

    @property
    def more(self) -> dict[str, Any]:
        """The gate as a keyword, where there is one."""
        return {} if self.gate is None else {"gate": self.gate}


def sample(
    variant: Variant,
    seq: int = SEQ,
    *,
    dtype: Any = np.float32,
    seed: int = 0,
    batch: int = BATCH,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
) -> Sample:
    """Return random inputs on the host."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    q = normal(batch, heads, seq, KEY_DIM)
    k = normal(batch, kv_heads, seq, KEY_DIM)
    v = normal(batch, kv_heads, seq, VALUE_DIM)
    gate = None
    if variant.decay == "gate":
        gate = (-np.exp(2 * normal(batch, kv_heads, seq).astype(np.float64))).astype(dtype)
    return Sample(q, k, v, gate)


def arrays(library: Any, given: Sample, dtype: str | None = None) -> Sample:
    """Return a sample in another library."""
    return Sample(*(None if x is None else library.array(x, dtype) for x in given))


def host(x: Any) -> Any:
    """Return the values of an array of any library and dtype as NumPy float64."""
    if hasattr(x, "detach"):
        x = x.detach().double()
    return np.asarray(x).astype(np.float64)

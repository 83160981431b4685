"""Inputs and variants of the gated and delta families and of the wider feature maps."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from rotary.conformance import linear_cases
from rotary.conformance import linear_oracle as oracle
from rotary.conformance.linear_oracle import Result, Variant
from rotary.linear import FavorPlus, LinearAttention, State

BATCH, HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 2, 4, 2, 8, 6
SEQ, CHUNK = 45, 16
RANDOM_FEATURES, LENGTH = 12, 64


class Family(NamedTuple):
    """A variant, and of which shape its gate is."""

    variant: Variant
    by_channel: bool = False


def _delta(**options: Any) -> Variant:
    return Variant("l2norm", update="delta", normalize=False, **options)


_OMEGA = FavorPlus(RANDOM_FEATURES).projection(KEY_DIM)
FAMILIES = {
    "gla": Family(Variant("identity", decay="gate", normalize=False), True),
    "gla, rope": Family(
        Variant("identity", rotary_dim=4, decay="gate", normalize=False, layout="interleaved"), True
    ),
    "gla, normalised": Family(Variant(rotary_dim=KEY_DIM, decay="gate"), True),
    "delta": Family(_delta()),
    "delta, rope": Family(_delta(rotary_dim=KEY_DIM, scale=0.5)),
    "delta, retnet": Family(_delta(decay="retnet")),
    "gated delta": Family(_delta(decay="gate", rotary_dim=KEY_DIM)),
    "gated delta, channels": Family(_delta(decay="gate", rotary_dim=KEY_DIM), True),
    "l2norm": Family(Variant("l2norm", rotary_dim=KEY_DIM, normalize=False)),
    "taylor": Family(Variant("taylor")),
    "favor": Family(Variant("favor", projection=_OMEGA)),
    "favor, rope": Family(
        Variant("favor", projection=_OMEGA, rotary_dim=KEY_DIM, placement="before_map")
    ),
    "cosformer": Family(Variant("cosformer", length=LENGTH)),
}
DELTA = [name for name, family in FAMILIES.items() if family.variant.update == "delta"]
GATED = [name for name, family in FAMILIES.items() if family.variant.decay == "gate"]
# Those that see all tokens as well.
BOTH_WAYS = [
    name
    for name, (variant, _) in FAMILIES.items()
    if variant.decay is None and variant.update == "additive"
]


def attention(name: str, arithmetic: str = "fast", **options: Any) -> LinearAttention:
    """Return the library's description of a family."""
    return linear_cases.attention(
        FAMILIES[name].variant, arithmetic, key_dim=KEY_DIM, **{"chunk_size": CHUNK, **options}
    )


class Sample(NamedTuple):
    """Inputs of a call; None for what the family does not take."""

    q: Any
    k: Any
    v: Any
    gate: Any = None
    beta: Any = None

    def map(self, f: Any) -> Sample:
        """Return f of every array."""
        return Sample(*(None if x is None else f(x) for x in self))

    def tokens(self, which: Any) -> Sample:
        """Return some of the tokens."""
        return self.map(lambda x: x[:, :, which, ...])

    def rows(self, rows: slice) -> Sample:
        """Return some rows of the batch."""
        return self.map(lambda x: x[rows, ...])

    @property
    def more(self) -> dict[str, Any]:
        """Gate and beta as keywords, where there are any."""
        pairs = (("gate", self.gate), ("beta", self.beta))
        return {name: x for name, x in pairs if x is not None}

    def attend(self, attn: LinearAttention, **options: Any) -> Any:
        """Return the outputs."""
        return attn(self.q, self.k, self.v, **{"causal": True, **self.more, **options})

    def prefill(self, attn: LinearAttention, state: Any = None, **options: Any) -> Any:
        """Return outputs and state."""
        return attn.prefill(self.q, self.k, self.v, state, **{**self.more, **options})

    def segment(self, attn: LinearAttention, start: int, stop: int) -> State:
        """Return the state of a part of the tokens by itself."""
        part = self.tokens(slice(start, stop))
        return attn.segment(part.k, part.v, positions=range(start, stop), **part.more)


def sample(
    name: str,
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
    variant, by_channel = FAMILIES[name]
    q = rng.standard_normal((batch, heads, seq, KEY_DIM))
    k = rng.standard_normal((batch, kv_heads, seq, KEY_DIM))
    v = rng.standard_normal((batch, kv_heads, seq, VALUE_DIM))
    gate = beta = None
    if variant.decay == "gate":
        shape = (batch, kv_heads, seq) + (KEY_DIM,) * by_channel
        gate = -np.exp(2 * rng.standard_normal(shape))
    if variant.update == "delta":
        beta = rng.random((batch, kv_heads, seq))
    return Sample(q, k, v, gate, beta).map(lambda x: x.astype(dtype))


def right(name: str, given: Sample, *, causal: bool = True, **more: Any) -> Result:
    """Return what the oracle says; `exact` for the bound of exact arithmetic."""
    variant = dataclasses.replace(FAMILIES[name].variant, causal=causal)
    wide = given.map(lambda x: np.asarray(x).astype(np.float64))
    return oracle.quadratic(variant, *wide[:3], **wide.more, **more)


@lru_cache(maxsize=64)
def usual(name: str, seq: int = SEQ, causal: bool = True, exact: bool = False) -> Result:
    """Return what the oracle says of `sample(name, seq)`, made once."""
    return right(name, sample(name, seq), causal=causal, exact=exact)


def host(x: Any) -> Any:
    """Return the values of an array of any library and dtype as NumPy float64."""
    if hasattr(x, "detach"):
        x = x.detach().double()
    return np.asarray(x).astype(np.float64)


def assert_within(out: Any, want: Result, dtype: str = "float32", times: float = 1.0) -> None:
    """Hold outputs to the bound, or to a multiple of it."""
    error, allowed = np.abs(host(out) - want.out), times * oracle.allowed(want, dtype)
    assert np.isfinite(host(out)).all()
    assert np.all(error <= allowed), float(np.max(error / allowed))


def assert_close(got: Any, want: Any, result: Result, dtype: str = "float32") -> None:
    """Hold two outputs to each other: each may be off by the bound."""
    assert np.all(np.abs(host(got) - host(want)) <= 2 * oracle.allowed(result, dtype))


def assert_states_agree(got: State, want: State, skipped: tuple[str, ...] = ()) -> None:
    """Hold two states to each other, but for what rounding took."""
    for field, x, y in zip(State._fields, got, want, strict=True):
        if field in skipped:
            continue
        assert (x is None) == (y is None), field
        if x is None or field.endswith("low"):
            continue
        scale = max(1e-30, float(np.abs(host(y)).max(initial=0)))
        assert np.abs(host(x) - host(y)).max(initial=0) <= 2e-5 * scale, field

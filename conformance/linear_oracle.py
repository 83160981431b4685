"""Linear attention, slow and certain: the sums over all pairs of tokens, and token by token.

    o_i = Σ_j e^{c_i − c_j} (R_i φ(q_i))·(R_j φ(k_j)) v_j / (Σ_j e^{c_i − c_j} φ(q_i)·φ(k_j) + ε)

(Katharopoulos et al., arXiv 2006.16236, equations 5 and 16 to 20; RoFormer, arXiv 2104.09864,
equation 19; RetNet, arXiv 2307.08621, section 2.1.)  NumPy's extended precision, written from the
papers, nothing shared with ``rotary/``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.conformance.oracle import pair_indices

# 64 bits of significand on x86; on machines without them, that of float64.
WIDE = np.longdouble

# |error| ≤ this, times u, times the magnitude that `quadratic` returns.
BOUND = 64


@dataclass(frozen=True)
class Variant:
    """Which linear attention is meant, as the oracle reads it."""

    feature_map: str = "elu+1"
    rotary_dim: int = 0
    """0 for none."""
    base: float = 10_000.0
    layout: str = "half"
    rotary_side: str = "leading"
    scale_base: float | None = None
    """Of XPos."""
    placement: str = "numerator"
    decay: str | None = None
    """None, "retnet" or "gate"."""
    normalize: bool = True
    eps: float = 1e-6
    scale: float = 1.0
    causal: bool = True
    maps: Any = field(default=None, compare=False)
    """A function instead of the map's name."""


def features(variant: Variant, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return φ(x)."""
    if variant.maps is not None:
        return np.asarray(variant.maps(x))
    name = variant.feature_map
    if name == "elu+1":
        y = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    elif name == "relu":
        y = np.maximum(x, 0)
    elif name == "relu2":
        y = np.maximum(x, 0) ** 2
    elif name == "exp":
        y = np.exp(np.minimum(x, 32))
    else:
        assert name == "identity"
        y = x
    return np.asarray(y)


def softmax(x: npt.NDArray[Any], axis: int, mask: Any = None) -> npt.NDArray[Any]:
    """Return the softmax along an axis; what the mask leaves out is 0."""
    x = x if mask is None else np.where(mask, x, -np.inf)
    y = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return np.asarray(y / np.sum(y, axis=axis, keepdims=True))


def rotated(variant: Variant, x: npt.NDArray[Any], positions: Any, sign: int) -> npt.NDArray[Any]:
    """Return x (batch, heads, seq, dim) rotated to positions (batch, seq)."""
    if not variant.rotary_dim:
        return x
    dim, half = variant.rotary_dim, np.arange(variant.rotary_dim // 2, dtype=WIDE)
    omega = WIDE(variant.base) ** (-2 * half / dim)
    angle = (positions[..., None].astype(WIDE) * omega)[:, None]
    size = WIDE(1)
    if variant.scale_base is not None:
        zeta = (2 * half / dim + WIDE(4) / 10) / (WIDE(14) / 10)
        size = zeta ** (sign * positions[..., None].astype(WIDE) / variant.scale_base)[:, None]
    cos, sin = np.cos(angle) * size, np.sin(angle) * size
    first, second = pair_indices(x.shape[-1], dim, variant.layout, variant.rotary_side)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


@dataclass(frozen=True)
class Prepared:
    """Mapped and rotated, with a key head for each query head, in wide numbers."""

    q: npt.NDArray[Any]
    k: npt.NDArray[Any]
    q_plain: npt.NDArray[Any]
    k_plain: npt.NDArray[Any]
    v: npt.NDArray[Any]
    log_decay: npt.NDArray[Any]
    """(batch, heads, seq)."""


def prepare(
    variant: Variant,
    q: Any,
    k: Any,
    v: Any,
    gate: Any = None,
    mask: Any = None,
    positions: Any = None,
) -> Prepared:
    """Map, mask and rotate."""
    batch, heads, seq, _ = q.shape
    group = heads // k.shape[1]
    q, k, v = (np.asarray(x).astype(WIDE) for x in (q, k, v))
    kept = np.ones((batch, seq), bool) if mask is None else np.asarray(mask)
    if positions is None:
        positions = np.maximum(np.cumsum(kept, axis=1) - 1, 0)
    positions = np.broadcast_to(np.asarray(positions), (batch, seq))
    keep = kept[:, None, :, None]
    k, v = np.where(keep, k, 0), np.where(keep, v, 0)
    if variant.placement == "before_map":
        q, k = rotated(variant, q, positions, 1), rotated(variant, k, positions, -1)
    if variant.feature_map == "softmax":
        q, k = softmax(q, -1), softmax(k, -2, keep)
    else:
        q, k = features(variant, q), np.where(keep, features(variant, k), 0)
    q = q * WIDE(variant.scale)
    q_plain, k_plain = q, k
    if variant.placement != "before_map":
        q, k = rotated(variant, q, positions, 1), rotated(variant, k, positions, -1)
    if variant.placement == "both":
        q_plain, k_plain = q, k
    decay = np.zeros((batch, k.shape[1], seq), WIDE)
    if variant.decay == "gate":
        decay = np.asarray(gate).astype(WIDE)
    elif variant.decay == "retnet":
        gamma = 1 - WIDE(2) ** (-5 - np.arange(k.shape[1], dtype=WIDE))
        decay = decay + np.log(gamma)[:, None]
    decay = np.where(kept[:, None], decay, 0)
    k, k_plain, v, decay = (np.repeat(x, group, axis=1) for x in (k, k_plain, v, decay))
    return Prepared(q, k, q_plain, k_plain, v, decay)


@dataclass(frozen=True)
class Result:
    """Outputs, and the sum of sizes that the bound is a multiple of."""

    out: npt.NDArray[Any]
    magnitude: npt.NDArray[Any]


def quadratic(variant: Variant, q: Any, k: Any, v: Any, **given: Any) -> Result:
    """Return the outputs by the sums over all pairs of tokens."""
    p = prepare(variant, q, k, v, **given)
    seq = p.q.shape[2]
    c = np.cumsum(p.log_decay, axis=-1)
    # Differences of gates first: the sum of the gates between j and i.
    weights = np.exp(np.minimum(c[..., :, None] - c[..., None, :], 0))
    if variant.causal:
        weights = weights * np.tril(np.ones((seq, seq)))
    out = ((p.q @ np.swapaxes(p.k, -1, -2)) * weights) @ p.v
    sizes = (_pair_norms(variant, p.q) @ np.swapaxes(_pair_norms(variant, p.k), -1, -2)) * weights
    magnitude = sizes @ np.abs(p.v)
    if variant.normalize:
        total = ((p.q_plain @ np.swapaxes(p.k_plain, -1, -2)) * weights).sum(-1, keepdims=True)
        total = total + WIDE(variant.eps)
        out, magnitude = out / total, magnitude / np.abs(total)
    return Result(out, magnitude)


def _pair_norms(variant: Variant, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the norms of the pairs that rotate together, and the size of what does not rotate."""
    size = np.abs(x)
    if variant.rotary_dim and variant.placement != "before_map":
        pairs = pair_indices(x.shape[-1], variant.rotary_dim, variant.layout, variant.rotary_side)
        norm = np.hypot(x[..., pairs[0]], x[..., pairs[1]])
        size[..., pairs[0]] = norm
        size[..., pairs[1]] = 0
    return np.asarray(size)


@dataclass(frozen=True)
class Sums:
    """The state after the last token, for each query head."""

    numerator: npt.NDArray[Any]
    normaliser: npt.NDArray[Any]


def recurrent(variant: Variant, q: Any, k: Any, v: Any, **given: Any) -> tuple[Any, Sums]:
    """Return the outputs token by token, and the state."""
    assert variant.causal
    p = prepare(variant, q, k, v, **given)
    state = np.zeros((*p.k.shape[:2], p.k.shape[3], p.v.shape[3]), WIDE)
    total = np.zeros(state.shape[:3], WIDE)
    outputs = []
    for t in range(p.q.shape[2]):
        factor = np.exp(p.log_decay[..., t])
        state = state * factor[..., None, None] + p.k[:, :, t, :, None] * p.v[:, :, t, None, :]
        total = total * factor[..., None] + p.k_plain[:, :, t]
        out = np.einsum("bhd,bhde->bhe", p.q[:, :, t], state)
        if variant.normalize:
            weight = np.einsum("bhd,bhd->bh", p.q_plain[:, :, t], total)
            out = out / (weight[..., None] + WIDE(variant.eps))
        outputs.append(out)
    return np.stack(outputs, axis=2) if outputs else np.zeros_like(p.v), Sums(state, total)


def unit_roundoff(dtype: str) -> float:
    """Return u of the compute dtype of inputs of this dtype."""
    return 2.0**-53 if dtype == "float64" else 2.0**-24


def allowed(result: Result, dtype: str) -> npt.NDArray[Any]:
    """Return the bound of an output's error: for 16-bit outputs half a last place more."""
    bound = BOUND * unit_roundoff(dtype) * result.magnitude
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype)
    if half is not None:
        bound = bound + half * (np.abs(result.out) + bound) + 2.0**-25 * (dtype == "float16")
    return np.asarray(bound)

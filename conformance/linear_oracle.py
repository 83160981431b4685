"""Linear attention, slow and certain: the sums over all pairs of tokens, and token by token.

    o_i = Σ_j Σ_d e^{c_id − c_jd} (R_i φ(q_i))_d (R_j φ(k_j))_d v_j
          / (Σ_j Σ_d e^{c_id − c_jd} φ(q_i)_d φ(k_j)_d + ε)

(Katharopoulos et al., arXiv 2006.16236, equations 5 and 16 to 20; RoFormer, arXiv 2104.09864,
equation 19; RetNet, arXiv 2307.08621, section 2.1; GLA, arXiv 2312.06635, section 3.)  NumPy's
extended precision, written from the papers, nothing shared with ``rotary/``.  Feature maps and the
delta rule lie beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.conformance import linear_delta_oracle as delta
from rotary.conformance import linear_features_oracle as maps
from rotary.conformance.linear_features_oracle import WIDE
from rotary.conformance.oracle import pair_indices

# |error| ≤ this, times u, times the magnitude that `quadratic` returns.
BOUND = 64
# Decays and features of less than u times this, relative to the largest, may count as 0: exact
# arithmetic has no exponentials below 2^−64.
LEAST = 2.0**-40
# And keeps 32 bits of an operand relative to the largest of its row.
LEAST_OF_ROW = 2.0**-8


@dataclass(frozen=True)
class Variant:
    """Which linear attention is meant, as the oracle reads it."""

    feature_map: str = "elu+1"
    """Also "favor", with a projection, and "cosformer", with a length."""
    rotary_dim: int = 0
    """0 for none."""
    base: float = 10_000.0
    layout: str = "half"
    rotary_side: str = "leading"
    scale_base: float | None = None
    """Of XPos."""
    placement: str = "numerator"
    decay: str | None = None
    """None, "retnet" or "gate"; the gate's shape says whether it is a channel's."""
    update: str = "additive"
    """Or "delta"."""
    normalize: bool = True
    eps: float = 1e-6
    scale: float = 1.0
    causal: bool = True
    maps: Any = field(default=None, compare=False)
    """A function instead of the map's name."""
    projection: Any = field(default=None, compare=False)
    """FAVOR+'s random vectors ω, (num_features, key_dim)."""
    length: int | None = None
    """M of cosFormer."""


def features(variant: Variant, x: npt.NDArray[Any], positions: Any) -> npt.NDArray[Any]:
    """Return φ(x) of a map that takes a token by itself."""
    if variant.maps is not None:
        return np.asarray(variant.maps(x))
    if variant.feature_map == "l2norm":
        return maps.l2norm(x)
    if variant.feature_map == "taylor":
        return maps.taylor(x)
    if variant.feature_map == "cosformer":
        assert variant.length is not None
        return maps.cosformer(x, positions, variant.length)
    return maps.elementwise(variant.feature_map, x)


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
    """(batch, heads, seq, 1 or features)."""
    beta: npt.NDArray[Any]
    """(batch, heads, seq)."""
    exponent: Any
    """Sizes of what FAVOR+ takes the exponential of, (batch, heads, seq, 1); 0 for other maps."""
    maximum: Any
    """FAVOR+'s running maximum, (batch, heads, seq), or None."""


def prepare(
    variant: Variant,
    q: Any,
    k: Any,
    v: Any,
    gate: Any = None,
    beta: Any = None,
    mask: Any = None,
    positions: Any = None,
) -> Prepared:
    """Map, mask and rotate."""
    batch, heads, seq, _ = q.shape
    q, k, v = (np.asarray(x).astype(WIDE) for x in (q, k, v))
    kept = np.ones((batch, seq), bool) if mask is None else np.asarray(mask)
    if positions is None:
        positions = np.maximum(np.cumsum(kept, axis=1) - 1, 0)
    positions = np.broadcast_to(np.asarray(positions), (batch, seq))
    keep = kept[:, None, :, None]
    group = heads // k.shape[1]
    k, v = (np.repeat(np.where(keep, x, 0), group, axis=1) for x in (k, v))
    beta = np.ones((batch, k.shape[1] // group, seq)) if beta is None else np.asarray(beta)
    beta = np.repeat(beta.astype(WIDE), group, axis=1)
    decay = _log_decay(variant, gate, (batch, heads // group, seq), group)
    if variant.placement == "before_map":
        q, k = rotated(variant, q, positions, 1), rotated(variant, k, positions, -1)
    exponent: Any = WIDE(0)
    maximum = None
    if variant.feature_map == "favor":
        mapped = maps.random_features(q, k, variant.projection, keep, variant.causal)
        q, k, maximum = mapped.q, mapped.k, mapped.maximum
        largest = np.maximum.accumulate(mapped.k_size, axis=-1)
        if variant.causal:
            decay = _falls(maximum)[..., None]
        else:
            largest = np.broadcast_to(np.max(largest, axis=-1, keepdims=True), largest.shape)
        exponent = np.maximum(mapped.q_size, largest)[..., None]
    elif variant.feature_map == "softmax":
        q, k = maps.softmax(q, -1), maps.softmax(k, -2, keep)
    else:
        q, k = features(variant, q, positions), features(variant, k, positions)
    q, k = q * WIDE(variant.scale), np.where(keep, k, 0)
    q_plain, k_plain = q, k
    if variant.placement != "before_map":
        q, k = rotated(variant, q, positions, 1), rotated(variant, k, positions, -1)
    if variant.placement == "both":
        q_plain, k_plain = q, k
    decay = np.where(keep, decay, 0)
    return Prepared(q, k, q_plain, k_plain, v, decay, beta, exponent, maximum)


def _log_decay(
    variant: Variant, gate: Any, shape: tuple[int, int, int], group: int
) -> npt.NDArray[Any]:
    """Return the log decay of each token, (batch, heads, seq, 1 or features)."""
    decay = np.zeros((*shape, 1), WIDE)
    if variant.decay == "gate":
        decay = np.asarray(gate).astype(WIDE)
        decay = decay if decay.ndim == 4 else decay[..., None]
    elif variant.decay == "retnet":
        gamma = 1 - WIDE(2) ** (-5 - np.arange(shape[1], dtype=WIDE))
        decay = decay + np.log(gamma)[:, None, None]
    return np.repeat(decay, group, axis=1)


def _falls(maximum: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the log factor of what was summed before each token: by how much the maximum rises."""
    before = np.concatenate([maximum[..., :1], maximum[..., :-1]], axis=-1)
    known = np.isfinite(before)  # before the first token there is nothing to multiply
    return np.asarray(np.where(known, before, 0) - np.where(known, maximum, 0))


@dataclass(frozen=True)
class Result:
    """Outputs, and the sum of sizes that the bound is a multiple of."""

    out: npt.NDArray[Any]
    magnitude: npt.NDArray[Any]


def quadratic(
    variant: Variant, q: Any, k: Any, v: Any, *, exact: bool = False, **given: Any
) -> Result:
    """Return the outputs by the sums over all pairs of tokens.

    The magnitude is for the fast or the exact arithmetic; it differs for FAVOR+, the sizes of whose
    features differ by any factor.
    """
    p = prepare(variant, q, k, v, **given)
    scores = _scores(variant, p.q, p.k, p.log_decay)
    if variant.update == "delta":
        u = delta.added(_scores(variant, p.k, p.k, p.log_decay), p.v, p.beta)
        return Result(scores @ u, delta.magnitude(p.q, p.k, p.v, p.beta, p.log_decay, LEAST))
    out = scores @ p.v
    sizes = _sizes(variant, p, LEAST_OF_ROW if exact else LEAST)
    magnitude = sizes @ np.abs(p.v)
    if variant.normalize:
        weights = _scores(variant, p.q_plain, p.k_plain, p.log_decay)
        total = weights.sum(-1, keepdims=True) + WIDE(variant.eps)
        out = out / total
        if variant.feature_map in ("cosformer", "favor"):
            # The divisor's own error: elsewhere that of a sum of positive numbers, a few u.
            magnitude = magnitude + sizes.sum(-1, keepdims=True) * np.abs(out)
        magnitude = magnitude / np.abs(total)
    return Result(out, magnitude * (1 + p.exponent))


def _scores(
    variant: Variant,
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    log_decay: npt.NDArray[Any],
    least: float = 0.0,
) -> npt.NDArray[Any]:
    """Return Σ_d q_id k_jd e^{c_id − c_jd}, (batch, heads, seq, seq); 0 for what is not seen.

    Exponentials are taken as `least` where they are less.
    """
    # Of gates of −∞ sums have no differences; e^−20000 is 0 here as well.
    c = np.cumsum(np.maximum(log_decay, -20_000), axis=2)
    if log_decay.shape[-1] == 1:
        row = c[..., 0]
        # Differences of gates first: the sum of the gates between j and i.
        weights = np.exp(np.minimum(row[..., :, None] - row[..., None, :], 0))
        weights = np.maximum(weights, least)
        scores = (q @ np.swapaxes(k, -1, -2)) * weights
        return np.tril(scores) if variant.causal else np.asarray(scores)
    scores = np.zeros((*q.shape[:3], q.shape[2]), WIDE)
    for i in range(q.shape[2]):
        weights = np.maximum(np.exp(c[:, :, i, None] - c[:, :, : i + 1]), least)
        scores[:, :, i, : i + 1] = (weights * k[:, :, : i + 1] * q[:, :, i, None]).sum(-1)
    return scores


def _sizes(variant: Variant, p: Prepared, least: float) -> npt.NDArray[Any]:
    """Return what `_scores` of rotated queries and keys adds up, without signs.

    `least` is what FAVOR+'s features are raised by, relative to the largest.
    """
    q, k = (_lengths(variant, x, p.log_decay.shape[-1] > 1) for x in (p.q, p.k))
    if variant.feature_map == "favor":
        more = least / np.sqrt(WIDE(q.shape[-1]))  # the largest feature is 1/√m
        q, k = q + more, np.where(k.any(-1, keepdims=True), k + more, 0)
    return _scores(variant, q, k, p.log_decay, LEAST)


def _lengths(variant: Variant, x: npt.NDArray[Any], by_channel: bool) -> npt.NDArray[Any]:
    """Return the norms of the pairs that rotate together, and the size of what does not rotate.

    A pair's norm stands once, in its first channel, unless channels decay at rates of their own.
    """
    size = np.asarray(np.abs(x))
    if variant.feature_map == "cosformer":
        first, second = np.split(np.arange(x.shape[-1]), 2)
    elif variant.rotary_dim and variant.placement != "before_map":
        first, second = pair_indices(
            x.shape[-1], variant.rotary_dim, variant.layout, variant.rotary_side
        )
    else:
        return size
    norm = np.hypot(x[..., first], x[..., second])
    size[..., first] = norm
    size[..., second] = norm if by_channel else 0
    return size


@dataclass(frozen=True)
class Sums:
    """The state after the last token, for each query head."""

    numerator: npt.NDArray[Any]
    normaliser: npt.NDArray[Any]
    maximum: Any = None
    """FAVOR+'s, (batch, heads)."""


def recurrent(variant: Variant, q: Any, k: Any, v: Any, **given: Any) -> tuple[Any, Sums]:
    """Return the outputs token by token, and the state."""
    assert variant.causal
    p = prepare(variant, q, k, v, **given)
    state = np.zeros((*p.k.shape[:2], p.k.shape[3], p.v.shape[3]), WIDE)
    total = np.zeros(state.shape[:3], WIDE)
    if variant.update == "delta":
        states, _ = delta.recurrent(p.k, p.v, p.beta, p.log_decay)
        out = np.einsum("bhtd,bhtde->bhte", p.q, states)
        return out, Sums(states[:, :, -1] if states.shape[2] else state, total)
    outputs = []
    for t in range(p.q.shape[2]):
        factor = np.exp(p.log_decay[:, :, t])
        state = state * factor[..., None] + p.k[:, :, t, :, None] * p.v[:, :, t, None, :]
        total = total * factor + p.k_plain[:, :, t]
        out = np.einsum("bhd,bhde->bhe", p.q[:, :, t], state)
        if variant.normalize:
            weight = np.einsum("bhd,bhd->bh", p.q_plain[:, :, t], total)
            out = out / (weight[..., None] + WIDE(variant.eps))
        outputs.append(out)
    largest = None if p.maximum is None else np.max(p.maximum, axis=-1, initial=-np.inf)
    sums = Sums(state, total, largest)
    return np.stack(outputs, axis=2) if outputs else np.zeros_like(p.v), sums


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

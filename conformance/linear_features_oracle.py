"""Feature maps of linear attention for its oracle, each written from its paper.

Katharopoulos et al. (elu + 1), arXiv 2006.16236; Arora et al., Based (Taylor), arXiv 2402.18668;
Choromanski et al., Performer (FAVOR+), arXiv 2009.14794; Qin et al., cosFormer, arXiv 2202.08791.
All take and return wide numbers, (batch, heads, seq, dim).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# 64 bits of significand on x86; on machines without them, that of float64.
WIDE = np.longdouble
Array = npt.NDArray[Any]


def elementwise(name: str, x: Array) -> Array:
    """Return φ(x) of a map that works element by element."""
    if name == "elu+1":
        return np.asarray(np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "relu2":
        return np.asarray(np.maximum(x, 0) ** 2)
    if name == "exp":
        return np.asarray(np.exp(np.minimum(x, 32)))
    assert name == "identity"
    return x


def l2norm(x: Array) -> Array:
    """Return x / √(Σx² + 1e-6), as Qwen3-Next takes it."""
    return np.asarray(x / np.sqrt((x * x).sum(-1, keepdims=True) + WIDE(1) / 10**6))


def taylor(x: Array) -> Array:
    """Return the features whose product is 1 + s + s²/2 with s = q·k/√D (Based, section 4.1)."""
    dim = x.shape[-1]
    first, second = np.triu_indices(dim, 1)
    root = np.sqrt(WIDE(dim))
    parts = (
        np.ones_like(x[..., :1]),
        x / np.sqrt(root),
        x * x / (np.sqrt(WIDE(2)) * root),
        x[..., first] * x[..., second] / root,
    )
    return np.concatenate(parts, axis=-1)


def softmax(x: Array, axis: int, mask: Any = None) -> Array:
    """Return the softmax along an axis; what the mask leaves out is 0."""
    x = x if mask is None else np.where(mask, x, -np.inf)
    y = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return np.asarray(y / np.sum(y, axis=axis, keepdims=True))


def cosformer(x: Array, positions: Array, length: int) -> Array:
    """Return relu(x)·[cos, sin](πp/2M) at positions (batch, seq) (cosFormer, equation 10)."""
    angle = (WIDE(np.pi) + _PI_REST) * positions.astype(WIDE) / (2 * length)
    cos, sin = (f(angle)[:, None, :, None] for f in (np.cos, np.sin))
    y = np.maximum(x, 0)
    return np.concatenate((y * cos, y * sin), axis=-1)


# π − float64(π)
_PI_REST = WIDE("1.2246467991473531772e-16")


class RandomFeatures(NamedTuple):
    """FAVOR+'s features, and what stabilises those of keys."""

    q: Array
    k: Array
    """Over e to the largest exponent so far (of all tokens, if not causal)."""
    maximum: Array
    """That exponent, (batch, heads, seq); −∞ before the first token that takes part."""
    q_size: Array
    """The sum of sizes Σ|ω||x'| + |x'|²/2 of the largest exponent, (batch, heads, seq)."""
    k_size: Array


def random_features(
    q: Array, k: Array, projection: Any, keep: Array, causal: bool
) -> RandomFeatures:
    """Return m^(−1/2) exp(ω·x' − |x'|²/2 − maximum) with x' = D^(−1/4) x (Performer, lemma 1).

    A query's maximum is over its own features.  That of keys may not look ahead: it is over the
    tokens up to a key's own.
    """
    omega = np.asarray(projection).astype(WIDE)
    (q_exponent, q_size), (k_exponent, k_size) = (_exponents(x, omega) for x in (q, k))
    k_exponent = np.where(keep, k_exponent, -np.inf)
    k_size = np.where(keep[..., 0], k_size, 0)
    maximum = np.max(k_exponent, axis=-1, initial=-np.inf)
    if causal:
        maximum = np.maximum.accumulate(maximum, axis=-1)
    else:
        whole = np.max(maximum, axis=-1, keepdims=True, initial=-np.inf)
        maximum = np.broadcast_to(whole, maximum.shape)
    count = np.sqrt(WIDE(len(omega)))
    shift = np.where(np.isfinite(maximum), maximum, 0)[..., None]
    return RandomFeatures(
        np.exp(q_exponent - np.max(q_exponent, axis=-1, keepdims=True)) / count,
        np.exp(k_exponent - shift) / count,
        maximum,
        q_size,
        k_size,
    )


def _exponents(x: Array, omega: Array) -> tuple[Array, Array]:
    x = x / np.sqrt(np.sqrt(WIDE(x.shape[-1])))
    half = (x * x).sum(-1, keepdims=True) / 2
    size = np.max(np.abs(x) @ np.abs(omega.T), axis=-1) + half[..., 0]
    return np.asarray(x @ omega.T - half), np.asarray(size)

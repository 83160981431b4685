"""Feature maps φ of queries and keys, which take the place of softmax's exponential.

    exp(q·k/√D)  →  φ(q)·φ(k)        (Katharopoulos et al., arXiv 2006.16236, equations 4 and 7)

A map of one token at a time knows its gradient, so that it can be taken inside a chunk and again
in the gradient.  ``"softmax"`` (Shen et al., arXiv 1812.01243) is over the features of a query and
over the tokens of a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from rotary import exact
from rotary.checks import whole
from rotary.dtypes import dtype_name
from rotary.linear.arithmetic import Arithmetic, Exact, dot
from rotary.linear.random_features import FavorPlus

# exp saturates here: e^(32 + 32) times 2^20 tokens times values of 2^14 is within float32's range.
EXP_LIMIT = 32.0
# Under the root, as in Qwen3-Next.
NORM_EPS = 1e-6


class Map(NamedTuple):
    """A feature map of one token at a time."""

    positive: bool
    """Whether φ(q)·φ(k) ≥ 0, so that the normaliser is a sum of non-negative numbers."""
    of: Callable[[Arithmetic, Any], Any]
    """``of(arithmetic, x)`` → features along the last axis."""
    pull: Callable[[Arithmetic, Any, Any], Any]
    """``pull(arithmetic, x, by_features)`` → the gradient by x."""
    width: Callable[[int], int] = int
    """Number of features for a key_dim."""
    logarithmic: bool = False
    """Whether ``of`` gives ln φ + ½ ln features, of which a maximum is taken before exp."""


@dataclass(frozen=True)
class CosFormer:
    """φ(x) at position p: relu(x)·cos(πp/2M) and relu(x)·sin(πp/2M), side by side.

    Qin et al., "cosFormer", arXiv 2202.08791, equations 9 and 10: φ(q_i)·φ(k_j) is
    relu(q_i)·relu(k_j) cos(π(i − j)/2M).  It is a rotation of [relu(x), 0], in numerator and
    denominator.  The length M is fixed, so that a prefix never depends on what follows: positions
    have to be in 0 … M − 1, where cosines of their differences are positive.

    Parameters
    ----------
    length : int
        M, the number of positions.

    Examples
    --------
    >>> import rotary
    >>> attn = rotary.LinearAttention(rotary.linear.CosFormer(length=4096))
    >>> attn.normalize
    True
    """

    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", whole("length", self.length))

    @property
    def inv_freq(self) -> float:
        """π/2M, radians a position."""
        return float(np.pi / 2 / self.length)


def _at_most_zero(a: Arithmetic, x: Any) -> Any:
    xp = a.backend.namespace(x)
    return xp.minimum(x, xp.zeros_like(x))


def _at_least_zero(a: Arithmetic, x: Any) -> Any:
    xp = a.backend.namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def _elu_plus_1(a: Arithmetic, x: Any) -> Any:
    # A library's elu, plus 1, is 0 from −18 on in float32; where costs 25 additions.
    return _at_least_zero(a, x) + a.exp(_at_most_zero(a, x))


def _elu_slope(a: Arithmetic, x: Any) -> Any:
    return a.exp(_at_most_zero(a, x))


def _relu_slope(a: Arithmetic, x: Any) -> Any:
    xp = a.backend.namespace(x)
    return xp.astype(x > 0, x.dtype)


def _relu2(a: Arithmetic, x: Any) -> Any:
    y = _at_least_zero(a, x)
    return y * y


def _relu2_slope(a: Arithmetic, x: Any) -> Any:
    return 2.0 * _at_least_zero(a, x)


def _exp(a: Arithmetic, x: Any) -> Any:
    xp = a.backend.namespace(x)
    return a.exp(xp.minimum(x, xp.zeros_like(x) + EXP_LIMIT))


def _exp_slope(a: Arithmetic, x: Any) -> Any:
    return a.weigh(_exp(a, x), a.backend.namespace(x).astype(x < EXP_LIMIT, x.dtype))


def _identity(a: Arithmetic, x: Any, by: Any = None) -> Any:
    return x if by is None else by


def _elementwise(
    of: Callable[[Arithmetic, Any], Any], slope: Callable[[Arithmetic, Any], Any]
) -> Map:
    return Map(True, of, lambda a, x, by: by * slope(a, x))


def _inverse_norm(a: Arithmetic, x: Any) -> Any:
    return a.rsqrt(dot(a, x, x) + NORM_EPS)


def _l2norm(a: Arithmetic, x: Any) -> Any:
    return x * _inverse_norm(a, x)


def _l2norm_pull(a: Arithmetic, x: Any, by: Any) -> Any:
    inverse = _inverse_norm(a, x)
    y = x * inverse
    return a.settle(by - a.product(y, dot(a, y, by))) * inverse


class _Pairs(NamedTuple):
    """Places of the products x_i x_j, i < j, among D features."""

    first: Any
    second: Any
    others: Any
    """For each i the D − 1 features j ≠ i, one after the other."""
    with_other: Any
    """Which of the products x_i x_j is."""


@cache
def _pairs(dim: int) -> _Pairs:
    first, second = np.triu_indices(dim, 1)
    number = np.zeros((dim, dim), np.int32)
    number[first, second] = number[second, first] = np.arange(first.size)
    apart = ~np.eye(dim, dtype=bool)
    others = np.broadcast_to(np.arange(dim), (dim, dim))[apart]
    both = (first, second, others, number[apart])
    return _Pairs(*(places.astype(np.int32) for places in both))


def _taken(a: Arithmetic, x: Any, places: Any) -> Any:
    """Return the features at these places."""
    xp = a.backend.namespace(x)
    # A view, since a backend may make what it is given read-only.
    return xp.take(x, xp.asarray(a.backend.to_device(places[:], x)), axis=-1)


def _taylor(a: Arithmetic, x: Any) -> Any:
    xp, places = a.backend.namespace(x), _pairs(x.shape[-1])
    # Rounded, as all constants are: XLA would move one to where it meets another factor.
    y = a.product(x, x.shape[-1] ** -0.25)
    products = _taken(a, y, places.first) * _taken(a, y, places.second)
    return xp.concat([xp.ones_like(y[..., :1]), y, a.product(y * y, 2**-0.5), products], axis=-1)


def _taylor_pull(a: Arithmetic, x: Any, by: Any) -> Any:
    xp, dim = a.backend.namespace(x), x.shape[-1]
    places = _pairs(dim)
    y = a.product(x, dim**-0.25)
    total = by[..., 1 : 1 + dim] + a.product(by[..., 1 + dim : 1 + 2 * dim], a.product(y, 2**0.5))
    if dim > 1:
        shape = (*x.shape[:-1], dim, dim - 1)
        by_products = xp.reshape(_taken(a, by[..., 1 + 2 * dim :], places.with_other), shape)
        total = total + dot(a, by_products, xp.reshape(_taken(a, y, places.others), shape))[..., 0]
    return a.product(total, dim**-0.25)


def _taylor_width(key_dim: int) -> int:
    return 1 + key_dim + key_dim * (key_dim + 1) // 2


def _padded(a: Arithmetic, x: Any) -> Any:
    y = _at_least_zero(a, x)
    xp = a.backend.namespace(x)
    return xp.concat([y, xp.zeros_like(y)], axis=-1)


def _padded_pull(a: Arithmetic, x: Any, by: Any) -> Any:
    return by[..., : x.shape[-1]] * _relu_slope(a, x)


def _random_features(a: Arithmetic, x: Any, favor: FavorPlus) -> Any:
    """ω·x' − |x'|²/2 for each row ω, x' = D^(−1/4) x."""
    projected = a.multiply(a.rows(x), a.rows_transposed(_projection(a, x, favor)))
    return a.settle(projected - a.product(dot(a, x, x), 0.5 * x.shape[-1] ** -0.5))


def _random_features_pull(a: Arithmetic, x: Any, by: Any, favor: FavorPlus) -> Any:
    through = a.multiply(a.rows(by), a.columns(_projection(a, x, favor)))
    return through - a.product(x, a.product(a.sum(by, -1), x.shape[-1] ** -0.5))


def _projection(a: Arithmetic, like: Any, favor: FavorPlus) -> Any:
    """Return D^(−1/4) ω, (…, features, D), where `like` is."""
    table = _scaled(favor, like.shape[-1], dtype_name(like))
    xp = a.backend.namespace(like)
    return xp.asarray(a.backend.to_device(table[(None,) * (like.ndim - 2)], like))


@lru_cache(maxsize=16)
def _scaled(favor: FavorPlus, key_dim: int, dtype: str) -> Any:
    return (favor.projection(key_dim) * key_dim**-0.25).astype(dtype)


IDENTITY = Map(False, _identity, _identity)
MAPS = {
    "elu+1": _elementwise(_elu_plus_1, _elu_slope),
    "relu": _elementwise(_at_least_zero, _relu_slope),
    "relu2": _elementwise(_relu2, _relu2_slope),
    "identity": IDENTITY,
    "exp": _elementwise(_exp, _exp_slope),
    "l2norm": Map(False, _l2norm, _l2norm_pull),
    "taylor": Map(True, _taylor, _taylor_pull, _taylor_width),
}
NAMES = (*MAPS, "softmax")

Token = str | tuple[Any, ...]
"""A map of one token at a time by value, as compiled programs keep it."""


def token(feature_map: Any) -> Token:
    """Return what names a map in a compiled program."""
    if isinstance(feature_map, FavorPlus):
        return ("favor+", feature_map.num_features, feature_map.seed)
    return ("relu, 0",) if isinstance(feature_map, CosFormer) else str(feature_map)


def named(token: Token) -> Map:
    """Return the map of that token."""
    if isinstance(token, str):
        return MAPS[token]
    if token[0] == "relu, 0":
        return Map(True, _padded, _padded_pull, lambda key_dim: 2 * key_dim)
    favor = FavorPlus(*token[1:])
    return Map(
        True,
        partial(_random_features, favor=favor),
        partial(_random_features_pull, favor=favor),
        lambda _: favor.num_features,
        logarithmic=True,
    )


def softmax(a: Arithmetic, x: Any, axis: int, mask: Any = None) -> Any:
    """Return the softmax along an axis; what the mask leaves out takes no part and becomes 0."""
    xp = a.backend.namespace(x)
    exp, total_of, reciprocal = a.exp, a.sum, a.reciprocal
    if isinstance(a, Exact):  # whose own functions have no gradient
        exp, total_of, reciprocal = exact.exp, partial(exact.sum, keepdims=True), exact.reciprocal
    if mask is not None:
        x = xp.where(mask, x, xp.zeros_like(x) - float("inf"))
    top = xp.max(x, axis=axis, keepdims=True)
    if mask is not None:  # a row of −∞ alone
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    y = exp(x - top)
    if mask is not None:
        y = xp.where(mask, y, xp.zeros_like(y))
    total = total_of(y, axis)
    if mask is not None:
        total = xp.where(total > 0, total, xp.ones_like(total))
    return y * reciprocal(total)

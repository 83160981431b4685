"""Feature maps φ of queries and keys, which take the place of softmax's exponential.

    exp(q·k/√D)  →  φ(q)·φ(k)        (Katharopoulos et al., arXiv 2006.16236, equations 4 and 7)

The maps with a name work element by element and know their derivative, so that they can be taken
inside a chunk and recomputed in the gradient.  ``"softmax"`` (Shen et al., arXiv 1812.01243) is
over the features of a query and over the tokens of a key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rotary import exact
from rotary.linear.arithmetic import Arithmetic, Exact

# exp saturates here: e^(32 + 32) times 2^20 tokens times values of 2^14 is within float32's range.
EXP_LIMIT = 32.0


class Elementwise(NamedTuple):
    """A feature map that works element by element."""

    positive: bool
    """Whether φ ≥ 0, so that the normaliser is a sum of non-negative numbers."""
    of: Callable[[Arithmetic, Any], Any]
    slope: Callable[[Arithmetic, Any], Any]


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


def _identity(a: Arithmetic, x: Any) -> Any:
    return x


def _one(a: Arithmetic, x: Any) -> Any:
    return a.backend.namespace(x).ones_like(x)


IDENTITY = Elementwise(False, _identity, _one)
ELEMENTWISE = {
    "elu+1": Elementwise(True, _elu_plus_1, _elu_slope),
    "relu": Elementwise(True, _at_least_zero, _relu_slope),
    "relu2": Elementwise(True, _relu2, _relu2_slope),
    "identity": IDENTITY,
    "exp": Elementwise(True, _exp, _exp_slope),
}
NAMES = (*ELEMENTWISE, "softmax")


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

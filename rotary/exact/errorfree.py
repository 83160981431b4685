"""Sums and products of floats together with their rounding errors, for any array library.

Dekker 1971, Knuth 1969.  Only + − × on IEEE numbers are used, each product through `product`, which
keeps a compiler from contracting it with the sum that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

SPLITTER_FLOAT64 = 2.0**27 + 1
SPLITTER_FLOAT32 = 2.0**12 + 1


class ErrorFree(NamedTuple):
    """The functions of this module, bound to one library."""

    split: Callable[[Any], Any]
    """x → 26 + 27 bits, exactly; a float32 → 12 + 12."""
    two_sum: Callable[[Any, Any], Any]
    """a, b → a + b and its rounding error, exactly."""
    two_product: Callable[[Any, Any, Any, Any], Any]
    """a, both parts of its split, b → a·b and its rounding error, exactly."""
    pair_product: Callable[[Any, Any, Any, Any], Any]
    """a, a', b, b' → (a + a')·(b + b') without a'·b', as an unevaluated sum of two.

    The relative error is some |a'/a|·|b'/b| + 2^-53·(|a'/a| + |b'/b|).
    """


def bind(
    *,
    product: Callable[[Any, Any], Any],
    compiled: Callable[[Any], Any] = lambda function: function,
    splitter: float = SPLITTER_FLOAT64,
) -> ErrorFree:
    """Give them to a library; see :func:`rotary.exact.circle.bind`."""

    @compiled
    def split(x: Any) -> Any:
        c = product(x, splitter)
        high = c - (c - x)
        return high, x - high

    @compiled
    def two_sum(a: Any, b: Any) -> Any:
        s = a + b
        t = s - a
        return s, (a - (s - t)) + (b - t)

    @compiled
    def two_product(a: Any, a_high: Any, a_low: Any, b: Any) -> Any:
        b_high, b_low = split(b)
        p = product(a, b)
        error = (product(a_high, b_high) - p) + product(a_high, b_low) + product(a_low, b_high)
        return p, error + product(a_low, b_low)

    @compiled
    def pair_product(a: Any, a_rest: Any, b: Any, b_rest: Any) -> Any:
        a_high, a_low = split(a)
        p, error = two_product(a, a_high, a_low, b)
        return p, error + (product(a, b_rest) + product(a_rest, b))

    return ErrorFree(split, two_sum, two_product, pair_product)

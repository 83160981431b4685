"""Sums of float32 in an order that is fixed, for any array library.

A tree of additions: halves of an axis are added, and their halves, whatever the library's own sum
would do.  Prefix sums double their reach in log2 n rounds and keep the rounding errors (Knuth
1969); running sums keep theirs as Kahan's (1965).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rotary.backends import Backend
from rotary.exact.products import cut, settle

# Multiples of 2^−125: neither a sum of them nor its rounding error is a subnormal number.
LEAST_SUMMED = 2.0**-102


def tree(backend: Backend, x: Any, axis: int) -> Any:
    """Return the sum along an axis, which stays with length 1; subnormal numbers count as zero.

    Adding zeros at the end of the axis changes nothing.
    """
    xp = backend.namespace(x)
    axis %= x.ndim
    x = cut(backend, x, 2.0**-126)
    length = x.shape[axis]
    if length == 0:
        return xp.sum(x, axis=axis, keepdims=True)

    def part(start: int, stop: int) -> Any:
        return x[(slice(None),) * axis + (slice(start, stop), ...)]

    while length > 1:
        half = 1 << ((length - 1).bit_length() - 1)  # of the next power of two
        over = length - half
        total = settle(backend, part(0, over) + part(half, length))
        x = total if over == half else xp.concat([total, part(over, half)], axis=axis)
        length = half
    return x


def two_sum(x: Any, y: Any) -> tuple[Any, Any]:
    """Return x + y and its rounding error, exactly (Knuth 1969)."""
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def prefix(backend: Backend, x: Any, low: Any = None) -> tuple[Any, Any]:
    """Return the inclusive sums along the last axis but one as two words, high and low.

    `low` is a second word of x.  Numbers below 2^−102 count as zero.
    """
    xp = backend.namespace(x)
    x = cut(backend, x, LEAST_SUMMED)
    low = xp.zeros_like(x) if low is None else cut(backend, low, LEAST_SUMMED)
    length, step = x.shape[-2], 1
    while step < length:
        total, error = two_sum(x[..., step:, :], x[..., :-step, :])
        rest = (low[..., step:, :] + low[..., :-step, :]) + error
        x = xp.concat([x[..., :step, :], total], axis=-2)
        low = xp.concat([low[..., :step, :], rest], axis=-2)
        step *= 2
    return x, low


def kahan(settle: Callable[[Any], Any], total: Any, low: Any, update: Any) -> tuple[Any, Any]:
    """Return total + update and what its rounding left out, given what was left out before.

    `settle` keeps a sum as the arithmetic at hand does.
    """
    step = settle(update + low)
    new = settle(total + step)
    return new, settle(step - (new - total))

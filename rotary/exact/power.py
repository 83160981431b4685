"""ζ^(position/scale_base), for any array library, with bits that depend on nothing else.

The exponent to the base of four is p·λ, with a position p and λ = log4(ζ)/scale_base held in two
float64 words.

1. p·λ = half + k/1024 + u + v by error-free products: a whole number, a whole k of −512 … 511 and
   a remainder |u| ≤ 1/2048, v below u.
2. 4^(k/1024)·4^(u + v) by a table of 1024 rows and a short polynomial, an unevaluated sum of two.
3. What is left is 4^half = 2^half·2^half: two exact products with a power of two that is looked
   up.  Base four, so that 1024 rows of powers reach all of float64, without a library's ldexp.

Only + − × rint and look-up on IEEE float64 are used, each product through `product`, as in
:mod:`rotary.exact.circle`.  Measured against mpmath: relative error of the sum of two below 2^-83.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rotary.exact import errorfree
from rotary.exact.circle import CELLS
from rotary.exact.words import CONTEXT, split_words

WORDS = 2
# |half| stays below 512 up to this power of two: 2^1022 is the last that has a normal inverse.
MOST_EXPONENT = 1022

with localcontext(CONTEXT):
    LN4 = Decimal(4).ln()
_LN4_HIGH, _LN4_LOW = split_words(LN4, 2)


@lru_cache(maxsize=1)
def tables() -> npt.NDArray[np.float64]:
    """Return 4^(k/1024) in two words, then 2^k twice; shape (2, 2, 1024), read-only.

    Row k holds k − 1024 from the middle on, so that negative k find their row modulo 1024.
    """
    rows = np.r_[0 : CELLS // 2, -CELLS // 2 : 0]
    with localcontext(CONTEXT):
        fractions = [split_words((LN4 * int(k) / CELLS).exp(), 2) for k in rows]
    twos = [2.0 ** int(k) for k in rows]
    table = np.array([np.transpose(fractions), [twos, twos]])
    table.flags.writeable = False
    return table


class Power(NamedTuple):
    """The functions of this module, bound to one library."""

    power: Callable[..., Any]
    times: Callable[..., Any]
    scaled: Callable[..., Any]


def bind(
    *,
    rint: Callable[[Any], Any],
    look_up: Callable[[Any, Any], tuple[Any, Any]],
    product: Callable[[Any, Any], Any],
    compiled: Callable[[Any], Any] = lambda function: function,
) -> Power:
    """Give the algorithm to a library; for the parameters see :func:`rotary.exact.circle.bind`.

    Returns
    -------
    Power
        ``power(position, l0, l1, fractions)`` gives half, high and low of 4^half·(high + low);
        ``times(a, a', high, low)`` gives the product of a + a' with the latter;
        ``scaled(value, half, twos)`` gives value·4^half, exact where it is neither subnormal nor
        too large.  The tables are those of :func:`tables`.
    """
    split, two_sum, two_product, pair_product = errorfree.bind(product=product, compiled=compiled)

    @compiled
    def exponent(position: Any, l0: Any, l1: Any) -> Any:
        """position·(l0 + l1) = half + cell/1024 + u + v."""
        high, low = split(position)
        u, v = two_product(position, high, low, l0)
        cells = rint(u * CELLS)
        u = u - cells * (1 / CELLS)  # exact: both are multiples of u's last place
        # A quarter decides the tie: 512 and −512 have one row in the table.
        half = rint((cells + 0.25) * (1 / CELLS))
        u, v = two_sum(u, v + product(position, l1))
        return half, cells - half * CELLS, u, v

    @compiled
    def power(position: Any, l0: Any, l1: Any, fractions: Any) -> Any:
        half, cell, u, v = exponent(position, l0, l1)
        a, rest = pair_product(u, v, _LN4_HIGH, _LN4_LOW)
        # exp(a + rest) − 1 = a + square/2 + tail; |a| < 2^-10, and a^7/5040 is left out.
        a_high, a_low = split(a)
        square, error = two_product(a, a_high, a_low, a)
        tail = 1 / 24 + product(a, 1 / 120 + product(a, 1 / 720))
        tail = product(product(a, square), 1 / 6 + product(a, tail))
        high, low = two_sum(a, 0.5 * square)
        low = low + ((rest + (product(a, rest) + 0.5 * error)) + tail)
        # The one is added as the table's value: 1 + x − 1 of constants is x to a compiler.
        f_high, f_low = look_up(fractions, cell)
        high, low = pair_product(f_high, f_low, high, low)
        high, error = two_sum(f_high, high)
        return half, high, f_low + low + error

    @compiled
    def times(high: Any, low: Any, power_high: Any, power_low: Any) -> Any:
        # A cosine's low is some 2^-20 of it: too much for the product of the lows to be left out.
        high, low = two_sum(high, low)
        return pair_product(high, low, power_high, power_low)

    @compiled
    def scaled(value: Any, half: Any, twos: Any) -> Any:
        one, other = look_up(twos, half)
        return product(product(value, one), other)

    return Power(power, times, scaled)

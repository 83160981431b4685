"""cos and sin of position × turns, for any array library, with bits that depend on nothing else.

The angle of a pair is 2π·p·t, with a position p and turns t = ω/2π held in four float64 words.

1. p·t modulo 1 by error-free products (Dekker, 1971).  The nearest whole turn, then the nearest
   k/1024 turn are subtracted *before* the low words are added, so that the remainder keeps its
   relative accuracy next to every zero of cos and sin.
2. cos(k/1024 + r) = cos(k/1024)·cos r − sin(k/1024)·sin r, with short polynomials in r around a
   table of 1024 rows.  sin is the same formula a quarter turn earlier, at k − 256.
3. float64 is high + low; float32 is that sum cut to 26 bits with a sticky bit, so that its
   conversion is the only rounding.

Only + − × rint and look-up on IEEE float64 are used, each product through `product`, which keeps a
compiler from contracting it with the sum that follows: NumPy's own cos changes with its SIMD level,
and every library has another.  Measured against exact reduction over 10^7 pairs a class: float32
correctly rounded, float64 within 0.50002 ulp, for |p| ≤ 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rotary.exact import errorfree
from rotary.exact.words import CONTEXT, TAU, nearest, split_words

CELLS = 1024
QUARTER = CELLS // 4

_TAU_HIGH, _TAU_LOW = split_words(TAU, 2, first_bits=26)
_TAU = nearest(Fraction(TAU))
_STICKY = 2.0**-30


def _cosine_of_turns(turns: Decimal) -> Decimal:
    """cos(2π·turns) for 0 ≤ turns ≤ 1/4, by its Taylor series, in the current decimal context."""
    angle = TAU * turns
    total = term = Decimal(1)
    n = 0
    while abs(term) > Decimal("1e-98"):
        n += 2
        term *= -angle * angle / (n * (n - 1))
        total += term
    return total


@lru_cache(maxsize=32)
def cosine_table(factor: float = 1.0) -> npt.NDArray[np.float64]:
    """factor · cos(2πk/1024), k = 0 … 1023, each as 26 + 53 bits; shape (2, 1024), read-only."""
    with localcontext(CONTEXT):
        cosines = [Decimal(factor) * _cosine_of_turns(Decimal(k) / CELLS) for k in range(QUARTER)]
        cosines.append(Decimal(0))
        cosines += [-c for c in cosines[-2::-1]]  # up to half a turn
        cosines += cosines[-2:0:-1]  # and back
    table = np.array([split_words(c, 2, first_bits=26) for c in cosines]).T.copy()
    table.flags.writeable = False
    return table


class Circle(NamedTuple):
    """The functions of this module, bound to one library."""

    reduce: Callable[..., Any]
    cosine: Callable[..., Any]
    both: Callable[..., Any]
    to_float32: Callable[..., Any]


def bind(
    *,
    rint: Callable[[Any], Any],
    sign: Callable[[Any], Any],
    look_up: Callable[[Any, Any], tuple[Any, Any]],
    product: Callable[[Any, Any], Any],
    compiled: Callable[[Any], Any] = lambda function: function,
) -> Circle:
    """Give the algorithm to a library.

    Parameters
    ----------
    rint, sign : callable
        Elementwise; rint rounds halves to even.
    look_up : callable
        ``look_up(table, k)``: both rows of the table at the integers k (held as floats), taken
        modulo 1024.
    product : callable
        ``product(a, b)`` = a·b, rounded before anything is added to it.  a is finite data, never
        a constant: a compiler's guard may be built from it.
    compiled : callable, optional
        Applied to every function, for libraries that compile scalar code.

    Returns
    -------
    Circle
        ``reduce(position, t0, t1, t2, t3)`` gives what is common to cos and sin of one angle;
        ``cosine(cell, *rest, table)`` the cosine as an unevaluated sum of two, the sine at
        ``cell - QUARTER``; ``both(cell, *rest, table)`` the four numbers of cosine and sine, with
        half the look-ups; ``to_float32(high, low)`` rounds a sum of two once.
    """
    split, two_sum, two_product, _ = errorfree.bind(product=product, compiled=compiled)

    @compiled
    def fraction(position: Any, t0: Any, t1: Any, t2: Any, t3: Any) -> Any:
        """position·(t0 + t1 + t2 + t3) modulo 1 = cell/1024 + u + v, |u| ≤ 1/2048, v below u."""
        high, low = split(position)
        u, e = two_product(position, high, low, t0)
        v, g = two_product(position, high, low, t1)
        w, d = two_product(position, high, low, t2)
        u = u - rint(u)
        v, e = two_sum(e, v)
        u, v = two_sum(u, v)
        cell = rint(u * CELLS)
        u = u - cell * (1 / CELLS)  # exact: the factor is a power of two
        w, g = two_sum(g, w)
        w, e = two_sum(e, w)
        w, v = two_sum(v, w)
        u, w = two_sum(u, w)
        return cell, u, w + (v + (e + (g + (d + product(position, t3)))))

    @compiled
    def reduce(position: Any, t0: Any, t1: Any, t2: Any, t3: Any) -> Any:
        """Cell, then a = 2π(u + v) as 26 bits + rest with sin's polynomial, sin a, cos a − 1."""
        cell, u, v = fraction(position, t0, t1, t2, t3)
        u_high, u_low = split(u)
        x = product(u_high, _TAU_HIGH)
        y = product(u_high, _TAU_LOW) + product(u_low + v, _TAU)
        a = x + y
        a_high, _ = split(a)
        a_low = (x - a_high) + y
        z = product(a, a)
        cos_minus_1 = product(z, product(z, 1 / 24 - product(z, 1 / 720)) - 0.5)
        sin_minus_a = product(a, product(z, product(z, 1 / 120 - product(z, 1 / 5040)) - 1 / 6))
        return cell, a_high, a_low + sin_minus_a, a + sin_minus_a, cos_minus_1

    @compiled
    def turned(
        c_high: Any,
        c_low: Any,
        s_high: Any,
        s_low: Any,
        a_high: Any,
        sin_low: Any,
        sin_a: Any,
        cos_minus_1: Any,
    ) -> Any:
        """(c_high + c_low)·cos a − (s_high + s_low)·sin a as an unevaluated sum of two."""
        x = product(a_high, s_high)  # 26 × 26 bits: exact
        high = c_high - x
        small = product(cos_minus_1, c_high + c_low) - (
            product(sin_low, s_high) + product(sin_a, s_low)
        )
        return high, ((c_high - high) - x) + (c_low + small)

    @compiled
    def cosine(
        cell: Any, a_high: Any, sin_low: Any, sin_a: Any, cos_minus_1: Any, table: Any
    ) -> Any:
        """table[cell]·cos a − table[cell − 256]·sin a."""
        c_high, c_low = look_up(table, cell)
        s_high, s_low = look_up(table, cell - QUARTER)
        return turned(c_high, c_low, s_high, s_low, a_high, sin_low, sin_a, cos_minus_1)

    @compiled
    def both(cell: Any, a_high: Any, sin_low: Any, sin_a: Any, cos_minus_1: Any, table: Any) -> Any:
        """Do so at cell and at cell − 256, for table[cell − 512] is −table[cell]."""
        c_high, c_low = look_up(table, cell)
        s_high, s_low = look_up(table, cell - QUARTER)
        cos, cos_rest = turned(c_high, c_low, s_high, s_low, a_high, sin_low, sin_a, cos_minus_1)
        sin, sin_rest = turned(s_high, s_low, -c_high, -c_low, a_high, sin_low, sin_a, cos_minus_1)
        return cos, cos_rest, sin, sin_rest

    @compiled
    def to_float32(high: Any, low: Any) -> Any:
        """Cut high + low to 26 bits and a sticky bit: converting that to float32 rounds once."""
        value = high + low
        rest = (high - value) + low
        cut, below = split(value)
        return cut + product(sign(below + rest), product(abs(cut), _STICKY))

    return Circle(reduce, cosine, both, to_float32)

"""Real numbers as unevaluated sums of float64 words, longest first.

One float64 carries 53 bits; n words carry about 53·n.  Constants are cut into words here, once,
from exact rational numbers; the arithmetic on words is in :mod:`rotary.exact.circle`.
"""

from __future__ import annotations

from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction

# Four float64 words hold 212 bits = 64 digits; 100 leave a margin for every formula in front.
# Decimal's operators round to the *current* context, even a unary minus: work inside localcontext.
CONTEXT = Context(prec=100, Emin=MIN_EMIN, Emax=MAX_EMAX)

PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510"
    "58209749445923078164062862089986280348253421170679821480865"
)
with localcontext(CONTEXT):
    TAU = 2 * PI


def nearest(x: Fraction, bits: int = 53) -> float:
    """Return the number of at most `bits` significant bits that is nearest to x, ties to even."""
    if x == 0:
        return 0.0
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent + 1 - bits)
    return float(round(x / unit) * unit)


def split_words(x: Decimal, count: int, first_bits: int = 53) -> tuple[float, ...]:
    """Cut x into `count` float64 words; the first has at most `first_bits` bits."""
    rest = Fraction(x)
    words = []
    for bits in (first_bits, *[53] * (count - 1)):
        words.append(nearest(rest, bits))
        rest -= Fraction(words[-1])
    return tuple(words)

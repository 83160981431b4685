"""XPos: a scale beside the rotation that lets scores decay with the distance.

    q_p → ζ^(p/B)·R_p q_p,   k_n → ζ^(−n/B)·R_n k_n,   ζ_i = (2i/R + 0.4)/1.4

Sun et al., "A Length-Extrapolatable Transformer", arXiv 2212.10554, section 3.2 and algorithm 1.
Scores depend on p − n alone and hold ζ^((p − n)/B), ζ < 1, pair by pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rotary.checks import positive
from rotary.exact import power
from rotary.exact.words import CONTEXT, split_words

ROLES = {"query": 1, "key": -1}
"""The sign of the exponent; 0 stands for no scale."""

# The largest power of two, and the smallest, that is a normal number and has a normal inverse.
_EXPONENTS = {"float32": 126, "float64": power.MOST_EXPONENT}


@dataclass(frozen=True)
class XPos:
    """The scale of XPos: queries are multiplied by ζ^(p/scale_base), keys by ζ^(−p/scale_base).

    ζ_i = (2i/R + 0.4)/1.4 for pair i of R rotating features.  Queries shrink and keys grow with
    the position, without a bound: tables in float32 reach |p| = 69.7·scale_base, position 35 694
    for 512, in float64 eight times as far.  Positions beyond are refused, and where only a compiled
    program knows them they give NaN.  float16 results overflow from about an eighth of it on.  Only
    differences matter to the scores: positions around 0 (``offset=-seq // 2``) go farthest.

    Parameters
    ----------
    scale_base : float
        B > 0.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> rope = rotary.RotaryEmbedding(8, xpos=rotary.XPos())
    >>> x = np.ones((4, 8))
    >>> q, k = rope(x, x)
    >>> scores = q @ k.T
    >>> bool(np.isclose(scores[1, 0], scores[3, 2]))
    True
    >>> q_next = rope(x[:1], offset=4, role="query")
    """

    scale_base: float = 512.0

    def __post_init__(self) -> None:
        value = positive("scale_base", self.scale_base)
        if value < 2.0**-64:
            raise ValueError(f"scale_base: got {value}, expected at least 2^-64")
        object.__setattr__(self, "scale_base", value)


def _log_zeta(rotary_dim: int) -> list[Decimal]:
    """Return ln ζ in the current decimal context."""
    pairs = range(rotary_dim // 2)
    return [(Decimal(10 * i + 2 * rotary_dim) / (7 * rotary_dim)).ln() for i in pairs]


@lru_cache(maxsize=64)
def exponents(xpos: XPos, rotary_dim: int, role: int) -> npt.NDArray[np.float64]:
    """Return ±log4(ζ)/scale_base in two float64 words, shape (2, R/2), read-only."""
    with localcontext(CONTEXT):
        unit = role / (Decimal(xpos.scale_base) * power.LN4)
        words = [split_words(log * unit, power.WORDS) for log in _log_zeta(rotary_dim)]
    table = np.array(words, dtype=np.float64).reshape(-1, power.WORDS).T.copy()
    table.flags.writeable = False
    return table


def rates(xpos: XPos, rotary_dim: int, role: int) -> npt.NDArray[np.float64]:
    """Return ±ln(ζ)/scale_base, the derivative of the scale by the position, as its share."""
    with localcontext(CONTEXT):
        unit = role / Decimal(xpos.scale_base)
        return np.array([float(log * unit) for log in _log_zeta(rotary_dim)])


@lru_cache(maxsize=256)
def reach(xpos: XPos, factor: float, dtype: str) -> float:
    """Return the largest |position| whose factor·ζ^(±p/scale_base) is a normal number of dtype."""
    with localcontext(CONTEXT):
        ln2 = Decimal(2).ln()
        room = _EXPONENTS[dtype] * ln2 - abs(Decimal(factor).ln())
        steepest = Decimal("3.5").ln()  # of ζ_0 = 0.4/1.4, whatever R is
        farthest = float(max(room, Decimal(0)) * Decimal(xpos.scale_base) / steepest)
    return math.nextafter(farthest, 0.0)

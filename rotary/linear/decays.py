"""Decays of the state: S_t = e^{g_t} ⊙ S_{t−1} + φ(k_t) v_tᵀ with log gates g ≤ 0.

Sun et al., RetNet, arXiv 2307.08621, section 2.1; Dao and Gu, Mamba-2, arXiv 2405.21060, equation
1; Yang et al., GLA, arXiv 2312.06635, equation 3: a gate for each channel of the keys, a row of S.
Within a chunk the weight of token j for query i is e^{c_i − c_j} with c the inclusive prefix sums
of g, kept in two words: one word of sums near −1600 loses 10³ ulp of the differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from rotary.exact.words import CONTEXT, nearest
from rotary.linear.arithmetic import Arithmetic, decay
from rotary.linear.halves import Level, levels

# e^−1000 is 0 in float32 and float64: gates below, −∞ among them, are as good as this one.
LEAST = -1000.0
_HEADS = 64


@dataclass(frozen=True)
class RetNet:
    """RetNet's fixed decay γ_h = 1 − 2^(−5−h) for head h = 0, 1, … of the state.

    Sun et al., arXiv 2307.08621, section 2.1 ("γ = 1 − 2^(−5−arange(0, h))").

    Examples
    --------
    >>> import rotary
    >>> rotary.linear.RetNet().factors(3)
    (0.96875, 0.984375, 0.9921875)
    """

    def factors(self, heads: int) -> tuple[float, ...]:
        """Return γ_h for that many heads."""
        return tuple(1 - 2.0 ** (-5 - h) for h in range(heads))


@lru_cache(maxsize=2)
def log_factors(bits: int) -> tuple[tuple[float, float], ...]:
    """Return ln γ_h of RetNet's first heads in two words of that many bits each."""
    pairs = []
    with localcontext(CONTEXT):
        for head in range(_HEADS):
            log = Fraction((1 - Decimal(2) ** (-5 - head)).ln())
            high = nearest(log, bits)
            pairs.append((high, nearest(log - Fraction(high), bits)))
    return tuple(pairs)


def of_heads(pairs: tuple[tuple[float, float], ...], heads: int) -> list[list[float]]:
    """Return ln γ_h of that many heads: the first words, then the second."""
    # ln(1 − x) = −x − x²/2 …: from head 59 on, −x to more than 64 bits.
    rest = [(-(2.0 ** (-5 - head)), 0.0) for head in range(_HEADS, heads)]
    both = [*pairs, *rest][:heads]
    return [[pair[0] for pair in both], [pair[1] for pair in both]]


class Weights(NamedTuple):
    """Decay within a chunk of C tokens; each is 1 where there is None."""

    within: Any
    """e^{c_i − c_j} for i ≥ j and 0 above, (…, C, C); with channels their share is left out."""
    since: Any
    """e^{c_i}: from the chunk's beginning to query i, (…, C, 1 or channels)."""
    until: Any
    """e^{c_C − c_j}: from token j to the chunk's end, (…, C, 1 or channels)."""
    whole: Any
    """e^{c_C}, (…, 1, 1 or channels)."""
    total: Any
    """c_C in two words, each (…, 1, 1 or channels)."""
    channels: bool = False
    """Whether there is a gate for each channel."""
    levels: tuple[Level, ...] | None = None
    """Decays between halves of the chunk, where they were asked for."""
    strict: bool = False
    """Whether a query does not see its own token."""


def weights(
    a: Arithmetic, gate: Any, gate_low: Any, lower: Any, *, halves_too: bool = False
) -> Weights:
    """Return the weights of a chunk with log gates (…, C, 1 or channels), in one or two words.

    `lower` is the triangle of ones that says which tokens a query sees, (C, C).
    """
    if gate is None:
        return Weights(lower, None, None, None, None)
    xp, channels = a.backend.namespace(gate), gate.shape[-1] != 1
    c, low = a.prefix(gate, gate_low)
    last, last_low = c[..., -1:, :], low[..., -1:, :]
    within = lower
    if not channels:
        row, row_low = xp.matrix_transpose(c), xp.matrix_transpose(low)
        within = a.weigh(decay(a, (c - row) + (low - row_low)), lower)
    return Weights(
        within,
        decay(a, c + low),
        decay(a, (last - c) + (last_low - low)),
        decay(a, last + last_low),
        (last, last_low),
        channels,
        levels(a, c, low) if channels or halves_too else None,
    )

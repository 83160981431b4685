"""Angular frequencies ω_i, evaluated in decimal arithmetic and kept as turns ω/2π.

    ω_i = θ^(−2i/F),  i = 0 … R/2 − 1          (RoFormer, arXiv 2104.09864, section 3.2.2)

Every library's own `pow` gives other bits; here the real-number formula is evaluated with 100
digits and rounded once: to four float64 words of turns for the tables (two are not enough at long
positions), or to the nearest float64 for reading.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rotary import axes as axes_module
from rotary import scaling as scaling_rules
from rotary.axes import Axes, Series
from rotary.exact.words import CONTEXT, TAU, nearest, split_words
from rotary.scaling import Scaling, YaRN
from rotary.xpos import XPos

WORDS = 4


@dataclass(frozen=True)
class Frequencies:
    """Which frequencies are meant: a formula and its numbers, no arrays.

    Attributes
    ----------
    rotary_dim : int
        R; there are R/2 frequencies.
    base : float
        θ.
    frequency_dim : int
        F, the denominator of the exponent.
    inv_freq : tuple of float, optional
        ω_i in radians per position, taken as exact float64 numbers instead of the formula.
    scaling : dataclass of :mod:`rotary.scaling`, optional
        Applied to either.
    seq_len : int
        The length for which it is applied; 0 where that does not matter.
    xpos : XPos, optional
        The scale beside the rotation.
    axes : dataclass of :mod:`rotary.axes`, optional
        Which of several position axes turns which pair.
    token : str
        All of the above by value, as Python writes it: the name of these frequencies in caches and
        in compiled programs, from which :meth:`from_token` makes them again.
    """

    rotary_dim: int
    base: float
    frequency_dim: int
    inv_freq: tuple[float, ...] | None = None
    scaling: Scaling | None = None
    seq_len: int = 0
    xpos: XPos | None = None
    axes: Axes | None = None
    token: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        if self.scaling is not None:
            numbers = vars(self.scaling)
            values["scaling"] = {"rule": type(self.scaling).__name__, **numbers}
        if self.xpos is not None:
            values["xpos"] = vars(self.xpos)
        if self.axes is not None:
            values["axes"] = {"kind": type(self.axes).__name__, **vars(self.axes)}
        object.__setattr__(self, "token", repr(values))

    @staticmethod
    @lru_cache(maxsize=256)
    def from_token(token: str) -> Frequencies:
        """Return the frequencies of a token."""
        values = ast.literal_eval(token)
        if values["inv_freq"] is not None:
            values["inv_freq"] = tuple(values["inv_freq"])
        if values["scaling"] is not None:
            rule = getattr(scaling_rules, values["scaling"].pop("rule"))
            values["scaling"] = rule(**values["scaling"])
        if values["xpos"] is not None:
            values["xpos"] = XPos(**values["xpos"])
        if values["axes"] is not None:
            kind = getattr(axes_module, values["axes"].pop("kind"))
            values["axes"] = kind(**values["axes"])
        return Frequencies(**values)

    @property
    def pairs(self) -> int:
        """R/2."""
        return self.rotary_dim // 2

    @property
    def axis_count(self) -> int:
        """Number of position axes."""
        return 1 if self.axes is None else self.axes.count

    @property
    def series(self) -> tuple[Series, ...]:
        """Where the frequencies come from: one series for all pairs, or more with several axes."""
        if self.axes is not None:
            return self.axes.series(self.frequency_dim)
        return (Series(tuple(range(self.pairs)), self.frequency_dim),)

    @property
    def in_turns(self) -> bool:
        """Whether ω is 2π times the formula."""
        return self.axes is not None and self.axes.in_turns


def _radians(frequencies: Frequencies) -> list[Decimal]:
    """ω in the current decimal context."""
    base, scaling = Decimal(frequencies.base), frequencies.scaling
    radians = [Decimal(0)] * frequencies.pairs
    for pairs, dim in frequencies.series:
        if frequencies.inv_freq is not None:
            values = [Decimal(frequencies.inv_freq[pair]) for pair in pairs]
        else:
            step = -2 * base.ln() / dim
            values = [(step * i).exp() for i in range(len(pairs))]
        if frequencies.in_turns:
            values = [TAU * value for value in values]
        if scaling is not None:
            values = scaling.scaled(values, base, dim, frequencies.seq_len)
        for pair, value in zip(pairs, values, strict=True):
            radians[pair] = value
    return radians


@lru_cache(maxsize=256)
def attention_factor(frequencies: Frequencies, power: int = 1) -> float:
    """Return the float64 nearest to a power of the number a that multiplies cos and sin."""
    if frequencies.scaling is None:
        return 1.0
    with localcontext(CONTEXT):
        return float(frequencies.scaling.attention_factor_at(frequencies.seq_len) ** power)


def softmax_scale(frequencies: Frequencies) -> float:
    """Return the float64 nearest to the number that multiplies the softmax scale."""
    if not isinstance(frequencies.scaling, YaRN):
        return 1.0
    with localcontext(CONTEXT):
        return float(frequencies.scaling.softmax_factor)


def query_scale(
    frequencies: Frequencies, positions: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the number that multiplies the query at each position, of positions' shape."""
    rule = frequencies.scaling
    if not isinstance(rule, YaRN) or rule.llama_4_scaling_beta is None:
        return np.ones(positions.shape)
    contexts, index = np.unique(
        np.floor(positions / rule.original_max_position_embeddings), return_inverse=True
    )
    with localcontext(CONTEXT):
        scales = [float(rule.query_factor(Decimal(c))) for c in contexts.tolist()]
    return np.array(scales)[index].reshape(positions.shape)


@lru_cache(maxsize=256)
def at_length(frequencies: Frequencies, seq_len: int) -> Frequencies:
    """Return the frequencies for sequences of that effective length."""
    return replace(frequencies, seq_len=seq_len)


def named(token: str, seq_len: int) -> Frequencies:
    """Return the frequencies of a token for sequences of that effective length."""
    return at_length(Frequencies.from_token(token), seq_len)


@lru_cache(maxsize=256)
def turns(frequencies: Frequencies) -> npt.NDArray[np.float64]:
    """ω/2π in four float64 words, shape (4, R/2), read-only."""
    with localcontext(CONTEXT):
        words = [split_words(w / TAU, WORDS) for w in _radians(frequencies)]
    table = np.array(words, dtype=np.float64).reshape(-1, WORDS).T.copy()
    table.flags.writeable = False
    return table


def radians(frequencies: Frequencies) -> npt.NDArray[np.float64]:
    """ω in radians per position, each the float64 nearest to the formula's value, shape (R/2,)."""
    with localcontext(CONTEXT):
        return np.array([float(w) for w in _radians(frequencies)])


def radians_as_trained(frequencies: Frequencies) -> npt.NDArray[np.float32]:
    """ω by the float32 steps of the usual implementations, 1 / θ^(2i/F), shape (R/2,).

    Each step is rounded to float32; so is the power, correctly: libraries' own differ in places.
    """
    if frequencies.inv_freq is not None or frequencies.scaling is not None:
        return radians(frequencies).astype(np.float32)
    powers = np.empty(frequencies.pairs, np.float32)
    with localcontext(CONTEXT):
        log_base = Decimal(float(np.float32(frequencies.base))).ln()
        for pairs, dim in frequencies.series:
            exponents = 2 * np.arange(len(pairs), dtype=np.float32) / np.float32(dim)
            for pair, exponent in zip(pairs, exponents.tolist(), strict=True):
                power = (log_base * Decimal(exponent)).exp()
                powers[pair] = nearest(Fraction(power), 24)
    return np.float32(1) / powers

"""Scaling rules: how frequencies change to carry a model beyond the context of its training.

Each rule is a small frozen dataclass of numbers, evaluated in decimal arithmetic like the
frequencies themselves.  None has a memory: what depends on the length of the sequence takes it as
an argument.

Notation: ω_i unscaled frequencies, θ base, d the denominator of their exponents (the number of
rotated features), s ``factor``, L0 ``original_max_position_embeddings``, the context of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from numbers import Real
from typing import Any, ClassVar, Protocol

from rotary.checks import check_bool, whole
from rotary.exact.words import TAU

__all__ = ["NTK", "DynamicNTK", "Linear", "Llama3", "LongRoPE", "Proportional", "YaRN"]


class Scaling(Protocol):
    """What a rule answers; decimals are evaluated in the current decimal context."""

    @property
    def needs_length(self) -> bool:
        """Whether the length of the sequence matters."""
        ...

    @property
    def switch_length(self) -> int | None:
        """The length beyond which other frequencies hold, the same for all; None otherwise."""
        ...

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return ω' from ω, θ, d and the length of the sequence."""
        ...

    def attention_factor_at(self, seq_len: int) -> Decimal:
        """Return the number that multiplies cos and sin."""
        ...

    def effective_length(self, seq_len: int) -> int:
        """Return the least length with the same frequencies and factor as this one."""
        ...


class _OfAnyLength:
    """A rule to which the length of the sequence is nothing, with an attention factor of one."""

    needs_length: ClassVar[bool] = False
    switch_length: ClassVar[None] = None

    def attention_factor_at(self, seq_len: int) -> Decimal:
        return Decimal(1)

    def effective_length(self, seq_len: int) -> int:
        return 0


@dataclass(frozen=True)
class Linear(_OfAnyLength):
    """Position Interpolation: ω' = ω/s, all positions squeezed into the trained range.

    Chen et al., arXiv 2306.15595.

    Parameters
    ----------
    factor : float
        s > 0.

    Examples
    --------
    >>> import rotary
    >>> rotary.RotaryEmbedding(4, scaling=rotary.scaling.Linear(4.0)).frequencies()
    array([0.25  , 0.0025])
    """

    factor: float

    def __post_init__(self) -> None:
        _positive(self, "factor")

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return ω/s."""
        return [w / Decimal(self.factor) for w in radians]


@dataclass(frozen=True)
class NTK(_OfAnyLength):
    """NTK-aware scaling: θ' = θ·s^(d/(d−2)), high frequencies kept, the lowest divided by s.

    bloc97, "NTK-Aware Scaled RoPE", 2023; also HunYuan's ``alpha``.  Needs d > 2.

    Parameters
    ----------
    factor : float
        s > 0.

    Examples
    --------
    >>> import rotary
    >>> rotary.RotaryEmbedding(6, base=1000.0, scaling=rotary.scaling.NTK(8.0)).frequencies()
    array([1.        , 0.03535534, 0.00125   ])
    """

    factor: float

    def __post_init__(self) -> None:
        _positive(self, "factor")

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return the frequencies of base θ·s^(d/(d−2))."""
        return _of_larger_base(radians, Decimal(self.factor), dim)


@dataclass(frozen=True)
class DynamicNTK:
    """NTK scaling that grows with the sequence.

    θ' = θ·(s·n/L − (s − 1))^(d/(d−2)),   n = max(seq_len, L)

    emozilla, "Dynamically Scaled RoPE", 2023.  What it gives depends on ``seq_len`` alone, not on
    longer sequences that were seen before.

    Parameters
    ----------
    factor : float
        s > 0.
    original_max_position_embeddings : int
        L, up to which nothing changes.

    Examples
    --------
    >>> import rotary
    >>> rope = rotary.RotaryEmbedding(4, scaling=rotary.scaling.DynamicNTK(2.0, 2048))
    >>> rope.frequencies(seq_len=2048), rope.frequencies(seq_len=4096)
    (array([1.  , 0.01]), array([1.        , 0.00333333]))
    """

    factor: float
    original_max_position_embeddings: int

    needs_length: ClassVar[bool] = True
    switch_length: ClassVar[None] = None

    def __post_init__(self) -> None:
        _positive(self, "factor")
        _length(self, "original_max_position_embeddings")

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return the frequencies of the base for this length."""
        s, length = Decimal(self.factor), self.effective_length(seq_len)
        growth = s * length / self.original_max_position_embeddings - (s - 1)
        return _of_larger_base(radians, growth, dim)

    def attention_factor_at(self, seq_len: int) -> Decimal:
        """Return 1."""
        return Decimal(1)

    def effective_length(self, seq_len: int) -> int:
        """Return max(seq_len, L)."""
        return max(seq_len, self.original_max_position_embeddings)


@dataclass(frozen=True)
class YaRN(_OfAnyLength):
    """YaRN: pairs that turn often are kept, pairs that turn seldom are divided by s.

    ω' = ω·((1 − γ) + γ/s),   γ_i = clip((i − low)/(high − low), 0, 1),
    c(r) = d·ln(L0/(2πr))/(2·ln θ),   low = max(c(β_fast), 0),   high = min(c(β_slow), d − 1)

    Peng et al., arXiv 2309.00071.  cos and sin are multiplied by the attention factor: as given, or
    g(s, mscale)/g(s, mscale_all_dim), or g(s, 1), with g(s, m) = 1 + 0.1·m·ln s (1 where s ≤ 1).

    Parameters
    ----------
    factor : float
        s > 0.
    original_max_position_embeddings : int
        L0.
    beta_fast, beta_slow : float
        Turns within L0 from which a pair is kept, and below which it is divided by s.
    truncate : bool
        Round low down and high up to whole pairs.
    attention_factor : float, optional
        Overrides the formula.
    mscale, mscale_all_dim : float, optional
        DeepSeek's two exponents, used where neither is zero.
    llama_4_scaling_beta : float, optional
        β of a query scale 1 + β·ln(1 + ⌊p/L0⌋), for :meth:`rotary.RotaryEmbedding.query_scale`.

    Examples
    --------
    >>> import rotary
    >>> rule = rotary.scaling.YaRN(4.0, 4096)
    >>> rope = rotary.RotaryEmbedding(128, scaling=rule)
    >>> float(rotary.RotaryEmbedding(128).frequencies()[-1] / rope.frequencies()[-1])
    4.0
    >>> rope.attention_factor()
    1.138629436111989
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    llama_4_scaling_beta: float | None = None

    def __post_init__(self) -> None:
        _positive(self, "factor")
        _length(self, "original_max_position_embeddings")
        _positive(self, "beta_fast")
        _positive(self, "beta_slow")
        _optional_positive(self, "attention_factor")
        for name in ("mscale", "mscale_all_dim", "llama_4_scaling_beta"):
            if getattr(self, name) is not None:
                _number(self, name)
        check_bool("truncate", self.truncate)

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return ω, ω/s and what is between."""
        low, high = (
            dim
            * (self.original_max_position_embeddings / (TAU * Decimal(turns))).ln()
            / (2 * base.ln())
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low = low.to_integral_value(ROUND_FLOOR)
            high = high.to_integral_value(ROUND_CEILING)
        low, high = max(low, Decimal(0)), min(high, Decimal(dim - 1))
        if low == high:
            high += Decimal("0.001")
        s, out = Decimal(self.factor), []
        for i, w in enumerate(radians):
            gamma = min(max((i - low) / (high - low), Decimal(0)), Decimal(1))
            out.append(w * ((1 - gamma) + gamma / s))
        return out

    def attention_factor_at(self, seq_len: int) -> Decimal:
        """Return the attention factor, the same for every length."""
        if self.attention_factor is not None:
            return Decimal(self.attention_factor)
        if self.mscale and self.mscale_all_dim:
            return self._g(self.mscale) / self._g(self.mscale_all_dim)
        return self._g(1.0)

    @property
    def softmax_factor(self) -> Decimal:
        """What DeepSeek multiplies its softmax scale by: g(s, mscale_all_dim)²."""
        return self._g(self.mscale_all_dim) ** 2 if self.mscale_all_dim else Decimal(1)

    def query_factor(self, contexts: Decimal) -> Decimal:
        """Return 1 + β·ln(1 + contexts): the query scale after so many whole contexts."""
        if contexts < 0:
            raise ValueError("positions: got a negative one, which has no query scale")
        return 1 + Decimal(self.llama_4_scaling_beta or 0) * (1 + contexts).ln()

    def _g(self, m: float) -> Decimal:
        s = Decimal(self.factor)
        return Decimal(1) if s <= 1 else Decimal("0.1") * Decimal(m) * s.ln() + 1


@dataclass(frozen=True)
class LongRoPE:
    """LongRoPE: a searched factor for every pair, one set for short sequences and one for long.

    ω'_i = ω_i/long_factor_i where seq_len > L0, else ω_i/short_factor_i

    Ding et al., arXiv 2402.13753, as Phi-3 uses it.  The attention factor is as given, or
    sqrt(1 + ln s/ln L0) (1 where s ≤ 1), for short sequences too; PhiMoE's ``short_mscale`` and
    ``long_mscale`` replace it by length.

    Parameters
    ----------
    short_factor, long_factor : sequence of float
        One number a pair, d/2 of them.
    original_max_position_embeddings : int
        L0.
    factor : float, optional
        s, for the attention factor alone; in configs often L/L0.
    attention_factor : float, optional
        Overrides the formula.
    short_mscale, long_mscale : float, optional
        Attention factors by length, given together.

    Examples
    --------
    >>> import rotary
    >>> rule = rotary.scaling.LongRoPE([1.0, 1.0], [1.5, 8.0], 4096, factor=32.0)
    >>> rope = rotary.RotaryEmbedding(4, scaling=rule)
    >>> rope.frequencies(seq_len=4096), rope.frequencies(seq_len=4097)
    (array([1.  , 0.01]), array([0.66666667, 0.00125   ]))
    """

    short_factor: Sequence[float]
    long_factor: Sequence[float]
    original_max_position_embeddings: int
    factor: float | None = None
    attention_factor: float | None = None
    short_mscale: float | None = None
    long_mscale: float | None = None

    needs_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _length(self, "original_max_position_embeddings")
        for name in ("short_factor", "long_factor"):
            _positive_tuple(self, name)
        for name in ("factor", "attention_factor", "short_mscale", "long_mscale"):
            _optional_positive(self, name)
        if (self.short_mscale is None) != (self.long_mscale is None):
            raise ValueError(
                f"short_mscale: got {self.short_mscale} with long_mscale {self.long_mscale}, "
                f"expected both or neither"
            )

    @property
    def switch_length(self) -> int:
        """L0."""
        return self.original_max_position_embeddings

    def is_long(self, seq_len: int) -> bool:
        """Whether a sequence of this length takes the long factors."""
        return seq_len > self.original_max_position_embeddings

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return ω divided pair by pair."""
        factors = self.long_factor if self.is_long(seq_len) else self.short_factor
        return [w / Decimal(f) for w, f in zip(radians, factors, strict=True)]

    def attention_factor_at(self, seq_len: int) -> Decimal:
        """Return the attention factor for this length."""
        if self.short_mscale is not None and self.long_mscale is not None:
            return Decimal(self.long_mscale if self.is_long(seq_len) else self.short_mscale)
        if self.attention_factor is not None:
            return Decimal(self.attention_factor)
        s = Decimal(self.factor or 1)
        if s <= 1:
            return Decimal(1)
        return (1 + s.ln() / Decimal(self.original_max_position_embeddings).ln()).sqrt()

    def effective_length(self, seq_len: int) -> int:
        """Return 0 up to L0, L0 + 1 beyond."""
        return self.original_max_position_embeddings + 1 if self.is_long(seq_len) else 0


@dataclass(frozen=True)
class Llama3(_OfAnyLength):
    """Llama 3.1: long wavelengths divided by s, short ones kept, a straight line between.

    With λ = 2π/ω: ω/s where λ > L0/low_freq_factor, ω where λ < L0/high_freq_factor, else
    (1 − t)·ω/s + t·ω with t = (L0/λ − low_freq_factor)/(high_freq_factor − low_freq_factor).
    Meta, Llama 3.1 reference code, 2024.

    Parameters
    ----------
    factor : float
        s > 0.
    low_freq_factor, high_freq_factor : float
        Turns within L0 that bound the transition, low < high.
    original_max_position_embeddings : int
        L0.

    Examples
    --------
    >>> import rotary
    >>> rule = rotary.scaling.Llama3(8.0, 1.0, 4.0, 8192)
    >>> rotary.RotaryEmbedding(4, base=500_000.0, scaling=rule).frequencies()
    array([1.00000000e+00, 5.24846161e-04])
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _positive(self, name)
        _length(self, "original_max_position_embeddings")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor: got {self.low_freq_factor}, expected less than "
                f"high_freq_factor = {self.high_freq_factor}"
            )

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return ω/s, ω, or their mean by the turns within L0."""
        s, low = Decimal(self.factor), Decimal(self.low_freq_factor)
        high, out = Decimal(self.high_freq_factor), []
        for w in radians:
            turns = self.original_max_position_embeddings * w / TAU
            t = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
            out.append((1 - t) * w / s + t * w)
        return out


@dataclass(frozen=True)
class Proportional(_OfAnyLength):
    """Proportional: the first share of all pairs rotates by ω/s, the rest not at all.

    ω'_i = ω_i/s for i < int(p·d // 2), else 0.  Unlike a smaller ``rotary_dim``, the exponents
    count in all of d, and in the half layout the features at rest lie in both halves.

    Parameters
    ----------
    partial_rotary_factor : float
        p, 0 < p ≤ 1.
    factor : float
        s > 0.

    Examples
    --------
    >>> import rotary
    >>> rotary.RotaryEmbedding(8, scaling=rotary.scaling.Proportional(0.5)).frequencies()
    array([1. , 0.1, 0. , 0. ])
    """

    partial_rotary_factor: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "factor")
        _positive(self, "partial_rotary_factor")
        if self.partial_rotary_factor > 1:
            raise ValueError(
                f"partial_rotary_factor: got {self.partial_rotary_factor}, expected at most 1"
            )

    def scaled(
        self, radians: list[Decimal], base: Decimal, dim: int, seq_len: int
    ) -> list[Decimal]:
        """Return ω/s for the first pairs and zeros."""
        rotating = int(self.partial_rotary_factor * dim // 2)
        s = Decimal(self.factor)
        return [w / s if i < rotating else Decimal(0) for i, w in enumerate(radians)]


def check_rule(rule: Any, radians: int, dim: int) -> None:
    """Raise unless this is a rule that fits so many frequencies."""
    if not isinstance(rule, _RULES):
        raise TypeError(
            f"scaling: got {rule!r}, expected None or a rule of rotary.scaling: "
            f"{', '.join(__all__)}"
        )
    if isinstance(rule, NTK | DynamicNTK) and dim <= 2:
        raise ValueError(f"scaling: {type(rule).__name__} needs more than 2 features, got {dim}")
    if isinstance(rule, LongRoPE):
        for name in ("short_factor", "long_factor"):
            if len(getattr(rule, name)) != radians:
                raise ValueError(
                    f"{name}: got {len(getattr(rule, name))} numbers, expected one for each of "
                    f"the {radians} pairs"
                )


def _of_larger_base(radians: list[Decimal], growth: Decimal, dim: int) -> list[Decimal]:
    """Return the frequencies of base θ·growth^(d/(d−2)): ω_i·growth^(−2i/(d−2))."""
    step = -2 * growth.ln() / (dim - 2)
    return [w * (step * i).exp() for i, w in enumerate(radians)]


def _number(rule: Any, name: str) -> None:
    value = getattr(rule, name)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, expected a finite number")
    object.__setattr__(rule, name, float(value))


def _positive(rule: Any, name: str) -> None:
    _number(rule, name)
    if not getattr(rule, name) > 0:
        raise ValueError(f"{name}: got {getattr(rule, name)}, expected a positive number")


def _optional_positive(rule: Any, name: str) -> None:
    if getattr(rule, name) is not None:
        _positive(rule, name)


def _length(rule: Any, name: str) -> None:
    object.__setattr__(rule, name, whole(name, getattr(rule, name)))


def _positive_tuple(rule: Any, name: str) -> None:
    values = getattr(rule, name)
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {values!r}, expected one number a pair")
    values = tuple(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: got {value!r} among its numbers, expected numbers")
        if not 0 < float(value) < math.inf:
            raise ValueError(f"{name}: got {value} among its numbers, expected positive ones")
    object.__setattr__(rule, name, tuple(float(value) for value in values))


_RULES = (Linear, NTK, DynamicNTK, YaRN, LongRoPE, Llama3, Proportional)

"""What is right: slow, certain, and written without any of the library's own arithmetic.

Angles are reduced exactly, with integers; cos and sin come from mpmath; rotations are evaluated
with float32 products and sums rounded from float64, where both are exact or innocuous (53 bits ≥
2·24 + 2).  float64 rotations use NumPy's single operations, which IEEE 754 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt

from rotary.conformance import axes_oracle, scaling_oracle

# Fractional bits of an angle in turns: 2^53 positions of it still keep 347.
_FRACTION_BITS = 400
_WORKING_BITS = 160


@dataclass(frozen=True)
class Angles:
    """Which frequencies are meant, as the oracle reads them."""

    rotary_dim: int
    base: float = 10_000.0
    frequency_dim: int | None = None
    inv_freq: tuple[float, ...] | None = None
    scale_base: float | None = None
    """Of XPos."""
    role: str | None = None
    """Whose tables, under XPos: "query" or "key"."""
    scaling: Any = None
    """A rule of rotary.scaling, of which only the numbers are read."""
    seq_len: int = 0
    axes: Any = None
    """A description of rotary.axes, of which only the numbers are read."""

    @property
    def pairs(self) -> list[axes_oracle.Pair]:
        """Axis, numerator and denominator of θ's exponent, of every pair."""
        denominator = self.frequency_dim or self.rotary_dim
        if self.axes is None:
            return [(0, i, denominator) for i in range(self.rotary_dim // 2)]
        return axes_oracle.pairs(type(self.axes).__name__, vars(self.axes), denominator)

    def turns(self) -> list[Any]:
        """Return ω/2π as mpmath numbers at the current precision."""
        mp, base = mpmath.mp, mpmath.mp.mpf(self.base)
        if self.inv_freq is not None:
            omega = [mp.mpf(w) for w in self.inv_freq]
        else:
            exponents = (-mp.mpf(2 * i) / denominator for _, i, denominator in self.pairs)
            omega = [mp.power(base, exponent) for exponent in exponents]
        if self.scaling is not None:
            rule = scaling_oracle.RULES[type(self.scaling).__name__]
            denominator = self.frequency_dim or self.rotary_dim
            omega = rule(vars(self.scaling), omega, base, denominator, self.seq_len)
        if getattr(self.axes, "in_turns", False):
            return omega
        return [w / (2 * mp.pi) for w in omega]

    def factor(self) -> float:
        """Return the attention factor, the float64 nearest to the formula's value."""
        if self.scaling is None:
            return 1.0
        rule, numbers = type(self.scaling).__name__, vars(self.scaling)
        return float(scaling_oracle.attention_factor(rule, numbers, self.seq_len))

    def scale(self, pair: int, position: float) -> Any:
        """Return what multiplies cos and sin, at the current precision: XPos, arXiv 2212.10554."""
        mp = mpmath.mp
        if self.scale_base is None:
            return mp.mpf(self.factor())
        zeta = (mp.mpf(2 * pair) / self.rotary_dim + mp.mpf("0.4")) / mp.mpf("1.4")
        exponent = mp.mpf(position) / mp.mpf(self.scale_base)
        return mp.power(zeta, {"query": exponent, "key": -exponent}[str(self.role)])


@dataclass(frozen=True)
class Tables:
    """cos and sin, shape (2, …, R/2): to twice float64, and correctly rounded."""

    high: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    float32: npt.NDArray[np.float32]


@lru_cache(maxsize=64)
def _fixed_turns(angles: Angles) -> tuple[int, ...]:
    with mpmath.workprec(_FRACTION_BITS + 100):
        scale = mpmath.mp.mpf(2) ** _FRACTION_BITS
        return tuple(int(mpmath.mp.nint(t * scale)) for t in angles.turns())


def tables(angles: Angles, positions: npt.NDArray[np.float64]) -> Tables:
    """Return cos and sin of every position and frequency, shape (2, …, R/2).

    With several axes positions are (axes, …), or (…) and then equal for all.
    """
    if angles.axes is None or positions.ndim < 2:
        positions = positions[None]
    shape = (2, *positions.shape[1:], angles.rotary_dim // 2)
    key = tuple(map(tuple, positions.reshape(len(positions), -1).tolist()))
    high, low, single = _tables(angles, key)
    return Tables(high.reshape(shape), low.reshape(shape), single.reshape(shape))


@lru_cache(maxsize=64)
def _tables(angles: Angles, by_axis: tuple[tuple[float, ...], ...]) -> tuple[Any, Any, Any]:
    shape = (2, len(by_axis[0]), angles.rotary_dim // 2)
    axes = [axis if len(by_axis) > 1 else 0 for axis, _, _ in angles.pairs]
    high, low, single = np.empty(shape), np.empty(shape), np.empty(shape, np.float32)
    # Under XPos float64 reaches farther than float32, whose table is then infinite.
    with mpmath.workprec(_WORKING_BITS), np.errstate(over="ignore"):
        for n, positions in enumerate(zip(*by_axis, strict=True)):
            for i, fixed in enumerate(_fixed_turns(angles)):
                position = positions[axes[i]]
                scale = angles.scale(i, position)
                for which, unscaled in enumerate(_cos_sin(position, fixed)):
                    value = unscaled * scale
                    high[which, n, i] = float(value)
                    low[which, n, i] = float(value - float(value))
                    single[which, n, i] = round_to_bits(value, 24)
    return high, low, single


def _cos_sin(position: float, fixed_turns: int) -> tuple[Any, Any]:
    numerator, denominator = position.as_integer_ratio()
    product = numerator * fixed_turns  # × 2^-400 / denominator, a power of two
    bits = _FRACTION_BITS + denominator.bit_length() - 1
    turn = 1 << bits
    product %= turn
    if product > turn // 2:
        product -= turn
    # An exact mpmath number, however many bits it has.
    half_turns = mpmath.mp.make_mpf(mpmath.libmp.from_man_exp(product, 1 - bits))
    return mpmath.mp.cospi(half_turns), mpmath.mp.sinpi(half_turns)


def round_to_bits(value: Any, bits: int) -> float:
    """Round an mpmath number to nearest even with that many significant bits."""
    return float(mpmath.libmp.to_float(mpmath.libmp.mpf_pos(value._mpf_, bits, "n")))


def fraction_to_bits(value: Fraction, bits: int) -> float:
    """Round a fraction to nearest even with that many significant bits."""
    with mpmath.workprec(2000):  # a quotient's tie is decided long before
        return round_to_bits(mpmath.mp.mpf(value.numerator) / value.denominator, bits)


def pair_indices(
    head_dim: int,
    rotary_dim: int,
    layout: str,
    rotary_side: str,
    blocks: Sequence[int] | None = None,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the feature indices of the first and of the second members of all pairs."""
    start = 0 if rotary_side == "leading" else head_dim - rotary_dim
    i = np.arange(rotary_dim // 2)
    if layout == "half":
        first: list[int] = []
        second: list[int] = []
        for n in [rotary_dim // 2] if blocks is None else blocks:
            begin = start + len(first) + len(second)
            first += range(begin, begin + n)
            second += range(begin + n, begin + 2 * n)
        return np.array(first), np.array(second)
    return start + 2 * i, start + 2 * i + 1


def rotate(
    x: npt.NDArray[Any],
    cos: npt.NDArray[Any],
    sin: npt.NDArray[Any],
    pairs: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
    *,
    inverse: bool = False,
) -> npt.NDArray[Any]:
    """Rotate pairs of x by tables that broadcast with it, as fl(fl(x1·c) − fl(x2·s))."""
    first, second = pairs
    wide = x.astype(np.float64)  # exact for every dtype
    x1, x2 = wide[..., first], wide[..., second]
    cos, sin = cos.astype(np.float64), sin.astype(np.float64)
    if inverse:
        sin = -sin
    fl = _float32 if x.dtype != np.float64 else _same
    with np.errstate(all="ignore"):
        y1 = fl(fl(x1 * cos) - fl(x2 * sin))
        y2 = fl(fl(x1 * sin) + fl(x2 * cos))
        out = x.copy()
        out[..., first] = _cast(y1, x.dtype)
        out[..., second] = _cast(y2, x.dtype)
    return out


def _float32(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x.astype(np.float32).astype(np.float64)


def _same(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x


def _cast(x: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype == np.float64:
        return x
    return x.astype(np.float32).astype(dtype)  # x is a float32 value: one rounding


def worst_positions(angles: Angles, exponents: Sequence[int], most_bits: int) -> list[float]:
    """Return positions q·2^e at which cos or sin of some pair is as near to zero as can be.

    q/4t·2^e is nearly whole for the denominators q of the continued fraction of 4·t·2^e.
    """
    found: set[float] = set()
    with mpmath.workprec(_FRACTION_BITS):
        for turns in angles.turns():
            for exponent in exponents:
                quarter_turns = 4 * turns * mpmath.mp.mpf(2) ** exponent
                for q in _denominators(quarter_turns, 2**most_bits):
                    found.add(float(q) * 2.0**exponent)
    return sorted(found)


def _denominators(x: Any, limit: int) -> list[int]:
    """Return denominators up to limit of the continued fraction of x."""
    out: list[int] = []
    previous, current = 1, 0
    rest = x
    while True:
        whole = int(mpmath.mp.floor(rest))
        previous, current = current, whole * current + previous
        if current > limit:
            return out
        if current > 0:
            out.append(current)
        rest -= whole
        if rest == 0:
            return out
        rest = 1 / rest

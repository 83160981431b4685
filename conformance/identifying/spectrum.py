"""From frequencies to the numbers that made them: base, scaling rule and its parameters.

A rule is proposed from the shape of ω_i (a power law; a power law in two pieces with a ramp
between) with the roundest numbers that the measurement allows, and kept only if the frequencies of
that ``RotaryEmbedding`` are those that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import rotary
from rotary.conformance.identifying import ramps
from rotary.conformance.identifying.asking import Array
from rotary.conformance.identifying.numbers import USUAL_BASES, digits, intersection, simplest
from rotary.scaling import NTK, Linear, Proportional, YaRN

Arguments = dict[str, Any]
"""Of ``RotaryEmbedding`` beside head_dim, layout and rotary_side."""


@dataclass(frozen=True)
class Spectrum:
    """Frequencies as measured, all rotary_dim/2 of them, zeros for pairs at rest.

    Attributes
    ----------
    omega, allowed : array, shape (rotary_dim/2,)
        Radians per position and by how much a formula may miss them.
    head_dim, rotary_dim : int
    factor, factor_allowed : float
        The attention factor, and by how much it may be missed.
    """

    omega: Array
    allowed: Array
    head_dim: int
    rotary_dim: int
    factor: float = 1.0
    factor_allowed: float = 0.0

    def make(self, arguments: Arguments) -> rotary.RotaryEmbedding:
        """Return the embedding of these arguments."""
        return rotary.RotaryEmbedding(self.head_dim, rotary_dim=self.rotary_dim, **arguments)

    def fits(self, arguments: Arguments, seq_len: int | None = None) -> bool:
        """Whether these arguments give the frequencies and the factor that were measured."""
        try:
            rope = self.make(arguments)
            off = np.abs(rope.frequencies(seq_len) - self.omega)
            factor = rope.attention_factor(seq_len)
        except (ValueError, TypeError, ArithmeticError):
            return False
        return bool((off <= self.allowed).all()) and (
            abs(factor - self.factor) <= self.factor_allowed
        )


def allowance(omega: Array, error: Array, kind: str) -> Array:
    """Return by how much a formula may miss frequencies that were rounded to this dtype.

    float32: the usual steps, 1 / θ^(2i/d), round the exponent, the power and the quotient; the
    first is off by ln(1/ω) units.
    """
    size = np.abs(omega)
    if kind == "float64":
        allowed: Array = 4 * error + 2.0**-46 * size
        return allowed
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.where(size > 0, np.log(np.where(size > 0, size, 1.0)), 0.0)
    if kind == "float32":
        allowed = 4 * error + 2.0**-24 * size * (4 + 2 * np.abs(logarithm))
        return allowed
    digits_, least = {"bfloat16": (8, -126), "float16": (11, -14)}[kind]
    exponent = np.maximum(np.floor(logarithm / math.log(2.0)), least)
    return np.where(size > 0, error + 2.0 ** (exponent - digits_) * (1 + 2.0**-7), 0.0)


def named(spectrum: Spectrum) -> Arguments | None:
    """Return arguments that fit, the simplest first; None if no rule does."""
    with np.errstate(all="ignore"):  # logarithms of what is no frequency of a formula
        return next((a for a in _proposals(spectrum) if spectrum.fits(a)), None)


def given(spectrum: Spectrum, error: Array) -> Arguments:
    """Return arguments with the frequencies themselves."""
    numbers = [simplest(w - e, w + e) for w, e in zip(spectrum.omega, error, strict=True)]
    return _with_factor({"inv_freq": tuple(numbers)}, spectrum)


def _proposals(spectrum: Spectrum) -> Iterator[Arguments]:
    turning = spectrum.omega != 0
    count = int(turning.sum())
    if not turning[:count].all():
        return
    law = _power_law(spectrum.omega[:count], spectrum.allowed[:count])
    if count < len(turning):
        if law is not None:
            yield from _proportional(spectrum, count, *law)
        return
    if law is not None:
        yield from _plain(spectrum, *law)
    if count >= 3 and abs(spectrum.omega[0] - 1) <= spectrum.allowed[0]:
        for base in _bases(spectrum):
            yield from ramps.proposals(spectrum, base)


def _power_law(omega: Array, allowed: Array) -> tuple[float, tuple[float, float]] | None:
    """Return s and the bounds of −ln(ω_{i+1}/ω_i) if ω_i is a power law over s."""
    s = simplest(1 / (omega[0] + allowed[0]), 1 / max(omega[0] - allowed[0], 1e-300))
    slopes = intersection(*_slopes(omega, allowed, -math.log(s)))
    return None if slopes is None else (s, slopes)


def _slopes(omega: Array, allowed: Array, start: float) -> tuple[Array, Array]:
    """Return the bounds of the slope of −ln ω_i from each pair but the first."""
    i = np.arange(1, len(omega))
    if not len(i):
        return np.array([-np.inf]), np.array([np.inf])
    low = (start - np.log(omega[1:] + allowed[1:])) / i
    high = (start - np.log(np.maximum(omega[1:] - allowed[1:], 1e-300))) / i
    return low, high


def base_of(slopes: tuple[float, float], dim: int) -> float:
    """Return the roundest θ of slopes 2·ln(θ)/dim."""
    if not math.isfinite(slopes[0]):
        return 10_000.0  # a single pair has none
    with np.errstate(over="ignore"):
        low, high = np.exp(np.array(slopes) * dim / 2)
    # Never an empty interval: one number of sixteen digits is as good as its neighbour.
    return simplest(float(low) * (1 - 1e-15), float(high) * (1 + 1e-15))


def _plain(spectrum: Spectrum, s: float, slopes: tuple[float, float]) -> Iterator[Arguments]:
    """Propose a base, with Linear; or one of another denominator; or NTK of a usual base."""
    dim, head_dim = spectrum.rotary_dim, spectrum.head_dim
    base = base_of(slopes, dim)
    costs: list[tuple[int, Arguments]] = [(digits(base), {"base": base})]
    if dim != head_dim:
        other = base_of(slopes, head_dim)
        cost = digits(other) - (other in USUAL_BASES and base not in USUAL_BASES)
        costs.append((cost, {"base": other, "frequency_dim": head_dim}))
    if s == 1 and dim > 2 and spectrum.factor == 1:
        for usual in USUAL_BASES:
            with np.errstate(over="ignore"):
                bounds = np.exp(np.array(slopes) * dim / 2) / usual
            low, high = (float(b) for b in bounds ** ((dim - 2) / dim))
            factor = simplest(low, high)
            if factor != 1:
                costs.append((digits(factor) + 2, {"base": usual, "scaling": NTK(factor)}))
    for _, arguments in sorted(costs, key=lambda cost: cost[0]):
        linear = {} if s == 1 else {"scaling": Linear(s)}
        yield _with_factor({**arguments, **linear}, spectrum)


def _proportional(
    spectrum: Spectrum, count: int, s: float, slopes: tuple[float, float]
) -> Iterator[Arguments]:
    dim = spectrum.rotary_dim
    share = simplest(2 * count / dim, (2 * count + 1.9) / dim)
    for p in (2 * count / dim, share):
        yield {"base": base_of(slopes, dim), "scaling": Proportional(p, s)}


def _bases(spectrum: Spectrum) -> list[float]:
    """Return bases of what may be two power laws: of the first pairs, of the last, the usual."""
    omega, allowed, dim = spectrum.omega, spectrum.allowed, spectrum.rotary_dim
    low, high = _slopes(omega, allowed, 0.0)
    low, high = np.maximum.accumulate(low), np.minimum.accumulate(high)
    count = int((low <= high).cumprod().sum())
    bases = [base_of((low[count - 1], high[count - 1]), dim)] if count else []
    back, room = omega[::-1], allowed[::-1]
    i = np.arange(1, len(omega))
    low = np.log(np.maximum(back[1:] - room[1:], 1e-300) / (back[0] + room[0])) / i
    high = np.log((back[1:] + room[1:]) / np.maximum(back[0] - room[0], 1e-300)) / i
    low, high = np.maximum.accumulate(low), np.minimum.accumulate(high)
    count = int((low <= high).cumprod().sum())
    if count >= 2:
        bases.append(base_of((low[count - 1], high[count - 1]), dim))
    return list(dict.fromkeys([*bases, *USUAL_BASES]))


def _with_factor(arguments: Arguments, spectrum: Spectrum) -> Arguments:
    """Add the attention factor, by a YaRN that does nothing else."""
    if spectrum.factor == 1:
        return arguments
    low, high = (spectrum.factor + sign * spectrum.factor_allowed for sign in (-1, 1))
    rule = YaRN(1.0, 1, attention_factor=simplest(low, high))
    if "scaling" not in arguments:
        return {**arguments, "scaling": rule}
    rope = spectrum.make(arguments)
    return {"inv_freq": tuple(rope.frequencies().tolist()), "scaling": rule}

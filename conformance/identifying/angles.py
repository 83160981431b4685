"""Angles, read from cos and sin at positions that double, and how exactly they were computed.

An angle is known up to whole turns; at 1, 2, 4, … positions it doubles, so that each reading says
how many turns the next one has made, and the last gives ω with an error of 2^-k of a table's.
Products with a power of two are exact in every binary format: what rounding does to an angle shows
at the other positions alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rotary.conformance.identifying.asking import Array, Box, RefusedError, holds, rounded
from rotary.conformance.identifying.structure import Structure, UnexplainedError

TAU = 2 * np.pi
FRACTIONS = 2.0 ** np.arange(-6, 0)
SMALL = (3, 7, 11, 21, 29, 45, 61, 101, 201)
ODD = (3, 101, 257, 1021, 2053, 4099, 10_007, 40_009, 65_537, 131_071, 300_007, 999_983)


@dataclass(frozen=True)
class Reading:
    """What the box gave for one length of sequence.

    Attributes
    ----------
    length : int
        The largest position + 1.
    positions : array, shape (seq,)
    cos, sin : array, shape (seq, pairs)
        As they came, times the attention factor.
    omega : array, shape (pairs,)
        Radians per position, with their sign.
    error : array, shape (pairs,)
        By how much they may be off.
    doubled : int
        The number of positions 0 … doubled − 1 over which angles double as they should.
    """

    length: int
    positions: Array
    cos: Array
    sin: Array
    omega: Array
    error: Array
    doubled: int

    @property
    def amplitude(self) -> Array:
        """The number that multiplies cos and sin, at each position and pair."""
        amplitude: Array = np.hypot(self.cos, self.sin)
        return amplitude


def wrapped(angle: Array) -> Array:
    """Return the angle between −π and π."""
    return angle - TAU * np.rint(angle / TAU)


class Reader:
    """Reads tables from a box whose pairs are known."""

    def __init__(self, box: Box, structure: Structure) -> None:
        self.box = box
        self.structure = structure
        self.origin = 0.0
        self.fractional = False
        self.step = np.zeros(len(structure.reads))
        self.vector = np.zeros((1, box.head_dim))
        self.vector[0, structure.reads[:, 0]] = 1.0

    def tables(self, positions: Array, dtype: str | None = None) -> tuple[Array, Array]:
        """Return cos and sin, each (seq, pairs)."""
        answer = self.box.response(self.vector, positions, dtype)[:, 0]
        return answer[:, self.structure.writes[:, 0]], answer[:, self.structure.writes[:, 1]]

    def find_origin(self) -> None:
        """Find the position that the box gives to position 0, and if it takes fractions."""
        cos, sin = self.tables(np.arange(4.0))
        angles = np.arctan2(sin, cos)
        self.step = wrapped(angles[1] - angles[0])
        if self.box.takes != "rows":
            self._try_fractions()
        unit = self.structure.unit
        turning = self.step != 0
        if not turning.any():
            raise UnexplainedError("it turns position 1 by the same angles as position 0")
        if (np.abs(np.sin(angles[0])) <= 2 * unit).all():
            return
        # The slowest pairs have not turned far: they say roughly what the fast ones say exactly.
        steps = self.step[turning]
        slow = np.argsort(np.abs(steps))[: -(-len(steps) // 2)]
        origin = float(np.median(angles[0][turning][slow] / steps[slow]))
        half = round(2 * origin) / 2
        origin = half if abs(origin - half) <= 0.02 * max(1.0, abs(half)) else origin
        off = np.abs(wrapped(angles[0] - origin * self.step))
        if not (off <= 16 * unit * (1 + abs(origin))).all():
            raise UnexplainedError(
                f"position 0 is turned by angles that no origin explains: off by {off.max():.3g}"
            )
        self.origin = origin

    def _try_fractions(self) -> None:
        """Read the step from fractions of it, which cannot miss a turn, where they are taken."""
        try:
            cos, sin = self.tables(np.concatenate([[0.0], FRACTIONS, [1.0]]))
        except RefusedError:
            return
        angles = wrapped(np.arctan2(sin, cos) - np.arctan2(sin[:1], cos[:1]))[1:]
        if np.abs(angles[0]).max() <= 4 * self.structure.unit:
            return
        powers = np.append(FRACTIONS, 1.0)
        omega, _, good = unwrapped(angles, powers, self.structure.unit, angles[0] / powers[0])
        if good == len(powers):
            self.fractional, self.step = True, omega

    def read(self, length: int) -> Reading:
        """Ask for positions up to length − 1 and read ω."""
        shifted = self.origin == round(self.origin) or self.fractional
        powers = 2.0 ** np.arange(0, np.log2(length), dtype=np.float64)
        grid = powers - (self.origin if shifted else 0.0)
        inside = (grid <= length - 1) & (grid >= 0)
        powers, grid = powers[inside], grid[inside]
        others = [p for p in (ODD if length > 300 else SMALL) if p < length - 1]
        positions = np.concatenate([[0.0], grid, others, [length - 1.0]])
        cos, sin = self.tables(positions)
        angles = np.arctan2(sin, cos)
        turned = angles[1 : len(grid) + 1]
        if not shifted:
            turned = turned - angles[0]
        omega, error, good = unwrapped(turned, powers, self.structure.unit, self.step)
        doubled = int(grid[good - 1]) + 1 if good < len(grid) else length
        return Reading(length, positions, cos, sin, omega, error, doubled)

    def last_taken(self, taken: int, refused: int) -> int:
        """Return the last position that the box takes, between two lengths."""
        while refused - taken > 1:
            middle = (taken + refused) // 2
            try:
                self.tables(np.array([middle - 1.0]))
                taken = middle
            except RefusedError:
                refused = middle
        return taken - 1

    def last_turned(self, reading: Reading, precision: Precision, omega: Array) -> tuple[int, str]:
        """Return the last position whose angle is what it should be, and what comes then."""
        good, bad = reading.doubled - 1, min(2 * reading.doubled, reading.length - 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            cos, sin = self.tables(np.array([float(middle)]))
            angle = precision.angle(np.array([middle + self.origin]), omega)
            off = np.abs(wrapped(np.arctan2(sin, cos) - angle))
            right = off <= 8 * self.structure.unit + precision.slack(angle)
            good, bad = (middle, bad) if right.all() else (good, middle)
        cos, sin = self.tables(np.array([good, bad, bad + 1, 0.0, 1.0]))
        rows = np.concatenate([cos, sin], axis=1)
        if not np.isfinite(rows[1]).all():
            return good, "its outputs are not finite numbers"
        if np.array_equal(rows[1], rows[0]) and np.array_equal(rows[2], rows[0]):
            return good, "it repeats the last row: positions are clamped to the end of its table"
        if (cos[1:3] == 1).all() and (sin[1:3] == 0).all():
            return good, "it leaves x as it is"
        if np.array_equal(rows[1:3], rows[3:]):
            return good, "positions start again from 0"
        raise UnexplainedError(
            f"from position {bad} on its angles are no longer position × frequency"
        )


def unwrapped(angles: Array, powers: Array, unit: float, step: Array) -> tuple[Array, Array, int]:
    """Return ω, its error and how many of the readings double as they should.

    `step` is ω as far as it is known.
    """
    turned = step * powers[0] + wrapped(angles[0] - step * powers[0])
    good = 1
    for k in range(1, len(powers)):
        expected = 2 * turned
        with np.errstate(invalid="ignore"):
            off = wrapped(angles[k] - expected)
            allowed = 6 * unit + np.minimum(2.0**-21 * np.abs(expected), 0.25)
            if not (np.abs(off) <= allowed).all():
                break
        turned = expected + off
        good = k + 1
    last = powers[good - 1]
    # The angle is as exact as the smaller of the two tables, relative to it.
    error = unit * np.abs(np.sin(2 * turned)) + 2.0**-52 * np.abs(turned) + _least_table(unit)
    return turned / last, error / last, good


def _least_table(unit: float) -> float:
    """Return the error of a table next to zero: float16 has no small numbers."""
    return 2.0**-24 if unit == 2.0**-11 else 2.0**-54 * unit


# Precision


@dataclass(frozen=True)
class Precision:
    """To which numbers the steps towards a table are rounded; None is float64, or no rounding.

    Attributes
    ----------
    positions, angles, tables : str or None
        Names of dtypes.
    """

    positions: str | None = None
    angles: str | None = None
    tables: str | None = None

    def angle(self, positions: Array, omega: Array) -> Array:
        """Return position × ω with these roundings, (seq, pairs)."""
        where = rounded(positions, self.positions)[:, None]
        if self.angles is None:
            return where * omega
        kind = self.angles
        if kind == "float32":
            where = rounded(where, kind)
        return rounded(where * omega, kind)

    def slack(self, angle: Array) -> Array:
        """Return by how much angles may differ from :meth:`angle` for the order of the steps."""
        unit = {"float32": 2.0**-22, None: 2.0**-48}.get(self.angles, 0.0)
        with np.errstate(invalid="ignore"):
            return unit * np.abs(angle)


CHOICES = tuple(
    Precision(positions, angles)
    for positions in (None, "bfloat16", "float16")
    for angles in (None, "float32", "bfloat16", "float16")
)


def read_precision(
    reading: Reading, omegas: list[Array], origin: float, unit: float
) -> tuple[Precision, Array] | None:
    """Say which rounding gives these angles, and the frequencies that were multiplied.

    `omegas` are those that may have been: as read, or as a formula has them.  None if no rounding
    explains the angles.
    """
    angles = np.arctan2(reading.sin, reading.cos)
    finite = np.isfinite(angles).all(axis=1) & (reading.positions < reading.doubled)
    angles, positions = angles[finite], reading.positions[finite] + origin
    noise = 3 * unit + np.abs(positions)[:, None] * 2 * reading.error
    for choice in CHOICES:
        for omega in omegas:
            expected = choice.angle(positions, omega)
            with np.errstate(invalid="ignore"):
                off = np.abs(wrapped(angles - expected))
                right = off <= noise + choice.slack(expected)
            if right.all():
                return choice, omega
    return None


def table_dtype(reading: Reading) -> str | None:
    """Return the narrowest dtype that holds all of the tables, None for float64."""
    tables = np.stack([reading.cos, reading.sin], axis=1)
    finite = tables[np.isfinite(tables).all(axis=(1, 2))]
    return next((n for n in ("bfloat16", "float16", "float32") if holds(finite, n)), None)


def representable(omega: Array, error: Array) -> str | None:
    """Return the dtype whose numbers these frequencies are, where that can be told."""
    size = np.abs(omega)
    for name, unit in (("bfloat16", 2.0**-8), ("float16", 2.0**-11), ("float32", 2.0**-23)):
        telling = (error < unit * size / 16) & (size > 0)
        if telling.sum() < 2 or 2 * telling.sum() < (size > 0).sum():
            continue
        off = np.abs(omega - rounded(omega, name))
        if (off <= 2 * error)[telling].all():
            return name
    return None

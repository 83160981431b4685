"""Error by position, as a plot that a template draws.

An error is the length of (cos, sin) − (exact cos, exact sin), or of a rotated pair's difference, as
a share of the exact length, in units of eps of the dtype: the ulp of
:mod:`rotary.conformance.reach`.  The nearest float32 numbers are within √2/4 of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import rotary
from rotary.conformance.reach import LEVELS, Held, eps

# Of a drawing 720 wide; labels need the rest.
_LEFT, _RIGHT, _TOP, _BOTTOM = 84.0, 700.0, 16.0, 330.0
_LEAST = 0.1
_MOST_TICKS = 8
_PER_OCTAVE = 8
NEAREST = math.sqrt(2) / 4
"""How far the numbers nearest to cos and sin may be, in ulps of the pair's length."""


@dataclass(frozen=True)
class Curve:
    """Errors of an implementation.

    Attributes
    ----------
    name : str
    kind : {"ours", "usual", "theirs"}
    positions : tuple of int
        Ascending.
    errors : tuple of float
        In ulps; infinite where it gave no number.
    differing, numbers : int
        How many are not the nearest to the exact ones, of those that were compared in this way.
    """

    name: str
    kind: str
    positions: tuple[int, ...]
    errors: tuple[float, ...]
    differing: int = 0
    numbers: int = 0

    def up_to(self, position: int) -> float:
        """Return the largest error up to a position."""
        found = zip(self.positions, self.errors, strict=True)
        return max((error for p, error in found if p <= position), default=0.0)


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn: runs of points "x,y x,y", and where it left the plot."""

    curve: Curve
    runs: tuple[str, ...]
    lost: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """What the template draws, in its units.

    Attributes
    ----------
    lines : tuple of Line
    columns, rows : tuple of (float, str)
        Ticks of the axes: where, and their labels.
    levels : tuple of (float, str)
        Heights of the levels, and their names.
    nearest : float
        Height of the error that the nearest numbers have.
    decades : tuple of int
        Positions up to which a table says the largest errors.
    """

    lines: tuple[Line, ...]
    columns: tuple[tuple[float, str], ...]
    rows: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...]
    nearest: float
    decades: tuple[int, ...]
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


def of_tables(rope: rotary.RotaryEmbedding, limit: int) -> tuple[Curve, ...]:
    """Measure the tables of an embedding in float32: exact, and as usual implementations do.

    They are held to its float64 tables, which ``rotary check`` holds to the oracle.  With XPos
    there is no usual implementation to compare with, and no curve.
    """
    if rope.xpos is not None:
        return ()
    octaves = math.ceil(math.log2(max(limit, 2)))
    steps = np.rint(2.0 ** (np.arange(octaves * 64 + 1) / 64))
    positions = np.unique(np.append(steps[steps < limit], limit)).astype(np.int64)
    high = np.stack(rope.tables(positions, dtype="float64"))
    nearest = high.astype(np.float32)

    def curve(name: str, kind: str, precision: str) -> Curve:
        got = np.stack(rope.tables(positions, dtype="float32", precision=precision))
        errors = _errors(got.astype(np.float64), high) / eps("float32")
        differing = int((got != nearest).sum())
        where = tuple(positions.tolist())
        return Curve(name, kind, where, tuple(errors.tolist()), differing, got.size)

    return (
        curve("cos and sin of rotary, float32", "ours", "exact"),
        curve("cos and sin of angles in float32, the usual practice", "usual", "float32"),
    )


def _errors(got: npt.NDArray[np.float64], want: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    share: npt.NDArray[np.float64] = np.hypot(*(got - want)) / np.hypot(*want)
    largest: npt.NDArray[np.float64] = share.max(axis=-1)
    return largest


def of_implementation(held: Held) -> tuple[Curve, ...]:
    """Return what was measured of a foreign implementation, a curve for each part."""
    name = held.name.rpartition(":")[2]
    return tuple(
        Curve(f"{part.name} of {name}, {part.dtype}", "theirs", part.positions, part.errors)
        for part in held.parts
    )


def plot(curves: Iterable[Curve], *, levels: Iterable[float] = LEVELS) -> Plot:
    """Lay out curves on logarithmic axes; position 0 has no place there."""
    curves = tuple(curves)
    finite = [e for curve in curves for e in curve.errors if math.isfinite(e)]
    limit = max((curve.positions[-1] for curve in curves), default=1)
    decades = max(1, math.ceil(math.log10(max(limit, 2)) - 1e-9))
    lowest = math.log10(_LEAST)
    highest = max(1, math.ceil(math.log10(max([*finite, 1.0]))))
    wide, high = math.log10(max(limit, 2)), highest - lowest

    def x(position: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * math.log10(position) / wide, 1)

    def y(error: float) -> float:
        error = max(error, _LEAST)
        return round(_BOTTOM - (_BOTTOM - _TOP) * (math.log10(error) - lowest) / high, 1)

    def line(curve: Curve) -> Line:
        runs: list[list[str]] = [[]]
        lost: list[float] = []
        for position, error in _coarser(curve):
            if math.isfinite(error):
                runs[-1].append(f"{x(position)},{y(error)}")
            else:
                lost.append(x(position))
                runs.append([])
        return Line(curve, tuple(" ".join(run) for run in runs if run), tuple(lost))

    by = -(-(highest - round(lowest)) // _MOST_TICKS)
    across = -(-decades // _MOST_TICKS)
    return Plot(
        tuple(line(curve) for curve in curves),
        tuple((x(10.0**n), _power(n)) for n in range(0, decades + 1, across) if n <= wide + 1e-9),
        tuple((y(10.0**n), _power(n)) for n in range(round(lowest), highest + 1, by)),
        tuple((y(level), f"{level:g} ulp") for level in levels if level <= 10.0**highest),
        y(NEAREST),
        (*(10**n for n in range(1, decades) if 2 * 10**n <= limit), limit),
    )


def _coarser(curve: Curve) -> list[tuple[int, float]]:
    """Return the largest error of every eighth of an octave, and where it is."""
    found: dict[int, tuple[int, float]] = {}
    for position, error in zip(curve.positions, curve.errors, strict=True):
        if position > 0:
            place = math.floor(_PER_OCTAVE * math.log2(position))
            if place not in found or error > found[place][1]:
                found[place] = position, error
    return list(found.values())


def _power(n: int) -> str:
    """Return a power of ten as a label."""
    if -2 <= n <= 2:
        return f"{10.0**n:g}"
    return "10" + str(n).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))

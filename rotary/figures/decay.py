"""Long-term decay: how scores fall with distance.

    |score| ≤ max|h_{i+1} − h_i| · Σ_i |S_i|,   S_i = Σ_{j<i} e^(√−1·d·ω_j)

RoFormer, arXiv 2104.09864, section 3.4.3: drawn are the mean of |S_i| over the R/2 pairs, and the
score of two equal vectors, the mean of cos(d·ω_i), each as a share of its value at distance 0.
A line is the mean over neighbouring distances, in a band of what is between them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import FigureBase

from rotary.embedding import RotaryEmbedding
from rotary.figures.models import (
    Array,
    axis_names,
    context_of,
    is_of_coordinates,
    length_of,
    role_of,
    unit,
    unscaled,
)
from rotary.figures.theme import Theme, number

SIZE = (6.4, 6.0)
HEAD_DIM, BASES, FARTHEST = 128, (100.0, 10_000.0, 1_000_000.0), 65_536
# Beyond the first distances scores sway from one to the next: a point stands for several.
_EACH_UP_TO, _PER_OCTAVE, _PER_POINT = 16, 4, 16


class Band(NamedTuple):
    """Means, and what they are means of lies between."""

    mean: Array
    low: Array
    high: Array


class Curve(NamedTuple):
    """A line of each panel, as shares of the value at distance 0."""

    name: str
    distances: Array
    scores: Band
    bounds: Band


def distances(farthest: int) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return whole distances, each of the first ones and then by equal ratios, and their points.

    The points are the indices at which they begin.
    """
    octaves = max(1, round(math.log2(farthest / _EACH_UP_TO)))
    steps = np.arange(octaves * _PER_OCTAVE * _PER_POINT)
    spread = np.rint(_EACH_UP_TO * 2.0 ** (steps / (_PER_OCTAVE * _PER_POINT)))
    where = np.unique(np.concatenate([np.arange(_EACH_UP_TO), spread]))
    beyond = np.floor(np.log2(np.maximum(where, _EACH_UP_TO) / _EACH_UP_TO) * _PER_OCTAVE)
    places = np.where(where < _EACH_UP_TO, where, _EACH_UP_TO + beyond)
    return where, np.flatnonzero(np.diff(places, prepend=-1))


def curves(model: RotaryEmbedding | None, context: int | None) -> list[Curve]:
    """Return the decay of a model, and as it was unscaled, or that of the examples by base."""
    if model is None:
        return [
            _curve(f"base {number(base)}", RotaryEmbedding(HEAD_DIM, base=base), FARTHEST, None)
            for base in BASES
        ]
    farthest = context_of(model, context) or FARTHEST
    if model.axes is not None and model.axes.count > 1:
        return [
            _curve(f"along {name}", model, min(farthest, FARTHEST), context, axis)
            for axis, name in enumerate(axis_names(model))
        ]
    own = _curve("this model" if model.scaling is None else "scaled", model, farthest, context)
    if model.scaling is None:
        return [own]
    return [own, _curve("unscaled", unscaled(model), farthest, None)]


def _curve(
    name: str, model: RotaryEmbedding, farthest: int, context: int | None, axis: int | None = None
) -> Curve:
    where, points = distances(farthest)
    if is_of_coordinates(model):
        where = where * (2 / where[-1])
    positions = where
    if axis is not None and model.axes is not None:
        positions = np.zeros((model.axes.count, len(where)))
        positions[axis] = where
    cos, sin = model.tables(
        positions, dtype="float64", seq_len=length_of(model, context), role=role_of(model)
    )
    sums = np.abs(np.cumsum(cos + 1j * sin, axis=-1)).mean(axis=-1)
    scores = cos.mean(axis=-1)
    middles = np.add.reduceat(where, points) / np.diff(points, append=len(where))
    return Curve(name, middles, _band(scores / scores[0], points), _band(sums / sums[0], points))


def _band(values: Array, points: npt.NDArray[np.intp]) -> Band:
    counts = np.diff(points, append=len(values))
    return Band(
        np.add.reduceat(values, points) / counts,
        np.minimum.reduceat(values, points),
        np.maximum.reduceat(values, points),
    )


def draw(
    figure: FigureBase,
    theme: Theme,
    model: RotaryEmbedding | None = None,
    context: int | None = None,
) -> None:
    """Draw scores above, bounds below."""
    above, below = figure.subplots(2, sharex=True)
    theme.panel(above, x="", y="score of equal\nvectors (share)")
    theme.panel(
        below, x=f"distance ({unit(model)}, log scale from 1 on)", y="RoFormer's bound\n(share)"
    )
    found = curves(model, context)
    for curve, style in zip(found, theme.styles(c.name for c in found), strict=True):
        for axes, band in ((above, curve.scores), (below, curve.bounds)):
            axes.fill_between(
                curve.distances, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0
            )
            axes.plot(curve.distances, band.mean, label=curve.name, **style)
    above.axhline(0, color=theme.quiet, linewidth=1)
    if model is not None and is_of_coordinates(model):
        below.set_xlabel("distance (positions)")
    else:
        above.set_xscale("symlog", linthresh=1, linscale=0.4)
    above.tick_params(labelbottom=False)
    above.set_yticks([0, 0.5, 1])
    below.set(ylim=(0, 1.05), yticks=[0, 0.5, 1], xlim=(0, None))
    theme.legend(figure, [below])

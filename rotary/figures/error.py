"""Error of cos by position: usual practice and the tables of this library, held to the oracle.

Drawn is the largest |cos − exact cos| over all pairs and over a quarter of an octave of positions.
The numbers of float32 nearest to the truth are within half a unit in the last place, 2^−25 for a
cosine.  The exact numbers are those of :mod:`rotary.conformance.oracle`.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import ml_dtypes
import numpy as np
from matplotlib.figure import FigureBase

from rotary.conformance import oracle
from rotary.embedding import RotaryEmbedding
from rotary.figures.models import Array, context_of, is_of_coordinates, length_of, role_of, unit
from rotary.figures.theme import SMALL, Theme

SIZE = (6.4, 5.4)
EXAMPLE, FARTHEST = RotaryEmbedding(64), 2**20
_PER_OCTAVE, _PER_POINT = 4, 4
_LEAST = 1e-18
# mpmath's precision is global.
_exactly = threading.Lock()


class Curve(NamedTuple):
    """A line of the figure."""

    name: str
    positions: Array
    errors: Array


def half_ulp(model: RotaryEmbedding, context: int | None, digits: int = 24) -> float:
    """Return half a unit in the last place of the largest number that cos can be."""
    factor = model.attention_factor(length_of(model, context))
    return 2.0 ** (math.ceil(math.log2(factor)) - digits - 1)


def curves(model: RotaryEmbedding, context: int | None) -> list[Curve]:
    """Return the errors, the usual practices first; with XPos there are none to compare with."""
    known = None if is_of_coordinates(model) else context_of(model, context)
    positions = _positions(known or FARTHEST)
    if is_of_coordinates(model):
        positions = positions / FARTHEST
    length, role = length_of(model, context), role_of(model)
    with _exactly:
        exact = oracle.tables(_angles(model, length or 0), positions)
    high, low = exact.high[0], exact.low[0]

    def curve(name: str, cos: Array) -> Curve:
        return _largest(name, positions, np.abs((cos.astype(np.float64) - high) - low))

    def ours(where: Array, dtype: str) -> Array:
        table: Array = model.tables(where, dtype=dtype, seq_len=length, role=role)[0]
        return table

    own = [
        curve("rotary, float32", ours(positions, "float32")),
        curve("rotary, float64", ours(positions, "float64")),
    ]
    if model.xpos is not None:
        return own
    coarse = positions.astype(ml_dtypes.bfloat16).astype(np.float64)
    usual = model.tables(positions, seq_len=length, precision="float32")[0]
    angles = positions[:, None] * model.frequencies(length)
    return [
        curve("positions in bfloat16", ours(coarse, "float32")),
        curve("angles in float32", usual),
        curve("angles in float64", model.attention_factor(length) * np.cos(angles)),
        *own,
    ]


def _positions(farthest: int) -> Array:
    """Return odd positions by about equal ratios: even ones have fewer bits, which flatters."""
    octaves = math.log2(max(farthest, 2))
    steps = np.arange(math.ceil(octaves * _PER_OCTAVE * _PER_POINT))
    return np.unique(2 * np.floor(2.0 ** (steps / (_PER_OCTAVE * _PER_POINT)) / 2) + 1)


def _angles(model: RotaryEmbedding, length: int) -> oracle.Angles:
    return oracle.Angles(
        model.rotary_dim,
        model.base,
        model.frequency_dim,
        model.inv_freq,
        scale_base=None if model.xpos is None else model.xpos.scale_base,
        role=role_of(model),
        scaling=model.scaling,
        seq_len=length,
        axes=model.axes,
    )


def _largest(name: str, positions: Array, errors: Array) -> Curve:
    """Return the largest errors of all pairs and of neighbouring positions."""
    places = np.floor(np.log2(positions) * _PER_OCTAVE)
    starts = np.flatnonzero(np.diff(places, prepend=-np.inf))
    largest = np.maximum.reduceat(errors.max(axis=-1), starts)
    return Curve(name, positions[starts], largest)


def draw(
    figure: FigureBase,
    theme: Theme,
    model: RotaryEmbedding | None = None,
    context: int | None = None,
) -> None:
    """Draw a line for each way to the tables."""
    drawn = EXAMPLE if model is None else model
    axes = theme.panel(
        figure.subplots(),
        x=f"position ({unit(drawn)}, log scale)",
        y="largest error of cos (log scale)",
    )
    colours = {"positions in bfloat16": 3, "angles in float32": 1, "angles in float64": 4}
    for index, curve in enumerate(curves(drawn, context)):
        style = theme.line(colours.get(curve.name, 0 if curve.name.endswith("32") else 2))
        if curve.name.startswith("rotary"):
            style |= {"linewidth": 2.6, "linestyle": "-"}
        errors = np.maximum(curve.errors, _LEAST)
        axes.plot(curve.positions, errors, label=curve.name, zorder=2 + index, **style)
    for digits, name in ((24, "half an ulp of float32"), (53, "half an ulp of float64")):
        height = half_ulp(drawn, context, digits)
        axes.axhline(height, color=theme.quiet, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.annotate(
            name,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            fontsize=SMALL,
            color=theme.text,
        )
    axes.set(xscale="log", yscale="log", ylim=(2e-18, 30))
    axes.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.set_yticks([], minor=True)
    theme.legend(figure, [axes], 2)

"""Wavelengths λ_i = 2π/ω_i by pair: how many tokens one turn takes, under each scaling rule."""

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
    axis_of_pair,
    context_of,
    frequencies_of,
    trained_context,
    unit,
    unscaled,
)
from rotary.figures.scaling import FACTOR, RULES, TRAINED, example
from rotary.figures.theme import SMALL, Theme, number

SIZE = (6.4, 5.0)


class Curve(NamedTuple):
    """A line of the figure."""

    name: str
    pairs: npt.NDArray[np.intp]
    wavelengths: Array
    """In tokens; pairs that never turn have none."""


def curves(model: RotaryEmbedding | None, context: int | None) -> list[Curve]:
    """Return the wavelengths of a model, and as they were unscaled, or those of the examples."""
    if model is None:
        plain = _curve("unscaled", example(None), None)
        return [plain, *(_curve(name, example(rule), None) for name, rule in RULES.items())]
    found = []
    if model.scaling is not None:
        found.append(_curve("unscaled", unscaled(model), None))
    own = _curve("this model" if model.scaling is None else "scaled", model, context)
    if model.axes is None or model.axes.count == 1:
        return [*found, own]
    of_pair = axis_of_pair(model)[own.pairs]
    return found + [
        Curve(f"{name} axis", own.pairs[of_pair == axis], own.wavelengths[of_pair == axis])
        for axis, name in enumerate(axis_names(model))
    ]


def _curve(name: str, model: RotaryEmbedding, context: int | None) -> Curve:
    frequencies = frequencies_of(model, context)
    pairs = np.flatnonzero(frequencies > 0)
    return Curve(name, pairs, math.tau / frequencies[pairs])


def draw(
    figure: FigureBase,
    theme: Theme,
    model: RotaryEmbedding | None = None,
    context: int | None = None,
) -> None:
    """Draw a line for each rule, and mark the contexts."""
    axes = theme.panel(
        figure.subplots(),
        x="pair (index, from fast to slow)",
        y=f"wavelength ({unit(model)} per turn, log scale)",
    )
    several = model is not None and model.axes is not None and model.axes.count > 1
    found = curves(model, context)
    for curve, style in zip(found, theme.styles(c.name for c in found), strict=True):
        points = {"marker": "o", "markersize": 3.5, "markeredgewidth": 0} if several else {}
        axes.plot(curve.pairs, curve.wavelengths, label=curve.name, **{**style, **points})
    axes.set_yscale("log")
    if model is None:
        trained, longest = TRAINED, round(TRAINED * FACTOR)
    else:
        trained, longest = trained_context(model) or 0, context_of(model, context) or 0
    left = axes.get_xlim()[0]
    near = longest < 4 * trained  # labels on the same side would meet
    marks = {
        "trained on": (trained, *((-4, "top") if near else (3, "bottom"))),
        "context": (longest, 3, "bottom"),
    }
    for name, (length, away, side) in marks.items():
        if length and not (name == "context" and length == trained):
            axes.axhline(length, color=theme.quiet, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{name} {number(length)}",
                (left, length),
                xytext=(5, away),
                textcoords="offset points",
                va=side,
                fontsize=SMALL,
                color=theme.text,
            )
    theme.legend(figure, [axes])

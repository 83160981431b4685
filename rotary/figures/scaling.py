"""What scaling rules do to each frequency: ω'/ω by wavelength 2π/ω.

All rules carry the same model from a context of 4096 tokens to 131 072.  The factors of LongRoPE
were searched for it: they are those of Phi-3.5-mini-instruct.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import FigureBase

from rotary import scaling
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
from rotary.figures.theme import Theme, number

SIZE = (6.4, 4.9)
HEAD_DIM, TRAINED, FACTOR = 96, 4096, 32.0
# Two digits are what the search has; the config spells them as float32.
_LONG_FACTORS = (
    *(1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67),
    *(24.46, 28.57, 30.42, 30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21),
    *(60.14, 62.61, 62.62, 62.71, 63.14, 63.14, 63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08),
    *(64.12, 64.41, 64.48, 64.51, 64.53, 64.84),
)
RULES: dict[str, Any] = {
    "PI": scaling.Linear(FACTOR),
    "NTK": scaling.NTK(FACTOR),
    "YaRN": scaling.YaRN(FACTOR, TRAINED),
    "Llama 3": scaling.Llama3(FACTOR, 1.0, 4.0, TRAINED),
    # Sequences beyond the context of training are drawn: the short factors do not show.
    "LongRoPE": scaling.LongRoPE((1.0,) * (HEAD_DIM // 2), _LONG_FACTORS, TRAINED, factor=FACTOR),
}


class Curve(NamedTuple):
    """A line of a figure: numbers of pairs."""

    name: str
    wavelengths: Array
    """Before scaling, in tokens."""
    ratios: Array


def example(rule: Any) -> RotaryEmbedding:
    """Return the model that the rules are shown on."""
    return RotaryEmbedding(HEAD_DIM, scaling=rule)


def curves(model: RotaryEmbedding | None, context: int | None) -> list[Curve]:
    """Return the ratios of a model's frequencies, or those of the examples."""
    if model is None:
        return [_curve(name, example(rule), None) for name, rule in RULES.items()]
    if model.axes is not None and model.axes.count > 1:
        own, axes = _curve("", model, context), axis_of_pair(model)
        return [
            Curve(f"{name} axis", own.wavelengths[axes == axis], own.ratios[axes == axis])
            for axis, name in enumerate(axis_names(model))
        ]
    if model.scaling is not None and model.scaling.needs_length:
        lengths = sorted({trained_context(model) or 1, context_of(model, context) or 1})
        return [_curve(f"length {number(n)}", model, n) for n in lengths]
    name = "no scaling" if model.scaling is None else type(model.scaling).__name__
    return [_curve(name, model, context)]


def _curve(name: str, model: RotaryEmbedding, context: int | None) -> Curve:
    before, after = np.abs(unscaled(model).frequencies()), frequencies_of(model, context)
    turning = before > 0
    return Curve(name, math.tau / before[turning], after[turning] / before[turning])


def draw(
    figure: FigureBase,
    theme: Theme,
    model: RotaryEmbedding | None = None,
    context: int | None = None,
) -> None:
    """Draw a line for each rule, or for the model's."""
    axes = theme.panel(
        figure.subplots(),
        x=f"wavelength before scaling ({unit(model)})",
        y="new frequency ÷ old (ratio)",
    )
    found = curves(model, context)
    for index, curve in enumerate(found):
        axes.plot(curve.wavelengths, curve.ratios, label=curve.name, **theme.line(index))
    axes.set(xscale="log", yscale="log")
    ratios = np.concatenate([curve.ratios[curve.ratios > 0] for curve in found])
    lowest, highest = float(ratios.min(initial=0.5)), float(ratios.max(initial=1.0))
    powers = range(-math.ceil(math.log2(highest)), math.ceil(-math.log2(lowest)) + 1)
    down = [2.0**-n for n in powers]
    step = -(-len(down) // 7)
    axes.set_yticks(down[::step], [_ratio(value) for value in down[::step]], minor=False)
    axes.set_yticks([], minor=True)
    axes.set_ylim(0.8 * lowest, 1.25 * highest)
    trained = TRAINED if model is None else trained_context(model)
    if trained is not None:
        low, high = axes.get_xlim()
        axes.axvspan(
            trained,
            max(high, 4 * trained),
            color=theme.quiet,
            alpha=0.2,
            linewidth=0,
            label=f"longer than training ({number(trained)})",
        )
        axes.set_xlim(low, max(high, 4 * trained))
    theme.legend(figure, [axes])


def _ratio(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"

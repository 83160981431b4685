"""Positions of images: the score of one patch with all others, and which axis turns which pair.

The score of two equal vectors at patches a and b is the mean over pairs of cos(ω_i·(a − b) along
the axis of pair i).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import FigureBase

from rotary import axes as position_axes
from rotary.embedding import RotaryEmbedding
from rotary.figures.models import (
    Array,
    axis_names,
    axis_of_pair,
    frequencies_of,
    is_of_coordinates,
    length_of,
    role_of,
)
from rotary.figures.theme import SMALL, Theme

SIZE = (6.4, 6.0)
SIDE = 31
MODELS: dict[str, RotaryEmbedding] = {
    "Qwen2-VL, vision": RotaryEmbedding(80, axes=position_axes.Axial((20, 20))),
    "Pixtral": RotaryEmbedding(64, axes=position_axes.Axial((16, 16), frequencies="dealt")),
    "DINOv3": RotaryEmbedding(64, base=100.0, axes=position_axes.Axial((16, 16), in_turns=True)),
}


class Patches(NamedTuple):
    """What one model makes of an image."""

    scores: Array
    """Of the centre patch with all, shape (SIDE, SIDE)."""
    frequencies: Array
    """In radians per position, shape (R/2,)."""


def patches(model: RotaryEmbedding, context: int | None = None) -> Patches:
    """Return scores and frequencies; axes beyond height and width are those of a single frame."""
    count = 1 if model.axes is None else model.axes.count
    if count not in (2, 3):
        raise ValueError(
            f"model: got {count} position ax{'i' if count == 1 else 'e'}s, expected one with axes "
            f"for height and width, as models of images have them"
        )
    centered = is_of_coordinates(model)
    where = position_axes.grid(SIDE, SIDE, frames=1 if count == 3 else None, centered=centered)
    cos, sin = model.tables(
        where, dtype="float64", seq_len=length_of(model, context), role=role_of(model)
    )
    centre = SIDE * SIDE // 2
    scores = (cos * cos[centre] + sin * sin[centre]).mean(axis=-1)
    return Patches((scores / scores[centre]).reshape(SIDE, SIDE), frequencies_of(model, context))


def draw(
    figure: FigureBase,
    theme: Theme,
    model: RotaryEmbedding | None = None,
    context: int | None = None,
) -> None:
    """Draw the scores of each model above, its frequencies below."""
    models = MODELS if model is None else {"this model": model}
    found = {name: patches(one, context) for name, one in models.items()}
    panels: Any = figure.subplots(
        2, len(models), sharey="row", squeeze=False, height_ratios=(1.25, 1)
    )
    image: Any = None
    for column, (name, one) in enumerate(models.items()):
        above, below = panels[:, column]
        theme.panel(above, x="", y="", title=name, grid=False)
        image = above.imshow(found[name].scores, cmap=theme.ramp_map(), vmin=0, vmax=1)
        above.set(xticks=[0, 15, 30], yticks=[0, 15, 30])
        above.set_xlabel("column (patch)", fontsize=SMALL, color=theme.text)
        theme.panel(below, x="", y="")
        below.set_xlabel("pair (index)", fontsize=SMALL, color=theme.text)
        of_pair = axis_of_pair(one)
        for axis, label in enumerate(axis_names(one)):
            pairs = np.flatnonzero((of_pair == axis) & (found[name].frequencies > 0))
            place = {"time": 2, "height": 0, "width": 1}.get(label, axis)
            below.plot(
                pairs,
                found[name].frequencies[pairs],
                "os^"[place % 3],
                color=theme.lines[place % len(theme.lines)],
                markersize=4,
                label=f"turned by {label}",
            )
        below.set_yscale("log")
    panels[0, 0].set_ylabel("row (patch)", fontsize=SMALL, color=theme.text)
    panels[1, 0].set_ylabel("frequency\n(radians per position)", fontsize=SMALL, color=theme.text)
    theme.colour_bar(
        figure,
        image,
        list(panels[0]),
        "score with the centre patch (share)",
        ticks=[0, 0.5, 1],
        extend="min",
        location="bottom",
        aspect=32,
        shrink=0.8,
    )
    theme.legend(figure, [panels[1, 0]])

"""The rotation itself: pairs of features as arrows on a circle, position after position.

(1, 0) → (cos pω_i, sin pω_i), at the bits of the library's own tables; below, which features make
the pairs in each layout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import FigureBase
from matplotlib.patches import Circle, Rectangle

from rotary.conformance.oracle import pair_indices
from rotary.embedding import RotaryEmbedding
from rotary.figures.models import frequencies_of, length_of, role_of, unit
from rotary.figures.theme import SMALL, Theme, number

SIZE = (6.4, 5.0)
# A base this small lets one see the last of four pairs move.
EXAMPLES = tuple(RotaryEmbedding(8, base=100.0, layout=name) for name in ("half", "interleaved"))
POSITIONS = 7
_SHOWN = 4
_MOST_NUMBERED = 16


def shown_pairs(model: RotaryEmbedding) -> list[int]:
    """Return up to four pairs from the fastest to the slowest."""
    fast_first = np.argsort(-frequencies_of(model), kind="stable")
    places = np.linspace(0, len(fast_first) - 1, min(_SHOWN, len(fast_first)))
    return [int(fast_first[round(place)]) for place in places]


def draw(
    figure: FigureBase,
    theme: Theme,
    model: RotaryEmbedding | None = None,
    context: int | None = None,
) -> None:
    """Draw a circle for each pair above, the layouts below."""
    models = EXAMPLES if model is None else (model,)
    pairs = shown_pairs(models[0])
    parts: Any = figure.subfigures(2, height_ratios=(3.6, 0.9 + 0.5 * len(models)))
    upper, lower = parts
    for part in parts:
        part.set_facecolor(theme.background)
    circles = upper.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    colours = ListedColormap(theme.ramp_map()(np.linspace(0.25, 1, POSITIONS)))
    length = length_of(models[0], context)
    cos, sin = models[0].tables(np.arange(POSITIONS), seq_len=length, role=role_of(models[0]))
    frequencies = frequencies_of(models[0], context)
    for index, (axes, pair) in enumerate(zip(circles, pairs, strict=True)):
        turn = math.tau / frequencies[pair] if frequencies[pair] else math.inf
        told = number(float(f"{turn:.3g}")) if math.isfinite(turn) else "∞"
        theme.panel(
            axes,
            x="first (−1 to 1)",
            y="",
            title=f"pair {pair}\n{told}\n{unit(models[0])} a turn",
            grid=False,
            frame=True,
        )
        _circle(axes, theme, colours, cos[:, pair], sin[:, pair], theme.lines[index])
        axes.xaxis.label.set_fontsize(SMALL)
    circles[0].set_ylabel("second (−1 to 1)", fontsize=SMALL, color=theme.text)
    norm = BoundaryNorm(np.arange(POSITIONS + 1) - 0.5, POSITIONS)
    bar = theme.colour_bar(
        upper,
        ScalarMappable(norm, colours),
        list(circles),
        "arrows: position (tokens)",
        location="bottom",
        aspect=40,
        shrink=0.8,
    )
    bar.set_ticks(range(POSITIONS))
    bar.ax.tick_params(which="minor", length=0)
    _layouts(lower.subplots(), theme, models, pairs)


def _circle(axes: Any, theme: Theme, colours: Any, cos: Any, sin: Any, outline: str) -> None:
    size = float(np.hypot(cos, sin).max())
    axes.add_patch(Circle((0, 0), size, fill=False, edgecolor=outline, linewidth=2.5))
    for position, (x, y) in enumerate(zip(cos.tolist(), sin.tolist(), strict=True)):
        axes.annotate(
            "",
            (x, y),
            xytext=(0, 0),
            arrowprops={
                "arrowstyle": "-|>,head_length=0.5,head_width=0.22",
                "color": colours(position),
                "linewidth": 1.8,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
    limit = 1.08 * size
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.axhline(0, color=theme.grid, linewidth=1, zorder=0)
    axes.axvline(0, color=theme.grid, linewidth=1, zorder=0)


def _layouts(
    axes: Any, theme: Theme, models: tuple[RotaryEmbedding, ...], pairs: list[int]
) -> None:
    """Draw the features of a head as a strip of cells, in the colour of their pair."""
    theme.panel(
        axes, x="feature (index); cells of one colour make a pair", y="layout (name)", grid=False
    )
    width = models[0].head_dim
    for row, model in enumerate(models):
        blocks = None if model.axes is None else model.axes.blocks
        both = pair_indices(width, model.rotary_dim, model.layout, model.rotary_side, blocks)
        pair_of = {int(f): p for members in both for p, f in enumerate(members)}
        for feature in range(width):
            pair = pair_of.get(feature)
            shown = pair in pairs
            colour = theme.lines[pairs.index(pair)] if pair in pairs else theme.grid
            gap = 0.06 if width <= _MOST_NUMBERED else 0.0
            cell = Rectangle(
                (feature - 0.5 + gap / 2, row - 0.38), 1 - gap, 0.76, color=colour, linewidth=0
            )
            axes.add_patch(cell)
            if shown and width <= _MOST_NUMBERED:
                axes.text(
                    feature,
                    row,
                    f"{pair}",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color=theme.background,
                    fontweight="bold",
                )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(len(models) - 0.5, -0.5))
    axes.set_yticks(range(len(models)), [model.layout for model in models])
    if width <= _MOST_NUMBERED:
        axes.set_xticks(range(width))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)

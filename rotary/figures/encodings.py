"""Codes of positions side by side: the integer itself, its binary digits, and sines.

Binary digits alternate the slower the higher they are; sines do the same without steps.  See
:mod:`rotary.absolute`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import FigureBase

from rotary import absolute
from rotary.figures.models import Array
from rotary.figures.theme import USUAL, Theme

SIZE = (6.4, 4.6)
POSITIONS, BITS, DIM = 64, 6, 32
# Of 10 000, the usual base, half the columns would hardly change over so few positions.
BASE = 100.0


def codes() -> dict[str, Array]:
    """Return the three codes, shape (POSITIONS, features)."""
    positions = np.arange(POSITIONS)
    return {
        f"integer\n÷ {POSITIONS}": absolute.integer(positions, length=POSITIONS),
        "binary digits": absolute.binary(positions, BITS),
        "sines, then cosines": absolute.sinusoidal(positions, DIM, base=BASE, layout="half"),
    }


def draw(figure: FigureBase, theme: Theme) -> None:
    """Draw a heat map for each."""
    panels: Any = figure.subplots(1, 3, sharey=True, width_ratios=(1, 2.6, 5))
    image: Any = None
    for axes, (name, code) in zip(panels, codes().items(), strict=True):
        theme.panel(axes, x="feature\n(index)", y="", title=name, grid=False)
        image = axes.imshow(
            code, cmap=theme.around_map(), vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        last = code.shape[1] - 1
        axes.set(xticks=sorted({0, last}), yticks=[0, 16, 32, 48, 63])
    panels[0].set_ylabel("position (tokens)", fontsize=USUAL, color=theme.text)
    theme.colour_bar(figure, image, list(panels), "value (a number)", ticks=[-1, 0, 1], aspect=28)

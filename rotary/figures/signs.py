"""Signs in RoFormer's linear attention: terms of the numerator, and the denominator.

    o_m = Σ_n (R_m φ(q_m))·(R_n φ(k_n)) v_n / Σ_n φ(q_m)·φ(k_n)      (arXiv 2104.09864, equation 19)

φ is positive, so that the terms below the line are; a rotation by more than a quarter turn is not,
so that those above it need not be.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import FigureBase

from rotary.embedding import RotaryEmbedding
from rotary.figures.models import Array
from rotary.figures.theme import Theme
from rotary.linear import LinearAttention

SIZE = (6.4, 4.6)
TOKENS, STEP, DIM = 96, 16, 32
_SEED = 3


class Terms(NamedTuple):
    """Terms of query m (rows) and key n (columns), shape (TOKENS, TOKENS).

    They stand at positions 0, STEP, 2·STEP, …
    """

    above: Array
    """(R_m φ(q_m))·(R_n φ(k_n))."""
    below: Array
    """φ(q_m)·φ(k_n)."""


def terms() -> Terms:
    """Return the terms, as linear attention without its normaliser to unit vectors gives them."""
    rng = np.random.default_rng(_SEED)
    q, k = rng.standard_normal((2, 1, 1, TOKENS, DIM))
    positions = STEP * np.arange(TOKENS)
    unit: Any = np.eye(TOKENS)[None, None]
    above, below = (
        LinearAttention(rope=rope, normalize=False)(q, k, unit, positions=positions)[0, 0]
        for rope in (RotaryEmbedding(DIM), None)
    )
    return Terms(above, below)


def draw(figure: FigureBase, theme: Theme) -> None:
    """Draw the map on the left, means over the keys on the right."""
    above, below = terms()
    panels: Any = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    left, right = panels
    share = (above < 0).mean()
    theme.panel(
        left,
        x="key (position)",
        y="query (position)",
        title=f"terms above the line:\n{share:.0%} negative",
        grid=False,
    )
    colours = ListedColormap([theme.negative, theme.ramp[1]])
    farthest = STEP * TOKENS
    left.imshow(
        above > 0, cmap=colours, vmin=0, vmax=1, aspect="auto", extent=(0, farthest, farthest, 0)
    )
    left.set(xticks=[0, 500, 1000, 1500], yticks=[0, 500, 1000, 1500])
    for colour, name in ((theme.ramp[1], "positive term"), (theme.negative, "negative term")):
        left.fill_between([], [], color=colour, linewidth=0, label=name)
    theme.panel(right, x="mean (a number)", y="", title="means by query")
    rows = STEP * (np.arange(TOKENS) + 0.5)
    for index, (name, values) in enumerate(
        (("mean below: φ(q)·φ(k)", below), ("mean above, rotated", above))
    ):
        right.plot(values.mean(axis=-1), rows, label=name, **theme.line(index))
    right.axvline(0, color=theme.text, linewidth=1)
    right.set_xlim(left=min(-0.15 * right.get_xlim()[1], right.get_xlim()[0]))
    theme.legend(figure, panels, 2)

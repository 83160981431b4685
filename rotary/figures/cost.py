"""Cost by length: time of causal attention over a sequence, and memory that decoding keeps.

Softmax attention forms all T² scores, linear attention one state a chunk; a cache holds 2·T·D
numbers a head, a state does not grow.  Times are taken when the figure is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import FigureBase

from rotary.figures.theme import SMALL, Theme
from rotary.linear import LinearAttention
from rotary.softmax import softmax_attention

SIZE = (6.4, 4.4)
DIM = 64
LENGTHS = tuple(2**n for n in range(7, 14))
_ROUNDS = 5
# A length is left out where a call would take longer, at four times the one before.
_LONGEST_SECONDS = 0.5
# Small sizes are called more often, large ones in fewer rounds.
_LEAST_SECONDS_A_ROUND, _MOST_SECONDS = 0.002, 0.6


class Costs(NamedTuple):
    """Of one head in float32, by length."""

    softmax: dict[int, float]
    """Seconds, as far as it was timed."""
    linear: dict[int, float]
    cache: dict[int, int]
    """Bytes."""
    state: dict[int, int]


def measure(lengths: tuple[int, ...] = LENGTHS) -> Costs:
    """Time both kinds of attention; the state's size is that of a state."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 1, lengths[-1], DIM), np.float32)
    linear = LinearAttention()

    def head(length: int) -> tuple[Any, Any, Any]:
        return q[:, :, :length], k[:, :, :length], v[:, :, :length]

    _, state = linear.prefill(*head(lengths[0]))
    size = sum(part.nbytes for part in state if part is not None)
    return Costs(
        _timed(lambda n: softmax_attention(*head(n), causal=True), lengths),
        _timed(lambda n: linear(*head(n), causal=True), lengths),
        {n: 2 * n * DIM * q.itemsize for n in lengths},
        dict.fromkeys(lengths, size),
    )


def _timed(call: Callable[[int], Any], lengths: tuple[int, ...]) -> dict[int, float]:
    """Return the least time by length, over rounds: what else runs disturbs one, not all."""
    least: dict[int, float] = {}
    spent = dict.fromkeys(lengths, 0.0)
    for turn in range(_ROUNDS):
        for length in lengths:
            if turn == 0:
                if least and 4 * max(least.values()) > _LONGEST_SECONDS:
                    break
                call(length)  # warm
            elif length not in least or spent[length] > _MOST_SECONDS:
                continue
            until = spent[length] + _LEAST_SECONDS_A_ROUND
            while spent[length] < until:
                begin = time.perf_counter()
                call(length)
                took = time.perf_counter() - begin
                spent[length] += took
                least[length] = min(least.get(length, took), took)
    return least


def draw(figure: FigureBase, theme: Theme) -> None:
    """Draw time on the left, memory on the right."""
    costs = measure()
    panels: Any = figure.subplots(1, 2)
    left, right = panels
    theme.panel(left, x="length (tokens)", y="time (milliseconds)", title="the whole sequence")
    theme.panel(right, x="length (tokens)", y="memory (kilobytes)", title="kept for decoding")
    for axes, softmax, linear, scale in (
        (left, costs.softmax, costs.linear, 1e3),
        (right, costs.cache, costs.state, 1e-3),
    ):
        for index, (name, found) in enumerate((("softmax", softmax), ("linear", linear))):
            axes.plot(
                list(found),
                [scale * value for value in found.values()],
                marker="so"[index],
                markersize=5,
                label=f"{name} attention",
                **theme.line(1 - index),
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([128, 1024, 8192], ["128", "1024", "8192"], fontsize=SMALL)
        axes.set_xticks([], minor=True)
    theme.legend(figure, [left])

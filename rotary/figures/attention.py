"""Attention maps of one head under each encoding, from the same queries and keys.

Queries and keys share a direction, as those of trained heads do: with vectors of pure noise, scores
would not depend on the distance.  A weight is told as a multiple of an even share, 1 over the
number of keys that the query sees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import FigureBase

from rotary import absolute, relative
from rotary.embedding import RotaryEmbedding
from rotary.figures.models import Array
from rotary.figures.theme import SMALL, Theme
from rotary.linear import LinearAttention
from rotary.softmax import softmax_attention

SIZE = (6.4, 5.4)
TOKENS, DIM = 32, 32
_SEED, _NOISE = 7, 0.6
# Smaller than the usual one, as the sequence is.
_BASE = 100.0
_HIGHEST = 3.0
_T5_BUCKETS = 16


class Sample(NamedTuple):
    """Queries and keys, shape (1 head, TOKENS, DIM)."""

    q: Array
    k: Array


def sample() -> Sample:
    """Return them, the same each time."""
    rng = np.random.default_rng(_SEED)
    common = rng.standard_normal(DIM)
    noise = rng.standard_normal((2, 1, TOKENS, DIM))
    q, k = 0.75 * (common + _NOISE * noise)
    return Sample(q, k)


def maps() -> dict[str, Array]:
    """Return the weights under each encoding, shape (TOKENS, TOKENS): attention to unit vectors."""
    q, k = sample()
    unit: Any = np.eye(TOKENS)[None]
    rope = RotaryEmbedding(DIM, base=_BASE)
    code = absolute.sinusoidal(np.arange(TOKENS), DIM, base=_BASE, dtype="float64")
    # A table such as training finds: the farther the bucket, the less.
    learned = -0.25 * np.arange(_T5_BUCKETS)[:, None]
    t5 = relative.t5_bias(TOKENS, TOKENS, learned, max_distance=TOKENS, bidirectional=False)
    alibi = relative.alibi_bias(TOKENS, TOKENS, 4, dtype="float64")[1:2]
    linear = LinearAttention(rope=rope)

    def weights(q: Array, k: Array, bias: Any = None) -> Array:
        result: Array = softmax_attention(q, k, unit, causal=True, bias=bias)[0]
        return result

    rotated = linear(q[None], k[None], unit[None], causal=True)[0, 0]
    return {
        "no positions": weights(q, k),
        "sinusoidal": weights(q + code, k + code),
        "T5 bias": weights(q, k, t5),
        "ALiBi": weights(q, k, alibi),
        "RoPE": weights(*rope(q, k)),
        "RoPE, linear": rotated,
    }


def draw(figure: FigureBase, theme: Theme) -> None:
    """Draw the maps on one scale."""
    panels: Any = figure.subplots(2, 3, sharex=True, sharey=True)
    hidden = np.triu(np.ones((TOKENS, TOKENS), bool), 1)
    seen = np.arange(1, TOKENS + 1)[:, None]
    image: Any = None
    for axes, (name, weights) in zip(panels.flat, maps().items(), strict=True):
        theme.panel(axes, x="", y="", title=name, grid=False)
        shares = np.ma.masked_where(hidden, weights * seen)
        image = axes.imshow(shares, cmap=theme.ramp_map(), vmin=0, vmax=_HIGHEST)
        axes.set(xticks=[0, 15, 31], yticks=[0, 15, 31])
    for axes in panels[1]:
        axes.set_xlabel("key (position)", fontsize=SMALL, color=theme.text)
    for axes in panels[:, 0]:
        axes.set_ylabel("query (position)", fontsize=SMALL, color=theme.text)
    theme.colour_bar(
        figure,
        image,
        list(panels.flat),
        "weight (even share = 1; orange: negative)",
        extend="both",
        location="bottom",
        aspect=32,
        shrink=0.8,
    )

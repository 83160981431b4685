"""What figures ask of a model: its context, its frequencies, and its facts in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.embedding import RotaryEmbedding
from rotary.figures.theme import number

Array = npt.NDArray[np.float64]

AXES = {1: ("text",), 2: ("height", "width"), 3: ("time", "height", "width")}
"""Names of position axes, by how many there are."""


def trained_context(model: RotaryEmbedding) -> int | None:
    """Return L0, the context of training, if the scaling rule says it."""
    trained: int | None = getattr(model.scaling, "original_max_position_embeddings", None)
    return trained


def context_of(model: RotaryEmbedding, given: int | None = None) -> int | None:
    """Return the context: as given, or L0·s of the scaling rule, None where neither is known."""
    trained = trained_context(model)
    if given is not None or trained is None:
        return given
    rule: Any = model.scaling
    extended: int = round(trained * (rule.factor or max(rule.long_factor)))
    return extended


def length_of(model: RotaryEmbedding, given: int | None) -> int | None:
    """Return the ``seq_len`` to pass: the context, where the scaling rule depends on it."""
    if model.scaling is None or not model.scaling.needs_length:
        return None
    return context_of(model, given)


def role_of(model: RotaryEmbedding) -> str | None:
    """Return the ``role`` to pass: with XPos, a query's."""
    return None if model.xpos is None else "query"


def frequencies_of(model: RotaryEmbedding, given: int | None = None) -> Array:
    """Return ω at the context, in radians per position."""
    return np.abs(model.frequencies(length_of(model, given)))


def unscaled(model: RotaryEmbedding) -> RotaryEmbedding:
    """Return the model as it was before its scaling rule."""
    return replace(model, scaling=None)


def axis_of_pair(model: RotaryEmbedding) -> npt.NDArray[np.intp]:
    """Return the position axis that turns each pair, shape (R/2,)."""
    pairs = model.rotary_dim // 2
    return np.zeros(pairs, np.intp) if model.axes is None else np.array(model.axes.axis_of_pair)


def axis_names(model: RotaryEmbedding) -> tuple[str, ...]:
    """Return what the position axes are called."""
    count = 1 if model.axes is None else model.axes.count
    return AXES.get(count) or tuple(f"axis {n}" for n in range(count))


def unit(model: RotaryEmbedding | None) -> str:
    """Return what positions count: tokens, or with several axes steps along one."""
    return "tokens" if model is None or model.axes is None else "positions"


def is_of_coordinates(model: RotaryEmbedding) -> bool:
    """Whether positions are coordinates between −1 and 1, as DINOv3 has them."""
    return model.axes is not None and model.axes.in_turns


def facts(model: RotaryEmbedding, given: int | None = None) -> str:
    """Return what the model is, a line for each kind of fact."""
    partial = "" if model.rotary_dim == model.head_dim else f", {model.rotary_side}"
    parts = [
        f"head_dim {model.head_dim}",
        f"{model.rotary_dim // 2} pairs ({model.layout}{partial})",
        "frequencies given" if model.inv_freq is not None else f"base {number(model.base)}",
    ]
    context = context_of(model, given)
    if context is not None:
        parts.append(f"context {number(context)}")
    lines = [", ".join(parts)]
    if model.scaling is not None:
        lines.append(_rule(model.scaling))
    if model.axes is not None:
        sizes = ", ".join(map(str, model.axes.sizes))  # type: ignore[attr-defined]
        lines.append(
            f"{type(model.axes).__name__} of {sizes} pairs: {', '.join(axis_names(model))}"
        )
    if model.xpos is not None:
        lines.append(f"XPos, scale base {number(model.xpos.scale_base)}")
    return "\n".join(lines)


def _rule(rule: Any) -> str:
    said = []
    if getattr(rule, "factor", None):
        said.append(f"factor {number(rule.factor)}")
    trained = getattr(rule, "original_max_position_embeddings", None)
    if trained:
        said.append(f"trained on {number(trained)}")
    return ", ".join((f"scaling {type(rule).__name__}", *said))

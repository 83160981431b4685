"""Layouts of projection weights: which features of a head make a pair.

    half: feature i + p·R/2  ⇄  interleaved: feature 2i + p        i = 0 … R/2 − 1,  p = 0, 1

Scores are sums over the features of a head, so that a permutation of q's and of k's features, head
by head, changes nothing but the layout in which they rotate.  Meta's Llama interleaves; ``permute``
in Hugging Face's ``convert_llama_weights_to_hf.py`` is ``convert_layout(..., to="half")``.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from rotary import backends, rotation
from rotary.checks import check_choice, even_dim, whole


def convert_layout(
    weight: Any,
    *,
    head_dim: int,
    to: str,
    axis: int = 0,
    rotary_dim: int | None = None,
    rotary_side: str = "leading",
) -> Any:
    """Permute the features of a q or k projection from one layout to the other.

    Convert q's and k's weights, their biases, and whatever else has these features (the scales of a
    norm of q and k, too); give the ``RotaryEmbedding`` the other ``layout``; the scores are the
    same.  v and the output projection do not rotate: leave them alone.

    Parameters
    ----------
    weight : array
        Weight or bias of any array library and dtype.
    head_dim : int
        D, the number of features of a head.
    to : {"half", "interleaved"}
        The layout to convert to; the weight is in the other one.
    axis : int
        The axis of the features, of length heads·head_dim, head after head: 0 for weights of
        shape (heads·head_dim, hidden), as torch and checkpoints hold them, and for biases; 1 for
        (hidden, heads·head_dim).  The number of heads, fewer for the keys of grouped-query
        attention, is read from its length.
    rotary_dim : int, optional
        R ≤ D, even: how many features rotate; all by default.  The rest stay where they are.
    rotary_side : {"leading", "trailing"}
        Which features rotate when R < D.

    Returns
    -------
    array
        Of weight's shape, dtype, library and device.  Converting it back gives the same bits;
        gradients pass.

    Raises
    ------
    TypeError
        If weight is no array, or a size is not a whole number.
    ValueError
        If axis is none of weight's, its length no multiple of head_dim, rotary_dim odd or larger
        than head_dim, or a layout or side unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> bias = np.array([10, 20, 11, 21, 12, 22])  # one head, pairs side by side
    >>> rotary.convert_layout(bias, head_dim=6, to="half")
    array([10, 11, 12, 20, 21, 22])

    >>> rng = np.random.default_rng(0)
    >>> x, wq, wk = rng.normal(size=(5, 32)), rng.normal(size=(32, 32)), rng.normal(size=(32, 32))
    >>> def scores(wq, wk, layout):
    ...     rope = rotary.RotaryEmbedding(8, layout=layout)
    ...     q, k = (np.moveaxis((x @ w.T).reshape(5, 4, 8), 0, 1) for w in (wq, wk))
    ...     q, k = rope(q, k)
    ...     return q @ np.moveaxis(k, 1, 2)
    >>> converted = (rotary.convert_layout(w, head_dim=8, to="half") for w in (wq, wk))
    >>> bool(np.allclose(scores(wq, wk, "interleaved"), scores(*converted, "half")))
    True
    """
    xp = backends.owner_of(weight, "weight").namespace(weight)
    check_choice("to", to, rotation.LAYOUTS)
    check_choice("rotary_side", rotary_side, rotation.SIDES)
    head_dim = whole("head_dim", head_dim)
    chosen = head_dim if rotary_dim is None else rotary_dim
    rotating = even_dim("rotary_dim", chosen, head_dim, "head_dim")
    shape = tuple(weight.shape)
    at = _feature_axis(shape, axis, head_dim)

    behind = math.prod(shape[at + 1 :])
    heads = math.prod(shape[: at + 1]) // head_dim  # with all axes in front
    x = xp.reshape(weight, (heads, head_dim, behind))
    start = 0 if rotary_side == "leading" else head_dim - rotating
    stop = start + rotating
    pairs = (rotating // 2, 2) if to == "half" else (2, rotating // 2)
    part = xp.reshape(x[:, start:stop, :], (heads, *pairs, behind))
    part = xp.reshape(xp.permute_dims(part, (0, 2, 1, 3)), (heads, rotating, behind))
    if rotating < head_dim:
        part = xp.concat([x[:, :start, :], part, x[:, stop:, :]], axis=1)
    return xp.reshape(part, shape)


def _feature_axis(shape: tuple[Any, ...], axis: int, head_dim: int) -> int:
    """Return axis counted from the front, or raise."""
    try:
        at = operator.index(axis)
    except TypeError as error:
        raise TypeError(f"axis: got {axis!r}, expected a whole number") from error
    if not -len(shape) <= at < len(shape):
        raise ValueError(f"axis: got {axis}, expected an axis of weight's shape {shape}")
    if any(n is None or n != n for n in shape):  # lazy libraries leave lengths open: None, or NaN
        raise ValueError(f"weight: got shape {shape}, expected known lengths")
    at %= len(shape)
    if shape[at] % head_dim:
        raise ValueError(
            f"weight: got shape {shape}, expected a multiple of head_dim = {head_dim} along axis "
            f"{axis}"
        )
    return at

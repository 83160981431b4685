"""Rotation of feature pairs by tabulated angles.

    (x1, x2) → (x1·cos − x2·sin, x1·sin + x2·cos)        (RoFormer, arXiv 2104.09864, equation 34)

Each product is rounded, then the sum is rounded, then the result is rounded once to x's dtype:
fl(fl(x1·c) − fl(x2·s)), never a fused multiply-add.  float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from rotary import backends
from rotary.backends import Backend, Turn
from rotary.checks import check_choice, whole
from rotary.dtypes import COMPUTE_DTYPE, dtype_name

LAYOUTS = ("half", "interleaved")
SIDES = ("leading", "trailing")


def rotate(
    x: Any,
    cos: Any,
    sin: Any,
    *,
    layout: str = "half",
    rotary_side: str = "leading",
    blocks: Sequence[int] | None = None,
    inverse: bool = False,
    seq_axis: int = -2,
    out: Any = None,
) -> Any:
    """Rotate pairs of features of x by the angles of two tables.

    Parameters
    ----------
    x : array, shape (..., seq, dim)
        float16, bfloat16, float32 or float64, of any library.
    cos, sin : array, shape (seq, pairs), (batch, seq, pairs) or of x's rank
        Of x's library, in float32 (float64 for a float64 x).  Rank 2 is shared by all; of rank 3,
        the first axis is x's first axis; tables of x's rank broadcast as they are.  The leading
        (or trailing) 2·pairs features rotate, the rest pass through.
    layout : {"half", "interleaved"}
        Pairs (i, i + pairs), as GPT-NeoX and Llama in Hugging Face have them, or (2i, 2i + 1), as
        RoFormer, GPT-J and Meta's Llama.
    rotary_side : {"leading", "trailing"}
        Which features rotate when 2·pairs < dim.
    blocks : sequence of int, optional
        Pairs in each block of features that is laid out on its own, where image models rotate
        height and width apart (H·H·W·W); by default one block of all pairs.
    inverse : bool
        Rotate by the opposite angle: the adjoint.
    seq_axis : int
        The axis of x that the tables' seq axis lines up with; −3 for (batch, seq, heads, dim).
    out : array, optional
        Written in place and returned; may be x itself.  Not for immutable arrays or gradients.

    Returns
    -------
    array
        Of x's shape, dtype, library and device.

    Raises
    ------
    TypeError
        For dtypes that do not rotate, tables in another dtype or library.
    ValueError
        For shapes that do not meet, an unknown layout or side, an `out` that cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> x = np.array([[1.0, 2.0, 3.0, 4.0]], dtype=np.float32)
    >>> quarter_turn = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    >>> rotary.rotate(x, *quarter_turn)
    array([[-3., -4.,  1.,  2.]], dtype=float32)
    >>> rotary.rotate(x, *quarter_turn, layout="interleaved")
    array([[-2.,  1., -4.,  3.]], dtype=float32)
    """
    backend = backends.owner_of(x, "x")
    check_choice("layout", layout, LAYOUTS)
    check_choice("rotary_side", rotary_side, SIDES)
    compute = compute_dtype("x", x)
    axis = sequence_axis("x", x, seq_axis)
    for name, table in (("cos", cos), ("sin", sin)):
        check_same_place(name, table, "x", x, backend)
        if dtype_name(table) != compute:
            raise TypeError(
                f"{name}: got dtype {dtype_name(table)}, expected {compute}, the dtype in which "
                f"x of {dtype_name(x)} is rotated"
            )
        _check_table(name, table, x, axis)
    if tuple(sin.shape) != tuple(cos.shape):
        raise ValueError(f"sin: got shape {tuple(sin.shape)}, expected cos's {tuple(cos.shape)}")
    if blocks is not None:
        blocks = _checked_blocks(blocks, cos.shape[-1])
    if out is not None:
        check_out("out", out, x, backend, (x, cos, sin))
    cos, sin = align(cos, x, axis, backend), align(sin, x, axis, backend)
    turn = Turn(layout, rotary_side, blocks, bool(inverse))
    return rotate_all((x,), cos, sin, turn, backend, None if out is None else (out,))[0]


def rotate_all(
    arrays: tuple[Any, ...],
    cos: Any,
    sin: Any,
    turn: Turn,
    backend: Backend,
    outs: tuple[Any, ...] | None = None,
) -> tuple[Any, ...]:
    """Rotate checked arrays by tables that broadcast with each as they are, into outs if given."""
    fused = backend.rotate(arrays, cos, sin, turn, outs)
    if fused is not None:
        return fused
    results = rotate_by_array_code(arrays, cos, sin, turn, backend)
    if outs is None:
        return results
    return tuple(write(out, result) for out, result in zip(outs, results, strict=True))


def rotate_by_array_code(
    arrays: tuple[Any, ...], cos: Any, sin: Any, turn: Turn, backend: Backend
) -> tuple[Any, ...]:
    """Rotate each array by the library's own operations."""
    layout, side, blocks, inverse = turn
    return tuple(
        rotate_aligned(
            x,
            cos,
            sin,
            layout=layout,
            rotary_side=side,
            blocks=blocks,
            inverse=inverse,
            backend=backend,
        )
        for x in arrays
    )


def rotate_aligned(
    x: Any,
    cos: Any,
    sin: Any,
    *,
    layout: str,
    rotary_side: str,
    blocks: tuple[int, ...] | None = None,
    inverse: bool,
    backend: Backend,
) -> Any:
    """Rotate x by tables that broadcast with it as they are; nothing is checked."""
    xp = backend.namespace(x)
    compute = COMPUTE_DTYPE[dtype_name(x)]
    rotary_dim = 2 * cos.shape[-1]
    rest_dim = x.shape[-1] - rotary_dim
    part = x
    if rest_dim:
        part = x[..., :rotary_dim] if rotary_side == "leading" else x[..., rest_dim:]

    wide = part if compute == dtype_name(x) else backend.widen(part, compute)
    x1, x2 = _members(wide, layout, blocks, xp)
    product = backend.product
    # Sums alone: where a caller negates sin, LLVM makes a fused a + m of a − (0 − m).
    sin1, sin2 = (sin, -sin) if inverse else (-sin, sin)
    y1, y2 = product(x1, cos) + product(x2, sin1), product(x1, sin2) + product(x2, cos)
    rotated = _joined(y1, y2, layout, blocks, part.shape, xp)
    if compute != dtype_name(x):
        rotated = backend.narrow(rotated, x.dtype)

    if not rest_dim:
        return rotated
    if rotary_side == "leading":
        return xp.concat([rotated, x[..., rotary_dim:]], axis=-1)
    return xp.concat([x[..., :rest_dim], rotated], axis=-1)


def _members(x: Any, layout: str, blocks: tuple[int, ...] | None, xp: Any) -> tuple[Any, Any]:
    """Return the first and the second members of all pairs."""
    if layout == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    if blocks is None:
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]
    # Where a block's pairs begin; its features begin at twice that.
    starts = list(accumulate(blocks, initial=0))
    first = [x[..., 2 * s : 2 * s + n] for s, n in zip(starts, blocks, strict=False)]
    second = [x[..., 2 * s + n : 2 * (s + n)] for s, n in zip(starts, blocks, strict=False)]
    return xp.concat(first, axis=-1), xp.concat(second, axis=-1)


def _joined(
    y1: Any, y2: Any, layout: str, blocks: tuple[int, ...] | None, shape: Sequence[Any], xp: Any
) -> Any:
    """Put the members of all pairs back to where they came from."""
    if layout == "interleaved":
        return xp.reshape(xp.stack([y1, y2], axis=-1), _open(shape))
    if blocks is None:
        return xp.concat([y1, y2], axis=-1)
    starts = accumulate(blocks, initial=0)
    parts = [y[..., s : s + n] for s, n in zip(starts, blocks, strict=False) for y in (y1, y2)]
    return xp.concat(parts, axis=-1)


def _checked_blocks(blocks: Any, pairs: int) -> tuple[int, ...]:
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise TypeError(f"blocks: got {blocks!r}, expected whole numbers")
    sizes = tuple(whole("blocks", size) for size in blocks)
    if sum(sizes) != pairs:
        raise ValueError(f"blocks: got {sizes}, expected numbers of pairs with a sum of {pairs}")
    return sizes


def align(table: Any, x: Any, axis: int, backend: Backend) -> Any:
    """Insert axes into a checked table so that its seq axis meets axis `axis` of x."""
    rank = len(x.shape)
    if table.ndim == rank or (table.ndim == 2 and axis == rank - 2):
        return table
    shape = [1] * rank
    shape[axis], shape[-1] = table.shape[-2], table.shape[-1]
    if table.ndim == 3:
        shape[0] = table.shape[0]
    return backend.namespace(x).reshape(table, _open(shape))


def _open(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Return a shape to reshape to: lengths that a lazy library leaves open are −1."""
    return tuple(-1 if n is None else n for n in shape)


def compute_dtype(name: str, x: Any) -> str:
    """Return the dtype in which x rotates, or raise."""
    compute = COMPUTE_DTYPE.get(dtype_name(x))
    if compute is None:
        raise TypeError(
            f"{name}: got dtype {dtype_name(x)}, expected one of {', '.join(COMPUTE_DTYPE)}"
        )
    return compute


def sequence_axis(name: str, x: Any, seq_axis: int) -> int:
    """Return seq_axis counted from the front, or raise."""
    try:
        axis = operator.index(seq_axis)
    except TypeError as error:
        raise TypeError(f"seq_axis: got {seq_axis!r}, expected a whole number") from error
    rank = len(x.shape)
    if axis < 0:
        axis += rank
    if not 0 <= axis < rank - 1:
        raise ValueError(
            f"seq_axis: got {seq_axis} for {name} of shape {tuple(x.shape)}, expected an axis of "
            f"it other than the last, which holds the features"
        )
    length = x.shape[axis]
    if length is None or length != length:  # lazy libraries leave lengths open: None, or NaN
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected a known length along seq_axis {seq_axis}"
        )
    return axis


def check_same_place(name: str, array: Any, other_name: str, other: Any, backend: Backend) -> None:
    """Raise unless `array` is of the library and on the device of `other`."""
    owner = backends.owner_of(array, name)
    # One backend may serve several libraries.
    if owner is not backend or owner.namespace(array) is not backend.namespace(other):
        raise TypeError(
            f"{name}: got an array of {backends.library(array)}, expected {other_name}'s library "
            f"{backends.library(other)}"
        )
    if not backend.same_device(array, other):
        raise ValueError(
            f"{name}: got device {array.device}, expected {other_name}'s device {other.device}"
        )


def check_out(name: str, out: Any, x: Any, backend: Backend, inputs: tuple[Any, ...]) -> None:
    """Raise unless the rotation of x can be written to out."""
    check_same_place(name, out, "x", x, backend)
    if tuple(out.shape) != tuple(x.shape):
        raise ValueError(f"{name}: got shape {tuple(out.shape)}, expected {tuple(x.shape)}")
    if out.dtype != x.dtype:
        raise TypeError(f"{name}: got dtype {dtype_name(out)}, expected {dtype_name(x)}")
    reason = backend.refuse_out(out, inputs)
    if reason is not None:
        raise ValueError(f"{name}: {reason}; leave it out and take the returned array")


def write(out: Any, result: Any) -> Any:
    """Write result to a checked out and return it."""
    out[...] = result
    return out


def _check_table(name: str, table: Any, x: Any, axis: int) -> None:
    rank, shape = len(x.shape), tuple(table.shape)
    if len(shape) not in (2, 3, rank) or len(shape) > rank:
        raise ValueError(
            f"{name}: got shape {shape}, expected (seq, pairs), (batch, seq, pairs) or the rank "
            f"of x's shape {tuple(x.shape)}"
        )
    if not 0 < 2 * shape[-1] <= x.shape[-1]:
        raise ValueError(
            f"{name}: got shape {shape}, {shape[-1]} pairs, expected 1 to {x.shape[-1] // 2} for "
            f"x of shape {tuple(x.shape)}"
        )
    literal = len(shape) == rank
    table_seq = shape[axis] if literal else shape[-2]
    leading = [(i, n) for i, n in enumerate(shape[:-1]) if i != axis] if literal else []
    if len(shape) == 3 and not literal:
        if axis == 0:
            raise ValueError(
                f"{name}: got shape {shape}, expected (seq, pairs): x of shape {tuple(x.shape)} "
                f"has its seq axis first and so no batch axis"
            )
        leading = [(0, shape[0])]
    wrong = table_seq != x.shape[axis] or any(n not in (1, x.shape[i]) for i, n in leading)
    if wrong:
        raise ValueError(
            f"{name}: got shape {shape}, which does not meet x of shape {tuple(x.shape)} with its "
            f"seq axis at {axis}"
        )

"""Positions of sequences that share a batch: packed one behind the other, or padded to one length.

A packed batch has no batch axis; ``cu_seqlens``, the cumulative lengths, say where its sequences
begin: 0 = c_0 ≤ c_1 ≤ … ≤ c_n = total, and the position of token t is t − max{c_i : c_i ≤ t}.  In a
padded batch every row is rotated with an offset of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rotary import backends
from rotary.backends import Backend
from rotary.checks import count
from rotary.dtypes import dtype_name
from rotary.host import check_whole_dtype, delivered, known_now, read_whole

_NUMPY_INT64 = np.empty(0, np.int64)


def positions_from_cu_seqlens(cu_seqlens: Any, *, total: int | None = None) -> Any:
    """Return the positions of a packed batch, which start again at 0 in each sequence.

    Parameters
    ----------
    cu_seqlens : array or list, shape (n + 1,)
        Integers: where each of n ≥ 1 sequences begins, and where the last one ends.  The first is
        0; none is smaller than the one before it; equal ones bound an empty sequence.
    total : int, optional
        Number of tokens: the last of cu_seqlens.  Needed where only a compiled or lazy program
        knows cu_seqlens.

    Returns
    -------
    array, shape (total,)
        Of cu_seqlens' library, device and dtype; int64 for a list or a NumPy array.

    Raises
    ------
    TypeError
        If cu_seqlens are not integers, or total is not a whole number.
    ValueError
        If cu_seqlens have not one axis of length 2 or more, do not start at 0, or decrease; if
        total is not the last of them, or is missing where it is needed.

    Notes
    -----
    Where only a compiled or lazy program knows cu_seqlens, their values are not checked, and tokens
    behind the last boundary, which pad the batch to a static total, are counted from 0 there.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> positions = rotary.positions_from_cu_seqlens([0, 3, 3, 5])
    >>> positions
    array([0, 1, 2, 0, 1])
    >>> q = np.ones((5, 8, 64), np.float32)  # total, heads, dim
    >>> rotary.RotaryEmbedding(64)(q, positions=positions, seq_axis=-3).shape
    (5, 8, 64)
    """
    like = cu_seqlens if _is_array(cu_seqlens) else _NUMPY_INT64
    backend = backends.owner_of(like, "cu_seqlens")
    if total is not None:
        count("total", total)
    if not known_now(cu_seqlens, backend):
        return _in_program(cu_seqlens, total, backend)
    ends = read_whole(cu_seqlens, backend, "cu_seqlens")
    _check_ends(ends, total)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
    kind = "int64" if backend.name == "numpy" else dtype_name(like)
    return delivered(positions, kind, like, backend)


def _in_program(cu_seqlens: Any, total: int | None, backend: Backend) -> Any:
    """Return the positions of boundaries whose values are not known yet."""
    check_whole_dtype("cu_seqlens", dtype_name(cu_seqlens))
    _check_shape(tuple(cu_seqlens.shape))
    if total is None:
        raise ValueError(
            "total: got None, expected the number of tokens, as only the compiled program knows "
            "cu_seqlens"
        )
    xp = backend.namespace(cu_seqlens)
    tokens = backend.to_device(np.arange(total, dtype=dtype_name(cu_seqlens)), cu_seqlens)
    # The last of equal boundaries, behind the empty sequences.
    begun = xp.searchsorted(cu_seqlens, tokens, side="right") - 1
    return tokens - xp.take(cu_seqlens, begun, axis=0)


def _check_shape(shape: tuple[Any, ...]) -> None:
    if len(shape) != 1 or (shape[0] is not None and shape[0] < 2):
        raise ValueError(
            f"cu_seqlens: got shape {shape}, expected (sequences + 1,), a length of 2 or more"
        )


def _check_ends(ends: npt.NDArray[np.int64], total: int | None) -> None:
    _check_shape(ends.shape)
    if ends[0] != 0:
        raise ValueError(f"cu_seqlens: got {ends[0]} at index 0, expected a start at 0")
    down = np.flatnonzero(ends[1:] < ends[:-1])
    if down.size:
        i = int(down[0]) + 1
        raise ValueError(
            f"cu_seqlens: got {ends[i]} at index {i} after {ends[i - 1]}, expected numbers that "
            f"do not decrease"
        )
    if total is not None and total != ends[-1]:
        raise ValueError(f"total: got {total}, expected the last of cu_seqlens, {ends[-1]}")


def offsets_from_mask(mask: Any) -> Any:
    """Return the offset of each row of a padded batch: the first real token has position 0.

    Left padding of n tokens gives −n, right padding 0.

    Parameters
    ----------
    mask : array or list, shape (batch, seq)
        Boolean, or integers 0 and 1, that the host can read: which tokens are real.  Those of a row
        stand together.

    Returns
    -------
    array, shape (batch,)
        For ``rope(q, offset=...)``; of mask's library and device, int32; int64 for a list or a
        NumPy array.

    Raises
    ------
    TypeError
        If mask is neither boolean nor integers, or only a compiled program knows it.
    ValueError
        If mask has not two axes, or other numbers than 0 and 1; if a row has no real token, or
        padding between two of them.

    Notes
    -----
    Prompts are rotated by ``rope(q, k, offset=offsets_from_mask(mask))``, whichever side is padded.
    With ``lengths = mask.sum(1)``, the n-th token that is decoded after them, n = 0, 1, …, is
    rotated by ``rope(q, k, offset=lengths + n)``; for left padding that is the same as
    ``offset=offsets_from_mask(mask) + seq + n``.  Padding is rotated too, to positions without
    meaning: attention has to mask it.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> mask = np.array([[0, 0, 1, 1], [1, 1, 1, 0]])
    >>> rotary.offsets_from_mask(mask)
    array([-2,  0])
    >>> q = np.ones((2, 8, 4, 64), np.float32)  # batch, heads, seq, dim
    >>> rope = rotary.RotaryEmbedding(64)
    >>> q = rope(q, offset=rotary.offsets_from_mask(mask))
    >>> q_next = rope(q[:, :, :1], offset=mask.sum(1))
    """
    like = mask if _is_array(mask) else np.empty(0, np.int64)
    backend = backends.owner_of(like, "mask")
    host = _read_mask(mask, backend)
    if host.ndim != 2 or host.shape[1] == 0:
        raise ValueError(f"mask: got shape {host.shape}, expected (batch, seq), seq of 1 or more")
    first = host.argmax(axis=1)
    last = host.shape[1] - 1 - host[:, ::-1].argmax(axis=1)
    real = host.sum(axis=1)
    bad = np.flatnonzero(real != last - first + 1)
    if bad.size:
        what = "padding between real tokens" if real[bad[0]] else "no real token"
        raise ValueError(
            f"mask: got {what} in row {bad[0]}, expected one run of real tokens in each row"
        )
    return delivered(-first, "int64" if backend.name == "numpy" else "int32", like, backend)


def _read_mask(mask: Any, backend: Backend) -> npt.NDArray[np.bool_]:
    if not _is_array(mask):
        try:
            mask = np.asarray(mask)
        except ValueError as error:  # rows of different lengths
            raise TypeError(
                f"mask: got {type(mask).__name__}, expected (batch, seq) booleans: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error
    if dtype_name(mask) != "bool":
        host = read_whole(mask, backend, "mask")
        other = np.flatnonzero((host != 0) & (host != 1))
        if other.size:
            raise ValueError(f"mask: got {host.flat[other[0]]}, expected booleans, or 0 and 1")
        return host.astype(bool)
    if backend.is_traced(mask):
        raise TypeError(
            f"mask: got a traced array of {backends.library(mask)}, expected values that the host "
            f"can read"
        )
    try:
        return backend.to_host(mask)
    except TypeError as error:
        raise TypeError(f"mask: {error}, expected values that the host can read") from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")

"""Rotation by NumPy's own functions, block by block and into memory that stays in the cache.

For NumPy where Numba is not: no intermediate is as large as the array, and each is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.backends._protocol import Turn

# Elements of an intermediate; half a dozen of them fit into a core's second cache.
_BLOCK = 2**16


def fits(x: npt.NDArray[Any]) -> bool:
    """Whether the kernel can read or write an array as it is."""
    return True


def bound(turn: Turn, pairs: int, dtype: Any, real: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel ``(x, out, cos, sin, *more, lead, here)``, and what more it takes."""
    return _rows, (turn, real)


def _rows(
    x: Any, out: Any, cos: Any, sin: Any, turn: Turn, real: Any, lead: int, here: bool
) -> None:
    turning = 2 * cos.shape[3]
    if not here and turning < x.shape[3]:
        rest = slice(0, lead) if lead else slice(turning, None)
        out[..., rest] = x[..., rest]
    start = 0
    for n in turn.blocks or (cos.shape[3],):
        first, pairs = lead + 2 * start, slice(start, start + n)
        if turn.layout == "half":
            members = slice(first, first + n), slice(first + n, first + 2 * n)
        else:
            members = slice(first, first + 2 * n, 2), slice(first + 1, first + 2 * n, 2)
        x1, x2 = (x[..., m] for m in members)
        y1, y2 = (out[..., m] for m in members)
        _pairs(x1, x2, cos[..., pairs], sin[..., pairs], y1, y2, turn.inverse, real)
        start += n


def _pairs(
    x1: Any, x2: Any, cos: Any, sin: Any, y1: Any, y2: Any, inverse: bool, real: Any
) -> None:
    """Rotate pairs of rank 4."""
    batch, heads, seq, n = x1.shape
    rows = max(1, _BLOCK // max(n, 1))
    some_heads = max(1, rows // max(seq, 1))
    buffers = np.empty((6, min(rows, some_heads * seq) * n), real)
    for a in range(batch):
        for b in range(0, heads, some_heads):
            for c in range(0, seq, rows):
                index = a, slice(b, b + some_heads), slice(c, c + rows)
                near = [t[tuple(_shrunk(t, index))] for t in (cos, sin)]
                members = [t[index] for t in (x1, x2, y1, y2)]
                _block(members, near, buffers, inverse)


def _shrunk(table: Any, index: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the index of a table, whose axes of one broadcast."""
    for i, n in zip(index, table.shape, strict=False):
        yield i if n > 1 else (slice(None) if isinstance(i, slice) else 0)


def _block(members: list[Any], tables: list[Any], buffers: Any, inverse: bool) -> None:
    x1, x2, y1, y2 = members
    cos, sin = tables
    a, b, c, d, wide1, wide2 = (t[: x1.size].reshape(x1.shape) for t in buffers)
    if x1.dtype != a.dtype:
        wide1[...], wide2[...] = x1, x2
        x1, x2 = wide1, wide2
    first, second = (np.add, np.subtract) if inverse else (np.subtract, np.add)
    # Infinities and what they leave behind are a part of the answer, as in the other kernels;
    # what a caller has NumPy do about them does not reach the threads.
    with np.errstate(all="ignore"):
        np.multiply(x1, cos, out=a)
        np.multiply(x2, sin, out=b)
        np.multiply(x2, cos, out=c)
        np.multiply(x1, sin, out=d)
        # All four products are taken before anything is written: y may be x.
        y1[...] = first(a, b, out=a)
        y2[...] = second(c, d, out=c)

"""Rotation on a GPU for CuPy, one pass over the memory: ``rotation.cu``, compiled by NVRTC.

CuPy keeps what is compiled in a folder of its own, and loads it once for each device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from rotary.backends._protocol import Turn
from rotary.backends.kernels import _geometry
from rotary.backends.kernels._geometry import Rows, View
from rotary.dtypes import dtype_name

if cupy.cuda.runtime.is_hip:
    raise ImportError("rotation.cu holds instructions of CUDA devices")

SOURCE = Path(__file__).with_name("rotation.cu")
MOST_BLOCKS = 16
# The twins of the structures in rotation.cu.
_THREE = ("i8", (3,))
_ROWS = np.dtype([(name, *_THREE) for name in ("lengths", "x", "out", "table")])
_NUMBERS = ("q_groups", "heads_each", "pairs", "lead", "rest", "rest_at", "inverse", "blocks")
LAUNCH = np.dtype(
    [
        ("q", _ROWS),
        ("k", _ROWS),
        *((name, "i8") for name in _NUMBERS),
        ("starts", "i8", (MOST_BLOCKS,)),
        ("sizes", "i8", (MOST_BLOCKS,)),
    ]
)
THREADS = 256
# From so many blocks of threads on, each takes heads together, up to so many.
MANY_BLOCKS, MOST_HEADS = 4096, 8
# CUDA's limit along the second and third axes of a grid.
_MOST_ALONG = 65535


def view(x: Any) -> View:
    """Return where an array lies."""
    steps = tuple(stride // x.itemsize for stride in x.strides)
    return View(x.data.ptr, x.itemsize, x.shape, steps)


def rotate(
    arrays: tuple[Any, ...],
    outs: tuple[Any, ...],
    cos: Any,
    sin: Any,
    turn: Turn,
    *,
    fresh: bool,
) -> bool:
    """Rotate each array into its out, and say whether that was done.

    All are on the current device, and cos and sin broadcast with every array.  An out is the array
    itself or, if all are fresh, memory that nothing else has.
    """
    if any(stride % x.itemsize for x in (*arrays, *outs, cos, sin) for stride in x.strides):
        return False
    targets = None if fresh else tuple(map(view, outs))
    if len(turn.blocks or ()) > MOST_BLOCKS or not _geometry.usable(
        tuple(map(view, arrays)), targets, view(cos), view(sin)
    ):
        return False
    parts = [part for x, y in zip(arrays, outs, strict=True) for part in _parts(x, y, cos, sin)]
    for together in _geometry.in_pairs(parts, _go_together):
        _launch(together, turn)
    return True


_Part = tuple[Any, Any, Any, Any, Rows]


def _parts(x: Any, out: Any, cos: Any, sin: Any) -> Iterator[_Part]:
    """Yield arrays of three axes of rows: all of them, or one after the other."""
    if x.size == 0:
        return
    steps = view(x).steps[:-1], view(out).steps[:-1]
    along = _geometry.table_steps(cos.shape, view(cos).steps, x.ndim)
    rows = _geometry.rows(x.shape[:-1], *steps, along)
    if rows is not None:
        yield x, out, cos, sin, rows
        return
    for i in range(x.shape[0]):
        tables = (t if t.ndim < x.ndim else t[i if len(t) > 1 else 0] for t in (cos, sin))
        yield from _parts(x[i], out[i], *tables)


def _go_together(one: _Part, other: _Part) -> bool:
    """Whether one launch serves both, as it does queries and keys."""
    return one[0].shape[-1] == other[0].shape[-1] and one[2] is other[2]


def _launch(parts: list[_Part], turn: Turn) -> None:
    """Turn one or two arrays."""
    (q, q_out, cos, sin, _), (k, k_out, *_) = parts[0], parts[-1]
    arrays = (q, q_out, k, k_out, cos, sin)
    plan = _plan(
        tuple(part[-1] for part in parts),
        turn,
        cos.shape[-1],
        q.shape[-1],
        (q.itemsize, cos.itemsize),
        all(x.data.ptr % 16 == 0 for x in arrays),
        all(out.data.ptr == x.data.ptr for x, out, *_ in parts),
    )
    width, grid, block, launch = plan
    _kernel(f"rotate_{dtype_name(q)}_{turn.layout}_{width}")(grid, block, (*arrays, launch))


@lru_cache(maxsize=16)
def _kernel(name: str) -> Any:
    return _module().get_function(name)


@lru_cache(maxsize=1)
def _module() -> Any:
    return cupy.RawModule(code=SOURCE.read_text("utf-8"), options=("--std=c++17",))


@lru_cache(maxsize=4096)
def _plan(
    lie: tuple[Rows, ...],
    turn: Turn,
    pairs: int,
    dim: int,
    itemsizes: tuple[int, int],
    aligned: bool,
    here: bool,
) -> tuple[str, tuple[int, int, int], tuple[int, int], npt.NDArray[Any]]:
    """Return which kernel, its grid, its block of threads, and what it is told in numbers."""
    interleaved = turn.layout == "interleaved"  # there blocks change nothing
    sizes = turn.blocks if turn.blocks and not interleaved else (pairs,)
    rest, leading = dim - 2 * pairs, turn.side == "leading"
    lead, rest_at = (0, 2 * pairs) if leading else (rest, 0)
    rest = 0 if here else rest
    together = 16 // itemsizes[0]
    wide = aligned and _divisible(lie, (*sizes, lead, rest), together, itemsizes)

    across = min(-(-pairs // (together if wide else 1)), THREADS)
    down = min(THREADS // across, max(rows.lengths[1] for rows in lie))
    tiles = max(-(-rows.lengths[1] // down) for rows in lie)
    outer = min(max(rows.lengths[0] for rows in lie), _MOST_ALONG)
    heads = [rows.lengths[2] for rows in lie]
    each = min(max(outer * tiles * sum(heads) // MANY_BLOCKS, 1), MOST_HEADS)
    each = max(each, -(-sum(heads) // (_MOST_ALONG - 2)))
    groups = [-(-n // each) for n in heads]

    launch = np.zeros(1, LAUNCH)
    for name, rows in (("q", lie[0]), ("k", lie[-1])):
        launch[name] = rows
    numbers = (groups[0], each, pairs, lead, rest, rest_at, turn.inverse, len(sizes))
    for name, number in zip(_NUMBERS, numbers, strict=True):
        launch[name] = number
    launch["starts"][0, : len(sizes)] = tuple(accumulate(sizes[:-1], initial=0))
    launch["sizes"][0, : len(sizes)] = sizes
    grid = (tiles, sum(groups), outer)
    return "wide" if wide else "single", grid, (across, down), launch


def _divisible(
    lie: tuple[Rows, ...], sizes: tuple[int, ...], together: int, itemsizes: tuple[int, int]
) -> bool:
    """Whether all that is read or written at once begins at a multiple of 16 bytes."""
    itemsize, table_itemsize = itemsizes
    steps = [step for rows in lie for step in (*rows.x, *rows.out)]
    table_steps = [step for rows in lie for step in rows.table]
    return (
        all(size % together == 0 for size in sizes)
        and all(step * itemsize % 16 == 0 for step in steps)
        and all(step * table_itemsize % 16 == 0 for step in table_steps)
    )

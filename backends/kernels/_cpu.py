"""How a rotation on the CPU is laid out for a kernel: views of rank 4, a part for each thread.

The kernels take memory in rows and know nothing of threads; what they need is said here once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.backends._protocol import Turn
from rotary.backends.kernels import _threads

RANK = 4
# Below this a second thread costs more than it saves.
_THREADED_BYTES = 2**18
# For each thread, where there is enough for all: one that wakes late takes fewer.
_PARTS = 4
# What stands for the floats that compilers of Python code do not have; dtypes of their own each.
PATTERNS = {"float16": np.uint16, "bfloat16": np.int16}


def seen(
    arrays: tuple[Any, ...], outs: tuple[Any, ...], see: Callable[[Any], npt.NDArray[Any]]
) -> tuple[tuple[npt.NDArray[Any], ...], tuple[npt.NDArray[Any], ...]]:
    """Return arrays and outs as the kernels see them: one that is both is one object."""
    views = tuple(map(see, arrays))
    return views, tuple(
        view if out is x else see(out) for x, out, view in zip(arrays, outs, views, strict=True)
    )


def rotate(
    kernel: ModuleType,
    arrays: tuple[npt.NDArray[Any], ...],
    outs: tuple[npt.NDArray[Any], ...],
    cos: npt.NDArray[Any],
    sin: npt.NDArray[Any],
    turn: Turn,
    *,
    fresh: bool,
) -> bool:
    """Rotate each array into its out, and say whether that was done.

    cos and sin broadcast with every array.  An out is the array itself or, if all are fresh, memory
    that nothing else has; one that overlaps something is left to code that reads all of it first.
    """
    fits = kernel.fits
    if not (fits(cos) and fits(sin) and cos.strides == sin.strides):
        return False
    if not (fresh or (all(map(fits, outs)) and _apart((*arrays, cos, sin), outs))):
        return False
    pairs = cos.shape[-1]
    work, more = kernel.bound(turn, pairs, arrays[0].dtype, cos.dtype)
    nbytes, parts = 0, []
    for x, out in zip(arrays, outs, strict=True):
        if not fits(x):
            np.copyto(out, x)
            x = out
        nbytes += out.nbytes
        lead = 0 if turn.side == "leading" else x.shape[-1] - 2 * pairs
        for views in _of_rank(x, out, cos, sin):
            parts.append((views, (*more, lead, out is x)))
    if nbytes >= _THREADED_BYTES:
        _threads.run(work, [(*v, *rest) for views, rest in parts for v in _shared(*views)])
    else:
        for views, rest in parts:
            work(*views, *rest)
    return True


def _apart(read: tuple[Any, ...], outs: tuple[Any, ...]) -> bool:
    """Whether no out has memory in common with another or, but for its own array, what is read."""
    return not any(
        (i != j or out is not x) and _overlap(x, out)
        for i, out in enumerate(outs)
        for j, x in enumerate((*read, *outs[:i]))
    )


def _overlap(x: npt.NDArray[Any], out: npt.NDArray[Any]) -> bool:
    try:
        # NumPy's stubs know the two special values only.
        return np.shares_memory(x, out, max_work=1000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _of_rank(x: Any, out: Any, cos: Any, sin: Any) -> list[tuple[Any, ...]]:
    """Return views of rank 4: of everything, or of one part after the other."""
    rank = x.ndim
    if rank <= RANK:
        if rank < RANK:
            x, out = x[(None,) * (RANK - rank)], out[(None,) * (RANK - rank)]
        if cos.ndim < RANK:
            cos, sin = cos[(None,) * (RANK - cos.ndim)], sin[(None,) * (RANK - sin.ndim)]
        return [(x, out, cos, sin)]
    parts = []
    for i in range(len(x)):
        # Tables have all axes, or just the last two; an axis of one broadcasts.
        near = (t if t.ndim < rank else t[i if len(t) > 1 else 0] for t in (cos, sin))
        parts += _of_rank(x[i], out[i], *near)
    return parts


def _shared(x: Any, out: Any, cos: Any, sin: Any) -> Iterator[tuple[Any, ...]]:
    """Yield some parts for each thread."""
    threads = _threads.get_num_threads()
    if threads == 1 or not x.size:
        yield x, out, cos, sin
        return
    count = threads * min(_PARTS, max(1, out.nbytes // (threads * _THREADED_BYTES)))
    lengths = x.shape[:-1]
    # The first axis that divides well: then no two threads write to the same pages.
    axis = next((i for i, n in enumerate(lengths) if n % count == 0 or n > 8 * count), None)
    axis = lengths.index(max(lengths)) if axis is None else axis
    step = -(-lengths[axis] // count)
    for first in range(0, lengths[axis], step):
        rows = (slice(None),) * axis + (slice(first, first + step),)
        yield tuple(v if v.shape[axis] == 1 else v[rows] for v in (x, out, cos, sin))

"""Where arrays lie in memory, for kernels that address it themselves.

A kernel on a GPU goes over three axes of rows: rows side by side, which a program takes together;
heads, which share a row of the tables; and an outer axis.  Any array of up to four axes comes down
to these, and one of more does where axes merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# With fewer rows than this a program takes heads together instead.
FEW_ROWS = 16


class View(NamedTuple):
    """An array as a kernel sees it."""

    address: int
    itemsize: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    """In elements, an axis each."""


class Rows(NamedTuple):
    """Three axes of rows: outer, rows, heads."""

    lengths: tuple[int, int, int]
    x: tuple[int, int, int]
    """Steps from row to row, in elements; 0 for an axis of one."""
    out: tuple[int, int, int]
    table: tuple[int, int, int]


class _Axis(NamedTuple):
    length: int
    x: int
    out: int
    table: int


_NONE = _Axis(1, 0, 0, 0)


@lru_cache(maxsize=4096)
def rows(
    lengths: tuple[int, ...], x: tuple[int, ...], out: tuple[int, ...], table: tuple[int, ...]
) -> Rows | None:
    """Return the three axes of rows, from the length and the steps of each; None for more."""
    axes: list[_Axis] = []
    for axis in map(_Axis, lengths, x, out, table):
        if axis.length == 1:
            continue
        if axes and all(a == b * axis.length for a, b in zip(axes[-1][1:], axis[1:], strict=True)):
            axes[-1] = _Axis(axes[-1].length * axis.length, *axis[1:])
        else:
            axes.append(axis)
    if len(axes) > 3:
        return None
    axes += [_NONE] * (3 - len(axes))
    heads = min(axes, key=lambda a: (a.table != 0, a.length == 1, abs(a.x)))
    axes.remove(heads)
    row = min(axes, key=lambda a: (a.length == 1, a.table == 0, abs(a.x)))
    axes.remove(row)
    if row.length < FEW_ROWS and row.length < heads.length:
        row, heads = heads, row
    return Rows(*zip(axes[0], row, heads, strict=True))


def table_steps(shape: tuple[int, ...], steps: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the steps of a table along the first axes of an array of that rank; all but its last.

    Where it broadcasts they are 0.
    """
    own = tuple(0 if n == 1 else s for n, s in zip(shape[:-1], steps[:-1], strict=True))
    return (0,) * (rank - len(shape)) + own


def in_pairs(parts: Sequence[T], go_together: Callable[[T, T], bool]) -> Iterator[list[T]]:
    """Yield parts in order, two neighbours at once where they go together."""
    left = list(parts)
    while left:
        count = 2 if len(left) > 1 and go_together(*left[:2]) else 1
        yield left[:count]
        left = left[count:]


def usable(arrays: Sequence[View], outs: Sequence[View] | None, cos: View, sin: View) -> bool:
    """Whether a kernel that reads and writes row by row gives what the generic code gives.

    Features have to lie side by side, cos and sin alike; an out is its array itself, or shares no
    memory with anything else.
    """
    if not all(map(_side_by_side, (*arrays, *(outs or ()), cos, sin))) or not alike(cos, sin):
        return False
    for i, out in enumerate(outs or ()):
        others = [x for j, x in enumerate(arrays) if i != j or not same(x, out)]
        others += (outs or ())[:i]
        if not all(apart(out, other) for other in (*others, cos, sin)):
            return False
    return True


def _side_by_side(view: View) -> bool:
    # NumPy gives an array of nothing steps of 0.
    return view.steps[-1] == 1 or view.shape[-1] == 1 or 0 in view.shape


def alike(a: View, b: View) -> bool:
    """Whether two arrays of one shape have the same steps."""
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.steps, b.steps, strict=True))


def same(a: View, b: View) -> bool:
    """Whether two arrays of one shape are the same memory."""
    return a.address == b.address and alike(a, b)


def apart(a: View, b: View) -> bool:
    """Whether two arrays certainly share no memory.

    They do not where one ends before the other begins, nor where both repeat with a period in which
    they keep to parts of their own: queries and keys in one packed array.
    """
    if 0 in a.shape or 0 in b.shape:
        return True
    (a_first, a_end), (b_first, b_end) = _extent(a), _extent(b)
    if a_end <= b_first or b_end <= a_first:
        return True
    (a_run, a_steps), (b_run, b_steps) = _run(a), _run(b)
    period = gcd(*a_steps, *b_steps)
    ahead = (b_first - a_first) % period if period else 0
    return a_run <= ahead and ahead + b_run <= period


def _extent(view: View) -> tuple[int, int]:
    """Return the addresses of the first byte and of the one after the last."""
    reach = [(n - 1) * s * view.itemsize for n, s in zip(view.shape, view.steps, strict=True)]
    first = view.address + sum(r for r in reach if r < 0)
    return first, view.address + sum(r for r in reach if r > 0) + view.itemsize


def _run(view: View) -> tuple[int, list[int]]:
    """Return how many bytes lie side by side, and the steps in bytes from run to run."""
    run = view.itemsize
    steps: list[int] = []
    axes = [(abs(s) * view.itemsize, n) for n, s in zip(view.shape, view.steps, strict=True)]
    for step, n in sorted(axis for axis in axes if axis[1] > 1):
        if step == run and not steps:
            run *= n
        else:
            steps.append(step)
    return run, steps

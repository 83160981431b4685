"""Rotation on a GPU for torch, one pass over the memory, compiled by Triton.

A program turns a few rows side by side, of a few heads that share their row of the tables: these
are read once for all of them.  Products are rounded before they are added: every launch asks for no
fusion of floating-point operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl

from rotary.backends._protocol import Turn
from rotary.backends.kernels import _geometry
from rotary.backends.kernels._geometry import Rows, View

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):
    raise ImportError(f"Triton {triton.__version__} is older than 3.4, which takes tuples")

WARPS = 4
# What the threads of a program read at once: 16 bytes each, the most that one instruction takes.
BYTES = 16 * 32 * WARPS
# Pairs of a row that a program takes; of wider rows it takes a part.
MOST_COLUMNS = 256
# From so many programs on, each takes heads together, up to so many.
MANY_PROGRAMS, MOST_HEADS = 4096, 8


@dataclass(frozen=True)
class Form:
    """What a compiled form of the kernel is made for."""

    interleaved: bool
    inverse: bool
    pairs: int
    lead: int
    """Features before those that rotate."""
    rest: int
    """Features that are copied, from `rest_at` on; 0 in place."""
    rest_at: int
    starts: tuple[int, ...]
    """First pair of each block."""
    sizes: tuple[int, ...]
    aligned: int
    """Pairs of which a block, and what is before it, has a whole number: a power of two."""
    shared: bool
    """Whether all heads have the same row of the tables."""
    rows: int
    """Of a program; a power of two, as are its columns."""
    columns: int
    both: bool
    """Whether there are two arrays."""


@triton.jit
def _turned(x1, x2, c, s, form: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return both members of pairs, in the dtype of the tables."""
    x1, x2 = x1.to(c.dtype), x2.to(c.dtype)
    if form.inverse:
        y1, y2 = x1 * c + x2 * s, x2 * c - x1 * s
    else:
        y1, y2 = x1 * c - x2 * s, x1 * s + x2 * c
    return y1, y2


@triton.jit
def _blocks(pair, form: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return where the first and the second members of pairs are.

    A block of n pairs from the s-th on has its features from 2s on: n first members, n second.
    """
    count: tl.constexpr = len(form.starts)
    start, size = tl.zeros_like(pair), tl.zeros_like(pair) + form.sizes[0]
    for i in tl.static_range(1, count):
        start = tl.where(pair >= form.starts[i], form.starts[i], start)
        size = tl.where(pair >= form.starts[i], form.sizes[i], size)
    first = form.lead + start + pair
    second = first + size
    if count > 1:
        # The compiler does not see that so many lie side by side.
        aligned: tl.constexpr = form.aligned
        first = tl.max_contiguous(tl.multiple_of(first, aligned), aligned)
        second = tl.max_contiguous(tl.multiple_of(second, aligned), aligned)
    return first[None, :], second[None, :]


@triton.jit
def _copy_rest(x, y, inside, form: tl.constexpr):  # type: ignore[no-untyped-def]
    """Copy the features of rows that do not rotate."""
    rest: tl.constexpr = form.rest
    wide: tl.constexpr = 2 * form.columns
    for begin in tl.static_range(0, rest, wide):
        feature = begin + tl.arange(0, wide)
        here = inside & (feature < rest)[None, :]
        feature = (form.rest_at + feature)[None, :]
        tl.store(y + feature, tl.load(x + feature, mask=here), mask=here)


@triton.jit
def _row(x, y, c, s, column, inside, form: tl.constexpr):  # type: ignore[no-untyped-def]
    """Turn a part of rows, which begin at the pointers x, into y."""
    if form.interleaved:
        feature = 2 * column * form.columns + tl.arange(0, 2 * form.columns)
        here = inside & (feature < 2 * form.pairs)[None, :]
        feature = (form.lead + feature)[None, :]
        both = tl.load(x + feature, mask=here)
        x1, x2 = tl.split(tl.reshape(both, (form.rows, form.columns, 2)))
        y1, y2 = _turned(x1, x2, c, s, form)
        both = tl.reshape(tl.join(y1, y2), (form.rows, 2 * form.columns))
        tl.store(y + feature, both.to(y.dtype.element_ty), mask=here)
    else:
        pair = column * form.columns + tl.arange(0, form.columns)
        here = inside & (pair < form.pairs)[None, :]
        first, second = _blocks(pair, form)
        x1, x2 = tl.load(x + first, mask=here), tl.load(x + second, mask=here)
        y1, y2 = _turned(x1, x2, c, s, form)
        tl.store(y + first, y1.to(y.dtype.element_ty), mask=here)
        tl.store(y + second, y2.to(y.dtype.element_ty), mask=here)
    if form.rest > 0:  # noqa: SIM102 - one is known when this is compiled, the other is not
        if column == 0:
            _copy_rest(x, y, inside, form)


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    program, x, y, cos, sin, rows, heads, heads_each, x_steps, y_steps, steps, form: tl.constexpr
):
    """Turn the rows and heads of a program; steps are outer, row, head."""
    columns: tl.constexpr = (form.pairs + form.columns - 1) // form.columns
    column = program % columns
    tile = program // columns
    tiles = tl.cdiv(rows, form.rows)
    group = tile // tiles
    groups = tl.cdiv(heads, heads_each)
    # In 64 bits, since what steps are multiplied by comes to more than 32 hold.
    outer = (group // groups).to(tl.int64)
    row = (tile % tiles).to(tl.int64) * form.rows + tl.arange(0, form.rows)
    first_head = ((group % groups) * heads_each).to(tl.int64)

    inside = (row < rows)[:, None]
    pair = column * form.columns + tl.arange(0, form.columns)
    here = inside & (pair < form.pairs)[None, :]
    x += (outer * x_steps[0] + row * x_steps[1])[:, None]
    y += (outer * y_steps[0] + row * y_steps[1])[:, None]
    at = (outer * steps[0] + row * steps[1])[:, None] + pair[None, :]
    if form.shared:
        c, s = tl.load(cos + at, mask=here), tl.load(sin + at, mask=here)
        for head in range(first_head, tl.minimum(first_head + heads_each, heads)):
            _row(x + head * x_steps[2], y + head * y_steps[2], c, s, column, inside, form)
    else:
        for head in range(first_head, tl.minimum(first_head + heads_each, heads)):
            near = at + head * steps[2]
            c, s = tl.load(cos + near, mask=here), tl.load(sin + near, mask=here)
            _row(x + head * x_steps[2], y + head * y_steps[2], c, s, column, inside, form)


# No form of its own for a length: prompts have all of them.
@triton.jit(
    do_not_specialize=["q_programs", "q_rows", "q_heads", "k_rows", "k_heads", "heads_each"]
)
def _rotation(  # type: ignore[no-untyped-def]
    q,
    q_out,
    k,
    k_out,
    cos,
    sin,
    q_programs,
    q_rows,
    q_heads,
    k_rows,
    k_heads,
    heads_each,
    q_steps,
    k_steps,
    form: tl.constexpr,
):
    """Turn q, and k if there are both."""
    program = tl.program_id(0)
    if form.both:
        if program < q_programs:
            _part(program, q, q_out, cos, sin, q_rows, q_heads, heads_each, *q_steps, form)
        else:
            program -= q_programs
            _part(program, k, k_out, cos, sin, k_rows, k_heads, heads_each, *k_steps, form)
    else:
        _part(program, q, q_out, cos, sin, q_rows, q_heads, heads_each, *q_steps, form)


def view(x: torch.Tensor) -> View:
    """Return where a tensor lies."""
    return View(x.data_ptr(), x.element_size(), tuple(x.shape), x.stride())


def rotate(
    arrays: tuple[torch.Tensor, ...],
    outs: tuple[torch.Tensor, ...],
    cos: torch.Tensor,
    sin: torch.Tensor,
    turn: Turn,
    *,
    fresh: bool,
) -> bool:
    """Rotate each tensor into its out, and say whether that was done.

    All are on one device, and cos and sin broadcast with every tensor.  An out is the tensor itself
    or, if all are fresh, memory that nothing else has.
    """
    targets = None if fresh else tuple(map(view, outs))
    if not _geometry.usable(tuple(map(view, arrays)), targets, view(cos), view(sin)):
        return False
    parts = [part for x, y in zip(arrays, outs, strict=True) for part in _parts(x, y, cos, sin)]
    with _where(cos):
        for together in _geometry.in_pairs(parts, _go_together):
            _launch(together, turn)
    return True


def _where(x: torch.Tensor) -> Any:
    """Return a context in which Triton launches on x's device, which it does on the current one."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


_Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Rows]


def _parts(
    x: torch.Tensor, out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> Iterator[_Part]:
    """Yield tensors of three axes of rows: all of them, or one after the other."""
    if x.numel() == 0:
        return
    steps = _geometry.table_steps(tuple(cos.shape), cos.stride(), x.ndim)
    rows = _geometry.rows(tuple(x.shape[:-1]), x.stride()[:-1], out.stride()[:-1], steps)
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
    """Turn one or two tensors."""
    (q, q_out, cos, sin, _), (k, k_out, *_) = parts[0], parts[-1]
    here = all(out.data_ptr() == x.data_ptr() for x, out, *_ in parts)
    lie = tuple(part[-1] for part in parts)
    form, programs, lengths, steps = _plan(
        lie, turn, cos.shape[-1], q.shape[-1], q.element_size(), here
    )
    _rotation[(programs,)](
        q,
        q_out,
        k,
        k_out,
        cos,
        sin,
        *lengths,
        *steps,
        form,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


@lru_cache(maxsize=4096)
def _plan(
    lie: tuple[Rows, ...], turn: Turn, pairs: int, dim: int, itemsize: int, here: bool
) -> tuple[Form, int, tuple[int, ...], tuple[Any, ...]]:
    """Return the form, how many programs, and what else the kernel is told in numbers."""
    columns = min(triton.next_power_of_2(pairs), MOST_COLUMNS)
    longest = triton.next_power_of_2(max(rows.lengths[1] for rows in lie))
    form = _form(lie, turn, pairs, dim, here, min(max(BYTES // itemsize // columns, 1), longest))
    # Of one head each.
    tiles = [a * -(-b // form.rows) * c * -(-pairs // columns) for a, b, c in _lengths(lie)]
    each = min(max(sum(tiles) // MANY_PROGRAMS, 1), MOST_HEADS)
    programs = [
        n // max(c, 1) * -(-c // each) for n, (_, _, c) in zip(tiles, _lengths(lie), strict=True)
    ]
    q, k = lie[0], lie[-1]
    lengths = (programs[0], *q.lengths[1:], *k.lengths[1:], each)
    return form, sum(programs), lengths, ((q.x, q.out, q.table), (k.x, k.out, k.table))


def _lengths(lie: tuple[Rows, ...]) -> list[tuple[int, int, int]]:
    return [rows.lengths for rows in lie]


def _form(lie: tuple[Rows, ...], turn: Turn, pairs: int, dim: int, here: bool, rows: int) -> Form:
    sizes = turn.blocks or (pairs,)
    leading = turn.side == "leading"
    rest = dim - 2 * pairs
    lead = 0 if leading else rest
    interleaved = turn.layout == "interleaved"
    if interleaved:  # there blocks change nothing
        sizes = (pairs,)
    common = gcd(*sizes, lead, 16)
    return Form(
        interleaved=interleaved,
        inverse=turn.inverse,
        pairs=pairs,
        lead=lead,
        rest=0 if here else rest,
        rest_at=2 * pairs if leading else 0,
        starts=tuple(accumulate(sizes[:-1], initial=0)),
        sizes=sizes,
        aligned=common & -common,
        shared=all(rows.table[2] == 0 for rows in lie),
        rows=rows,
        columns=min(triton.next_power_of_2(pairs), MOST_COLUMNS),
        both=len(lie) == 2,
    )

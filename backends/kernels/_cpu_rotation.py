"""Rotation on the CPU, one pass over the memory, compiled by Numba.

It takes NumPy arrays, and what can be seen as one.  float16 and bfloat16 come as bit patterns,
uint16 and int16, whose dtype tells the compiler which they are; integer operations widen and round
them.  Products are rounded before they are added: LLVM contracts nothing unless it is told to.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from rotary.backends._protocol import Turn
from rotary.backends.kernels._cpu import RANK
from rotary.backends.kernels._numba import compiled, inlined, pointer


@inlined
def _from_bfloat16(x: Any) -> Any:
    return np.int32(np.int32(x) << np.int32(16)).view(np.float32)


@inlined
def _to_bfloat16(y: Any) -> Any:
    bits = np.float32(y).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    if y != y:  # rounding up could carry a NaN over to infinity
        rounded = np.uint32(0x7FC00000)
    return np.int16(rounded >> np.uint32(16))


@inlined
def _from_float16(x: Any) -> Any:
    sign = np.uint32(x & np.uint16(0x8000)) << np.uint32(16)
    size = np.uint32(x & np.uint16(0x7FFF))
    bits = (size << np.uint32(13)) + np.uint32(112 << 23)
    if size >= np.uint32(0x7C00):  # infinity and NaN
        bits = bits + np.uint32(112 << 23)
    if size < np.uint32(0x0400):  # subnormal: a count of 2^-24
        bits = np.float32(np.float32(np.int32(size)) * np.float32(2.0**-24)).view(np.uint32)
    return np.uint32(bits | sign).view(np.float32)


@inlined
def _to_float16(y: Any) -> Any:
    bits = np.float32(y).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    rounded = size + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))
    half = (rounded - np.uint32(112 << 23)) >> np.uint32(13)
    if rounded >= np.uint32(0x47800000):  # 65520 and more
        half = np.uint32(0x7C00)
    if size < np.uint32(0x38800000):  # below 2^-14: 0.5 has a last place of 2^-24, theirs
        half = np.float32(abs(y) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
    if y != y:
        half = np.uint32(0x7E00)
    return np.uint16(half | sign)


@inlined
def _as_it_is(x: Any) -> Any:
    return x


_SIZES = types.Array(types.int64, 1, "C", readonly=True)
# How an element becomes a float, and a float an element; by dtype.
_CONVERSIONS = {
    "uint16": (_from_float16, _to_float16),
    "int16": (_from_bfloat16, _to_bfloat16),
    "float32": (_as_it_is, _as_it_is),
    "float64": (_as_it_is, _as_it_is),
}


def _of_one_row(layout: str, dtype: str) -> Any:
    """Return the rotation of the n pairs of the row x into y."""
    widen, narrow = _CONVERSIONS[dtype]

    @inlined
    def half(x: Any, y: Any, cos: Any, sin: Any, sign: Any, n: Any) -> None:
        for i in range(n):
            x1, x2, c, s = widen(x[i]), widen(x[n + i]), cos[i], sign * sin[i]
            y[i] = narrow(x1 * c - x2 * s)
            y[n + i] = narrow(x1 * s + x2 * c)

    @inlined
    def interleaved(x: Any, y: Any, cos: Any, sin: Any, sign: Any, n: Any) -> None:
        for i in range(n):
            x1, x2, c, s = widen(x[2 * i]), widen(x[2 * i + 1]), cos[i], sign * sin[i]
            y[2 * i] = narrow(x1 * c - x2 * s)
            y[2 * i + 1] = narrow(x1 * s + x2 * c)

    return half if layout == "half" else interleaved


@inlined
def _rows(turn: Any, kinds: Any, shape: Any, x: Any, out: Any, tables: Any, here: Any) -> None:
    """Rotate every row of x into out, or into x itself, which is `here`.

    x and out are an address and the bytes from row to row along three axes.
    """
    like, near, each, wide = kinds
    cos, sin, table_steps, pairs, sizes, sign, lead = tables
    x_at, x_steps = x
    out_at, out_steps = out
    room = np.empty(2 * max(sizes) if here else 0, np.float64)
    for a in range(shape[0]):
        for b in range(shape[1]):
            for c in range(shape[2]):
                read = x_at + a * x_steps[0] + b * x_steps[1] + c * x_steps[2]
                write = out_at + a * out_steps[0] + b * out_steps[1] + c * out_steps[2]
                row = a * table_steps[0] + b * table_steps[1] + c * table_steps[2]
                at_cos, at_sin = cos + row, sin + row
                if not here:
                    source, target = pointer(read, like), pointer(write, like)
                    for i in range(lead):
                        target[i] = source[i]
                    for i in range(lead + 2 * pairs, shape[3]):
                        target[i] = source[i]
                read, write = read + each * lead, write + each * lead
                for n in sizes:
                    source, target = pointer(read, like), pointer(write, like)
                    near_cos, near_sin = pointer(at_cos, near), pointer(at_sin, near)
                    if here:
                        # Nothing would be vectorised where x and y are in each other's way.
                        rotated = pointer(room.ctypes.data, like)
                        turn(source, rotated, near_cos, near_sin, sign, n)
                        for i in range(2 * n):
                            target[i] = rotated[i]
                    else:
                        turn(source, target, near_cos, near_sin, sign, n)
                    read, write = read + 2 * each * n, write + 2 * each * n
                    at_cos, at_sin = at_cos + wide * n, at_sin + wide * n


def _of_all_rows(turn: Any, dtype: Any, real: Any) -> tuple[Any, Any]:
    """Return the loop over rows, for a way to rotate one: of arrays, and of a block in memory."""
    like, near = dtype.type(0), real.type(0)
    each, wide = dtype.itemsize, real.itemsize

    def of_arrays(
        x: Any, out: Any, cos: Any, sin: Any, sizes: Any, sign: Any, lead: Any, here: Any
    ) -> None:
        # An axis of one broadcasts.
        steps = (
            cos.strides[0] if cos.shape[0] > 1 else 0,
            cos.strides[1] if cos.shape[1] > 1 else 0,
            cos.strides[2] if cos.shape[2] > 1 else 0,
        )
        tables = cos.ctypes.data, sin.ctypes.data, steps, cos.shape[3], sizes, sign, lead
        read, write = (x.ctypes.data, x.strides), (out.ctypes.data, out.strides)
        _rows(turn, (like, near, each, wide), x.shape, read, write, tables, here)

    def of_block(
        x: Any, x_steps: Any, shape: Any, out: Any, table: Any, sizes: Any, sign: Any, lead: Any
    ) -> None:
        cos, sin, apart, pairs = table
        _, b, c, dim = shape
        read = x, (each * x_steps[0], each * x_steps[1], each * x_steps[2])
        write = out, (each * b * c * dim, each * c * dim, each * dim)
        tables = cos, sin, (0, 0, wide * apart), pairs, sizes, sign, lead
        _rows(turn, (like, near, each, wide), shape, read, write, tables, False)

    return of_arrays, of_block


@lru_cache(maxsize=8)
def _kernel(layout: str, dtype: Any, real: Any) -> Any:
    """Return the kernel for elements of a dtype, compiled or read from Numba's cache on disk."""
    kind, wide = numba.from_dtype(dtype), numba.from_dtype(real)
    given = types.Array(kind, RANK, "A", readonly=True)
    table = types.Array(wide, RANK, "A", readonly=True)
    signature = types.void(
        given, types.Array(kind, RANK, "A"), table, table, _SIZES, wide, types.int64, types.boolean
    )
    of_arrays, _ = _of_all_rows(_of_one_row(layout, dtype.name), dtype, real)
    return compiled(signature, of_arrays)


@lru_cache(maxsize=8)
def _kernel_of_blocks(layout: str, dtype: Any, real: Any) -> Any:
    """Return the same for x by its address, and an out and tables that are contiguous."""
    whole, wide = types.int64, numba.from_dtype(real)
    four = types.UniTuple(whole, RANK)
    signature = types.void(whole, four, four, whole, four, _SIZES, wide, whole)
    _, of_block = _of_all_rows(_of_one_row(layout, dtype.name), dtype, real)
    return compiled(signature, of_block)


@lru_cache(maxsize=256)
def _sizes(blocks: tuple[int, ...]) -> npt.NDArray[np.int64]:
    sizes = np.array(blocks, np.int64)
    sizes.flags.writeable = False
    return sizes


def fits(x: npt.NDArray[Any]) -> bool:
    """Whether the kernel can read or write an array as it is."""
    return x.strides[-1] == x.itemsize and x.flags.aligned


def bound(turn: Turn, pairs: int, dtype: Any, real: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel ``(x, out, cos, sin, *more, lead, here)``, and what more it takes."""
    sign = real.type(-1.0 if turn.inverse else 1.0)
    return _kernel(turn.layout, dtype, real), (_sizes(turn.blocks or (pairs,)), sign)


@lru_cache(maxsize=64)
def bound_to_blocks(turn: Turn, pairs: int, dtype: Any, real: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel ``(x, its strides, its shape, out, tables, *more, lead)``, and more.

    x and out are addresses, of rank 4: x with strides in elements, the last of which is 1, and out
    in one piece.  tables are the addresses of cos and sin (seq, pairs), the elements from row to
    row, and pairs.
    """
    sign = real.type(-1.0 if turn.inverse else 1.0)
    return _kernel_of_blocks(turn.layout, dtype, real), (_sizes(turn.blocks or (pairs,)), sign)

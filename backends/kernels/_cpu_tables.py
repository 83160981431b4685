"""Tables on the CPU: the text of :mod:`rotary.exact`, compiled by Numba, entry by entry.

Its bits are those of the generic code, for both are :mod:`rotary.exact.circle` and
:mod:`rotary.exact.power` bound to a library.  LLVM works on eight entries at once and contracts
nothing unless it is told to.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from rotary.backends.kernels import _threads
from rotary.backends.kernels._numba import compiled, inlined, source_of
from rotary.exact import circle, errorfree, power, words

_COMPILED = circle, errorfree, power, words
# Entries that one run of the inner loop has at least: what is left over at its end runs one by one.
_WIDTH = 256
# Below this a second thread costs more than it saves: 16 384 entries take 80 µs.
_LEAST_ENTRIES = 2**15


def _apart(builder: Any) -> Any:
    """Return the name, in LLVM's terms, of the memory that is read and never written.

    A look-up could be anywhere: unless LLVM is told that it is not where the results go, it takes
    one entry after the other.
    """
    module = builder.module
    domain = module.add_metadata(["rotary.tables"])
    return module.add_metadata([module.add_metadata(["read", domain])])


def _reading(typing_context: Any, address: Any, index: Any, like: Any) -> Any:
    """Read the element of like's type `index` places behind an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.inttoptr(arguments[0], arguments[2].type.as_pointer())
        element = builder.load(builder.gep(first, [arguments[1]]))
        element.set_metadata("alias.scope", _apart(builder))
        return element

    return like(address, index, like), generate


def _writing(typing_context: Any, address: Any, index: Any, element: Any) -> Any:
    """Write an element `index` places behind an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.inttoptr(arguments[0], arguments[2].type.as_pointer())
        store = builder.store(arguments[2], builder.gep(first, [arguments[1]]))
        store.set_metadata("noalias", _apart(builder))
        return context.get_dummy_value()

    return types.void(address, index, element), generate


_read: Any = intrinsic(_reading)
_write: Any = intrinsic(_writing)


@inlined
def _rint(x: Any) -> Any:
    return np.rint(x)


@inlined
def _sign(x: Any) -> Any:
    return 1.0 if x > 0 else (-1.0 if x < 0 else 0.0)


@inlined
def _product(a: Any, b: Any) -> Any:
    return a * b


@inlined
def _look_up(table: Any, cell: Any) -> Any:
    # 32 bits: processors convert eight floats at once to those, and few of them to 64.
    index = np.int32(cell) & np.int32(circle.CELLS - 1)
    return _read(table, index, 0.0), _read(table, index + np.int32(circle.CELLS), 0.0)


@inlined
def _two_words(words: Any, i: Any, n: Any) -> Any:
    return _read(words, i, 0.0), _read(words, i + n, 0.0)


_reduce, _, _both, _to_float32 = circle.bind(
    rint=_rint, sign=_sign, look_up=_look_up, product=_product, compiled=inlined
)
_power, _times, _scaled = power.bind(
    rint=_rint, look_up=_look_up, product=_product, compiled=inlined
)


@inlined
def _rounded(high: Any, low: Any, single: Any) -> Any:
    return _to_float32(high, low) if single else high + low


@inlined
def _angle(p: Any, words: Any, i: Any, n: Any) -> Any:
    t0, t1 = _two_words(words, i, n)
    t2, t3 = _two_words(words, i + 2 * n, n)
    return _reduce(p, t0, t1, t2, t3)


@inlined
def _plain(p: Any, words: Any, i: Any, n: Any, tables: Any, single: Any) -> Any:
    cell, a, b, c, d = _angle(p, words, i, n)
    cos, cos_rest, sin, sin_rest = _both(cell, a, b, c, d, tables)
    return _rounded(cos, cos_rest, single), _rounded(sin, sin_rest, single)


@inlined
def _with_scale(p: Any, words: Any, i: Any, n: Any, tables: Any, single: Any, farthest: Any) -> Any:
    cell, a, b, c, d = _angle(p, words, i, n)
    l0, l1 = _two_words(words, i + 4 * n, n)
    fractions, twos = tables + 16 * circle.CELLS, tables + 32 * circle.CELLS
    within = abs(p) <= farthest
    half, high, low = _power(p if within else 0.0, l0, l1, fractions)
    high = high if within else np.nan
    cos, cos_rest, sin, sin_rest = _both(cell, a, b, c, d, tables)
    cos, cos_rest = _times(cos, cos_rest, high, low)
    sin, sin_rest = _times(sin, sin_rest, high, low)
    cos, sin = _rounded(cos, cos_rest, single), _rounded(sin, sin_rest, single)
    return _scaled(cos, half, twos), _scaled(sin, half, twos)


def _of_all_rows(single: bool, scaled: bool, source: int) -> Any:
    """Return the loop over rows of cos and sin, all with the same words."""
    real = np.float32 if single else np.float64

    def rows(
        positions: Any, step: Any, offsets: Any, words: Any, tables: Any, farthest: Any, both: Any
    ) -> None:
        _ = source  # what a function closes over is a part of its key in Numba's cache
        n = offsets.shape[0]
        position, offset = np.intp(positions.ctypes.data), np.intp(offsets.ctypes.data)
        word, table = np.intp(words.ctypes.data), np.intp(tables.ctypes.data)
        cos, sin = np.intp(both[0].ctypes.data), np.intp(both[1].ctypes.data)
        for row in range(both.shape[1]):
            for i in range(n):
                p = _read(position, _read(offset, i, 0), 0.0)
                if scaled:
                    c, s = _with_scale(p, word, i, n, table, single, farthest)
                else:
                    c, s = _plain(p, word, i, n, table, single)
                _write(cos, row * n + i, real(c))
                _write(sin, row * n + i, real(s))
            position += 8 * step

    return rows


@lru_cache(maxsize=4)
def _kernel(single: bool, scaled: bool) -> Any:
    """Return the kernel, compiled or read from Numba's cache on disk."""
    read = types.Array(types.float64, 1, "C", readonly=True)
    words = types.Array(types.float64, 2, "C", readonly=True)
    both = types.Array(types.float32 if single else types.float64, 3, "A")
    offsets = types.Array(types.int64, 1, "C", readonly=True)
    signature = types.void(read, types.int64, offsets, words, words, types.float64, both)
    rows = _of_all_rows(single, scaled, source_of(*_COMPILED))
    return compiled(signature, rows)


def fill(
    both: npt.NDArray[Any],
    positions: npt.NDArray[np.float64],
    axis_of_pair: tuple[int, ...] | None,
    words: npt.NDArray[np.float64],
    tables: npt.NDArray[np.float64],
    farthest: float | None = None,
) -> None:
    """Fill cos and sin, float32 or float64 of shape (2, count, pairs), that lie in one piece.

    positions are (count,), or (axes, count) with the axis of each pair.  words (4, pairs) are the
    turns and tables (2, 1024) a cosine table.  Under XPos, which gives NaN farther from 0 than
    `farthest`, they are (6, pairs) and (6, 1024): below are the exponents, and tables of powers.
    """
    _, count, pairs = both.shape
    if both.size == 0:
        return
    kernel = _kernel(both.dtype == np.float32, farthest is not None)
    flat = np.ascontiguousarray(positions).reshape(-1)
    axes = count * np.array(axis_of_pair or (0,) * pairs)
    # Positions that share a run of the inner loop.
    run = min(count, -(-_WIDTH // pairs))

    def part(first: int, last: int, run: int) -> tuple[Any, ...]:
        offsets = (axes + np.arange(run)[:, None]).reshape(-1)
        target = both[:, first:last].reshape(2, -1, run * pairs)
        return flat[first:], run, offsets, np.tile(words, run), tables, farthest or 0.0, target

    threads = min(_threads.get_num_threads(), max(1, count * pairs // _LEAST_ENTRIES))
    step = -(-(count // run) // threads) * run
    whole = count // run * run
    _threads.run(kernel, [part(n, min(n + step, whole), run) for n in range(0, whole, step)])
    if whole < count:
        kernel(*part(whole, count, count - whole))

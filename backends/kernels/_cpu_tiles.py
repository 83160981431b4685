"""Small matrices in memory that Numba's programs multiply in registers.

Rows lie in memory of the caller's, begin and end with registers, and are handed over as an address
and a step.  BLAS packs its operands anew for each product as small as these, and begins to use
threads of its own at 128 features, where ours run already.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from rotary.backends.kernels._numba import pointer

# Of memory, in the caches.
LINE = 64
# Fused multiply-add is welcome here: outputs are held to a bound and not to bits.
_FAST = {"contract"}

# No step is called from Python: wrappers for that took a fifth of the time to compile.
_njit = partial(numba.njit, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
step = _njit()
fused_step = _njit(fastmath=_FAST)
_summing_step = _njit(fastmath={"contract", "reassoc", "nsz"})

_FEATURES = llvmlite.binding.get_host_cpu_features()
# Bytes of a register.  The sums of a tile are ROWS·VECTORS of 32 or, with AVX, 16 registers.
REGISTER = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
ROWS = 4 if REGISTER == 32 else 8
VECTORS = 2


class Rows(NamedTuple):
    """Numbers in memory: each row's lie side by side."""

    at: int
    """Address of the first row."""
    step: int
    """Bytes from one row to the next."""


# -- tiles in registers ----------------------------------------------------------------------------


@intrinsic
def bytes_of(typing_context: Any, like: Any) -> Any:
    """Return how many bytes a number of like's type has."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.int64, signature.args[0].bitwidth // 8)

    return types.int64(like), generate


class _Vectors:
    """Vectors of one dtype in a program that is being built; addresses and strides are bytes."""

    def __init__(self, context: Any, builder: Any, kind: Any) -> None:
        self.builder = builder
        self.number = context.get_value_type(kind)
        self.bytes = kind.bitwidth // 8
        self.lanes = REGISTER // self.bytes
        self.type = ir.VectorType(self.number, self.lanes)

    def at(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Any, n: int = 0) -> Any:
        address = self.builder.add(address, ir.Constant(ir.IntType(64), n * REGISTER))
        return self.builder.load(self.at(address, self.type), align=self.bytes, typ=self.type)

    def store(self, value: Any, address: Any, n: int = 0) -> None:
        address = self.builder.add(address, ir.Constant(ir.IntType(64), n * REGISTER))
        self.builder.store(value, self.at(address, self.type), align=self.bytes)

    def everywhere(self, value: Any) -> Any:
        """Return a vector of one number."""
        alone = self.builder.insert_element(
            ir.Constant(self.type, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        return self.shuffle(alone, alone, [0] * self.lanes)

    def number_at(self, address: Any) -> Any:
        number = self.builder.load(self.at(address, self.number), align=self.bytes, typ=self.number)
        return self.everywhere(number)

    def shuffle(self, x: Any, y: Any, places: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), places)
        return self.builder.shuffle_vector(x, y, mask)

    def add_product(self, total: Any, x: Any, y: Any) -> Any:
        flags = ("contract",)
        return self.builder.fadd(total, self.builder.fmul(x, y, flags=flags), flags=flags)


def _product(rows: int, vectors: int, mode: str) -> Any:
    """Return a tile of C = A B: that many rows, and vectors of its columns.

    a_row and a_step are the strides of A along its rows and along the sum, b_step that of B along
    the sum, whose columns lie side by side.  By its mode the tile is stored, added to C, or added
    to S = w C by Kahan's sum, whose low words lie at `low` as C does.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, a, a_row, a_step, b, b_step, c, c_row, low, weight, count = arguments
        v = _Vectors(context, builder, signature.args[0])
        zero, one = ir.Constant(ir.IntType(64), 0), ir.Constant(ir.IntType(64), 1)
        a_rows, c_rows = [a], [zero]
        for _ in range(rows - 1):
            a_rows.append(builder.add(a_rows[-1], a_row))
            c_rows.append(builder.add(c_rows[-1], c_row))
        before, loop = builder.block, builder.append_basic_block("sum")
        builder.branch(loop)
        builder.position_at_end(loop)
        n, along_a, along_b = (builder.phi(ir.IntType(64)) for _ in range(3))
        totals = [[builder.phi(v.type) for _ in range(vectors)] for _ in range(rows)]
        nothing = ir.Constant(v.type, [0.0] * v.lanes)
        columns = [v.load(builder.add(b, along_b), j) for j in range(vectors)]
        found = []
        for i in range(rows):
            left = v.number_at(builder.add(a_rows[i], along_a))
            found.append([v.add_product(totals[i][j], left, columns[j]) for j in range(vectors)])
        following = builder.add(n, one)
        steps = [
            (n, zero, following),
            (along_a, zero, builder.add(along_a, a_step)),
            (along_b, zero, builder.add(along_b, b_step)),
        ]
        for i in range(rows):
            steps += [(totals[i][j], nothing, found[i][j]) for j in range(vectors)]
        for phi, first, then in steps:
            phi.add_incoming(first, before)
            phi.add_incoming(then, loop)
        after = builder.append_basic_block("summed")
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        weight = v.everywhere(weight) if mode == "keep" else None
        for i in range(rows):
            for j in range(vectors):
                place = builder.add(c, c_rows[i])
                total = found[i][j]
                if mode == "add":
                    total = builder.fadd(v.load(place, j), total)
                if mode == "keep":
                    place_low = builder.add(low, c_rows[i])
                    held = builder.fmul(v.load(place, j), weight)
                    lost = builder.fmul(v.load(place_low, j), weight)
                    change = builder.fadd(total, lost)
                    total = builder.fadd(held, change)
                    v.store(builder.fsub(change, builder.fsub(total, held)), place_low, j)
                v.store(total, place, j)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typing_context: Any,
        like: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_step: Any,
        c: Any,
        c_row: Any,
        low: Any,
        weight: Any,
        count: Any,
    ) -> Any:
        whole = types.int64
        places = (whole,) * 8
        return types.void(like, *places, like, whole), generate

    return tile


_store_wide, _store_one = _product(ROWS, VECTORS, "store"), _product(ROWS, 1, "store")
_add_wide, _add_one = _product(ROWS, VECTORS, "add"), _product(ROWS, 1, "add")
_keep_wide, _keep_one = _product(ROWS, VECTORS, "keep"), _product(ROWS, 1, "keep")


@intrinsic
def _move(typing_context: Any, like: Any, x: Any, y: Any) -> Any:
    """Copy a register of numbers from x to y."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = _Vectors(context, builder, signature.args[0])
        v.store(v.load(arguments[1]), arguments[2])
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64), generate


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the line of memory at an address, which need not exist.

    Bursts of it wait for each other, so that they are spread over what is computed meanwhile.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (pointer, number, number, number))
        ask = builder.module.globals.get("llvm.prefetch.p0")
        if ask is None:
            ask = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        to_read, near, data = (ir.Constant(number, n) for n in (0, 3, 1))
        builder.call(ask, (builder.inttoptr(arguments[0], pointer), to_read, near, data))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _transposed(typing_context: Any, like: Any, x: Any, x_row: Any, y: Any, y_row: Any) -> Any:
    """Write the transpose of a square at x, as wide as a register, to y."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, x, x_row, y, y_row = arguments
        v = _Vectors(context, builder, signature.args[0])
        rows = []
        for _ in range(v.lanes):
            rows.append(v.load(x))
            x = builder.add(x, x_row)
        step = 1
        while step < v.lanes:  # squares of `step` change places with those across the diagonal
            for i in range(v.lanes):
                if not i & step:
                    up = [n + v.lanes - step if n & step else n for n in range(v.lanes)]
                    down = [n + v.lanes if n & step else n + step for n in range(v.lanes)]
                    pair = rows[i], rows[i + step]
                    rows[i], rows[i + step] = v.shuffle(*pair, up), v.shuffle(*pair, down)
            step *= 2
        for row in rows:
            v.store(row, y)
            y = builder.add(y, y_row)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(like, whole, whole, whole, whole), generate


# -- rows ------------------------------------------------------------------------------------------


@step
def row(x: Any, n: Any, like: Any) -> Any:
    return pointer(x.at + n * x.step, like)


@step
def rows_from(x: Any, n: Any) -> Any:
    """Return the rows from the nth on."""
    return Rows(x.at + n * x.step, x.step)


@step
def clear(x: Any, first: Any, last: Any, n: Any, like: Any) -> None:
    """Set n numbers of the rows first … last − 1 to zero."""
    for i in range(first, last):
        p = row(x, i, like)
        for j in range(n):
            p[j] = like


@step
def copy(x: Any, y: Any, m: Any, n: Any, like: Any) -> None:
    """Copy m rows of n numbers from x to y."""
    each = bytes_of(like)
    whole = n * each // REGISTER * REGISTER
    for i in range(m):
        source, target = x.at + i * x.step, y.at + i * y.step
        for j in range(0, whole, REGISTER):
            _move(like, source + j, target + j)
        p, q = pointer(source + whole, like), pointer(target + whole, like)
        for j in range(n - whole // each):
            q[j] = p[j]


@step
def transpose(x: Any, y: Any, rows: Any, n: Any, like: Any) -> None:
    """Write the transpose of rows × n numbers, both whole registers, to y."""
    each = bytes_of(like)
    lanes = REGISTER // each
    for i in range(0, rows, lanes):
        for j in range(0, n, lanes):
            square = y.at + j * y.step + i * each
            _transposed(like, x.at + i * x.step + j * each, x.step, square, y.step)


@step
def store(a: Any, b: Any, c: Any, width: Any, count: Any, like: Any) -> None:
    """C = A B for ROWS rows and columns that are `width` bytes wide."""
    each, wide, j = bytes_of(like), VECTORS * REGISTER, 0
    while j + wide <= width:
        _store_wide(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += wide
    while j < width:
        _store_one(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += REGISTER


@step
def add(a: Any, b: Any, c: Any, width: Any, count: Any, like: Any) -> None:
    """C ← C + A B, as `store`."""
    each, wide, j = bytes_of(like), VECTORS * REGISTER, 0
    while j + wide <= width:
        _add_wide(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += wide
    while j < width:
        _add_one(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += REGISTER


@step
def keep(k: Any, v: Any, s: Any, low: Any, i: Any, weight: Any, m: Any, like: Any) -> None:
    """S ← w S + Kᵀ V for ROWS rows of S from the ith on, compensated (Kahan 1965)."""
    each, wide, j = bytes_of(like), VECTORS * REGISTER, 0
    a, at, low_at, step = k.at + i * each, s.at + i * s.step, low.at + i * s.step, s.step
    while j + wide <= step:
        _keep_wide(like, a, each, k.step, v.at + j, step, at + j, step, low_at + j, weight, m)
        j += wide
    while j < step:
        _keep_one(like, a, each, k.step, v.at + j, step, at + j, step, low_at + j, weight, m)
        j += REGISTER


# -- numbers ---------------------------------------------------------------------------------------


def exp(x: Any) -> Any:
    """Return e^x, x at most 88, to an ulp or two, in operations that compilers make vectors of."""
    raise NotImplementedError


@overload(exp, jit_options={"fastmath": _FAST})
def _(x: Any) -> Any:
    if x == types.float32:
        magic = np.float32(1.5 * 2.0**23)  # added, it leaves a whole number in the low bits
        high, low = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
        log2_e, least, one = np.float32(1 / math.log(2)), np.float32(-104.0), np.float32(1.0)
        c2, c3, c4, c5, c6, c7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))

        def of_float32(x: Any) -> Any:
            x = least if x < least else x  # NaN stays
            turned = np.float32(x * log2_e + magic)
            n = np.float32(turned - magic)
            r = (x - n * high) - n * low
            y = c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7))))
            y = one + (r + r * r * y)
            whole = np.int32(turned.view(np.int32) - np.int32(0x4B400000))
            half = np.int32(whole >> np.int32(1))
            rest = np.int32(whole - half)
            # In two steps: the result may be subnormal.
            first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
            last = np.int32((rest + np.int32(127)) << np.int32(23)).view(np.float32)
            return np.float32(np.float32(y * first) * last)

        return of_float32

    wide_high = float.fromhex("0x1.62e42fee00000p-1")
    wide_low = float.fromhex("0x1.a39ef35793c76p-33")
    wide_log2_e, wide_magic = 1 / math.log(2), 1.5 * 2.0**52
    d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13 = (
        1 / math.factorial(n) for n in range(2, 14)
    )

    def of_float64(x: Any) -> Any:
        x = -746.0 if x < -746.0 else x
        turned = np.float64(x * wide_log2_e + wide_magic)
        n = turned - wide_magic
        r = (x - n * wide_high) - n * wide_low
        y = d8 + r * (d9 + r * (d10 + r * (d11 + r * (d12 + r * d13))))
        y = d2 + r * (d3 + r * (d4 + r * (d5 + r * (d6 + r * (d7 + r * y)))))
        y = 1.0 + (r + r * r * y)
        whole = turned.view(np.int64) - np.int64(0x4338000000000000)
        half = whole >> np.int64(1)
        first = np.int64((half + np.int64(1023)) << np.int64(52)).view(np.float64)
        last = np.int64((whole - half + np.int64(1023)) << np.int64(52)).view(np.float64)
        return (y * first) * last

    return of_float64


@_summing_step
def sum_of(x: Any, n: Any, like: Any) -> Any:
    total = like
    for i in range(n):
        total += x[i]
    return total


@_summing_step
def dot(x: Any, y: Any, n: Any, like: Any) -> Any:
    total = like
    for i in range(n):
        total += x[i] * y[i]
    return total


@step
def add_in_two_words(high: Any, low: Any, x: Any, x_low: Any) -> Any:
    """Return high + low + x + x_low as two words (Knuth 1969)."""
    total = high + x
    back = total - high
    return total, low + (x_low + ((high - (total - back)) + (x - back)))

"""The chunks of causal linear attention on the CPU, compiled by Numba.

A row, which is a batch row and a head of the keys, is a loop over chunks of C tokens with the state
S of all before them (GLA, arXiv 2312.06635, section 3.2), the mathematics of
:mod:`rotary.linear.chunks`:

    o = (Q ⊙ e^c) S + [(Q Kᵀ) ⊙ L] V,   S ← e^{c_C} S + (K ⊙ e^{c_C − c})ᵀ V,   L_ij = e^{c_i − c_j}

A chunk is copied into small buffers, where it is mapped and rotated; every product there is made of
tiles that stay in registers.  BLAS packs its operands anew for each product as small as these, and
begins to use threads of its own at 128 features, where ours run already.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from rotary.backends._protocol import Chunked, Memory
from rotary.backends.kernels import _threads
from rotary.backends.kernels._numba import compiled
from rotary.dtypes import dtype_name

# Tokens a chunk: fewer are more sums of the state, more are more scores within the chunk.
CHUNK = 32
# Tokens that 16-bit inputs are widened for at a time; whole chunks.
_BLOCK = 32 * CHUNK
# Below this a second thread costs more than it saves.
_THREADED_BYTES = 2**18
# Of memory, in the caches.
_LINE = 64
# Fused multiply-add is welcome here: outputs are held to a bound and not to bits.
_FAST = {"contract"}

# No step is called from Python: wrappers for that took a fifth of the time to compile.
_njit = partial(numba.njit, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
_step = _njit()
_fused_step = _njit(fastmath=_FAST)
_summing_step = _njit(fastmath={"contract", "reassoc", "nsz"})

_FEATURES = llvmlite.binding.get_host_cpu_features()
# Bytes of a register.  The sums of a tile are ROWS·VECTORS of 32 or, with AVX, 16 registers.
_REGISTER = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
ROWS = 4 if _REGISTER == 32 else 8
VECTORS = 2
# Bytes that features fill up: of whole registers, and of numbers for the rows of tiles.
_WIDEST = max(_REGISTER, 8 * ROWS)

_MAPS = {"identity": 0, "elu+1": 1, "relu": 2, "relu2": 3, "exp": 4}
_PLACEMENTS = {None: 0, "before_map": 1, "numerator": 2, "both": 3}
_IDENTITY, _ELU_1, _RELU, _RELU2, _EXP = _MAPS.values()
_NOWHERE, _BEFORE_MAP, _NUMERATOR, _BOTH = _PLACEMENTS.values()
_LEAST_GATE = -1000.0  # as rotary.linear.decays.LEAST: e^−1000 is 0
_EXP_LIMIT = 32.0  # as rotary.linear.feature_maps.EXP_LIMIT


class Rows(NamedTuple):
    """Numbers in memory: each row's lie side by side."""

    at: int
    """Address of the first row."""
    step: int
    """Bytes from one row to the next."""


class Kind(NamedTuple):
    """What is computed, in whole numbers."""

    feature_map: int
    placement: int
    interleaved: int
    lead: int
    """Features before those that rotate."""
    pairs: int
    normal: int
    """Whether there is a normaliser."""
    gated: int


class Sizes(NamedTuple):
    """Of a row."""

    tokens: int
    group: int
    """Queries for each key; 0 without any."""
    dim: int
    features: int
    """dim and what fills registers and tiles."""
    width: int
    """Of values."""


class Source(NamedTuple):
    """The inputs and outputs of a row; their rows are tokens."""

    q: Rows
    next_q: int
    """Bytes from a query of a group to the next; below, those of its outputs."""
    out: Rows
    next_out: int
    k: Rows
    v: Rows
    cos: Rows
    sin: Rows
    key_cos: Rows
    key_sin: Rows
    mask: Rows
    """No address: all tokens take part."""
    gate: Rows
    gate_low: Rows
    """No address: none."""


class Buffers(NamedTuple):
    """What a chunk works with, and the sums; the rows begin and end with registers."""

    state: Rows
    state_low: Rows
    total: Rows
    """The normaliser, one row, its low words, and what a chunk adds."""
    total_low: Rows
    update: Rows
    q: Rows
    k: Rows
    k_t: Rows
    """k transposed."""
    v: Rows
    scores: Rows
    out: Rows
    plain_q: Rows
    """What the normaliser takes; the same memory where it takes the same."""
    plain_k: Rows
    plain_k_t: Rows
    plain_scores: Rows
    divisors: Rows
    """A number for each token, as `since` and `until` are."""
    since: Rows
    until: Rows
    c: Rows
    """Sums of log gates, float64, in two words."""
    c_low: Rows
    within: Rows


# -- tiles in registers ----------------------------------------------------------------------------


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers of like's type, which lie side by side."""
    kind = types.CPointer(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, like), generate


@intrinsic
def _bytes(typing_context: Any, like: Any) -> Any:
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
        self.lanes = _REGISTER // self.bytes
        self.type = ir.VectorType(self.number, self.lanes)

    def at(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Any, n: int = 0) -> Any:
        address = self.builder.add(address, ir.Constant(ir.IntType(64), n * _REGISTER))
        return self.builder.load(self.at(address, self.type), align=self.bytes, typ=self.type)

    def store(self, value: Any, address: Any, n: int = 0) -> None:
        address = self.builder.add(address, ir.Constant(ir.IntType(64), n * _REGISTER))
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
def _prefetch(typing_context: Any, address: Any) -> Any:
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


# -- numbers ---------------------------------------------------------------------------------------


def _exp(x: Any) -> Any:
    """Return e^x, x at most 88, to an ulp or two, in operations that compilers make vectors of."""
    raise NotImplementedError


@overload(_exp, jit_options={"fastmath": _FAST})
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
def _sum(x: Any, n: Any, like: Any) -> Any:
    total = like
    for i in range(n):
        total += x[i]
    return total


@_summing_step
def _dot(x: Any, y: Any, n: Any, like: Any) -> Any:
    total = like
    for i in range(n):
        total += x[i] * y[i]
    return total


@_step
def _add_in_two_words(high: Any, low: Any, x: Any, x_low: Any) -> Any:
    """Return high + low + x + x_low as two words (Knuth 1969)."""
    total = high + x
    back = total - high
    return total, low + (x_low + ((high - (total - back)) + (x - back)))


# -- steps of a chunk ------------------------------------------------------------------------------


@_step
def _row(x: Any, n: Any, like: Any) -> Any:
    return _pointer(x.at + n * x.step, like)


@_step
def _from(x: Any, n: Any) -> Any:
    """Return the rows from the nth on."""
    return Rows(x.at + n * x.step, x.step)


@_step
def _clear(x: Any, first: Any, last: Any, n: Any, like: Any) -> None:
    """Set n numbers of the rows first … last − 1 to zero."""
    for i in range(first, last):
        p = _row(x, i, like)
        for j in range(n):
            p[j] = like


@_step
def _copy(x: Any, y: Any, m: Any, n: Any, like: Any) -> None:
    """Copy m rows of n numbers from x to y."""
    each = _bytes(like)
    whole = n * each // _REGISTER * _REGISTER
    for i in range(m):
        source, target = x.at + i * x.step, y.at + i * y.step
        for j in range(0, whole, _REGISTER):
            _move(like, source + j, target + j)
        p, q = _pointer(source + whole, like), _pointer(target + whole, like)
        for j in range(n - whole // each):
            q[j] = p[j]


@_step
def _ask(x: Any, i: Any, rows: Any, nbytes: Any) -> None:
    """Ask for the tokens of a chunk that fall to a tile of rows, the ith and those behind it."""
    for n in range(i * CHUNK // rows, (i + ROWS) * CHUNK // rows):
        for j in range(0, nbytes, _LINE):
            _prefetch(x.at + n * x.step + j)


@_fused_step
def _map(x: Any, n: Any, feature_map: Any, scale: Any, like: Any) -> None:
    """Take the feature map of n numbers where they are, and multiply by scale."""
    p, zero, one = _pointer(x.at, like), like, type(scale)(1.0)
    if feature_map == _ELU_1:
        for i in range(n):
            y = p[i]
            p[i] = (y if y > zero else zero) + _exp(zero if y > zero else y)
    elif feature_map == _RELU:
        for i in range(n):
            y = p[i]
            p[i] = zero if y < zero else y  # NaN stays
    elif feature_map == _RELU2:
        for i in range(n):
            y = p[i]
            y = zero if y < zero else y
            p[i] = y * y
    elif feature_map == _EXP:
        limit = type(scale)(_EXP_LIMIT)
        for i in range(n):
            y = p[i]
            p[i] = _exp(limit if y > limit else y)
    if scale != one:
        for i in range(n):
            p[i] *= scale


@_fused_step
def _turn(x: Any, cos: Any, sin: Any, m: Any, kind: Any, like: Any) -> None:
    """Rotate m rows where they are."""
    n, lead = kind.pairs, kind.lead * _bytes(like)
    for i in range(m):
        p = _pointer(x.at + i * x.step + lead, like)
        c, s = _row(cos, i, like), _row(sin, i, like)
        if kind.interleaved:
            for j in range(n):
                first, second = p[2 * j], p[2 * j + 1]
                p[2 * j] = first * c[j] - second * s[j]
                p[2 * j + 1] = first * s[j] + second * c[j]
        else:
            for j in range(n):
                first, second = p[j], p[n + j]
                p[j] = first * c[j] - second * s[j]
                p[n + j] = first * s[j] + second * c[j]


@_step
def _transpose(x: Any, y: Any, rows: Any, n: Any, like: Any) -> None:
    """Write the transpose of rows × n numbers, both whole registers, to y."""
    each = _bytes(like)
    lanes = _REGISTER // each
    for i in range(0, rows, lanes):
        for j in range(0, n, lanes):
            square = y.at + j * y.step + i * each
            _transposed(like, x.at + i * x.step + j * each, x.step, square, y.step)


@_step
def _store(a: Any, b: Any, c: Any, width: Any, count: Any, like: Any) -> None:
    """C = A B for ROWS rows and columns that are `width` bytes wide."""
    each, wide, j = _bytes(like), VECTORS * _REGISTER, 0
    while j + wide <= width:
        _store_wide(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += wide
    while j < width:
        _store_one(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += _REGISTER


@_step
def _add(a: Any, b: Any, c: Any, width: Any, count: Any, like: Any) -> None:
    """C ← C + A B, as `_store`."""
    each, wide, j = _bytes(like), VECTORS * _REGISTER, 0
    while j + wide <= width:
        _add_wide(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += wide
    while j < width:
        _add_one(like, a.at, a.step, each, b.at + j, b.step, c.at + j, c.step, 0, like, count)
        j += _REGISTER


@_step
def _keep(k: Any, v: Any, s: Any, low: Any, i: Any, weight: Any, m: Any, like: Any) -> None:
    """S ← w S + Kᵀ V for ROWS rows of S from the ith on, compensated (Kahan 1965)."""
    each, wide, j = _bytes(like), VECTORS * _REGISTER, 0
    a, at, low_at, step = k.at + i * each, s.at + i * s.step, low.at + i * s.step, s.step
    while j + wide <= step:
        _keep_wide(like, a, each, k.step, v.at + j, step, at + j, step, low_at + j, weight, m)
        j += wide
    while j < step:
        _keep_one(like, a, each, k.step, v.at + j, step, at + j, step, low_at + j, weight, m)
        j += _REGISTER


@_fused_step
def _scores(q: Any, k_t: Any, out: Any, within: Any, gated: Any, m: Any, n: Any, like: Any) -> None:
    """(Q Kᵀ) ⊙ L for m rows, in the columns of tokens that a tile of rows sees."""
    each = _bytes(like)
    for first in range(0, m, ROWS):
        last = first + ROWS
        width = -(-last * each // _REGISTER) * _REGISTER
        _store(_from(q, first), k_t, _from(out, first), width, n, like)
        for i in range(first, last):
            p, w = _row(out, i, like), _row(within, i, like)
            if gated:
                for j in range(i + 1):
                    p[j] *= w[j]
            for j in range(i + 1, last):
                p[j] = like


@_fused_step
def _scale_rows(x: Any, weights: Any, m: Any, n: Any, like: Any) -> None:
    w = _row(weights, 0, like)
    for i in range(m):
        p, by = _row(x, i, like), w[i]
        for j in range(n):
            p[j] *= by


@_step
def _falling(x: Any) -> Any:
    """Return a log decay: rounding may not make it a growth.  NaN stays."""
    return np.float64(0.0) if x > np.float64(0.0) else x


@_step
def _decays(x: Any, buffers: Any, m: Any, like: Any) -> Any:
    """Write the decays of a chunk, and return e^{c_C} and c_C in two words."""
    least, zero = np.float64(_LEAST_GATE), np.float64(0.0)
    high, low = _row(buffers.c, 0, zero), _row(buffers.c_low, 0, zero)
    since, until = _row(buffers.since, 0, like), _row(buffers.until, 0, like)
    total, rest = zero, zero
    for i in range(m):
        gate = np.float64(_row(x.gate, i, like)[0])
        gate = least if gate < least else gate
        gate_low = np.float64(_row(x.gate_low, i, like)[0]) if x.gate_low.at else zero
        total, rest = _add_in_two_words(total, rest, gate, gate_low)
        high[i], low[i] = total, rest
    for i in range(m):
        since[i] = _falling(high[i] + low[i])
        until[i] = _falling((total - high[i]) + (rest - low[i]))
    for i in range(m):
        since[i], until[i] = _exp(since[i]), _exp(until[i])
        w, here, here_low = _row(buffers.within, i, like), high[i], low[i]
        for j in range(i + 1):
            w[j] = _falling((here - high[j]) + (here_low - low[j]))
        for j in range(i + 1):
            w[j] = _exp(w[j])
    return since[m - 1], total, rest


@_step
def _take_keys(x: Any, sizes: Any, kind: Any, buffers: Any, m: Any, rows: Any, like: Any) -> None:
    """Map, mask and rotate a chunk's keys, and select its values; zeros for missing rows."""
    k, v, plain, features = buffers.k, buffers.v, buffers.plain_k, sizes.features
    lanes = _REGISTER // _bytes(like)
    square = -(-rows // lanes) * lanes
    _copy(x.k, k, m, sizes.dim, like)
    _copy(x.v, v, m, sizes.width, like)
    _clear(k, m, square, features, like)
    _clear(v, m, rows, sizes.width, like)
    if kind.placement == _BEFORE_MAP:
        _turn(k, x.key_cos, x.key_sin, m, kind, like)
    _map(k, m * features, kind.feature_map, type(like)(1.0), like)
    if x.mask.at:  # after the map: φ(0) need not be 0
        for i in range(m):
            if not _row(x.mask, i, np.uint8(0))[0]:
                _clear(k, i, i + 1, features, like)
                _clear(v, i, i + 1, sizes.width, like)
    if plain.at != k.at:
        _copy(k, plain, square, features, like)
        if sizes.group:
            _transpose(plain, buffers.plain_k_t, square, features, like)
    if kind.placement >= _NUMERATOR:
        _turn(k, x.key_cos, x.key_sin, m, kind, like)
    if sizes.group:
        _transpose(k, buffers.k_t, square, features, like)


@_step
def _take_queries(
    x: Any, q: Any, sizes: Any, kind: Any, buffers: Any, m: Any, rows: Any, scale: Any, like: Any
) -> None:
    """Map and rotate the queries q of a chunk."""
    y, plain = buffers.q, buffers.plain_q
    _copy(q, y, m, sizes.dim, like)
    _clear(y, m, rows, sizes.features, like)
    if kind.placement == _BEFORE_MAP:
        _turn(y, x.cos, x.sin, m, kind, like)
    _map(y, m * sizes.features, kind.feature_map, scale, like)
    if plain.at != y.at:
        _copy(y, plain, rows, sizes.features, like)
    if kind.placement >= _NUMERATOR:
        _turn(y, x.cos, x.sin, m, kind, like)


@_fused_step
def _divide(sizes: Any, kind: Any, buffers: Any, m: Any, rows: Any, eps: Any, like: Any) -> None:
    """Write 1/(Σ_j L_ij (q_i·k_j) + e^{c_i} q_i·z + ε)."""
    if buffers.plain_q.at != buffers.q.at:
        _scores(
            buffers.plain_q,
            buffers.plain_k_t,
            buffers.plain_scores,
            buffers.within,
            kind.gated,
            rows,
            sizes.dim,
            like,
        )
    total, divisors = _row(buffers.total, 0, like), _row(buffers.divisors, 0, like)
    since = _row(buffers.since, 0, like)
    for i in range(m):
        own = _sum(_row(buffers.plain_scores, i, like), i + 1, like)
        past = _dot(_row(buffers.plain_q, i, like), total, sizes.dim, like)
        past = past * since[i] if kind.gated else past
        divisors[i] = type(eps)(1.0) / ((own + past) + eps)


@_fused_step
def _attend_queries(
    out: Any,
    next_q: Any,
    sizes: Any,
    kind: Any,
    buffers: Any,
    m: Any,
    rows: Any,
    eps: Any,
    like: Any,
) -> None:
    """Write the outputs of a chunk's queries."""
    y, each = buffers.out, _bytes(like)
    scores, state = buffers.scores, buffers.state
    _scores(buffers.q, buffers.k_t, scores, buffers.within, kind.gated, rows, sizes.dim, like)
    if kind.normal:
        _divide(sizes, kind, buffers, m, rows, eps, like)
    for i in range(0, rows, ROWS):
        _ask(next_q, i, rows, sizes.dim * each)
        _ask(out, i, rows, sizes.width * each)
        _store(_from(buffers.q, i), state, _from(y, i), state.step, sizes.dim, like)
    if kind.gated:
        _scale_rows(y, buffers.since, m, sizes.width, like)
    for i in range(0, rows, ROWS):  # tokens after a tile's rows are not seen
        seen = min(i + ROWS, m)
        _add(_from(scores, i), buffers.v, _from(y, i), state.step, seen, like)
    divisors = _row(buffers.divisors, 0, like)
    for i in range(m):
        p, q, by = _row(y, i, like), _row(out, i, like), type(eps)(1.0)
        by = divisors[i] if kind.normal else by
        for j in range(sizes.width):
            q[j] = p[j] * by


@_fused_step
def _absorb(
    next_k: Any, next_v: Any, sizes: Any, kind: Any, buffers: Any, m: Any, weight: Any, like: Any
) -> None:
    """Add a chunk to the sums, which decay by weight."""
    k, plain, features, each = buffers.k, buffers.plain_k, sizes.features, _bytes(like)
    if kind.gated:
        _scale_rows(k, buffers.until, m, features, like)
        if plain.at != k.at:
            _scale_rows(plain, buffers.until, m, features, like)
    for i in range(0, features, ROWS):
        _ask(next_k, i, features, sizes.dim * each)
        _ask(next_v, i, features, sizes.width * each)
        _keep(k, buffers.v, buffers.state, buffers.state_low, i, weight, m, like)
    if kind.normal:
        _clear(buffers.update, 0, 1, features, like)
        update, total = _row(buffers.update, 0, like), _row(buffers.total, 0, like)
        low = _row(buffers.total_low, 0, like)
        for i in range(m):
            p = _row(plain, i, like)
            for j in range(features):
                update[j] += p[j]
        for j in range(features):
            held, change = total[j] * weight, update[j] + low[j] * weight
            total[j] = held + change
            low[j] = change - (total[j] - held)


# -- rows ------------------------------------------------------------------------------------------


@register_jitable
def _room(at: Any, rows: Any, step: Any) -> Any:
    """Return rows at an address, and the address behind them."""
    return Rows(at, step), at + rows * step


@register_jitable
def _buffers(at: Any, sizes: Any, kind: Any, each: Any) -> Any:
    """Return the buffers from an address on, and the address behind them."""
    features = sizes.features
    by_feature, by_token = features * each, CHUNK * each
    by_value = -(-sizes.width * each // _REGISTER) * _REGISTER
    state, at = _room(at, features, by_value)
    state_low, at = _room(at, features, by_value)
    total, at = _room(at, 1, by_feature)
    total_low, at = _room(at, 1, by_feature)
    update, at = _room(at, 1, by_feature)
    q, at = _room(at, CHUNK, by_feature)
    k, at = _room(at, CHUNK, by_feature)
    k_t, at = _room(at, features, by_token)
    v, at = _room(at, CHUNK, by_value)
    scores, at = _room(at, CHUNK, by_token)
    out, at = _room(at, CHUNK, by_value)
    plain_q, plain_k, plain_k_t, plain_scores = q, k, k_t, scores
    if kind.normal and kind.placement == _NUMERATOR:
        plain_q, at = _room(at, CHUNK, by_feature)
        plain_k, at = _room(at, CHUNK, by_feature)
        plain_k_t, at = _room(at, features, by_token)
        plain_scores, at = _room(at, CHUNK, by_token)
    divisors, at = _room(at, 1, by_token)
    since, at = _room(at, 1, by_token)
    until, at = _room(at, 1, by_token)
    c, at = _room(at, 1, CHUNK * 8)
    c_low, at = _room(at, 1, CHUNK * 8)
    within, at = _room(at, CHUNK, by_token)
    return Buffers(
        state,
        state_low,
        total,
        total_low,
        update,
        q,
        k,
        k_t,
        v,
        scores,
        out,
        plain_q,
        plain_k,
        plain_k_t,
        plain_scores,
        divisors,
        since,
        until,
        c,
        c_low,
        within,
    ), at


@_step
def _tokens(x: Any, b: Any, h: Any) -> Any:
    """Return the tokens of a row of (batch or 1, heads, tokens, …); no address for no numbers."""
    at = 0
    if x.size:
        at = x.ctypes.data + (b if x.shape[0] > 1 else 0) * x.strides[0] + h * x.strides[1]
    return Rows(at, x.strides[2])


@_step
def _later(x: Any, t: Any) -> Any:
    """Return a row's source from token t on."""
    q, out = _from(x.q, t), _from(x.out, t)
    mask, gate_low = x.mask, x.gate_low
    if mask.at:
        mask = _from(mask, t)
    if gate_low.at:
        gate_low = _from(gate_low, t)
    return Source(
        q,
        x.next_q,
        out,
        x.next_out,
        _from(x.k, t),
        _from(x.v, t),
        _from(x.cos, t),
        _from(x.sin, t),
        _from(x.key_cos, t),
        _from(x.key_sin, t),
        mask,
        _from(x.gate, t),
        gate_low,
    )


@_step
def _over_tokens(
    whole: Any, sizes: Any, kind: Any, buffers: Any, log: Any, scale: Any, eps: Any
) -> None:
    """Run a row's loop over chunks; log holds the sum of its log gates in two words, or nothing."""
    like = type(scale)(0.0)
    for t in range(0, sizes.tokens, CHUNK):
        x, later, m = _later(whole, t), _later(whole, t + CHUNK), min(CHUNK, sizes.tokens - t)
        rows = -(-m // ROWS) * ROWS
        _take_keys(x, sizes, kind, buffers, m, rows, like)
        weight = type(scale)(1.0)
        if kind.gated:
            weight, c, c_low = _decays(x, buffers, m, like)
            if log.size:
                high = type(scale)(c)
                low = type(scale)((c - np.float64(high)) + c_low)
                log[0], log[1] = _add_in_two_words(log[0], log[1], high, low)
        for g in range(sizes.group):
            q = Rows(x.q.at + g * x.next_q, x.q.step)
            out = Rows(x.out.at + g * x.next_out, x.out.step)
            following = later.q
            if g + 1 < sizes.group:
                following = Rows(q.at + x.next_q, q.step)
            _take_queries(x, q, sizes, kind, buffers, m, rows, scale, like)
            _attend_queries(out, following, sizes, kind, buffers, m, rows, eps, like)
        _absorb(later.k, later.v, sizes, kind, buffers, m, weight, like)


def _rows(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    cos: Any,
    sin: Any,
    key_cos: Any,
    key_sin: Any,
    mask: Any,
    gate: Any,
    gate_low: Any,
    high: Any,
    low: Any,
    z: Any,
    log: Any,
    work: Any,
    first: Any,
    last: Any,
    sizes: Any,
    kind: Any,
    scale: Any,
    eps: Any,
) -> None:
    """Attend with the rows `first` to `last`; high … log hold the sums, and take the new ones.

    What is not there has no numbers.
    """
    like, each, heads = type(scale)(0.0), work.itemsize, k.shape[1]
    dim, width, features = sizes.dim, sizes.width, sizes.features
    buffers, _ = _buffers(-(-work.ctypes.data // _LINE) * _LINE, sizes, kind, each)
    state, state_low = buffers.state, buffers.state_low
    # What fills registers holds zeros throughout.
    _clear(buffers.v, 0, CHUNK, state.step // each, like)
    _clear(state, 0, features, state.step // each, like)
    _clear(state_low, 0, features, state.step // each, like)
    for n in range(first, last):
        b, h = n // heads, n % heads
        source = Source(
            Rows(q.ctypes.data + b * q.strides[0] + h * q.strides[1], q.strides[3]),
            q.strides[2],
            Rows(out.ctypes.data + b * out.strides[0] + h * out.strides[1], out.strides[3]),
            out.strides[2],
            _tokens(k, b, h),
            _tokens(v, b, h),
            _tokens(cos, b, 0),
            _tokens(sin, b, 0),
            _tokens(key_cos, b, 0),
            _tokens(key_sin, b, 0),
            _tokens(mask, b, 0),
            _tokens(gate, b, h),
            _tokens(gate_low, b, h),
        )
        sum_at, low_at = _tokens(high, b, h), _tokens(low, b, h)
        total, total_low = _row(buffers.total, 0, like), _row(buffers.total_low, 0, like)
        _copy(sum_at, state, dim, width, like)
        _copy(low_at, state_low, dim, width, like)
        if kind.normal:
            for j in range(dim):
                total[j], total_low[j] = z[0, b, h, j], z[1, b, h, j]
        _over_tokens(source, sizes, kind, buffers, log[b, h], scale, eps)
        _copy(state, sum_at, dim, width, like)
        _copy(state_low, low_at, dim, width, like)
        if kind.normal:
            for j in range(dim):
                z[0, b, h, j], z[1, b, h, j] = total[j], total_low[j]


@lru_cache(maxsize=2)
def _kernel(dtype: Any) -> Any:
    """Return the loop for a dtype, compiled or read from Numba's cache on disk."""
    number = numba.from_dtype(dtype)

    def given(rank: int, kind: Any = number) -> Any:
        return types.Array(kind, rank, "A", readonly=True)

    def carried(rank: int) -> Any:
        return types.Array(number, rank, "C")

    signature = types.void(
        *(given(5), given(4), given(4), types.Array(number, 5, "A"), *[given(4)] * 4),
        *(given(3, types.uint8), given(3), given(3), carried(4), carried(4), carried(4)),
        *(carried(3), carried(1), types.int64, types.int64),
        *(numba.typeof(Sizes(*[0] * 5)), numba.typeof(Kind(*[0] * 7)), number, number),
    )
    return compiled(signature, _rows)


# -- arrays ----------------------------------------------------------------------------------------


def attend_in(
    memory: Memory, chunked: Chunked, inputs: tuple[Any, ...], sums: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]] | None:
    """Return outputs (None without queries), and the sums after the tokens, for a library.

    inputs and sums are those of :mod:`rotary.linear.chunks`; None for a map that is not known here.
    """
    if chunked.feature_map not in _MAPS:
        return None
    q, k, v = inputs[:3]
    high, low, z, log = carried = _carried(memory, sums)
    rest = [None if x is None else memory.seen(x) for x in inputs[3:]]
    dtype, tokens = high.dtype, k.shape[-2]
    out = None if q is None else memory.empty((*q.shape[:-1], v.shape[-1]), q)
    wide = all(dtype_name(x) == dtype.name for x in (q, k, v) if x is not None)
    step = tokens if wide else _BLOCK
    for t in range(0, tokens, step):
        here = slice(t, t + step)
        block = [_widened(memory, x, here, dtype.name) for x in (q, k, v)]
        block += [None if x is None else x[..., here, :] for x in rest]
        if out is None or wide:
            _attend(chunked, block, carried, None if out is None else memory.seen(out))
            continue
        result = memory.empty((*q.shape[:-2], block[0].shape[-2], v.shape[-1]), sums[0])
        _attend(chunked, block, carried, memory.seen(result))
        out[..., here, :] = result if q.dtype == result.dtype else memory.narrow(result, q.dtype)
    after: list[Any] = [high, low]
    after += [None, None] if z is None else [z[0], z[1]]
    after += [None, None] if log is None else [log[..., n, None, None].copy() for n in (0, 1)]
    return out, (*(None if x is None else memory.owned(x) for x in after), None)


def _carried(memory: Memory, sums: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return new memory with the sums: S, its low words, z and the log gates in two words each."""
    words: list[Any] = [None if x is None else memory.seen(x) for x in sums]
    high, low, z, z_low, log, log_low, _ = words
    return (
        np.array(high, order="C"),
        np.array(low, order="C"),
        None if z is None else np.stack((z, z_low)),
        None if log is None else np.stack((log[..., 0, 0], log_low[..., 0, 0]), axis=-1),
    )


def _widened(memory: Memory, x: Any, here: slice, dtype: str) -> Any:
    if x is None:
        return None
    x = x[..., here, :]
    return memory.seen(x if dtype_name(x) == dtype else memory.widen(x, dtype))


def _attend(chunked: Chunked, inputs: list[Any], sums: tuple[Any, ...], out: Any) -> None:
    """Write the outputs to out, and the sums after the tokens to sums."""
    high, low, z, log = sums
    q, k, v, gate, gate_low, _, mask, *tables = inputs
    batch, heads, _, tokens, dim = k.shape
    none = [np.empty((0,) * rank, high.dtype) for rank in range(6)]
    if q is None:
        q = out = none[5]
    cos, sin, key_cos, key_sin = (none[4] if x is None else _lines(x[:, :, 0]) for x in tables)
    if not key_cos.size:
        key_cos, key_sin = cos, sin
    pairs = cos.shape[-1]
    kind = Kind(
        _MAPS[chunked.feature_map],
        _PLACEMENTS[chunked.rotate],
        int(chunked.layout == "interleaved"),
        0 if chunked.side == "leading" else dim - 2 * pairs,
        pairs,
        int(chunked.eps is not None),
        int(gate is not None),
    )
    given = (
        *(_lines(q), _lines(k[:, :, 0]), _lines(v), out, cos, sin, key_cos, key_sin),
        none[3].view(np.uint8) if mask is None else mask[:, :, 0, :, 0].view(np.uint8),
        *(none[3] if x is None else x[..., 0] for x in (gate, gate_low)),
        *(high, low, none[4] if z is None else z[..., 0]),
        np.empty((batch, heads, 0), high.dtype) if log is None else log,
    )
    each = high.itemsize
    features = -(-dim * each // _WIDEST) * _WIDEST // each
    sizes = Sizes(tokens, q.shape[2], dim, features, v.shape[-1])
    room = _buffers(0, sizes, kind, each)[1] // each + _LINE
    numbers = high.dtype.type(chunked.scale), high.dtype.type(chunked.eps or 0.0)
    rows = batch * heads
    threads = _threads.get_num_threads()
    if k.nbytes + v.nbytes + high.nbytes < _THREADED_BYTES:
        threads = 1
    step, parts = max(1, -(-rows // threads)), []
    for first in range(0, rows, step):
        last = min(first + step, rows)
        work = np.empty(room, high.dtype)
        parts.append((*given, work, first, last, sizes, kind, *numbers))
    if parts:
        _threads.run(_kernel(high.dtype), parts)


def _lines(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return x, or a copy where a row's numbers do not lie side by side."""
    return x if x.strides[-1] == x.itemsize or not x.size else np.ascontiguousarray(x)

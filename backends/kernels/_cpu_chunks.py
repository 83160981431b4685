"""The chunks of causal linear attention on the CPU, compiled by Numba.

A row, which is a batch row and a head of the keys, is a loop over chunks of C tokens with the state
S of all before them (GLA, arXiv 2312.06635, section 3.2), the mathematics of
:mod:`rotary.linear.chunks`:

    o = (Q ⊙ e^c) S + [(Q Kᵀ) ⊙ L] V,   S ← e^{c_C} S + (K ⊙ e^{c_C − c})ᵀ V,   L_ij = e^{c_i − c_j}

A chunk is copied into small buffers, where it is mapped and rotated; every product there is made of
tiles that stay in registers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import register_jitable

from rotary.backends.kernels import _cpu_tiles
from rotary.backends.kernels._cpu_tiles import (
    LINE,
    REGISTER,
    ROWS,
    Rows,
    add,
    add_in_two_words,
    bytes_of,
    clear,
    copy,
    dot,
    exp,
    fused_step,
    keep,
    prefetch,
    row,
    rows_from,
    step,
    store,
    sum_of,
    transpose,
)
from rotary.backends.kernels._numba import compiled, pointer, source_of

# Tokens a chunk: fewer are more sums of the state, more are more scores within the chunk.
CHUNK = 32

MAPS = {"identity": 0, "elu+1": 1, "relu": 2, "relu2": 3, "exp": 4}
PLACEMENTS = {None: 0, "before_map": 1, "numerator": 2, "both": 3}
_IDENTITY, _ELU_1, _RELU, _RELU2, _EXP = MAPS.values()
_NOWHERE, _BEFORE_MAP, _NUMERATOR, _BOTH = PLACEMENTS.values()
_LEAST_GATE = -1000.0  # as rotary.linear.decays.LEAST: e^−1000 is 0
_EXP_LIMIT = 32.0  # as rotary.linear.feature_maps.EXP_LIMIT


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


# -- steps of a chunk ------------------------------------------------------------------------------


@step
def _ask(x: Any, i: Any, rows: Any, nbytes: Any) -> None:
    """Ask for the tokens of a chunk that fall to a tile of rows, the ith and those behind it."""
    for n in range(i * CHUNK // rows, (i + ROWS) * CHUNK // rows):
        for j in range(0, nbytes, LINE):
            prefetch(x.at + n * x.step + j)


@fused_step
def _map(x: Any, n: Any, feature_map: Any, scale: Any, like: Any) -> None:
    """Take the feature map of n numbers where they are, and multiply by scale."""
    p, zero, one = pointer(x.at, like), like, type(scale)(1.0)
    if feature_map == _ELU_1:
        for i in range(n):
            y = p[i]
            p[i] = (y if y > zero else zero) + exp(zero if y > zero else y)
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
            p[i] = exp(limit if y > limit else y)
    if scale != one:
        for i in range(n):
            p[i] *= scale


@fused_step
def _turn(x: Any, cos: Any, sin: Any, m: Any, kind: Any, like: Any) -> None:
    """Rotate m rows where they are."""
    n, lead = kind.pairs, kind.lead * bytes_of(like)
    for i in range(m):
        p = pointer(x.at + i * x.step + lead, like)
        c, s = row(cos, i, like), row(sin, i, like)
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


@fused_step
def _scores(q: Any, k_t: Any, out: Any, within: Any, gated: Any, m: Any, n: Any, like: Any) -> None:
    """(Q Kᵀ) ⊙ L for m rows, in the columns of tokens that a tile of rows sees."""
    each = bytes_of(like)
    for first in range(0, m, ROWS):
        last = first + ROWS
        width = -(-last * each // REGISTER) * REGISTER
        store(rows_from(q, first), k_t, rows_from(out, first), width, n, like)
        for i in range(first, last):
            p, w = row(out, i, like), row(within, i, like)
            if gated:
                for j in range(i + 1):
                    p[j] *= w[j]
            for j in range(i + 1, last):
                p[j] = like


@fused_step
def _scale_rows(x: Any, weights: Any, m: Any, n: Any, like: Any) -> None:
    w = row(weights, 0, like)
    for i in range(m):
        p, by = row(x, i, like), w[i]
        for j in range(n):
            p[j] *= by


@step
def _falling(x: Any) -> Any:
    """Return a log decay: rounding may not make it a growth.  NaN stays."""
    return np.float64(0.0) if x > np.float64(0.0) else x


@step
def _decays(x: Any, buffers: Any, m: Any, like: Any) -> Any:
    """Write the decays of a chunk, and return e^{c_C} and c_C in two words."""
    least, zero = np.float64(_LEAST_GATE), np.float64(0.0)
    high, low = row(buffers.c, 0, zero), row(buffers.c_low, 0, zero)
    since, until = row(buffers.since, 0, like), row(buffers.until, 0, like)
    total, rest = zero, zero
    for i in range(m):
        gate = np.float64(row(x.gate, i, like)[0])
        gate = least if gate < least else gate
        gate_low = np.float64(row(x.gate_low, i, like)[0]) if x.gate_low.at else zero
        total, rest = add_in_two_words(total, rest, gate, gate_low)
        high[i], low[i] = total, rest
    for i in range(m):
        since[i] = _falling(high[i] + low[i])
        until[i] = _falling((total - high[i]) + (rest - low[i]))
    for i in range(m):
        since[i], until[i] = exp(since[i]), exp(until[i])
        w, here, here_low = row(buffers.within, i, like), high[i], low[i]
        for j in range(i + 1):
            w[j] = _falling((here - high[j]) + (here_low - low[j]))
        for j in range(i + 1):
            w[j] = exp(w[j])
    return since[m - 1], total, rest


@step
def _take_keys(x: Any, sizes: Any, kind: Any, buffers: Any, m: Any, rows: Any, like: Any) -> None:
    """Map, mask and rotate a chunk's keys, and select its values; zeros for missing rows."""
    k, v, plain, features = buffers.k, buffers.v, buffers.plain_k, sizes.features
    lanes = REGISTER // bytes_of(like)
    square = -(-rows // lanes) * lanes
    copy(x.k, k, m, sizes.dim, like)
    copy(x.v, v, m, sizes.width, like)
    clear(k, m, square, features, like)
    clear(v, m, rows, sizes.width, like)
    if kind.placement == _BEFORE_MAP:
        _turn(k, x.key_cos, x.key_sin, m, kind, like)
    _map(k, m * features, kind.feature_map, type(like)(1.0), like)
    if x.mask.at:  # after the map: φ(0) need not be 0
        for i in range(m):
            if not row(x.mask, i, np.uint8(0))[0]:
                clear(k, i, i + 1, features, like)
                clear(v, i, i + 1, sizes.width, like)
    if plain.at != k.at:
        copy(k, plain, square, features, like)
        if sizes.group:
            transpose(plain, buffers.plain_k_t, square, features, like)
    if kind.placement >= _NUMERATOR:
        _turn(k, x.key_cos, x.key_sin, m, kind, like)
    if sizes.group:
        transpose(k, buffers.k_t, square, features, like)


@step
def _take_queries(
    x: Any, q: Any, sizes: Any, kind: Any, buffers: Any, m: Any, rows: Any, scale: Any, like: Any
) -> None:
    """Map and rotate the queries q of a chunk."""
    y, plain = buffers.q, buffers.plain_q
    copy(q, y, m, sizes.dim, like)
    clear(y, m, rows, sizes.features, like)
    if kind.placement == _BEFORE_MAP:
        _turn(y, x.cos, x.sin, m, kind, like)
    _map(y, m * sizes.features, kind.feature_map, scale, like)
    if plain.at != y.at:
        copy(y, plain, rows, sizes.features, like)
    if kind.placement >= _NUMERATOR:
        _turn(y, x.cos, x.sin, m, kind, like)


@fused_step
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
    total, divisors = row(buffers.total, 0, like), row(buffers.divisors, 0, like)
    since = row(buffers.since, 0, like)
    for i in range(m):
        own = sum_of(row(buffers.plain_scores, i, like), i + 1, like)
        past = dot(row(buffers.plain_q, i, like), total, sizes.dim, like)
        past = past * since[i] if kind.gated else past
        divisors[i] = type(eps)(1.0) / ((own + past) + eps)


@fused_step
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
    y, each = buffers.out, bytes_of(like)
    scores, state = buffers.scores, buffers.state
    _scores(buffers.q, buffers.k_t, scores, buffers.within, kind.gated, rows, sizes.dim, like)
    if kind.normal:
        _divide(sizes, kind, buffers, m, rows, eps, like)
    for i in range(0, rows, ROWS):
        _ask(next_q, i, rows, sizes.dim * each)
        _ask(out, i, rows, sizes.width * each)
        store(rows_from(buffers.q, i), state, rows_from(y, i), state.step, sizes.dim, like)
    if kind.gated:
        _scale_rows(y, buffers.since, m, sizes.width, like)
    for i in range(0, rows, ROWS):  # tokens after a tile's rows are not seen
        seen = min(i + ROWS, m)
        add(rows_from(scores, i), buffers.v, rows_from(y, i), state.step, seen, like)
    divisors = row(buffers.divisors, 0, like)
    for i in range(m):
        p, q, by = row(y, i, like), row(out, i, like), type(eps)(1.0)
        by = divisors[i] if kind.normal else by
        for j in range(sizes.width):
            q[j] = p[j] * by


@fused_step
def _absorb(
    next_k: Any, next_v: Any, sizes: Any, kind: Any, buffers: Any, m: Any, weight: Any, like: Any
) -> None:
    """Add a chunk to the sums, which decay by weight."""
    k, plain, features, each = buffers.k, buffers.plain_k, sizes.features, bytes_of(like)
    if kind.gated:
        _scale_rows(k, buffers.until, m, features, like)
        if plain.at != k.at:
            _scale_rows(plain, buffers.until, m, features, like)
    for i in range(0, features, ROWS):
        _ask(next_k, i, features, sizes.dim * each)
        _ask(next_v, i, features, sizes.width * each)
        keep(k, buffers.v, buffers.state, buffers.state_low, i, weight, m, like)
    if kind.normal:
        clear(buffers.update, 0, 1, features, like)
        update, total = row(buffers.update, 0, like), row(buffers.total, 0, like)
        low = row(buffers.total_low, 0, like)
        for i in range(m):
            p = row(plain, i, like)
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
def buffers_at(at: Any, sizes: Any, kind: Any, each: Any) -> Any:
    """Return the buffers from an address on, and the address behind them."""
    features = sizes.features
    by_feature, by_token = features * each, CHUNK * each
    by_value = -(-sizes.width * each // REGISTER) * REGISTER
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


@step
def _tokens(x: Any, b: Any, h: Any) -> Any:
    """Return the tokens of a row of (batch or 1, heads, tokens, …); no address for no numbers."""
    at = 0
    if x.size:
        at = x.ctypes.data + (b if x.shape[0] > 1 else 0) * x.strides[0] + h * x.strides[1]
    return Rows(at, x.strides[2])


@step
def _later(x: Any, t: Any) -> Any:
    """Return a row's source from token t on."""
    q, out = rows_from(x.q, t), rows_from(x.out, t)
    mask, gate_low = x.mask, x.gate_low
    if mask.at:
        mask = rows_from(mask, t)
    if gate_low.at:
        gate_low = rows_from(gate_low, t)
    return Source(
        q,
        x.next_q,
        out,
        x.next_out,
        rows_from(x.k, t),
        rows_from(x.v, t),
        rows_from(x.cos, t),
        rows_from(x.sin, t),
        rows_from(x.key_cos, t),
        rows_from(x.key_sin, t),
        mask,
        rows_from(x.gate, t),
        gate_low,
    )


@step
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
                log[0], log[1] = add_in_two_words(log[0], log[1], high, low)
        for g in range(sizes.group):
            q = Rows(x.q.at + g * x.next_q, x.q.step)
            out = Rows(x.out.at + g * x.next_out, x.out.step)
            following = later.q
            if g + 1 < sizes.group:
                following = Rows(q.at + x.next_q, q.step)
            _take_queries(x, q, sizes, kind, buffers, m, rows, scale, like)
            _attend_queries(out, following, sizes, kind, buffers, m, rows, eps, like)
        _absorb(later.k, later.v, sizes, kind, buffers, m, weight, like)


def _of_all_rows(text: int) -> Any:
    """Return the loop over rows."""

    def rows(
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
        _ = text  # what a function closes over is a part of its key in Numba's cache
        like, each, heads = type(scale)(0.0), work.itemsize, k.shape[1]
        dim, width, features = sizes.dim, sizes.width, sizes.features
        buffers, _ = buffers_at(-(-work.ctypes.data // LINE) * LINE, sizes, kind, each)
        state, state_low = buffers.state, buffers.state_low
        # What fills registers holds zeros throughout.
        clear(buffers.v, 0, CHUNK, state.step // each, like)
        clear(state, 0, features, state.step // each, like)
        clear(state_low, 0, features, state.step // each, like)
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
            total, total_low = row(buffers.total, 0, like), row(buffers.total_low, 0, like)
            copy(sum_at, state, dim, width, like)
            copy(low_at, state_low, dim, width, like)
            if kind.normal:
                for j in range(dim):
                    total[j], total_low[j] = z[0, b, h, j], z[1, b, h, j]
            _over_tokens(source, sizes, kind, buffers, log[b, h], scale, eps)
            copy(state, sum_at, dim, width, like)
            copy(state_low, low_at, dim, width, like)
            if kind.normal:
                for j in range(dim):
                    z[0, b, h, j], z[1, b, h, j] = total[j], total_low[j]

    return rows


@lru_cache(maxsize=2)
def kernel(dtype: Any) -> Any:
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
    return compiled(signature, _of_all_rows(source_of(_cpu_tiles)))

"""The forms of linear attention: one step over a chunk of tokens, and the loops that repeat it.

Causal, a chunk of C tokens with the state S of all before it (GLA, arXiv 2312.06635, section 3.2):

    o = (Q ⊙ e^c) S + [(Q Kᵀ) ⊙ L] V,   S ← e^{c_C} S + (K ⊙ e^{c_C − c})ᵀ V,   L_ij = e^{c_i − c_j}

The delta rule is the same with β_t (v_t − S_{t−1}ᵀ k_t), what it really adds, in place of v_t; a
triangular system of the chunk gives them all (Yang et al., arXiv 2406.06484, section 3.2; gated,
arXiv 2412.06464, section 3.3).  A chunk of all tokens is the parallel form, a chunk of one token
the recurrent form.  Bidirectional: first the sums over all tokens, then o = Q S.  Feature map and
rotation are taken inside the chunk, so that memory holds inputs and outputs only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rotary import rotation
from rotary.backends import Backend
from rotary.backends._protocol import Chunked
from rotary.cache import Cache
from rotary.dtypes import dtype_name
from rotary.exact.sums import kahan
from rotary.linear import halves
from rotary.linear.arithmetic import Arithmetic, Fast, decay
from rotary.linear.decays import LEAST, Weights, weights
from rotary.linear.feature_maps import Map, Token
from rotary.linear.state import two_words


class Form(NamedTuple):
    """What is computed, without an array: static for compilers."""

    arithmetic: Arithmetic
    dtype: str
    """Compute dtype."""
    chunk_size: int
    causal: bool
    feature_map: Map
    rotate: str | None
    """Placement of the rotation; None without one."""
    layout: str
    rotary_side: str
    scale: float
    eps: float | None
    """None without the normaliser."""
    decays: bool
    """Whether there are log gates that a gradient passes through."""
    delta: bool
    """Whether the update is the delta rule's."""


class Inputs(NamedTuple):
    """Arrays with a token axis, the last but one; None for what is not there."""

    q: Any
    """(batch, kv_heads, group, seq, key_dim), in the caller's dtype."""
    k: Any
    """(batch, kv_heads, 1, seq, key_dim)."""
    v: Any
    """(batch, kv_heads, seq, value_dim)."""
    gate: Any = None
    """Log gates, (1 or batch, kv_heads, seq, 1 or features), in the compute dtype."""
    gate_low: Any = None
    beta: Any = None
    """(batch, kv_heads, seq, 1), in the compute dtype."""
    mask: Any = None
    """Whether a token takes part, (batch, 1, 1, seq, 1)."""
    cos: Any = None
    """(1 or batch, 1, 1, seq, pairs), of queries, and of keys unless they have their own."""
    sin: Any = None
    key_cos: Any = None
    key_sin: Any = None


class Sums(NamedTuple):
    """The carried sums, in the compute dtype."""

    numerator: Any
    """(batch, kv_heads, features, value_dim)."""
    numerator_low: Any
    normaliser: Any
    """(batch, kv_heads, features, 1), or None."""
    normaliser_low: Any
    log_decay: Any = None
    """(batch, kv_heads, 1, 1 or features), or None without decay."""
    log_decay_low: Any = None
    maximum: Any = None
    """(batch, kv_heads, 1, 1): of the random features so far, which the sums are relative to."""


class Features(NamedTuple):
    """Mapped queries or keys: with rotation, and as the normaliser takes them."""

    rotated: Any
    plain: Any


class Keys(NamedTuple):
    """What a chunk adds to the sums, (batch, kv_heads, C, …)."""

    k: Features
    v: Any
    gate: tuple[Any, Any]
    maximum: Any
    """Running maximum of the random features, (…, C, 1), or None."""


def run(form: Form, inputs: Inputs, sums: Sums) -> tuple[Any, Sums]:
    """Return outputs (batch, kv_heads, group, seq, value_dim), and the sums to carry on."""
    if form.causal:
        return over_chunks(form, partial(_causal, form), sums, inputs)
    if form.feature_map.logarithmic:
        sums = sums._replace(maximum=topmost(form, inputs, sums))
    _, sums = over_chunks(form, partial(_absorb, form), sums, inputs._replace(q=None))
    queries = Inputs(inputs.q, None, None, cos=inputs.cos, sin=inputs.sin)
    out, _ = over_chunks(form, partial(_read, form), sums, queries)
    return out, sums


def fused(form: Form, token: Token, inputs: Inputs, sums: Sums) -> tuple[Any, Sums] | None:
    """Return what `run` and `absorb` return, by a kernel of the library; None where none fits.

    `token` names the feature map.
    """
    by_channel = inputs.gate is not None and inputs.gate.shape[-1] != 1
    if not (isinstance(form.arithmetic, Fast) and form.causal and isinstance(token, str)):
        return None
    if form.delta or by_channel:
        return None
    chunked = Chunked(token, form.rotate, form.layout, form.rotary_side, form.scale, form.eps)
    found = form.arithmetic.backend.linear_chunks(chunked, inputs, sums)
    return None if found is None else (found[0], Sums(*found[1]))


def absorb(form: Form, inputs: Inputs, sums: Sums) -> Sums:
    """Return the sums with the tokens of inputs added."""
    _, after = over_chunks(form, partial(_absorb, form), sums, inputs)
    carried: Sums = after
    return carried


def over_chunks(
    form: Form, step: Callable[[Any, Inputs], tuple[Any, Any]], carry: Any, inputs: Inputs
) -> tuple[Any, Any]:
    """Return the outputs of all chunks, joined, and the last carry.

    `step` takes a carry and a chunk of the inputs, and returns a carry and an output with a token
    axis, or None.
    """
    backend = form.arithmetic.backend
    present = [name for name, x in zip(Inputs._fields, inputs, strict=True) if x is not None]
    arrays = [getattr(inputs, name) for name in present]
    seq, size = arrays[0].shape[-2], form.chunk_size
    absent = Inputs(None, None, None)

    def of_arrays(carry: Any, chunk: Any) -> tuple[Any, Any]:
        return step(carry, absent._replace(**dict(zip(present, chunk, strict=True))))

    xp = backend.namespace(arrays[0])
    # One chunk needs no loop; what is left over is a shorter chunk.
    whole = seq // size if seq > size else 0
    outputs = []
    if whole:
        stacked = tuple(_stack(xp, x, whole, size) for x in arrays)
        carry, out = backend.scan(of_arrays, carry, stacked)
        outputs.append(_unstack(xp, out))
    if seq > whole * size:
        carry, out = of_arrays(carry, [x[..., whole * size :, :] for x in arrays])
        outputs.append(out)
    if not outputs or outputs[0] is None:
        return None, carry
    return (outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=-2)), carry


def _stack(xp: Any, x: Any, count: int, size: int) -> Any:
    """Return the first chunks of x, (count, …, size, dim)."""
    shape = tuple(x.shape)
    if shape[-2] != count * size:
        x = x[..., : count * size, :]
    return xp.moveaxis(xp.reshape(x, (*shape[:-2], count, size, shape[-1])), -3, 0)


def _unstack(xp: Any, x: Any) -> Any:
    """Return the inverse of _stack."""
    if x is None:
        return None
    count, *leading, size, dim = x.shape
    return xp.reshape(xp.moveaxis(x, 0, -3), (*leading, count * size, dim))


def _causal(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
    a = form.arithmetic
    q = queries(form, chunk)
    k, v, gate, maximum = keys(form, chunk, sums.maximum)
    w = chunk_weights(form, gate, v)
    if form.delta:
        v = added(form, k.rotated, v, chunk.beta, sums.numerator, w)
    out, scores = attend(a, q.rotated, k.rotated, v, sums.numerator, w)
    if form.eps is not None:
        if q.plain is not q.rotated:
            scores = scores_of(a, q.plain, k.plain, w)
        total = denominators(a, scores, q.plain, sums.normaliser, w)
        out = a.settle(out * a.reciprocal(total + form.eps))
    return _add(a, sums, k, v, w, maximum), narrow(form, out, chunk.q)


def _absorb(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, None]:
    a = form.arithmetic
    k, v, gate, maximum = keys(form, chunk, sums.maximum)
    w = chunk_weights(form, gate, v)
    if form.delta:
        v = added(form, k.rotated, v, chunk.beta, sums.numerator, w)
    return _add(a, sums, k, v, w, maximum), None


def topmost(form: Form, inputs: Inputs, sums: Sums) -> Any:
    """Return the maximum of the random features of all tokens, (batch, kv_heads, 1, 1)."""

    def step(maximum: Any, chunk: Inputs) -> tuple[Any, None]:
        tops = _tops(form, mapped(form, chunk.k, *key_tables(chunk)), chunk.mask)
        return running_maximum(form.arithmetic, tops, maximum)[0][..., -1:, :], None

    return over_chunks(form, step, sums.maximum, inputs._replace(q=None))[1]


def _read(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
    a = form.arithmetic
    q = queries(form, chunk)
    out = past(a, q.rotated, sums.numerator)
    if form.eps is not None:
        total = past(a, q.plain, sums.normaliser)
        out = a.settle(out * a.reciprocal(total + form.eps))
    return sums, narrow(form, out, chunk.q)


def queries(form: Form, chunk: Inputs) -> Features:
    """Return the features of queries, (batch, kv_heads, group, C, features)."""
    y = mapped(form, chunk.q, chunk.cos, chunk.sin)
    if form.feature_map.logarithmic:
        top = form.arithmetic.backend.namespace(y).max(y, axis=-1, keepdims=True)
        y = relative_exp(form, y, top)
    if form.scale != 1.0:
        # XLA would multiply the constant with what comes next: (y·scale)·e^c as y·(scale·e^c).
        y = form.arithmetic.product(y, form.scale)
    return _rotated(form, y, chunk.cos, chunk.sin)


def mapped(form: Form, x: Any, cos: Any, sin: Any) -> Any:
    """Return what the feature map makes of x."""
    a = form.arithmetic
    x = a.enter(widen(form, x))
    if form.rotate == "before_map":
        x = turn(form, x, cos, sin)
    return form.feature_map.of(a, x)


def relative_exp(form: Form, y: Any, top: Any) -> Any:
    """Return features^(−½) e^{y − top}."""
    a = form.arithmetic
    return a.product(decay(a, y - top), y.shape[-1] ** -0.5)  # rounded: see queries


def _rotated(form: Form, y: Any, cos: Any, sin: Any) -> Features:
    if form.rotate == "numerator":
        return Features(turn(form, y, cos, sin), y)
    if form.rotate == "both":
        y = turn(form, y, cos, sin)
    return Features(y, y)


def _zeros(a: Arithmetic, x: Any) -> Any:
    return a.backend.namespace(x).zeros_like(x)


def turn(form: Form, x: Any, cos: Any, sin: Any, inverse: bool = False) -> Any:
    """Return x rotated; the inverse is the adjoint."""
    return rotation.rotate_aligned(
        x,
        cos,
        sin,
        layout=form.layout,
        rotary_side=form.rotary_side,
        inverse=inverse,
        backend=form.arithmetic.backend,
    )


def key_tables(inputs: Inputs) -> tuple[Any, Any]:
    """Return the tables that keys are rotated by."""
    if inputs.key_cos is None:
        return inputs.cos, inputs.sin
    return inputs.key_cos, inputs.key_sin


def keys(form: Form, chunk: Inputs, maximum: Any) -> Keys:
    """Return what tokens add to the sums, which are relative to a maximum; masked ones are 0."""
    a = form.arithmetic
    cos, sin = key_tables(chunk)
    gate = (chunk.gate, chunk.gate_low)
    y = mapped(form, chunk.k, cos, sin)
    where = a.backend.namespace(y).where
    if form.feature_map.logarithmic:
        maximum, growth = running_maximum(a, _tops(form, y, chunk.mask), maximum)
        y = relative_exp(form, y, maximum[:, :, None, ...])
        gate = (growth if form.causal else None, None)
    if chunk.mask is not None:  # after the map: φ(0) need not be 0
        y = where(chunk.mask, y, _zeros(a, y))
    k = _rotated(form, y, cos, sin)
    rotated = k.rotated[:, :, 0, ...]
    k = Features(rotated, rotated if k.plain is k.rotated else k.plain[:, :, 0, ...])
    v = a.enter(widen(form, chunk.v))
    if chunk.mask is not None:
        v = where(chunk.mask[:, :, 0, ...], v, _zeros(a, v))
    return Keys(k, v, gate, maximum)


def _tops(form: Form, y: Any, mask: Any) -> Any:
    """Return the largest random feature of each key that takes part, (batch, kv_heads, C, 1)."""
    a = form.arithmetic
    xp = a.backend.namespace(y)
    tops = xp.max(y, axis=-1, keepdims=True)
    if mask is not None:
        tops = xp.where(mask, tops, _zeros(a, tops) + LOWEST)
    return tops[:, :, 0, ...]


def running_maximum(a: Arithmetic, tops: Any, before: Any) -> tuple[Any, Any]:
    """Return the maximum up to each token, (…, C, 1), and the log of what it makes of the sums."""
    xp = a.backend.namespace(tops)
    first = xp.maximum(before, tops[..., :1, :])
    found, step = xp.concat([first, tops[..., 1:, :]], axis=-2), 1
    while step < found.shape[-2]:
        later = xp.maximum(found[..., step:, :], found[..., :-step, :])
        found = xp.concat([found[..., :step, :], later], axis=-2)
        step *= 2
    return found, xp.concat([before, found[..., :-1, :]], axis=-2) - found


def added(form: Form, k: Any, v: Any, beta: Any, state: Any, w: Weights) -> Any:
    """Return what the delta rule adds in place of v: β_t (v_t − (e^{g_t} S_{t−1})ᵀ k_t)."""
    a = form.arithmetic
    return a.settle(a.product(residuals(form, k, v, beta, state, w), beta))


def residuals(form: Form, k: Any, v: Any, beta: Any, state: Any, w: Weights) -> Any:
    """Return r_t = v_t − (e^{g_t} S_{t−1})ᵀ k_t, (batch, kv_heads, C, value_dim).

    r_t + Σ_{j<t} (k_t·k_j) e^{c_t − c_j} β_j r_j = v_t − (e^{c_t} S)ᵀ k_t with S before the chunk.
    """
    a = form.arithmetic
    decayed = k if w.since is None else k * w.since
    rest = a.settle(v - a.multiply(a.rows(decayed), a.columns(state)))
    lower = triangle(form, v)
    return halves.solved(a, halves.blocks(a, k, k * beta, w.levels), rest, lower)


def scores_of(a: Arithmetic, q: Any, k: Any, w: Weights, rows: Any = None) -> Any:
    """Return q·k within a chunk, (batch, kv_heads, group·C, C), decayed by channel if they are.

    `rows` are those of q, if they were prepared already.
    """
    if not w.channels:
        return a.multiply(a.rows(fold(a, q)) if rows is None else rows, a.rows_transposed(k))
    return fold(a, halves.scores(a, q, k[:, :, None, ...], grouped(w)))


def grouped(w: Weights) -> Any:
    """Return the decays between halves with the axis of a group."""
    assert w.levels is not None
    return [halves.Level(*(x[:, :, None, ...] for x in level)) for level in w.levels]


def attend(a: Arithmetic, q: Any, k: Any, v: Any, state: Any, w: Weights) -> tuple[Any, Any]:
    """Return the numerators of a chunk's queries, and the scores q·k within it.

    q is (batch, kv_heads, group, C, d), the scores (batch, kv_heads, group·C, C).
    """
    rows = None if w.channels else a.rows(fold(a, q))
    scores = scores_of(a, q, k, w, rows)
    values, scales = a.tokens(v)
    weighted = _weighted(a, scores, w.within, scales)
    own = a.multiply(a.rows(weighted), values)
    if w.since is not None:
        rows = a.rows(fold(a, q * w.since[:, :, None, ...]))
    out = a.settle(own + a.multiply(rows, a.columns(state)))
    return unfold(a, out, q), scores


def attend_by_value(a: Arithmetic, q: Any, k: Any, v: Any, state: Any, w: Weights) -> Any:
    """Return the numerators of a chunk's queries where the channels that decay are v's."""
    levels = grouped(w)
    own = halves.spread(a, q, k[:, :, None, ...], v[:, :, None, ...], levels, strict=w.strict)
    return a.settle(own + a.product(past(a, q, state), w.since[:, :, None, ...]))


def denominators(a: Arithmetic, scores: Any, q: Any, state: Any, w: Weights) -> Any:
    """Return Σ_j L_ij (q_i·k_j) + e^{c_i} q_i·z: the numerators of values that are all 1."""
    own = a.sum(_weighted(a, scores, w.within, None), -1)
    decayed = q if w.since is None else q * w.since[:, :, None, ...]
    total = own + a.multiply(a.rows(fold(a, decayed)), a.columns(state))
    return unfold(a, a.settle(total), q)


def past(a: Arithmetic, q: Any, state: Any) -> Any:
    """Return q S."""
    return unfold(a, a.multiply(a.rows(fold(a, q)), a.columns(state)), q)


def absorbed(a: Arithmetic, k: Any, v: Any, high: Any, low: Any, w: Weights) -> tuple[Any, Any]:
    """Return S ← e^{c_C} S + (K ⊙ e^{c_C − c})ᵀ V, compensated."""
    values, scales = a.tokens(v)
    transposed = a.backend.namespace(k).matrix_transpose(k if w.until is None else k * w.until)
    if scales is not None:
        transposed = transposed * scales
    update = a.multiply(a.rows(transposed), values)
    return kahan(a.settle, _decayed(a, high, w), _decayed(a, low, w), update)


def absorbed_by_value(
    a: Arithmetic, k: Any, v: Any, high: Any, low: Any, w: Weights
) -> tuple[Any, Any]:
    """Return S ← S e^{c_C} + Kᵀ (V ⊙ e^{c_C − c}), compensated: a column of S is a channel."""
    values, scales = a.tokens(v * w.until)
    transposed = a.backend.namespace(k).matrix_transpose(k)
    if scales is not None:
        transposed = transposed * scales
    update = a.multiply(a.rows(transposed), values)
    high, low = (a.settle(a.product(x, w.whole)) for x in (high, low))
    return kahan(a.settle, high, low, update)


def _add(a: Arithmetic, sums: Sums, k: Features, v: Any, w: Weights, maximum: Any) -> Sums:
    high, low = absorbed(a, k.rotated, v, sums.numerator, sums.numerator_low, w)
    z = log = (None, None)
    if sums.normaliser is not None:
        weighted = k.plain if w.until is None else k.plain * w.until
        update = a.backend.namespace(weighted).matrix_transpose(a.sum(weighted, -2))
        before, before_low = (_decayed(a, x, w) for x in (sums.normaliser, sums.normaliser_low))
        z = kahan(a.settle, before, before_low, update)
    if sums.log_decay is not None:
        log = two_words((sums.log_decay, sums.log_decay_low), w.total)
    return Sums(high, low, *z, *log, None if maximum is None else maximum[..., -1:, :])


def _decayed(a: Arithmetic, x: Any, w: Weights) -> Any:
    """Return sums, of which a row is a channel, after a chunk."""
    if w.whole is None:
        return x
    return a.settle(a.product(x, a.backend.namespace(x).matrix_transpose(w.whole)))


def _weighted(a: Arithmetic, scores: Any, within: Any, scales: Any) -> Any:
    """Return scores (…, group·C, C) times the weights within the chunk and each token's scale."""
    xp = a.backend.namespace(scores)
    # Not a product: a later token's scale may be NaN.
    factor = within if scales is None else a.weigh(scales, within)
    rows, size = scores.shape[-2:]
    if rows == factor.shape[-2]:
        return a.weigh(scores, factor)
    if factor.ndim > 2:
        factor = factor[:, :, None, ...]
    batch, heads = scores.shape[:2]
    split = xp.reshape(scores, (batch, heads, -1, factor.shape[-2], size))
    return xp.reshape(a.weigh(split, factor), tuple(scores.shape))


def fold(a: Arithmetic, x: Any) -> Any:
    """Return (batch, kv_heads, group·C, d): the queries of a group are more rows of one product."""
    batch, heads, group, size, dim = x.shape
    return a.backend.namespace(x).reshape(x, (batch, heads, group * size, dim))


def unfold(a: Arithmetic, x: Any, like: Any) -> Any:
    """Return (batch, kv_heads, group, C, d) as `like` has them."""
    return a.backend.namespace(x).reshape(x, (*like.shape[:-1], x.shape[-1]))


def chunk_weights(form: Form, gate: tuple[Any, Any], like: Any, *, strict: bool = False) -> Weights:
    """Return the weights of a chunk of as many tokens as `like` has.

    Strict ones are 0 for a token itself.
    """
    high, low = gate
    if high is not None:
        xp = form.arithmetic.backend.namespace(high)
        high = xp.maximum(high, xp.zeros_like(high) + LEAST)
    seen = triangle(form, like, strict=strict)
    found = weights(form.arithmetic, high, low, seen, halves_too=form.delta)
    return found._replace(strict=strict)


def triangle(form: Form, like: Any, *, strict: bool = False) -> Any:
    """Return ones where i ≥ j, or i > j, for tokens of `like`, (C, C)."""
    return _lower(like.shape[-2], int(strict), form.dtype, form.arithmetic.backend, like)


_triangles = Cache(16 * 2**20)
# A maximum of random features before the first token.
LOWEST = -(2.0**126)


def _lower(size: int, below: int, dtype: str, backend: Backend, like: Any) -> Any:
    """Return the lower triangle of ones from that diagonal on, where `like` is."""
    place = backend.device_key(like)
    key = (size, below, dtype, backend.name, type(like), place)
    triangle = None if place is None else _triangles.get(key)
    if triangle is None:
        triangle = backend.to_device(np.tril(np.ones((size, size), dtype), -below), like)
        if place is not None:
            _triangles.put(key, triangle, size * size * 8)
    return triangle


def widen(form: Form, x: Any) -> Any:
    """Return x in the compute dtype."""
    return x if dtype_name(x) == form.dtype else form.arithmetic.backend.widen(x, form.dtype)


def narrow(form: Form, x: Any, like: Any) -> Any:
    """Return x rounded to like's dtype."""
    return x if dtype_name(like) == form.dtype else form.arithmetic.backend.narrow(x, like.dtype)

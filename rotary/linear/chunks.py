"""The forms of linear attention: one step over a chunk of tokens, and the loops that repeat it.

Causal, a chunk of C tokens with the state S of all before it (GLA, arXiv 2312.06635, section 3.2):

    o = (Q ⊙ e^c) S + [(Q Kᵀ) ⊙ L] V,   S ← e^{c_C} S + (K ⊙ e^{c_C − c})ᵀ V,   L_ij = e^{c_i − c_j}

A chunk of all tokens is the parallel form, a chunk of one token the recurrent form.  Bidirectional:
first the sums over all tokens, then o = Q S.  Feature map and rotation are taken inside the chunk,
so that memory holds inputs and outputs only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rotary import rotation
from rotary.backends import Backend
from rotary.cache import Cache
from rotary.dtypes import dtype_name
from rotary.exact.sums import kahan
from rotary.linear.arithmetic import Arithmetic
from rotary.linear.decays import LEAST, Weights, weights
from rotary.linear.feature_maps import Elementwise
from rotary.linear.state import two_words


class Form(NamedTuple):
    """What is computed, without an array: static for compilers."""

    arithmetic: Arithmetic
    dtype: str
    """Compute dtype."""
    chunk_size: int
    causal: bool
    feature_map: Elementwise
    rotate: str | None
    """Placement of the rotation; None without one."""
    layout: str
    rotary_side: str
    scale: float
    eps: float | None
    """None without the normaliser."""
    decays: bool
    """Whether there are log gates that a gradient passes through."""


class Inputs(NamedTuple):
    """Arrays with a token axis, the last but one; None for what is not there."""

    q: Any
    """(batch, kv_heads, group, seq, key_dim), in the caller's dtype."""
    k: Any
    """(batch, kv_heads, 1, seq, key_dim)."""
    v: Any
    """(batch, kv_heads, seq, value_dim)."""
    gate: Any = None
    """Log gates, (1 or batch, kv_heads, seq, 1), in the compute dtype."""
    gate_low: Any = None
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
    """(batch, kv_heads, 1, 1), or None without decay."""
    log_decay_low: Any = None


class Features(NamedTuple):
    """Mapped queries or keys: with rotation, and as the normaliser takes them."""

    rotated: Any
    plain: Any


def run(form: Form, inputs: Inputs, sums: Sums) -> tuple[Any, Sums]:
    """Return outputs (batch, kv_heads, group, seq, value_dim), and the sums to carry on."""
    if form.causal:
        return over_chunks(form, partial(_causal, form), sums, inputs)
    _, sums = over_chunks(form, partial(_absorb, form), sums, inputs._replace(q=None))
    queries = Inputs(inputs.q, None, None, cos=inputs.cos, sin=inputs.sin)
    out, _ = over_chunks(form, partial(_read, form), sums, queries)
    return out, sums


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
    q = features(form, chunk.q, chunk.cos, chunk.sin, None, form.scale)
    k, v = keys_and_values(form, chunk)
    w = chunk_weights(form, chunk.gate, chunk.gate_low, v)
    out, scores = attend(a, q.rotated, k.rotated, v, sums.numerator, w)
    if form.eps is not None:
        if q.plain is not q.rotated:
            scores = a.multiply(a.rows(fold(a, q.plain)), a.rows_transposed(k.plain))
        total = denominators(a, scores, q.plain, sums.normaliser, w)
        out = a.settle(out * a.reciprocal(total + form.eps))
    return _add(a, sums, k, v, w), narrow(form, out, chunk.q)


def _absorb(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, None]:
    a = form.arithmetic
    k, v = keys_and_values(form, chunk)
    w = chunk_weights(form, chunk.gate, chunk.gate_low, v)
    return _add(a, sums, k, v, w), None


def _read(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
    a = form.arithmetic
    q = features(form, chunk.q, chunk.cos, chunk.sin, None, form.scale)
    out = past(a, q.rotated, sums.numerator)
    if form.eps is not None:
        total = past(a, q.plain, sums.normaliser)
        out = a.settle(out * a.reciprocal(total + form.eps))
    return sums, narrow(form, out, chunk.q)


def features(form: Form, x: Any, cos: Any, sin: Any, mask: Any, scale: float = 1.0) -> Features:
    """Return the features of queries or keys, (batch, kv_heads, group, C, features)."""
    a = form.arithmetic
    x = a.enter(widen(form, x))
    if form.rotate == "before_map":
        x = turn(form, x, cos, sin)
    y = form.feature_map.of(a, x)
    if scale != 1.0:
        y = y * scale
    if mask is not None:  # after the map: φ(0) need not be 0
        y = a.backend.namespace(y).where(mask, y, _zeros(a, y))
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


def keys_and_values(form: Form, chunk: Inputs) -> tuple[Features, Any]:
    """Return the features of keys and the values, (batch, kv_heads, C, …); masked ones are 0."""
    a = form.arithmetic
    cos, sin = (chunk.cos, chunk.sin) if chunk.key_cos is None else (chunk.key_cos, chunk.key_sin)
    k = features(form, chunk.k, cos, sin, chunk.mask)
    rotated = k.rotated[:, :, 0, ...]
    k = Features(rotated, rotated if k.plain is k.rotated else k.plain[:, :, 0, ...])
    v = a.enter(widen(form, chunk.v))
    if chunk.mask is not None:
        v = a.backend.namespace(v).where(chunk.mask[:, :, 0, ...], v, _zeros(a, v))
    return k, v


def attend(a: Arithmetic, q: Any, k: Any, v: Any, state: Any, w: Weights) -> tuple[Any, Any]:
    """Return the numerators of a chunk's queries, and the scores q·k within it.

    q is (batch, kv_heads, group, C, d), the scores (batch, kv_heads, group·C, C).
    """
    rows = a.rows(fold(a, q))
    scores = a.multiply(rows, a.rows_transposed(k))
    values, scales = a.tokens(v)
    weighted = _weighted(a, scores, w.within, scales)
    own = a.multiply(a.rows(weighted), values)
    if w.since is not None:
        rows = a.rows(fold(a, q * w.since[:, :, None, ...]))
    out = a.settle(own + a.multiply(rows, a.columns(state)))
    return unfold(a, out, q), scores


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


def _add(a: Arithmetic, sums: Sums, k: Features, v: Any, w: Weights) -> Sums:
    high, low = absorbed(a, k.rotated, v, sums.numerator, sums.numerator_low, w)
    z = log = (None, None)
    if sums.normaliser is not None:
        weighted = k.plain if w.until is None else k.plain * w.until
        update = a.backend.namespace(weighted).matrix_transpose(a.sum(weighted, -2))
        before, before_low = (_decayed(a, x, w) for x in (sums.normaliser, sums.normaliser_low))
        z = kahan(a.settle, before, before_low, update)
    if sums.log_decay is not None:
        log = two_words((sums.log_decay, sums.log_decay_low), w.total)
    return Sums(high, low, *z, *log)


def _decayed(a: Arithmetic, x: Any, w: Weights) -> Any:
    return x if w.whole is None else a.settle(a.product(x, w.whole))


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


def chunk_weights(form: Form, gate: Any, gate_low: Any, like: Any) -> Weights:
    """Return the weights of a chunk of as many tokens as `like` has."""
    backend = form.arithmetic.backend
    lower = _lower(like.shape[-2], form.dtype, backend, like)
    if gate is not None:
        xp = backend.namespace(gate)
        gate = xp.maximum(gate, xp.zeros_like(gate) + LEAST)
    return weights(form.arithmetic, gate, gate_low, lower)


_triangles = Cache(16 * 2**20)


def _lower(size: int, dtype: str, backend: Backend, like: Any) -> Any:
    """Return the lower triangle of ones where `like` is."""
    place = backend.device_key(like)
    key = (size, dtype, backend.name, type(like), place)
    triangle = None if place is None else _triangles.get(key)
    if triangle is None:
        triangle = backend.to_device(np.tril(np.ones((size, size), dtype)), like)
        if place is not None:
            _triangles.put(key, triangle, size * size * 8)
    return triangle


def widen(form: Form, x: Any) -> Any:
    """Return x in the compute dtype."""
    return x if dtype_name(x) == form.dtype else form.arithmetic.backend.widen(x, form.dtype)


def narrow(form: Form, x: Any, like: Any) -> Any:
    """Return x rounded to like's dtype."""
    return x if dtype_name(like) == form.dtype else form.arithmetic.backend.narrow(x, like.dtype)

"""Gradients of linear attention by the function itself, with memory linear in the tokens.

With o = f(q, k, v), the numerators, and a bar for gradients:

    q̄ = f(ō, v, k),   and on reversed time   k̄ = f(v, ō, q),   v̄ = f(k, q, ō)

(Katharopoulos et al., arXiv 2006.16236, equations 13 to 15).  The normaliser is f with values of 1.
No state of a chunk is stored: each of the three runs the chunks again, in the same arithmetic.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from rotary.linear import chunks
from rotary.linear.chunks import Features, Form, Inputs, Sums
from rotary.linear.decays import LEAST


class _Pulled(NamedTuple):
    """Gradients of f(q, k, v) from a state on, but that by v."""

    by_q: Any
    by_k: Any
    by_state: Any
    drift: Any
    """By the prefix sums of log gates; None where nothing passes through them."""


def pull_back(
    form: Form, inputs: Inputs, sums: Sums, by_out: Any, by_sums: Sums
) -> tuple[Inputs, Sums]:
    """Return the gradients of inputs and sums; None where nothing can be differentiated.

    The low words are what rounding took: their gradient would count that of the sums twice.
    """
    a = form.arithmetic
    xp = a.backend.namespace(inputs.v)
    if inputs.q is None:
        nothing = inputs._replace(q=xp.zeros_like(inputs.k))
        zero = xp.zeros_like(inputs.v[:, :, None, ...])
        of_inputs, of_sums = pull_back(form, nothing, sums, zero, by_sums)
        return of_inputs._replace(q=None), of_sums
    q = chunks.features(form, inputs.q, inputs.cos, inputs.sin, None, form.scale)
    k, v = chunks.keys_and_values(form, inputs)
    by_out = a.enter(chunks.widen(form, by_out))
    gate = (inputs.gate, inputs.gate_low)
    one, factor = xp.ones_like(v[..., :1]), None
    if form.eps is not None:
        total, _ = numerators(form, q.plain, k.plain, one, gate, sums.normaliser)
        factor = a.reciprocal(total + form.eps)
        by_out = a.settle(a.product(by_out, factor))

    above = _pull(form, q.rotated, k.rotated, v, gate, by_out, sums.numerator, by_sums.numerator)
    by_v, _ = backwards(form, k.rotated, q.rotated, by_out, gate, by_sums.numerator)
    below = _Pulled(None, None, None, None)
    if form.eps is not None:
        # With out = n/d, d̄ = −n·n̄/d; and n·n̄ = q·q̄, so that n is not computed again.
        by_total = a.settle(a.product(-_dot(a, q.rotated, above.by_q), factor))
        below = _pull(
            form, q.plain, k.plain, one, gate, by_total, sums.normaliser, by_sums.normaliser
        )
    tables = (inputs.cos, inputs.sin)
    key_tables = tables if inputs.key_cos is None else (inputs.key_cos, inputs.key_sin)
    by_features = Features(above.by_q, below.by_q)
    by_keys = Features(*(None if x is None else x[:, :, None, ...] for x in (above[1], below[1])))
    return (
        Inputs(
            _through_features(form, inputs.q, tables, None, by_features, form.scale),
            _through_features(form, inputs.k, key_tables, inputs.mask, by_keys),
            chunks.narrow(form, _selected(a, by_v, inputs.mask), inputs.v),
            _by_gate(a, above.drift, below.drift, by_sums.log_decay),
        ),
        Sums(above.by_state, None, below.by_state, None, by_sums.log_decay, None),
    )


def _pull(
    form: Form,
    q: Any,
    k: Any,
    v: Any,
    gate: tuple[Any, Any],
    by_out: Any,
    state: Any,
    by_state: Any,
) -> _Pulled:
    a = form.arithmetic
    transpose = a.backend.namespace(q).matrix_transpose
    by_q, after = numerators(form, by_out, v, k, gate, transpose(state))
    by_k, by_first = backwards(form, v, by_out, q, gate, transpose(by_state))
    drift = None
    if form.decays:
        drift = _drift(a, _dot(a, q, by_q), _dot(a, k, by_k), transpose(after), by_state)
    return _Pulled(by_q, by_k, transpose(by_first), drift)


def numerators(
    form: Form, q: Any, k: Any, v: Any, gate: tuple[Any, Any], state: Any
) -> tuple[Any, Any]:
    """Return f(q, k, v) from a state on, and the state after it; nothing is mapped or rotated.

    q is (batch, kv_heads, group, seq, d), k (batch, kv_heads, seq, d).
    """
    a = form.arithmetic
    zero = a.backend.namespace(state).zeros_like(state)
    sums = Sums(state, zero, None, None)
    keys = Inputs(None, k, v, *gate)
    if form.causal:
        out, after = chunks.over_chunks(form, partial(_step, form), sums, keys._replace(q=q))
    else:
        _, after = chunks.over_chunks(form, partial(_add, form), sums, keys)
        read = partial(_read, form)
        out, _ = chunks.over_chunks(form, read, after, Inputs(q, None, None))
    return out, after.numerator


def _step(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
    w = chunks.chunk_weights(form, chunk.gate, chunk.gate_low, chunk.v)
    out, _ = chunks.attend(form.arithmetic, chunk.q, chunk.k, chunk.v, sums.numerator, w)
    return _absorbed(form, sums, chunk, w), out


def _add(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, None]:
    w = chunks.chunk_weights(form, chunk.gate, chunk.gate_low, chunk.v)
    return _absorbed(form, sums, chunk, w), None


def _read(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
    return sums, chunks.past(form.arithmetic, chunk.q, sums.numerator)


def _absorbed(form: Form, sums: Sums, chunk: Inputs, w: Any) -> Sums:
    a = form.arithmetic
    both = chunks.absorbed(a, chunk.k, chunk.v, sums.numerator, sums.numerator_low, w)
    return Sums(*both, None, None)


def backwards(
    form: Form, q: Any, k: Any, v: Any, gate: tuple[Any, Any], state: Any
) -> tuple[Any, Any]:
    """Return f(q, k, v) on reversed time, summed over a group, and the gradient of the state.

    q is (batch, kv_heads, seq, d); k and v have the group's axis.  `state` is the gradient of the
    state after the last token.
    """
    a = form.arithmetic
    xp = a.backend.namespace(q)
    batch, heads, group, seq, _ = k.shape

    def apart(x: Any) -> Any:
        return xp.reshape(x, (x.shape[0], heads * group, *x.shape[-2:]))

    def repeated(x: Any) -> Any:
        wide = xp.broadcast_to(x[:, :, None, ...], (*x.shape[:2], group, *x.shape[-2:]))
        return apart(wide)

    q, k, v = repeated(q), apart(k), apart(v)
    if group > 1:  # the state's gradient counts once
        others = xp.zeros_like(state[:, :, None, ...])
        state = apart(xp.concat([state[:, :, None, ...], *[others] * (group - 1)], axis=2))
    first = None if gate[0] is None else gate[0][..., :1, :]
    if form.causal:
        q, k, v = (xp.flip(x, axis=-2) for x in (q, k, v))
        gate = tuple(None if g is None else _reversed_gate(xp, repeated(g)) for g in gate)  # type: ignore[assignment]
    out, after = numerators(form, q[:, :, None, ...], k, v, gate, state)
    out = out[:, :, 0, ...]
    if form.causal:
        out = xp.flip(out, axis=-2)
    out = _sum_of_group(xp.reshape(out, (batch, heads, group, seq, -1)))
    after = _sum_of_group(xp.reshape(after, (batch, heads, group, *after.shape[-2:])))
    if first is not None and seq:
        first = a.exp(xp.maximum(first, xp.zeros_like(first) + LEAST))
        after = a.settle(a.product(after, first))
    return out, after


def _reversed_gate(xp: Any, gate: Any) -> Any:
    """Return the gates of reversed time: token t is reached through the gate of token t + 1."""
    turned = xp.flip(gate, axis=-2)
    return xp.concat([xp.zeros_like(turned[..., :1, :]), turned[..., :-1, :]], axis=-2)


def _sum_of_group(x: Any) -> Any:
    total = x[:, :, 0, ...]
    for i in range(1, x.shape[2]):
        total = total + x[:, :, i, ...]
    return total


def _dot(a: Any, x: Any, y: Any) -> Any:
    """Return the sum over features, with an axis of length 1."""
    return a.sum(a.product(x, y), -1)


def _drift(a: Any, of_q: Any, of_k: Any, after: Any, by_after: Any) -> Any:
    """Return the gradient by c_t, the prefix sums of log gates, (batch, kv_heads, seq, 1).

    Query t has e^{c_t}, key t e^{−c_t}, the last state e^{c_T}.
    """
    drift = _sum_of_group(of_q) - of_k
    if not drift.shape[-2]:
        return drift
    end = a.sum(a.sum(a.product(after, by_after), -1), -2)
    xp = a.backend.namespace(drift)
    return xp.concat([drift[..., :-1, :], drift[..., -1:, :] + end], axis=-2)


def _by_gate(a: Any, above: Any, below: Any, by_log_decay: Any) -> Any:
    """Return the gradient by log gates: each is a part of all prefix sums from its token on."""
    if above is None:
        return None
    xp = a.backend.namespace(above)
    drift = above if below is None else above + below
    high, low = a.prefix(xp.flip(drift, axis=-2), None)
    by_gate = xp.flip(high + low, axis=-2)
    return by_gate if by_log_decay is None else by_gate + by_log_decay


def _through_features(
    form: Form, x: Any, tables: tuple[Any, Any], mask: Any, by: Features, scale: float = 1.0
) -> Any:
    """Return the gradient by x of its features, in x's dtype."""
    a = form.arithmetic
    total = by.rotated
    if form.rotate == "numerator":
        total = chunks.turn(form, total, *tables, inverse=True)
    if by.plain is not None:
        total = total + by.plain
    if form.rotate == "both":
        total = chunks.turn(form, total, *tables, inverse=True)
    if scale != 1.0:
        total = total * scale
    wide = a.enter(chunks.widen(form, x))
    if form.rotate == "before_map":
        wide = chunks.turn(form, wide, *tables)
    total = a.settle(total * form.feature_map.slope(a, wide))
    if form.rotate == "before_map":
        total = chunks.turn(form, total, *tables, inverse=True)
    if mask is not None:
        xp = a.backend.namespace(total)
        total = xp.where(mask, total, xp.zeros_like(total))
    return chunks.narrow(form, total, x)


def _selected(a: Any, x: Any, mask: Any) -> Any:
    if mask is None:
        return x
    xp = a.backend.namespace(x)
    return xp.where(mask[:, :, 0, ...], x, xp.zeros_like(x))

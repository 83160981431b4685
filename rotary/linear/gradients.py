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
from rotary.linear.arithmetic import dot
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

    The low words are what rounding took: their gradient would count that of the sums twice.  The
    maxima that random features are relative to count as constants.
    """
    a = form.arithmetic
    xp = a.backend.namespace(inputs.v)
    if inputs.q is None:
        nothing = inputs._replace(q=xp.zeros_like(inputs.k))
        zero = xp.zeros_like(inputs.v[:, :, None, ...])
        of_inputs, of_sums = pull_back(form, nothing, sums, zero, by_sums)
        return of_inputs._replace(q=None), of_sums
    q = chunks.queries(form, inputs)
    k, v, gate, maximum = chunks.keys(form, inputs, _maximum(form, inputs, sums))
    by_out = a.enter(chunks.widen(form, by_out))
    one, factor = xp.ones_like(v[..., :1]), None
    if form.eps is not None:
        total, _ = numerators(form, q.plain, k.plain, one, gate, sums.normaliser)
        factor = a.reciprocal(total + form.eps)
        by_out = a.settle(a.product(by_out, factor))
    residual = None
    if form.delta:
        residual = _residuals(form, k.rotated, v, inputs.beta, gate, sums.numerator)
        v = a.settle(a.product(residual, inputs.beta))

    above = _pull(form, q.rotated, k.rotated, v, gate, by_out, sums.numerator, by_sums.numerator)
    by_v, _ = backwards(form, k.rotated, q.rotated, by_out, gate, by_sums.numerator)
    by_beta = None
    if form.delta:
        above, by_v, by_beta = _through_residuals(
            form, k.rotated, v, residual, inputs.beta, gate, sums.numerator, above, by_v
        )
    below = _Pulled(None, None, None, None)
    if form.eps is not None:
        # With out = n/d, d̄ = −n·n̄/d; and n·n̄ = q·q̄, so that n is not computed again.
        by_total = a.settle(a.product(-dot(a, q.rotated, above.by_q), factor))
        below = _pull(
            form, q.plain, k.plain, one, gate, by_total, sums.normaliser, by_sums.normaliser
        )
    by_features = Features(above.by_q, below.by_q)
    by_keys = Features(*(None if x is None else x[:, :, None, ...] for x in (above[1], below[1])))
    return (
        Inputs(
            _through_features(
                form, inputs.q, (inputs.cos, inputs.sin), None, None, by_features, form.scale
            ),
            _through_features(
                form, inputs.k, chunks.key_tables(inputs), inputs.mask, maximum, by_keys
            ),
            chunks.narrow(form, _selected(a, by_v, inputs.mask), inputs.v),
            _by_gate(a, above.drift, below.drift, by_sums.log_decay),
            beta=by_beta,
        ),
        Sums(above.by_state, None, below.by_state, None, by_sums.log_decay, None),
    )


def _maximum(form: Form, inputs: Inputs, sums: Sums) -> Any:
    """Return the maximum of random features that the first token's are relative to, or None."""
    if form.feature_map.logarithmic and not form.causal:
        return chunks.topmost(form, inputs, sums)
    return sums.maximum


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
    by_q, after = numerators(form, by_out, v, k, gate, transpose(state), by_value=True)
    by_k, by_first = backwards(form, v, by_out, q, gate, transpose(by_state), by_value=True)
    drift = None
    if form.decays:
        of_q, of_k = _sum_of_group(_shares(a, q, by_q, gate)), _shares(a, k, by_k, gate)
        end = a.sum(a.settle(a.product(transpose(after), by_state)), -1)
        end = transpose(end) if _by_channel(gate) else a.sum(end, -2)
        drift = _at_last(a, of_q - of_k, end)
    return _Pulled(by_q, by_k, transpose(by_first), drift)


def _residuals(form: Form, k: Any, v: Any, beta: Any, gate: tuple[Any, Any], state: Any) -> Any:
    """Return what the delta rule adds for each token, before its beta."""
    sums = Sums(state, form.arithmetic.backend.namespace(state).zeros_like(state), None, None)

    def step(sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
        a = form.arithmetic
        w = chunks.chunk_weights(form, (chunk.gate, chunk.gate_low), chunk.v)
        found = chunks.residuals(form, chunk.k, chunk.v, chunk.beta, sums.numerator, w)
        added = a.settle(a.product(found, chunk.beta))
        return _absorbed(form, sums, chunk._replace(v=added), w), found

    return chunks.over_chunks(form, step, sums, Inputs(None, k, v, *gate, beta))[0]


def _through_residuals(
    form: Form,
    k: Any,
    added: Any,
    residual: Any,
    beta: Any,
    gate: tuple[Any, Any],
    state: Any,
    above: _Pulled,
    by_added: Any,
) -> tuple[_Pulled, Any, Any]:
    """Return gradients with what passes through what is added, and those by v and beta.

    r = v − (decayed S)ᵀ k is linear in v and in the r before.  Its adjoint w is the same system on
    reversed time: w_t = ū_t − Σ_{s>t} e^{c_s − c_t} (k_t·k_s) β_s w_s, and v̄ = β w.
    """
    a = form.arithmetic
    xp = a.backend.namespace(k)
    first, last, share = (xp.flip(x, axis=-2) for x in (k, by_added, beta))
    later = _reversed_gates(xp, gate)
    adjoint = _residuals(form, first, last, share, later, xp.zeros_like(state))
    adjoint = xp.flip(adjoint, axis=-2)
    by_v = a.settle(a.product(adjoint, beta))

    queries, state = by_v[:, :, None, ...], xp.matrix_transpose(state)
    as_query, _ = numerators(form, queries, added, k, gate, state, strict=True, by_value=True)
    as_query = as_query[:, :, 0, ...]
    as_key, by_first = backwards(
        form,
        added,
        queries,
        k[:, :, None, ...],
        gate,
        xp.zeros_like(state),
        strict=True,
        by_value=True,
    )
    drift = above.drift
    if drift is not None:
        drift = drift - (_shares(a, k, as_query, gate) - _shares(a, k, as_key, gate))
    found = _Pulled(
        above.by_q,
        a.settle(above.by_k - (as_query + as_key)),
        a.settle(above.by_state - xp.matrix_transpose(by_first)),
        drift,
    )
    return found, by_v, dot(a, adjoint, residual)


def numerators(
    form: Form,
    q: Any,
    k: Any,
    v: Any,
    gate: tuple[Any, Any],
    state: Any,
    *,
    strict: bool = False,
    by_value: bool = False,
) -> tuple[Any, Any]:
    """Return f(q, k, v) from a state on, and the state after it; nothing is mapped or rotated.

    q is (batch, kv_heads, group, seq, d), k (batch, kv_heads, seq, d).  Strict sums leave out a
    query's own token.  `by_value` means that v's channels decay, if channels do, and not k's.
    """
    a = form.arithmetic
    zero = a.backend.namespace(state).zeros_like(state)
    sums = Sums(state, zero, None, None)
    if not strict:
        plain = form._replace(rotate=None, scale=1.0, eps=None, delta=False)
        given = Inputs(q, k[:, :, None, ...], v, *gate)
        found = chunks.fused(plain, "identity", given, sums)
        if found is not None:
            return found[0], found[1].numerator
    keys = Inputs(None, k, v, *gate)
    by_value = by_value and _by_channel(gate)
    add = partial(_absorbed_by_value if by_value else _absorbed, form)

    def weights(chunk: Inputs) -> Any:
        pair = (chunk.gate, chunk.gate_low)
        return chunks.chunk_weights(form, pair, chunk.v, strict=strict)

    def step(sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
        w, given = weights(chunk), (chunk.q, chunk.k, chunk.v, sums.numerator)
        if by_value:
            return add(sums, chunk, w), chunks.attend_by_value(a, *given, w)
        return add(sums, chunk, w), chunks.attend(a, *given, w)[0]

    if form.causal:
        out, after = chunks.over_chunks(form, step, sums, keys._replace(q=q))
    else:
        _, after = chunks.over_chunks(
            form, lambda sums, chunk: (add(sums, chunk, weights(chunk)), None), sums, keys
        )
        read = partial(_read, form)
        out, _ = chunks.over_chunks(form, read, after, Inputs(q, None, None))
    return out, after.numerator


def _read(form: Form, sums: Sums, chunk: Inputs) -> tuple[Sums, Any]:
    return sums, chunks.past(form.arithmetic, chunk.q, sums.numerator)


def _absorbed(form: Form, sums: Sums, chunk: Inputs, w: Any) -> Sums:
    a = form.arithmetic
    both = chunks.absorbed(a, chunk.k, chunk.v, sums.numerator, sums.numerator_low, w)
    return Sums(*both, None, None)


def _absorbed_by_value(form: Form, sums: Sums, chunk: Inputs, w: Any) -> Sums:
    a = form.arithmetic
    both = chunks.absorbed_by_value(a, chunk.k, chunk.v, sums.numerator, sums.numerator_low, w)
    return Sums(*both, None, None)


def backwards(
    form: Form,
    q: Any,
    k: Any,
    v: Any,
    gate: tuple[Any, Any],
    state: Any,
    *,
    strict: bool = False,
    by_value: bool = False,
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
        high, low = _reversed_gates(xp, gate)
        gate = (None if high is None else repeated(high), None if low is None else repeated(low))
    out, after = numerators(
        form, q[:, :, None, ...], k, v, gate, state, strict=strict, by_value=by_value
    )
    out = out[:, :, 0, ...]
    if form.causal:
        out = xp.flip(out, axis=-2)
    out = _sum_of_group(xp.reshape(out, (batch, heads, group, seq, -1)))
    after = _sum_of_group(xp.reshape(after, (batch, heads, group, *after.shape[-2:])))
    if first is not None and seq:
        first = a.exp(xp.maximum(first, xp.zeros_like(first) + LEAST))
        first = first if by_value else xp.matrix_transpose(first)
        after = a.settle(a.product(after, first))
    return out, after


def _reversed_gates(xp: Any, gate: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the gates of reversed time: token t is reached through the gate of token t + 1."""

    def turned(word: Any) -> Any:
        if word is None:
            return None
        word = xp.flip(word, axis=-2)
        return xp.concat([xp.zeros_like(word[..., :1, :]), word[..., :-1, :]], axis=-2)

    return turned(gate[0]), turned(gate[1])


def _sum_of_group(x: Any) -> Any:
    total = x[:, :, 0, ...]
    for i in range(1, x.shape[2]):
        total = total + x[:, :, i, ...]
    return total


def _by_channel(gate: tuple[Any, Any]) -> bool:
    """Whether there is a gate for each channel."""
    return gate[0] is not None and gate[0].shape[-1] != 1


def _shares(a: Any, x: Any, by_x: Any, gate: tuple[Any, Any]) -> Any:
    """Return what x = e^c ⊙ … gives to the gradient by c, (…, seq, 1 or channels)."""
    return a.settle(a.product(x, by_x)) if _by_channel(gate) else dot(a, x, by_x)


def _at_last(a: Any, drift: Any, end: Any) -> Any:
    """Return the gradient by c_t, (batch, kv_heads, seq, 1 or channels), with that of the state.

    Query t has e^{c_t}, key t e^{−c_t}, the last state e^{c_T}.
    """
    if not drift.shape[-2]:
        return drift
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
    form: Form,
    x: Any,
    tables: tuple[Any, Any],
    mask: Any,
    maximum: Any,
    by: Features,
    scale: float = 1.0,
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
        total = a.product(total, scale)
    wide = a.enter(chunks.widen(form, x))
    if form.rotate == "before_map":
        wide = chunks.turn(form, wide, *tables)
    if form.feature_map.logarithmic:
        y = form.feature_map.of(a, wide)
        if maximum is None:
            top = a.backend.namespace(y).max(y, axis=-1, keepdims=True)
        else:
            top = maximum[:, :, None, ...]
        total = a.settle(total * chunks.relative_exp(form, y, top))
    total = a.settle(form.feature_map.pull(a, wide, total))
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

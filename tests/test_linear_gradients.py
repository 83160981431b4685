"""Gradients of linear attention: right, the same in all forms, and with memory linear in tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from linear_samples import (
    BATCH,
    CHUNK,
    HEADS,
    KEY_DIM,
    KV_HEADS,
    VALUE_DIM,
    VARIANTS,
    attention,
    sample,
)

from rotary.conformance.linear_oracle import Variant
from rotary.linear import LinearAttention, RetNet, State, combine

torch = pytest.importorskip("torch")

SEQ = 37


def quadratic(variant: Variant, inputs: list[Any], first: list[Any], mask: Any) -> tuple[Any, ...]:
    """Return outputs and the state after them, from a first state on, written in plain torch."""
    (q, k, v, *gate), (state, total) = inputs, first
    group = HEADS // KV_HEADS
    k, v, state, total = (x.repeat_interleave(group, 1) for x in (k, v, state, total))
    rope = attention(variant).rope
    where = torch.arange(SEQ).repeat(BATCH, 1)
    if mask is not None:
        where = (mask.long().cumsum(1) - 1).clamp(min=0)
        k, v = (torch.where(mask[:, None, :, None], x, 0.0) for x in (k, v))

    def turn(x: Any, role: str) -> Any:
        if rope is None:
            return x
        return rope(x, positions=where.numpy(), role=role if rope.xpos is not None else None)

    def mapped(x: Any) -> Any:
        if variant.feature_map == "elu+1":
            return torch.nn.functional.elu(x) + 1
        if variant.feature_map == "exp":
            return torch.exp(x)
        y = x if variant.feature_map == "identity" else torch.relu(x)
        return y * y if variant.feature_map == "relu2" else y

    before = variant.placement == "before_map"
    if before:
        q, k = turn(q, "query"), turn(k, "key")
    q, k = mapped(q) * variant.scale, mapped(k)
    if mask is not None:
        k = torch.where(mask[:, None, :, None], k, 0.0)
    q_plain, k_plain = q, k
    if not before:
        q, k = turn(q, "query"), turn(k, "key")
    if variant.placement == "both":
        q_plain, k_plain = q, k
    c = torch.zeros(BATCH, HEADS, SEQ, dtype=q.dtype)
    if variant.decay is not None:
        heads = torch.arange(KV_HEADS, dtype=q.dtype)[None, :, None]
        log = gate[0] if gate else torch.log(1 - 2.0 ** (-5 - heads)).expand(BATCH, -1, SEQ)
        log = log.repeat_interleave(group, 1)
        c = (log if mask is None else torch.where(mask[:, None], log, 0.0)).cumsum(-1)
    within = torch.exp((c[..., :, None] - c[..., None, :]).clamp(max=0))
    if variant.causal:
        within = within * torch.tril(torch.ones(SEQ, SEQ, dtype=q.dtype))
    since, until = torch.exp(c)[..., None], torch.exp(c[..., -1:] - c)[..., None]
    out = ((q @ k.mT) * within) @ v + (q * since) @ state
    after = (k * until).mT @ v + state * since[..., -1:, :]
    after_total = (k_plain * until).sum(-2) + total * since[..., -1, :]
    if variant.normalize:
        weight = ((q_plain @ k_plain.mT) * within).sum(-1, keepdim=True)
        out = out / (weight + (q_plain * since) @ total[..., None] + variant.eps)
    return out, after[:, ::group], after_total[:, ::group]


def a_state(variant: Variant, array: Any, numerator: Any, normaliser: Any) -> State:
    """Return a state with these sums."""
    zero = array(np.zeros((BATCH, KV_HEADS)))
    normalised, decays = variant.normalize, variant.decay is not None
    return State(
        numerator,
        array(np.zeros(numerator.shape)),
        normaliser if normalised else None,
        array(np.zeros(normaliser.shape)) if normalised else None,
        zero if decays else None,
        zero if decays else None,
        None,
        None,
        array(np.zeros(BATCH, np.int32)),
    )


def loss(variant: Variant, array: Any, inputs: Any, first: Any, mask: Any, weights: Any) -> Any:
    """Return a number that all outputs and sums are a part of."""
    attn, (q, k, v, *gate) = attention(variant, chunk_size=8), inputs
    more = {"gate": gate[0]} if gate else {}
    if mask is not None:
        more["key_mask"] = array(mask)
    if not variant.causal:
        return (attn(q, k, v, **more) * array(weights[0])).sum()
    out, state = attn.prefill(q, k, v, a_state(variant, array, *first), **more)
    parts = [out, state.numerator] + [state.normaliser] * variant.normalize
    return sum((x * array(w)).sum() for x, w in zip(parts, weights, strict=False))


CASES = {
    **VARIANTS,
    "both, normalised": Variant(rotary_dim=KEY_DIM, placement="both"),
    "bidirectional": Variant(rotary_dim=KEY_DIM, causal=False),
}


def problem(variant: Variant, masked: bool) -> tuple[list[Any], list[Any], Any, list[Any]]:
    """Return inputs, first sums, a mask and the weights of a loss, in float64."""
    rng = np.random.default_rng(3)
    inputs = [x for x in sample(variant, SEQ, dtype=np.float64) if x is not None]
    shape = (BATCH, KV_HEADS, KEY_DIM, VALUE_DIM)
    first = [rng.standard_normal(shape), np.abs(rng.standard_normal(shape[:3]))]
    if not variant.causal:
        first = [np.zeros_like(x) for x in first]
    outputs = (BATCH, HEADS, SEQ, VALUE_DIM)
    weights = [rng.standard_normal(s) for s in (outputs, shape, shape[:3])]
    return inputs, first, (rng.random((BATCH, SEQ)) > 0.3 if masked else None), weights


def wanted(variant: Variant, inputs: Any, first: Any, mask: Any, weights: Any) -> list[Any]:
    """Return the gradients by automatic differentiation of the quadratic form."""
    leaves = [torch.tensor(x, requires_grad=True) for x in (*inputs, *first)]
    count = len(inputs)
    parts = quadratic(
        variant, leaves[:count], leaves[count:], None if mask is None else torch.tensor(mask)
    )
    used = (1 + variant.causal) + (variant.causal and variant.normalize)
    total = sum(
        (x * torch.tensor(w)).sum() for x, w in zip(parts[:used], weights[:used], strict=True)
    )
    return [np.asarray(g) for g in torch.autograd.grad(total, leaves, materialize_grads=True)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_quadratic_form(name: str, masked: bool) -> None:
    variant = dataclasses.replace(CASES[name], eps=1e-3)
    inputs, first, mask, weights = problem(variant, masked)
    want = wanted(variant, inputs, first, mask, weights)
    leaves = [torch.tensor(x, requires_grad=True) for x in (*inputs, *first)]
    count = len(inputs)
    total = loss(variant, torch.tensor, leaves[:count], leaves[count:], mask, weights)
    got = torch.autograd.grad(total, leaves, materialize_grads=True)
    if not variant.causal:  # which has no state to begin from
        got, want = got[:count], want[:count]
    for x, y in zip(got, want, strict=True):
        assert np.abs(np.asarray(x) - y).max() <= 1e-11 * max(1.0, np.abs(y).max())


@pytest.mark.parametrize("name", ["rope", "gate, normalised"])
def test_jax_gives_the_same_gradients_under_jit(name: str) -> None:
    jax = pytest.importorskip("jax")
    variant = dataclasses.replace(CASES[name], eps=1e-3)
    inputs, first, mask, weights = problem(variant, True)
    want = wanted(variant, inputs, first, mask, weights)
    with jax.enable_x64(True):
        leaves = [jax.numpy.asarray(x) for x in (*inputs, *first)]

        def of_leaves(*leaves: Any) -> Any:
            given, sums = leaves[: len(inputs)], leaves[len(inputs) :]
            return loss(variant, jax.numpy.asarray, given, sums, mask, weights)

        got = jax.jit(jax.grad(of_leaves, argnums=tuple(range(len(leaves)))))(*leaves)
    for x, y in zip(got, want, strict=True):
        assert np.abs(np.asarray(x) - y).max() <= 1e-11 * max(1.0, np.abs(y).max())


def gradients(call: Any, given: list[Any]) -> list[Any]:
    leaves = [torch.tensor(x, requires_grad=True) for x in given]
    out = call(*leaves)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [g.numpy() for g in torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("name", ["rope", "gate, normalised", "retnet"])
def test_gradients_do_not_depend_on_the_form(name: str) -> None:
    variant = dataclasses.replace(VARIANTS[name], eps=1e-3)
    given = [x for x in sample(variant, SEQ, dtype=np.float64) if x is not None]

    def more(gate: Any) -> Any:
        return {"gate": gate[0]} if gate else {}

    def whole(q: Any, k: Any, v: Any, *gate: Any) -> Any:
        return attention(variant)(q, k, v, causal=True, **more(gate))

    def parallel(q: Any, k: Any, v: Any, *gate: Any) -> Any:
        return attention(variant, chunk_size=SEQ)(q, k, v, causal=True, **more(gate))

    def steps(*given: Any) -> Any:
        attn, state, outputs = attention(variant), None, []
        for t in range(SEQ):
            q, k, v, *gate = (x[:, :, t : t + 1] for x in given)
            out, state = attn.step(q, k, v, state, **more(gate))
            outputs.append(out)
        return torch.concat(outputs, dim=2)

    def split(*given: Any) -> Any:
        attn, state, outputs = attention(variant), None, []
        for start, stop in ((0, 5), (5, 30), (30, SEQ)):
            q, k, v, *gate = (x[:, :, start:stop] for x in given)
            out, state = attn.prefill(q, k, v, state, **more(gate))
            outputs.append(out)
        return torch.concat(outputs, dim=2)

    def combined(*given: Any) -> Any:
        attn, states = attention(variant), []
        for start, stop in ((0, 5), (5, 20)):
            _, k, v, *gate = (x[:, :, start:stop] for x in given)
            states.append(attn.segment(k, v, positions=range(start, stop), **more(gate)))
        q, k, v, *gate = (x[:, :, 20:] for x in given)
        out, _ = attn.prefill(q, k, v, combine(*states), **more(gate))
        first, *_ = attn.prefill(
            *(x[:, :, :20] for x in given[:3]), **more([x[:, :, :20] for x in given[3:]])
        )
        return torch.concat([first, out], dim=2)

    want = gradients(whole, given)
    for form in (parallel, steps, split, combined):
        for got, x in zip(gradients(form, given), want, strict=True):
            assert np.abs(got - x).max() <= 1e-11 * np.abs(x).max()


def test_packed_gradients_are_each_by_itself() -> None:
    variant = VARIANTS["rope"]
    attn, given = attention(variant), sample(variant, SEQ, batch=1)

    def packed(q: Any, k: Any, v: Any) -> Any:
        return attn(q, k, v, causal=True, cu_seqlens=[0, 20, SEQ])

    def apart(q: Any, k: Any, v: Any) -> Any:
        parts = (
            attn(*(x[:, :, part] for x in (q, k, v)), causal=True)
            for part in (slice(0, 20), slice(20, SEQ))
        )
        return torch.concat(list(parts), dim=2)

    for x, y in zip(
        gradients(packed, list(given[:3])), gradients(apart, list(given[:3])), strict=True
    ):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("causal", [True, False])
def test_what_is_masked_has_no_gradient_whatever_it_holds(causal: bool) -> None:
    variant = VARIANTS["rope"]
    given = sample(variant, SEQ)
    mask = np.ones((BATCH, SEQ), bool)
    mask[0, :9] = False
    given.k[0, :, :9], given.v[0, :, :9] = np.inf, np.nan

    def call(q: Any, k: Any, v: Any) -> Any:
        return attention(variant)(q, k, v, causal=causal, key_mask=torch.tensor(mask))

    by_q, by_k, by_v = gradients(call, list(given[:3]))
    for x in (by_q, by_k, by_v):
        assert np.isfinite(x).all()
    assert not by_k[0, :, :9].any()
    assert not by_v[0, :, :9].any()


def test_callables_and_softmax_pass_gradients() -> None:
    given = list(sample(Variant(), 3, dtype=np.float64, batch=1, heads=2, kv_heads=1)[:3])
    for attn, causal in (
        (LinearAttention(torch.exp, normalize=True, eps=1e-3), True),
        (LinearAttention("exp", eps=1e-3), True),
        (LinearAttention("softmax"), False),
    ):

        def call(q: Any, k: Any, v: Any, attn: Any = attn, causal: bool = causal) -> Any:
            return attn(q, k, v, causal=causal)

        leaves = [torch.tensor(x, requires_grad=True) for x in given]
        assert torch.autograd.gradcheck(call, leaves)


def test_exact_softmax_features_pass_gradients() -> None:
    given = list(sample(Variant(), 12)[:3])
    got = gradients(LinearAttention("softmax", arithmetic="exact"), given)
    want = gradients(LinearAttention("softmax"), given)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_gradients_are_rounded_once(dtype: str) -> None:
    variant = VARIANTS["rope"]
    given = [torch.tensor(x).to(getattr(torch, dtype)) for x in sample(variant, SEQ)[:3]]
    wide = [x.float().requires_grad_() for x in given]
    narrow = [x.requires_grad_() for x in given]
    attn = attention(variant)
    weight = torch.ones(BATCH, HEADS, SEQ, VALUE_DIM)
    want = torch.autograd.grad((attn(*wide, causal=True) * weight).sum(), wide)
    got = torch.autograd.grad((attn(*narrow, causal=True).float() * weight).sum(), narrow)
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y.to(x.dtype))


def test_the_gradient_keeps_no_state_of_a_chunk() -> None:
    jax = pytest.importorskip("jax")
    attn = LinearAttention(chunk_size=CHUNK, decay=RetNet(), normalize=True)

    def total(q: Any, k: Any, v: Any) -> Any:
        return attn(q, k, v, causal=True).sum()

    used = []
    for seq in (1024, 4096):
        x = jax.numpy.ones((1, 1, seq, 32))
        program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x).compile()
        used.append(program.memory_analysis().temp_size_in_bytes / x.nbytes)
    # Of the size of an input; a state of 32 × 32 a chunk of 16 would add two for each.
    assert used[1] <= used[0] * 1.1 < 40


@pytest.mark.large
@pytest.mark.parametrize("name", ["gate, normalised", "rope"])
def test_exact_gradients_are_the_same_bits_on_torch_and_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    variant = VARIANTS[name]
    attn = attention(variant, arithmetic="exact")
    seq = CHUNK if variant.decay else 2 * CHUNK  # programs of one chunk compile faster
    given = [x for x in sample(variant, seq) if x is not None]
    shape = (BATCH, HEADS, seq, VALUE_DIM)
    weight = np.random.default_rng(1).standard_normal(shape, np.float32)

    def call(q: Any, k: Any, v: Any, *gate: Any) -> Any:
        return attn(q, k, v, causal=True, **({"gate": gate[0]} if gate else {}))

    leaves = [torch.tensor(x, requires_grad=True) for x in given]
    want = torch.autograd.grad(call(*leaves), leaves, torch.tensor(weight))
    got = jax.jit(lambda *x: jax.vjp(call, *x)[1](weight))(*given)
    for x, y in zip(got, want, strict=True):
        assert np.array_equal(np.asarray(x), y.numpy())

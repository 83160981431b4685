"""Gradients of gates, the delta rules and wider feature maps: right, and the same in all forms."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from linear_family_samples import (
    BATCH,
    BOTH_WAYS,
    FAMILIES,
    GATED,
    HEADS,
    KEY_DIM,
    KV_HEADS,
    VALUE_DIM,
    Sample,
    attention,
    sample,
)

from rotary.linear import LinearAttention, State, combine

torch = pytest.importorskip("torch")

SEQ, SPLIT = 13, 5
GROUP = HEADS // KV_HEADS
every_family = pytest.mark.parametrize("name", FAMILIES)


def assert_near(got: Any, want: Any) -> None:
    """Hold gradients to 1e-10 of the largest of each."""
    for x, y in zip(got, want, strict=True):
        x, y = (np.asarray(z.detach() if hasattr(z, "detach") else z) for z in (x, y))
        assert x.shape == y.shape
        assert np.isfinite(x).all()
        assert np.abs(x - y).max(initial=0) <= 1e-10 * max(1.0, np.abs(y).max(initial=0))


# -- by automatic differentiation of the recurrence ----------------------------------------------


def mapped(name: str, x: Any, where: Any) -> Any:
    """Return the features, of FAVOR+ their exponents, in plain torch."""
    variant = FAMILIES[name].variant
    if variant.feature_map == "l2norm":
        return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)
    if variant.feature_map == "taylor":
        i, j = np.triu_indices(KEY_DIM, 1)
        one, root = torch.ones_like(x[..., :1]), KEY_DIM**0.5
        squares, products = x * x / 2**0.5 / root, x[..., i] * x[..., j] / root
        return torch.cat([one, x / root**0.5, squares, products], -1)
    if variant.feature_map == "cosformer":
        angle = (where.double() * (np.pi / 2 / variant.length))[:, None, :, None]
        y = torch.relu(x)
        return torch.cat([y * torch.cos(angle), y * torch.sin(angle)], -1)
    if variant.feature_map == "favor":
        x = x / KEY_DIM**0.25
        omega = torch.tensor(np.array(variant.projection))
        return x @ omega.T - (x * x).sum(-1, keepdim=True) / 2
    return torch.nn.functional.elu(x) + 1 if variant.feature_map == "elu+1" else x


def recurrence(name: str, inputs: Sample, first: list[Any], mask: Any, causal: bool) -> Any:
    """Return outputs and the sums after them, token by token, for one sequence from 0 on.

    `first` are numerator, normaliser and, of FAVOR+, the maximum.
    """
    variant = FAMILIES[name].variant
    rope = attention(name).rope
    heads = [x.repeat_interleave(GROUP, 1) for x in (inputs.k, inputs.v)]
    q, k, v = inputs.q, *heads
    state, total, *maximum = (x.repeat_interleave(GROUP, 1) for x in first)
    kept = torch.ones(BATCH, SEQ, dtype=torch.bool) if mask is None else torch.tensor(mask)
    where = (kept.long().cumsum(1) - 1).clamp(min=0)

    def turn(x: Any) -> Any:
        return x if rope is None else rope(x, positions=where.numpy())

    before = variant.placement == "before_map"
    q, k = (turn(x) for x in (q, k)) if before else (q, k)
    q, k = (mapped(name, x, where) for x in (q, k))
    if variant.feature_map == "favor":
        q = torch.exp(q - q.amax(-1, keepdim=True).detach()) / q.shape[-1] ** 0.5
    q = q * variant.scale
    q_plain, k_plain = q, k
    q, k = (q, k) if before else (turn(q), turn(k))
    gate = torch.zeros(BATCH, HEADS, SEQ, 1, dtype=v.dtype)
    if variant.decay == "gate":
        gate = inputs.gate.repeat_interleave(GROUP, 1)
        gate = gate if gate.ndim == 4 else gate[..., None]
    elif variant.decay == "retnet":
        gamma = torch.log(1 - 2.0 ** (-5.0 - torch.arange(KV_HEADS, dtype=v.dtype)))
        gate = gate + gamma.repeat_interleave(GROUP)[None, :, None, None]
    beta = None if inputs.beta is None else inputs.beta.repeat_interleave(GROUP, 1)
    if maximum and not causal:
        seen = torch.where(kept[:, None, :, None], k, -torch.inf)
        maximum = [seen.detach().amax((-1, -2))]

    outputs = []
    for t in range(SEQ):
        here = kept[:, None, t]
        key, plain, value = k[:, :, t], k_plain[:, :, t], v[:, :, t]
        factor = torch.exp(gate[:, :, t])
        if maximum:
            top = torch.where(here, key.detach().amax(-1), -torch.inf)
            rises = torch.maximum(maximum[0], top)
            factor = torch.exp(maximum[0] - rises)[..., None]
            maximum = [rises]
            key = plain = torch.exp(key - rises[..., None]) / key.shape[-1] ** 0.5
        decayed = state * factor[..., None]
        if beta is not None:
            predicted = torch.einsum("bhd,bhde->bhe", key, decayed)
            value = beta[:, :, t, None] * (value - predicted)
        after = decayed + key[..., :, None] * value[..., None, :]
        state = torch.where(here[..., None, None], after, state)
        total = torch.where(here[..., None], total * factor + plain, total)
        outputs.append((state, total))
    out = []
    for t in range(SEQ):
        state, total = outputs[t if causal else -1]
        y = torch.einsum("bhd,bhde->bhe", q[:, :, t], state)
        if variant.normalize:
            y = y / ((q_plain[:, :, t] * total).sum(-1, keepdim=True) + variant.eps)
        out.append(y)
    return torch.stack(out, 2), state[:, ::GROUP], total[:, ::GROUP]


def problem(name: str, masked: bool) -> tuple[Sample, State, Any, list[Any]]:
    """Return inputs, the state of an earlier sequence, a mask and the weights of a loss."""
    rng = np.random.default_rng(3)
    inputs = sample(name, SEQ, dtype=np.float64)
    _, first = sample(name, 4, dtype=np.float64, seed=9).prefill(attention(name))
    first = first._replace(position=np.zeros_like(first.position))
    mask = rng.random((BATCH, SEQ)) > 0.3 if masked else None
    shapes = [(BATCH, HEADS, SEQ, VALUE_DIM), first.numerator.shape, first.numerator.shape[:3]]
    return inputs, first, mask, [rng.standard_normal(shape) for shape in shapes]


def loss(attn: LinearAttention, given: Sample, first: State, mask: Any, weights: Any) -> Any:
    """Return a number that all outputs and sums are a part of."""
    out, after = given.prefill(attn, first, key_mask=mask)
    parts = [out, after.numerator] + [after.normaliser] * attn.normalize
    return sum((x * w).sum() for x, w in zip(parts, weights, strict=False))


def wanted(name: str, inputs: Sample, first: State, mask: Any, weights: Any) -> list[Any]:
    """Return gradients by inputs, numerator and normaliser by the recurrence."""
    leaves, sums = of_torch(inputs, first)
    start = [sums[0], sums[1] if len(sums) > 1 else torch.zeros_like(sums[0][..., 0])]
    start += [torch.tensor(x) for x in present([first.maximum])]
    parts = recurrence(name, leaves, start, mask, causal=True)[: 1 + len(sums)]
    number = sum((x * torch.tensor(w)).sum() for x, w in zip(parts, weights, strict=False))
    return list(torch.autograd.grad(number, [*present(leaves), *sums], materialize_grads=True))


def present(given: Any) -> list[Any]:
    return [x for x in given if x is not None]


def of_torch(inputs: Sample, first: State | None = None) -> tuple[Sample, list[Any]]:
    """Return inputs, and the sums of a state, as leaves."""

    def leaf(x: Any) -> Any:
        return torch.tensor(x, requires_grad=True)

    sums = [] if first is None else [first.numerator, first.normaliser]
    return inputs.map(leaf), [leaf(x) for x in present(sums)]


def with_sums(first: State, sums: list[Any], array: Any) -> State:
    """Return a state in another library, with these sums."""
    state = State(*(None if x is None else array(np.array(x)) for x in first))
    state = state._replace(numerator=sums[0])
    return state._replace(normaliser=sums[1]) if len(sums) > 1 else state


@every_family
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_recurrence(name: str, masked: bool) -> None:
    inputs, first, mask, weights = problem(name, masked)
    want = wanted(name, inputs, first, mask, weights)
    leaves, sums = of_torch(inputs, first)
    state = with_sums(first, sums, torch.tensor)
    given_mask = None if mask is None else torch.tensor(mask)
    number = loss(
        attention(name, chunk_size=8), leaves, state, given_mask, [torch.tensor(w) for w in weights]
    )
    everything = [*present(leaves), *sums]
    assert_near(torch.autograd.grad(number, everything, materialize_grads=True), want)


@pytest.mark.parametrize("name", BOTH_WAYS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_sums_over_all_tokens(name: str, masked: bool) -> None:
    inputs, first, mask, weights = problem(name, masked)
    shape, weight = first.numerator.shape, torch.tensor(weights[0])
    leaves, _ = of_torch(inputs)
    zeros = [torch.zeros(n, dtype=torch.float64) for n in (shape, shape[:3])]
    if first.maximum is not None:
        zeros.append(torch.zeros(shape[:2], dtype=torch.float64))
    out, *_ = recurrence(name, leaves, zeros, mask, causal=False)
    want = torch.autograd.grad((out * weight).sum(), present(leaves))
    leaves, _ = of_torch(inputs)
    given_mask = None if mask is None else torch.tensor(mask)
    out = leaves.attend(attention(name, chunk_size=8), causal=False, key_mask=given_mask)
    assert_near(torch.autograd.grad((out * weight).sum(), present(leaves)), want)


@pytest.mark.large
@pytest.mark.parametrize("name", ["gated delta"])
def test_jax_gives_the_same_gradients(name: str) -> None:
    jax = pytest.importorskip("jax")
    inputs, first, mask, weights = problem(name, True)
    want = wanted(name, inputs, first, mask, weights)
    which = [i for i, x in enumerate(inputs) if x is not None]
    with jax.enable_x64(True):
        given = [jax.numpy.asarray(x) for x in present(inputs)]
        sums = [jax.numpy.asarray(x) for x in present((first.numerator, first.normaliser))]

        def of_leaves(*leaves: Any) -> Any:
            fields: list[Any] = [None] * len(Sample._fields)
            for i, x in zip(which, leaves, strict=False):
                fields[i] = x
            state = with_sums(first, list(leaves[len(which) :]), jax.numpy.asarray)
            return loss(attention(name), Sample(*fields), state, jax.numpy.asarray(mask), weights)

        leaves = [*given, *sums]
        got = jax.grad(of_leaves, argnums=tuple(range(len(leaves))))(*leaves)
    assert_near(got, want)


@pytest.mark.large
def test_exact_gradients_of_taylors_map_have_the_same_bits_under_jit() -> None:
    jax = pytest.importorskip("jax")
    attn = LinearAttention("taylor", arithmetic="exact", chunk_size=8)
    # Of 6 features the constants of the map are no powers of two, so that none may be moved.
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 24, 6)).astype(np.float32)
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = attn(*leaves, causal=True)
    want = torch.autograd.grad(out, leaves, torch.ones_like(out))

    @jax.jit
    def pulled_back(*given: Any) -> Any:
        y, pull = jax.vjp(lambda *x: attn(*x, causal=True), *given)
        return pull(jax.numpy.ones_like(y))

    for x, y in zip(pulled_back(q, k, v), want, strict=True):
        assert np.array_equal(np.asarray(x), y.numpy())


# -- forms ---------------------------------------------------------------------------------------


def gradients(call: Any, given: Sample) -> list[Any]:
    """Return the gradients of a weighted sum of outputs by all inputs."""
    leaves, _ = of_torch(given)
    out = call(leaves)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), present(leaves)))


@every_family
def test_gradients_do_not_depend_on_the_form(name: str) -> None:
    attn, on_hand = attention(name, chunk_size=4), sample(name, SEQ, dtype=np.float64, batch=1)
    want = gradients(lambda x: x.attend(attn), on_hand)

    def steps(x: Sample) -> Any:
        state, outputs = None, []
        for t in range(SPLIT):
            token = x.tokens(slice(t, t + 1))
            out, state = attn.step(*token[:3], state, **token.more)
            outputs.append(out)
        outputs.append(x.tokens(slice(SPLIT, SEQ)).prefill(attn, state)[0])
        return torch.concat(outputs, dim=2)

    def split(x: Sample) -> Any:
        state, outputs = None, []
        for start, stop in pairwise((0, SPLIT, 12, SEQ)):
            out, state = x.tokens(slice(start, stop)).prefill(attn, state)
            outputs.append(out)
        return torch.concat(outputs, dim=2)

    def combined(x: Sample) -> Any:
        first = x.tokens(slice(0, 11))
        states = [x.segment(attn, start, stop) for start, stop in pairwise((0, SPLIT, 8, 11))]
        before = combine(states[0], combine(states[1], states[2]))
        out, _ = x.tokens(slice(11, SEQ)).prefill(attn, before)
        return torch.concat([first.attend(attn), out], dim=2)

    one_chunk = attention(name, chunk_size=SEQ)
    for form in (lambda x: x.attend(one_chunk), steps, split, combined):
        assert_near(gradients(form, on_hand), want)


@pytest.mark.parametrize("name", ["gla, rope", "gated delta", "favor", "cosformer"])
def test_packed_gradients_are_each_by_itself(name: str) -> None:
    attn, on_hand = attention(name), sample(name, SEQ, dtype=np.float64, batch=1)
    parts = (slice(0, SPLIT), slice(SPLIT, SEQ))

    def apart(x: Sample) -> Any:
        return torch.concat([x.tokens(part).attend(attn) for part in parts], dim=2)

    bounds = [0, SPLIT, SEQ]
    packed = gradients(lambda x: x.attend(attn, cu_seqlens=bounds), on_hand)
    for x, y in zip(packed, gradients(apart, on_hand), strict=True):
        assert torch.equal(x, y)


@every_family
def test_what_is_masked_has_no_gradient_whatever_it_holds(name: str) -> None:
    on_hand = sample(name, SEQ)
    mask = np.ones((BATCH, SEQ), bool)
    mask[0, :SPLIT] = False
    masked = on_hand.map(np.copy)
    for field, x in zip(Sample._fields, masked, strict=True):
        if x is not None and field != "q":
            x[0, :, :SPLIT] = -np.inf if field == "gate" else np.nan
    attn = attention(name)
    found = gradients(lambda x: x.attend(attn, key_mask=torch.tensor(mask)), masked)
    assert all(torch.isfinite(x).all() for x in found)
    assert not any(x[0, :, :SPLIT].any() for x in found[1:])


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("size", [-50.0, 0.0, -np.inf, "mixed"])
def test_gates_of_any_size_have_a_gradient(name: str, size: Any) -> None:
    on_hand = sample(name, SEQ)
    shape = on_hand.gate.shape
    if size == "mixed":
        size = np.random.default_rng(5).choice([-50.0, 0.0, -1e-3, -np.inf], shape)
    given = on_hand._replace(gate=np.broadcast_to(np.float32(size), shape).copy())
    attn = attention(name)
    found = gradients(lambda x: x.attend(attn), given)
    assert all(torch.isfinite(x).all() for x in found)
    # As those of the recurrence in float64, where e^−1000 stands for nothing.
    wide = given.map(lambda x: np.maximum(x.astype(np.float64), -1000))
    none = torch.zeros(BATCH, KV_HEADS, KEY_DIM, VALUE_DIM, dtype=torch.float64)
    want = gradients(lambda x: recurrence(name, x, [none, none[..., 0]], None, True)[0], wide)
    for x, y in zip(found, want, strict=True):
        assert (x - y).abs().max() <= 1e-4 * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize("name", ["delta", "gated delta"])
def test_keys_alike_have_the_gradient_of_the_recurrence(name: str) -> None:
    on_hand = sample(name, SEQ, dtype=np.float64)
    given = on_hand._replace(
        k=on_hand.k[:, :, :1] + 1e-3 * on_hand.k, beta=np.ones_like(on_hand.beta)
    )
    none = torch.zeros(BATCH, KV_HEADS, KEY_DIM, VALUE_DIM, dtype=torch.float64)
    want = gradients(lambda x: recurrence(name, x, [none, none[..., 0]], None, True)[0], given)
    attn = attention(name)
    assert_near(gradients(lambda x: x.attend(attn), given), want)


@pytest.mark.parametrize("name", ["gla, rope", "gated delta, channels", "taylor", "favor"])
def test_exact_gradients_are_near_the_fast_ones(name: str) -> None:
    on_hand = sample(name, SEQ)
    fast, exact = (attention(name, arithmetic) for arithmetic in ("fast", "exact"))
    want = gradients(lambda x: x.attend(fast), on_hand)
    for x, y in zip(gradients(lambda x: x.attend(exact), on_hand), want, strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()

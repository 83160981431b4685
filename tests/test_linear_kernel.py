"""The kernel of linear attention: within the oracle's bound, whoever calls, alone or at once."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from linear_samples import BATCH, HEADS, KEY_DIM, SEQ, VALUE_DIM, VARIANTS, Sample, host, sample

import rotary
from rotary.backends import kernels
from rotary.conformance import linear_cases
from rotary.conformance import linear_oracle as oracle
from rotary.conformance.linear_oracle import Variant
from rotary.linear import LinearAttention, chunks

pytest.importorskip("numba", reason="the kernel is compiled by Numba")

DTYPES = ("float16", "bfloat16", "float32", "float64")
# The gate of a channel and these maps are left to the array code.
LEFT = {"delta": {"update": "delta"}, "l2norm": {"feature_map": "l2norm", "normalize": False}}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Say of each call whether a kernel served it."""
    seen: list[bool] = []
    fused = chunks.fused

    def watched(*given: Any) -> Any:
        found = fused(*given)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(chunks, "fused", watched)
    return seen


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``without(call)``: what a call returns by the array code alone."""

    def call(function: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(chunks, "fused", lambda *_: None)
            return function()

    return call


def attention(variant: Variant, **options: Any) -> LinearAttention:
    return linear_cases.attention(variant, "fast", key_dim=KEY_DIM, **options)


def to_torch(given: Sample, dtype: str) -> Sample:
    torch = pytest.importorskip("torch")
    return Sample(
        *(None if x is None else torch.from_numpy(x).to(getattr(torch, dtype)) for x in given)
    )


def rounded(given: Sample, dtype: str) -> Sample:
    """Return the sample in a dtype of NumPy's."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return Sample(*(None if x is None else x.astype(kind) for x in given))


def assert_within(variant: Variant, out: Any, given: Sample, dtype: str, **more: Any) -> None:
    wide = Sample(*(None if x is None else x.astype(np.float64) for x in given))
    want = oracle.quadratic(variant, *wide[:3], gate=wide.gate, **more)
    assert np.all(np.abs(host(out) - want.out) <= oracle.allowed(want, dtype))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_are_within_the_bound(name: str, dtype: str, served: list[bool]) -> None:
    variant = VARIANTS[name]
    given = rounded(sample(variant), dtype)
    attn = attention(variant)
    out = attn(*given[:3], causal=True, **given.more)
    assert_within(variant, out, given, dtype)
    tensors = to_torch(sample(variant), dtype)
    of_torch = attn(*tensors[:3], causal=True, **tensors.more)
    assert served == [True, True]
    assert of_torch.dtype == tensors.q.dtype
    assert np.array_equal(host(of_torch), host(out))


@pytest.mark.parametrize("shape", [(1, 64, 64), (31, 20, 130), (33, 128, 1), (97, 6, 33)])
def test_any_shape_is_within_the_bound(shape: tuple[int, int, int], served: list[bool]) -> None:
    seq, key_dim, value_dim = shape
    rng = np.random.default_rng(2)
    for dtype in ("float32", "float64"):
        q = rng.standard_normal((2, 6, seq, key_dim)).astype(dtype)
        k = rng.standard_normal((2, 2, seq, key_dim)).astype(dtype)
        v = rng.standard_normal((2, 2, seq, value_dim)).astype(dtype)
        for variant in (Variant(), Variant(rotary_dim=key_dim)):
            attn = linear_cases.attention(variant, "fast", key_dim=key_dim)
            assert_within(variant, attn(q, k, v, causal=True), Sample(q, k, v, None), dtype)
    assert all(served)


@pytest.mark.parametrize("name", VARIANTS)
def test_states_and_masks_agree_with_the_array_code(
    name: str, served: list[bool], without: Any
) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant)
    mask = np.random.default_rng(3).random((BATCH, SEQ)) > 0.3
    given.k[0, :, ~mask[0]], given.v[1, :, ~mask[1]] = np.inf, np.nan

    def calls() -> Any:
        start = given.tokens(slice(0, 41))
        rest = given.tokens(slice(41, None))
        _, state = attn.prefill(*start[:3], key_mask=mask[:, :41], **start.more)
        out, state = attn.prefill(*rest[:3], state, key_mask=mask[:, 41:], **rest.more)
        segment = attn.segment(*given[1:3], key_mask=mask, positions=range(SEQ), **given.more)
        return out, state, segment

    (out, *states), (other, *others) = calls(), without(calls)
    assert served == [True] * 3
    wide = oracle.quadratic(variant, *given[:3], gate=given.gate, mask=mask)
    allowed = oracle.allowed(wide, "float32")[:, :, 41:]
    assert np.all(np.abs(out - wide.out[:, :, 41:]) <= allowed)
    assert np.all(np.abs(out - other) <= 2 * allowed)
    for state, like in zip(states, others, strict=True):
        for field in ("numerator", "normaliser", "log_decay"):
            if getattr(like, field) is None:
                assert getattr(state, field) is None
                continue
            both = [
                getattr(x, field).astype(np.float64) + getattr(x, f"{field}_low")
                for x in (state, like)
            ]
            assert getattr(state, field).shape == getattr(like, field).shape
            assert np.abs(both[0] - both[1]).max() <= 2e-6 * max(1, np.abs(both[1]).max())


def test_an_array_in_any_order_is_read_where_it_is(served: list[bool]) -> None:
    variant = VARIANTS["gate, normalised"]
    attn, given = attention(variant), sample(variant)
    want = attn(*given[:3], causal=True, **given.more)
    turned = Sample(*(np.moveaxis(np.moveaxis(x, 2, 1).copy(), 1, 2) for x in given))
    assert np.array_equal(attn(*turned[:3], causal=True, **turned.more), want)
    backwards = Sample(*(np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1] for x in given))
    assert np.array_equal(attn(*backwards[:3], causal=True, **backwards.more), want)
    columns = Sample(*(np.asfortranarray(x) for x in given))
    assert np.array_equal(attn(*columns[:3], causal=True, **columns.more), want)
    assert all(served)


def test_the_sums_of_a_long_sequence_keep_their_last_places() -> None:
    seq = 100_000
    k = np.full((1, 1, seq, 2), 0.1, np.float32)
    attn = LinearAttention("identity", normalize=False)
    _, state = attn.prefill(k, k, k)
    exact = seq * float(np.float32(0.1)) ** 2
    both = state.numerator.astype(np.float64) + state.numerator_low
    assert np.abs(state.numerator - exact).max() <= 2.0**-23 * exact
    assert np.abs(both - exact).max() <= 2.0**-23 * exact


@pytest.mark.parametrize("name", ["rope", "both", "gate, normalised", "retnet"])
def test_gradients_agree_with_the_array_code(name: str, served: list[bool], without: Any) -> None:
    torch = pytest.importorskip("torch")
    variant = dataclasses.replace(VARIANTS[name], eps=1e-3)
    given = [x.double() for x in to_torch(sample(variant), "float64") if x is not None]
    attn = attention(variant)

    def gradients() -> Any:
        leaves = [x.clone().requires_grad_() for x in given]
        more = {"gate": leaves[3]} if len(leaves) > 3 else {}
        out, state = attn.prefill(*leaves[:3], **more)
        total = (out * torch.linspace(-1, 1, VALUE_DIM)).sum() + state.numerator.sum()
        return torch.autograd.grad(total, leaves)

    found, want = gradients(), without(gradients)
    assert served
    assert all(served)
    for x, y in zip(found, want, strict=True):
        assert torch.all((x - y).abs() <= 1e-12 * y.abs().max())


def test_what_torch_records_or_transforms_is_left_to_the_array_code(served: list[bool]) -> None:
    torch = pytest.importorskip("torch")
    variant = dataclasses.replace(VARIANTS["rope"], eps=1e-3)
    x = [y[:1, :, :5] for y in to_torch(sample(variant), "float64")[:3]]
    attn = attention(variant)
    call = partial(attn, causal=True)
    leaves = [y.clone().requires_grad_() for y in x]
    first = torch.autograd.grad(call(*leaves).square().sum(), leaves, create_graph=True)
    assert served[0]  # the outputs themselves
    assert not any(served[1:])
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    assert all(torch.isfinite(g).all() for g in second)
    served.clear()
    mapped = torch.func.vmap(call)(*(y[None] for y in x))[0]
    assert not any(served)
    assert torch.allclose(mapped, call(*x), rtol=1e-12)


def test_torch_compile_calls_it_within_its_operator(served: list[bool]) -> None:
    torch = pytest.importorskip("torch")
    attn, x = LinearAttention(), to_torch(sample(Variant()), "float32")[:3]
    call = torch.compile(lambda *x: attn(*x, causal=True), fullgraph=True, backend="eager")
    assert torch.equal(call(*x), attn(*x, causal=True))
    assert served[-2:] == [True, True]


def test_what_it_does_not_fit_is_left_to_the_array_code(served: list[bool]) -> None:
    given = sample(Variant())
    beta = np.full(given.v.shape[:3], 0.5, np.float32)
    LinearAttention(**LEFT["delta"])(*given[:3], causal=True, beta=beta)
    LinearAttention(**LEFT["l2norm"])(*given[:3], causal=True)
    gates = np.full(given.k.shape, -0.5, np.float32)
    LinearAttention(decay="gate", normalize=False)(*given[:3], causal=True, gate=gates)
    LinearAttention(arithmetic="exact")(*given[:3], causal=True)
    assert served == [False] * 4
    served.clear()
    LinearAttention()(*given[:3])
    assert not any(served)


def test_exact_arithmetic_has_the_same_bits_with_and_without(without: Any) -> None:
    given = sample(VARIANTS["rope"])
    attn = linear_cases.attention(VARIANTS["rope"], "exact", key_dim=KEY_DIM)
    call = partial(attn, *given[:3], causal=True)
    assert np.array_equal(call(), without(call))


def test_switched_off_the_bits_are_those_of_the_array_code(
    monkeypatch: pytest.MonkeyPatch, without: Any, served: list[bool]
) -> None:
    given = sample(VARIANTS["rope"], 40)
    call = partial(attention(VARIANTS["rope"]), *given[:3], causal=True)
    with monkeypatch.context() as patch:
        patch.setenv(kernels.VARIABLE, "linear")
        caches = kernels.disabled, kernels.kernel
        for cache in caches:
            cache.cache_clear()
        try:
            out = call()
        finally:
            patch.undo()
            for cache in caches:
                cache.cache_clear()
    assert served == [False]
    assert np.array_equal(out, without(call))


def test_many_threads_may_call_at_once() -> None:
    variant = VARIANTS["rope"]
    given = sample(variant, 300, batch=4)
    call = partial(attention(variant).prefill, *given[:3])
    before = rotary.get_num_threads()
    want, state = call()
    try:
        for count in (1, 3):
            rotary.set_num_threads(count)
            with ThreadPoolExecutor(8) as pool:
                for out, after in pool.map(lambda _: call(), range(64)):
                    assert np.array_equal(out, want)
                    assert np.array_equal(after.numerator_low, state.numerator_low)
    finally:
        rotary.set_num_threads(before)


def test_threads_change_no_bit_of_large_calls() -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((3, HEADS, 200, 64)).astype(np.float32) for _ in range(3))
    before, found = rotary.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            rotary.set_num_threads(count)
            found.append(LinearAttention()(q, k, v, causal=True))
    finally:
        rotary.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_not_a_number_stays_where_it_is_and_behind() -> None:
    for name in ("elu+1", "relu", "relu2", "exp", "identity"):
        given = sample(Variant())
        given.v[0, 0, 40, 2] = np.nan
        attn = LinearAttention(name, normalize=False)
        out = attn(*given[:3], causal=True)
        assert np.isfinite(out[:, :, :32]).all()  # chunks before it
        assert np.isnan(out[0, 0, 40:, 2]).all()
        given = sample(Variant())
        given.k[0, 0, 40, 2] = np.nan
        assert np.isnan(attn(*given[:3], causal=True)[0, 0, 40:]).all()


def test_features_far_below_one_are_right() -> None:
    x = np.linspace(-110, 5, 64, dtype=np.float32)[None, None, :, None]
    one = np.ones_like(x)
    out = LinearAttention("elu+1", normalize=False)(one, x, one, causal=True)
    y = np.maximum(x, 0).astype(np.float64) + np.exp(np.minimum(x, 0).astype(np.float64))
    want = 2 * np.cumsum(y, axis=2)
    assert np.all(np.abs(out - want) <= 4 * 2.0**-24 * want + 2.0**-148)

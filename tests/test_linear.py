"""Linear attention: right within its bound, and the same in all its forms."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_samples import (
    BATCH,
    CHUNK,
    HEADS,
    KEY_DIM,
    KV_HEADS,
    SEQ,
    VALUE_DIM,
    VARIANTS,
    Sample,
    arrays,
    attention,
    host,
    sample,
)

import rotary
from rotary.conformance import linear_oracle as oracle
from rotary.conformance.linear_oracle import Variant
from rotary.linear import LinearAttention, RetNet, State, combine

LENGTHS = [0, 1, 5, CHUNK, CHUNK + 1, SEQ]
SIGNED = Variant("identity", normalize=False)


def assert_within(variant: Variant, out: Any, given: Sample, dtype: str, **more: Any) -> None:
    """Hold the outputs to the bound of an oracle that sums over all pairs of tokens."""
    q, k, v = (np.asarray(x).astype(np.float64) for x in given[:3])
    want = oracle.quadratic(variant, q, k, v, gate=given.gate, **more)
    error = np.abs(host(out) - want.out)
    assert np.all(error <= oracle.allowed(want, dtype)), float(
        np.max(error / oracle.allowed(want, dtype))
    )


def assert_close(variant: Variant, got: Any, want: Any, given: Sample, **more: Any) -> None:
    """Hold two outputs to twice the bound."""
    result = oracle.quadratic(variant, *given[:3], gate=given.gate, **more)
    assert np.all(np.abs(host(got) - host(want)) <= 2 * oracle.allowed(result, "float32"))


def assert_states_agree(got: State, want: State) -> None:
    for field, x, y in zip(State._fields, got, want, strict=True):
        assert (x is None) == (y is None), field
        if x is None or field.endswith("low"):
            continue
        scale = max(1e-30, float(np.abs(host(y)).max(initial=0)))
        assert np.abs(host(x) - host(y)).max(initial=0) <= 2e-5 * scale, field


# -- against the oracle --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_outputs_are_within_the_bound(name: str, causal: bool) -> None:
    variant = dataclasses.replace(VARIANTS[name], causal=causal)
    if not causal and variant.decay is not None:
        pytest.skip("a decay has a direction")
    given = sample(variant)
    out = attention(variant)(*given[:3], causal=causal, **given.more)
    assert out.shape == (BATCH, HEADS, SEQ, VALUE_DIM)
    assert_within(variant, out, given, "float32")


@pytest.mark.parametrize("name", ["rope", "gate"])
def test_every_library_is_within_the_bound(name: str, library: Any) -> None:
    variant = VARIANTS[name]
    for dtype in library.dtypes if name == "rope" else ("float32",):
        on_host = sample(variant, 40)
        given = arrays(library, on_host, dtype)
        if dtype == "bfloat16":
            on_host = Sample(
                *(
                    None if x is None else x.astype(ml_dtypes.bfloat16).astype(np.float32)
                    for x in on_host
                )
            )
        else:
            on_host = Sample(*(None if x is None else x.astype(dtype) for x in on_host))
        if library.name == "jax" and dtype == "float64":
            import jax

            with jax.enable_x64(True):
                out = attention(variant)(*given[:3], causal=True, **given.more)
        else:
            out = attention(variant)(*given[:3], causal=True, **given.more)
        assert out.dtype == given.q.dtype
        assert_within(variant, out, on_host, dtype)


def test_softmax_features_are_within_the_bound() -> None:
    for rotary_dim in (0, KEY_DIM):
        variant = Variant("softmax", rotary_dim=rotary_dim, normalize=False, causal=False)
        given = sample(variant)
        assert_within(variant, attention(variant)(*given[:3]), given, "float32")
        mask = np.random.default_rng(1).random((BATCH, SEQ)) > 0.4
        out = attention(variant)(*given[:3], key_mask=mask)
        assert_within(variant, out, given, "float32", mask=mask)


def test_maps_of_all_tokens_round_sixteen_bits_once() -> None:
    given = sample(SIGNED, dtype=np.float16)
    for attn in (LinearAttention("softmax"), LinearAttention(np.abs, normalize=True)):
        out = attn(*given[:3])
        assert out.dtype == np.float16
        wide = attn(*(x.astype(np.float32) for x in given[:3]))
        assert np.array_equal(out, wide.astype(np.float16))


def test_softmax_features_sum_to_one() -> None:
    given = sample(SIGNED)
    ones = np.ones_like(given.v)
    out = LinearAttention("softmax")(given.q, given.k, ones)
    np.testing.assert_allclose(out, 1, rtol=1e-5)


def test_a_callable_is_a_feature_map() -> None:
    def cubes(x: Any) -> Any:
        return np.concatenate([x**3, x[..., :2]], axis=-1)

    variant = Variant(maps=cubes, normalize=False)
    given = sample(variant)
    for causal in (True, False):
        out = attention(variant)(*given[:3], causal=causal)
        want = dataclasses.replace(variant, causal=causal)
        assert_within(want, out, given, "float32")


def test_a_callable_before_which_keys_are_rotated() -> None:
    def squares(x: Any) -> Any:
        return x * x

    variant = Variant(maps=squares, rotary_dim=KEY_DIM, placement="before_map")
    given = sample(variant)
    assert_within(variant, attention(variant)(*given[:3], causal=True), given, "float32")


def test_the_oracle_agrees_with_itself() -> None:
    for variant in VARIANTS.values():
        given = sample(variant, 30)
        wide = oracle.quadratic(variant, *given[:3], gate=given.gate)
        step_by_step, _ = oracle.recurrent(variant, *given[:3], gate=given.gate)
        assert np.all(np.abs(step_by_step - wide.out) <= 2.0**-50 * (wide.magnitude + 1e-9))


@pytest.mark.parametrize("name", ["rope", "gate, normalised"])
def test_the_state_is_the_sum_over_all_tokens(name: str) -> None:
    variant = VARIANTS[name]
    given = sample(variant)
    _, state = attention(variant).prefill(*given[:3], **given.more)
    _, want = oracle.recurrent(variant, *given[:3], gate=given.gate)
    group = HEADS // KV_HEADS
    np.testing.assert_allclose(state.numerator, want.numerator[:, ::group], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.normaliser, want.normaliser[:, ::group], rtol=1e-6)
    assert state.position.tolist() == [SEQ] * BATCH


# -- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seq", LENGTHS)
def test_chunks_of_any_size_agree(name: str, seq: int) -> None:
    variant = VARIANTS[name]
    given = sample(variant, seq)
    want, want_state = attention(variant, chunk_size=max(1, seq)).prefill(*given[:3], **given.more)
    for chunk_size in (1, 7, CHUNK):
        attn = attention(variant, chunk_size=chunk_size)
        out, state = attn.prefill(*given[:3], **given.more)
        assert np.array_equal(out, attn(*given[:3], causal=True, **given.more))
        assert_close(variant, out, want, given)
        assert_states_agree(state, want_state)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_from_a_split_agree_with_the_whole(name: str) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant, 40)
    want, want_state = attn.prefill(*given[:3], **given.more)
    for split in (0, 1, CHUNK, 21):
        first = given.tokens(slice(0, split))
        out, state = attn.prefill(*first[:3], **first.more)
        outputs = [out]
        for t in range(split, 40):
            token = given.tokens(slice(t, t + 1))
            out, state = attn.step(*token[:3], state, **token.more)
            outputs.append(out)
        assert_close(variant, np.concatenate(outputs, axis=2), want, given)
        assert_states_agree(state, want_state)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_sequence_resumes_where_it_was_split(name: str) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant)
    want, want_state = attn.prefill(*given[:3], **given.more)
    outputs, state = [], None
    for start, stop in ((0, 0), (0, 3), (3, 50), (50, SEQ), (SEQ, SEQ)):
        part = given.tokens(slice(start, stop))
        out, state = attn.prefill(*part[:3], state, **part.more)
        outputs.append(out)
    assert state is not None
    assert_close(variant, np.concatenate(outputs, axis=2), want, given)
    assert_states_agree(state, want_state)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_are_each_by_itself(name: str, causal: bool) -> None:
    variant = VARIANTS[name]
    if not causal and variant.decay is not None:
        pytest.skip("a decay has a direction")
    attn, given = attention(variant), sample(variant, batch=1)
    bounds = [0, 5, 5, 37, SEQ]
    out = attn(*given[:3], causal=causal, cu_seqlens=bounds, **given.more)
    _, states = (
        attn.prefill(*given[:3], cu_seqlens=np.array(bounds), **given.more)
        if causal
        else (None, None)
    )
    for n, (start, stop) in enumerate(pairwise(bounds)):
        part = given.tokens(slice(start, stop))
        alone = attn(*part[:3], causal=causal, **part.more)
        assert np.array_equal(out[:, :, start:stop], alone)
        if states is not None:
            _, state = attn.prefill(*part[:3], **part.more)
            for packed, single in zip(states, state, strict=True):
                assert packed is None or np.array_equal(packed[n : n + 1], single)


def test_packed_sequences_go_on_packed() -> None:
    variant = VARIANTS["rope"]
    attn, given = attention(variant), sample(variant, batch=1)
    want = attn(*given.tokens(slice(0, 50))[:3], causal=True)
    first, second = given.tokens(slice(0, 20)), given.tokens(slice(20, 50))
    twice = Sample(*(np.concatenate([x, x], axis=2) for x in first[:3]), None)
    _, state = attn.prefill(*twice[:3], cu_seqlens=[0, 20, 40])
    twice = Sample(*(np.concatenate([x, x], axis=2) for x in second[:3]), None)
    out, state = attn.prefill(*twice[:3], state, cu_seqlens=[0, 30, 60])
    assert state.position.tolist() == [50, 50]
    np.testing.assert_allclose(out[:, :, :30], want[:, :, 20:], rtol=1e-3, atol=1e-5)
    assert np.array_equal(out[:, :, :30], out[:, :, 30:])


@pytest.mark.parametrize("name", VARIANTS)
def test_segments_combine_in_any_grouping(name: str) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant)
    _, want = attn.prefill(*given[:3], **given.more)

    def segment(start: int, stop: int) -> State:
        part = given.tokens(slice(start, stop))
        return attn.segment(part.k, part.v, positions=range(start, stop), **part.more)

    a, b, c = segment(0, 11), segment(11, 48), segment(48, SEQ)
    assert_states_agree(combine(combine(a, b), c), want)
    assert_states_agree(combine(a, combine(b, c)), want)
    half = attn.prefill(*given.tokens(slice(0, 11))[:3], **given.tokens(slice(0, 11)).more)[1]
    assert_states_agree(combine(half, combine(b, c)), want)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_a_padded_row_is_the_row_alone(name: str, causal: bool) -> None:
    variant = dataclasses.replace(VARIANTS[name], causal=causal)
    if not causal and variant.decay is not None:
        pytest.skip("a decay has a direction")
    attn, given = attention(variant), sample(variant)
    mask = np.ones((BATCH, SEQ), bool)
    mask[0, :9], mask[1, 50:] = False, False  # left, right
    padded = Sample(*(None if x is None else x.copy() for x in given))
    padded.k[0, :, :9], padded.v[1, :, 50:] = np.inf, np.nan
    padded.k[1, :, 50:], padded.v[0, :, :9] = -np.inf, 1e30
    out = attn(*padded[:3], causal=causal, key_mask=mask, **given.more)
    for row, part in ((0, slice(9, SEQ)), (1, slice(0, 50))):
        alone = given.rows(slice(row, row + 1)).tokens(part)
        want = attn(*alone[:3], causal=causal, **alone.more)
        assert_close(variant, out[row : row + 1, :, part], want, alone)
    if causal:
        _, state = attn.prefill(*padded[:3], key_mask=mask, **given.more)
        assert state.position.tolist() == [SEQ - 9, 50]
        for row, part in ((0, slice(9, SEQ)), (1, slice(0, 50))):
            alone = given.rows(slice(row, row + 1)).tokens(part)
            _, want = attn.prefill(*alone[:3], **alone.more)
            of_row = State(*(None if x is None else x[row : row + 1] for x in state))
            assert_states_agree(of_row, want)


@pytest.mark.parametrize("name", ["rope", "gate", "retnet"])
def test_masked_tokens_might_as_well_not_be_there(name: str) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant, batch=1)
    kept = np.random.default_rng(2).random(SEQ) > 0.5
    out = attn(*given[:3], causal=True, key_mask=kept[None], **given.more)
    alone = given.tokens(kept)
    assert_close(variant, out[:, :, kept], attn(*alone[:3], causal=True, **alone.more), alone)


def test_rows_without_any_key_are_zero() -> None:
    given = sample(VARIANTS["rope"])
    mask = np.zeros((BATCH, SEQ), bool)
    for causal in (True, False):
        out = attention(VARIANTS["rope"])(*given[:3], causal=causal, key_mask=mask)
        assert not out.any()


def test_grouped_queries_share_their_keys() -> None:
    variant = VARIANTS["rope"]
    attn, given = attention(variant), sample(variant)
    group = HEADS // KV_HEADS
    k, v = (np.repeat(x, group, axis=1) for x in (given.k, given.v))
    for causal in (True, False):
        want = attn(given.q, k, v, causal=causal)
        np.testing.assert_allclose(attn(*given[:3], causal=causal), want, rtol=1e-5, atol=1e-6)


# -- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rope", "identity", "xpos", "partial"])
def test_numerators_depend_on_distances_only(name: str) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant)
    want = attn(*given[:3], causal=True)
    shifted = attn(*given[:3], causal=True, positions=np.arange(SEQ) + 37)
    assert_close(variant, shifted, want, given)
    assert not np.array_equal(shifted, want)


def test_before_the_map_they_do_not() -> None:
    variant = VARIANTS["before_map"]
    attn, given = attention(variant), sample(variant)
    want = attn(*given[:3], causal=True)
    shifted = attn(*given[:3], causal=True, positions=np.arange(SEQ) + 500)
    assert np.abs(shifted - want).max() > 0.1


@pytest.mark.parametrize("positions", [[2.5, 3, 7, -1], np.array([[5, 6, 7, 8], [0, 9, 1, 3]])])
def test_positions_are_those_given(positions: Any) -> None:
    variant = VARIANTS["rope"]
    attn, given = attention(variant), sample(variant, 4)
    out, state = attn.prefill(*given[:3], positions=positions)
    assert_within(variant, out, given, "float32", positions=np.asarray(positions))
    after = np.broadcast_to(np.asarray(positions), (BATCH, 4)).max(axis=-1) + 1
    assert state.position.tolist() == after.tolist()


def test_steps_go_on_from_the_positions_given() -> None:
    variant = VARIANTS["rope"]
    attn, given = attention(variant), sample(variant, 10)
    first, last = given.tokens(slice(0, 9)), given.tokens(slice(9, 10))
    _, state = attn.prefill(*first[:3], positions=np.arange(100, 109))
    out, _ = attn.step(*last[:3], state)
    explicit, _ = attn.step(*last[:3], state, positions=[109])
    assert np.array_equal(out, explicit)
    wrong, _ = attn.step(*last[:3], state, positions=[9])
    assert not np.array_equal(out, wrong)


def test_rows_at_different_positions_step_together() -> None:
    variant = VARIANTS["rope"]
    attn, given = attention(variant), sample(variant, 12)
    mask = np.ones((BATCH, 11), bool)
    mask[1, :4] = False
    first, last = given.tokens(slice(0, 11)), given.tokens(slice(11, 12))
    _, state = attn.prefill(*first[:3], key_mask=mask)
    out, after = attn.step(*last[:3], state)
    assert after.position.tolist() == [12, 8]
    alone = given.rows(slice(1, 2)).tokens(slice(4, 12))
    want = attn(*alone[:3], causal=True)[:, :, -1:]
    np.testing.assert_allclose(out[1:], want, rtol=1e-4, atol=1e-6)


def test_several_position_axes_rotate() -> None:
    rope = rotary.RotaryEmbedding(8, axes=rotary.axes.Sections((2, 2)))
    attn = LinearAttention(rope=rope)
    given = sample(SIGNED, 6)
    grid = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])
    out = attn(*given[:3], positions=grid)
    q = rope(np.maximum(given.q, 0) + np.exp(np.minimum(given.q, 0)), positions=grid)
    k = rope(np.maximum(given.k, 0) + np.exp(np.minimum(given.k, 0)), positions=grid)
    k, v = (np.repeat(x, 2, axis=1) for x in (k, given.v))
    plain = LinearAttention(normalize=False)
    total = plain(given.q, given.k, np.ones_like(given.v[..., :1])) + 1e-6
    want = (q @ np.swapaxes(k, -1, -2)) @ v / total
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    equal = attn(*given[:3], causal=True)
    assert np.array_equal(equal, attn(*given[:3], causal=True, positions=np.arange(6)))


# -- causality, and what may not change ------------------------------------------------------------


@pytest.mark.parametrize("name", ["rope", "gate", "retnet"])
@pytest.mark.parametrize("value", [0.0, 1e6])
def test_a_token_leaves_outputs_before_it_as_they_were(name: str, value: float) -> None:
    variant = VARIANTS[name]
    attn, given = attention(variant), sample(variant)
    want = attn(*given[:3], causal=True, **given.more)
    for t in (1, CHUNK - 1, CHUNK, 41):
        q, k, v = (x.copy() for x in given[:3])
        q[:, :, t], k[:, :, t], v[:, :, t] = value, value, value
        out = attn(q, k, v, causal=True, **given.more)
        assert np.array_equal(out[:, :, :t], want[:, :, :t])


def test_nothing_that_is_passed_in_changes(library: Any) -> None:
    if library.name == "jax":
        pytest.skip("its arrays cannot change")
    variant = VARIANTS["gate, normalised"]
    attn = attention(variant)
    given = arrays(library, sample(variant, 20))
    _, state = attn.prefill(*given[:3], **given.more)
    mask = library.array(np.tile(np.arange(20) % 3 > 0, (BATCH, 1)))
    passed_in = [x for x in (*given, *state) if x is not None]
    before = [np.array(host(x)) for x in passed_in]
    attn.prefill(*given[:3], state, key_mask=mask, **given.more)
    token = [x[:, :, :1, ...] for x in given[:3]]
    attn.step(*token, state, gate=given.gate[:, :, :1])
    combine(state, state)
    for x, then in zip(passed_in, before, strict=True):
        assert np.array_equal(host(x), then)


def test_descriptions_are_equal_and_hash_by_value() -> None:
    rope = rotary.RotaryEmbedding(8)
    one, same = LinearAttention(rope=rope), LinearAttention(rope=rotary.RotaryEmbedding(8))
    assert one == same
    assert hash(one) == hash(same)
    assert LinearAttention(decay=RetNet()) == LinearAttention(decay=RetNet())
    assert LinearAttention() == LinearAttention(normalize=True, eps=1e-6, scale=1.0)
    for other in (
        LinearAttention("relu"),
        LinearAttention(chunk_size=32),
        LinearAttention(arithmetic="exact"),
        LinearAttention(decay="gate"),
    ):
        assert other != LinearAttention()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.chunk_size = 3  # type: ignore[misc]


# -- range ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["elu+1", "relu", "relu2", "identity", "exp", "softmax"])
@pytest.mark.parametrize("arithmetic", ["fast", "exact"])
def test_large_keys_give_no_nan(name: str, arithmetic: str) -> None:
    given = sample(SIGNED, 20)
    signs = np.sign(given.k)
    for scale in (100, -100):
        normalize = False if name in ("identity", "softmax") else None
        attn = LinearAttention(name, normalize=normalize, arithmetic=arithmetic, chunk_size=8)
        for causal in (True, False):
            if causal and name == "softmax":
                continue
            for k in (signs * scale, np.full_like(signs, scale)):
                for q in (given.q, k[:, :1] + 0 * given.q):
                    assert np.isfinite(attn(q, k.astype(np.float32), given.v, causal=causal)).all()


@pytest.mark.parametrize("gate", [-50.0, 0.0, -1e-3, -1e4, -np.inf, "mixed"])
def test_gates_of_any_size_keep_the_bound(gate: Any) -> None:
    variant = VARIANTS["gate, normalised"]
    given = sample(variant)
    if gate == "mixed":
        gate = np.random.default_rng(5).choice([-50.0, 0.0, -1e-3, -3.0], given.gate.shape)
    gates = (np.zeros_like(given.gate) + gate).astype(np.float32)
    given = given._replace(gate=gates)
    out = attention(variant, chunk_size=64)(*given[:3], causal=True, gate=gates)
    assert np.isfinite(out).all()
    finite = given._replace(gate=np.maximum(gates, -1e5))
    assert_within(variant, out, finite, "float32")


def test_what_rounding_took_decays_with_the_sum() -> None:
    variant = VARIANTS["gate"]
    given = sample(variant)
    given.gate[...] = 0
    given.v[:, :, :48] *= 1e6
    given.gate[:, :, 48] = -20
    out = attention(variant)(*given[:3], causal=True, **given.more)
    assert_within(variant, out, given, "float32")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_neither_overflow_nor_stall(dtype: Any) -> None:
    seq = 65_536
    ones = np.ones((1, 1, seq, 2), dtype)
    ramp = np.repeat(np.linspace(0, 1, seq)[:, None], 2, axis=1)[None, None].astype(dtype)
    attn = LinearAttention(chunk_size=128)
    out, state = attn.prefill(ones, ones, ramp)
    assert out.dtype == dtype
    assert np.isfinite(out.astype(np.float32)).all()
    # The mean so far: half of the latest value.
    np.testing.assert_allclose(out[0, 0, -1].astype(np.float32), 0.5, rtol=2.0**-8)
    assert np.array_equal(state.normaliser, np.full((1, 1, 2), 2.0 * seq, np.float32))


def test_a_long_float32_sum_keeps_its_last_places() -> None:
    seq = 200_000
    k = np.full((1, 1, seq, 2), 0.1, np.float32)
    v = np.full((1, 1, seq, 1), 0.1, np.float32)
    attn = LinearAttention("identity", normalize=False, chunk_size=64)
    state = attn.segment(k, v)
    exact = seq * float(np.float32(0.1)) ** 2
    assert np.abs(state.numerator - exact).max() <= 2.0**-22 * exact


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_shape_is_within_the_bound(data: Any) -> None:
    kv_heads = data.draw(st.integers(1, 3))
    variant = data.draw(st.sampled_from(list(VARIANTS.values())))
    given = sample(
        variant,
        data.draw(st.integers(0, 40)),
        batch=data.draw(st.integers(1, 3)),
        heads=kv_heads * data.draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        seed=data.draw(st.integers(0, 99)),
    )
    attn = attention(variant, chunk_size=data.draw(st.integers(1, 50)))
    assert_within(variant, attn(*given[:3], causal=True, **given.more), given, "float32")

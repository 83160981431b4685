"""Gates of a channel, the delta rules and wider feature maps: right, and alike in all forms."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_family_samples import (
    BATCH,
    BOTH_WAYS,
    CHUNK,
    DELTA,
    FAMILIES,
    GATED,
    HEADS,
    KEY_DIM,
    KV_HEADS,
    SEQ,
    VALUE_DIM,
    Sample,
    assert_close,
    assert_states_agree,
    assert_within,
    attention,
    host,
    right,
    sample,
    usual,
)

from rotary.conformance import linear_oracle as oracle
from rotary.linear import State, combine

LENGTHS = [0, 1, 5, CHUNK, CHUNK + 1, SEQ]
every_family = pytest.mark.parametrize("name", FAMILIES)


# -- against the oracle --------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_are_within_the_bound(name: str, dtype: str) -> None:
    on_hand = sample(name, dtype=dtype)
    out = on_hand.attend(attention(name))
    assert out.shape == (BATCH, HEADS, SEQ, VALUE_DIM)
    assert out.dtype == dtype
    assert_within(out, right(name, on_hand), dtype)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_outputs_that_see_all_tokens_are_within_the_bound(name: str) -> None:
    on_hand = sample(name)
    for arithmetic in ("fast", "exact"):
        out = on_hand.attend(attention(name, arithmetic), causal=False)
        assert_within(out, usual(name, causal=False, exact=arithmetic == "exact"))


@every_family
def test_exact_outputs_are_within_the_bound(name: str) -> None:
    assert_within(sample(name).attend(attention(name, "exact")), usual(name, exact=True))


@pytest.mark.parametrize("name", ["gla, rope", "gated delta, channels", "favor"])
def test_every_library_is_within_the_bound(name: str, library: Any) -> None:
    on_host = sample(name, 21)
    out = on_host.map(library.array).attend(attention(name, chunk_size=8))
    assert_within(out, usual(name, 21))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_once(dtype: str) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    for name in ("gla", "gated delta", "taylor", "favor", "cosformer"):
        on_hand = sample(name, 20, dtype=kind)
        out = on_hand.attend(attention(name))
        assert out.dtype == kind
        wide = on_hand.map(lambda x: x.astype(np.float32))
        assert np.array_equal(out, wide.attend(attention(name)).astype(kind))
        assert_within(out, right(name, wide), dtype)


@every_family
def test_the_state_is_that_of_the_oracle(name: str) -> None:
    on_hand, variant = sample(name), FAMILIES[name].variant
    _, state = on_hand.prefill(attention(name))
    _, want = oracle.recurrent(variant, *on_hand[:3], **on_hand.more)
    group = HEADS // KV_HEADS
    scale = np.abs(want.numerator).max()
    assert np.abs(state.numerator - want.numerator[:, ::group]).max() <= 1e-5 * scale
    assert state.position.tolist() == [SEQ] * BATCH
    assert (state.normaliser is None) == (not variant.normalize)
    if variant.normalize:
        scale = np.abs(want.normaliser).max()
        assert np.abs(state.normaliser - want.normaliser[:, ::group]).max() <= 1e-5 * scale
    assert (state.maximum is None) == (variant.feature_map != "favor")
    if state.maximum is not None:
        assert np.abs(state.maximum - want.maximum[:, ::group]).max() <= 1e-5
    additive = variant.update == "additive"
    assert (state.log_decay is None) == (variant.decay is None or not additive)
    if state.log_decay is not None:
        assert state.log_decay.shape == on_hand.gate.shape[:2] + on_hand.gate.shape[3:]
        log_decay = state.log_decay + state.log_decay_low
        np.testing.assert_allclose(log_decay, on_hand.gate.sum(2), rtol=1e-6)
    # What a segment does to a state before it is not kept where there was one.
    assert additive == (state.transition is None)
    assert additive or state.transition.shape == (BATCH, KV_HEADS, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_keys_alike_and_beta_1_keep_the_bound(seed: int) -> None:
    """Each value takes the place of the one before: all sums cancel."""
    rng = np.random.default_rng(seed)
    for name in ("delta", "gated delta"):
        on_hand = sample(name, 150, seed=seed)
        k = on_hand.k[:, :, :1] + np.float32([0, 1e-3, 0.1][seed]) * on_hand.k
        given = on_hand._replace(k=k, beta=np.ones_like(on_hand.beta))
        if given.gate is not None:
            given = given._replace(gate=given.gate * np.float32(1e-3))
        want = right(name, given)
        for arithmetic in ("fast", "exact"):
            attn = attention(name, arithmetic, chunk_size=64)
            assert_within(given.attend(attn), want)
        sizes = 10.0 ** rng.integers(-4, 5, (*given.v.shape[:3], 1))
        large = given._replace(v=(given.v * sizes).astype(np.float32))
        assert_within(large.attend(attention(name, chunk_size=64)), right(name, large))


def test_a_value_that_is_there_already_adds_nothing() -> None:
    on_hand = sample("delta")
    k = np.zeros_like(on_hand.k)
    k[..., 0] = 1
    given = on_hand._replace(k=k, v=np.ones_like(on_hand.v), beta=np.ones_like(on_hand.beta))
    out, state = given.prefill(attention("delta"))
    assert_within(out, right("delta", given))
    np.testing.assert_allclose(state.numerator[:, :, 0], 1, rtol=1e-6)
    assert not state.numerator[:, :, 1:].any()


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("gate", [-50.0, 0.0, -1e-3, -1e4, -np.inf, "mixed"])
def test_gates_of_any_size_keep_the_bound(name: str, gate: Any) -> None:
    on_hand = sample(name)
    if gate == "mixed":
        some = [-50.0, 0.0, -1e-3, -3.0, -np.inf]
        gate = np.random.default_rng(5).choice(some, on_hand.gate.shape)
    given = on_hand._replace(gate=(np.zeros_like(on_hand.gate) + gate).astype(np.float32))
    want = right(name, given)
    for arithmetic in ("fast", "exact"):
        out, state = given.prefill(attention(name, arithmetic, chunk_size=32))
        assert_within(out, want)
        assert np.isfinite(state.numerator).all()
    alone = given.tokens(slice(0, 20)), given.tokens(slice(20, SEQ))
    _, first = alone[0].prefill(attention(name))
    out, _ = alone[1].prefill(attention(name), first)
    assert_within(out, part_of(want, slice(20, SEQ)))


def part_of(result: Any, part: slice) -> oracle.Result:
    return oracle.Result(result.out[:, :, part], result.magnitude[:, :, part])


def test_equal_gates_of_channels_are_the_gate_of_a_head() -> None:
    for name, by_head in (("gated delta, channels", "gated delta"),):
        on_hand = sample(by_head)
        wide = on_hand._replace(gate=np.repeat(on_hand.gate[..., None], KEY_DIM, axis=-1))
        out = wide.attend(attention(name))
        assert_close(out, on_hand.attend(attention(by_head)), usual(by_head))


# -- forms ---------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("seq", LENGTHS)
def test_chunks_of_any_size_agree(name: str, seq: int) -> None:
    on_hand, result = sample(name, seq), usual(name, seq)
    want, want_state = on_hand.prefill(attention(name, chunk_size=max(1, seq)))
    for chunk_size in (1, 7, CHUNK):
        attn = attention(name, chunk_size=chunk_size)
        out, state = on_hand.prefill(attn)
        assert out.shape == (BATCH, HEADS, seq, VALUE_DIM)
        assert np.array_equal(out, on_hand.attend(attn))
        assert_close(out, want, result)
        assert_states_agree(state, want_state)


@every_family
def test_steps_from_a_split_agree_with_the_whole(name: str) -> None:
    attn, on_hand, result = attention(name), sample(name, 20), usual(name, 20)
    want, want_state = on_hand.prefill(attn)
    for split in (0, CHUNK, 5):
        out, state = on_hand.tokens(slice(0, split)).prefill(attn)
        outputs = [out]
        for t in range(split, 20):
            token = on_hand.tokens(slice(t, t + 1))
            out, state = attn.step(*token[:3], state, **token.more)
            outputs.append(out)
        assert_close(np.concatenate(outputs, axis=2), want, result)
        assert_states_agree(state, want_state)


@every_family
def test_a_sequence_resumes_where_it_was_split(name: str) -> None:
    attn, on_hand = attention(name), sample(name)
    want, want_state = on_hand.prefill(attn)
    outputs, state = [], None
    for start, stop in ((0, 0), (0, 3), (3, 37), (37, SEQ), (SEQ, SEQ)):
        out, state = on_hand.tokens(slice(start, stop)).prefill(attn, state)
        outputs.append(out)
    assert state is not None
    assert_close(np.concatenate(outputs, axis=2), want, usual(name))
    assert_states_agree(state, want_state)


@every_family
def test_packed_sequences_are_each_by_itself(name: str) -> None:
    attn, on_hand = attention(name), sample(name, batch=1)
    bounds = [0, 5, 5, 28, SEQ]
    out, states = on_hand.prefill(attn, cu_seqlens=bounds)
    assert np.array_equal(out, on_hand.attend(attn, cu_seqlens=np.array(bounds)))
    for n, (start, stop) in enumerate(pairwise(bounds)):
        part = on_hand.tokens(slice(start, stop))
        alone, state = part.prefill(attn)
        assert np.array_equal(out[:, :, start:stop], alone)
        for packed, single in zip(states, state, strict=True):
            assert packed is None or np.array_equal(packed[n : n + 1], single)
    again, _ = on_hand.prefill(attn, states, cu_seqlens=bounds)
    for n, (start, stop) in enumerate(pairwise(bounds)):
        part = on_hand.tokens(slice(start, stop))
        alone, _ = part.prefill(attn, State(*(None if x is None else x[n : n + 1] for x in states)))
        assert np.array_equal(again[:, :, start:stop], alone)


@every_family
def test_segments_combine_in_any_grouping(name: str) -> None:
    attn, on_hand = attention(name), sample(name)
    outputs, want = on_hand.prefill(attn)
    a, b, c = (on_hand.segment(attn, *part) for part in ((0, 11), (11, 30), (30, SEQ)))
    left, other = combine(combine(a, b), c), combine(a, combine(b, c))
    assert_states_agree(left, want, skipped=("transition",))
    assert_states_agree(left, other)
    half = on_hand.tokens(slice(0, 11)).prefill(attn)[1]
    assert_states_agree(combine(half, combine(b, c)), want)
    part = on_hand.tokens(slice(30, SEQ))
    out, after = part.prefill(attn, combine(half, b))
    assert_close(out, outputs[:, :, 30:], part_of(usual(name), slice(30, SEQ)))
    assert_states_agree(after, want)
    assert_states_agree(combine(on_hand.segment(attn, 11, 11), b), b)
    # Where it stands, a segment without tokens does not know.
    joined = combine(b, on_hand.segment(attn, 30, 30))
    assert_states_agree(joined, b, skipped=("position",))


@pytest.mark.parametrize("name", DELTA)
def test_a_transition_is_the_product_of_those_of_the_tokens(name: str) -> None:
    on_hand, attn = sample(name, 5), attention(name)
    segment = on_hand.segment(attn, 0, 5)
    want = np.broadcast_to(np.eye(KEY_DIM), segment.transition.shape)
    for t in range(5):
        want = on_hand.segment(attn, t, t + 1).transition.astype(np.float64) @ want
    np.testing.assert_allclose(segment.transition, want, atol=1e-6)
    prepared = oracle.prepare(FAMILIES[name].variant, *on_hand[:3], **on_hand.more)
    want = np.broadcast_to(np.eye(KEY_DIM), segment.transition.shape)
    for t in range(5):
        k, beta = (x[:, :: HEADS // KV_HEADS, t] for x in (prepared.k, prepared.beta))
        decay = np.exp(prepared.log_decay[:, :: HEADS // KV_HEADS, t])
        decayed = decay[..., None] * want
        taken = np.einsum("bhd,bhde->bhe", k, decayed)
        want = decayed - beta[..., None, None] * k[..., None] * taken[:, :, None]
    np.testing.assert_allclose(segment.transition, want.astype(float), atol=1e-6)


@every_family
@pytest.mark.parametrize("causal", [True, False])
def test_a_padded_row_is_the_row_alone(name: str, causal: bool) -> None:
    if not causal and name not in BOTH_WAYS:
        pytest.skip("a decay and the delta rule have a direction")
    attn, on_hand = attention(name), sample(name)
    mask = np.ones((BATCH, SEQ), bool)
    mask[0, :9], mask[1, 35:] = False, False  # left, right
    padded = on_hand.map(np.copy)
    padded.k[0, :, :9], padded.v[1, :, 35:] = np.inf, np.nan
    padded.k[1, :, 35:], padded.v[0, :, :9] = -np.inf, 1e30
    if padded.gate is not None:
        padded.gate[0, :, :9], padded.gate[1, :, 35:] = -np.inf, -1e30
    if padded.beta is not None:
        padded.beta[0, :, :9], padded.beta[1, :, 35:] = np.nan, 1e30
    out = padded.attend(attn, causal=causal, key_mask=mask)
    state = padded.prefill(attn, key_mask=mask)[1] if causal else None
    for row, part in ((0, slice(9, SEQ)), (1, slice(0, 35))):
        alone = on_hand.rows(slice(row, row + 1)).tokens(part)
        want = alone.attend(attn, causal=causal)
        result = right(name, alone, causal=causal)
        assert_close(out[row : row + 1, :, part], want, result)
        if state is not None:
            of_row = State(*(None if x is None else x[row : row + 1] for x in state))
            assert_states_agree(of_row, alone.prefill(attn)[1])


@pytest.mark.parametrize("name", ["gla, rope", "gated delta", "favor"])
def test_masked_tokens_might_as_well_not_be_there(name: str) -> None:
    attn, on_hand = attention(name), sample(name, batch=1)
    kept = np.random.default_rng(2).random(SEQ) > 0.5
    out = on_hand.attend(attn, key_mask=kept[None])
    alone = on_hand.tokens(kept)
    assert_close(out[:, :, kept], alone.attend(attn), right(name, alone))


@every_family
def test_rows_without_any_key_are_zero(name: str) -> None:
    on_hand = sample(name, 20)
    mask = np.zeros((BATCH, 20), bool)
    out, state = on_hand.prefill(attention(name), key_mask=mask)
    assert not out.any()
    assert not state.numerator.any()
    after, _ = on_hand.prefill(attention(name), state)
    assert_within(after, usual(name, 20))


@every_family
def test_grouped_queries_share_their_keys(name: str) -> None:
    attn, on_hand = attention(name), sample(name, 20)
    wide = Sample(
        on_hand.q,
        *(None if x is None else np.repeat(x, HEADS // KV_HEADS, axis=1) for x in on_hand[1:]),
    )
    if FAMILIES[name].variant.decay == "retnet":  # whose factors go by the head of the keys
        pytest.skip("repeated heads have other factors")
    assert_close(on_hand.attend(attn), wide.attend(attn), usual(name, 20))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape_is_within_the_bound(data: Any) -> None:
    name = data.draw(st.sampled_from(list(FAMILIES)))
    kv_heads = data.draw(st.integers(1, 3))
    on_hand = sample(
        name,
        data.draw(st.integers(0, 40)),
        batch=data.draw(st.integers(1, 3)),
        heads=kv_heads * data.draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        seed=data.draw(st.integers(0, 99)),
    )
    out = on_hand.attend(attention(name, chunk_size=data.draw(st.integers(1, 50))))
    assert_within(out, right(name, on_hand))


@pytest.mark.parametrize("name", ["gated delta, channels", "favor", "l2norm"])
def test_nothing_that_is_passed_in_changes(name: str, library: Any) -> None:
    if library.name == "jax":
        pytest.skip("its arrays cannot change")
    attn = attention(name)
    on_hand = sample(name, 20).map(library.array)
    _, state = on_hand.prefill(attn)
    segment = on_hand.segment(attn, 20, 20) if name == "l2norm" else None
    segment = attn.segment(on_hand.k, on_hand.v, positions=range(20), **on_hand.more)
    mask = library.array(np.tile(np.arange(20) % 3 > 0, (BATCH, 1)))
    everything = [x for x in (*on_hand, *state, *segment) if x is not None]
    before = [np.array(host(x)) for x in everything]
    on_hand.prefill(attn, state, key_mask=mask)
    token = on_hand.map(lambda x: x[:, :, :1, ...])
    attn.step(*token[:3], state, **token.more)
    combine(state, segment)
    combine(segment, segment)
    for x, then in zip(everything, before, strict=True):
        assert np.array_equal(host(x), then)


# -- causality -----------------------------------------------------------------------------------


def changes(on_hand: Sample, t: int, value: float) -> Any:
    """Yield the inputs with token t of one of them changed."""
    for field, x in zip(Sample._fields, on_hand, strict=True):
        if x is None:
            continue
        changed = x.copy()
        changed[:, :, t] = -abs(value) if field == "gate" else value
        yield on_hand._replace(**{field: changed})


@every_family
@pytest.mark.parametrize("value", [0.0, 1e6])
def test_a_token_leaves_outputs_before_it_as_they_were(name: str, value: float) -> None:
    attn, on_hand = attention(name), sample(name)
    want = on_hand.attend(attn)
    for t in (1, CHUNK - 1, CHUNK, SEQ - 1):
        for changed in changes(on_hand, t, value):
            out = changed.attend(attn)
            assert np.array_equal(out[:, :, :t], want[:, :, :t])
            assert not np.array_equal(out[:, :, t:], want[:, :, t:])


@every_family
@pytest.mark.parametrize("value", [1e6, np.inf, -np.inf, np.nan])
def test_no_number_of_a_token_reaches_exact_outputs_before_it(name: str, value: float) -> None:
    attn, on_hand = attention(name, "exact"), sample(name)
    want = on_hand.attend(attn)
    for t in (1, CHUNK, 41):
        for changed in changes(on_hand, t, value):
            out = changed.attend(attn)
            assert np.array_equal(out[:, :, :t], want[:, :, :t])
            assert not np.array_equal(out[:, :, t:], want[:, :, t:])


@pytest.mark.parametrize("name", ["favor", "favor, rope"])
@pytest.mark.parametrize("arithmetic", ["fast", "exact"])
def test_the_last_key_leaves_favors_earlier_outputs_as_they_were(
    name: str, arithmetic: str
) -> None:
    attn, on_hand = attention(name, arithmetic), sample(name)
    want, state = on_hand.prefill(attn)
    # ω·x' − |x'|²/2 is at most |ω|²/2, which it is for x' = ω.
    omega = FAMILIES[name].variant.projection
    longest = omega[np.argmax((omega * omega).sum(-1))] * KEY_DIM**0.25
    for factor in (0.0, 0.5, 1.0):
        k = on_hand.k.copy()
        k[:, :, -1] = factor * longest
        out, after = on_hand._replace(k=k).prefill(attn)
        assert np.array_equal(out[:, :, :-1], want[:, :, :-1])
        assert not np.array_equal(out[:, :, -1], want[:, :, -1])
        if factor == 1.0 and name == "favor":  # without a rotation
            assert (after.maximum > state.maximum).all()


# -- exact arithmetic ----------------------------------------------------------------------------


def assert_same(got: Any, want: Any) -> None:
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(host(x), host(y))


@every_family
def test_a_split_at_a_multiple_of_the_chunk_changes_no_bit(name: str) -> None:
    attn, on_hand = attention(name, "exact"), sample(name)
    want, want_state = on_hand.prefill(attn)
    outputs, state = [], None
    for start, stop in ((0, CHUNK), (CHUNK, SEQ)):
        out, state = on_hand.tokens(slice(start, stop)).prefill(attn, state)
        outputs.append(out)
    assert state is not None
    assert_same([np.concatenate(outputs, axis=2), *state], [want, *want_state])
    for seq in (1, 5, CHUNK + 1):
        assert_same([on_hand.tokens(slice(0, seq)).attend(attn)], [want[:, :, :seq]])


@every_family
def test_rows_have_the_bits_of_each_alone(name: str) -> None:
    attn, on_hand = attention(name, "exact"), sample(name, 20)
    want = on_hand.attend(attn)
    for row in range(BATCH):
        assert_same([on_hand.rows(slice(row, row + 1)).attend(attn)], [want[row : row + 1]])


@every_family
def test_torch_has_numpys_bits(name: str) -> None:
    torch = pytest.importorskip("torch")
    attn, on_hand = attention(name, "exact"), sample(name)
    tensors = on_hand.map(torch.from_numpy)
    (got, state), (want, want_state) = tensors.prefill(attn), on_hand.prefill(attn)
    assert_same([got, *state], [want, *want_state])
    segments = [x.segment(attn, 3, 30) for x in (tensors, on_hand)]
    assert_same(combine(state, segments[0]), combine(want_state, segments[1]))
    if name in BOTH_WAYS:
        assert_same([tensors.attend(attn, causal=False)], [on_hand.attend(attn, causal=False)])

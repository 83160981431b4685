"""Scaling rules against mpmath; without memory; exact at the length where they change."""

from typing import Any

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

import rotary
from rotary import scaling
from rotary.conformance import scaling_oracle
from rotary.frequencies import Frequencies

DIM = 64
factors = st.floats(1.0, 64.0)
lengths = st.integers(64, 2**20)
numbers_by_rule = {
    "Linear": {"factor": st.floats(0.1, 64.0)},
    "NTK": {"factor": st.floats(0.1, 64.0)},
    "DynamicNTK": {"factor": factors, "original_max_position_embeddings": lengths},
    "YaRN": {
        "factor": factors,
        "original_max_position_embeddings": lengths,
        "beta_fast": st.floats(8.0, 64.0),
        "beta_slow": st.floats(0.25, 4.0),
        "truncate": st.booleans(),
        "mscale": st.none() | st.floats(0.1, 2.0),
        "mscale_all_dim": st.none() | st.floats(0.1, 2.0),
    },
    "LongRoPE": {
        "short_factor": st.lists(st.floats(0.5, 4.0), min_size=DIM // 2, max_size=DIM // 2),
        "long_factor": st.lists(st.floats(1.0, 64.0), min_size=DIM // 2, max_size=DIM // 2),
        "original_max_position_embeddings": lengths,
        "factor": st.none() | factors,
    },
    "Llama3": {
        "factor": factors,
        "low_freq_factor": st.floats(0.5, 2.0),
        "high_freq_factor": st.floats(2.5, 8.0),
        "original_max_position_embeddings": lengths,
    },
    "Proportional": {"partial_rotary_factor": st.floats(0.05, 1.0), "factor": factors},
}


def expected(name: str, numbers: dict[str, Any], base: float, length: int) -> tuple[Any, Any]:
    with mpmath.workprec(300):
        theta = mpmath.mpf(base)
        omega = [theta ** (-mpmath.mpf(2 * i) / DIM) for i in range(DIM // 2)]
        scaled = scaling_oracle.RULES[name](numbers, omega, theta, DIM, length)
        factor = scaling_oracle.attention_factor(name, numbers, length)
        return np.array([float(w) for w in scaled]), float(factor)


@pytest.mark.parametrize("name", numbers_by_rule)
def test_frequencies_are_those_of_an_independent_evaluation(name: str) -> None:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        numbers=st.fixed_dictionaries(numbers_by_rule[name]),
        base=st.sampled_from([10_000.0, 500_000.0, 1e6, 150_000.5]),
        length=st.integers(1, 2**21),
    )
    def check(numbers: dict[str, Any], base: float, length: int) -> None:
        rope = rotary.RotaryEmbedding(DIM, base=base, scaling=getattr(scaling, name)(**numbers))
        omega, factor = expected(name, numbers, base, length)
        np.testing.assert_allclose(rope.frequencies(length), omega, rtol=1e-15, atol=0)
        assert rope.attention_factor(length) == pytest.approx(factor, rel=1e-15, abs=0)

    check()


def every_rule() -> list[Any]:
    ones = (1.0,) * (DIM // 2)
    return [
        scaling.Linear(4.0),
        scaling.NTK(8.0),
        scaling.DynamicNTK(2.0, 50),
        scaling.YaRN(16.0, 4096, mscale=0.707, mscale_all_dim=1.0),
        scaling.LongRoPE(ones, tuple(1.0 + i for i in range(DIM // 2)), 50, factor=32.0),
        scaling.Llama3(8.0, 1.0, 4.0, 8192),
        scaling.Proportional(0.25),
    ]


by_name = pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: type(rule).__name__)


@by_name
def test_an_answer_does_not_depend_on_what_was_called_before(rule: Any) -> None:
    rope = rotary.RotaryEmbedding(DIM, scaling=rule)
    q = np.random.default_rng(0).standard_normal((2, 3, DIM)).astype(np.float32)
    short = rope(q, offset=10)
    rope(q, offset=5000)
    rope(q, offset=0, seq_len=10**6)
    assert np.array_equal(rope(q, offset=10), short)


@by_name
def test_a_rule_is_named_by_value_in_its_token(rule: Any) -> None:
    frequencies = Frequencies(DIM, 10_000.0, DIM, scaling=rule)
    assert Frequencies.from_token(frequencies.token) == frequencies
    assert hash(rotary.RotaryEmbedding(DIM, scaling=rule)) == hash(
        rotary.RotaryEmbedding(DIM, scaling=rule)
    )


@by_name
def test_rules_do_not_share_tables(rule: Any) -> None:
    q = np.ones((4, DIM), np.float32)
    plain = rotary.RotaryEmbedding(DIM)(q, offset=100)
    scaled = rotary.RotaryEmbedding(DIM, scaling=rule)(q, offset=100)
    assert not np.array_equal(plain, scaled)


@by_name
def test_inverse_takes_the_attention_factor_out(rule: Any) -> None:
    rope = rotary.RotaryEmbedding(DIM, scaling=rule)
    q = np.random.default_rng(1).standard_normal((3, 40, DIM))
    back = rope.inverse(rope(q, offset=70), offset=70)
    np.testing.assert_allclose(back, q, rtol=0, atol=8 * np.spacing(np.abs(q).max()))


@by_name
@pytest.mark.parametrize("by", [1, -37, 100_000, 0.5])
def test_shifted_keys_are_keys_at_the_shifted_position(rule: Any, by: float) -> None:
    rope = rotary.RotaryEmbedding(DIM, scaling=rule)
    k = np.random.default_rng(2).standard_normal((3, 40, DIM))
    positions, seq_len = np.arange(40) + 60, 200_000
    moved = rope.shift(rope(k, positions=positions, seq_len=seq_len), by, seq_len=seq_len)
    want = rope(k, positions=positions + by, seq_len=seq_len)
    # Two rotations round four times each; pairs of norm up to 5.
    np.testing.assert_allclose(moved, want, rtol=0, atol=6 * np.spacing(5.0))


def test_a_shift_needs_the_length_where_the_rule_does() -> None:
    rope = rotary.RotaryEmbedding(DIM, scaling=scaling.DynamicNTK(2.0, 50))
    with pytest.raises(ValueError, match="seq_len: got None, expected the length"):
        rope.shift(np.ones((5, DIM), np.float32), 3)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_longrope_switches_exactly_beyond_the_trained_length(traced: bool) -> None:
    jax = pytest.importorskip("jax")
    rule = every_rule()[4]
    rope = rotary.RotaryEmbedding(DIM, scaling=rule)
    q = np.random.default_rng(3).standard_normal((2, 5, DIM)).astype(np.float32)
    factor = rope.attention_factor()
    fixed = scaling.LongRoPE(rule.long_factor, rule.long_factor, 50, attention_factor=factor)
    short = rotary.RotaryEmbedding(
        DIM, scaling=scaling.LongRoPE(rule.short_factor, rule.short_factor, 50, factor=32.0)
    )(q)
    long = rotary.RotaryEmbedding(DIM, scaling=fixed)(q)
    run = jax.jit(lambda q, n: rope(q, seq_len=n)) if traced else lambda q, n: rope(q, seq_len=n)
    for length in (5, 49, 50):
        assert np.array_equal(np.asarray(run(q, length)), short)
    for length in (51, 52, 10**6):
        assert np.array_equal(np.asarray(run(q, length)), long)


def test_the_length_is_the_largest_position_plus_one_where_it_is_not_given() -> None:
    rope = rotary.RotaryEmbedding(DIM, scaling=scaling.DynamicNTK(2.0, 50))
    q = np.random.default_rng(4).standard_normal((2, 5, DIM)).astype(np.float32)
    for call, length in (
        ({}, 5),
        ({"offset": 200}, 205),
        ({"positions": [7, 300, 2, 1, 0]}, 301),
        ({"positions": [7.5, 299.5, 2, 1, 0]}, 300),
        ({"offset": [3, 90]}, 95),
    ):
        assert np.array_equal(rope(q, **call), rope(q, **call, seq_len=length))


def test_dynamic_ntk_changes_nothing_up_to_the_trained_length() -> None:
    rope = rotary.RotaryEmbedding(DIM, scaling=scaling.DynamicNTK(4.0, 50))
    plain = rotary.RotaryEmbedding(DIM).frequencies()
    assert np.array_equal(rope.frequencies(50), plain)
    assert not np.array_equal(rope.frequencies(51), plain)


def test_traced_positions_need_a_length_where_it_matters() -> None:
    jax = pytest.importorskip("jax")
    rope = rotary.RotaryEmbedding(DIM, scaling=scaling.DynamicNTK(2.0, 50))
    q = np.ones((5, DIM), np.float32)
    with pytest.raises(ValueError, match="seq_len: got None, expected a number"):
        jax.jit(lambda q, n: rope(q, offset=n))(q, 3)
    with pytest.raises(TypeError, match="seq_len: got a traced array, expected a number"):
        jax.jit(lambda q, n: rope(q, seq_len=n))(q, 300)
    got = jax.jit(lambda q, n: rope(q, offset=n, seq_len=300))(q, 3)
    assert np.array_equal(np.asarray(got), rope(q, offset=3, seq_len=300))


def test_the_softmax_scale_is_deepseeks_and_one_for_others() -> None:
    rule = scaling.YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    g = 0.1 * np.log(40.0) + 1
    assert rotary.RotaryEmbedding(DIM, scaling=rule).softmax_scale == pytest.approx(
        g * g, rel=1e-15
    )
    assert rotary.RotaryEmbedding(DIM, scaling=scaling.Linear(2.0)).softmax_scale == 1.0
    assert rotary.RotaryEmbedding(DIM).softmax_scale == 1.0


def test_the_query_scale_grows_by_the_logarithm_of_whole_contexts() -> None:
    rule = scaling.YaRN(16.0, 100, llama_4_scaling_beta=0.1)
    rope = rotary.RotaryEmbedding(DIM, scaling=rule)
    positions = [0, 99, 100, 199, 5000]
    want = 1 + 0.1 * np.log(1 + np.floor(np.array(positions) / 100))
    got = rope.query_scale(positions)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want.astype(np.float32))
    torch = pytest.importorskip("torch")
    like = torch.zeros(1, dtype=torch.float64)
    np.testing.assert_allclose(rope.query_scale(positions, like=like).numpy(), want, rtol=1e-15)
    assert np.array_equal(rotary.RotaryEmbedding(DIM).query_scale(positions), np.ones(5, "f4"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: scaling.Linear(0.0), ValueError, "factor: got 0.0, expected a positive"),
        (lambda: scaling.Linear(-2), ValueError, "factor: got -2.0, expected a positive"),
        (lambda: scaling.Linear(float("nan")), ValueError, "factor: got nan, expected a finite"),
        (lambda: scaling.Linear("2"), TypeError, "factor: got '2', expected a number"),
        (lambda: scaling.NTK(True), TypeError, "factor: got True, expected a number"),
        (lambda: scaling.DynamicNTK(2.0, 0), ValueError, "original_max_position_embeddings: got 0"),
        (lambda: scaling.YaRN(2.0, 10.5), TypeError, "original_max_position_embeddings: got 10.5"),
        (lambda: scaling.YaRN(2.0, 10, truncate=1), TypeError, "truncate: got 1, expected True"),
        (lambda: scaling.YaRN(2.0, 10, attention_factor=0), ValueError, "attention_factor: got 0"),
        (lambda: scaling.Llama3(8.0, 4.0, 1.0, 10), ValueError, "low_freq_factor: got 4.0"),
        (lambda: scaling.Proportional(1.5), ValueError, "partial_rotary_factor: got 1.5"),
        (lambda: scaling.LongRoPE(3, [1.0], 10), TypeError, "short_factor: got 3"),
        (lambda: scaling.LongRoPE([0.0], [1.0], 10), ValueError, "short_factor: got 0.0 among"),
        (
            lambda: scaling.LongRoPE([1.0], [1.0], 10, short_mscale=1.2),
            ValueError,
            "short_mscale: got 1.2 with long_mscale None",
        ),
        (
            lambda: rotary.RotaryEmbedding(4, scaling=scaling.LongRoPE([1.0], [1.0, 1.0], 10)),
            ValueError,
            "short_factor: got 1 numbers, expected one for each of the 2 pairs",
        ),
        (
            lambda: rotary.RotaryEmbedding(2, scaling=scaling.NTK(2.0)),
            ValueError,
            "scaling: NTK needs more than 2 features, got 2",
        ),
        (
            lambda: rotary.RotaryEmbedding(4, scaling=scaling.Linear),
            TypeError,
            "scaling: got <class 'rotary.scaling.Linear'>, expected None or a rule",
        ),
    ],
)
def test_wrong_numbers_are_refused(make: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=r"^\w+: ") as caught:
        make()
    assert words in str(caught.value)

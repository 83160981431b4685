"""Bad input to gates, the delta rule and wider feature maps is refused by one clear sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from linear_family_samples import KEY_DIM, LENGTH, attention, sample

import rotary
from rotary.linear import CosFormer, FavorPlus, LinearAttention, RetNet, combine

ROPE = rotary.RotaryEmbedding(KEY_DIM)
FAVOR, COSFORMER = FavorPlus(12), CosFormer(LENGTH)


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"feature_map": "taylr"}, ValueError, "feature_map", "got 'taylr', expected 'elu+1' or"),
        ({"feature_map": FavorPlus}, ValueError, "feature_map", "FavorPlus"),
        ({"feature_map": CosFormer}, ValueError, "feature_map", "CosFormer"),
        ({"update": "Delta"}, ValueError, "update", "got 'Delta', expected 'additive' or 'delta'"),
        ({"update": None}, ValueError, "update", "got None, expected 'additive' or 'delta'"),
        (
            {"update": "delta", "normalize": True},
            ValueError,
            "normalize",
            "got True with update='delta', expected False",
        ),
        ({"update": "delta", "eps": 1e-6}, ValueError, "eps", "without the normaliser"),
        (
            {"update": "delta", "feature_map": "softmax"},
            ValueError,
            "update",
            "got 'delta' with feature_map='softmax', expected 'additive'",
        ),
        (
            {"update": "delta", "feature_map": FAVOR},
            ValueError,
            "update",
            "got 'delta' with feature_map=FavorPlus(num_features=12, seed=0), expected 'additive'",
        ),
        (
            {"feature_map": FAVOR, "decay": "gate"},
            ValueError,
            "decay",
            "got 'gate' with feature_map=FavorPlus(num_features=12, seed=0), expected None",
        ),
        ({"feature_map": FAVOR, "decay": RetNet()}, ValueError, "decay", "got RetNet() with"),
        (
            {"feature_map": FAVOR, "normalize": False},
            ValueError,
            "normalize",
            "got False with feature_map=FavorPlus(num_features=12, seed=0), expected True",
        ),
        (
            {"feature_map": COSFORMER, "rope": ROPE},
            ValueError,
            "rope",
            f"got one with feature_map=CosFormer(length={LENGTH}), expected None: that map is",
        ),
        (
            {"feature_map": COSFORMER, "placement": "both"},
            ValueError,
            "placement",
            "got 'both' without rope, expected 'numerator'",
        ),
        ({"feature_map": "l2norm"}, ValueError, "normalize", "got None with feature_map='l2norm'"),
    ],
)
def test_wrong_descriptions_are_refused(
    refused: Any, wrong: dict[str, Any], error: type[Exception], name: str, words: str
) -> None:
    with refused(error, name, words):
        LinearAttention(**wrong)


@pytest.mark.parametrize(
    ("length", "error", "words"),
    [
        (0, ValueError, "got 0, expected a positive number"),
        (-3, ValueError, "got -3, expected a positive number"),
        (2.5, TypeError, "got 2.5, expected a whole number"),
        (True, TypeError, "got True, expected a whole number"),
        (None, TypeError, "got None, expected a whole number"),
    ],
)
def test_a_length_that_is_none_is_refused(
    refused: Any, length: Any, error: type[Exception], words: str
) -> None:
    with refused(error, "length", words):
        CosFormer(length)


def shaped(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


Q, K, V = shaped(2, 4, 5, 8), shaped(2, 2, 5, 8), shaped(2, 2, 5, 6)
DELTA = LinearAttention("l2norm", update="delta")
GATED = LinearAttention("identity", decay="gate")


@pytest.mark.parametrize(
    ("beta", "error", "words"),
    [
        (None, ValueError, "got None with update='delta', expected what the rule multiplies by"),
        (shaped(2, 4, 5), ValueError, "got shape (2, 4, 5), expected (batch, kv_heads, seq) = "),
        (shaped(2, 2, 4), ValueError, "got shape (2, 2, 4), expected"),
        (shaped(2, 2, 5, 1), ValueError, "got shape (2, 2, 5, 1), expected"),
        (shaped(5), ValueError, "got shape (5,), expected (batch, kv_heads, seq) = (2, 2, 5)"),
        (shaped(2, 2, 5, dtype="int32"), TypeError, "got dtype int32, expected one of float16, "),
        (shaped(2, 2, 5, dtype="bool"), TypeError, "got dtype bool, expected one of"),
        (shaped(2, 2, 5, dtype="float64"), TypeError, "got dtype float64, expected one of"),
        ([1.0], TypeError, "got"),
    ],
)
def test_wrong_betas_are_refused(
    refused: Any, beta: Any, error: type[Exception], words: str
) -> None:
    with refused(error, "beta", words):
        DELTA(Q, K, V, causal=True, beta=beta)
    with refused(error, "beta", words):
        DELTA.prefill(Q, K, V, beta=beta)
    with refused(error, "beta", words):
        DELTA.segment(K, V, beta=beta)


def test_a_beta_without_the_delta_rule_is_refused(refused: Any) -> None:
    words = "got an array with update='additive', expected None"
    with refused(ValueError, "beta", words):
        GATED(Q, K, V, causal=True, beta=shaped(2, 2, 5), gate=-shaped(2, 2, 5))


@pytest.mark.parametrize("attn", [GATED, LinearAttention("l2norm", decay="gate", update="delta")])
@pytest.mark.parametrize(
    ("gate", "error", "words"),
    [
        (-shaped(2, 2, 5, 7), ValueError, "got shape (2, 2, 5, 7), expected (batch, kv_heads, seq"),
        (-shaped(2, 2, 5, 1), ValueError, "or (batch, kv_heads, seq, features) = (2, 2, 5, 8)"),
        (-shaped(2, 4, 5, 8), ValueError, "got shape (2, 4, 5, 8), expected"),
        (-shaped(2, 2, 4, 8), ValueError, "got shape (2, 2, 4, 8), expected"),
        (-shaped(2, 2, 5, 8, 1), ValueError, "got shape (2, 2, 5, 8, 1), expected"),
        (-shaped(2, 5, 2, 8), ValueError, "got shape (2, 5, 2, 8), expected"),
        (-shaped(8), ValueError, "got shape (8,), expected"),
        (shaped(2, 2, 5, 8), ValueError, "got 1.0, expected log gates of at most 0"),
        (-shaped(2, 2, 5, 8, dtype="float64"), TypeError, "got dtype float64, expected one of"),
        (-shaped(2, 2, 5, 8, dtype="int64"), TypeError, "got dtype int64, expected one of"),
        (None, ValueError, "got None with decay='gate', expected log gates"),
    ],
)
def test_wrong_gates_are_refused(
    refused: Any, attn: LinearAttention, gate: Any, error: type[Exception], words: str
) -> None:
    more = {} if attn is GATED else {"beta": shaped(2, 2, 5)}
    with refused(error, "gate", words):
        attn(Q, K, V, causal=True, gate=gate, **more)
    with refused(error, "gate", words):
        attn.segment(K, V, gate=gate, **more)


def test_gates_of_the_features_of_the_map_are_those_asked_for(refused: Any) -> None:
    attn = LinearAttention("taylor", decay="gate", normalize=False)
    with refused(ValueError, "gate", "or (batch, kv_heads, seq, features) = (2, 2, 5, 45)"):
        attn(Q, K, V, causal=True, gate=-shaped(2, 2, 5, 8))
    attn(Q, K, V, causal=True, gate=-shaped(2, 2, 5, 45))


def test_the_delta_rule_has_a_direction(refused: Any) -> None:
    with refused(ValueError, "causal", "got False with update='delta', expected True"):
        DELTA(Q, K, V, beta=shaped(2, 2, 5))


def test_positions_beyond_the_length_are_refused(refused: Any) -> None:
    attn = LinearAttention(CosFormer(4))
    with refused(ValueError, "positions", "expected 0 … 3, below the length of feature_map"):
        attn(Q, K, V)
    with refused(ValueError, "positions", "expected 0 … 3"):
        attn(Q, K, V, positions=[-1, 0, 1, 2, 3])
    with refused(ValueError, "positions", "expected 0 … 3"):
        attn.segment(K[:, :, :2], V[:, :, :2], positions=[3, 4])
    q, k, v = (x[:, :, :4] for x in (Q, K, V))
    _, state = attn.prefill(q, k, v)
    token = [x[:, :, :1] for x in (Q, K, V)]
    with refused(ValueError, "positions", "expected 0 … 3"):
        attn.step(*token, state)
    # Masked tokens are not counted.
    mask = np.array([[False, True, True, True], [True, True, True, False]])
    _, state = attn.prefill(q, k, v, key_mask=mask)
    assert attn.step(*token, state)[1].position.tolist() == [4, 4]


def test_a_segment_of_a_map_with_positions_asks_for_them(refused: Any) -> None:
    attn = LinearAttention(COSFORMER)
    with refused(ValueError, "positions", "got None, expected those of the tokens in the whole"):
        attn.segment(K, V)


def test_rotations_of_another_size_than_the_features_are_refused(refused: Any) -> None:
    for name, features in (("taylor", 45), (FAVOR, 12)):
        attn = LinearAttention(name, rope=ROPE)
        words = f"got head_dim = 8, expected the number of features that it rotates, {features}"
        with refused(ValueError, "rope", words):
            attn(Q, K, V)
    attn = LinearAttention("taylor", rope=rotary.RotaryEmbedding(12), placement="before_map")
    with refused(ValueError, "rope", "got head_dim = 12, expected the number of features that"):
        attn(Q, K, V)


def test_only_a_segment_can_follow_under_the_delta_rule(refused: Any) -> None:
    beta = shaped(2, 2, 5)
    segment = DELTA.segment(K, V, beta=beta)
    _, state = DELTA.prefill(Q, K, V, beta=beta)
    with refused(ValueError, "right", "got a state that prefill or step handed over, expected one"):
        combine(segment, state)
    with refused(ValueError, "right", "got a state that prefill or step handed over"):
        combine(state, state)
    combine(state, segment)
    wider = DELTA.segment(shaped(2, 2, 5, 9), V, beta=beta)
    with refused(ValueError, "right", "got numerator of shape (2, 2, 9, 6), expected left's"):
        combine(segment, wider)


def states() -> dict[str, tuple[LinearAttention, dict[str, Any], Any, str, str]]:
    """Return a description, its arrays, a state of another one and what is said of it."""
    gate, beta = -shaped(2, 2, 5), shaped(2, 2, 5)
    by_channel = -shaped(2, 2, 5, 8)
    additive = LinearAttention("l2norm", normalize=False)
    of_head = GATED.prefill(Q, K, V, gate=gate)[1]
    of_channel = GATED.prefill(Q, K, V, gate=by_channel)[1]
    of_delta = DELTA.prefill(Q, K, V, beta=beta)[1]
    of_favor = LinearAttention(FAVOR).prefill(Q, K, V)[1]
    of_more = LinearAttention(FavorPlus(13)).prefill(Q, K, V)[1]
    plain = LinearAttention().prefill(Q, K, V)[1]
    return {
        "head for channel": (GATED, {"gate": by_channel}, of_head, "state.log_decay", "(2, 2, 8)"),
        "channel for head": (GATED, {"gate": gate}, of_channel, "state.log_decay", "(2, 2)"),
        "delta for none": (additive, {}, of_delta, "state.transition", "without it"),
        "none for delta": (
            DELTA,
            {"beta": beta},
            additive.prefill(Q, K, V)[1],
            "state.transition",
            "with it",
        ),
        "no maximum": (
            LinearAttention(FAVOR),
            {},
            of_favor._replace(maximum=None),
            "state.maximum",
            "got None, expected a state of this variant, with it",
        ),
        "another number of features": (
            LinearAttention(FAVOR),
            {},
            of_more,
            "state.numerator",
            "got shape (2, 2, 13, 6), expected (2, 2, 12, 6)",
        ),
        "features for another map": (
            LinearAttention("taylor"),
            {},
            plain,
            "state.numerator",
            "got shape (2, 2, 8, 6), expected (2, 2, 45, 6)",
        ),
    }


@pytest.mark.parametrize("case", states())
def test_states_of_another_kind_are_refused(refused: Any, case: str) -> None:
    attn, more, state, name, words = states()[case]
    with refused(ValueError, name, words):
        attn.prefill(Q, K, V, state, **more)
    token = [x[:, :, :1] for x in (Q, K, V)]
    with refused(ValueError, name, words):
        attn.step(*token, state, **{key: x[:, :, :1] for key, x in more.items()})


def test_states_of_two_kinds_do_not_combine(refused: Any) -> None:
    gate, beta = -shaped(2, 2, 5), shaped(2, 2, 5)
    of_head, of_channel = (GATED.segment(K, V, gate=x) for x in (gate, -shaped(2, 2, 5, 8)))
    with refused(ValueError, "right", "got log_decay of shape (2, 2, 8), expected left's (2, 2)"):
        combine(of_head, of_channel)
    additive = LinearAttention("l2norm", normalize=False).segment(K, V)
    with refused(ValueError, "right", "got a state with transition, expected one of left's"):
        combine(additive, DELTA.segment(K, V, beta=beta))
    plain = LinearAttention().segment(shaped(2, 2, 5, 12), V)
    with refused(ValueError, "right", "got a state without maximum, expected one of left's"):
        combine(LinearAttention(FAVOR).segment(K, V), plain)


@pytest.mark.parametrize("seq", [4, 7])
def test_packed_gates_betas_and_positions_are_of_all_tokens(refused: Any, seq: int) -> None:
    one = [x[:1] for x in (Q, K, V)]
    attn = LinearAttention("l2norm", update="delta", decay="gate", rope=ROPE)
    right = {"gate": -shaped(1, 2, 5), "beta": shaped(1, 2, 5), "positions": np.arange(5)}
    for name, wrong, words in (
        ("gate", -shaped(1, 2, seq), "expected (batch, kv_heads, seq) = (1, 2, 5)"),
        ("gate", -shaped(1, 2, seq, 8), "expected (batch, kv_heads, seq) = (1, 2, 5)"),
        ("beta", shaped(1, 2, seq), "expected (batch, kv_heads, seq) = (1, 2, 5)"),
        ("positions", np.arange(seq), "expected (5,)"),
    ):
        with refused(ValueError, name, f"got shape {wrong.shape}, ", words):
            attn(*one, causal=True, cu_seqlens=[0, 2, 5], **{**right, name: wrong})


def test_arrays_of_two_libraries_are_refused(library: Any, other: Any, refused: Any) -> None:
    name = "gated delta, channels"
    attn, on_host = attention(name), sample(name, 5)
    given = on_host.map(library.array)
    for field in ("gate", "beta"):
        foreign = given._replace(**{field: other.array(getattr(on_host, field))})
        with refused(TypeError, field, "got an array of"):
            foreign.attend(attn)


@pytest.mark.parametrize("feature_map", ["taylor", FavorPlus(257)])
def test_too_many_features_for_exact_products_are_refused(refused: Any, feature_map: Any) -> None:
    attn = LinearAttention(feature_map, arithmetic="exact")
    features = 300 if feature_map == "taylor" else 257
    q, k, v = shaped(1, 1, 3, 23), shaped(1, 1, 3, 23), shaped(1, 1, 3, 2)
    words = f"got {features} features with arithmetic='exact', expected at most 256"
    with refused(ValueError, "k", words):
        attn(q, k, v)


def test_gates_of_channels_above_zero_that_only_a_program_knows_give_nan() -> None:
    jax = pytest.importorskip("jax")
    gate = np.zeros((1, 1, 3, 2), np.float32)
    gate[0, 0, 1, 1] = 1e-6
    x = jax.numpy.ones((1, 1, 3, 2))
    attn = LinearAttention("identity", decay="gate", chunk_size=4)
    out = np.asarray(jax.jit(lambda g: attn(x, x, x, causal=True, gate=g))(gate))
    assert np.isnan(out[:, :, 1:]).all()
    assert np.isfinite(out[:, :, :1]).all()

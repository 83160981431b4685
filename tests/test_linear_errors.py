"""Bad input to linear attention is refused by one clear sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from linear_samples import BATCH, KEY_DIM, KV_HEADS, SEQ, VARIANTS, arrays, attention, sample

import rotary
from rotary.linear import LinearAttention, RetNet, State, combine

ROPE = rotary.RotaryEmbedding(KEY_DIM)
GIVEN = sample(VARIANTS["gate"])


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"feature_map": "elu"}, ValueError, "feature_map", "got 'elu', expected 'elu+1' or"),
        ({"feature_map": None}, ValueError, "feature_map", "got None, expected"),
        ({"rope": 64}, TypeError, "rope", "got 64, expected None or rotary.RotaryEmbedding"),
        (
            {"rope": rotary.RotaryEmbedding(8, scaling=rotary.scaling.DynamicNTK(2.0, 64))},
            ValueError,
            "rope",
            "got the scaling DynamicNTK, expected one that does not depend on the length",
        ),
        ({"placement": "denominator"}, ValueError, "placement", "expected 'numerator' or 'both'"),
        ({"placement": "both"}, ValueError, "placement", "got 'both' without rope"),
        ({"decay": "retnet"}, ValueError, "decay", "got 'retnet', expected None, rotary.linear"),
        ({"decay": RetNet}, ValueError, "decay", "expected None, rotary.linear.RetNet() or 'gate'"),
        ({"decay": "gate", "feature_map": "softmax"}, ValueError, "decay", "got 'gate' with"),
        ({"update": "gamma"}, ValueError, "update", "got 'gamma', expected 'additive' or 'delta'"),
        ({"normalize": 1}, TypeError, "normalize", "got 1, expected None, True or False"),
        ({"feature_map": "identity"}, ValueError, "normalize", "got None with feature_map='ident"),
        ({"feature_map": np.abs}, ValueError, "normalize", "expected True or False: the features"),
        (
            {"rope": ROPE, "placement": "both"},
            ValueError,
            "normalize",
            "got None with placement='both', expected True or False",
        ),
        ({"eps": -1e-6}, ValueError, "eps", "got -1e-06, expected a number of at least 0"),
        ({"eps": "small"}, TypeError, "eps", "got 'small', expected a number"),
        ({"eps": float("nan")}, ValueError, "eps", "got nan, expected a finite number"),
        ({"eps": 1e-6, "normalize": False}, ValueError, "eps", "without the normaliser"),
        ({"scale": float("inf")}, ValueError, "scale", "got inf, expected a finite number"),
        ({"scale": True}, TypeError, "scale", "got True, expected a number"),
        ({"chunk_size": 0}, ValueError, "chunk_size", "got 0, expected a positive number"),
        ({"chunk_size": -64}, ValueError, "chunk_size", "got -64, expected a positive number"),
        ({"chunk_size": 64.0}, TypeError, "chunk_size", "got 64.0, expected a whole number"),
        (
            {"chunk_size": 512, "arithmetic": "exact"},
            ValueError,
            "chunk_size",
            "got 512 with arithmetic='exact', expected at most 256",
        ),
        ({"arithmetic": "float32"}, ValueError, "arithmetic", "expected 'fast' or 'exact'"),
    ],
)
def test_a_wrong_description_is_refused(
    refused: Any, wrong: dict[str, Any], error: type[Exception], name: str, words: str
) -> None:
    with refused(error, name, words):
        LinearAttention(**wrong)


def shaped(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


Q, K, V = shaped(2, 4, 5, 8), shaped(2, 2, 5, 8), shaped(2, 2, 5, 6)


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"q": shaped(4, 5, 8)}, ValueError, "q", "got shape (4, 5, 8), expected (batch, heads"),
        ({"k": shaped(2, 5, 8)}, ValueError, "k", "expected (batch, kv_heads, seq, key_dim)"),
        ({"v": shaped(5, 6)}, ValueError, "v", "expected (batch, kv_heads, seq, value_dim)"),
        ({"q": [1.0]}, TypeError, "q", "got builtins.list, expected an array"),
        ({"q": shaped(2, 4, 5, 8, dtype="int32")}, TypeError, "q", "got dtype int32"),
        ({"k": K.astype("float64")}, TypeError, "k", "got dtype float64, expected q's float32"),
        ({"v": V.astype("float16")}, TypeError, "v", "got dtype float16, expected q's float32"),
        ({"k": shaped(2, 2, 6, 8)}, ValueError, "k", "expected q's shape (2, 4, 5, 8) except"),
        ({"k": shaped(2, 2, 5, 7)}, ValueError, "k", "expected q's shape"),
        ({"k": shaped(1, 2, 5, 8)}, ValueError, "k", "expected q's shape"),
        ({"k": shaped(2, 3, 5, 8)}, ValueError, "k", "got 3 heads, shape (2, 3, 5, 8), expected"),
        ({"v": shaped(2, 4, 5, 6)}, ValueError, "v", "expected (2, 2, 5, value_dim)"),
        ({"v": shaped(2, 2, 5, 0)}, ValueError, "v", "expected features"),
        ({"key_mask": shaped(2, 5)}, TypeError, "key_mask", "got dtype float32, expected bool"),
        (
            {"key_mask": np.ones((2, 4), bool)},
            ValueError,
            "key_mask",
            "got shape (2, 4), expected (batch, seq) = (2, 5)",
        ),
        ({"key_mask": np.ones(5, bool)}, ValueError, "key_mask", "got shape (5,), expected"),
        ({"gate": shaped(2, 2, 5)}, ValueError, "gate", "got an array with decay=None, expected"),
        ({"beta": shaped(2, 2, 5)}, ValueError, "beta", "got an array with update='additive'"),
        ({"positions": [0, 1]}, ValueError, "positions", "got shape (2,), expected (5,) or (2, 5)"),
        ({"positions": np.zeros((3, 5))}, ValueError, "positions", "expected (5,) or (2, 5)"),
        ({"positions": [np.nan] * 5}, ValueError, "positions", "got NaN at index 0"),
        ({"cu_seqlens": [0, 5]}, ValueError, "cu_seqlens", "got it with a batch of 2, expected"),
    ],
)
def test_wrong_arrays_are_refused(
    refused: Any, wrong: dict[str, Any], error: type[Exception], name: str, words: str
) -> None:
    attn = LinearAttention(rope=ROPE)
    with refused(error, name, words):
        attn(**{"q": Q, "k": K, "v": V, "causal": True, **wrong})


@pytest.mark.parametrize(
    ("bounds", "error", "words"),
    [
        ([0, 3], ValueError, "got 0 … 3, expected 0 … seq = 5: all tokens belong to a sequence"),
        ([1, 5], ValueError, "got 1 … 5, expected 0 … seq = 5"),
        ([0, 4, 3, 5], ValueError, "expected whole numbers that never fall"),
        ([0, 2.5, 5], ValueError, "expected whole numbers that never fall"),
        ([5], ValueError, "got shape (1,), expected (sequences + 1,)"),
        ([[0, 5]], ValueError, "got shape (1, 2), expected (sequences + 1,)"),
    ],
)
def test_bounds_that_do_not_cover_the_tokens_are_refused(
    refused: Any, bounds: Any, error: type[Exception], words: str
) -> None:
    with refused(error, "cu_seqlens", words):
        LinearAttention()(Q[:1], K[:1], V[:1], causal=True, cu_seqlens=bounds)


def test_traced_bounds_are_refused(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    attn = LinearAttention()
    given = [jax.numpy.asarray(x[:1]) for x in (Q, K, V)]
    with refused(TypeError, "cu_seqlens", "got a traced array of jax"):
        jax.jit(lambda n: attn(*given, causal=True, cu_seqlens=n))(np.array([0, 5]))


@pytest.mark.parametrize(
    ("gate", "error", "words"),
    [
        (shaped(2, 2, 5), ValueError, "got 1.0, expected log gates of at most 0"),
        (-shaped(2, 2, 4), ValueError, "got shape (2, 2, 4), expected (batch, kv_heads, seq)"),
        (-shaped(2, 4, 5), ValueError, "expected (batch, kv_heads, seq) = (2, 2, 5)"),
        (-shaped(2, 2, 5, dtype="float64"), TypeError, "got dtype float64, expected one of"),
        (-shaped(2, 2, 5, dtype="int32"), TypeError, "got dtype int32, expected one of"),
        (None, ValueError, "got None with decay='gate', expected log gates"),
    ],
)
def test_wrong_gates_are_refused(
    refused: Any, gate: Any, error: type[Exception], words: str
) -> None:
    with refused(error, "gate", words):
        LinearAttention(decay="gate")(Q, K, V, causal=True, gate=gate)


def test_gates_above_zero_that_only_a_program_knows_give_nan() -> None:
    jax = pytest.importorskip("jax")
    attn = LinearAttention(decay="gate")
    gate = np.zeros((2, 2, 5), np.float32)
    gate[0, 1, 3] = 1e-6
    given = [jax.numpy.asarray(x) for x in (Q, K, V)]
    out = np.asarray(jax.jit(lambda g: attn(*given, causal=True, gate=g))(gate))
    assert np.isnan(out[0, 2:, 3:]).all()
    assert np.isfinite(np.delete(out, 0, axis=0)).all()


def test_a_decay_has_a_direction(refused: Any) -> None:
    with refused(ValueError, "causal", "got False with decay=RetNet(), expected True"):
        LinearAttention(decay=RetNet())(Q, K, V)


def test_softmax_features_have_no_causal_form(refused: Any) -> None:
    attn = LinearAttention("softmax")
    for call in (
        lambda: attn(Q, K, V, causal=True),
        lambda: attn.prefill(Q, K, V),
        lambda: attn.step(Q[:, :, :1], K[:, :, :1], V[:, :, :1], None),
        lambda: attn.segment(K, V),
    ):
        with refused(ValueError, "feature_map", "got 'softmax', whose keys depend on all tokens"):
            call()


@pytest.mark.parametrize("features", [3.0, np.ones(3), np.ones((2, 4, 5, 0)), np.ones((5, 8))])
def test_a_map_of_the_wrong_shape_is_refused(refused: Any, features: Any) -> None:
    attn = LinearAttention(lambda x: features, normalize=False)
    with refused(ValueError, "feature_map", "for q of shape (2, 4, 5, 8), expected (2, 4, 5, 'fea"):
        attn(Q, K, V)


def test_a_map_of_another_dtype_or_number_of_features_is_refused(refused: Any) -> None:
    with refused(TypeError, "feature_map", "got dtype float64 for q, expected float32"):
        LinearAttention(lambda x: x.astype(np.float64), normalize=False)(Q, K, V)
    widths = iter((8, 7))
    attn = LinearAttention(lambda x: x[..., : next(widths)], normalize=False)
    with refused(ValueError, "feature_map", "got 8 features of q and 7 of k, expected as many"):
        attn(Q, K, V)


def test_a_rotation_of_another_size_is_refused(refused: Any) -> None:
    attn = LinearAttention(rope=rotary.RotaryEmbedding(16))
    with refused(ValueError, "rope", "got head_dim = 16, expected the number of features that"):
        attn(Q, K, V)
    with refused(ValueError, "positions", "got None, expected those of the tokens in the whole"):
        LinearAttention(rope=ROPE).segment(K, V)


def test_more_than_one_token_is_no_step(refused: Any) -> None:
    attn = LinearAttention()
    with refused(ValueError, "q", "got shape (2, 4, 5, 8), expected one token, seq = 1"):
        attn.step(Q, K, V, None)


def test_exact_arithmetic_takes_no_float64(refused: Any) -> None:
    attn = LinearAttention(arithmetic="exact")
    with refused(TypeError, "q", "got dtype float64 with arithmetic='exact', expected float16"):
        attn(*(x.astype(np.float64) for x in (Q, K, V)))


def states() -> dict[str, tuple[State, type[Exception], str, str]]:
    plain = LinearAttention().prefill(Q, K, V)[1]
    decayed = LinearAttention(decay=RetNet()).prefill(Q, K, V)[1]
    wider = LinearAttention().prefill(Q, K, shaped(2, 2, 5, 7))[1]
    rows = LinearAttention().prefill(Q[:1], K[:1], V[:1])[1]
    wide = LinearAttention().prefill(*(x.astype(np.float64) for x in (Q, K, V)))[1]
    missing = plain._replace(position=None)
    return {
        "not a state": (tuple(plain), TypeError, "state", "got builtins.tuple, expected a"),  # type: ignore[dict-item]
        "another variant": (decayed, ValueError, "state.normaliser", "got None, expected a state"),
        "another value_dim": (wider, ValueError, "state.numerator", "expected (2, 2, 8, 6)"),
        "another batch": (rows, ValueError, "state.numerator", "got shape (1, 2, 8, 6)"),
        "another dtype": (wide, TypeError, "state.numerator", "got dtype float64, expected float"),
        "no position": (missing, ValueError, "state.position", "got None, expected a state of"),
    }


@pytest.mark.parametrize("case", states())
def test_states_of_another_kind_are_refused(refused: Any, case: str) -> None:
    state, error, name, words = states()[case]
    with refused(error, name, words):
        LinearAttention().prefill(Q, K, V, state)
    with refused(error, name, words):
        LinearAttention().step(Q[:, :, :1], K[:, :, :1], V[:, :, :1], state)


def test_states_of_two_kinds_do_not_combine(refused: Any) -> None:
    plain = LinearAttention().segment(K, V)
    with refused(TypeError, "left", "got builtins.int, expected a rotary.linear.State"):
        combine(3, plain)  # type: ignore[arg-type]
    bare = LinearAttention(normalize=False).segment(K, V)
    with refused(ValueError, "right", "got a state without normaliser, expected one of left's"):
        combine(plain, bare)
    wider = LinearAttention().segment(K, shaped(2, 2, 5, 7))
    with refused(ValueError, "right", "got numerator of shape (2, 2, 8, 7), expected left's"):
        combine(plain, wider)
    wide = LinearAttention().segment(K.astype("float64"), V.astype("float64"))
    with refused(TypeError, "right", "got numerator of dtype float64, expected left's float32"):
        combine(plain, wide)


def test_packed_states_have_a_row_for_each_sequence(refused: Any) -> None:
    attn = LinearAttention()
    _, state = attn.prefill(Q, K, V)
    with refused(ValueError, "state", "got 2 batch rows, expected one for each of 3 sequences"):
        attn.prefill(Q[:1], K[:1], V[:1], state, cu_seqlens=[0, 1, 2, 5])


def test_arrays_of_two_libraries_are_refused(library: Any, other: Any, refused: Any) -> None:
    given = arrays(library, GIVEN)
    attn = attention(VARIANTS["gate"])
    mask = np.ones((BATCH, SEQ), bool)
    with refused(TypeError, "k", "got an array of"):
        attn(given.q, other.array(GIVEN.k), given.v, causal=True, gate=given.gate)
    with refused(TypeError, "gate", "got an array of"):
        attn(*given[:3], causal=True, gate=other.array(GIVEN.gate))
    with refused(TypeError, "key_mask", "got an array of"):
        attn(*given[:3], causal=True, gate=given.gate, key_mask=other.array(mask))
    state = attn.segment(
        other.array(GIVEN.k[:, :, :1]),
        other.array(GIVEN.v[:, :, :1]),
        gate=other.array(GIVEN.gate[:, :, :1]),
        positions=[0],
    )
    assert state.numerator.shape[1] == KV_HEADS
    with refused(TypeError, "state.numerator", "got an array of"):
        attn.prefill(*given[:3], state, gate=given.gate)

"""Converted projections in the other layout: the same scores, by the permutation of checkpoints."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import rotary
from rotary import backends, convert_layout

OTHER = {"half": "interleaved", "interleaved": "half"}
PARTS = {
    "whole": {},
    "leading": {"rotary_dim": 6},
    "trailing": {"rotary_dim": 6, "rotary_side": "trailing"},
    "one pair": {"rotary_dim": 2},
}


def permute(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Interleaved → half, as convert_llama_weights_to_hf.py in transformers has it."""
    dim1, *dim2 = w.shape
    return w.reshape(n_heads, dim1 // n_heads // 2, 2, *dim2).swapaxes(1, 2).reshape(dim1, *dim2)


def numbered(heads: int, head_dim: int, hidden: int | None = 3) -> np.ndarray:
    shape = (heads * head_dim,) if hidden is None else (heads * head_dim, hidden)
    return np.arange(float(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("hidden", [None, 5])
def test_it_is_the_permutation_of_hugging_face(heads: int, hidden: int | None) -> None:
    w = numbered(heads, 16, hidden)
    assert_array_equal(convert_layout(w, head_dim=16, to="half"), permute(w, heads))
    assert_array_equal(convert_layout(permute(w, heads), head_dim=16, to="interleaved"), w)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("hidden", [None, 5])
def test_it_is_the_permutation_of_transformers_loader(heads: int, hidden: int | None) -> None:
    torch = pytest.importorskip("torch")
    loading = pytest.importorskip("transformers.core_model_loading")
    from types import SimpleNamespace

    w = torch.from_numpy(numbered(heads, 8, hidden))
    config = SimpleNamespace(num_attention_heads=heads)
    for inverse, to in ((False, "half"), (True, "interleaved")):
        want = loading.PermuteForRope(inverse=inverse)._permute_for_rope(w, config)
        assert torch.equal(convert_layout(w, head_dim=8, to=to), want)


@pytest.mark.parametrize("side", ["leading", "trailing"])
def test_features_that_do_not_rotate_stay(side: str) -> None:
    w = numbered(3, 10)
    got = convert_layout(w, head_dim=10, to="half", rotary_dim=4, rotary_side=side)
    got, w = got.reshape(3, 10, 3), w.reshape(3, 10, 3)
    turned, rest = (slice(0, 4), slice(4, 10)) if side == "leading" else (slice(6, 10), slice(0, 6))
    assert_array_equal(got[:, rest], w[:, rest])
    assert_array_equal(got[:, turned], w[:, turned][:, [0, 2, 1, 3]])


def projected(x: Any, w: Any, bias: Any, heads: int, axis: int) -> Any:
    y = x @ (w.T if axis in (0, -2) else w) + bias
    return np.moveaxis(y.reshape(*y.shape[:-1], heads, -1), -2, 0)  # (heads, seq, head_dim)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("to", OTHER)
def test_scores_are_the_same_under_both_layouts(part: str, axis: int, to: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 32))
    shape = (8 * 8, 32), (2 * 8, 32)  # grouped queries: 8 heads of q share 2 of k
    weights = [rng.standard_normal(s if axis in (0, -2) else s[::-1]) for s in shape]
    biases = [rng.standard_normal(s[0]) for s in shape]

    def scores(weights: Any, biases: Any, layout: str) -> Any:
        rope = rotary.RotaryEmbedding(8, layout=layout, **PARTS[part])
        q, k = (
            projected(x, w, b, heads, axis)
            for w, b, heads in zip(weights, biases, (8, 2), strict=True)
        )
        q, k = rope(q, k, offset=100)
        return q.reshape(2, 4, 7, 8) @ np.swapaxes(k, -1, -2)[:, None]

    want = scores(weights, biases, OTHER[to])
    convert = {"head_dim": 8, "to": to, **PARTS[part]}
    converted = [convert_layout(w, axis=axis, **convert) for w in weights]
    got = scores(converted, [convert_layout(b, **convert) for b in biases], to)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
    if part != "one pair":  # where the layouts are one
        assert np.abs(scores(weights, biases, to) - want).max() > 0.1


@pytest.mark.parametrize("part", PARTS)
def test_rotation_commutes_with_the_permutation_to_the_bit(part: str) -> None:
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    half, interleaved = (
        rotary.RotaryEmbedding(8, layout=layout, **PARTS[part])
        for layout in rotary.rotation.LAYOUTS
    )
    change = {"head_dim": 8, "to": "half", "axis": -1, **PARTS[part]}
    assert_array_equal(half(convert_layout(x, **change)), convert_layout(interleaved(x), **change))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("to", OTHER)
def test_library_dtype_and_values_are_kept(library: Any, part: str, to: str) -> None:
    for dtype in (*library.dtypes, "int8"):
        w = library.array(numbered(2, 8) + 1, dtype)
        change = {"head_dim": 8, **PARTS[part]}
        got = convert_layout(w, to=to, **change)
        assert type(got) is type(w)
        assert got.dtype == w.dtype
        assert_array_equal(values(convert_layout(got, to=OTHER[to], **change)), values(w))
        assert_array_equal(values(got), convert_layout(values(w), to=to, **change))


def values(x: Any) -> np.ndarray:
    """Return x as float32 on the host: NumPy takes no bfloat16 from torch."""
    return np.asarray(backends.owner_of(x).widen(x, "float32"))


@given(st.data())
def test_a_round_trip_is_exact(data: st.DataObject) -> None:
    head_dim = data.draw(st.integers(2, 12))
    heads = data.draw(st.integers(0, 3))
    side = data.draw(st.sampled_from(["leading", "trailing"]))
    to = data.draw(st.sampled_from(["half", "interleaved"]))
    rotary_dim = 2 * data.draw(st.integers(1, head_dim // 2))
    around = data.draw(st.lists(st.integers(0, 3), max_size=2))
    axis = data.draw(st.integers(0, len(around)))
    shape = (*around[:axis], heads * head_dim, *around[axis:])
    bits = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    w = bits.view(ml_dtypes.bfloat16)  # NaN and subnormal numbers too
    change = {
        "head_dim": head_dim,
        "rotary_dim": rotary_dim,
        "rotary_side": side,
        "axis": data.draw(st.sampled_from([axis, axis - len(shape)])),
    }
    there = convert_layout(w, to=to, **change)
    assert there.shape == shape
    back = convert_layout(there, to=OTHER[to], **change)
    assert_array_equal(back.view(np.uint16), bits)


def test_the_weight_is_left_alone() -> None:
    w = numbered(2, 8)
    before = w.copy()
    convert_layout(w, head_dim=8, to="half")
    assert_array_equal(w, before)


def test_gradients_pass() -> None:
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.from_numpy(numbered(2, 8)))
    g = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32))
    change = {"head_dim": 8, "rotary_dim": 6}
    (gradient,) = torch.autograd.grad(convert_layout(w, to="half", **change), w, g)
    assert torch.equal(gradient, convert_layout(g, to="interleaved", **change))


def test_it_compiles_in_jax() -> None:
    jax = pytest.importorskip("jax")
    w, g = numbered(2, 8), numbered(2, 8)[::-1].copy()

    def pull_back(w: Any, g: Any) -> Any:
        return jax.vjp(lambda w: convert_layout(w, head_dim=8, to="half"), w)[1](g)[0]

    got = jax.jit(pull_back)(w, g)
    assert_array_equal(got, convert_layout(g, head_dim=8, to="interleaved"))


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"weight": [1.0] * 16}, TypeError, "weight", "got builtins.list, expected an array"),
        ({"weight": np.ones((15, 3))}, ValueError, "weight", "got shape (15, 3), expected a mul"),
        ({"weight": np.ones(12)}, ValueError, "weight", "multiple of head_dim = 8 along axis 0"),
        ({"weight": np.ones(())}, ValueError, "axis", "got 0, expected an axis of weight's shape"),
        ({"axis": 1}, ValueError, "weight", "got shape (16, 3), expected a multiple of head_dim"),
        ({"axis": 2}, ValueError, "axis", "got 2, expected an axis of weight's shape (16, 3)"),
        ({"axis": -3}, ValueError, "axis", "got -3, expected an axis of weight's shape (16, 3)"),
        ({"axis": 0.0}, TypeError, "axis", "got 0.0, expected a whole number"),
        ({"to": "neox"}, ValueError, "to", "got 'neox', expected 'half' or 'interleaved'"),
        ({"to": None}, ValueError, "to", "got None, expected 'half' or 'interleaved'"),
        ({"rotary_side": "left"}, ValueError, "rotary_side", "expected 'leading' or 'trailing'"),
        ({"rotary_dim": 3}, ValueError, "rotary_dim", "got 3, expected an even number up to head"),
        ({"rotary_dim": 10}, ValueError, "rotary_dim", "got 10, expected an even number up to"),
        ({"rotary_dim": 0}, ValueError, "rotary_dim", "got 0, expected a positive number"),
        ({"rotary_dim": 4.0}, TypeError, "rotary_dim", "got 4.0, expected a whole number"),
        ({"head_dim": 0}, ValueError, "head_dim", "got 0, expected a positive number"),
        ({"head_dim": True}, TypeError, "head_dim", "got True, expected a whole number"),
        (
            {"weight": np.ones(9), "head_dim": 9},
            ValueError,
            "rotary_dim",
            "got 9, expected an even",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    arguments = {"weight": numbered(2, 8), "head_dim": 8, "to": "half", **wrong}
    with refused(error, name, words):
        convert_layout(**arguments)


# -- a whole model -------------------------------------------------------------------------------

MODEL = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 160, "vocab": 256}


@pytest.fixture
def llama(root: Any) -> Any:
    """Return the example, which runs a model on any array library."""
    pytest.importorskip("safetensors")
    path = root / "docs" / "examples" / "llama_anywhere.py"
    spec = importlib.util.spec_from_file_location("llama_anywhere", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights_of(llama: Any, config: Any) -> dict[str, np.ndarray]:
    """Return random weights of each name that the example knows."""
    m, rng = MODEL, np.random.default_rng(0)
    rows = {
        "q_proj": m["heads"] * m["head_dim"],
        "k_proj": m["kv_heads"] * m["head_dim"],
        "v_proj": m["kv_heads"] * m["head_dim"],
        "gate_proj": m["mlp"],
        "up_proj": m["mlp"],
        "embed_tokens": m["vocab"],
        "lm_head": m["vocab"],
    }
    weights = {}
    for name in sorted(llama.tensor_names(config)):
        layer, kind = name.split(".")[-2:]
        columns = m["mlp"] if layer == "down_proj" else m["hidden"]
        shape = (rows.get(layer, m["hidden"]), columns)
        if kind == "bias":
            shape = shape[:1]
        elif "norm" in layer:
            shape = (m["hidden"],)
        weights[name] = 0.2 * rng.standard_normal(shape).astype(np.float32) + ("norm" in layer)
    return weights


def logits(llama: Any, config: Any, weights: Any, library: str) -> np.ndarray:
    weights = {name: llama.CONVERTERS[library](array) for name, array in weights.items()}
    cache = llama.empty_cache(config, weights, 2, 48)
    ids = np.random.default_rng(1).integers(0, MODEL["vocab"], (2, 48))
    x, _ = llama.forward(config, weights, llama.CONVERTERS[library](ids), cache, 0)
    return np.asarray(llama.linear(weights, "lm_head", x))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_converted_model_gives_the_same_logits(llama: Any, library: str) -> None:
    pytest.importorskip(library)
    ropes = (rotary.RotaryEmbedding(MODEL["head_dim"]),) * 2
    config = llama.Config(2, MODEL["kv_heads"], MODEL["head_dim"], ropes, attention_bias=True)
    weights = weights_of(llama, config)
    want = logits(llama, config, weights, library)

    other = dataclasses.replace(ropes[0], layout="interleaved")
    config = dataclasses.replace(config, ropes=(other, other))
    largest = np.abs(want).max()
    assert np.abs(logits(llama, config, weights, library) - want).max() > 0.1 * largest
    converted = {
        name: convert_layout(w, head_dim=MODEL["head_dim"], to="interleaved")
        if "q_proj" in name or "k_proj" in name
        else w
        for name, w in weights.items()
    }
    got = logits(llama, config, converted, library)
    assert np.abs(got - want).max() < 1e-5 * largest

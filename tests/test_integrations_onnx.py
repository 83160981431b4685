"""Exported graphs give NumPy's bits in onnxruntime, and fail where they would have to guess."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import rotary
from rotary.conformance import golden, golden_cases
from rotary.linear import RetNet, State
from rotary.scaling import DynamicNTK, Linear, YaRN

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("ndonnx")

from rotary.integrations.onnx import decode_step, linear_step, rotation  # noqa: E402

LEVELS = [
    f"ORT_{name}"
    for name in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL")
]
FATAL = 4
ROPE = rotary.RotaryEmbedding(8)
# Everything at once: a factor, some features, their far side, the other layout.
MIXED = rotary.RotaryEmbedding(
    20,
    rotary_dim=16,
    rotary_side="trailing",
    layout="interleaved",
    scaling=YaRN(4.0, 4096),
)


def session(model: Any, level: str = LEVELS[-1]) -> Callable[..., dict[str, Any]]:
    """Return a model as a function of NumPy arrays, run by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = FATAL
    running = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in model.graph.output]
    return lambda **arrays: dict(zip(names, running.run(names, arrays), strict=True))


@cache
def rotated_by(rope: rotary.RotaryEmbedding, heads: int, kv_heads: int, **arguments: Any) -> Any:
    return session(rotation(rope, heads=heads, kv_heads=kv_heads, **arguments))


def host(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def assert_same(got: Any, want: Any) -> None:
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


# -- rotation --------------------------------------------------------------------------------------

VECTORS = {
    vector.id: vector
    for kind in ("rotation", "tables", "scaling", "axes")
    for vector in golden.read(kinds=(kind,))
    # Tables of float64 may be off by half a rounding; ndonnx has no bfloat16.
    if vector.dtype in ("float16", "float32") and not vector.arguments.get("inverse")
}


# Of the others each needs a graph of its own, which takes a quarter of a second.
QUICK = (
    "tables/near-zero",
    "tables/huge",
    "tables/per-row",
    "tables/xpos-key",
    "rotation/",
    "axes/sections-per-row",
    "axes/axial-split",
    "scaling/yarn-mscale/",
    "scaling/dynamic-ntk/",
)


@pytest.mark.parametrize(
    "vector_id",
    [
        pytest.param(
            name,
            marks=[]
            if name.startswith(QUICK) and (name.endswith("32") or "half/" in name)
            else pytest.mark.large,
        )
        for name in VECTORS
    ],
)
def test_an_exported_rotation_gives_the_golden_vectors(vector_id: str) -> None:
    vector = VECTORS[vector_id]
    rope, arguments = golden_cases.embedding(vector), vector.arguments
    positions = vector.inputs["positions"]
    axes = 1 if rope.axes is None else rope.axes.count
    if positions.ndim == (1 if axes == 1 else 2):  # no batch axis
        positions = positions[..., None, :]
    if "x" in vector.inputs:
        x, seq_axis = vector.inputs["x"], arguments.get("seq_axis", -2)
        batch, heads = x.shape[0], x.shape[1 if seq_axis == -2 else 2]
    else:  # a pair (1, 0) becomes (cos, sin)
        batch, heads, seq_axis = positions.shape[0], 1, -2
        shape = (batch, heads, positions.shape[-1], rope.rotary_dim // 2)
        x = np.concatenate([np.ones(shape, np.float32), np.zeros(shape, np.float32)], axis=-1)
    where = np.broadcast_to(positions, (*positions.shape[:-2], batch, positions.shape[-1]))
    got = rotated_by(
        rope,
        heads,
        heads,
        dtype=vector.dtype,
        position_dtype="float64",
        seq_axis=seq_axis,
        seq_len=arguments.get("seq_len") or None,
    )(q=x, k=x, positions=where)
    if "y" in vector.outputs:
        for y in got.values():
            assert_same(y, vector.outputs["y"].value)
        return
    y = got["k_rotated" if arguments.get("role") == "key" else "q_rotated"][:, 0]
    y = y.reshape(*vector.inputs["positions"].shape, rope.rotary_dim)
    assert_same(y, np.concatenate([vector.outputs[n].value for n in ("cos", "sin")], axis=-1))


@cache
def exported(rope: rotary.RotaryEmbedding, dtype: str) -> Any:
    return rotation(rope, heads=3, kv_heads=1, dtype=dtype, position_dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("level", LEVELS)
def test_no_optimisation_of_onnxruntime_changes_a_bit(level: str, dtype: str) -> None:
    model = exported(MIXED, dtype)
    q, k = host(2, 3, 40, 20, dtype=dtype), host(2, 1, 40, 20, dtype=dtype)
    run = session(model, level)
    for scale in (1e-9, 1.0, 2.0**20, 2.0**41):
        positions = scale * host(2, 40, dtype="float64")
        want = MIXED(q, k, positions=positions)
        for got, expected in zip(run(q=q, k=k, positions=positions).values(), want, strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("seq_axis", [-2, -3])
def test_one_graph_serves_all_batches_lengths_and_positions(seq_axis: int) -> None:
    run = rotated_by(ROPE, 3, 1, seq_axis=seq_axis)
    for batch, seq, start in ((1, 1, 0), (2, 5, 2**20), (3, 7, -4), (1, 4, 2**52), (0, 3, 1)):
        q, k = (host(batch, *((n, seq) if seq_axis == -2 else (seq, n)), 8) for n in (3, 1))
        positions = start + np.arange(batch * seq).reshape(batch, seq)[:, ::-1]
        want = ROPE(q, k, positions=positions, seq_axis=seq_axis)
        for got, expected in zip(run(q=q, k=k, positions=positions).values(), want, strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_an_offset_for_each_row_counts_on_from_there(kind: str) -> None:
    run = rotated_by(MIXED, 2, 1, given="offset", position_dtype=kind)
    # float32 and int32 could not count on from the first row.
    offset = np.array([2**31 - 1 if kind == "int32" else 2**23 - 1, 7, -3]).astype(kind) + np.array(
        0.5 if kind[0] == "f" else 0, kind
    )
    q, k = host(3, 2, 6, 20), host(3, 1, 6, 20)
    got = run(q=q, k=k, offset=offset)
    for y, expected in zip(got.values(), MIXED(q, k, offset=offset), strict=True):
        assert_same(y, expected)


def test_several_axes_take_one_offset_as_text_does() -> None:
    rope = rotary.RotaryEmbedding(8, axes=rotary.axes.Sections([2, 1, 1]))
    q, offset = host(2, 1, 3, 8), np.array([5, 900])
    got = rotated_by(rope, 1, 1, given="offset")(q=q, k=q, offset=offset)
    assert_same(got["q_rotated"], ROPE(q, offset=offset))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("q", "k", "positions"),
    [
        ((3, 5), (3, 5), (1, 5)),
        ((1, 5), (1, 5), (3, 5)),
        ((3, 5), (3, 5), (3, 1)),
        ((3, 1), (3, 1), (3, 5)),
        ((2, 5), (2, 5), (5, 2)),
        ((3, 1), (1, 1), (3, 1)),
        ((1, 1), (3, 1), (1, 1)),
        ((2, 3), (3, 2), (2, 3)),
    ],
)
def test_inputs_that_do_not_meet_are_an_error_and_no_broadcast(
    level: str, q: Any, k: Any, positions: Any
) -> None:
    run = _at_level(level)
    arrays = {name: np.ones((n[0], 1, n[1], 8), np.float32) for name, n in (("q", q), ("k", k))}
    with pytest.raises(Exception, match="reshape"):
        run(**arrays, positions=np.zeros(positions, np.int64))


@cache
def _at_level(level: str) -> Any:
    return session(_one_head(), level)


@cache
def _one_head() -> Any:
    return rotation(ROPE, heads=1)


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_decoding_steps_fill_a_cache_with_the_bits_of_the_whole(level: str) -> None:
    rope = rotary.RotaryEmbedding(8, xpos=rotary.XPos())
    q, k, v = host(2, 4, 5, 8), host(2, 2, 5, 8), host(2, 2, 5, 6)
    offset = np.array([3, 200])
    run = session(_step(rope), level)
    past_k, past_v = k[:, :, :0], v[:, :, :0]
    queries = []
    for n in range(5):
        now = {name: x[:, :, n : n + 1] for name, x in (("q", q), ("k", k), ("v", v))}
        got = run(**now, offset=offset + n, past_k=past_k, past_v=past_v)
        past_k, past_v = got["present_k"], got["present_v"]
        queries.append(got["q_rotated"])
    whole_q, whole_k = rope(q, k, offset=offset)
    assert_same(np.concatenate(queries, axis=2), whole_q)
    assert_same(past_k, whole_k)
    assert_same(past_v, v)


@cache
def _step(rope: rotary.RotaryEmbedding) -> Any:
    return decode_step(rope, heads=4, kv_heads=2, value_dim=6)


@pytest.mark.parametrize("name", ["k", "v", "offset", "past_k", "past_v"])
def test_a_decoding_step_broadcasts_nothing(name: str) -> None:
    run = _small_step()
    arrays = {n: np.ones((3, 1, 1, 8), np.float32) for n in ("q", "k", "v", "past_k", "past_v")}
    arrays["offset"] = np.zeros(3, np.int64)
    run(**arrays)
    with pytest.raises(Exception, match="reshape"):
        run(**arrays | {name: arrays[name][:1]})


@cache
def _small_step() -> Any:
    return session(decode_step(ROPE, heads=1))


# -- linear attention ------------------------------------------------------------------------------


def stepped(attention: Any, state: Any, level: str, tokens: dict[str, Any], **lengths: Any) -> Any:
    """Return outputs and state of an exported step, run token by token."""
    model = linear_step(attention, **lengths)
    onnx.checker.check_model(model, full_check=True)
    says = {entry.key: entry.value for entry in model.metadata_props}
    assert says["rotary.description"] == repr(attention)
    assert ("rotary.config" in says) == (attention.rope is not None)
    run, outputs = session(model, level), []
    for n in range(tokens["q"].shape[2]):
        now = {name: x[:, :, n : n + 1] for name, x in tokens.items()}
        given = {f"state_{f}": x for f, x in state._asdict().items() if x is not None and x.size}
        got = run(**now, **given)
        outputs.append(got.pop("out"))
        state = state._replace(**{name.removeprefix("next_"): x for name, x in got.items()})
    return np.concatenate(outputs, axis=2), state


@pytest.mark.large  # ndonnx takes half a minute for its ten thousand nodes
def test_exact_steps_give_the_golden_vector_of_decoding() -> None:
    vector = golden.find("linear/resumed/float32")
    attention = golden_cases.linear_attention(vector.arguments, 8)
    first = [vector.inputs[name][:, :, :16] for name in "qkv"]
    rest = {name: vector.inputs[name][:, :, 16:] for name in "qkv"}
    out, state = attention.prefill(*first)
    lengths = {"batch": 1, "heads": 2, "kv_heads": 1, "key_dim": 8, "value_dim": 4}
    more, state = stepped(attention, state, LEVELS[-1], rest, **lengths)
    got = {"out": np.concatenate([out, more], axis=2)} | state._asdict()
    for name, output in vector.outputs.items():
        assert_same(got[name], output.value)
    assert state.position.tolist() == [20]


FAST = {
    "rope": rotary.LinearAttention(rope=ROPE),
    "retnet": rotary.LinearAttention("identity", decay=RetNet(), rope=ROPE),
    "gate": rotary.LinearAttention("relu", decay="gate"),
    "delta": rotary.LinearAttention("l2norm", decay="gate", update="delta"),
    "favor": rotary.LinearAttention(rotary.linear.FavorPlus(8)),
}


@pytest.mark.parametrize(
    "name", [n if n in ("rope", "gate") else pytest.param(n, marks=pytest.mark.large) for n in FAST]
)
def test_fast_steps_are_those_of_numpy_but_for_rounding(name: str) -> None:
    attention, dtype = FAST[name], "float16" if name == "rope" else "float32"
    tokens = {"q": host(2, 4, 3, 8), "k": host(2, 2, 3, 8), "v": host(2, 2, 3, 6)}
    tokens = {n: x.astype(dtype) for n, x in tokens.items()}
    gate_dim = 8 if name == "gate" else None
    if attention.decay == "gate":
        tokens["gate"] = -np.abs(host(2, 2, 3, *(() if gate_dim is None else (8,))))
    if attention.update == "delta":
        tokens["beta"] = np.full((2, 2, 3), 0.5, np.float32)
    lengths = {"batch": 2, "heads": 4, "kv_heads": 2, "key_dim": 8, "value_dim": 6}
    none = attention.prefill(**{n: x[:, :, :0] for n, x in tokens.items()})[1]
    out, state = stepped(
        attention, none, LEVELS[-1], tokens, dtype=dtype, gate_dim=gate_dim, **lengths
    )
    want, expected = attention.prefill(**tokens)
    assert out.dtype == dtype
    bound = {"rtol": 2**-10 if dtype == "float16" else 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(out, want, **bound)
    np.testing.assert_allclose(state.numerator, expected.numerator, rtol=1e-5, atol=1e-5)
    assert state.position.tolist() == [3, 3]
    assert isinstance(state, State)


# -- what a file says ------------------------------------------------------------------------------


def test_a_model_says_what_it_holds_and_passes_the_checker() -> None:
    model = rotation(MIXED, heads=3, seq_len=9)
    onnx.checker.check_model(model, full_check=True)
    says = {entry.key: entry.value for entry in model.metadata_props}
    assert rotary.from_config(json.loads(says["rotary.config"])) == MIXED
    assert says["rotary.description"] == repr(MIXED)
    assert (says["rotary.graph"], says["rotary.seq_len"]) == ("rotation", "9")
    assert (model.producer_name, model.producer_version) == ("rotary", rotary.__version__)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    lengths = {
        node.name: [d.dim_param or d.dim_value for d in node.type.tensor_type.shape.dim]
        for node in (*model.graph.input, *model.graph.output)
    }
    shape = ["batch", 3, "seq", 20]
    assert lengths == {
        "q": shape,
        "k": shape,
        "positions": ["batch", "seq"],
        "q_rotated": shape,
        "k_rotated": shape,
    }


# -- what is refused -------------------------------------------------------------------------------

LONG = rotary.RotaryEmbedding(8, scaling=DynamicNTK(4.0, 2048))
GATED = rotary.LinearAttention("relu", decay="gate")
SIZES = {"batch": 1, "heads": 2, "key_dim": 8}
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str, str]] = {
    "no embedding": (lambda: rotation(torch_like(), heads=2), TypeError, "rope", "RotaryEmbedding"),
    "a class": (lambda: decode_step(Linear, heads=2), TypeError, "rope", "RotaryEmbedding(...)"),
    "no heads": (lambda: rotation(ROPE, heads=0), ValueError, "heads", "got 0"),
    "half a head": (lambda: rotation(ROPE, heads=1.5), TypeError, "heads", "got 1.5"),
    "no kv_heads": (lambda: rotation(ROPE, heads=1, kv_heads=0), ValueError, "kv_heads", "got 0"),
    "bfloat16": (
        lambda: rotation(ROPE, heads=1, dtype="bfloat16"),
        ValueError,
        "dtype",
        "'float16' or 'float32' or 'float64'",
    ),
    "16-bit positions": (
        lambda: rotation(ROPE, heads=1, position_dtype="float16"),
        ValueError,
        "position_dtype",
        "got 'float16'",
    ),
    "both inputs": (
        lambda: rotation(ROPE, heads=1, given="both"),
        ValueError,
        "given",
        "'positions' or 'offset'",
    ),
    "a seq_axis": (lambda: rotation(ROPE, heads=1, seq_axis=1), ValueError, "seq_axis", "got 1"),
    "no length": (lambda: rotation(LONG, heads=1), ValueError, "seq_len", "DynamicNTK has other"),
    "no length of a step": (lambda: decode_step(LONG, heads=1), ValueError, "seq_len", "DynamicN"),
    "a length of 0": (lambda: rotation(LONG, heads=1, seq_len=0), ValueError, "seq_len", "got 0"),
    "no attention": (lambda: linear_step(ROPE, **SIZES), TypeError, "attention", "LinearAttention"),
    "taylor": (
        lambda: linear_step(rotary.LinearAttention("taylor"), **SIZES),
        ValueError,
        "attention",
        "'taylor', which ndonnx does not trace",
    ),
    "softmax": (
        lambda: linear_step(rotary.LinearAttention("softmax"), **SIZES),
        ValueError,
        "feature_map",
        "'softmax'",
    ),
    "a gate too many": (
        lambda: linear_step(rotary.LinearAttention(), **SIZES, gate_dim=8),
        ValueError,
        "gate_dim",
        "got 8 with decay=None",
    ),
    "a gate of other channels": (
        lambda: linear_step(GATED, **SIZES, gate_dim=3),
        ValueError,
        "gate",
        "3",
    ),
    "heads that do not divide": (
        lambda: linear_step(rotary.LinearAttention(), **SIZES, kv_heads=3),
        ValueError,
        "k",
        "3",
    ),
    "exact float64": (
        lambda: linear_step(rotary.LinearAttention(arithmetic="exact"), **SIZES, dtype="float64"),
        TypeError,
        "q",
        "float64",
    ),
}


def torch_like() -> Any:
    """Return what is not an embedding, but is called like one."""
    return lambda q, k: (q, k)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_with_its_name(refused: Any, name: str) -> None:
    call, error, argument, words = REFUSED[name]
    with refused(error, argument, words):
        call()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ndonnx", None)
    for call in (
        lambda: rotation(ROPE, heads=1),
        lambda: decode_step(ROPE, heads=1),
        lambda: linear_step(rotary.LinearAttention(), **SIZES),
    ):
        with pytest.raises(ImportError, match="pip install ndonnx onnx") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_import_needs_none_of_the_packages() -> None:
    program = (
        "import sys; import rotary.integrations.onnx; "
        "assert not {'onnx', 'ndonnx', 'spox', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

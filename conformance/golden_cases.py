"""The golden vectors as cases: every backend is held to the files, one case a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

import rotary
from rotary import axes, backends, linear, scaling
from rotary.conformance import golden
from rotary.conformance.functions import ALL_DTYPES, WIDE, Array, Expected, FunctionCase
from rotary.conformance.golden import Vector
from rotary.conformance.linear_cases import UNROLLED
from rotary.dtypes import dtype_name

# Files are read within the call, which compilers cannot follow.
EAGER = ("eager", "lazy")
ONCE = ("eager,", "lazy,")  # exact arithmetic has no float64
_PROGRAMS = {
    "jax/*": "XLA takes minutes for a program a vector; linear/exact-* holds it to NumPy's bits"
}

# (vector, its arrays by name) → what comes out, output by output.
Run = Callable[..., tuple[Any, ...]]


def every() -> Iterable[FunctionCase]:
    """Return one case a file."""
    yield _case("tables", "tables that differ from the files", _tables, ("cos", "sin"))
    yield _case(
        "rotation",
        "rotations that differ from the files",
        _rotations,
        ("y", "y"),
        given=("x", "cos", "sin"),
        dtypes=ALL_DTYPES,
    )
    yield _case("scaling", "a rule that differs from the files", _scaled_tables, ("cos", "sin"))
    yield _case(
        "axes",
        "axes that differ from the files",
        _several_axes,
        ("cos", "sin", "y"),
        given=("x",),
        dtypes=("float32",),
    )
    yield _case(
        "linear",
        "exact linear attention that differs from the files",
        lambda vector, **arrays: tuple(attend(vector.arguments, **arrays).values()),
        None,
        given=("q", "k", "v", "gate", "beta"),
        dtypes=("float16", "bfloat16", "float32"),
        ways=ONCE,
        refused={**UNROLLED, **_PROGRAMS},
    )


def _case(
    kind: str,
    comment: str,
    run: Run,
    outputs: tuple[str, ...] | None,
    *,
    given: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = WIDE,
    ways: tuple[str, ...] = EAGER,
    refused: Mapping[str, str] | None = None,
) -> FunctionCase:
    """Return the case of a file.

    Its arrays are the inputs named in `given` of all vectors of a dtype, one vector after the
    other; without any, one that says which library and dtype are meant.  `outputs` are the names of
    what `run` returns, by default all that a vector has.
    """

    def inputs(rng: np.random.Generator, dtype: np.dtype[Any], _: int) -> tuple[Array, ...]:
        vectors = golden.read(kinds=(kind,), dtype=dtype.name)
        found = tuple(v.inputs[name] for v in vectors for name in given if name in v.inputs)
        return found or (np.zeros(1, dtype),)

    def call(*arrays: Any) -> tuple[Any, ...]:
        left = iter(arrays)
        results: list[Any] = []
        for vector in golden.read(kinds=(kind,), dtype=dtype_name(arrays[0])):
            own = {name: next(left) for name in given if name in vector.inputs}
            results += run(vector, **(own or {"like": arrays[0]}))
        return tuple(results)

    def expected(*arrays: Array) -> tuple[Expected, ...]:
        vectors = golden.read(kinds=(kind,), dtype=arrays[0].dtype.name)
        if kind == "scaling":
            _check_frequencies(vectors)
        named = [(v, name) for v in vectors for name in _outputs(v, outputs)]
        return tuple(_expected(vector, name) for vector, name in named)

    return FunctionCase(
        f"vectors/{kind}",
        comment,
        call,
        inputs,
        expected,
        ways=ways,
        dtypes=dtypes,
        refused=refused or {},
    )


def _outputs(vector: Vector, names: tuple[str, ...] | None) -> tuple[str, ...]:
    if names == ("y", "y") and vector.dtype == "float64":
        return ("y",)
    return tuple(vector.outputs) if names is None else names


def _expected(vector: Vector, name: str) -> Expected:
    output = vector.outputs[name]
    return Expected(output.value, low=output.low, name=f"{vector.id} {name}")


def embedding(vector: Vector, **more: Any) -> rotary.RotaryEmbedding:
    """Return the embedding that a vector of tables, rotation, scaling or axes is about."""
    names = ("base", "frequency_dim", "layout", "rotary_dim", "rotary_side")
    given = {name: vector.arguments[name] for name in names if name in vector.arguments}
    if "inv_freq" in vector.inputs:
        given["inv_freq"] = vector.inputs["inv_freq"].tolist()
    if "xpos_scale_base" in vector.arguments:
        given["xpos"] = rotary.XPos(vector.arguments["xpos_scale_base"])
    for name, module in (("scaling", scaling), ("axes", axes)):
        if name in vector.arguments:
            numbers = dict(vector.arguments[name])
            given[name] = getattr(module, numbers.pop("rule"))(**numbers)
    head_dim = vector.arguments.get("head_dim", vector.arguments["rotary_dim"])
    return rotary.RotaryEmbedding(head_dim, **given, **more)


def _tables(vector: Vector, like: Any) -> tuple[Any, ...]:
    where = vector.inputs["positions"].tolist()
    return embedding(vector).tables(where, like=like, role=vector.arguments.get("role"))


def _scaled_tables(vector: Vector, like: Any) -> tuple[Any, ...]:
    where = vector.inputs["positions"].tolist()
    return embedding(vector).tables(where, like=like, seq_len=_length(vector))


def _length(vector: Vector) -> int | None:
    return vector.arguments["seq_len"] or None


def _check_frequencies(vectors: Iterable[Vector]) -> None:
    """Hold the numbers that no array library has a part in."""
    for vector in vectors:
        rope, length = embedding(vector), _length(vector)
        found = {
            "inv_freq": rope.frequencies(length),
            "attention_factor": np.array(rope.attention_factor(length)),
        }
        for name, got in found.items():
            want = vector.outputs[name].value
            if not np.array_equal(got, want):
                raise ValueError(f"{vector.id} {name}: got {got.tolist()}, expected {want}")


def _rotations(vector: Vector, x: Any, cos: Any, sin: Any) -> tuple[Any, ...]:
    """Rotate by the tables given and, where they are certain to the bit, by positions too."""
    a = vector.arguments
    options = {name: a[name] for name in ("layout", "rotary_side", "inverse", "seq_axis")}
    by_tables = rotary.rotate(x, cos, sin, **options)
    if vector.dtype == "float64":  # its tables may be off by half a rounding
        return (by_tables,)
    rope = embedding(vector)
    where = {"positions": vector.inputs["positions"].tolist()}
    if "offset" in a:
        where = {"offset": a["offset"]}
    call = rope.inverse if a["inverse"] else rope
    return by_tables, call(x, seq_axis=a["seq_axis"], **where)


def _several_axes(vector: Vector, x: Any) -> tuple[Any, ...]:
    rope, where = embedding(vector), vector.inputs["positions"].tolist()
    return *rope.tables(where, like=x), rope(x, positions=where)


def attend(arguments: Mapping[str, Any], q: Any, k: Any, v: Any, **more: Any) -> dict[str, Any]:
    """Return the outputs of a vector of linear attention, by the arguments of its file."""
    attn = linear_attention(arguments, int(q.shape[-1]))
    if "parts" not in arguments:
        return {"out": attn(q, k, v, causal=arguments["causal"], **more)}
    start, state, outputs = 0, None, []
    for length in arguments["parts"]:
        tokens = slice(start, start + length)
        q_part, k_part, v_part = (x[:, :, tokens, ...] for x in (q, k, v))
        more_part = {name: x[:, :, tokens, ...] for name, x in more.items()}
        out, state = attn.prefill(q_part, k_part, v_part, state, **more_part)
        outputs.append(out)
        start += length
    assert state is not None
    out = backends.owner_of(q).namespace(q).concat(outputs, axis=2)
    names = ("numerator", "numerator_low", "normaliser", "normaliser_low")
    state_now = {name: getattr(state, name) for name in names}
    return {"out": out, **{name: x for name, x in state_now.items() if x is not None}}


def linear_attention(arguments: Mapping[str, Any], key_dim: int) -> linear.LinearAttention:
    """Return the linear attention that a file's arguments describe."""
    rope = arguments["rope"]
    if rope is not None:
        rope = dict(rope)
        scale_base = rope.pop("xpos_scale_base")
        xpos = None if scale_base is None else rotary.XPos(scale_base)
        rope = rotary.RotaryEmbedding(key_dim, **rope, xpos=xpos)
    names = ("feature_map", "placement", "update", "normalize", "eps", "scale", "chunk_size")
    return linear.LinearAttention(
        **{name: arguments[name] for name in names},
        rope=rope,
        decay=linear.RetNet() if arguments["decay"] == "retnet" else arguments["decay"],
        arithmetic="exact",
    )

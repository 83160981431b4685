"""Export to ONNX: the rotation and the decoding steps, as graphs that any ONNX runtime runs.

ndonnx traces the library's own code, so that a graph holds the formulas that NumPy runs, positions
and all: q_m → R_m q_m, RoFormer (arXiv 2104.09864), equation 34.  A graph makes its tables itself,
from positions that are inputs, and no table bounds how far they may go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import rotary
from rotary.checks import check_choice, whole
from rotary.linear import State
from rotary.positions import counted_from

if TYPE_CHECKING:
    import onnx

__all__ = ["decode_step", "linear_step", "rotation"]

DTYPES = ("float16", "float32", "float64")
POSITION_DTYPES = ("int32", "int64", "float32", "float64")
GIVEN = ("positions", "offset")


def rotation(
    rope: rotary.RotaryEmbedding,
    *,
    heads: int,
    kv_heads: int | None = None,
    dtype: str = "float32",
    given: str = "positions",
    position_dtype: str = "int64",
    seq_axis: int = -2,
    seq_len: int | None = None,
) -> onnx.ModelProto:
    """Return the graph that rotates queries and keys, for any batch, any length, any positions.

    ===============  ==========================================================================
    input            shape
    ===============  ==========================================================================
    ``q``            (batch, heads, seq, head_dim)
    ``k``            (batch, kv_heads, seq, head_dim)
    ``positions``    (batch, seq), with several axes (axes, batch, seq)
    ``offset``       instead of them, (batch,): row by row, positions are offset … offset + seq − 1
    ===============  ==========================================================================

    The outputs ``q_rotated`` and ``k_rotated`` have the shapes of ``q`` and ``k``; batch and seq
    are open.  Inputs whose batch and seq do not meet are an error when the graph runs.  The values
    of positions are not checked there: beyond ±2^53 an angle has no meaning.

    Parameters
    ----------
    rope : RotaryEmbedding
        Of any kind, several axes and XPos included.
    heads, kv_heads : int
        Heads of q, and of k where those are fewer.
    dtype : {"float32", "float16", "float64"}
        Of q and k.
    given : {"positions", "offset"}
        Which of the two is an input.
    position_dtype : {"int64", "int32", "float64", "float32"}
        Of that input; the floating-point ones are for fractional positions.
    seq_axis : {-2, -3}
        −3 for q and k of shape (batch, seq, heads, head_dim).
    seq_len : int, optional
        The length of sequence that the graph is for, with the rules that depend on it (DynamicNTK,
        LongRoPE), and needed there: a graph has one set of frequencies.

    Returns
    -------
    onnx.ModelProto
        In opset 21.  ``onnx.save`` writes it; its ``metadata_props`` hold the embedding as
        ``rotary.config``, which :func:`rotary.from_config` reads.

    Raises
    ------
    ImportError
        Without ndonnx.
    TypeError, ValueError
        If rope is no embedding, for values outside these ranges, for a missing `seq_len`.

    Examples
    --------
    >>> import rotary
    >>> from rotary.integrations.onnx import rotation
    >>> model = rotation(rotary.RotaryEmbedding(64), heads=8, kv_heads=2)
    >>> [node.name for node in (*model.graph.input, *model.graph.output)]
    ['q', 'k', 'positions', 'q_rotated', 'k_rotated']
    """
    kv_heads = _checked(rope, heads, kv_heads, dtype, position_dtype, seq_len)
    check_choice("given", given, GIVEN)
    if type(seq_axis) is not int or seq_axis not in (-2, -3):
        raise ValueError(f"seq_axis: got {seq_axis!r}, expected -2 or -3")
    ndx = _ndonnx()
    axes = 1 if rope.axes is None else rope.axes.count
    shapes: dict[str, tuple[int | str, ...]] = {
        name: ("batch", n, "seq", rope.head_dim)
        if seq_axis == -2
        else ("batch", "seq", n, rope.head_dim)
        for name, n in (("q", heads), ("k", kv_heads))
    }
    where = ("batch", "seq") if given == "positions" else ("batch",)
    shapes[given] = (axes, *where) if axes > 1 and given == "positions" else where
    kinds = {"q": dtype, "k": dtype, given: position_dtype}
    inputs = _arguments(ndx, shapes, kinds)
    q, k, rows = inputs.values()

    open_axis = 4 + seq_axis
    batch, seq = (q.dynamic_shape[n : n + 1] for n in (0, open_axis))
    k = _meeting(k, {0: batch, open_axis: seq})
    if given == "positions":
        rows = _meeting(rows, {rows.ndim - 2: batch, rows.ndim - 1: seq})
    else:
        steps = ndx.astype(ndx.arange(0, seq[0]), ndx.float64)
        rows = counted_from(ndx.astype(_meeting(rows, {0: batch}), ndx.float64), steps, 1)
    # One open axis of tokens, each with a position of its own: lengths have to be known elsewhere.
    several = axes > 1 and given == "positions"
    tokens = ndx.reshape(rows, (axes, -1) if several else (-1,))
    outputs = {}
    tables: dict[str | None, tuple[Any, Any]] = {}
    for name, x, role in (("q", q, "query"), ("k", k, "key")):
        role_or_none = role if rope.xpos is not None else None
        if role_or_none not in tables:
            tables[role_or_none] = rope.tables(tokens, like=x, seq_len=seq_len, role=role_or_none)
        cos, sin = tables[role_or_none]
        outputs[f"{name}_rotated"] = _rotated(ndx, rope, x, cos, sin, seq_axis)
    named = {"q_rotated": shapes["q"], "k_rotated": shapes["k"]}
    return _model(ndx, "rotation", inputs, outputs, named, rope, seq_len)


def _rotated(
    ndx: Any, rope: rotary.RotaryEmbedding, x: Any, cos: Any, sin: Any, seq_axis: int
) -> Any:
    """Rotate x by tables with a row for each token, batch by batch."""
    order = (0, 2, 1, 3)
    tokens_first = ndx.permute_dims(x, order) if seq_axis == -2 else x
    tokens = ndx.reshape(tokens_first, (-1, tokens_first.shape[2], 1, rope.head_dim))
    rotated = rotary.rotate(
        tokens,
        cos[:, None, None, :],
        sin[:, None, None, :],
        layout=rope.layout,
        rotary_side=rope.rotary_side,
        blocks=None if rope.axes is None else rope.axes.blocks,
    )
    rotated = ndx.reshape(rotated, tokens_first.dynamic_shape)
    return ndx.permute_dims(rotated, order) if seq_axis == -2 else rotated


def decode_step(
    rope: rotary.RotaryEmbedding,
    *,
    heads: int,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    dtype: str = "float32",
    position_dtype: str = "int64",
    seq_len: int | None = None,
) -> onnx.ModelProto:
    """Return the graph of a decoding step: one token rotates and joins the keys and values so far.

    ===============  ==========================================================================
    input            shape
    ===============  ==========================================================================
    ``q``            (batch, heads, 1, head_dim)
    ``k``, ``v``     (batch, kv_heads, 1, head_dim or value_dim)
    ``offset``       (batch,): the token's position, row by row
    ``past_k``       (batch, kv_heads, past, head_dim): keys that were rotated before
    ``past_v``       (batch, kv_heads, past, value_dim)
    ===============  ==========================================================================

    The outputs are ``q_rotated``, ``present_k`` and ``present_v``, the last two with one token
    more than ``past_k`` and ``past_v``; batch and past are open, and past may be 0.

    Parameters
    ----------
    rope : RotaryEmbedding
    heads, kv_heads : int
    value_dim : int, optional
        head_dim by default.
    dtype, position_dtype, seq_len
        As for :func:`rotation`.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ImportError, TypeError, ValueError
        As for :func:`rotation`.

    Examples
    --------
    >>> import rotary
    >>> from rotary.integrations.onnx import decode_step
    >>> model = decode_step(rotary.RotaryEmbedding(64), heads=8, kv_heads=2)
    >>> [node.name for node in model.graph.output]
    ['q_rotated', 'present_k', 'present_v']
    """
    kv_heads = _checked(rope, heads, kv_heads, dtype, position_dtype, seq_len)
    value_dim = rope.head_dim if value_dim is None else whole("value_dim", value_dim)
    ndx = _ndonnx()
    shapes: dict[str, tuple[int | str, ...]] = {
        "q": ("batch", heads, 1, rope.head_dim),
        "k": ("batch", kv_heads, 1, rope.head_dim),
        "v": ("batch", kv_heads, 1, value_dim),
        "offset": ("batch",),
        "past_k": ("batch", kv_heads, "past", rope.head_dim),
        "past_v": ("batch", kv_heads, "past", value_dim),
    }
    kinds = dict.fromkeys(shapes, dtype) | {"offset": position_dtype}
    inputs = _arguments(ndx, shapes, kinds)
    q, *others = inputs.values()
    k, v, offset, past_k, past_v = (_meeting(x, {0: q.dynamic_shape[:1]}) for x in others)
    past_v = _meeting(past_v, {2: past_k.dynamic_shape[2:3]})
    q, k = rope(q, k, offset=offset, seq_len=seq_len)
    outputs = {
        "q_rotated": q,
        "present_k": ndx.concat([past_k, k], axis=2),
        "present_v": ndx.concat([past_v, v], axis=2),
    }
    named = {
        "q_rotated": shapes["q"],
        "present_k": ("batch", kv_heads, "past + 1", rope.head_dim),
        "present_v": ("batch", kv_heads, "past + 1", value_dim),
    }
    return _model(ndx, "decode_step", inputs, outputs, named, rope, seq_len)


def linear_step(
    attention: rotary.LinearAttention,
    *,
    batch: int,
    heads: int,
    kv_heads: int | None = None,
    key_dim: int,
    value_dim: int | None = None,
    gate_dim: int | None = None,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """Return the graph of a step of linear attention: one token, a state in and a state out.

    ===============  ==========================================================================
    input            shape
    ===============  ==========================================================================
    ``q``            (batch, heads, 1, key_dim)
    ``k``, ``v``     (batch, kv_heads, 1, key_dim or value_dim)
    ``gate``         (batch, kv_heads, 1), or (batch, kv_heads, 1, gate_dim): ``decay="gate"``
    ``beta``         (batch, kv_heads, 1): ``update="delta"``
    ``state_…``      the arrays of :class:`rotary.linear.State` by their names, position included
    ===============  ==========================================================================

    The outputs are ``out``, (batch, heads, 1, value_dim), and ``next_…`` for each ``state_…``.  The
    state to begin with is what ``attention.prefill`` hands over, of a prompt or of no token.  All
    lengths are fixed.  With exact arithmetic the bits are those of every library; such a graph has
    about ten thousand nodes, and takes some ten seconds to make.

    Parameters
    ----------
    attention : LinearAttention
        With any feature map but "softmax", which has no state, and "taylor", which ndonnx does not
        trace.
    batch, heads, kv_heads, key_dim, value_dim : int
        Lengths; kv_heads are heads by default, value_dim is key_dim.
    gate_dim : int, optional
        Channels of the gate, for one gate each; by default one for a head.
    dtype : {"float32", "float16", "float64"}
        Of q, k and v.

    Returns
    -------
    onnx.ModelProto
        In opset 21, with the description in its ``metadata_props``.

    Raises
    ------
    ImportError
        Without ndonnx.
    TypeError, ValueError
        If attention is no linear attention, or one that cannot be exported; for lengths that do
        not meet.

    Examples
    --------
    >>> import rotary
    >>> from rotary.integrations.onnx import linear_step
    >>> attn = rotary.LinearAttention("relu", rope=rotary.RotaryEmbedding(16))
    >>> model = linear_step(attn, batch=1, heads=2, key_dim=16)
    >>> [node.name for node in model.graph.output][:3]
    ['out', 'next_numerator', 'next_numerator_low']
    """
    if not isinstance(attention, rotary.LinearAttention):
        raise TypeError(f"attention: got {attention!r}, expected rotary.LinearAttention(...)")
    if attention.feature_map == "taylor":
        raise ValueError("attention: got the map 'taylor', which ndonnx does not trace")
    if gate_dim is not None and attention.decay != "gate":
        raise ValueError(f"gate_dim: got {gate_dim} with decay={attention.decay!r}, expected None")
    check_choice("dtype", dtype, DTYPES)
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = key_dim if value_dim is None else value_dim
    lengths = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "key_dim": key_dim,
        "value_dim": value_dim,
        "gate_dim": 1 if gate_dim is None else gate_dim,
    }
    for name, length in lengths.items():
        whole(name, length)
    per_token: dict[str, tuple[int, ...]] = {
        "q": (batch, heads, 1, key_dim),
        "k": (batch, kv_heads, 1, key_dim),
        "v": (batch, kv_heads, 1, value_dim),
    }
    if attention.decay == "gate":
        per_token["gate"] = (batch, kv_heads, 1, *(() if gate_dim is None else (gate_dim,)))
    if attention.update == "delta":
        per_token["beta"] = (batch, kv_heads, 1)
    none: dict[str, Any] = {
        name: np.zeros((*s[:2], 0, *s[3:]), dtype) for name, s in per_token.items()
    }
    empty = attention.prefill(**none)[1]
    ndx = _ndonnx()

    kept = {f: x for f, x in empty._asdict().items() if x is not None and x.size}
    shapes = per_token | {f"state_{field}": x.shape for field, x in kept.items()}
    kinds = dict.fromkeys(per_token, dtype)
    kinds |= {f"state_{field}": x.dtype.name for field, x in kept.items()}
    inputs = _arguments(ndx, shapes, kinds)
    # What has no element, the transition, is no input.
    fields = {
        field: x if x is None else inputs.get(f"state_{field}", ndx.asarray(x))
        for field, x in empty._asdict().items()
    }
    out, after = attention.step(**{name: inputs[name] for name in per_token}, state=State(**fields))
    outputs = {"out": out} | {f"next_{field}": getattr(after, field) for field in kept}
    named = {"out": (batch, heads, 1, value_dim)}
    named |= {f"next_{field}": x.shape for field, x in kept.items()}
    return _model(ndx, "linear_step", inputs, outputs, named, attention, None)


def _ndonnx() -> Any:
    """Return ndonnx, or say how to get it."""
    try:
        import ndonnx
    except ImportError as error:
        raise ImportError(
            "ndonnx is not installed, which makes the graphs: pip install ndonnx onnx"
        ) from error
    return ndonnx


def _checked(
    rope: Any,
    heads: int,
    kv_heads: int | None,
    dtype: str,
    position_dtype: str,
    seq_len: int | None,
) -> int:
    """Check what describes the heads and positions of a graph, and return kv_heads."""
    if not isinstance(rope, rotary.RotaryEmbedding):
        raise TypeError(f"rope: got {rope!r}, expected rotary.RotaryEmbedding(...)")
    whole("heads", heads)
    kv_heads = heads if kv_heads is None else whole("kv_heads", kv_heads)
    check_choice("dtype", dtype, DTYPES)
    check_choice("position_dtype", position_dtype, POSITION_DTYPES)
    if seq_len is not None:
        whole("seq_len", seq_len)
    elif rope.scaling is not None and rope.scaling.needs_length:
        raise ValueError(
            f"seq_len: got None, expected the length that the graph is for: "
            f"{type(rope.scaling).__name__} has other frequencies for other lengths"
        )
    return kv_heads


def _arguments(
    ndx: Any, shapes: Mapping[str, tuple[int | str, ...]], kinds: Mapping[str, str]
) -> dict[str, Any]:
    """Return the inputs of a graph by name; lengths with a name are open."""
    return {
        name: ndx.argument(shape=shape, dtype=getattr(ndx, kinds[name]))
        for name, shape in shapes.items()
    }


def _meeting(x: Any, lengths: Mapping[int, Any]) -> Any:
    """Return x, and have the running graph fail unless these axes of it are of these lengths.

    Otherwise ONNX would broadcast a length of 1.  To reshape one axis alone to another length is an
    error in every runtime, and costs nothing where there is none.
    """
    import ndonnx as ndx
    from spox.opset.ai.onnx import v21 as op

    for axis, length in lengths.items():
        shape = x.dynamic_shape
        met = ndx.reshape(x, ndx.concat([shape[:axis], length, shape[axis + 1 :]]))
        # 0 takes an open length over; tracing has to know the others.
        known = np.array([n if isinstance(n, int) else 0 for n in x.shape], np.int64)
        x = ndx.asarray(op.reshape(met.unwrap_spox(), op.const(known), allowzero=False))
    return x


def _model(
    ndx: Any,
    name: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int | str, ...]],
    described: rotary.RotaryEmbedding | rotary.LinearAttention,
    seq_len: int | None,
) -> onnx.ModelProto:
    """Return the graph, which says what it holds; `shapes` are those of its outputs."""
    model: onnx.ModelProto = ndx.build(dict(inputs), dict(outputs))
    for output in model.graph.output:
        known = output.type.tensor_type.shape
        known.Clear()
        for length in shapes[output.name]:
            if isinstance(length, str):
                known.dim.add(dim_param=length)
            else:
                known.dim.add(dim_value=length)
    rope = described.rope if isinstance(described, rotary.LinearAttention) else described
    says = {"rotary.graph": name, "rotary.description": repr(described)}
    if rope is not None:
        says["rotary.config"] = json.dumps(rope.to_config())
    if seq_len is not None:
        says["rotary.seq_len"] = str(seq_len)
    for key, value in says.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "rotary", rotary.__version__
    model.graph.name = f"rotary_{name}"
    return model

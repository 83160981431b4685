"""What has to hold for CuPy's arrays, on a GPU and on the stand-in alike; see test_cupy.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import cupy
import ml_dtypes
import numpy as np
from gpu_rotations import Subject, all_differing

import rotary
from rotary import exact, linear, tables
from rotary.backends import library, owner_of
from rotary.backends.kernels import kernel, off

SHAPE = (2, 3, 5, 16)  # batch, heads, seq, dim
DTYPES = ("float16", "bfloat16", "float32", "float64")
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "call": lambda rope, x: rope(x),
    "offset": lambda rope, x: rope(x, offset=300),
    "fractional offset": lambda rope, x: rope(x, offset=-2.5),
    "an offset a row": lambda rope, x: rope(x, offset=[5, 1000]),
    "positions": lambda rope, x: rope(x, positions=[3, 1, 4, 1, 5]),
    "positions a row": lambda rope, x: rope(x, positions=np.arange(10.0).reshape(2, 5) ** 4),
    "inverse": lambda rope, x: rope.inverse(x, offset=7),
    "shift": lambda rope, x: rope.shift(x, -9),
    "seq_axis": lambda rope, x: rope(x, seq_axis=-3),
    "strided": lambda rope, x: rope(x[..., ::2, :]),
    "key": lambda rope, x: rope(x, x[:, :1])[1],
}
EMBEDDINGS = (
    {},
    {"layout": "interleaved"},
    {"rotary_dim": 6},
    {"rotary_dim": 6, "rotary_side": "trailing", "layout": "interleaved"},
)
ROPE = rotary.RotaryEmbedding(16)
ENCODINGS: tuple[Callable[[Any], Any], ...] = (
    lambda table: rotary.relative.t5_bias(5, 9, table),
    lambda table: rotary.relative.alibi_bias(5, 9, 6, like=table),
    lambda table: rotary.absolute.learned([[31, 0], [7, 7]], table),
    lambda table: rotary.absolute.resample(table, 45),
    lambda table: rotary.absolute.resample(table, (5, 9), grid=(4, 8), method="cubic"),
    lambda table: rotary.absolute.sinusoidal([0, 1.5, 2**40], 6, like=table),
)
ATTENTIONS = (
    linear.LinearAttention(rope=ROPE, arithmetic="exact", chunk_size=4),
    linear.LinearAttention(
        "relu2", rope=ROPE, decay="gate", normalize=True, arithmetic="exact", chunk_size=4
    ),
    linear.LinearAttention("identity", decay=linear.RetNet(), arithmetic="exact", chunk_size=4),
)


def host(dtype: Any = "float32") -> Any:
    x = np.random.default_rng(0).standard_normal(SHAPE)
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def kinds(*names: str) -> list[Any]:
    """Return dtypes that this CuPy has: bfloat16 from version 14 on."""
    whole = int(cupy.__version__.partition(".")[0]) >= 14
    return [host(name).dtype for name in names or DTYPES if whole or name != "bfloat16"]


def attention_inputs(dtype: Any, *, gated: bool) -> tuple[Any, ...]:
    """Return q, k, v, a mask and perhaps gates, for 10 tokens: chunks of 4, 4 and 2."""
    rng = np.random.default_rng(3)
    shapes = ((2, 4, 10, 16), (2, 2, 10, 16), (2, 2, 10, 5))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    mask = np.arange(10) >= np.array([[3], [0]])
    gate = [-np.exp(rng.standard_normal((2, 2, 10), np.float32))] if gated else []
    return (*arrays, mask, *gate)


def attend(attn: Any, q: Any, k: Any, v: Any, mask: Any, *gate: Any) -> list[Any]:
    """Return outputs and the words of states of a prompt, of one token more, and of both joined."""
    outputs, states = attended(attn, q, k, v, mask, *gate)
    return [*outputs, *(x for state in states for x in state if x is not None)]


def attend_in_one_word(attn: Any, *arrays: Any) -> list[Any]:
    """Return the same with the two words of each sum added up: how they share it is their own."""
    outputs, states = attended(attn, *arrays)
    sums = []
    for state in states:
        for name in ("numerator", "normaliser", "log_decay"):
            high, low = getattr(state, name), getattr(state, f"{name}_low")
            sums += [] if high is None else [high + low]
        sums.append(state.position)
    return [*outputs, *sums]


def attended(attn: Any, q: Any, k: Any, v: Any, mask: Any, *gate: Any) -> tuple[Any, Any]:
    gates = {"gate": gate[0]} if gate else {}
    step = {"gate": gate[0][:, :, :1]} if gate else {}
    out, state = attn.prefill(q, k, v, key_mask=mask, **gates)
    last, after = attn.step(*(x[:, :, :1, ...] for x in (q, k, v)), state, **step)
    joined = linear.combine(after, attn.segment(k, v, positions=range(10), **gates))
    return (out, last), (state, after, joined)


def same(got: Any, want: Any) -> bool:
    """Whether an array of CuPy's has the shape, the dtype and the bits of a NumPy array."""
    assert type(got) is cupy.ndarray
    values = cupy.asnumpy(got)
    return values.dtype == want.dtype and np.array_equal(values, want, equal_nan=True)


def refused(call: Callable[[], Any], error: type[Exception]) -> str:
    try:
        call()
    except error as caught:
        return str(caught)
    raise AssertionError("nothing was raised")


def rotations_have_the_bits_of_numpy() -> None:
    for dtype in kinds():
        x = host(dtype)
        for embedding in EMBEDDINGS:
            rope = rotary.RotaryEmbedding(16, **embedding)
            for name, call in CALLS.items():
                assert same(call(rope, cupy.array(x)), call(rope, x)), (dtype, embedding, name)


def one_pass_has_the_bits_of_the_array_code() -> None:
    fused = kernel("cuda")
    assert fused is not None, off("cuda")
    assert all_differing(Subject(fused.rotate, cupy.array, cupy.asnumpy)) == []


def arrays_that_do_not_fit_one_pass_have_the_bits_of_numpy() -> None:
    x = host()
    wide = np.repeat(x, 2, axis=-1)
    assert same(ROPE(cupy.array(wide)[..., ::2]), ROPE(x))


def tables_have_the_bits_of_numpy() -> None:
    for dtype in ("float32", "float64"):
        got = ROPE.tables([0, 1.5, -7, 2**40], like=cupy.array(host()), dtype=dtype)
        want = ROPE.tables([0, 1.5, -7, 2**40], dtype=dtype)
        assert all(map(same, got, want))
    x, (cos, sin) = host(), ROPE.tables(range(5))
    got = rotary.rotate(cupy.array(x), cupy.array(cos), cupy.array(sin))
    assert same(got, rotary.rotate(x, cos, sin))


def positions_may_be_arrays_of_cupy() -> None:
    x = host()
    for positions in ([3, 1, 4, 1, 5], [[0.5, 2, 3, 4, 5], [9, 8, 7, 6, 5]]):
        got = ROPE(cupy.array(x), positions=cupy.array(positions))
        assert same(got, ROPE(x, positions=positions))
    assert same(ROPE(cupy.array(x), offset=cupy.array(3)), ROPE(x, offset=3))
    rotary.validate(cupy.array([1, 2]))
    message = refused(lambda: rotary.validate(cupy.array([np.nan])), ValueError)
    assert message.startswith("positions: got NaN at index 0")


def results_are_written_in_place() -> None:
    x = host()
    q, k = cupy.array(x), cupy.array(x[:, :1])
    q_rotated, k_rotated = ROPE(q, k, offset=3, out=(q, k))
    assert q_rotated is q
    assert k_rotated is k
    assert same(q, ROPE(x, offset=3))
    assert same(k, ROPE(x[:, :1], offset=3))
    shared = cupy.broadcast_to(cupy.zeros((2, 1, 5, 16), np.float32), SHAPE)
    message = refused(lambda: ROPE(q, out=shared), ValueError)
    assert message.startswith("out: the array is broadcast, its elements share memory")


def exact_arithmetic_has_the_bits_of_numpy() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 300), (300, 7)))
    a[0, 0, 0], a[0, 1, 0] = np.inf, 1e-40
    for function in (exact.exp, exact.reciprocal, exact.rsqrt, exact.sum):
        assert same(function(cupy.array(a)), function(a)), function
    assert same(exact.matmul(cupy.array(a), cupy.array(b)), exact.matmul(a, b))


def encodings_have_the_bits_of_numpy() -> None:
    rng = np.random.default_rng(2)
    for dtype in kinds():
        table = rng.standard_normal((32, 6)).astype(dtype)
        for encode in ENCODINGS:
            assert same(encode(cupy.array(table)), encode(table)), (dtype, encode(table).shape)
        got = rotary.relative.t5_bias(3, 5, cupy.array(table), offset=cupy.array(7))
        assert same(got, rotary.relative.t5_bias(3, 5, table, offset=7))
    table, rows = host()[0, 0], np.array([[4, 0], [2, 2]], np.int32)
    got = rotary.absolute.learned(cupy.array(rows), cupy.array(table))
    assert same(got, rotary.absolute.learned(rows, table))
    for positions in (rows, cupy.array(rows)):
        # Not wrapped around, as CuPy's own index would be.
        message = refused(
            lambda p=positions: rotary.absolute.learned(p + 1, cupy.array(table)), ValueError
        )
        assert message.startswith("positions: got 5 at index (0, 0), expected 0 to 4")


def selections_keep_their_dtype() -> None:
    """CuPy selects bfloat16 as float32."""
    for dtype in kinds():
        x = cupy.array(host(dtype))
        xp = owner_of(x).namespace(x)
        for selected in (xp.where(x > 0, x, xp.zeros_like(x)), xp.where(x > 0, 0.0, x)):
            assert selected.dtype == x.dtype


def softmax_attention_is_that_of_numpy() -> None:
    x, mask = host(), np.arange(25).reshape(5, 5) % 3 > 0
    want = rotary.softmax_attention(x, x, x, causal=True, mask=mask)
    q = cupy.array(x)
    got = rotary.softmax_attention(q, q, q, causal=True, mask=cupy.array(mask))
    assert type(got) is cupy.ndarray
    assert np.abs(cupy.asnumpy(got) - want).max() < 1e-5


def without_a_kernel_the_bits_are_the_same() -> None:
    from rotary.backends import _cupy

    kept, _cupy.kernel = _cupy.kernel, lambda name: None
    try:
        assert same(ROPE(cupy.array(host())), ROPE(host()))
    finally:
        _cupy.kernel = kept


def exact_linear_attention_has_the_bits_of_numpy() -> None:
    for dtype in kinds("float16", "bfloat16", "float32"):
        for attn in ATTENTIONS:
            arrays = attention_inputs(dtype, gated=attn.decay == "gate")
            given = [cupy.array(x) for x in arrays]
            got, want = (attend(attn, *x) for x in (given, arrays))
            assert all(map(same, got, want)), (dtype, attn)
            # Neither inputs nor states are written to.
            assert all(map(same, given, arrays)), (dtype, attn)


def fast_linear_attention_is_that_of_numpy() -> None:
    for attn in ATTENTIONS:
        fast = dataclasses.replace(attn, arithmetic="fast")
        arrays = attention_inputs("float32", gated=attn.decay == "gate")
        given = [cupy.array(x) for x in arrays]
        found, right = attend_in_one_word(fast, *given), attend_in_one_word(fast, *arrays)
        for got, want in zip(found, right, strict=True):
            assert np.abs(cupy.asnumpy(got) - want).max() <= 1e-5 * max(1, np.abs(want).max()), attn


def other_libraries_are_refused() -> None:
    x, q = host(), cupy.array(host())
    message = refused(lambda: ROPE(q, x), TypeError)
    assert message == "k: got an array of numpy, expected q's library cupy"
    message = refused(lambda: ROPE(x, q), TypeError)
    assert message == "k: got an array of cupy, expected q's library numpy"
    message = refused(lambda: ROPE(q, out=x), TypeError)
    assert message.startswith("out: got an array of numpy")
    message = refused(lambda: ROPE(x, positions=cupy.array(range(5))), TypeError)
    assert message.startswith("positions: got an array of cupy")
    assert owner_of(q).name == library(q) == "cupy"


def dtypes_that_do_not_rotate_are_refused() -> None:
    message = refused(lambda: ROPE(cupy.array(host().astype(np.int64))), TypeError)
    assert message.startswith("q: got dtype int64, expected one of float16, bfloat16, float32")
    half = cupy.array(np.arange(5, dtype=np.float16))
    message = refused(lambda: ROPE(cupy.array(host()), positions=half), TypeError)
    assert message.startswith("positions: got dtype float16")


def what_is_kept_serves_every_stream() -> None:
    x, rope = host(), rotary.RotaryEmbedding(16, base=777.0)
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    attn = linear.LinearAttention(rope=rope, chunk_size=3, arithmetic="exact")
    given = []
    for stream in streams:
        with stream:
            given.append(cupy.asarray(x, blocking=True))
    results, attended = [], []
    for stream, q in zip(streams, given, strict=True):
        with stream:  # the first one makes tables and triangles, the others find them
            results.append(rope(q, offset=500))
            attended.append(attn(q, q, q, causal=True))
    for stream, y in zip(streams, results, strict=True):
        with stream:
            owner_of(y).synchronize(y)
    assert all(same(y, rope(x, offset=500)) for y in results)
    assert all(same(y, attn(x, x, x, causal=True)) for y in attended)


def every_device_has_its_own_tables() -> None:
    """On two devices."""
    x, rope, made = host(), rotary.RotaryEmbedding(16, base=888.0), []
    right, tables.evaluate = tables.evaluate, lambda *a, **k: made.append(1) or right(*a, **k)
    try:
        for _ in range(2):
            for number in (0, 1):
                with cupy.cuda.Device(number):
                    got = rope(cupy.asarray(x), offset=9)
                    cos, _ = rope.tables([1, 2], like=got)
                assert got.device.id == cos.device.id == number
                assert same(got, rope(x, offset=9))
    finally:
        tables.evaluate = right
    assert len(made) == 3  # one block each, the host's included
    # Wherever CuPy computes just then.
    assert owner_of(got).to_device(x, got).device.id == got.device.id != cupy.cuda.Device().id
    with cupy.cuda.Device(1):
        got = rope(cupy.asarray(x))
    owner_of(got).synchronize(got)
    with cupy.cuda.Device(1), cupy.cuda.Stream(non_blocking=True):
        assert same(got, rope(x))


def another_device_is_refused() -> None:
    """On two devices."""
    x = host()
    here = cupy.array(x)
    with cupy.cuda.Device(1):
        there = cupy.array(x)
        assert same(ROPE(there), ROPE(x))
        message = refused(lambda: ROPE(here), ValueError)
    assert message == (
        "device: got an array on CUDA device 0 while CuPy computes on device 1; expected the call "
        "within `with x.device:`"
    )
    message = refused(lambda: ROPE(here, there), ValueError)
    assert message == "k: got device <CUDA Device 1>, expected q's device <CUDA Device 0>"
    message = refused(lambda: ROPE(here, out=there), ValueError)
    assert message == "out: got device <CUDA Device 1>, expected x's device <CUDA Device 0>"
    cos, sin = ROPE.tables(range(5), like=here)
    message = refused(lambda: rotary.rotate(there, cos, sin), ValueError)
    assert message.startswith("cos: got device <CUDA Device 0>")
    with cupy.cuda.Device(1):
        message = refused(lambda: rotary.rotate(here, cos, sin), ValueError)
    assert message.startswith("device: got an array on CUDA device 0 while CuPy computes on")
    attn = linear.LinearAttention(rope=ROPE, chunk_size=2, arithmetic="exact")
    _, state = attn.prefill(here, here, here)
    with cupy.cuda.Device(1):
        out, moved = attn.prefill(there, there, there)
        assert {y.device.id for y in (out, *moved) if y is not None} == {1}
        assert same(out, attn(x, x, x, causal=True))
        message = refused(lambda: attn.prefill(there, there, there, state), ValueError)
        assert message.startswith("state.numerator: got device <CUDA Device 0>, expected k's")
        message = refused(lambda: attn(here, here, here), ValueError)
        assert message.startswith("device: got an array on CUDA device 0 while CuPy computes on")
    with cupy.cuda.Device(1):
        positions = cupy.array([3, 1, 4, 1, 5])
    assert same(ROPE(here, positions=positions), ROPE(x, positions=[3, 1, 4, 1, 5]))


CHECKS = {
    check.__name__: check
    for check in (
        rotations_have_the_bits_of_numpy,
        one_pass_has_the_bits_of_the_array_code,
        arrays_that_do_not_fit_one_pass_have_the_bits_of_numpy,
        tables_have_the_bits_of_numpy,
        positions_may_be_arrays_of_cupy,
        results_are_written_in_place,
        exact_arithmetic_has_the_bits_of_numpy,
        encodings_have_the_bits_of_numpy,
        selections_keep_their_dtype,
        softmax_attention_is_that_of_numpy,
        without_a_kernel_the_bits_are_the_same,
        exact_linear_attention_has_the_bits_of_numpy,
        fast_linear_attention_is_that_of_numpy,
        other_libraries_are_refused,
        dtypes_that_do_not_rotate_are_refused,
        what_is_kept_serves_every_stream,
        every_device_has_its_own_tables,
        another_device_is_refused,
    )
}

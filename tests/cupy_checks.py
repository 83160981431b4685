"""What has to hold for CuPy's arrays, on a GPU and on the stand-in alike; see test_cupy.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import ml_dtypes
import numpy as np

import rotary
from rotary import exact, tables
from rotary.backends import library, owner_of

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


def host(dtype: str = "float32") -> Any:
    x = np.random.default_rng(0).standard_normal(SHAPE)
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


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
    for dtype in DTYPES:
        x = host(dtype)
        if dtype == "bfloat16" and int(cupy.__version__.partition(".")[0]) < 14:
            continue
        for embedding in EMBEDDINGS:
            rope = rotary.RotaryEmbedding(16, **embedding)
            for name, call in CALLS.items():
                assert same(call(rope, cupy.array(x)), call(rope, x)), (dtype, embedding, name)


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
    given = []
    for stream in streams:
        with stream:
            given.append(cupy.asarray(x, blocking=True))
    results = []
    for stream, q in zip(streams, given, strict=True):
        with stream:  # the first one makes the tables, the others find them
            results.append(rope(q, offset=500))
    for stream, y in zip(streams, results, strict=True):
        with stream:
            owner_of(y).synchronize(y)
    assert all(same(y, rope(x, offset=500)) for y in results)


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
    with cupy.cuda.Device(1):
        positions = cupy.array([3, 1, 4, 1, 5])
    assert same(ROPE(here, positions=positions), ROPE(x, positions=[3, 1, 4, 1, 5]))


CHECKS = {
    check.__name__: check
    for check in (
        rotations_have_the_bits_of_numpy,
        tables_have_the_bits_of_numpy,
        positions_may_be_arrays_of_cupy,
        results_are_written_in_place,
        exact_arithmetic_has_the_bits_of_numpy,
        other_libraries_are_refused,
        dtypes_that_do_not_rotate_are_refused,
        what_is_kept_serves_every_stream,
        every_device_has_its_own_tables,
        another_device_is_refused,
    )
}

"""The generic backend, on libraries that nobody wrote a shim for, lazy ones among them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rotary
from rotary import tables
from rotary.backends import owner_of

ROPE = rotary.RotaryEmbedding(16)
SHAPE = (2, 3, 5, 16)  # batch, heads, seq, dim


def host(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(0).standard_normal(shape or SHAPE).astype(dtype)


# -- devices -------------------------------------------------------------------------------------


@pytest.fixture
def strict() -> Any:
    return pytest.importorskip("array_api_strict")


@pytest.mark.parametrize("name", ["CPU_DEVICE", "device1", "no_float64", "no_x64"])
def test_results_stay_on_the_device(strict: Any, name: str) -> None:
    device = strict.Device(name)
    x, (cos, sin) = strict.asarray(host(), device=device), ROPE.tables(range(5))
    on_device = [strict.asarray(table, device=device) for table in (cos, sin)]
    for got in (
        *ROPE(x, x[:, :1, ...], offset=[3, 4]),
        ROPE.shift(x, 2.5),
        *ROPE.tables([1, 2], like=x),
        rotary.rotate(x, *on_device),
    ):
        assert got.device == device


def test_each_device_has_its_own_tables(strict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    right = tables.evaluate
    monkeypatch.setattr(tables, "evaluate", lambda *a, **k: made.append(a) or right(*a, **k))
    rope = rotary.RotaryEmbedding(16, base=999.0)
    for _ in range(2):
        for name in ("CPU_DEVICE", "device1"):
            rope(strict.asarray(host(), device=strict.Device(name)))
    assert len(made) == 2


def test_positions_may_be_on_another_device(strict: Any) -> None:
    positions = strict.asarray([3, 1, 4, 1, 5], device=strict.Device("device2"))
    got = ROPE(strict.asarray(host(), device=strict.Device("device1")), positions=positions)
    got = np.asarray(got.to_device(strict.Device("CPU_DEVICE")))
    assert np.array_equal(got, ROPE(host(), positions=[3, 1, 4, 1, 5]))


def test_a_dtype_that_a_device_lacks_is_refused(strict: Any, refused: Any) -> None:
    x = strict.asarray(host(), device=strict.Device("no_float64"))
    words = "float64 is not available in array_api_strict on array_api_strict.Device('no_float64')"
    with refused(TypeError, "dtype", words):
        ROPE.tables([1, 2], like=x, dtype="float64")


# -- a library without devices, which makes float32 of float64 unless it is told the dtype ---------


@pytest.fixture
def mx() -> Any:
    return pytest.importorskip("mlx.core")


def test_float64_tables_are_float64(mx: Any) -> None:
    for table, want in zip(
        ROPE.tables([1, 2.5], like=mx.array(host()), dtype="float64"),
        ROPE.tables([1, 2.5], dtype="float64"),
        strict=True,
    ):
        assert table.dtype == mx.float64
        assert np.array_equal(np.asarray(table), want)


def test_one_compilation_serves_all_offsets(mx: Any) -> None:
    traced = []

    def step(x: Any, offset: Any) -> Any:
        traced.append(1)
        return ROPE(x, offset=offset)

    compiled = mx.compile(step)
    for offset in (0, 1, 77, 10**6, -5):
        got = compiled(mx.array(host()), mx.array(offset))
        assert np.array_equal(np.asarray(got), ROPE(host(), offset=offset))
    assert len(traced) == 1


def test_tables_made_under_a_transform_serve_later_calls(mx: Any) -> None:
    x = mx.array(host())
    transforms = (
        mx.compile,
        lambda f: mx.vmap(f, in_axes=1, out_axes=1),
        lambda f: lambda x: mx.vjp(f, [x], [x])[0][0],
    )
    for base, transform in enumerate(transforms, 3):
        rope = rotary.RotaryEmbedding(16, base=float(base))
        for f in (transform(rope), rope):
            assert np.array_equal(np.asarray(f(x)), rope(host()))


# -- lazy libraries ------------------------------------------------------------------------------


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    da = pytest.importorskip("dask.array")
    from dask.callbacks import Callback

    class Count(Callback):  # type: ignore[misc]
        computed = 0

        def _start(self, graph: Any) -> None:
            self.computed += 1

    x, positions = host(), np.array([[0.5, 1, 1e6, -3, 2], [9, 8, 7, 6, 5]])
    lazy, lazy_positions = (da.from_array(a, chunks=2) for a in (x, positions))
    out = da.from_array(x, chunks=2)
    with Count() as count:
        got = [
            ROPE(lazy),
            ROPE(lazy, offset=da.from_array(np.array([3, 400]))),
            ROPE(lazy, positions=lazy_positions),
            *ROPE.inverse(lazy, lazy[:, :1], offset=-2.5),
            ROPE.shift(lazy, 3),
            rotary.rotate(lazy, *ROPE.tables(range(5), like=lazy), layout="interleaved"),
            ROPE(lazy, offset=7, out=out),
        ]
        assert count.computed == 0
        got = [array.compute() for array in got]
        assert count.computed == len(got)
    want = [
        ROPE(x),
        ROPE(x, offset=[3, 400]),
        ROPE(x, positions=positions),
        *ROPE.inverse(x, x[:, :1], offset=-2.5),
        ROPE.shift(x, 3),
        rotary.rotate(x, *ROPE.tables(range(5)), layout="interleaved"),
        ROPE(x, offset=7),
    ]
    assert all(map(np.array_equal, got, want))


@pytest.fixture
def ndx() -> Any:
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("ndonnx")


def exported(ndx: Any, function: Any, **inputs: Any) -> Any:
    """Return an ONNX model of the function as a function of NumPy arrays, run by onnxruntime."""
    import onnxruntime

    model = ndx.build(inputs, {"y": function(**inputs)})
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda **arrays: session.run(["y"], arrays)[0]


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_one_graph_serves_all_offsets_and_batches(ndx: Any, layout: str) -> None:
    rope = rotary.RotaryEmbedding(16, layout=layout)
    run = exported(
        ndx,
        lambda x, offset: rope(x, offset=offset),
        x=ndx.argument(shape=("batch", 3, 5, 16), dtype=ndx.float32),
        offset=ndx.argument(shape=("batch",), dtype=ndx.int64),
    )
    for offset in ([0, 1], [10**6, 2**31 + 1], [-7, 3, 255], [2**53 - 5]):
        x = host(len(offset), 3, 5, 16)
        assert np.array_equal(run(x=x, offset=np.array(offset)), rope(x, offset=offset))


def test_a_graph_rotates_to_the_positions_that_it_is_given(ndx: Any) -> None:
    run = exported(
        ndx,
        lambda x, positions: ROPE(x, positions=positions),
        x=ndx.argument(shape=SHAPE, dtype=ndx.float16),
        positions=ndx.argument(shape=(2, 5), dtype=ndx.float64),
    )
    for scale in (1, 1e-9, 1e9):
        positions = scale * host(2, 5, dtype="float64")
        x = host(dtype="float16")
        assert np.array_equal(run(x=x, positions=positions), ROPE(x, positions=positions))


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((3,), "int64", "got shape (3,), expected (5,) or (2, 5)"),
        ((5,), "float16", "got dtype float16"),
        ((5,), "bool", "got dtype bool"),
    ],
)
def test_lazy_positions_that_do_not_fit_are_refused(
    ndx: Any, refused: Any, shape: Any, kind: str, words: str
) -> None:
    positions = ndx.argument(shape=shape, dtype=getattr(ndx, kind))
    with refused(TypeError if kind != "int64" else ValueError, "positions", words):
        ROPE(ndx.asarray(host()), positions=positions)


def test_a_sequence_of_unknown_length_is_refused(ndx: Any, refused: Any) -> None:
    x = ndx.argument(shape=(2, 3, "seq", 16), dtype=ndx.float32)
    words = "got shape (2, 3, None, 16), expected a known length along seq_axis -2"
    with refused(ValueError, "q", words):
        ROPE(x)
    with refused(ValueError, "q", words):
        ROPE(x, positions=range(5))
    da = pytest.importorskip("dask.array")
    lazy = da.from_array(host(), chunks=2)
    with refused(ValueError, "k", "got shape (2, 3, nan, 16), expected a known length"):
        ROPE.shift(lazy[:, :, da.from_array(np.arange(5)) > 2], 3)


def test_positions_that_the_host_cannot_read_are_refused(ndx: Any, refused: Any) -> None:
    words = "got an array of ndonnx, ndonnx does not support the export of array data, expected"
    with refused(TypeError, "positions", words):
        rotary.validate(ndx.asarray([1, 2]))


# -- libraries that lack something -----------------------------------------------------------------


def tiny(data: Any, lacks: tuple[str, ...] = (), **replaced: Any) -> Any:
    """Return an array of a library that lacks some of the standard's operations."""
    namespace = ModuleType("tiny")

    class Tiny:
        shape, ndim, dtype = data.shape, data.ndim, data.dtype

        def __array_namespace__(self, api_version: str | None = None) -> ModuleType:
            return namespace

    for function in ("asarray", "astype", "concat", "float32", "float64", "reshape", "stack"):
        if function not in lacks:
            setattr(namespace, function, replaced.get(function, getattr(np, function)))
    return Tiny()


@pytest.mark.parametrize(
    ("lacks", "named"),
    [
        (("stack",), "tiny lacks stack"),
        (("stack", "concat"), "tiny lacks concat, stack"),
    ],
)
def test_a_library_that_lacks_an_operation_is_named_with_it(
    refused: Any, lacks: tuple[str, ...], named: str
) -> None:
    for _ in range(2):
        with refused(TypeError, "q", "Tiny, expected an array of a library with the", named):
            ROPE(tiny(host(), lacks))


def test_a_library_that_lacks_nothing_has_the_generic_backend() -> None:
    assert owner_of(tiny(host())).name == "generic"


def test_a_library_that_narrows_in_silence_is_refused(refused: Any) -> None:
    like = tiny(host(), asarray=lambda x, dtype: x.astype(np.float32))
    with refused(TypeError, "dtype", "float64 is not available in tiny"):
        ROPE.tables([1, 2], like=like, dtype="float64")

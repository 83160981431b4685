"""Absolute encodings: the tables' bits, look-ups that never miss a row, one resampling for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import rotary
from rotary import backends
from rotary.absolute import _ratio, binary, integer, learned, resample, sinusoidal
from rotary.exact.words import nearest

PLACES = [0, 1, 7, 512, 131_071, 10**6, -3, 0.5]


def host(x: Any) -> np.ndarray:
    """Return x on the host, bfloat16 as float32: NumPy takes none from torch."""
    x = x.detach() if hasattr(x, "detach") else x
    x = x.compute() if hasattr(x, "compute") else x
    x = x.unwrap_numpy() if hasattr(x, "unwrap_numpy") else x
    if "bfloat16" in str(x.dtype):
        x = backends.owner_of(x).widen(x, "float32")
    return np.asarray(x)


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def wide(library: Any) -> Iterator[None]:
    """Let JAX keep float64."""
    if library.name != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


# -- sinusoidal ----------------------------------------------------------------------------------


def formula(positions: list[float], dim: int, layout: str, step: Any) -> np.ndarray:
    """Return the encoding at 24 bits by mpmath; step(i) is ω_i."""
    rows = []
    with mpmath.workprec(200):
        for p in positions:
            angles = [mpmath.mpf(p) * step(i) for i in range(dim // 2)]
            sines, cosines = map(mpmath.sin, angles), map(mpmath.cos, angles)
            pairs = list(zip(sines, cosines, strict=True))
            row = [x for pair in pairs for x in pair]
            if layout == "half":
                row = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
            with mpmath.workprec(24):
                rows.append([float(+x) for x in row])
    return np.array(rows, np.float32)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("dim", [2, 6, 64])
def test_the_encoding_is_the_formula_correctly_rounded(dim: int, layout: str) -> None:
    want = formula(PLACES, dim, layout, lambda i: mpmath.mpf(10_000) ** (-mpmath.mpf(2 * i) / dim))
    assert_array_equal(sinusoidal(PLACES, dim, layout=layout), want)


@pytest.mark.parametrize("dim", [4, 64])
def test_frequency_dim_gives_the_encoding_of_tensor2tensor(dim: int) -> None:
    # get_timing_signal_1d: the logarithm of 10 000 in dim/2 − 1 steps, sines first.
    def step(i: int) -> Any:
        return mpmath.exp(-i * mpmath.log(10_000) / (dim // 2 - 1))

    got = sinusoidal(PLACES, dim, layout="half", frequency_dim=dim - 2)
    assert_array_equal(got, formula(PLACES, dim, "half", step))


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (8,), (2, 4)])
def test_the_encoding_is_the_rotary_tables_on_every_library(
    library: Any, shape: tuple[int, ...], dtype: str | None
) -> None:
    positions = np.resize(PLACES, shape)
    for kind in library.dtypes:
        like = library.array(normal(1), kind)
        rope = rotary.RotaryEmbedding(16, base=500.0, frequency_dim=20)
        cos, sin = rope.tables(positions, dtype=dtype or ("float64" if "64" in kind else None))
        words = {"base": 500.0, "frequency_dim": 20, "like": like, "dtype": dtype}
        half = sinusoidal(positions, 16, layout="half", **words)
        interleaved = sinusoidal(positions, 16, **words)
        for got in (half, interleaved):
            assert type(got) is type(like)
            assert got.shape == (*shape, 16)
        assert_array_equal(host(half), np.concatenate([sin, cos], -1))
        assert host(half).dtype == sin.dtype
        assert_array_equal(host(interleaved)[..., 0::2], sin)
        assert_array_equal(host(interleaved)[..., 1::2], cos)


def test_traced_positions_give_the_bits_of_the_host_under_jit() -> None:
    jax = pytest.importorskip("jax")
    like = jax.numpy.zeros(1)
    for layout in ("half", "interleaved"):

        def encode(p: Any, layout: str = layout) -> Any:
            return sinusoidal(p, 16, layout=layout, like=like)

        positions = np.array([[0, 1, 10**6], [5, 77, -2]], np.int32)
        assert_array_equal(jax.jit(encode)(positions), sinusoidal(positions, 16, layout=layout))


def test_traced_positions_give_the_bits_of_the_host_under_torch_compile() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    program = torch.compile(
        lambda p, like: sinusoidal(p, 16, like=like), fullgraph=True, backend="aot_eager"
    )
    positions = np.array([[0, 1, 10**6], [5, 77, -2]])
    got = program(torch.from_numpy(positions), torch.zeros(1))
    assert_array_equal(got, sinusoidal(positions, 16))


@pytest.mark.parametrize("name", ["dask.array", "ndonnx"])
def test_lazy_positions_give_the_bits_of_the_host(name: str) -> None:
    xp = pytest.importorskip(name)
    positions, like = (xp.asarray(x) for x in (np.array([[0, 1, 10**6], [5, 77, -2]]), normal(1)))
    want = sinusoidal([[0, 1, 10**6], [5, 77, -2]], 16)
    assert_array_equal(host(sinusoidal(positions, 16, like=like)), want)


@pytest.mark.parametrize("k", [1, 2, 1000, 999_983, -5])
def test_the_encoding_of_a_later_position_is_a_linear_function_of_this_one(k: int) -> None:
    # Each pair (sin p·ω, cos p·ω) turned by k·ω; the matrix depends on k alone.  To first order the
    # two roundings of each product's factors, its own, the sum's and that of what is compared with
    # make |x1·c| + |x2·s| ≤ 1 times (2 + 1 + 1) u, plus u, with u = 2^-24.
    positions = np.arange(0, 10**6, 9973)
    cos, sin = rotary.RotaryEmbedding(64).tables([k])
    here = sinusoidal(positions, 64)[:, None, :]
    turned = rotary.rotate(here, cos, sin, layout="interleaved", inverse=True)[:, 0, :]
    error = np.abs(turned.astype(float) - sinusoidal(positions + k, 64))
    assert error.max() <= 5.001 * 2.0**-24
    # Not by any other matrix of rotations.
    assert np.abs(turned - sinusoidal(positions + k + 1, 64)).max() > 0.1


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"dim": 7}, ValueError, "dim", "got 7, expected an even number"),
        ({"dim": 0}, ValueError, "dim", "got 0, expected a positive number"),
        ({"dim": 4.0}, TypeError, "dim", "got 4.0, expected a whole number"),
        ({"layout": "split"}, ValueError, "layout", "got 'split', expected 'half' or 'inter"),
        ({"base": 0}, ValueError, "base", "got 0.0, expected a positive"),
        ({"dim": 2, "frequency_dim": 0}, ValueError, "frequency_dim", "got 0, expected a positive"),
        ({"positions": [0.0, np.nan]}, ValueError, "positions", "got NaN at index 1"),
        ({"positions": [2**53 + 2]}, ValueError, "positions", "expected them within ±2^53"),
        ({"positions": np.ones(2, np.float16)}, TypeError, "positions", "got dtype float16"),
        ({"like": [1.0]}, TypeError, "like", "got builtins.list, expected an array"),
        ({"like": np.ones(2, np.int32)}, TypeError, "like", "got dtype int32, expected one of"),
        ({"dtype": "float16"}, ValueError, "dtype", "got 'float16', expected float32 or float64"),
    ],
)
def test_what_has_no_sinusoidal_encoding_is_refused(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        sinusoidal(**{"positions": [0, 1], "dim": 4, **wrong})


# -- learned -------------------------------------------------------------------------------------

TABLE = normal(5, 3)
# The last three have no row.
MIXED = np.array([[4, 0, 2, 2], [5, -1, 127, 3]])
WITHOUT_ROW = (MIXED < 0) | (MIXED > 4)


def rows_or_nan() -> np.ndarray:
    rows = TABLE[np.where(WITHOUT_ROW, 0, MIXED)]
    rows[WITHOUT_ROW] = np.nan
    return rows


@pytest.mark.parametrize("positions", [3, [4, 0, 0], [[0, 1], [3, 2]], [], np.zeros((2, 0), int)])
def test_rows_are_looked_up_on_every_library(library: Any, positions: Any) -> None:
    index = np.array(positions, np.int64)
    for dtype in library.dtypes:
        table = library.array(TABLE, dtype)
        given = [positions, index, index.astype(np.uint8), library.array(index, "int32")]
        for each in given:
            got = learned(each, table)
            assert type(got) is type(table)
            assert got.dtype == table.dtype
            assert got.shape == (*index.shape, 3)
            assert_array_equal(host(got), host(table)[index])


def test_a_looked_up_row_belongs_to_the_caller() -> None:
    table = TABLE.copy()
    learned([1, 1], table)[:] = 0
    assert_array_equal(table, TABLE)


def test_gradients_of_repeated_rows_are_summed_in_torch() -> None:
    torch = pytest.importorskip("torch")
    table = torch.nn.Parameter(torch.from_numpy(TABLE.copy()))
    g = torch.from_numpy(normal(2, 3, 3, seed=1))
    positions = [[1, 4, 1], [1, 0, 4]]
    (gradient,) = torch.autograd.grad(learned(positions, table), table, g)
    assert_array_equal(gradient != 0, np.isin(np.arange(5), [0, 1, 4])[:, None].repeat(3, 1))
    np.testing.assert_allclose(gradient[1], g[0, 0] + g[0, 2] + g[1, 0], rtol=1e-6)
    np.testing.assert_allclose(gradient[4], g[0, 1] + g[1, 2], rtol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_gradients_of_repeated_rows_are_summed_in_jax(traced: bool) -> None:
    jax = pytest.importorskip("jax")

    def total(table: Any, positions: Any) -> Any:
        # What has no row is NaN, which must not reach the rows there are.
        return jax.numpy.nansum(learned(positions, table) * jax.numpy.arange(1.0, 6.0)[:, None])

    positions = [1, 1, 4, 0, 9] if traced else [1, 1, 4, 0, 0]
    gradient = jax.grad(total)
    if traced:
        got = jax.jit(gradient)(TABLE, np.array(positions))
    else:
        got = gradient(jax.numpy.asarray(TABLE), positions)
    want = np.array([4.0 if traced else 9.0, 3, 0, 0, 3])
    assert_array_equal(got, want[:, None].repeat(3, 1))


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([0, 5], "got 5 at index 1, expected 0 to 4, as table has a length of 5"),
        ([[0, 1], [-1, 7]], "got -1 at index (1, 0), expected 0 to 4"),
        (5, "got 5, expected 0 to 4"),
    ],
)
def test_a_position_without_a_row_is_refused(
    library: Any, refused: Any, positions: Any, words: str
) -> None:
    table = library.array(TABLE)
    for given_ in (positions, np.array(positions), library.array(positions)):
        with refused(ValueError, "positions", words, unchanged=(table,)):
            learned(given_, table)


@pytest.mark.parametrize("positions", [[0.0, 1.0], 1.5, np.ones(2), np.ones(2, np.float32)])
def test_a_position_that_is_no_integer_is_refused(
    library: Any, refused: Any, positions: Any
) -> None:
    table = library.array(TABLE)
    with refused(TypeError, "positions", "got dtype float", "expected integers"):
        learned(positions, table)
    with refused(TypeError, "positions", "got dtype float", "expected integers"):
        learned(library.array(positions), table)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32"])
def test_a_position_without_a_row_is_nan_under_jit(kind: str) -> None:
    jax = pytest.importorskip("jax")
    look_up = jax.jit(learned)
    assert_array_equal(look_up(MIXED.astype(kind), TABLE), rows_or_nan())
    with jax.enable_x64(True):
        assert_array_equal(jax.jit(learned)(MIXED, TABLE), rows_or_nan())


def test_a_table_may_be_longer_than_its_positions_dtype_reaches() -> None:
    jax = pytest.importorskip("jax")
    table = np.arange(300, dtype=np.float32)[:, None]
    got = jax.jit(learned)(np.array([127, -1, 0], np.int8), table)
    assert_array_equal(got[:, 0], [127, np.nan, 0])


@pytest.mark.parametrize("kind", ["int8", "int64", "uint32"])
def test_a_position_without_a_row_is_nan_under_torch_compile(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    look_up = torch.compile(learned, fullgraph=True, backend="aot_eager")
    got = look_up(torch.from_numpy(MIXED.astype(kind)), torch.from_numpy(TABLE))
    assert_array_equal(got, rows_or_nan())
    assert_array_equal(look_up([4, 9], torch.from_numpy(TABLE))[0], TABLE[4])
    with pytest.raises(Exception, match="positions: got dtype float32, expected integers"):
        look_up(torch.ones(2), torch.from_numpy(TABLE))


@pytest.mark.parametrize("name", ["dask.array", "ndonnx"])
def test_a_position_without_a_row_is_nan_in_a_lazy_library(name: str, refused: Any) -> None:
    xp = pytest.importorskip(name)
    table = xp.asarray(TABLE)
    assert_array_equal(host(learned(xp.asarray(MIXED), table)), rows_or_nan())
    assert_array_equal(host(learned([4, 0], table)), TABLE[[4, 0]])
    with refused(ValueError, "positions", "got 5 at index 0"):
        learned([5], table)
    with refused(TypeError, "positions", "got dtype float64, expected integers"):
        learned(xp.asarray(np.ones(2)), table)


def test_a_position_without_a_row_is_nan_in_a_compiled_mlx_program() -> None:
    mx = pytest.importorskip("mlx.core")
    table = mx.array(TABLE)
    assert_array_equal(mx.compile(learned)(mx.array(MIXED), table), rows_or_nan())
    # A cast to its int32 would find row 1.
    far = mx.array(np.array([2**32 + 1, 1]))
    assert_array_equal(mx.compile(learned)(far, table), [[np.nan] * 3, TABLE[1]])


def test_a_graph_looks_up_as_many_positions_as_it_is_given() -> None:
    ndx = pytest.importorskip("ndonnx")
    runtime = pytest.importorskip("onnxruntime")
    positions = ndx.argument(shape=("n",), dtype=ndx.int64)
    model = ndx.build({"p": positions}, {"y": learned(positions, ndx.asarray(TABLE))})
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for given_ in ([3], [0, 1, 4]):
        (got,) = session.run(["y"], {"p": np.array(given_)})
        assert_array_equal(got, TABLE[given_])


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"table": [[1.0]]}, TypeError, "table", "got builtins.list, expected an array"),
        ({"table": np.ones(3)}, ValueError, "table", "got shape (3,), expected (length, dim)"),
        ({"table": np.ones((1, 3, 2))}, ValueError, "table", "got shape (1, 3, 2), expected (le"),
        ({"table": np.ones((0, 3))}, ValueError, "table", "got shape (0, 3), expected (length"),
        ({"table": np.ones((3, 2), int)}, TypeError, "table", "got dtype int64, expected one of"),
        ({"positions": [True]}, TypeError, "positions", "got dtype bool"),
        ({"positions": [[0], [0, 1]]}, TypeError, "positions", "got list, expected numbers"),
        ({"positions": "01"}, TypeError, "positions", "got dtype"),
        ({"positions": None}, TypeError, "positions", "got dtype object"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        learned(**{"positions": [0], "table": TABLE, **wrong})


def test_positions_and_table_are_of_one_library(library: Any, refused: Any) -> None:
    foreign = "torch" if library.name != "torch" else "jax.numpy"
    positions = pytest.importorskip(foreign).asarray([0])
    with refused(TypeError, "positions", f"got an array of {foreign.partition('.')[0]}, expected"):
        learned(positions, library.array(TABLE))


# -- resample ------------------------------------------------------------------------------------

LENGTHS = [(7, 12), (12, 7), (12, 5), (9, 20), (1, 4), (5, 1), (2, 3), (64, 200)]
GRIDS = [((4, 6), (5, 3)), ((6, 4), (6, 9)), ((3, 5), (7, 5)), ((1, 6), (4, 4)), ((14, 9), (3, 20))]


def interpolated(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int], method: str, corners: bool
) -> np.ndarray:
    """Return what torch.nn.functional.interpolate gives, rows of a grid as tokens."""
    torch = pytest.importorskip("torch")
    mode = {"linear": "bilinear", "cubic": "bicubic"}[method]
    x = torch.from_numpy(table.T.reshape(1, -1, *old).copy())
    y = torch.nn.functional.interpolate(x, size=new, mode=mode, align_corners=corners)
    return y.numpy().reshape(table.shape[1], -1).T


def bound(table: np.ndarray, *old: int) -> float:
    """Return the rounding to allow: a source coordinate of torch errs by some old·u.

    Weights are at most 1.5 steep, and a resampled row sums up to 16 products.
    """
    return float(4 * (sum(old) + 4) * np.finfo(table.dtype).eps * np.abs(table).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize(("old", "new"), LENGTHS)
def test_a_resampled_length_is_that_of_torch(
    old: int, new: int, method: str, corners: bool, dtype: str
) -> None:
    table = normal(old, 8, dtype=dtype)
    got = resample(table, new, method=method, align_corners=corners)
    assert got.dtype == table.dtype
    want = interpolated(table, (old, 1), (new, 1), method, corners)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound(table, old))


def test_a_linearly_resampled_length_is_that_of_torchs_linear_mode() -> None:
    torch = pytest.importorskip("torch")
    table = normal(9, 4, dtype="float64")
    for corners in (False, True):
        want = torch.nn.functional.interpolate(
            torch.from_numpy(table.T[None].copy()), size=13, mode="linear", align_corners=corners
        )
        got = resample(table, 13, align_corners=corners)
        np.testing.assert_allclose(got, want[0].T, rtol=0, atol=bound(table, 9))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_resampled_grid_is_that_of_torch(
    old: Any, new: Any, method: str, corners: bool, prefix: int, dtype: str
) -> None:
    table = normal(prefix + old[0] * old[1], 8, dtype=dtype)
    before = table.copy()
    got = resample(table, new, grid=old, prefix=prefix, method=method, align_corners=corners)
    want = interpolated(table[prefix:], old, new, method, corners)
    assert got.shape == (prefix + new[0] * new[1], 8)
    assert_array_equal(got[:prefix], table[:prefix])
    np.testing.assert_allclose(got[prefix:], want, rtol=0, atol=bound(table, *old))
    assert_array_equal(table, before)


def test_height_and_width_are_not_mistaken_for_each_other() -> None:
    table = normal(24, 8)
    right = resample(table, (5, 3), grid=(4, 6))
    assert np.abs(right - resample(table, (5, 3), grid=(6, 4))).max() > 0.1
    assert np.abs(right - resample(table, (3, 5), grid=(4, 6))).max() > 0.1


RESAMPLED: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "a length": (9, lambda t: resample(t, 31, method="cubic")),
    "a shorter length": (31, lambda t: resample(t, 9, align_corners=True)),
    "a grid": (25, lambda t: resample(t, (7, 5), grid=(4, 6), prefix=1, method="cubic")),
    "one axis": (24, lambda t: resample(t, (4, 11), grid=(4, 6))),
}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("case", RESAMPLED)
def test_resampling_is_bit_identical_on_every_library(library: Any, case: str) -> None:
    length, change = RESAMPLED[case]
    for dtype in library.dtypes:
        table = library.array(normal(length, 16), dtype)
        got = change(table)
        assert type(got) is type(table)
        assert got.dtype == table.dtype
        assert_array_equal(host(got), in_numpy(change, host(table), dtype))


def in_numpy(change: Callable[[Any], Any], table: np.ndarray, dtype: str) -> np.ndarray:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return host(change(table.astype(kind)))


@pytest.mark.parametrize(
    ("name", "make"), [("dask.array", "asarray"), ("ndonnx", "asarray"), ("mlx.core", "array")]
)
@pytest.mark.parametrize("case", RESAMPLED)
def test_resampling_is_bit_identical_on_libraries_without_a_shim(
    case: str, name: str, make: str
) -> None:
    asarray = getattr(pytest.importorskip(name), make)
    length, change = RESAMPLED[case]
    table = normal(length, 16)
    assert_array_equal(host(change(asarray(table))), change(table))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", RESAMPLED)
def test_resampling_is_bit_identical_under_jit(case: str, dtype: str) -> None:
    jax = pytest.importorskip("jax")
    length, change = RESAMPLED[case]
    for dim in (1, 48) if dtype == "float32" else (48,):
        with jax.enable_x64(dtype == "float64"):
            table = jax.numpy.asarray(normal(length, dim), dtype)
            got = host(jax.jit(change)(table))
        assert_array_equal(got, in_numpy(change, host(table), dtype))


@pytest.mark.parametrize(("case", "dtype"), [("a grid", "float32"), ("one axis", "bfloat16")])
def test_resampling_is_bit_identical_under_torch_compile(case: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    length, change = RESAMPLED[case]
    table = torch.from_numpy(normal(length, 48)).to(getattr(torch, dtype))
    got = torch.compile(change, fullgraph=True)(table)
    assert_array_equal(host(got), in_numpy(change, host(table), dtype))


def test_a_compiled_program_resamples_tables_of_several_lengths() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    program = torch.compile(lambda t: resample(t, 7), fullgraph=True, backend="aot_eager")
    for length in (4, 5, 6):
        table = normal(length, 3)
        assert_array_equal(program(torch.from_numpy(table)), resample(table, 7))


@pytest.mark.usefixtures("wide")
def test_the_same_size_is_the_same_table(library: Any) -> None:
    values = np.array([[-0.0, np.nan], [np.inf, 5e-324], [-1.0, 2.0], [1.0, 3.0]])
    table = library.array(values, "float64")
    for method in ("linear", "cubic"):
        for corners in (False, True):
            words = {"method": method, "align_corners": corners}
            assert resample(table, 4, **words) is table
            assert resample(table, (2, 2), grid=(2, 2), **words) is table
            assert resample(table, (1, 3), grid=(1, 3), prefix=1, **words) is table


def test_an_axis_that_keeps_its_size_keeps_its_columns_apart() -> None:
    table = normal(4 * 6, 2)
    table[3::6] = np.nan  # one column of cells
    got = resample(table, (9, 6), grid=(4, 6), method="cubic").reshape(9, 6, 2)
    assert np.isfinite(np.delete(got, 3, axis=1)).all()


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_aligned_corners_stay_to_the_bit(method: str) -> None:
    table = normal(5, 8)
    got = resample(table, 12, method=method, align_corners=True)
    assert_array_equal(got[[0, -1]], table[[0, -1]])


def test_a_linear_ramp_is_resampled_to_a_ramp() -> None:
    ramp = np.arange(8.0)[:, None]
    want = np.clip(np.arange(16) / 2 - 0.25, 0, 7)
    assert_array_equal(resample(ramp, 16)[:, 0], want)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_weights_are_rounded_once(numerator: int, denominator: int) -> None:
    exact = Fraction(numerator, denominator)
    single = np.float32(_ratio(numerator, denominator, "float32"))
    assert single == nearest(exact, 24)
    assert _ratio(numerator, denominator, "float64") == nearest(exact)


def test_a_weight_next_to_a_tie_is_rounded_once() -> None:
    # 1 + 2^-24 + 2^-60 is above the tie of two float32; the float64 next to it is the tie.
    numerator, denominator = 2**60 + 2**36 + 1, 2**60
    assert np.float32(numerator / denominator) == 1
    assert np.float32(_ratio(numerator, denominator, "float32")) == 1 + 2.0**-23


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_gradients_of_resampling_are_those_of_torch(method: str) -> None:
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    mode = {"linear": "bilinear", "cubic": "bicubic"}[method]
    values, g = normal(1 + 4 * 6, 8, dtype="float64"), normal(1 + 5 * 3, 8, dtype="float64", seed=1)

    def change(table: Any) -> Any:
        return resample(table, (5, 3), grid=(4, 6), prefix=1, method=method)

    table = torch.from_numpy(values).requires_grad_()
    (got,) = torch.autograd.grad(change(table), table, torch.from_numpy(g))
    grid = table[1:].T.reshape(1, 8, 4, 6)
    resized = torch.nn.functional.interpolate(grid, size=(5, 3), mode=mode)
    whole = torch.cat([table[:1], resized.reshape(8, 15).T])
    (want,) = torch.autograd.grad(whole, table, torch.from_numpy(g))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
    with jax.enable_x64(True):
        pulled = jax.jit(lambda t, g: jax.vjp(change, t)[1](g)[0])(values, g)
        np.testing.assert_allclose(pulled, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"table": [[1.0]]}, TypeError, "table", "got builtins.list, expected an array"),
        ({"table": np.ones((1, 13, 2))}, ValueError, "table", "got shape (1, 13, 2), expected (l"),
        ({"table": np.ones((13, 2), int)}, TypeError, "table", "got dtype int64, expected one"),
        ({"size": 0}, ValueError, "size", "got 0, expected a positive number"),
        ({"size": 2.0}, TypeError, "size", "got 2.0, expected a whole number"),
        ({"size": (2, 3)}, ValueError, "grid", "got None beside size = (2, 3), expected (height"),
        ({"grid": (3, 4)}, TypeError, "size", "got 5, expected (height, width)"),
        ({"grid": 12, "size": (2, 3)}, TypeError, "grid", "got 12, expected (height, width)"),
        ({"grid": (3, 4, 1), "size": (2, 3)}, ValueError, "grid", "got (3, 4, 1), expected (he"),
        ({"grid": (3, 4), "size": (2,)}, ValueError, "size", "got (2,), expected (height, width)"),
        ({"grid": (3, 4), "size": (2, 0)}, ValueError, "size[1]", "got 0, expected a positive"),
        ({"grid": (0, 4), "size": (2, 3)}, ValueError, "grid[0]", "got 0, expected a positive"),
        (
            {"grid": (3, 4), "size": (2, 3)},
            ValueError,
            "grid",
            "got (3, 4), 12 cells, expected 13 as table of shape (13, 2) has behind 0 rows",
        ),
        ({"prefix": 13}, ValueError, "prefix", "got 13, expected 0 to 12, as table has a length"),
        ({"prefix": -1}, ValueError, "prefix", "got -1, expected 0 or more"),
        ({"prefix": 1.0}, TypeError, "prefix", "got 1.0, expected a whole number"),
        ({"method": "bicubic"}, ValueError, "method", "got 'bicubic', expected 'linear' or"),
        ({"align_corners": 1}, TypeError, "align_corners", "got 1, expected True or False"),
    ],
)
def test_what_cannot_be_resampled_is_refused(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        resample(**{"table": np.ones((13, 2)), "size": 5, **wrong})


# -- integer and binary --------------------------------------------------------------------------


@pytest.mark.usefixtures("wide")
def test_integer_and_binary_positions_come_in_every_library(library: Any) -> None:
    positions = [[0, 5], [2, 7]]
    for kind in library.dtypes:
        like = library.array(normal(1), kind)
        compute = "float64" if kind == "float64" else "float32"
        for got, want in (
            (integer(positions, like=like), np.array(positions)[..., None]),
            (
                integer(library.array(positions), length=8, like=like),
                np.array(positions)[..., None] / 8,
            ),
            (
                binary(positions, 3, like=like),
                [[[0, 0, 0], [1, 0, 1]], [[0, 1, 0], [1, 1, 1]]],
            ),
        ):
            assert type(got) is type(like)
            assert host(got).dtype == compute
            assert_array_equal(host(got), want)


@given(st.integers(-(2**53), 2**53), st.integers(1, 2**53))
def test_a_position_by_its_length_is_rounded_once(position: int, length: int) -> None:
    exact = Fraction(position, length)
    assert integer(position, length=length)[0] == nearest(exact, 24)
    assert integer(position, length=length, dtype="float64")[0] == nearest(exact)


@given(st.integers(1, 53), st.data())
def test_binary_digits_add_up_to_the_position(bits: int, data: Any) -> None:
    positions = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=4))
    digits = binary(positions, bits, dtype="float64")
    assert digits.shape == (len(positions), bits)
    assert np.isin(digits, [0, 1]).all()
    assert_array_equal(digits @ 2.0 ** np.arange(bits), positions)


def test_a_whole_position_is_kept_exactly() -> None:
    assert integer([2**24, -(2**24)]).tolist() == [[2.0**24], [-(2.0**24)]]
    assert integer(2**53 - 1, dtype="float64").tolist() == [2.0**53 - 1]


def test_what_is_returned_may_be_written_to() -> None:
    for got in (integer([1]), binary([1], 2), sinusoidal([1], 2)):
        got += 1


def test_a_dtype_that_a_traced_library_lacks_is_refused(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    with refused(TypeError, "dtype", "float64 is not available in jax"):
        jax.jit(lambda x: integer([1], like=x, dtype="float64"))(np.ones(1, np.float32))


@pytest.mark.parametrize(
    ("call", "error", "name", "words"),
    [
        (lambda: integer([0.0]), TypeError, "positions", "got dtype float64, expected integers"),
        (lambda: integer([0.5], length=2), TypeError, "positions", "got dtype float64, expected"),
        (lambda: integer([1, 2**24 + 1]), ValueError, "positions", "got 16777217 at index 1, exp"),
        (lambda: integer([2**53 + 1]), ValueError, "positions", "expected them within ±2^53"),
        (lambda: integer([1], length=0), ValueError, "length", "got 0, expected a positive"),
        (lambda: integer([1], length=1.5), TypeError, "length", "got 1.5, expected a whole"),
        (lambda: integer([1], length=2**60), ValueError, "length", "expected at most 2^53"),
        (lambda: integer([1], dtype="float16"), ValueError, "dtype", "got 'float16', expected f"),
        (lambda: integer([1], like=3), TypeError, "like", "got builtins.int, expected an array"),
        (lambda: binary([1.0], 2), TypeError, "positions", "got dtype float64, expected integers"),
        (lambda: binary([3, 4], 2), ValueError, "positions", "got 4 at index 1, expected 0 to 3"),
        (lambda: binary([[-1]], 2), ValueError, "positions", "got -1 at index (0, 0), expected 0"),
        (lambda: binary([1], 0), ValueError, "bits", "got 0, expected a positive number"),
        (lambda: binary([1], 54), ValueError, "bits", "got 54, expected at most 53"),
        (lambda: binary([1], 2.0), TypeError, "bits", "got 2.0, expected a whole number"),
        (lambda: binary([1], 2, dtype="int32"), ValueError, "dtype", "got 'int32', expected flo"),
    ],
)
def test_what_is_no_integer_or_binary_position_is_refused(
    call: Callable[[], Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        call()


def test_positions_that_only_a_program_knows_are_refused(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    like = jax.numpy.zeros(1)
    for call in (lambda p: integer(p, like=like), lambda p: binary(p, 3, like=like)):
        with refused(TypeError, "positions", "got a traced array of jax"):
            jax.jit(call)(np.arange(3))

"""Encodings by distance: Shaw's against the naive form, T5's and ALiBi's against their authors'."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest
from conftest import LIBRARIES
from naive_attention import UNIT, Exact, attention, normal
from numpy.testing import assert_array_equal

import rotary
from rotary import backends, softmax_attention
from rotary.conformance import libraries
from rotary.relative import alibi_bias, alibi_slopes, shaw, t5_bias, t5_buckets

DIM, WIDTH = 8, 5
# Programs take seconds each: float32 alone for those.
WAYS = [
    ("torch", "eager", "float64"),
    ("torch", "compiled", "float32"),
    ("jax", "compiled", "float32"),
    ("jax", "compiled, x64", "float64"),
    ("array-api-strict", "eager", "float64"),
    ("array-api-strict", "eager, without x64", "float32"),
    ("mlx", "eager", "float32"),
    ("mlx", "compiled", "float32"),
    ("dask", "lazy", "float64"),
    ("ndonnx", "exported", "float32"),
]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Let JAX compute in float64, wherever a test does not say otherwise."""
    try:
        from jax import enable_x64
    except ImportError:
        yield
        return
    with enable_x64(True):
        yield


def load(name: str, way: str) -> Any:
    """Return a library and a way to run it."""
    try:
        library = libraries.load(name)
    except libraries.NotInstalledError as reason:
        pytest.skip(str(reason))
    (found,) = (w for w in library.ways if w.name == way)
    if found.unavailable:
        pytest.skip(found.unavailable)
    return library, found.run


def values(x: Any) -> np.ndarray:
    """Return x as float64 on the host: NumPy takes no bfloat16 from torch."""
    x = x.detach() if hasattr(x, "detach") else x
    wide = backends.owner_of(x).widen(x, "float32") if "float16" in str(x.dtype) else x
    return np.asarray(wide).astype(np.float64)


# -- Shaw ----------------------------------------------------------------------------------------


def operands(queries: int = 5, keys: int = 7, farthest: int = 2) -> tuple[np.ndarray, ...]:
    return (
        normal(2, 4, queries, DIM, seed=1),
        normal(2, 2, keys, DIM, seed=2),
        normal(2, 2, keys, WIDTH, seed=3),
        normal(2 * farthest + 1, DIM, seed=4),
        normal(2 * farthest + 1, WIDTH, seed=5),
    )


def attend(library: Any, *arrays: Any, **keywords: Any) -> np.ndarray:
    """Return Shaw's attention in a library, its arrays made here; in JAX as one program."""
    made = {n: library.array(x) if hasattr(x, "dtype") else x for n, x in keywords.items()}

    def f(*arrays: Any) -> Any:
        return shaw(*arrays, **made)

    if library.name == "jax":
        import jax

        f = jax.jit(f)
    return values(f(*map(library.array, arrays)))


def naive(arrays: Any, dtype: str, **keywords: Any) -> Exact:
    """Evaluate Shaw's attention with a (T, T, D) array."""
    q, k, v, key_table, value_table = arrays
    tables = {"key_table": key_table, "value_table": value_table}
    return attention(q, k, v, dtype, **tables, **keywords)


@pytest.mark.parametrize("farthest", [0, 1, 3, 6, 7, 40])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (1, 7), (4, 7), (30, 31)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shaws_sums_are_those_of_the_naive_form(
    farthest: int, queries: int, keys: int, causal: bool, dtype: str
) -> None:
    arrays = [x.astype(dtype) for x in operands(queries, keys, farthest)]
    got = shaw(*arrays, causal=causal)
    assert got.dtype == dtype
    naive(arrays, dtype, causal=causal).holds(got)
    arrays[4] = None
    naive(arrays, dtype, causal=causal).holds(shaw(*arrays, causal=causal))


@pytest.mark.parametrize(("name", "way", "dtype"), WAYS)
def test_shaw_keeps_the_bound_in_every_library(name: str, way: str, dtype: str) -> None:
    library, run = load(name, way)
    arrays, mask = [x.astype(dtype) for x in operands()], normal(2, 1, 5, 7) > -0.5
    q, *rest = (library.from_host(x) for x in (*arrays, mask.astype(np.float32)))

    def f(q: Any, k: Any, v: Any, key_table: Any, value_table: Any, mask: Any) -> Any:
        return shaw(q, k, v, key_table, value_table, causal=True, mask=mask > 0.5, scale=0.3)

    got = library.to_host(run(f, q, q, *rest))
    naive(arrays, dtype, causal=True, mask=mask, scale=0.3).holds(got)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tables_for_16_bits_may_be_of_either_dtype(dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = [x.astype(kind) for x in operands()]
    got = shaw(*arrays)
    assert got.dtype == kind
    naive(arrays, dtype).holds(got)
    wide = shaw(*arrays[:3], *(table.astype(np.float32) for table in arrays[3:]))
    assert_array_equal(wide, got)


def test_shaw_with_tables_of_zeros_is_softmax_attention(library: Any) -> None:
    q, k, v, *tables = operands()
    got = attend(library, q, k, v, *map(np.zeros_like, tables))
    attention(q, k, v, "float64").holds(got)


def test_shaw_depends_on_the_distance_and_no_position() -> None:
    q, k, _, key_table, _ = operands(9, 9)
    # One query and one key everywhere, and values that show the weights.
    q, k = (np.repeat(x[:1, :2, :1], 9, 2) for x in (q, k))
    weights = shaw(q, k, np.broadcast_to(np.eye(9), (1, 2, 9, 9)), key_table, None)
    around = np.array([weights[0, :, i, i - 2 : i + 3] for i in range(2, 7)])
    ratios = around / around[..., 2:3]  # how many are farther away differs, too
    np.testing.assert_allclose(ratios, ratios[:1].repeat(5, 0), rtol=1e-14)


def test_shaw_holds_no_vector_a_pair() -> None:
    length, dim = 256, 64
    q, k, v = (normal(1, length, dim, seed=i, dtype=np.float32) for i in range(3))
    tables = [normal(33, dim, seed=i, dtype=np.float32) for i in range(2)]
    tracemalloc.start()
    shaw(q, k, v, *tables, causal=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    scores = 4 * length**2
    assert peak < 12 * scores < scores * dim / 4


def pull_back(library: Any, f: Any, direction: Any, *arrays: Any) -> tuple[np.ndarray, ...]:
    """Return the gradients of ⟨f(arrays), direction⟩; JAX and torch have them."""
    direction = library.array(direction)
    if library.name == "torch":
        from torch.autograd import grad

        leaves = [library.array(x).requires_grad_() for x in arrays]
        return tuple(g.numpy() for g in grad(f(*leaves), leaves, direction))
    import jax

    back = jax.jit(lambda direction, *x: jax.vjp(f, *x)[1](direction))
    return tuple(map(np.asarray, back(direction, *map(library.array, arrays))))


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize(("queries", "keys", "farthest"), [(5, 7, 2), (4, 4, 9)])
def test_gradients_of_shaw_are_those_of_the_naive_form(
    name: str, queries: int, keys: int, farthest: int
) -> None:
    torch = pytest.importorskip("torch")
    arrays = operands(queries, keys, farthest)
    direction = normal(2, 4, queries, WIDTH, seed=6)
    leaves = [torch.from_numpy(x).requires_grad_() for x in arrays]
    q, k, v, key_table, value_table = leaves
    k, v = (x[:, [0, 0, 1, 1], None] for x in (k, v))
    distance = np.arange(keys) - (np.arange(queries)[:, None] + keys - queries)
    rows = torch.from_numpy(np.clip(distance, -farthest, farthest) + farthest)
    scores = (q[..., None, :] * (k + key_table[rows])).sum(-1) * DIM**-0.5
    scores = scores.masked_fill(torch.from_numpy(distance > 0), -math.inf)
    output = (torch.softmax(scores, -1)[..., None] * (v + value_table[rows])).sum(-2)
    want = torch.autograd.grad(output, leaves, torch.from_numpy(direction))
    got = pull_back(LIBRARIES[name](), lambda *x: shaw(*x, causal=True), direction, *arrays)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * b.abs().max())


@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan])
def test_what_shaw_hides_changes_no_bit(library: Any, garbage: float) -> None:
    q, k, v, key_table, value_table = operands(6, 6, 2)
    mask = np.ones((6, 6), bool)
    mask[:, 1] = False
    hiding = {"causal": True, "mask": mask}
    want = attend(library, q, k, v, key_table, value_table, **hiding)
    k[:, :, 1], v[:, :, 1] = garbage, garbage
    # Later keys are at distances 1 and 2 or more.
    key_table[3:], value_table[3:] = garbage, -garbage
    assert_array_equal(attend(library, q, k, v, key_table, value_table, **hiding), want)
    value_table[0, 2] = garbage  # two places or more before
    got = attend(library, q, k, v, key_table, value_table, **hiding)
    assert_array_equal(got[..., [0, 1, 3, 4]], want[..., [0, 1, 3, 4]])
    assert_array_equal(got[:, :, :2, 2], want[:, :, :2, 2])
    assert not np.any(np.isfinite(got[:, :, 2:, 2]))


@pytest.mark.parametrize("keys", [0, 7])
def test_shaw_of_nothing_is_nothing(library: Any, keys: int) -> None:
    q, k, v, *tables = operands()
    got = attend(library, q[:, :, :0], k[:, :, :keys], v[:, :, :keys], *tables, causal=True)
    assert got.shape == (2, 4, 0, WIDTH)


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"key_table": (4, 8)}, ValueError, "key_table", "got shape (4, 8), expected (2c + 1, 8)"),
        ({"key_table": (0, 8)}, ValueError, "key_table", "an odd number of rows"),
        ({"key_table": (5, 7)}, ValueError, "key_table", "got shape (5, 7), expected (2c + 1, 8)"),
        ({"key_table": (5,)}, ValueError, "key_table", "got shape (5,), expected (2c + 1, 8)"),
        ({"key_table": (4, 5, 8)}, ValueError, "key_table", "got shape (4, 5, 8), expected (2c"),
        ({"value_table": (5, 8)}, ValueError, "value_table", "got shape (5, 8), expected (2c + 1,"),
        ({"value_table": (6, 5)}, ValueError, "value_table", "got shape (6, 5), expected (2c + 1,"),
        ({"value_table": (7, 5)}, ValueError, "value_table", "got 7 rows, expected key_table's 5"),
        ({"key_table": ("float64", (5, 8))}, TypeError, "key_table", "got dtype float64, expected"),
        ({"value_table": ("int32", (5, 5))}, TypeError, "value_table", "got dtype int32, expected"),
        ({"key_table": None}, TypeError, "key_table", "got builtins.NoneType, expected an array"),
        ({"q": (2, 4, 8, 8)}, ValueError, "k", "got 7 keys for 8 queries, expected at least as m"),
        ({"k": (2, 3, 7, 8)}, ValueError, "k", "3 heads, expected a divisor of q's 4"),
        ({"mask": (5, 7)}, TypeError, "mask", "got dtype float32, expected bool"),
        ({"scale": -1.0}, ValueError, "scale", "got -1.0, expected a positive, finite number"),
    ],
)
def test_shaw_refuses_what_does_not_fit(
    library: Any,
    wrong: dict[str, Any],
    error: type[Exception],
    name: str,
    words: str,
    refused: Any,
) -> None:
    def made(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        kind, shape = value if isinstance(value[0], str) else ("float32", value)
        return library.array(np.ones(shape, kind))

    right = {"q": (2, 4, 5, 8), "k": (2, 2, 7, 8), "v": (2, 2, 7, 5)}
    right |= {"key_table": (5, 8), "value_table": (5, 5)}
    arguments = {key: made(value) for key, value in {**right, **wrong}.items()}
    with refused(error, name, words):
        shaw(**arguments)


def test_shaws_tables_are_of_one_library(library: Any, other: Any, refused: Any) -> None:
    arrays = [library.array(x) for x in operands()]
    words = f"got an array of {other.name}, expected q's library {library.name}"
    for place, name in ((3, "key_table"), (4, "value_table")):
        given = [*arrays[:place], other.array(operands()[place]), *arrays[place + 1 :]]
        with refused(TypeError, name, words):
            shaw(*given)


# -- T5 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"),
    [(32, 128), (32, 256), (64, 128), (16, 64), (8, 20), (320, 800), (4, 128), (32, 8192)],
)
def test_buckets_are_those_of_transformers(
    num_buckets: int, max_distance: int, bidirectional: bool
) -> None:
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    settings = {
        "num_buckets": num_buckets,
        "max_distance": max_distance,
        "bidirectional": bidirectional,
    }
    distances = np.arange(-10_000, 10_001)
    want = t5.T5Attention._relative_position_bucket(torch.from_numpy(distances), **settings)
    assert_array_equal(t5_buckets(distances, **settings), want)


def test_transformers_takes_one_distance_for_the_next_bucket() -> None:
    # Of all num_buckets 8, 16, 32 and 64 with all max_distance to 3000, eight settings have one
    # distance each whose float32 logarithm comes out as the whole number above it.
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    settings = {"num_buckets": 32, "max_distance": 939, "bidirectional": False}
    distances = np.arange(-10_000, 10_001)
    theirs = t5.T5Attention._relative_position_bucket(torch.from_numpy(distances), **settings)
    ours = t5_buckets(distances, **settings)
    (where,) = np.nonzero(ours != theirs.numpy())
    assert distances[where].tolist() == [-728]
    assert (int(ours[where[0]]), int(theirs[where[0]])) == (30, 31)
    with mpmath.workdps(50):
        bucket = 16 + mpmath.log(mpmath.mpf(728) / 16) / mpmath.log(mpmath.mpf(939) / 16) * 16
    assert 30.99999 < bucket < 31


@pytest.mark.parametrize("num_buckets", [2, 3, 5, 32, 33, 100])
@pytest.mark.parametrize("max_distance", [60, 128, 1000, 10**6])
def test_each_bucket_begins_where_the_formula_says(num_buckets: int, max_distance: int) -> None:
    exact = num_buckets // 2
    firsts = rotary.relative._first_distances(num_buckets, max_distance, False)
    assert len(firsts) == num_buckets - 1

    def bucket(n: int) -> int:
        if n < exact:
            return n
        with mpmath.workdps(60):
            slope = mpmath.log(mpmath.mpf(n) / exact) / mpmath.log(mpmath.mpf(max_distance) / exact)
            # Exact powers give whole numbers, but for the last digits.
            reached = int(mpmath.floor(slope * (num_buckets - exact) + mpmath.mpf(10) ** -50))
        return min(exact + reached, num_buckets - 1)

    for number, first in enumerate(firsts, 1):
        assert bucket(first) >= number
        assert bucket(first - 1) < number


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64"])
def test_buckets_are_the_same_in_every_library(library: Any, kind: str) -> None:
    distances = np.array([[-128, -127, -91, -90, -8, -1], [0, 1, 8, 11, 12, 127]], kind)
    for bidirectional in (True, False):
        want = t5_buckets(distances.tolist(), bidirectional=bidirectional)
        got = t5_buckets(library.array(distances), bidirectional=bidirectional)
        assert type(got) is type(library.array(distances))
        assert str(got.dtype).endswith("int64" if kind == "int64" else "int32")
        assert_array_equal(np.asarray(got), want)
    assert t5_buckets([]).shape == (0,)
    assert int(t5_buckets(-1)) == 1


@pytest.mark.parametrize(("name", "way", "dtype"), WAYS)
def test_t5_bias_is_bit_identical(name: str, way: str, dtype: str) -> None:
    library, run = load(name, way)
    table = normal(8, 3).astype(dtype)
    table[5, 1] = math.inf  # selected, not multiplied
    given = library.from_host(table)
    settings = {"offset": 2, "max_distance": 9}
    got = library.to_host(run(lambda table: t5_bias(6, 20, table, **settings), given, given))
    distances = np.arange(20) - (np.arange(6)[:, None] + 2)
    buckets = t5_buckets(distances, num_buckets=8, max_distance=9)
    assert got.dtype == dtype
    assert_array_equal(got, np.moveaxis(table[buckets], -1, 0))


@pytest.mark.parametrize("decoder", [False, True])
def test_t5_bias_is_that_of_transformers(decoder: bool) -> None:
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    config = t5.T5Config(num_heads=3, d_model=12, d_kv=4, is_decoder=decoder)
    theirs = t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    table = theirs.relative_attention_bias.weight
    for queries, keys, past in ((40, 40, 0), (1, 300, 299), (7, 200, 193)):
        want = theirs.compute_bias(queries, keys, past_seen_tokens=past)
        got = t5_bias(queries, keys, table, bidirectional=not decoder)
        assert torch.equal(got[None], want)
        assert torch.equal(
            t5_bias(queries, keys, table, offset=past, bidirectional=not decoder), got
        )


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_gradient_reaches_the_buckets_of_the_table(name: str) -> None:
    direction = np.random.default_rng(0).integers(-9, 10, (3, 7, 12)).astype(float)
    distances = np.arange(12) - (np.arange(7)[:, None] + 5)
    buckets = t5_buckets(distances, num_buckets=8, max_distance=9)
    want = np.zeros((8, 3))
    np.add.at(want, buckets, np.moveaxis(direction, 0, -1))  # sums of small whole numbers
    library = LIBRARIES[name]()
    (got,) = pull_back(library, lambda t: t5_bias(7, 12, t, max_distance=9), direction, want)
    assert_array_equal(got, want)


def test_an_offset_may_be_known_to_the_program_alone() -> None:
    jax = pytest.importorskip("jax")
    table = normal(32, 2).astype(np.float32)
    q = np.zeros(1, np.float32)
    step = jax.jit(lambda offset: (t5_bias(1, 300, table_, offset=offset), alibi(offset)))
    table_ = jax.numpy.asarray(table)

    def alibi(offset: Any) -> Any:
        return alibi_bias(1, 300, 6, offset=offset, like=table_, causal=False)

    for offset in (0, 7, 299):
        by_bucket, by_slope = step(np.int32(offset))
        assert_array_equal(by_bucket, t5_bias(1, 300, table, offset=offset))
        assert_array_equal(by_slope, alibi_bias(1, 300, 6, offset=offset, like=q, causal=False))
    assert step._cache_size() == 1


def test_a_program_of_torch_serves_all_offsets() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    def step(table: Any, offset: int) -> Any:
        return t5_bias(1, 64, table, offset=offset), alibi_bias(1, 64, 6, offset=offset, like=table)

    table = torch.from_numpy(normal(32, 2).astype(np.float32))
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for offset in range(3, 64, 10):
        for got, want in zip(compiled(table, offset), step(table, offset), strict=True):
            assert torch.equal(got, want)
    # The first offset is taken for a constant, all others for a variable.
    assert len(graphs) <= 2


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"num_buckets": 31}, ValueError, "num_buckets", "got 31, expected an even number of 4 or"),
        ({"num_buckets": 2}, ValueError, "num_buckets", "got 2, expected an even number of 4 or m"),
        (
            {"num_buckets": 1, "bidirectional": False},
            ValueError,
            "num_buckets",
            "got 1, expected 2",
        ),
        ({"num_buckets": 0}, ValueError, "num_buckets", "got 0, expected a positive number"),
        ({"num_buckets": 32.0}, TypeError, "num_buckets", "got 32.0, expected a whole number"),
        ({"max_distance": 8}, ValueError, "max_distance", "got 8, expected more than the 8 distan"),
        ({"max_distance": 2**31}, ValueError, "max_distance", "and less than 2^31"),
        ({"max_distance": "128"}, TypeError, "max_distance", "got '128', expected a whole number"),
        ({"bidirectional": 1}, TypeError, "bidirectional", "got 1, expected True or False"),
        ({"distances": [0.5]}, TypeError, "distances", "got dtype float64, expected signed integ"),
        ({"distances": [True]}, TypeError, "distances", "got dtype bool, expected signed integers"),
        ({"distances": np.uint8([1])}, TypeError, "distances", "got dtype uint8, expected signed"),
        ({"distances": [2**70]}, TypeError, "distances", "got dtype object, expected signed"),
        ({"distances": "abc"}, TypeError, "distances", "expected signed integers"),
        ({"distances": [[1], [2, 3]]}, TypeError, "distances", "got list, expected"),
    ],
)
def test_buckets_refuse_what_means_nothing(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        t5_buckets(**{"distances": [1], **wrong})


# -- ALiBi ---------------------------------------------------------------------------------------


def test_slopes_are_the_published_ones() -> None:
    eight = [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(8, dtype="float64").tolist() == eight
    # Press et al., section 3: 1/2^1 … 1/2^8 for 8 heads, 1/2^0.5, 1/2^1 … 1/2^8 for 16.
    assert alibi_slopes(16).tolist() == [np.float32(2.0 ** (-h / 2)) for h in range(1, 17)]
    twelve = [*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(alibi_slopes(12, dtype="float64"), twelve, rtol=2.0**-52)
    assert_array_equal(alibi_slopes(12)[:8], eight)


def exponents(num_heads: int) -> list[mpmath.mpf]:
    """Return the exponents of the authors' get_slopes, in rational numbers."""
    if num_heads & (num_heads - 1) == 0:
        return [mpmath.mpf(8 * h) / num_heads for h in range(1, num_heads + 1)]
    below = 2 ** math.floor(math.log2(num_heads))
    return exponents(below) + exponents(2 * below)[0::2][: num_heads - below]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slopes_are_the_nearest_numbers(dtype: str) -> None:
    bits = 24 if dtype == "float32" else 53
    for num_heads in (*range(1, 41), 71, 112, 128, 1000):
        got = alibi_slopes(num_heads, dtype=dtype)
        assert got.dtype == dtype
        with mpmath.workprec(200):
            exact = [mpmath.power(2, -e) for e in exponents(num_heads)]
        with mpmath.workprec(bits):
            assert got.tolist() == [float(+x) for x in exact]


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8, 12, 20, 32, 40, 112])
def test_slopes_are_those_of_bloom_and_mpt(num_heads: int) -> None:
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt")
    ours = alibi_slopes(num_heads)
    # Bloom takes powers of a rounded number: up to the 128th, half an ulp each.
    theirs = bloom.build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    np.testing.assert_allclose(theirs, ours, rtol=2.0**-24 * (num_heads + 2))
    theirs = -mpt.build_mpt_alibi_tensor(num_heads, 2)[:, 0, 0]
    np.testing.assert_allclose(theirs, ours, rtol=2.0**-22)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alibi_is_slope_times_distance_rounded_once(causal: bool, dtype: str) -> None:
    bits = {"float32": 24, "float64": 53}[dtype]
    slopes = alibi_slopes(7, dtype=dtype)
    for queries, keys, offset in (
        (3, 5, None),
        (4, 4, 2**24 - 9),
        (2, 9, -100),
        (0, 3, 1),
        (3, 0, 0),
    ):
        got = alibi_bias(queries, keys, 7, offset=offset, causal=causal, dtype=dtype)
        assert got.dtype == dtype
        assert got.shape == (7, queries, keys)
        first = keys - queries if offset is None else offset
        for i, j in np.ndindex(queries, keys):
            distance = j - (first + i)
            distance = distance if causal else -abs(distance)
            with mpmath.workprec(bits):
                want = [float(mpmath.mpf(s) * distance) for s in slopes.tolist()]
            assert got[:, i, j].tolist() == want


@pytest.mark.parametrize(("name", "way", "dtype"), WAYS)
def test_alibi_is_bit_identical(name: str, way: str, dtype: str) -> None:
    library, run = load(name, way)
    like = library.from_host(np.ones((12, 1, 1), dtype))

    def f(like: Any) -> Any:
        # A sum, which a compiler would contract with the product.
        bias = alibi_bias(5, 9, 12, like=like, causal=False, offset=70_001)
        return like * 0.7 + bias

    want = np.ones((12, 1, 1), dtype) * np.array(0.7, dtype)
    want = want + alibi_bias(5, 9, 12, dtype=dtype, causal=False, offset=70_001)
    assert_array_equal(library.to_host(run(f, like, like)), want)


def test_attention_with_alibi_is_that_of_bloom() -> None:
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    q, k, v = (normal(1, 12, 10, 8, seed=i) for i in range(3))
    theirs = bloom.build_alibi_tensor(torch.ones(1, 10), 12, torch.float64).numpy()
    bias = alibi_bias(10, 10, 12, dtype="float64")
    # Slope times the key's position: a row's softmax does not see what its scores share.
    want = attention(q, k, v, "float64", bias=theirs, causal=True).output
    got = softmax_attention(q, k, v, bias=bias, causal=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # bloom's slopes are float32


def test_alibi_comes_like_an_array(library: Any) -> None:
    for dtype in library.dtypes:
        like = library.array(np.zeros(1), dtype)
        for got in (alibi_slopes(6, like=like), alibi_bias(2, 3, 6, like=like)):
            assert type(got) is type(like)
            assert str(got.dtype).endswith("float64" if dtype == "float64" else "float32")
        assert str(alibi_slopes(6, like=like, dtype="float32").dtype).endswith("float32")
    assert alibi_slopes(6).flags.writeable
    assert alibi_bias(2, 3, 6).flags.writeable


# -- what all of them refuse ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"query_length": -1}, ValueError, "query_length", "got -1, expected 0 or more"),
        ({"key_length": -3}, ValueError, "key_length", "got -3, expected 0 or more"),
        ({"query_length": 2.0}, TypeError, "query_length", "got 2.0, expected a whole number"),
        ({"key_length": None}, TypeError, "key_length", "got None, expected a whole number"),
        ({"key_length": True}, TypeError, "key_length", "got True, expected a whole number"),
        ({"query_length": 6}, ValueError, "offset", "got None with 6 queries and 5 keys"),
        ({"offset": 0.5}, TypeError, "offset", "got 0.5, expected a whole number"),
        ({"offset": "3"}, TypeError, "offset", "got '3', expected a whole number"),
        ({"offset": True}, TypeError, "offset", "got True, expected a whole number"),
        ({"offset": np.float32(3)}, TypeError, "offset", "expected a whole number"),
        (
            {"offset": np.zeros(2, int)},
            TypeError,
            "offset",
            "got int64 of shape (2,), expected on",
        ),
        ({"offset": np.array(2.0)}, TypeError, "offset", "got float64 of shape (), expected one"),
        ({"offset": 2**31}, ValueError, "offset", "expected distances of less than 2^31"),
    ],
)
def test_lengths_and_offsets_are_whole(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    arguments = {"query_length": 4, "key_length": 5, **wrong}
    with refused(error, name, words):
        t5_bias(table=np.zeros((32, 2)), **arguments)
    with refused(error, name, words):
        alibi_bias(num_heads=2, **arguments)


@pytest.mark.parametrize(
    ("num_heads", "error", "words"),
    [
        (0, ValueError, "got 0, expected a positive number"),
        (-8, ValueError, "got -8, expected a positive number"),
        (8.0, TypeError, "got 8.0, expected a whole number"),
        (True, TypeError, "got True, expected a whole number"),
        (None, TypeError, "got None, expected a whole number"),
    ],
)
def test_a_number_of_heads_is_a_positive_whole_number(
    num_heads: Any, error: type[Exception], words: str, refused: Any
) -> None:
    with refused(error, "num_heads", words):
        alibi_slopes(num_heads)
    with refused(error, "num_heads", words):
        alibi_bias(2, 2, num_heads)


def test_dtypes_and_tables_are_what_they_should_be(library: Any, refused: Any) -> None:
    like = library.array(np.zeros(3, np.float32))
    for dtype in ("float16", "bfloat16", "int32", float):
        with refused(ValueError, "dtype", f"got {dtype!r}, expected float32 or float64"):
            alibi_slopes(8, like=like, dtype=dtype)
    with refused(TypeError, "like", "got builtins.list, expected an array"):
        alibi_bias(1, 1, 1, like=[1.0])
    with refused(TypeError, "causal", "got 'yes', expected True or False"):
        alibi_bias(1, 1, 1, like=like, causal="yes")
    with refused(TypeError, "table", "got dtype int32, expected one of float16"):
        t5_bias(1, 1, library.array(np.zeros((32, 2), np.int32)))
    for shape in ((32,), (32, 2, 1), (32, 0), (0, 2)):
        with refused(ValueError, "table", f"got shape {shape}, expected (num_buckets, heads)"):
            t5_bias(1, 1, library.array(np.zeros(shape, np.float32)))
    with refused(ValueError, "num_buckets", "got 31, expected an even number"):
        t5_bias(1, 1, library.array(np.zeros((31, 2), np.float32)))


# -- RoPE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_under_rope_depend_on_the_difference_alone(layout: str, dtype: str) -> None:
    """The same bound at every position: 17·u times the sum of the pairs' |q|·|k|.

    A table value is within u of its number, relative to at most 1; so is each product, and the sum
    of two: a rotated feature is off by 3u·|pair| (|x1·cos| + |x2·sin| ≤ |pair|), a pair's share of
    the score by 2·√2·3u·|q|·|k|, and the difference of two scores by twice that, 16.98u.
    """
    dim = 64
    q, k = (normal(50, dim, seed=i).astype(dtype) for i in (1, 2))
    rope = rotary.RotaryEmbedding(dim, layout=layout)
    first, second = rotary.conformance.oracle.pair_indices(dim, dim, layout, "leading")
    pairs = [np.hypot(*(x.astype(float)[:, i] for i in (first, second))) for x in (q, k)]
    bound = 17 * UNIT[dtype] * np.sum(pairs[0] * pairs[1], -1)

    def scores(position: int, distance: int, tables: Any = None) -> np.ndarray:
        turned = [
            rope(x, positions=np.full(50, p)) if tables is None else tables(x, p)
            for x, p in ((q, position), (k, position - distance))
        ]
        # Exact sums of exact products: what is left is the rotations' error.
        return np.array(
            [
                float(sum(mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(*rows, strict=True)))
                for rows in zip(*(x.tolist() for x in turned), strict=True)
            ]
        )

    with mpmath.workprec(200):
        worst = 0.0
        for distance in (0, 1, 100, 5000):
            want = scores(0, distance)
            for position in (1, 1000, 131_071, 10**6):
                off = np.abs(scores(position, distance) - want)
                worst = max(worst, float((off / bound).max()))
        assert worst <= 1
        if dtype == "float32":

            def as_trained(x: Any, position: int) -> Any:
                tables = rope.tables([position] * 50, precision="float32")
                return rotary.rotate(x, *tables, layout=layout)

            # Angles rounded to float32 lose the difference far out.
            off = np.abs(scores(10**6, 100, as_trained) - scores(0, 100, as_trained))
            assert (off / bound).max() > 1000

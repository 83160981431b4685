"""Exact arithmetic: the same bits wherever it runs, inside the bounds that it states."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest
from interpreter import run
from numpy.testing import assert_array_equal

from rotary import backends, exact
from rotary.backends import _generic
from rotary.backends import _numpy as numpy_backend
from rotary.exact import elementary, products, sums
from rotary.exact.products import Products

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
strict = pytest.importorskip("array_api_strict")
jnp = jax.numpy

F32 = np.float32
U = 2.0**-24
SPECIAL = np.array(
    [0, -0.0, 1e-40, -1e-40, 1.2e-38, -1.2e-38, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 1, -1],
    F32,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def wide(seed: int, *shape: int, least: int = -150, most: int = 128) -> np.ndarray:
    """Numbers of all magnitudes, subnormal ones and infinities among them."""
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        return (rng.standard_normal(shape) * 2.0 ** rng.integers(least, most, shape)).astype(F32)


def scaled(seed: int, rows: int, columns: int, axis: int) -> np.ndarray:
    """Rows or columns of magnitudes of their own, near both ends of the range too."""
    shape = (rows, 1) if axis == -1 else (1, columns)
    powers = 2.0 ** np.random.default_rng(seed + 1).integers(-125, 125, shape)
    return (normal(seed, rows, columns).clip(-4, 4) * powers).astype(F32)


def strewn(x: np.ndarray, share: float = 0.001) -> np.ndarray:
    """Return x with special numbers strewn in."""
    rng, x = np.random.default_rng(9), x.copy()
    at = rng.random(x.shape) < share
    x[at] = rng.choice(SPECIAL, at.sum())
    return x


def differing(got: Any, want: np.ndarray) -> int:
    got = np.asarray(got)
    assert got.shape == want.shape
    assert got.dtype == want.dtype == F32
    return int((~((got == want) | (np.isnan(got) & np.isnan(want)))).sum())


def ways(compiled: bool = False) -> dict[str, Any]:
    """How a function of arrays runs elsewhere: NumPy arrays in, NumPy arrays out."""

    def in_torch(function: Any, *arrays: np.ndarray) -> Any:
        return function(*map(torch.from_numpy, arrays))

    def in_strict(function: Any, *arrays: np.ndarray) -> Any:
        return function(*map(strict.asarray, arrays))

    def in_jax(function: Any, *arrays: np.ndarray) -> Any:
        return function(*map(jnp.asarray, arrays))

    def in_jax_x64(function: Any, *arrays: np.ndarray) -> Any:
        with jax.enable_x64(True):
            return jax.jit(function)(*map(jnp.asarray, arrays))

    found = {
        "torch": in_torch,
        "strict": in_strict,
        "jax": in_jax,
        "jit": lambda function, *arrays: in_jax(jax.jit(function), *arrays),
        "jit x64": in_jax_x64,
    }
    if compiled:
        found["torch.compile"] = lambda function, *arrays: in_torch(
            torch.compile(function, fullgraph=True), *arrays
        )
    return found


@pytest.fixture
def quiet():
    """NumPy does not warn of infinities: outside of the public functions nobody tells it not to."""
    with np.errstate(all="ignore"):
        yield


# The same bits

ELEMENTWISE = {
    "exp": lambda: np.concatenate([normal(0, 150_000) * 30, wide(1, 100_000), SPECIAL]),
    "reciprocal": lambda: np.concatenate([normal(2, 150_000), wide(3, 100_000), SPECIAL]),
    "rsqrt": lambda: np.concatenate([np.abs(wide(4, 250_000)), SPECIAL]),
}


@pytest.mark.parametrize("way", ways(compiled=True))
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_have_the_same_bits_everywhere(name, way):
    function, x = getattr(exact, name), ELEMENTWISE[name]()
    assert differing(ways(compiled=True)[way](function, x), function(x)) == 0


SHAPES = [(90, 1, 70), (90, 64, 110), (90, 200, 110), (60, 600, 70)]


def factors(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Usual numbers with special ones among them, all magnitudes, extreme rows and columns."""
    a = [strewn(normal(5, m, k)), wide(7, m, k, most=40), scaled(10, m, k, -1), normal(12, m, k)]
    b = [strewn(normal(6, k, n)), wide(8, k, n, most=40), scaled(11, k, n, -2), normal(13, k, n)]
    return np.stack(a), np.stack(b)


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul_has_the_same_bits_everywhere(shape, way):
    a, b = factors(*shape)
    assert differing(ways()[way](exact.matmul, a, b), exact.matmul(a, b)) == 0


def test_the_factors_reach_all_kinds_of_results():
    """Otherwise equal bits would say little."""
    kinds = np.zeros(4, int)
    for shape in SHAPES:
        c = exact.matmul(*factors(*shape))
        kinds += [np.isfinite(c).sum(), np.isinf(c).sum(), np.isnan(c).sum(), (c == 0).sum()]
    assert kinds.min() > 1000


@pytest.mark.parametrize("way", ways())
def test_sums_have_the_same_bits_everywhere(way):
    x = strewn(wide(12, 37, 50, 21, most=60), 0.0001)
    for axis in (0, 1, -1):
        got = ways()[way](lambda x, axis=axis: exact.sum(x, axis), x)
        assert differing(got, exact.sum(x, axis)) == 0


def test_torch_compiles_matmul_and_sum_to_the_same_bits():
    a, b = strewn(normal(13, 2, 60, 300)), strewn(normal(14, 300, 50))

    def both(a: Any, b: Any) -> Any:
        return exact.sum(exact.matmul(a, b * 0.5), 0)

    assert differing(ways(compiled=True)["torch.compile"](both, a, b), both(a, b)) == 0


@pytest.mark.parametrize("way", ways())
def test_prefix_sums_and_running_sums_have_the_same_bits_everywhere(way, quiet):
    x, updates = wide(15, 3, 50, 4, most=20), wide(16, 3, 50, 4, most=20)

    def both(x: Any, updates: Any) -> Any:
        backend = backends.owner_of(x)
        high, low = sums.prefix(backend, x)
        total = sums.kahan(partial(products.settle, backend), high, low, updates)
        return backend.namespace(x).stack([high, low, *total])

    assert differing(ways()[way](both, x, updates), both(x, updates)) == 0


@pytest.mark.parametrize("way", ways())
def test_a_product_is_rounded_before_anything_is_added(way):
    x, y, z = normal(17, 5000), normal(18, 5000), normal(19, 5000)

    def sums_of_products(x: Any, y: Any, z: Any) -> Any:
        product = backends.owner_of(x).finite_product
        step = product(x, product(x, y) + 0.3) + z
        return step + product(product(x, x) - product(y, z), product(x, 1.1) + 1.0)

    assert differing(ways()[way](sums_of_products, x, y, z), sums_of_products(x, y, z)) == 0


def test_no_blas_kernel_and_no_number_of_threads_changes_a_bit():
    code = """
        import hashlib, numpy as np, rotary
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((300, 300)).astype(np.float32) for _ in "ab")
        for c in (rotary.exact.matmul(a, b), a @ b):
            print(hashlib.sha256(c.tobytes()).hexdigest())
    """
    found = set()
    for variables in (
        {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"},
        {"OPENBLAS_NUM_THREADS": "2"},
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            found.add(tuple(run(code).split()))
    assert len({exactly for exactly, _ in found}) == 1
    blas = str(np.show_config("dicts")["Build Dependencies"]["blas"]["name"])
    if "openblas" in blas:  # else the variables mean nothing
        assert len({plainly for _, plainly in found}) > 1


@pytest.mark.parametrize("length", [64, 256])
def test_the_order_of_a_contraction_changes_no_bit(length):
    a, b = normal(20, 50, length), normal(21, length, 60)
    order = np.random.default_rng(22).permutation(length)
    assert_array_equal(exact.matmul(a[:, order], b[order]), exact.matmul(a, b))
    assert (a[:, order] @ b[order] != a @ b).any()


@pytest.mark.parametrize("length", [64, 256, 700])
def test_zeros_at_the_end_of_a_contraction_change_no_bit(length):
    a, b = normal(23, 20, length), normal(24, length, 30)
    more = [np.pad(a, [(0, 0), (0, 300)]), np.pad(b, [(0, 300), (0, 0)])]
    if length == 64:  # from 65 places on, slices have a bit less
        more = [more[0][:, :128], more[1][:128]]
        a, b = np.pad(a, [(0, 0), (0, 1)]), np.pad(b, [(0, 1), (0, 0)])
    assert_array_equal(exact.matmul(*more), exact.matmul(a, b))


# Bounds


def exactly(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b correctly rounded to float64, in which products of float32 are exact."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array([[math.fsum(row * column) for column in b.T] for row in a])


def pairs(k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    near_one = [1 - np.abs(normal(s, *shape)) / 2**10 for s, shape in ((25, (9, k)), (26, (k, 8)))]
    a, b = normal(27, 9, k), normal(28, k, 8)
    cancelling = a.copy(), b.copy()
    cancelling[0][:, k // 2 : k // 2 * 2] = a[:, : k // 2]
    cancelling[1][k // 2 : k // 2 * 2] = -b[: k // 2] * F32(1.0001)
    # A last place of the first slice that is as large as can be, throughout.
    ties = np.full((9, k), 255.5 / 256, F32), np.full((k, 8), -255.5 / 256, F32)
    many = wide(29, 9, k, least=-25, most=25), wide(30, k, 8, least=-25, most=25)
    return [(a, b), tuple(near_one), cancelling, ties, many]


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 255, 256])
def test_matmul_is_within_its_bound(length):
    for a, b in pairs(length):
        want = exactly(a, b)
        largest = np.abs(a).max(1)[:, None].astype(float) * np.abs(b).max(0)
        slack = 2.0**-29 if length <= 64 else 2.0**-27
        bound = U * np.abs(want) + length * slack * largest
        assert (np.abs(exact.matmul(a, b) - want) <= bound).all()


@pytest.mark.parametrize("length", [257, 512, 1000])
def test_long_products_are_within_their_bound(length):
    for a, b in pairs(length):
        want = exactly(a, b)
        largest = np.abs(a).max(1)[:, None].astype(float) * np.abs(b).max(0)
        starts = range(0, length, 256)
        blocks = [np.abs(exactly(a[:, n : n + 256], b[n : n + 256])) for n in starts]
        levels = 1 + math.ceil(math.log2(len(blocks)))
        bound = levels * U * np.sum(blocks, axis=0) + length * 2.0**-27 * largest
        assert (np.abs(exact.matmul(a, b) - want) <= bound).all()


def test_short_matmuls_are_nearly_always_correctly_rounded():
    a, b = normal(31, 100, 64), normal(32, 64, 100)
    want = exactly(a, b).astype(F32)
    assert (exact.matmul(a, b) != want).mean() < 0.03
    assert (a @ b != want).mean() > 0.3


def test_matmul_reaches_both_ends_of_the_range():
    tiny, huge = F32(2.0**-120), F32(2.0**120)
    a = np.array([[huge, 0], [tiny, tiny], [huge, -huge], [huge, huge]], F32)
    b = np.array([[tiny, huge], [tiny, huge]], F32)
    want = [[1, np.inf], [0, 2], [0, 0], [2, np.inf]]
    assert_array_equal(exact.matmul(a, b), np.array(want, F32))
    largest = np.finfo(F32).max
    assert exact.matmul(np.array([[largest]]), np.array([[F32(1)]])) == largest
    # As small as 2^-125, and no smaller.
    assert exact.matmul(np.array([[F32(2.0**-64)]]), np.array([[F32(2.0**-61)]])) == 2.0**-125
    assert exact.matmul(np.array([[F32(2.0**-64)]]), np.array([[F32(2.0**-62)]])) == 0


def test_numbers_smaller_than_the_largest_of_their_row_are_not_lost():
    """The cut is relative to a row: one of 2^-90 keeps what one of 1 would keep."""
    a, b = normal(33, 20, 50), normal(34, 50, 20)
    for power in (2.0**-80, 2.0**100):
        small = exact.matmul(a * F32(power), b) / F32(power)
        assert_array_equal(small, exact.matmul(a, b))


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    return float((np.abs(got.astype(float) - want) / np.spacing(np.abs(want.astype(F32)))).max())


def test_exp_is_within_its_bound():
    rng = np.random.default_rng(35)
    x = np.concatenate([rng.uniform(-86.9, 88.7, 10**6), rng.uniform(-1, 1, 10**6)]).astype(F32)
    assert ulps(exact.exp(x), np.exp(x.astype(float))) < 0.9  # float64's error is 2^-29 of that
    few = x[:: len(x) // 1000]
    with mpmath.workprec(100):
        want = np.array([float(mpmath.exp(float(v))) for v in few])
    assert ulps(exact.exp(few), want) < 0.9


def test_exp_at_the_ends_of_its_range():
    ends = np.array([-np.inf, -1e30, -86.99, 88.73, 1e30, np.inf, 0, -0.0, 1e-45, np.nan], F32)
    assert_array_equal(exact.exp(ends), [0, 0, 0, np.inf, np.inf, np.inf, 1, 1, 1, np.nan])
    assert exact.exp(np.array([-86.98], F32)) > 2.0**-125.5
    # ln(largest), the last argument with a finite result, and the next.
    last = F32(88.72283)
    y = exact.exp(np.array([last, np.nextafter(last, F32(100))], F32))
    assert_array_equal(np.isfinite(y), [True, False])


@pytest.mark.parametrize(
    ("name", "most", "of"),
    [("reciprocal", 0.503, lambda x: 1 / x), ("rsqrt", 0.501, lambda x: 1 / np.sqrt(x))],
)
def test_significands_are_within_their_bound(name, most, of):
    x = np.arange(2**23, 2**24, 5).astype(F32) * F32(2.0**-23)
    for factor in (F32(1), F32(2), F32(2.0**-100), F32(2.0**101)):
        x_here = x * factor
        assert ulps(getattr(exact, name)(x_here), of(x_here.astype(float))) < most


def test_reciprocals_at_the_ends_of_their_range():
    x = np.array([2.0**126, -(2.0**126), 2.0**-126, -(2.0**-126), 3e38, np.inf, -np.inf], F32)
    assert_array_equal(exact.reciprocal(x), [0, 0, 2.0**126, -(2.0**126), 0, 0, 0])
    x = np.array([0, -0.0, 1e-40, -1e-40, np.nan], F32)
    assert_array_equal(exact.reciprocal(x), [np.inf] * 4 + [np.nan])
    x = np.array([np.nextafter(F32(2.0**126), F32(0))])
    assert exact.reciprocal(x) == 2.0**-126


def test_roots_at_the_ends_of_their_range():
    x = np.array([2.0**-126, 2.0**126, np.inf, 0, -0.0, 1e-40, -1e-40, -1, -np.inf, np.nan], F32)
    want = [2.0**63, 2.0**-63, 0, np.inf, np.inf, np.inf, np.inf, np.nan, np.nan, np.nan]
    assert_array_equal(exact.rsqrt(x), want)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 100, 1000])
def test_sums_are_within_their_bound(length):
    x = wide(36, length, 40, least=-10, most=10)
    want = np.array([math.fsum(column) for column in x.T])
    bound = U * math.ceil(math.log2(length)) * np.abs(x).sum(0, dtype=float)
    assert (np.abs(exact.sum(x, 0) - want) <= bound).all()


def test_zeros_at_the_end_of_a_sum_change_no_bit():
    x = normal(37, 100)
    for more in (1, 28, 200):
        assert exact.sum(np.pad(x, (0, more))) == exact.sum(x)


def test_prefix_sums_keep_what_one_word_loses():
    x = -np.abs(normal(38, 300, 1)) * 30
    high, low = sums.prefix(numpy_backend, x)
    total = Fraction(0)
    for n in range(300):
        total += Fraction(float(x[n, 0]))
        got = Fraction(float(high[n, 0])) + Fraction(float(low[n, 0]))
        assert abs(got - total) <= abs(total) * Fraction(2) ** -42
        assert abs(low[n, 0]) <= np.spacing(abs(high[n, 0])) * 5


def test_running_sums_keep_what_one_word_loses():
    updates = np.abs(normal(39, 2000))
    total = low = plain = np.zeros((), F32)
    for update in updates:
        total, low = sums.kahan(partial(products.settle, numpy_backend), total, low, update)
        plain = plain + update
    want = math.fsum(updates)
    assert abs(float(total) + float(low) - want) < 1e-6 < abs(float(plain) - want)


# What may depend on what


def test_a_row_of_a_decides_its_row_of_the_result_alone():
    a, b = normal(40, 30, 70), normal(41, 70, 20)
    want = exact.matmul(a, b)
    for value in (1e6, 1e-30, 3e38, np.inf, np.nan):
        changed = a.copy()
        changed[7, 3] = value
        got = exact.matmul(changed, b)
        others = np.arange(30) != 7
        assert_array_equal(got[others], want[others])
        assert (got[7] != want[7]).any()
        if not np.isfinite(value):
            assert np.isnan(got[7]).all()


def test_a_column_of_b_decides_its_column_of_the_result_alone():
    a, b = normal(42, 30, 300), normal(43, 300, 20)
    want = exact.matmul(a, b)
    b[5, 7] = -np.inf
    got = exact.matmul(a, b)
    others = np.arange(20) != 7
    assert_array_equal(got[:, others], want[:, others])
    assert np.isnan(got[:, 7]).all()


@pytest.mark.parametrize("value", [1e6, -3e38, 1e-42, np.inf, np.nan])
@pytest.mark.parametrize("size", [64, 300])
def test_later_tokens_do_not_reach_earlier_rows(value, size, quiet):
    p = Products(numpy_backend)
    scores, v = normal(44, size, size), normal(45, size, 16)
    lower = np.tril(np.ones((size, size), F32))

    def causal(v: np.ndarray) -> np.ndarray:
        operand, scales = p.tokens(v)
        return p.multiply(p.rows(p.weigh(scores, p.weigh(scales, lower))), operand)

    got, changed = causal(v), v.copy()
    changed[50, 3] = value
    after = causal(changed)
    assert_array_equal(after[:50], got[:50])
    assert (after[50:] != got[50:]).any()
    if not np.isfinite(value):
        assert np.isnan(after[50:]).all()
    error = np.abs(got - np.tril(scores.astype(float)) @ v)
    assert error.max() < 1e-4


def test_weights_of_zero_select_away_whatever_they_meet(quiet):
    p = Products(numpy_backend)
    x = np.array([np.inf, -np.inf, np.nan, 2, 3e38, 2], F32)
    weights = np.array([0, -0.0, 0, 0.5, 0, np.nan], F32)
    assert_array_equal(p.weigh(x, weights), [0, 0, 0, 1, 0, np.nan])


def test_nothing_subnormal_is_left():
    x = np.array([2.0**-125, 2.0**-126, -(2.0**-125), 1e-40, 0, np.inf, -np.inf, np.nan], F32)
    want = [2.0**-125, 0, -(2.0**-125), 0, 0, np.inf, -np.inf, np.nan]
    assert_array_equal(products.settle(numpy_backend, x), want)


def test_transposed_rows_are_columns():
    p = Products(numpy_backend)
    a, b = normal(46, 2, 30, 300), normal(47, 2, 20, 300)
    want = p.multiply(p.rows(a), p.columns(np.swapaxes(b, -1, -2)))
    assert_array_equal(p.multiply(p.rows(a), p.rows_transposed(b)), want)


@pytest.mark.parametrize("length", [1, 42, 64, 65, 256])
def test_slices_are_as_short_as_the_products_need(length):
    """4·K·(2^(w−1))² ≤ 2^24: every partial sum of a product of slices is a float32.

    The slices themselves are bfloat16 numbers, so that units for TF32 or bfloat16 change no bit.
    """
    p = Products(numpy_backend)
    width = products.bits_of_slice(length)
    assert 4 * length * 2 ** (2 * width - 2) <= 2**24
    for x in (
        normal(48, 500, length),
        wide(49, 500, length, least=-40, most=0),
        np.ones((1, length), F32),
    ):
        (block,) = p.rows(x)
        for n in range(products.SLICES):
            part = block.slices[:, n * length : (n + 1) * length]
            units = part / 2.0 ** (3 - width - width * n)
            assert_array_equal(units, np.rint(units))
            assert np.abs(units).max() <= 2 ** (width - 1)
            assert_array_equal(part.astype(ml_dtypes.bfloat16).astype(F32), part)


# Gradients


def composed(a: Any, b: Any) -> Any:
    """Every function once; (3, 5, 7) and (7, 4) to a number."""
    y = exact.matmul(exact.rsqrt(exact.exp(a)), exact.reciprocal(b))
    return exact.sum(exact.sum(exact.sum(y, -1), 0), 0)


def in_float64(a: Any, b: Any) -> Any:
    return (a.exp().rsqrt() @ b.reciprocal()).sum()


def gradient_data() -> tuple[np.ndarray, np.ndarray]:
    return normal(50, 3, 5, 7), normal(51, 7, 4) + F32(3)


def torch_gradients(function: Any, dtype: Any = torch.float32) -> list[np.ndarray]:
    a, b = (torch.from_numpy(x).to(dtype).requires_grad_() for x in gradient_data())
    return [g.numpy() for g in torch.autograd.grad(function(a, b), (a, b))]


def test_gradients_have_the_same_bits_everywhere():
    want = torch_gradients(composed)
    arrays = list(map(jnp.asarray, gradient_data()))
    gradient = jax.grad(composed, argnums=(0, 1))
    for got in (
        torch_gradients(torch.compile(composed, fullgraph=True)),
        gradient(*arrays),
        jax.jit(gradient)(*arrays),
    ):
        assert [differing(g, w) for g, w in zip(got, want, strict=True)] == [0, 0]
    with jax.enable_x64(True):
        got = jax.jit(gradient)(*arrays)
    assert [differing(g, w) for g, w in zip(got, want, strict=True)] == [0, 0]


def test_gradients_are_right():
    for got, want in zip(
        torch_gradients(composed), torch_gradients(in_float64, torch.float64), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_second_derivatives_are_right():
    def curvature(function: Any) -> Any:
        def total(a: Any, b: Any) -> Any:
            first = torch.autograd.grad(function(a, b), (a, b), create_graph=True)
            return sum((g * g).sum() for g in first)

        return total

    want = torch_gradients(curvature(in_float64), torch.float64)
    for got, w in zip(torch_gradients(curvature(composed)), want, strict=True):
        np.testing.assert_allclose(got, w, rtol=2e-5)
    gradient = jax.grad(composed, argnums=(0, 1))
    second = jax.grad(lambda a, b: sum((g * g).sum() for g in gradient(a, b)), argnums=(0, 1))
    for got, w in zip(second(*map(jnp.asarray, gradient_data())), want, strict=True):
        np.testing.assert_allclose(got, w, rtol=2e-5)


def test_functions_are_mapped_and_differentiated_by_both_libraries():
    a, b = gradient_data()
    want = exact.matmul(exact.exp(a), b)
    ours = lambda a, b: exact.matmul(exact.exp(a), b)  # noqa: E731
    got = torch.func.vmap(ours, in_dims=(0, None))(torch.from_numpy(a), torch.from_numpy(b))
    assert differing(got, want) == 0
    assert differing(jax.vmap(ours, in_axes=(0, None))(jnp.asarray(a), jnp.asarray(b)), want) == 0
    each = torch.func.vmap(torch.func.grad(lambda a, b: ours(a, b).sum()), in_dims=(0, None))
    got = each(torch.from_numpy(a), torch.from_numpy(b))
    whole = torch.func.grad(lambda a, b: ours(a, b).sum())
    assert torch.equal(got, whole(torch.from_numpy(a), torch.from_numpy(b)))


def test_16_bit_numbers_are_widened_and_their_gradients_narrowed():
    x = torch.randn(5, 6, dtype=torch.bfloat16).requires_grad_()
    y = exact.exp(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, exact.exp(x.float()))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert exact.matmul(jnp.ones((2, 2), jnp.float16), jnp.ones((2, 2))).dtype == jnp.float32


# Arguments


def test_shapes_broadcast_as_in_the_standard():
    for a, b in (
        ((2, 1, 3, 4), (5, 4, 6)),
        ((3, 4), (2, 4, 1)),
        ((0, 4), (4, 2)),
        ((2, 0), (0, 3)),
    ):
        got = exact.matmul(np.ones(a, F32), np.ones(b, F32))
        assert_array_equal(got, np.ones(a, F32) @ np.ones(b, F32))
    assert exact.sum(np.ones((2, 3), F32), 0, keepdims=True).shape == (1, 3)
    assert_array_equal(exact.sum(np.ones((2, 0), F32)), np.zeros(2, F32))
    assert exact.exp(F32(0)) == 1


def test_bad_arguments_are_refused(library, refused):
    x, y = library.array(np.ones((2, 3)), "float32"), library.array(np.ones((2, 3)), "float64")
    for function in (exact.exp, exact.rsqrt, exact.reciprocal, exact.sum):
        with refused(TypeError, "x", "got dtype float64", "float32"):
            function(y)
        with refused(TypeError, "x", "got builtins.float, expected an array"):
            function(1.0)
    with refused(TypeError, "a", "got dtype float64"):
        exact.matmul(y, x)
    with refused(TypeError, "b", "got dtype float64"):
        exact.matmul(x, y)
    with refused(ValueError, "b", "(2, 3)", "(..., K, N)"):
        exact.matmul(x, x)
    with refused(ValueError, "a", "(3,)", "(..., M, K)"):
        exact.matmul(x[0, ...], x)
    with refused(ValueError, "b", "(3, 2, 1)"):
        exact.matmul(
            library.array(np.ones((2, 5, 2)), "float32"),
            library.array(np.ones((3, 2, 1)), "float32"),
        )
    with refused(ValueError, "axis", "got 2", "(2, 3)"):
        exact.sum(x, 2)
    with refused(TypeError, "axis", "got 'a'"):
        exact.sum(x, "a")


def test_arrays_of_two_libraries_are_refused(library, other, refused):
    x = library.array(np.ones((2, 2)), "float32")
    with refused(TypeError, "b", other.name, library.name):
        exact.matmul(x, other.array(np.ones((2, 2)), "float32"))


# What a backend answers


def test_bit_patterns_are_the_same_by_arithmetic(quiet):
    x = np.concatenate([wide(52, 50_000), normal(53, 1000), SPECIAL])
    x = np.where(np.abs(x) < 2.0**-126, F32(0), x)
    want = np.where(np.isnan(x), 0x7FC00000, x.view(np.int32) * (x != 0))
    got = np.asarray(_generic.bits(strict.asarray(x)))
    assert got.dtype == np.int32
    assert_array_equal(got, want)
    back = np.asarray(_generic.from_bits(strict.asarray(want)))
    assert differing(back, x) == 0


def running(carry: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    total, count = carry
    x, y = inputs
    return (total + x * y, count + 1.0), (total, {"x": x}["x"] - y)


def test_a_scan_runs_in_order(library):
    x, y = (library.array(normal(seed, 6, 3), "float32") for seed in (54, 55))
    backend = backends.owner_of(x)
    zero = library.array(np.zeros(3), "float32")
    (total, count), (before, difference) = backend.scan(running, (zero, zero), (x, y))
    want = (normal(54, 6, 3) * normal(55, 6, 3)).cumsum(0, dtype=F32)
    np.testing.assert_allclose(np.asarray(total), want[-1], rtol=1e-5)
    assert_array_equal(np.asarray(count), np.full(3, 6))
    np.testing.assert_allclose(np.asarray(before)[1:], want[:-1], rtol=1e-5)
    assert_array_equal(np.asarray(difference), normal(54, 6, 3) - normal(55, 6, 3))
    carry, nothing = backend.scan(lambda carry, each: (carry + each[0], None), zero, (x,))
    assert nothing is None
    assert carry.shape == (3,)


def test_a_gradient_of_ones_own_is_taken():
    def loss(x: Any) -> Any:
        own = backends.owner_of(x).custom_gradient(
            lambda x: (x * 2.0,), lambda inputs, outputs, g: (inputs[0] + outputs[0] + g[0],)
        )
        return own(x)[0].sum()

    x = normal(56, 5)
    leaf = torch.from_numpy(x).requires_grad_()
    want = x + x * 2 + 1
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        (got,) = torch.autograd.grad(function(leaf), leaf)
        assert_array_equal(got, want)
    assert_array_equal(torch.func.grad(loss)(torch.from_numpy(x)), want)
    assert_array_equal(jax.jit(jax.grad(loss))(x), want)
    assert loss(x) == (x * 2).sum()


def test_a_compiled_program_holds_one_operator_for_a_function():
    found: list[str] = []

    def backend(module: Any, _: Any) -> Any:
        found.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    torch.compile(exact.matmul, fullgraph=True, backend=backend)(
        torch.ones(3, 600), torch.ones(600, 2)
    )
    assert [name for name in found if "getitem" not in name] == ["rotary.operation.default"]


def test_lengths_of_a_compiled_program_may_change():
    compiled = torch.compile(exact.matmul, fullgraph=True, dynamic=True, backend="aot_eager")
    for m, k in ((3, 5), (4, 70), (9, 300)):
        a, b = torch.from_numpy(normal(57, m, k)), torch.from_numpy(normal(58, k, 6))
        assert torch.equal(compiled(a, b), exact.matmul(a, b))


def test_the_constants_are_what_they_stand_for():
    with mpmath.workprec(200):
        ln2 = mpmath.log(2)
        high, low = elementary._LN2_HIGH, elementary._LN2_LOW
        assert abs(mpmath.mpf(high) + mpmath.mpf(low) - ln2) < 2.0**-44
        assert high * 2**16 == int(high * 2**16)
        assert abs(elementary._LOG2_E - 1 / ln2) < 2.0**-23
    for constant in (low, high, elementary._LOG2_E, *elementary._REST):
        assert float(F32(constant)) == constant

"""The oracle and the comparison, held to arithmetic that shares nothing with them.

Rotations: exact rational numbers and a rounding written here.  Tables: mpmath with 2000 bits and no
reduction of its own.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rotary
from rotary.conformance import compare, oracle
from rotary.conformance.subject import numpy_dtype

# significant bits, exponent of the smallest normal number, largest number
FORMATS = {
    "float16": (11, -14, Fraction(65504)),
    "bfloat16": (8, -126, Fraction(2**8 - 1) * 2**120),
    "float32": (24, -126, Fraction(2**24 - 1) * 2**104),
    "float64": (53, -1022, Fraction(2**53 - 1) * 2**971),
}
DTYPES = tuple(FORMATS)


def rounded(x: Fraction, dtype: str) -> Fraction:
    """Return the number of that dtype nearest to x, ties to even."""
    bits, smallest, _ = FORMATS[dtype]
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - abs(x.denominator).bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent  # now 2^exponent ≤ |x| < 2^(exponent + 1)
    unit = Fraction(2) ** (max(exponent, smallest) + 1 - bits)
    return round(x / unit) * unit


def exact(x) -> Fraction:
    return Fraction(float(x))


def rotated(x1, x2, cos, sin, dtype: str) -> tuple[Fraction, Fraction]:
    """fl(fl(x1·c) − fl(x2·s)), fl(fl(x1·s) + fl(x2·c)), then rounded to the dtype."""
    compute = "float64" if dtype == "float64" else "float32"
    x1, x2, cos, sin = map(exact, (x1, x2, cos, sin))
    x1_cos, x2_sin, x1_sin, x2_cos = (
        rounded(a * b, compute) for a, b in ((x1, cos), (x2, sin), (x1, sin), (x2, cos))
    )
    sums = rounded(x1_cos - x2_sin, compute), rounded(x1_sin + x2_cos, compute)
    return tuple(rounded(y, dtype) for y in sums)


# The rounding of this file, held to ml_dtypes' and NumPy's conversions of float64.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_rounding_in_this_file_is_the_conversion_from_float64(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400) * 2.0 ** rng.integers(-20, 12, 400)
    _, smallest, largest = FORMATS[dtype]
    spacing = float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_subnormal)
    halfway = (rng.integers(-50, 50, 100) + 0.5) * spacing  # ties among subnormal numbers
    x = np.concatenate([x, halfway, 2.0**smallest * (1 - np.arange(50) / 4096)])
    for value, narrow in zip(x, x.astype(numpy_dtype(dtype)), strict=True):
        assert rounded(exact(value), dtype) == exact(narrow)
    assert float(ml_dtypes.finfo(numpy_dtype(dtype)).max) == largest


# Rotation.


def numbers(dtype: str, count: int, seed: int) -> np.ndarray:
    """Return (count, 8) numbers of that dtype, in every fifth row subnormal ones."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 8)) * 2.0 ** rng.integers(-6, 7, (count, 8))
    info = ml_dtypes.finfo(numpy_dtype(dtype))
    x[::5] *= float(info.smallest_normal) / 4
    return x.astype(numpy_dtype(dtype))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_rounds_as_exact_arithmetic_does(dtype, layout, inverse):
    x = numbers(dtype, 60, seed=1)
    compute = np.float64 if dtype == "float64" else np.float32
    angle = np.random.default_rng(2).uniform(-4, 4, (60, 4))
    cos, sin = np.cos(angle).astype(compute), np.sin(angle).astype(compute)
    first, second = pairs = oracle.pair_indices(8, 8, layout, "leading")
    # x1·cos − x2·sin nearly zero: what is left is the rounding of the products.
    size = x[::3, first].astype(np.float64)
    x[::3, first], x[::3, second] = size * sin[::3], size * cos[::3]
    got = oracle.rotate(x, cos, sin, pairs, inverse=inverse)
    assert got.dtype == x.dtype
    for row, i in product(range(60), range(4)):
        a, b = (row, first[i]), (row, second[i])
        s = -sin[row, i] if inverse else sin[row, i]
        assert (exact(got[a]), exact(got[b])) == rotated(x[a], x[b], cos[row, i], s, dtype)


@settings(max_examples=300, deadline=None)
@given(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2, st.floats(-4, 4))
def test_rotation_rounds_any_float32_numbers(x1, x2, angle):
    cos, sin = (np.array([f(angle)], np.float32) for f in (np.cos, np.sin))
    pairs = oracle.pair_indices(2, 2, "half", "leading")
    y = oracle.rotate(np.array([x1, x2], np.float32), cos, sin, pairs)
    for got, expected in zip(y, rotated(x1, x2, cos[0], sin[0], "float32"), strict=True):
        if abs(expected) <= FORMATS["float32"][2]:
            assert exact(got) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_overflows_from_half_a_unit_beyond_the_largest_number_on(dtype):
    """With cos = sin = 1 the second coordinate is x1 + x2."""
    bits, _, largest = FORMATS[dtype]
    half_unit = largest / (2**bits - 1) / 2
    one = np.ones((2, 1), np.float64 if dtype == "float64" else np.float32)
    x = np.array([[largest, half_unit / 2], [largest, half_unit]], np.float64)
    y = oracle.rotate(
        x.astype(numpy_dtype(dtype)), one, one, oracle.pair_indices(2, 2, "half", "leading")
    )
    assert list(y[:, 1].astype(np.float64)) == [float(largest), np.inf]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_keeps_infinities_and_nan_where_products_have_them(dtype):
    inf, nan = np.inf, np.nan
    x = np.array([[inf, 1, nan, -inf], [1, 1, 1, inf]]).astype(numpy_dtype(dtype))
    compute = np.float64 if dtype == "float64" else np.float32
    cos, sin = np.full((2, 2), 0.6, compute), np.full((2, 2), 0.8, compute)
    got = oracle.rotate(x, cos, sin, oracle.pair_indices(4, 4, "interleaved", "leading"))
    got = got.astype(np.float64)
    np.testing.assert_array_equal(got[0], [inf, inf, nan, nan])
    np.testing.assert_array_equal(got[1, 2:], [-inf, inf])


@pytest.mark.parametrize("side", ["leading", "trailing"])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_pairs_cover_the_rotating_features_once(layout, side):
    first, second = oracle.pair_indices(10, 6, layout, side)
    start = 0 if side == "leading" else 4
    assert sorted([*first, *second]) == list(range(start, start + 6))
    assert set(second - first) == {3 if layout == "half" else 1}


def test_rotation_leaves_its_argument_and_other_features_alone():
    x = np.arange(12.0).reshape(2, 6)
    before, quarter = x.copy(), np.ones((2, 2))
    y = oracle.rotate(x, 0 * quarter, quarter, oracle.pair_indices(6, 4, "half", "trailing"))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(y[0], [0, 1, -4, -5, 2, 3])


# Tables.


ANGLES = {
    "plain": oracle.Angles(16),
    "base": oracle.Angles(6, 500_000.0),
    "frequency_dim": oracle.Angles(6, 1e7, 5),
    "supplied": oracle.Angles(6, inv_freq=(1.0, 0.1, 3.0)),
}
POSITIONS = [
    0.0,
    1.0,
    -1.0,
    2.5,
    1 / 3,
    131_071.0,
    2.0**53,
    1 - 2.0**53,
    0.5 - 2.0**52,
    2.0**-60,
]


def frequency(angles: oracle.Angles, i: int):
    """ω_i with the current precision."""
    if angles.inv_freq is not None:
        return mpmath.mpf(angles.inv_freq[i])
    denominator = angles.frequency_dim or angles.rotary_dim
    return mpmath.exp(-mpmath.log(mpmath.mpf(angles.base)) * 2 * i / denominator)


def nearest(x, dtype: str) -> Fraction:
    """Return the number of that dtype nearest to an mpmath number."""
    sign, mantissa, exponent, _ = x._mpf_
    return rounded((-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent, dtype)


@pytest.mark.parametrize("angles", ANGLES.values(), ids=ANGLES)
def test_tables_are_the_correctly_rounded_cosines_and_sines(angles):
    got = oracle.tables(angles, np.array(POSITIONS))
    assert got.high.shape == (2, len(POSITIONS), angles.rotary_dim // 2)
    with mpmath.workprec(2000):
        for (n, position), i in product(enumerate(POSITIONS), range(angles.rotary_dim // 2)):
            angle = mpmath.mpf(position) * frequency(angles, i)
            for which, value in enumerate((mpmath.cos(angle), mpmath.sin(angle))):
                at = which, n, i
                assert exact(got.float32[at]) == nearest(value, "float32")
                assert exact(got.high[at]) == nearest(value, "float64")
                rest = value - mpmath.mpf(float(got.high[at]))
                error = abs(mpmath.mpf(float(got.low[at])) - rest)
                assert error <= abs(rest) * 2.0**-53 + abs(value) * 2.0**-155


def test_tables_take_positions_of_any_shape():
    angles, positions = ANGLES["plain"], np.arange(6.0).reshape(2, 3)
    got, flat = oracle.tables(angles, positions), oracle.tables(angles, positions.reshape(-1))
    assert got.float32.shape == (2, 2, 3, 8)
    np.testing.assert_array_equal(got.float32.reshape(2, 6, 8), flat.float32)


@pytest.mark.parametrize(("exponent", "bits"), [(0, 53), (-20, 53), (0, 24)])
def test_worst_positions_are_next_to_zeros(exponent, bits):
    angles = ANGLES["plain"]
    found = oracle.worst_positions(angles, [exponent], bits)
    assert found == sorted(set(found))
    for position in found:
        assert float(position / 2.0**exponent).is_integer()
        assert 0 < position / 2.0**exponent <= 2**bits
    tables = np.abs(oracle.tables(angles, np.array(found)).high)
    # q·x is within 1/q of a whole number, in quarter turns of π/2 each; q comes near to 2^bits.
    assert tables.min() < 2.0 ** (2 - bits)
    # Every pair has found its own; the denominators of one may jump past the last factors of 2.
    assert np.all(tables.min(axis=(0, 1)) < 2.0 ** (5 - bits))


def test_worst_positions_find_numbers_of_the_size_of_one_rounding():
    """At 53 bits: |cos| or |sin| below 10^-15, which two words of π/2 would get wrong."""
    found = np.array(oracle.worst_positions(oracle.Angles(64), [0], 53))
    nearest_to_zero = np.abs(oracle.tables(oracle.Angles(64), found).high).min(axis=(0, 2))
    assert (nearest_to_zero < 1e-15).sum() >= 10
    float64_cosines = np.cos(found[:, None] * 10_000.0 ** (-np.arange(32) / 32))
    exact_cosines = oracle.tables(oracle.Angles(64), found).high[0]
    relative = np.abs(float64_cosines - exact_cosines) / np.abs(exact_cosines)
    assert relative.max() > 1  # what plain float64 makes of such positions


@pytest.mark.parametrize("bits", [8, 11, 24, 53])
def test_rounding_an_mpmath_number_is_to_nearest_even(bits):
    for numerator in range(2**bits * 2, 2**bits * 2 + 24):
        with mpmath.workprec(200):
            value = mpmath.mpf(numerator) / 16
        unit = Fraction(4, 16)  # the numerators have two bits more than are kept
        expected = round(Fraction(numerator, 16) / unit) * unit
        assert exact(oracle.round_to_bits(value, bits)) == expected
        assert exact(oracle.round_to_bits(-value, bits)) == -expected


def test_the_library_and_the_oracle_agree_on_what_is_asked():
    """The arguments are read alike; the numbers are compared by `rotary check`."""
    angles = oracle.Angles(6, 1e7, 5)
    rope = rotary.RotaryEmbedding(6, base=1e7, frequency_dim=5)
    for got, expected in zip(
        rope.tables(POSITIONS), oracle.tables(angles, np.array(POSITIONS)).float32, strict=True
    ):
        np.testing.assert_array_equal(got, expected)


# Comparison by bits.


def array(values, dtype: str = "float32") -> np.ndarray:
    return np.array(values).astype(numpy_dtype(dtype))


def tiny(dtype: str) -> float:
    return float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_subnormal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_equal_and_nans_are_equal(dtype):
    x = array([0.0, -0.0, np.nan, -np.nan, 1.0, np.inf, -np.inf], dtype)
    y = array([-0.0, 0.0, -np.nan, np.nan, 1.0, np.inf, -np.inf], dtype)
    assert compare.bits(x, y) == compare.Difference(7, 0, 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("got", "expected"),
    [(np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf), (np.nan, np.inf), (1.0, -1.0), (0.0, 1.0)],
)
def test_other_values_differ(dtype, got, expected):
    found = compare.bits(array([[2.0, got]], dtype), array([[2.0, expected]], dtype))
    assert found.differing == 1
    assert found.worst > 0
    assert found.worst_index == (0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 0.1, -1e-4])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_neighbours_are_one_apart(dtype, start, steps):
    """Across zero, across powers of two, and down among subnormal numbers."""
    x = array([start], dtype)
    for towards in (-np.inf, np.inf):
        y = x
        for _ in range(steps):
            y = np.nextafter(y, array([towards], dtype))
        found = compare.bits(y, x)
        assert (found.differing, found.worst, found.worst_index) == (1, steps, (0,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_numbers_of_both_signs_are_two_apart(dtype):
    x, y = array([tiny(dtype)], dtype), array([-tiny(dtype)], dtype)
    assert compare.bits(x, y).worst == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_worst_of_many_is_shown(dtype):
    x = array(np.ones((3, 4)), dtype)
    y = x.copy()
    y[1, 2], y[2, 0] = (array([v], dtype)[0] for v in (1.5, 1.25))
    found = compare.bits(y, x)
    assert (found.elements, found.differing, found.worst_index) == (12, 2, (1, 2))
    assert found.worst == 0.5 / float(ml_dtypes.finfo(numpy_dtype(dtype)).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stands_for_a_subnormal_number_only_where_flushing_is_allowed(dtype):
    smallest_normal = float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_normal)
    expected = array([tiny(dtype), -3 * tiny(dtype), smallest_normal, 0.0, 1.0], dtype)
    got = array([0.0, -0.0, smallest_normal, 0.0, 1.0], dtype)
    assert compare.bits(got, expected).differing == 2
    found = compare.bits(got, expected, flush=True)
    assert (found.differing, found.flushed, found.worst) == (0, 2, 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("expected", ["subnormal", "normal"])
def test_flushing_excuses_nothing_else(dtype, expected):
    """Not another subnormal number for a subnormal one, not zero for a normal one."""
    if expected == "subnormal":
        got, want = array([2 * tiny(dtype)], dtype), array([tiny(dtype)], dtype)
    else:
        normal = float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_normal)
        got, want = array([0.0], dtype), array([normal], dtype)
    found = compare.bits(got, want, flush=True)
    assert (found.differing, found.flushed) == (1, 0)


def test_a_subnormal_number_for_zero_is_a_difference():
    assert compare.bits(array([1e-45]), array([0.0]), flush=True).differing == 1


def test_nothing_differs_from_nothing():
    empty = np.empty((0, 3), np.float32)
    assert compare.bits(empty, empty) == compare.Difference(0, 0, 0.0)
    assert compare.bound(empty, empty, empty) == compare.Difference(0, 0, 0.0)


@pytest.mark.parametrize(
    "other", [np.zeros((3, 2), np.float32), np.zeros(6, np.float32), np.zeros((2, 3))]
)
def test_arrays_of_another_shape_or_dtype_are_not_compared(other):
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"^got shape .* expected \(2, 3\) of float32"):
        compare.bits(other, x)


# Comparison by ulps and by a bound.


def test_ulps_measure_the_distance_to_more_digits_than_float64_has():
    high, low = np.array([1.0, 0.75, -3.0]), np.array([2.0**-54, 0.0, 0.0])
    found = compare.ulps(high, high, low, 0.501)
    assert (found.differing, found.worst, found.worst_index) == (0, 0.25, (0,))
    found = compare.ulps(np.nextafter(high, np.inf), high, low, 0.501)
    assert (found.differing, found.worst) == (3, 1.0)
    assert compare.ulps(np.nextafter(high, np.inf), high, low, 1.0).differing == 0


def test_ulps_are_those_of_the_exact_value():
    """Half of what it is above a power of two: spacing doubles there."""
    one = np.array([1.0])
    assert compare.ulps(np.nextafter(one, 0), one, 0 * one, 1.0).worst == 0.5
    below = np.nextafter(one, 0)
    assert compare.ulps(one, below, 0 * one, 1.0).worst == 1.0


@pytest.mark.parametrize("got", [np.nan, np.inf])
def test_what_is_not_finite_is_outside_every_number_of_ulps(got):
    one = np.ones(2)
    assert compare.ulps(np.array([1.0, got]), one, 0 * one, 1e300).differing == 1


def test_ulps_need_alike_arrays():
    with pytest.raises(ValueError, match="float32"):
        compare.ulps(np.zeros(3, np.float32), np.zeros(3), np.zeros(3), 0.5)
    with pytest.raises(ValueError, match="shape"):
        compare.ulps(np.zeros(3), np.zeros(4), np.zeros(4), 0.5)


def test_a_bound_holds_element_by_element():
    expected, allowed = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.25, 0.0])
    found = compare.bound(np.array([1.25, 2.25, 3.0], np.float32), expected, allowed)
    assert (found.elements, found.differing, found.worst, found.worst_index) == (3, 0, 1.0, (1,))
    found = compare.bound(np.array([1.0, 2.5, 3.0], np.float32), expected, allowed)
    assert (found.differing, found.worst, found.worst_index) == (1, 2.0, (1,))


def test_no_error_is_no_error_where_none_is_allowed():
    zero = np.zeros(2)
    assert compare.bound(zero, zero, zero) == compare.Difference(2, 0, 0.0)
    with np.errstate(divide="ignore"):
        assert compare.bound(np.array([0.0, 1e-300]), zero, zero).differing == 1


@pytest.mark.parametrize("got", [np.nan, np.inf])
def test_what_is_not_finite_is_outside_every_bound(got):
    found = compare.bound(np.array([1.0, got]), np.ones(2), np.full(2, 1e300))
    assert found.differing == 1


def test_a_bound_needs_equal_shapes():
    with pytest.raises(ValueError, match=r"got shape \(3,\), expected \(3, 1\)"):
        compare.bound(np.zeros(3), np.zeros((3, 1)), np.ones((3, 1)))

"""The projection of FAVOR+: the same bits everywhere, and the right distribution."""

from __future__ import annotations

import decimal
import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from rotary.linear import random_features
from rotary.linear.random_features import FavorPlus, gaussians, split_mix

# Small: the estimate's relative variance is about e^{|q' + k'|²}/m.
KEY_DIM = 8
QUERIES, KEYS = 0.4 * np.random.default_rng(0).standard_normal((2, 24, KEY_DIM))

# sha256 of the rows in little-endian float64.
DIGESTS = {
    (256, 0, 64): "72a54f25e107050d1e948c1df93ef5596957275cc02950f8137d3587fa8dfad3",
    (5, 1, 3): "30780c56ed789cc21ee558b8f7442983be024af5cccf58ea6b82f6d1333f4385",
    (20, 2**64 - 1, 16): "86c28c6f1cf72ea677fb16ab0713cc5e1498b014018f3d06eeb13d8cdb572f47",
}
# Entries (0, 0), (0, 63), (63, 0) and (255, 63) of 256 rows of 64, seed 0.
PINS = [
    "0x1.f8140ae1026c8p-1",
    "-0x1.daaccff0a11cbp-3",
    "-0x1.795142d274760p+0",
    "0x1.fa2e3bd8e0a34p-1",
]


def digest(rows: Any) -> str:
    return hashlib.sha256(rows.astype("<f8").tobytes()).hexdigest()


def estimates(rows: Any) -> Any:
    """Estimates of exp(q·k/√D) for each query and key, over the number itself, minus 1."""
    m, dim = rows.shape

    def features(x: Any) -> Any:
        x = x * dim**-0.25
        return np.exp(x @ rows.T - np.sum(x * x, -1, keepdims=True) / 2) / math.sqrt(m)

    truth = np.exp(QUERIES @ KEYS.T / math.sqrt(dim))
    return features(QUERIES) @ features(KEYS).T / truth - 1


def independent(m: int, seed: int) -> Any:
    return gaussians(seed, m * KEY_DIM).reshape(m, KEY_DIM)


def farthest(sample: Any, distribution: Callable[[float], float]) -> float:
    """Kolmogorov and Smirnov's distance times √n: above 1.95 once in a thousand."""
    n = len(sample)
    at = np.array([distribution(x) for x in np.sort(sample).tolist()])
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max(float(np.max(steps[1:] - at)), float(np.max(at - steps[:-1])))


# -- the bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DIGESTS, ids=str)
def test_the_bits_are_pinned(case: tuple[int, int, int]) -> None:
    m, seed, key_dim = case
    rows = FavorPlus(m, seed).projection(key_dim)
    assert rows.shape == (m, key_dim)
    assert rows.dtype == np.float64
    assert digest(rows) == DIGESTS[case]


def test_some_entries_are_pinned() -> None:
    rows = FavorPlus().projection(64)
    assert [rows[at].item().hex() for at in ((0, 0), (0, 63), (63, 0), (255, 63))] == PINS


def test_the_generator_is_split_mix() -> None:
    # The vector that implementations of SplitMix64 are commonly tested with.
    assert split_mix(1234567, 0, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    mask = 2**64 - 1
    for seed in (0, 2**64 - 1):
        state, want = seed, []
        for _ in range(20):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            want.append(z ^ (z >> 31))
        assert split_mix(seed, 0, 20).tolist() == want
        assert split_mix(seed, 7, 11).tolist() == want[7:11]


def test_gaussians_are_marsaglias_to_the_last_bits() -> None:
    words = [int(w) for w in split_mix(3, 0, 100)]
    want: list[Any] = []
    with mpmath.workdps(40):
        for a, b in zip(words[::2], words[1::2], strict=True):
            x, y = (mpmath.mpf(w >> 11) / 2**52 - 1 for w in (a, b))
            s = x * x + y * y
            if 0 < s < 1:
                factor = mpmath.sqrt(-2 * mpmath.log(s) / s)
                want += [x * factor, y * factor]
        got = gaussians(3, len(want))
        for value, exact in zip(got.tolist(), want, strict=True):
            # A rounded s near 1 has lost 2^-54 of 1 − s: relative to it that is more.
            assert abs(value / exact - 1) < 2**-45


def _elsewhere(environment: dict[str, str]) -> str:
    """Return the digest that another interpreter finds."""
    code = (
        "import hashlib, rotary.linear.random_features as r\n"
        "rows = r.FavorPlus(70, 3).projection(33)\n"
        "print(hashlib.sha256(rows.astype('<f8').tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_bits_do_not_depend_on_numpys_simd_level() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = [feature for feature in __cpu_dispatch__ if __cpu_features__[feature]]
    if not present:
        pytest.skip("this processor has none of the SIMD levels that NumPy can switch off")
    usual = digest(FavorPlus(70, 3).projection(33))
    assert _elsewhere({"NPY_DISABLE_CPU_FEATURES": " ".join(present)}) == usual


def test_bits_do_not_depend_on_the_callers_decimal_context() -> None:
    want = digest(FavorPlus(6, 4).projection(5))
    random_features._projection.cache_clear()
    with decimal.localcontext() as context:
        context.prec = 3
        context.rounding = decimal.ROUND_UP
        assert digest(FavorPlus(6, 4).projection(5)) == want


def test_more_features_are_added_rows() -> None:
    many = FavorPlus(40, 5).projection(7)
    for m in (1, 6, 7, 8, 20, 39):
        assert np.array_equal(FavorPlus(m, 5).projection(7), many[:m])
    assert np.array_equal(gaussians(5, 3), gaussians(5, 1000)[:3])


def test_the_projection_is_made_once_and_read_only() -> None:
    rows = FavorPlus(4, 6).projection(3)
    assert FavorPlus(4, 6).projection(3) is rows
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1.0


# -- the distribution ---------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "key_dim"), [(256, 64), (128, 128), (100, 33), (9, 2), (3, 1)])
def test_rows_of_a_block_are_orthogonal(m: int, key_dim: int) -> None:
    rows = FavorPlus(m).projection(key_dim)
    units = rows / np.sqrt(np.sum(rows * rows, axis=-1, keepdims=True))
    for start in range(0, m, key_dim):
        block = units[start : start + key_dim]
        products = np.sum(block[:, None] * block, axis=-1)
        assert np.abs(products - np.eye(len(block))).max() < 1.5e-15


def test_rows_are_as_long_as_independent_gaussian_vectors() -> None:
    rows = FavorPlus(512, 1).projection(16)
    squares = np.sum(rows * rows, axis=-1)
    # χ² with D degrees of freedom: mean D, variance 2D; four standard errors.
    assert abs(squares.mean() - 16) < 4 * math.sqrt(32 / 512)
    assert abs(squares.var() / 32 - 1) < 4 * math.sqrt((2 + 12 / 16) / 512)
    assert np.allclose(squares, np.sum(gaussians(1, 512 * 16).reshape(512, 16) ** 2, axis=-1))
    # |ω|²/2 of two entries is exponential.
    halves = np.sum(FavorPlus(1000, 2).projection(2) ** 2, axis=-1) / 2
    assert farthest(halves, lambda x: -math.expm1(-x)) < 1.95


def test_entries_are_standard_gaussians() -> None:
    def normal(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    drawn = gaussians(7, 20_000)
    assert farthest(drawn, normal) < 1.95
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(drawn**power) - moment) < 4 * math.sqrt(variance / len(drawn))
    # Both of a pair, and neighbours of different pairs.
    assert abs(np.mean(drawn[::2] * drawn[1::2])) < 4 / math.sqrt(len(drawn) / 2)
    assert abs(np.mean(drawn[1:-1:2] * drawn[2::2])) < 4 / math.sqrt(len(drawn) / 2)
    # One row of each block, so that they are independent.
    rows = FavorPlus(1000, 8).projection(4)
    for row in (0, 3):
        assert farthest(rows[row::4].reshape(-1), normal) < 1.95


def test_directions_are_uniform() -> None:
    rows = FavorPlus(2000, 9).projection(2)
    angles = np.arctan2(rows[:, 1], rows[:, 0]) / (2 * math.pi) % 1.0
    assert farthest(angles[::2], float) < 1.95
    assert farthest(angles[1::2], float) < 1.95
    # A quarter turn either way, each as often: the block is a rotation or a reflection.
    turns = np.round((angles[1::2] - angles[::2]) % 1.0, 9)
    assert set(turns.tolist()) == {0.25, 0.75}
    assert abs(np.mean(turns == 0.25) - 0.5) < 4 * 0.5 / math.sqrt(1000)


def test_seeds_are_independent() -> None:
    drawn = np.array([gaussians(seed, 2000) for seed in (0, 1, 2, 3, 2**32, 2**63, 2**64 - 1)])
    together = drawn @ drawn.T / 2000
    assert np.abs(together - np.diag(np.diag(together))).max() < 4 / math.sqrt(2000)
    assert FavorPlus(4, 0) != FavorPlus(4, 1)


# -- the estimate -------------------------------------------------------------------------------


def test_the_estimate_converges_as_one_over_the_root_of_the_features() -> None:
    # Of independent rows the relative variance is (e^{|q' + k'|²} − 1)/m: the paper's lemma 2.
    both = (QUERIES[:, None] + KEYS) * KEY_DIM**-0.25
    variance = np.mean(np.expm1(np.sum(both * both, axis=-1)))
    for m, seeds in ((32, 32), (256, 8), (2048, 2)):
        squares = [
            np.mean(estimates(FavorPlus(m, s).projection(KEY_DIM)) ** 2) for s in range(seeds)
        ]
        ratio = math.sqrt(float(np.mean(squares)) * m / variance)
        assert 0.7 < ratio < 1.05


def test_the_estimate_has_no_bias() -> None:
    errors = np.array([estimates(FavorPlus(8, s).projection(KEY_DIM)) for s in range(300)])
    means = errors.mean(axis=(1, 2))
    assert abs(means.mean()) < 3 * means.std() / math.sqrt(len(means))


def test_orthogonal_rows_estimate_better_than_independent_ones() -> None:
    orthogonal, plain = (
        np.mean([np.mean(estimates(rows(KEY_DIM, seed)) ** 2) for seed in range(300)])
        for rows in (lambda m, s: FavorPlus(m, s).projection(KEY_DIM), independent)
    )
    assert orthogonal < 0.9 * plain


# -- errors -------------------------------------------------------------------------------------


def test_wrong_numbers_are_refused(refused: Any) -> None:
    for value in (0, -1):
        with refused(ValueError, "num_features", str(value)):
            FavorPlus(value)
    for wrong in (1.0, "3", None, True):
        with refused(TypeError, "num_features", repr(wrong)):
            FavorPlus(wrong)  # type: ignore[arg-type]
        with refused(TypeError, "seed", repr(wrong)):
            FavorPlus(3, wrong)  # type: ignore[arg-type]
        with refused(TypeError, "key_dim", repr(wrong)):
            FavorPlus(3).projection(wrong)  # type: ignore[arg-type]
    for value in (-1, 2**64):
        with refused(ValueError, "seed", str(value)):
            FavorPlus(3, value)
    with refused(ValueError, "key_dim", "0"):
        FavorPlus(3).projection(0)


def test_it_is_a_description_made_of_numbers() -> None:
    favor = FavorPlus(np.int64(3), np.uint64(2**63))  # type: ignore[arg-type]
    assert favor == FavorPlus(3, 2**63)
    assert hash(favor) == hash(FavorPlus(3, 2**63))
    assert type(favor.num_features) is int
    assert type(favor.seed) is int
    assert FavorPlus() == FavorPlus(256, 0)

"""Tables hold the contract of bits against mpmath, wherever positions lie."""

import hashlib
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest

import rotary
from rotary.conformance import compare, oracle
from rotary.frequencies import Frequencies, turns
from rotary.tables import evaluate

SETTINGS = [(10_000.0, 128), (500_000.0, 128), (1e6, 64), (1e7, 256)]
KINDS = {
    "below 2^17": lambda rng, n: rng.integers(0, 2**17, n),
    "below 10^7": lambda rng, n: rng.integers(0, 10**7, n),
    "within 2^31": lambda rng, n: rng.integers(-(2**31), 2**31, n),
    "within 2^53": lambda rng, n: rng.integers(-(2**53), 2**53 + 1, n),
    "fractional": lambda rng, n: rng.uniform(-1e6, 1e6, n),
    "of any size": lambda rng, n: 2.0 ** rng.uniform(-60, 53, n),
}


def differing(base: float, dim: int, positions: np.ndarray) -> tuple[int, int, int]:
    """Numbers compared, float32 not correctly rounded, float64 beyond 0.501 ulp."""
    rope = rotary.RotaryEmbedding(dim, base=base)
    want = oracle.tables(oracle.Angles(dim, base), positions)
    single = compare.bits(np.stack(rope.tables(positions)), want.float32)
    double = compare.ulps(
        np.stack(rope.tables(positions, dtype="float64")), want.high, want.low, 0.501
    )
    return single.elements, single.differing, double.differing


@pytest.mark.parametrize(("base", "dim"), SETTINGS)
def test_sampled_tables_are_correctly_rounded(base: float, dim: int) -> None:
    rng = np.random.default_rng(5)
    each = -(-(10_000 // len(KINDS)) // (dim // 2))
    positions = np.concatenate([sample(rng, each) for sample in KINDS.values()]).astype(float)
    compared, single, double = differing(base, dim, positions)
    assert compared >= 10_000
    assert (single, double) == (0, 0)


@pytest.mark.parametrize(("base", "dim"), SETTINGS)
def test_the_worst_positions_are_correctly_rounded(base: float, dim: int) -> None:
    worst = oracle.worst_positions(oracle.Angles(dim, base), [0, -20, -45], 53)
    positions = np.array(worst[:: -(-len(worst) // 150)])
    _, single, double = differing(base, dim, positions)
    assert (single, double) == (0, 0)


@pytest.mark.large
@pytest.mark.parametrize(("base", "dim"), SETTINGS)
def test_all_worst_positions_are_correctly_rounded(base: float, dim: int) -> None:
    worst = oracle.worst_positions(oracle.Angles(dim, base), [0, -1, -8, -20, -33, -45, -60], 53)
    for first in range(0, len(worst), 500):
        _, single, double = differing(base, dim, np.array(worst[first : first + 500]))
        assert (single, double) == (0, 0)


def test_two_words_of_turns_would_not_do() -> None:
    frequencies = Frequencies(128, 10_000.0, 128)
    positions = np.random.default_rng(3).integers(2**52, 2**53, 200).astype(float)
    words = turns(frequencies)
    assert np.all(np.abs(words[1:] / words[:-1]) <= 2.0**-53)
    truncated = words.copy()
    truncated[2:] = 0
    from rotary.exact import circle
    from rotary.tables import _circle

    cell, *rest = _circle.reduce(positions[:, None], *truncated)
    high, low = _circle.cosine(cell, *rest, circle.cosine_table())
    right = evaluate(frequencies, positions, "float64")[0]
    assert np.count_nonzero(high + low != right) > 0


@pytest.mark.parametrize("factor", [1.3688879454113936, 0.75, 40.0])
def test_the_attention_factor_costs_no_rounding(factor: float) -> None:
    positions = np.random.default_rng(1).integers(0, 10**6, 60).astype(float)
    angles, ones = oracle.Angles(64), (1.0,) * 32
    rule = rotary.scaling.LongRoPE(ones, ones, 100, attention_factor=factor)
    got32, got64 = (
        evaluate(Frequencies(64, 10_000.0, 64, scaling=rule), positions, dtype)
        for dtype in ("float32", "float64")
    )
    want = oracle.tables(angles, positions)
    with mpmath.workprec(200):
        for index in np.ndindex(got32.shape):
            exact = (mpmath.mpf(want.high[index]) + mpmath.mpf(want.low[index])) * factor
            assert got32[index] == oracle.round_to_bits(exact, 24)
            error = abs(mpmath.mpf(float(got64[index])) - exact)
            assert error <= 0.501 * np.spacing(abs(got64[index]))


def test_position_zero_is_exact() -> None:
    cos, sin = rotary.RotaryEmbedding(16).tables([0], dtype="float64")
    assert np.all(cos == 1)
    assert np.all(sin == 0)


def test_cosine_is_even_and_sine_odd_to_the_bit() -> None:
    positions = np.random.default_rng(2).uniform(0, 1e9, 500)
    rope = rotary.RotaryEmbedding(32)
    for dtype in ("float32", "float64"):
        cos, sin = rope.tables(positions, dtype=dtype)
        cos_back, sin_back = rope.tables(-positions, dtype=dtype)
        assert np.array_equal(cos, cos_back)
        assert np.array_equal(sin, -sin_back)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rope = rotary.RotaryEmbedding(64)
    all_cos, all_sin = rope.tables(np.arange(3000))
    for start, stop in ((0, 1), (255, 257), (256, 512), (1, 2999), (2999, 3000)):
        cos, sin = rope.tables(np.arange(start, stop))
        assert np.array_equal(cos, all_cos[start:stop])
        assert np.array_equal(sin, all_sin[start:stop])
        scattered, _ = rope.tables(np.arange(start, stop)[::-1])
        assert np.array_equal(scattered[::-1], cos)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0), (2, 1, 3)])
def test_tables_have_the_shape_of_the_positions(shape: tuple[int, ...]) -> None:
    cos, sin = rotary.RotaryEmbedding(8).tables(np.zeros(shape))
    assert cos.shape == sin.shape == (*shape, 4)


def test_frequencies_of_more_turns_than_positions_can_bear_are_refused() -> None:
    rope = rotary.RotaryEmbedding(4, inv_freq=[1e9, 1.0])
    rope.tables([1e6])
    with pytest.raises(ValueError, match=r"positions: .* turns"):
        rope.tables([2.0**50])


@pytest.mark.parametrize(
    ("base", "dim", "denominator"), [(1e4, 128, 128), (5e5, 64, 70), (3, 6, 5)]
)
def test_frequencies_are_the_float64_nearest_to_the_formula(
    base: float, dim: int, denominator: int
) -> None:
    rope = rotary.RotaryEmbedding(dim, base=base, frequency_dim=denominator)
    with mpmath.workprec(400):
        want = [
            float(mpmath.mpf(base) ** (mpmath.mpf(-2 * i) / denominator)) for i in range(dim // 2)
        ]
    assert rope.frequencies().tolist() == want


def test_supplied_frequencies_count_as_exact() -> None:
    supplied = (0.1, 1 / 3, 1e-9)
    rope = rotary.RotaryEmbedding(6, inv_freq=supplied)
    assert rope.frequencies().tolist() == list(supplied)
    positions = np.array([3.0, 12345678.0, 2.0**40])
    want = oracle.tables(oracle.Angles(6, inv_freq=supplied), positions)
    assert np.array_equal(np.stack(rope.tables(positions)), want.float32)


_DIGEST = """
import hashlib, numpy as np, rotary
rng = np.random.default_rng(9)
rope = rotary.RotaryEmbedding(128)
digest = hashlib.sha256()
for positions in (np.arange(500), rng.uniform(-1e9, 1e9, 500)):
    for dtype in ("float32", "float64"):
        for table in rope.tables(positions, dtype=dtype):
            digest.update(table.tobytes())
for dtype in ("float16", "float32", "float64"):
    x = rng.standard_normal((4, 500, 128)).astype(dtype)
    digest.update(rope(x, offset=12345).tobytes())
print(digest.hexdigest())
"""


def _digest(disabled: str) -> str:
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled}
    done = subprocess.run(
        [sys.executable, "-c", _DIGEST], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_bits_do_not_depend_on_numpys_simd_level() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = [feature for feature in __cpu_dispatch__ if __cpu_features__[feature]]
    if not present:
        pytest.skip("this processor has none of the SIMD levels that NumPy can switch off")
    usual = _digest("")
    assert len(usual) == hashlib.sha256().digest_size * 2
    for count in range(len(present)):
        assert _digest(" ".join(present[count:])) == usual


@pytest.mark.parametrize(("base", "dim"), [(10_000.0, 128), (500_000.0, 128), (1e6, 64)])
def test_float32_precision_gives_the_tables_of_transformers(base: float, dim: int) -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=dim,
        num_attention_heads=1,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    positions = np.arange(131_072)
    theirs = llama.LlamaRotaryEmbedding(config)(torch.zeros(1), torch.from_numpy(positions)[None])
    ours = rotary.RotaryEmbedding(dim, base=base).tables(positions, precision="float32")
    for mine, other in zip(ours, theirs, strict=True):
        found = compare.bits(mine, other[0, :, : dim // 2].numpy())
        assert found.worst <= 2


def test_float32_precision_is_as_far_from_the_truth_as_float32_angles_are() -> None:
    rope = rotary.RotaryEmbedding(128)
    positions = np.arange(131_072 - 64, 131_072)
    trained, exact = (rope.tables(positions, precision=p)[0] for p in ("float32", "exact"))
    assert 1e-3 < np.abs(trained - exact).max() < 1e-2

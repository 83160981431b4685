"""XPos: tables to the same contract, scores that depend on differences, roles, and their errors."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import rotary
from rotary import tables as tables_module
from rotary.conformance import compare, oracle
from rotary.exact import power
from rotary.frequencies import Frequencies
from rotary.xpos import exponents, reach

XPOS = rotary.XPos()
ROPE = rotary.RotaryEmbedding(64, xpos=XPOS)
ROLES = {"query": 1, "key": -1}
SETTINGS = [(10_000.0, 64, 512.0), (500_000.0, 128, 100.0), (10_000.0, 6, 3.7)]


def features(*shape: int, seed: int = 0, dtype: str = "float32") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def zeta(dim: int) -> np.ndarray:
    return (np.arange(0, dim, 2) / dim + 0.4) / 1.4


def same(got: Any, want: Any) -> bool:
    return bool(np.array_equal(np.asarray(got), want)) and np.asarray(got).dtype == want.dtype


# -- numbers -------------------------------------------------------------------------------------


def differing(
    base: float, dim: int, scale_base: float, role: str, positions: np.ndarray, dtype: str
) -> tuple[int, int]:
    """Numbers compared, and those outside the contract; without those that are subnormal."""
    rope = rotary.RotaryEmbedding(dim, base=base, xpos=rotary.XPos(scale_base))
    want = oracle.tables(oracle.Angles(dim, base, scale_base=scale_base, role=role), positions)
    normal = np.abs(want.high) > np.finfo(dtype).smallest_normal
    got = np.stack(rope.tables(positions, role=role, dtype=dtype))
    assert got.shape == want.high.shape
    if dtype == "float32":
        found = compare.bits(got[normal], want.float32[normal])
    else:
        found = compare.ulps(got[normal], want.high[normal], want.low[normal], 0.501)
    return found.elements, found.differing


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("base", "dim", "scale_base"), SETTINGS)
def test_sampled_tables_hold_the_contract(
    base: float, dim: int, scale_base: float, role: str, dtype: str
) -> None:
    rng = np.random.default_rng(5)
    most = reach(rotary.XPos(scale_base), 1.0, dtype)
    each = 3000 // dim
    positions = np.concatenate(
        [
            rng.uniform(-most, most, each),
            rng.integers(-int(most), int(most), each),
            2.0 ** rng.uniform(-60, np.log2(most), each),
            [0, most, -most],
        ]
    )
    compared, wrong = differing(base, dim, scale_base, role, positions, dtype)
    assert compared > 7000
    assert wrong == 0


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("base", "dim", "scale_base"), SETTINGS)
def test_the_worst_positions_hold_the_contract(
    base: float, dim: int, scale_base: float, role: str, dtype: str
) -> None:
    worst = np.array(oracle.worst_positions(oracle.Angles(dim, base), [0, -20, -45], 53))
    worst = worst[worst <= reach(rotary.XPos(scale_base), 1.0, dtype)]
    worst = worst[:: -(-len(worst) // 80)]
    worst = worst * np.resize([1, -1], len(worst))
    compared, wrong = differing(base, dim, scale_base, role, worst, dtype)
    assert compared > 100
    assert wrong == 0


def host_power(positions: np.ndarray, words: np.ndarray) -> tuple[Any, Any, Any]:
    return tables_module._power.power(positions, *words, power.tables()[0])


@pytest.mark.parametrize("scale_base", [512.0, 3.7])
def test_the_pair_holds_75_bits_next_to_every_cell(scale_base: float) -> None:
    rng = np.random.default_rng(0)
    words = exponents(rotary.XPos(scale_base), 16, 1)
    worst = mpmath.mpf(0)
    with mpmath.workprec(250):
        for i in range(8):
            z = (mpmath.mpf(2 * i) / 16 + mpmath.mpf("0.4")) / mpmath.mpf("1.4")
            rate = mpmath.log(z) / mpmath.mpf(scale_base)
            edges = (rng.integers(-500_000, 500_000, 60) + 0.5) / 1024 / words[0, i]
            ties = (rng.integers(-500, 500, 20) + 0.5) / words[0, i]
            anywhere = rng.uniform(-510, 510, 60) / words[0, i]
            positions = np.concatenate([edges, ties, anywhere, [0.0, 1e-300]])
            half, high, low = host_power(positions, words[:, i])
            assert np.all(np.abs(half) < 512)
            for p, h, a, b in zip(positions, half, high, low, strict=True):
                exact = mpmath.exp(rate * mpmath.mpf(float(p)))
                got = mpmath.ldexp(mpmath.mpf(float(a)) + mpmath.mpf(float(b)), 2 * int(h))
                worst = max(worst, abs(got / exact - 1))
    assert worst < mpmath.mpf(2) ** -82


def test_one_word_of_the_exponent_would_not_do() -> None:
    positions = np.random.default_rng(3).uniform(30_000, 35_000, 200)[:, None]
    words = exponents(XPOS, 64, 1)
    half, high, low = host_power(positions, words)
    cut = host_power(positions, np.stack([words[0], 0 * words[0]]))
    assert np.count_nonzero((half == cut[0]) & (high + low != cut[1] + cut[2])) > 100


@pytest.mark.parametrize("factor", [1.3688879454113936, 0.75, 40.0])
def test_the_attention_factor_costs_no_rounding(factor: float) -> None:
    positions = np.random.default_rng(1).uniform(-5000, 5000, 40)
    ones = (1.0,) * 8
    rule = rotary.scaling.LongRoPE(ones, ones, 100, attention_factor=factor)
    frequencies = Frequencies(16, 10_000.0, 16, scaling=rule, xpos=XPOS)
    want = oracle.tables(oracle.Angles(16, scale_base=512.0, role="key"), positions)
    single, double = (
        tables_module.evaluate(frequencies, positions, d, 1, -1) for d in ("float32", "float64")
    )
    with mpmath.workprec(200):
        for index in np.ndindex(single.shape):
            exact = (mpmath.mpf(want.high[index]) + mpmath.mpf(want.low[index])) * factor
            assert single[index] == oracle.round_to_bits(exact, 24)
            error = abs(mpmath.mpf(float(double[index])) - exact)
            assert error <= 0.501 * np.spacing(abs(double[index]))


def test_position_zero_is_exact() -> None:
    for role in ROLES:
        cos, sin = ROPE.tables([0, 0.0], role=role, dtype="float64")
        assert np.all(cos == 1)
        assert np.all(sin == 0)


def test_the_role_is_the_sign_of_the_position_in_the_scale() -> None:
    positions = np.random.default_rng(2).uniform(-35_000, 35_000, 200)
    for dtype in ("float32", "float64"):
        query = ROPE.tables(positions, role="query", dtype=dtype)
        key = ROPE.tables(-positions, role="key", dtype=dtype)
        assert_array_equal(query[0], key[0])
        assert_array_equal(query[1], -key[1])


# -- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(
    "part", [{}, {"rotary_dim": 4}, {"rotary_dim": 4, "rotary_side": "trailing"}]
)
def test_queries_and_keys_are_complex_numbers_times_powers(layout: str, part: Any) -> None:
    rope = rotary.RotaryEmbedding(8, layout=layout, xpos=rotary.XPos(64.0), **part)
    dim = rope.rotary_dim
    x = features(2, 3, 5, 8, dtype="float64")
    positions = np.array([0, 1, -4, 2.5, 300])
    start = 0 if rope.rotary_side == "leading" else 8 - dim
    features_of = oracle.pair_indices(8, dim, layout, rope.rotary_side)
    angle = positions[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    for role, sign in ROLES.items():
        scale = zeta(dim) ** (sign * positions[:, None] / 64)
        z = (x[..., features_of[0]] + 1j * x[..., features_of[1]]) * scale * np.exp(1j * angle)
        y = rope(x, positions=positions, role=role)
        np.testing.assert_allclose(y[..., features_of[0]], z.real, rtol=0, atol=1e-13 * scale.max())
        np.testing.assert_allclose(y[..., features_of[1]], z.imag, rtol=0, atol=1e-13 * scale.max())
        rest = [i for i in range(8) if not start <= i < start + dim]
        assert_array_equal(y[..., rest], x[..., rest])


def test_the_scores_are_those_of_the_formula_and_of_differences_alone() -> None:
    q, k = features(1, 64, dtype="float64"), features(1, 64, seed=1, dtype="float64")
    z_q, z_k = (x[:, :32] + 1j * x[:, 32:] for x in (q, k))
    omega = ROPE.frequencies()
    for p, n in [(0, 0), (700, 0), (5, 3), (1000, 998), (-20_000, -20_300), (9.5, 200.25)]:
        want = (z_q * z_k.conj() * zeta(64) ** ((p - n) / 512) * np.exp(1j * omega * (p - n))).real
        got = ROPE(q, offset=p, role="query") * ROPE(k, offset=n, role="key")
        size = np.abs(want).sum()
        assert abs(got.sum() - want.sum()) < 1e-11 * size


def test_queries_shrink_and_keys_grow() -> None:
    q, k = ROPE(np.ones((2, 1000, 64)), np.ones((2, 1000, 64)))
    norms = [np.linalg.norm(x, axis=-1) for x in (q, k)]
    assert np.all(np.diff(norms[0]) < 0)
    assert np.all(np.diff(norms[1]) > 0)


# -- roles ---------------------------------------------------------------------------------------


def test_two_arrays_are_query_and_key(library: Any) -> None:
    q, k = features(2, 4, 5, 64), features(2, 2, 5, 64, seed=1)
    for given in ({}, {"offset": 300}, {"positions": [[3, 1, 2, 9, 4], [0.5, 7, 7, 7, 1]]}):
        got = ROPE(library.array(q), library.array(k), **given)
        back = ROPE.inverse(library.array(q), library.array(k), **given)
        for x, y, z, role in zip((q, k), got, back, ROLES, strict=True):
            assert same(y, ROPE(x, role=role, **given))
            assert same(z, ROPE.inverse(x, role=role, **given))
            assert type(y) is type(library.array(x))


def test_rows_of_keys_meet_rows_of_queries(refused: Any) -> None:
    q, k = features(2, 5, 64), features(1, 5, 64)
    with refused(ValueError, "k", "expected 2 batch rows as q", unchanged=(q, k)):
        ROPE(q, k, positions=np.arange(10).reshape(2, 5))


def test_results_are_written_in_place(library: Any) -> None:
    q, k = features(2, 4, 5, 64), features(2, 2, 5, 64, seed=1)
    a, b = library.array(q.copy()), library.array(k.copy())
    if library.name == "jax":
        with pytest.raises(ValueError, match="out"):
            ROPE(a, b, out=(a, b))
        return
    want = ROPE(q, k, offset=7)
    got = ROPE(a, b, offset=7, out=(a, b))
    assert got[0] is a
    assert got[1] is b
    assert same(a, want[0])
    assert same(b, want[1])
    want = ROPE(k, offset=7, role="key")
    c = library.array(k.copy())
    assert ROPE(c, offset=7, role="key", out=c) is c
    assert same(c, want)


@pytest.mark.parametrize("scaled", [False, True])
def test_inverse_takes_rotation_scale_and_factor_out(scaled: bool) -> None:
    rule = rotary.scaling.YaRN(16.0, 4096) if scaled else None
    rope = rotary.RotaryEmbedding(64, xpos=XPOS, scaling=rule)
    x = features(2, 5, 64, dtype="float64")
    for role in ROLES:
        for offset in (0, 700, -9000.5):
            back = rope.inverse(rope(x, offset=offset, role=role), offset=offset, role=role)
            np.testing.assert_allclose(back, x, rtol=0, atol=1e-14)
    q, k = rope.inverse(*rope(x, x, offset=3000), offset=3000)
    np.testing.assert_allclose(q, x, rtol=0, atol=1e-14)
    np.testing.assert_allclose(k, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("by", [300, -7, 0.25])
def test_a_shift_moves_keys_and_scale(by: float) -> None:
    x = features(2, 5, 64, dtype="float64")
    key, query = (ROPE(x, offset=40, role=role) for role in ("key", "query"))
    for got, role in (
        (ROPE.shift(key, by), "key"),
        (ROPE.shift(key, by, role="key"), "key"),
        (ROPE.shift(query, by, role="query"), "query"),
    ):
        want = ROPE(x, offset=40 + by, role=role)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 * np.abs(want).max())


def test_a_shift_leaves_the_attention_factor_alone() -> None:
    rope = rotary.RotaryEmbedding(64, xpos=XPOS, scaling=rotary.scaling.YaRN(16.0, 4096))
    x = features(5, 64, dtype="float64")
    want = rope(x, offset=12, role="key")
    got = rope.shift(rope(x, role="key"), 12)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 * np.abs(want).max())


def test_a_long_call_gives_the_bits_of_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = features(1, 2, 600, 64), features(1, 1, 600, 64, seed=1)
    want = ROPE(q, k, offset=-300), ROPE.inverse(q, k, offset=-300)
    monkeypatch.setattr(tables_module, "PIECE_BYTES", 2**14)
    got = ROPE(q, k, offset=-300), ROPE.inverse(q, k, offset=-300)
    for one, other in zip(got, want, strict=True):
        assert same(one[0], other[0])
        assert same(one[1], other[1])


def test_what_is_kept_is_kept_by_role_and_scale_base() -> None:
    x = features(5, 64)
    ropes = [ROPE, rotary.RotaryEmbedding(64), rotary.RotaryEmbedding(64, xpos=rotary.XPos(511.0))]

    def every() -> list[np.ndarray]:
        return [
            method(x, offset=9, **({} if rope.xpos is None else {"role": role}))
            for rope in ropes
            for role in ROLES
            for method in (rope.__call__, rope.inverse)
        ]

    together = every()
    for number, y in enumerate(together):
        tables_module.cache.clear()
        assert same(every()[number], y)
    assert len({y.tobytes() for y in together}) == 10  # without xpos, roles are one


# -- libraries, compiled programs and gradients --------------------------------------------------


def x64_for(library: Any) -> AbstractContextManager[Any]:
    return (
        importlib.import_module("jax").enable_x64(True) if library.name == "jax" else nullcontext()
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("role", ROLES)
def test_every_library_gives_the_bits_of_numpy(library: Any, dtype: str, role: str) -> None:
    x = features(2, 3, 5, 64, dtype=dtype)
    with x64_for(library):
        got = ROPE(library.array(x), offset=1000, role=role)
        assert same(got, ROPE(x, offset=1000, role=role))


@pytest.fixture(params=[False, True], ids=["x64 off", "x64 on"])
def jax(request: pytest.FixtureRequest) -> Any:
    """Return JAX, under both settings."""
    module = pytest.importorskip("jax")
    with module.enable_x64(request.param):
        yield module


@pytest.mark.parametrize("offset", [0, 77, -2000, 30_000, 0.5])
def test_jax_programs_give_the_bits_of_numpy(jax: Any, offset: float) -> None:
    q, k = features(2, 3, 8, 64), features(2, 1, 8, 64, seed=1)
    want = ROPE(q, k, offset=offset)
    for program in (
        jax.jit(lambda q, k: ROPE(q, k, offset=offset)),
        lambda q, k: jax.jit(lambda q, k, n: ROPE(q, k, offset=n))(q, k, offset),
    ):
        for got, wanted in zip(program(q, k), want, strict=True):
            assert same(got, wanted)


def test_jax_traced_tables_are_those_of_the_host(jax: Any) -> None:
    rng = np.random.default_rng(2)
    positions = np.r_[rng.uniform(-30_000, 30_000, 300), rng.integers(-30_000, 30_000, 300)]
    positions = positions.astype(np.float32)
    like = jax.numpy.zeros(1, np.float32)
    for role in ROLES:
        got = jax.jit(lambda p, role=role: ROPE.tables(p, like=like, role=role))(positions)
        for table, want in zip(got, ROPE.tables(positions, role=role), strict=True):
            assert same(table, want)


def test_jax_float64_tables_are_those_of_the_host() -> None:
    jax = pytest.importorskip("jax")
    positions = np.random.default_rng(2).uniform(-280_000, 280_000, 500)
    with jax.enable_x64(True):
        like = jax.numpy.zeros(1, np.float64)
        got = jax.jit(lambda p: ROPE.tables(p, like=like, role="key"))(positions)
        want = ROPE.tables(positions, role="key", dtype="float64")
        assert all(same(*pair) for pair in zip(got, want, strict=True))


def test_a_jax_program_gives_nan_where_the_scale_has_no_number(jax: Any) -> None:
    positions = np.array([0, 35_694, -35_694, 35_695, -35_695, 10**6, -(10**9)], np.int32)
    like = jax.numpy.zeros(1, np.float32)
    cos, sin = jax.jit(lambda p: ROPE.tables(p, like=like, role="query"))(positions)
    for table in (cos, sin):
        assert np.isnan(np.asarray(table)).all(axis=-1).tolist() == [False] * 3 + [True] * 4


def test_jax_refuses_positions_that_it_knows(jax: Any, refused: Any) -> None:
    for seq in (4, 40_000):  # a constant of the program, and a table that it computes
        with refused(ValueError, "positions", "away from 0"):
            jax.jit(lambda x: ROPE(x, offset=36_000, role="key"))(np.ones((seq, 64), np.float32))


def test_the_gradient_by_position_is_the_derivative() -> None:
    jax = pytest.importorskip("jax")
    x, rope = features(7, 8), rotary.RotaryEmbedding(8, xpos=rotary.XPos(2.0))
    positions, step = np.arange(7, dtype=np.float32) * 0.5 + 0.25, 1e-5
    for role in ROLES:
        ahead, behind = (
            rope(x.astype(float), positions=positions.astype(float) + by, role=role).sum(-1)
            for by in (step, -step)
        )
        for run in (lambda f: f, jax.jit):
            got = run(
                jax.grad(lambda p, r=role: rope(jax.numpy.asarray(x), positions=p, role=r).sum())
            )(jax.numpy.asarray(positions))
            want = (ahead - behind) / (2 * step)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def adjoint(g: np.ndarray, offset: int, role: str) -> np.ndarray:
    """Rotate by the opposite angle, with the same scale: no inverse."""
    cos, sin = ROPE.tables(np.arange(offset, offset + g.shape[-2]), role=role)
    return rotary.rotate(g, cos, sin, inverse=True)


@pytest.mark.parametrize("role", ROLES)
def test_jax_gradients_are_the_adjoint_to_the_bit(jax: Any, role: str) -> None:
    x, g = features(2, 3, 8, 64), features(2, 3, 8, 64, seed=1)
    want = adjoint(g, 900, role)
    assert not np.allclose(want, ROPE.inverse(g, offset=900, role=role))
    for run in (lambda f: f, jax.jit):
        for pull_back in (
            lambda x, g: jax.vjp(lambda x: ROPE(x, offset=900, role=role), x)[1](g)[0],
            lambda x, g: jax.vjp(lambda x, n: ROPE(x, offset=n, role=role), x, 900.0)[1](g)[0],
        ):
            assert same(run(pull_back)(jax.numpy.asarray(x), jax.numpy.asarray(g)), want)


def test_torch_compiled_and_its_gradients_have_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    q, k = features(1, 4, 3, 64), features(1, 2, 3, 64, seed=1)
    g = features(1, 4, 3, 64, seed=2)
    both = torch.compile(lambda q, k, n: ROPE(q, k, offset=n), fullgraph=True, backend=backend)
    for offset in range(3, 3000, 499):
        leaf = torch.from_numpy(q.copy()).requires_grad_()
        got = both(leaf, torch.from_numpy(k), offset)
        want = ROPE(q, k, offset=offset)
        assert same(got[0].detach(), want[0])
        assert same(got[1], want[1])
        (gradient,) = torch.autograd.grad(got[0], leaf, torch.from_numpy(g))
        assert same(gradient, adjoint(g, offset, "query"))
    assert len(graphs) <= 2


def test_torch_programs_refuse_positions_out_of_reach() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    program = torch.compile(
        lambda x, n: ROPE(x, offset=n, role="key"), fullgraph=True, backend="eager"
    )
    with pytest.raises(ValueError, match=r"positions: got one 36000\.0 away from 0"):
        program(torch.ones(1, 64), 36_000)


# -- range and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 126), ("float64", 1022)])
@pytest.mark.parametrize("scale_base", [512.0, 1.0, 1e-3, 1e18])
def test_the_reach_is_where_the_scale_leaves_the_dtype(
    dtype: str, bits: int, scale_base: float
) -> None:
    most = reach(rotary.XPos(scale_base), 1.0, dtype)
    with mpmath.workprec(200):
        exact = bits * scale_base * mpmath.log(2) / mpmath.log(mpmath.mpf(7) / 2)
        assert exact * (1 - mpmath.mpf(2) ** -51) < most <= exact


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 35_694), ("float64", 289_519)])
@pytest.mark.parametrize("role", ROLES)
def test_positions_are_refused_where_the_scale_leaves_the_dtype(
    dtype: str, limit: int, role: str, refused: Any
) -> None:
    x = np.ones((2, 64), dtype)
    for offset in (limit - 1, -limit):
        y = ROPE(x, offset=offset, role=role)
        assert np.all(np.isfinite(y))
    for offset in (limit, -limit - 1):
        words = ("away from 0", f"at most {limit}.", f"the range of {dtype}")
        with refused(ValueError, "positions", *words, unchanged=(x,)):
            ROPE(x, offset=offset, role=role)
    with refused(ValueError, "positions", f"{limit + 1}.0 away from 0"):
        ROPE.shift(x, limit + 1)
    with refused(ValueError, "positions", "away from 0"):
        ROPE.tables([3, limit + 1, 4], role=role, dtype=dtype)


def test_an_attention_factor_shortens_the_reach() -> None:
    ones = (1.0,) * 32
    rule = rotary.scaling.LongRoPE(ones, ones, 100, attention_factor=1024.0)
    rope = rotary.RotaryEmbedding(64, xpos=XPOS, scaling=rule)
    most = int(reach(XPOS, 1024.0, "float32"))
    assert most == int(116 / 126 * 35_694.2)
    tables = rope.tables([most, -most], role="key")
    assert all(np.isfinite(table).all() for table in tables)
    with pytest.raises(ValueError, match="away from 0"):
        rope.tables([most + 1], role="key")


@pytest.mark.parametrize(
    ("call", "error", "name", "words"),
    [
        (lambda x: ROPE(x), ValueError, "role", "got None, expected 'query' or 'key'"),
        (lambda x: ROPE.inverse(x), ValueError, "role", "got None, expected 'query' or 'key'"),
        (lambda x: ROPE.tables([0]), ValueError, "role", "got None, expected 'query' or 'key'"),
        (lambda x: ROPE(x, role="q"), ValueError, "role", "got 'q', expected 'query' or 'key'"),
        (lambda x: ROPE(x, role=1), ValueError, "role", "got 1, expected 'query' or 'key'"),
        (lambda x: ROPE.shift(x, 1, role="k"), ValueError, "role", "got 'k', expected 'query'"),
        (lambda x: ROPE(x, x, role="query"), ValueError, "role", "got 'query' beside k, expected"),
        (lambda x: ROPE.inverse(x, x, role="key"), ValueError, "role", "got 'key' beside k"),
        (
            lambda x: ROPE.tables([0], role="key", precision="float32"),
            ValueError,
            "precision",
            "got 'float32' with xpos, expected 'exact'",
        ),
    ],
)
def test_wrong_roles_are_refused(
    call: Callable[..., Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    x = features(2, 64)
    with refused(error, name, words, unchanged=(x,)):
        call(x)


def test_a_role_without_xpos_is_refused(refused: Any) -> None:
    rope, x = rotary.RotaryEmbedding(64), features(2, 64)
    for call in (
        lambda: rope(x, role="query"),
        lambda: rope(x, x, role="key"),
        lambda: rope.inverse(x, role="query"),
        lambda: rope.shift(x, 1, role="key"),
        lambda: rope.tables([0], role="key"),
    ):
        with refused(ValueError, "role", "expected None: without xpos"):
            call()


@pytest.mark.parametrize(
    ("scale_base", "error", "words"),
    [
        (0, ValueError, "got 0.0, expected a positive, finite number"),
        (-512, ValueError, "got -512.0, expected a positive, finite number"),
        (float("nan"), ValueError, "got nan, expected a positive, finite number"),
        (float("inf"), ValueError, "got inf, expected a positive, finite number"),
        (1e-30, ValueError, "got 1e-30, expected at least 2^-64"),
        ("512", TypeError, "got '512', expected a number"),
        (None, TypeError, "got None, expected a number"),
        (True, TypeError, "got True, expected a number"),
    ],
)
def test_a_wrong_scale_base_is_refused(
    scale_base: Any, error: type[Exception], words: str, refused: Any
) -> None:
    with refused(error, "scale_base", words):
        rotary.XPos(scale_base)


def test_descriptions_are_values() -> None:
    assert rotary.XPos(512) == rotary.XPos() == pickle.loads(pickle.dumps(XPOS))
    assert hash(rotary.XPos(512)) == hash(XPOS)
    assert rotary.RotaryEmbedding(64, xpos=rotary.XPos(512)) == ROPE
    assert rotary.RotaryEmbedding(64) != ROPE
    assert "xpos=XPos(scale_base=512.0)" in repr(ROPE)
    token = ROPE._frequencies.token
    assert Frequencies.from_token(token) == ROPE._frequencies


def test_the_exponents_hold_two_words() -> None:
    words = exponents(XPOS, 64, 1)
    assert words.shape == (2, 32)
    assert np.all(np.abs(words[1]) <= np.abs(words[0]) * 2.0**-53)
    assert_array_equal(exponents(XPOS, 64, -1), -words)
    with mpmath.workprec(300):
        for i, (high, low) in enumerate(words.T):
            z = (mpmath.mpf(2 * i) / 64 + mpmath.mpf("0.4")) / mpmath.mpf("1.4")
            exact = mpmath.log(z) / mpmath.log(4) / 512
            assert abs((mpmath.mpf(high) + mpmath.mpf(low)) / exact - 1) < mpmath.mpf(2) ** -105
            assert high == float(exact)

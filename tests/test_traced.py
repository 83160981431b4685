"""Positions that only the compiled program knows: the host's bits, one compilation, no table."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rotary
from rotary.conformance import oracle

jax = pytest.importorskip("jax")
jnp = jax.numpy

ROPE = rotary.RotaryEmbedding(64)


def features(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def differing(got: Any, want: Any) -> int:
    got = np.asarray(got)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return int(np.count_nonzero(got != want))


@pytest.fixture(params=[False, True], ids=["x64 off", "x64 on"])
def x64(request: pytest.FixtureRequest) -> Any:
    with jax.enable_x64(request.param):
        yield request.param


@pytest.mark.parametrize("offset", [0, 1, 255, 256, 10**6, 2**31 - 9, -77, 0.5, -1234.25])
def test_a_traced_offset_gives_the_bits_of_the_host(offset: float, x64: bool) -> None:
    q = features(2, 3, 8, 64)
    got = jax.jit(lambda q, offset: ROPE(q, offset=offset))(q, offset)
    assert differing(got, ROPE(q, offset=offset)) == 0


def test_one_compilation_serves_all_offsets() -> None:
    step = jax.jit(lambda q, offset: ROPE(q, offset=offset))
    q = features(1, 2, 1, 64)
    for offset in range(0, 3000, 100):
        assert differing(step(q, offset), ROPE(q, offset=offset)) == 0
    assert step._cache_size() == 1


def test_an_offset_for_each_row_may_be_traced(x64: bool) -> None:
    q = features(3, 2, 5, 64)
    offsets = np.array([7, 100_000, 3], np.int32)
    got = jax.jit(lambda q, offset: ROPE(q, offset=offset))(q, offsets)
    assert differing(got, ROPE(q, offset=offsets)) == 0


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5)])
@pytest.mark.parametrize("kind", ["int32", "uint8", "float32"])
def test_positions_may_be_traced(shape: tuple[int, ...], kind: str, x64: bool) -> None:
    q = features(3, 2, 5, 64)
    positions = (np.random.default_rng(1).uniform(0, 255, shape)).astype(kind)
    got = jax.jit(lambda q, positions: ROPE(q, positions=positions))(q, positions)
    assert differing(got, ROPE(q, positions=positions)) == 0


def test_float64_tables_are_those_of_the_host() -> None:
    positions = np.random.default_rng(2).uniform(-1e9, 1e9, 500)
    with jax.enable_x64(True):
        like = jnp.zeros(1, jnp.float64)
        got = jax.jit(lambda p: ROPE.tables(p, like=like))(positions)
        for table, want in zip(got, ROPE.tables(positions, dtype="float64"), strict=True):
            assert differing(table, want) == 0


def test_the_worst_positions_are_those_of_the_host(x64: bool) -> None:
    worst = np.array(oracle.worst_positions(oracle.Angles(64), [0, -20], 24), np.float32)
    like = jnp.zeros(1)
    got = jax.jit(lambda p: ROPE.tables(p, like=like, dtype="float32"))(worst)
    for table, want in zip(got, ROPE.tables(worst), strict=True):
        assert differing(table, want) == 0


def test_positions_may_be_mapped_over() -> None:
    q, positions = features(3, 2, 5, 64), np.arange(15, dtype=np.int32).reshape(3, 5) * 1001
    want = ROPE(q, positions=positions)
    mapped = jax.vmap(lambda q, p: ROPE(q, positions=p))
    assert differing(mapped(q, positions), want) == 0
    assert differing(jax.jit(mapped)(q, positions), want) == 0


def test_a_scan_decodes_with_its_own_counter() -> None:
    q = features(6, 2, 4, 1, 64)

    @jax.jit
    def decode(start: Any) -> Any:
        def step(offset: Any, q: Any) -> Any:
            return offset + 1, ROPE(q, offset=offset)

        return jax.lax.scan(step, start, q)[1]

    got = decode(jnp.int32(1_000_000))
    for i, y in enumerate(got):
        assert differing(y, ROPE(q[i], offset=1_000_000 + i)) == 0


def test_gradients_pass_traced_positions() -> None:
    q, g = features(2, 3, 8, 64), features(2, 3, 8, 64, seed=1)

    @jax.jit
    def pull_back(q: Any, g: Any, offset: Any) -> Any:
        return jax.vjp(lambda q: ROPE(q, offset=offset), q)[1](g)[0]

    assert differing(pull_back(q, g, 12345), ROPE.inverse(g, offset=12345)) == 0


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_gradient_by_position_is_the_derivative(run: Callable[..., Any], x64: bool) -> None:
    x = features(7, 64)
    positions = np.arange(7, dtype=np.float32) * 1.5 + 2

    def total(p: Any) -> Any:
        return (ROPE(jnp.asarray(x), positions=p) * 0.1).sum()

    step = 1e-5
    ahead, behind = (
        ROPE(x.astype(np.float64), positions=positions.astype(float) + by).sum(-1) * 0.1
        for by in (step, -step)
    )
    got = run(jax.grad(total))(jnp.asarray(positions))
    np.testing.assert_allclose(got, (ahead - behind) / (2 * step), rtol=0, atol=1e-5)


def test_a_shift_may_be_traced() -> None:
    k = features(2, 3, 8, 64)
    got = jax.jit(lambda k, by: ROPE.shift(k, by))(k, -9)
    assert differing(got, ROPE.shift(k, -9)) == 0


def test_no_memory_in_proportion_to_the_context() -> None:
    def bytes_for(offset: int) -> int:
        q = features(1, 1, 4, 64)
        program = jax.jit(lambda q, offset: ROPE(q, offset=offset)).lower(q, offset).compile()
        memory = program.memory_analysis()
        return int(memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)

    assert bytes_for(2**30) == bytes_for(0)


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        (np.zeros(4, np.float16), TypeError, "positions: got dtype float16"),
        (np.zeros(4, bool), TypeError, "positions: got dtype bool"),
        (np.zeros(3, np.int32), ValueError, r"positions: got shape \(3,\), expected \(4,\)"),
        (np.zeros((3, 4), np.int32), ValueError, r"positions: got shape \(3, 4\)"),
    ],
)
def test_bad_traced_positions_are_refused(positions: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        jax.jit(lambda q, p: ROPE(q, positions=p))(features(2, 1, 4, 64), positions)


def test_tables_of_traced_positions_need_an_array_to_be_like() -> None:
    with pytest.raises(TypeError, match="positions: got an array of jax"):
        jax.jit(lambda p: ROPE.tables(p))(np.arange(4))


def test_a_program_of_torch_serves_all_offsets() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    step = torch.compile(lambda q, n: ROPE(q, offset=n), fullgraph=True, backend=backend)
    q = torch.from_numpy(features(1, 2, 1, 64))
    for offset in range(3, 600, 37):
        assert differing(step(q, offset), ROPE(q.numpy(), offset=offset)) == 0
    # The first offset is taken for a constant, all others for a variable.
    assert len(graphs) <= 2


@pytest.mark.large
@pytest.mark.parametrize("below", [10**7, 2**31])
def test_ten_million_samples_are_those_of_the_host(below: int) -> None:
    rope, like = rotary.RotaryEmbedding(128), jnp.zeros(1)
    program = jax.jit(lambda p: rope.tables(p, like=like))
    rng = np.random.default_rng(below)
    wrong = compared = 0
    for _ in range(20):
        positions = rng.integers(0, below, 4096).astype(np.int32)
        for got, want in zip(program(positions), rope.tables(positions), strict=True):
            wrong += differing(got, want)
            compared += want.size
    assert compared >= 10**7
    assert wrong == 0


@pytest.mark.large
def test_a_hundred_thousand_fractional_samples_keep_the_contract() -> None:
    rope, like = rotary.RotaryEmbedding(128), jnp.zeros(1)
    positions = np.random.default_rng(5).uniform(-1e6, 1e6, 1600).astype(np.float32)
    got = jax.jit(lambda p: rope.tables(p, like=like))(positions)
    want = oracle.tables(oracle.Angles(128), positions.astype(float)).float32
    assert want[0].size >= 10**5
    assert differing(np.stack([np.asarray(table) for table in got]), want) == 0

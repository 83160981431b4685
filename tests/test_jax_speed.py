"""JAX's rotation: one program for eager calls, a part of the caller's program, the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import rotary
from rotary import tables
from rotary.backends import _numpy
from rotary.rotation import Turn, rotate_by_array_code

jax = pytest.importorskip("jax")
jnp = jax.numpy
P = jax.sharding.PartitionSpec

HALF = rotary.RotaryEmbedding(128)
WOVEN = rotary.RotaryEmbedding(128, layout="interleaved")
PARTIAL = rotary.RotaryEmbedding(128, rotary_dim=32, rotary_side="trailing")
WOVEN_PARTIAL = rotary.RotaryEmbedding(128, rotary_dim=32, layout="interleaved")
ROPES = [HALF, WOVEN, PARTIAL, WOVEN_PARTIAL]
ropes = pytest.mark.parametrize(
    "rope", ROPES, ids=["half", "interleaved", "partial", "interleaved partial"]
)


def features(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def differing(got: Any, want: Any) -> int:
    got = np.asarray(got)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return int(np.count_nonzero((got != want) & ~(np.isnan(got) & np.isnan(want))))


@pytest.fixture
def compilations(caplog: pytest.LogCaptureFixture) -> Callable[[], Any]:
    """Return a context that counts the programs compiled within it."""
    # What other tests had kept is not moved to the device again, and other tests make JAX forget
    # the program that moves it: a first call has to find neither.
    tables.cache.clear()

    @contextmanager
    def counted() -> Iterator[list[str]]:
        names: list[str] = []
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            yield names
        names += [m for m in caplog.messages if m.startswith("Compiling")]

    return counted


def test_the_count_of_compilations_counts(compilations: Any) -> None:
    with compilations() as names:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
    assert len(names) > 0


@ropes
def test_eager_calls_compile_for_shapes_alone(rope: Any, compilations: Any) -> None:
    q, k = features(1, 4, 1, 128), features(1, 2, 1, 128)

    def step(offset: int) -> None:
        got = rope(jnp.asarray(q + offset), jnp.asarray(k), offset=offset)
        for y, x in zip(got, (q + offset, k), strict=True):
            assert differing(y, rope(x, offset=offset)) == 0

    step(0)
    with compilations() as names:
        for offset in (1, 7, 255, 256, 1000, 10**6):
            step(offset)
    assert names == []


def test_eager_calls_with_other_positions_compile_nothing(compilations: Any) -> None:
    x, positions = features(2, 3, 5, 128), np.arange(10).reshape(2, 5)
    HALF(jnp.asarray(x), positions=positions)
    with compilations() as names:
        for scale in (2, 300, 70_000):
            got = HALF(jnp.asarray(x), positions=positions * scale)
            assert differing(got, HALF(x, positions=positions * scale)) == 0
    assert names == []


def test_queries_and_keys_rotate_in_one_program(compilations: Any) -> None:
    q, k = jnp.asarray(features(1, 6, 11, 128)), jnp.asarray(features(1, 3, 11, 128))
    HALF(q, offset=5)  # the tables
    with compilations() as names:
        HALF(q, k, offset=5)
    assert len(names) == 1


def test_a_caller_s_program_compiles_once_for_all_values(compilations: Any) -> None:
    rope = rotary.RotaryEmbedding(128, scaling=rotary.scaling.DynamicNTK(2.0, 64))
    x = features(2, 3, 5, 128)
    by_positions = jax.jit(lambda x, p: rope(x, positions=p, seq_len=100))
    by_offset = jax.jit(lambda x, n: rope(x, offset=n, seq_len=100))
    positions, offsets = np.arange(10, dtype=np.int32).reshape(2, 5), np.array([3, 50], np.int32)
    for scale in (1, 2, 9):
        want = rope(x, positions=positions * scale, seq_len=100)
        assert differing(by_positions(x, positions * scale), want) == 0
        want = rope(x, offset=offsets * scale, seq_len=100)
        assert differing(by_offset(x, offsets * scale), want) == 0
    assert by_positions._cache_size() == by_offset._cache_size() == 1


def test_the_rotation_is_inlined_in_a_caller_s_program() -> None:
    x = jnp.asarray(features(1, 2, 5, 128))
    steps = jax.make_jaxpr(lambda q, k: HALF(q, k, offset=3))(x, x).eqns
    assert [step.primitive.name for step in steps] == ["rotary_rotation"] * 2


@ropes
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_the_program_writes_nothing_but_its_result(rope: Any, way: str) -> None:
    x = jnp.asarray(features(1, 8, 256, 128))

    def pull_back(x: Any, d: Any) -> Any:
        return jax.vjp(rope, x)[1](d)[0]

    function, inputs = (rope, (x,)) if way == "forward" else (pull_back, (x, x))
    program = jax.jit(function).lower(*inputs).compile()
    if jax.default_backend() == "cpu":
        assert program.memory_analysis().temp_size_in_bytes < x.nbytes // 16
    assert differing(program(*inputs), (rope if way == "forward" else rope.inverse)(x)) == 0


TURNS = [
    Turn("half", "leading", None, False),
    Turn("half", "trailing", (1, 3), True),
    Turn("half", "leading", (2, 2), False),
    Turn("interleaved", "leading", None, True),
    Turn("interleaved", "trailing", None, False),
]


@pytest.mark.parametrize(
    ("turn", "dim"), [*zip(TURNS, [8, 11, 8, 8, 11], strict=True), (TURNS[3], 12)]
)
def test_every_way_of_running_gives_the_bits_of_numpy(turn: Turn, dim: int) -> None:
    x, d = features(2, 3, 4, dim), features(2, 3, 4, dim, seed=1)
    x[0, 0, 0, :3] = np.inf, np.nan, -np.inf
    cos, sin = features(4, 4, seed=2), features(4, 4, seed=3)
    layout, side, blocks, inverse = turn
    how = {"layout": layout, "rotary_side": side, "blocks": blocks, "inverse": inverse}

    def rotated(x: Any, sin: Any = sin) -> Any:
        return rotary.rotate(x, jnp.asarray(cos), jnp.asarray(sin), **how)

    def pull_back(x: Any, d: Any, sin: Any = sin) -> Any:
        return jax.vjp(lambda x: rotated(x, sin), x)[1](d)[0]

    def want(x: Any, sin: Any, turn: Turn = turn) -> Any:
        with np.errstate(invalid="ignore"):
            return rotate_by_array_code((x,), cos, sin, turn, _numpy)[0]

    back = turn._replace(inverse=not inverse)
    xj, dj = jnp.asarray(x), jnp.asarray(d)
    assert differing(rotated(xj), want(x, sin)) == 0
    assert differing(jax.jit(rotated)(xj), want(x, sin)) == 0
    with jax.disable_jit():
        assert differing(rotated(xj), want(x, sin)) == 0
    assert differing(pull_back(xj, dj), want(d, sin, back)) == 0
    assert differing(jax.jit(pull_back)(xj, dj), want(d, sin, back)) == 0
    assert differing(jax.jvp(rotated, (xj,), (dj,))[1], want(d, sin)) == 0
    for axis in (0, 1):
        mapped = jax.vmap(rotated, in_axes=axis, out_axes=axis)
        assert differing(mapped(xj), want(x, sin)) == 0
    # LLVM undoes the guard of a difference of products, one of which is negated.
    negated = jax.jit(lambda x, sin: rotated(x, -sin))
    assert differing(negated(xj, sin), want(x, -sin)) == 0
    negated = jax.jit(lambda x, d, sin: pull_back(x, d, -sin))
    assert differing(negated(xj, dj, sin), want(d, -sin, back)) == 0


def test_a_negated_sine_keeps_the_bits_of_many_elements() -> None:
    x = features(512, 128)
    cos, sin = HALF.tables(np.arange(512))
    for inverse in (False, True):

        def back(x: Any, sin: Any, inverse: bool = inverse) -> Any:
            return rotary.rotate(x, jnp.asarray(cos), -sin, inverse=inverse)

        want = rotary.rotate(x, cos, -sin, inverse=inverse)
        assert differing(jax.jit(back)(x, sin), want) == 0


@pytest.mark.parametrize("turn", [TURNS[1], TURNS[4]], ids=lambda turn: turn.layout)
def test_tables_are_differentiable_and_mapped_over(turn: Turn) -> None:
    from jax.test_util import check_grads

    layout, side, blocks, inverse = turn

    def rotated(x: Any, cos: Any, sin: Any) -> Any:
        given = map(jnp.asarray, (x, cos, sin))
        return rotary.rotate(
            *given, layout=layout, rotary_side=side, blocks=blocks, inverse=inverse
        )

    with jax.enable_x64(True):
        x, cos, sin = (
            np.random.default_rng(seed).standard_normal(shape)
            for seed, shape in enumerate([(2, 3, 10), (3, 4), (3, 4)])
        )
        check_grads(rotated, (x, cos, sin), order=1)
        mapped = jax.vmap(rotated, in_axes=(None, 0, None))
        check_grads(mapped, (x, np.stack([cos, -cos]), sin), order=1)
        got = mapped(jnp.asarray(x), jnp.stack([cos, -cos]), jnp.asarray(sin))
        want = np.stack([rotated(x, cos, sin), rotated(x, -cos, sin)])
        np.testing.assert_array_equal(got, want)


def test_eager_gradients_make_their_tables_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rope, x = rotary.RotaryEmbedding(128, base=12_345.0), jnp.asarray(features(2, 7, 128))
    made = []
    evaluate = tables.evaluate

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(tables, "evaluate", counted)
    for _ in range(3):
        jax.grad(lambda x: rope(x).sum())(x)
    assert len(made) == 1


def test_float64_rotates_as_it_is_with_x64_off() -> None:
    x, (cos, sin) = features(5, 128).astype(float), HALF.tables(np.arange(5), dtype="float64")
    with jax.enable_x64(True):
        given = [jnp.asarray(a) for a in (x, cos, sin)]
    with jax.enable_x64(False):
        got = rotary.rotate(*given)
    assert differing(got, rotary.rotate(x, cos, sin)) == 0


@pytest.mark.skipif(len(jax.devices()) < 2, reason="one device")
@ropes
def test_results_stay_where_their_arrays_are(rope: Any) -> None:
    x, devices = features(2, 4, 6, 128), jax.devices()[:2]
    there = rope(jax.device_put(x, devices[1]))
    assert there.devices() == {devices[1]}
    mesh = jax.sharding.Mesh(np.array(devices), ("a",))
    for spec in (P("a"), P(None, "a"), P(None, None, "a")):
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        got = rope(sharded)
        assert got.sharding.is_equivalent_to(sharded.sharding, got.ndim)
        assert differing(got, rope(x)) == 0


@pytest.mark.skipif(len(jax.devices()) < 2, reason="one device")
def test_positions_may_vary_along_a_mapped_mesh_where_features_do_not() -> None:
    x = features(1, 4, 6, 128)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("a",))
    shards = jax.shard_map(
        lambda p: HALF(jnp.asarray(x), positions=p), mesh=mesh, in_specs=P("a"), out_specs=P("a")
    )
    positions = np.arange(12).reshape(2, 6)
    want = np.concatenate([HALF(x, positions=row) for row in positions])
    assert differing(jax.jit(shards)(positions), want) == 0

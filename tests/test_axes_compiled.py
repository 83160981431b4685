"""Several position axes in compiled programs: the host's bits, and gradients by positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import rotary
from rotary import scaling
from rotary.axes import Axial, Sections, grid

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 5, 24)).astype(np.float32)  # batch, heads, seq, head_dim
ROWS = RNG.integers(0, 10**6, (3, 2, 5)).astype(np.int32)  # axes, batch, seq
SECTIONS = [
    rotary.RotaryEmbedding(24, axes=Sections([4, 3, 5])),
    rotary.RotaryEmbedding(24, axes=Sections([4, 4, 4], order="cycled")),
    rotary.RotaryEmbedding(24, axes=Sections([6, 3, 3], order="first_axis_last")),
]
SPLIT = rotary.RotaryEmbedding(24, axes=Axial([2, 6, 4], axis_order=(1, 0, 2), split_features=True))
IN_TURNS = rotary.RotaryEmbedding(24, base=100.0, axes=Axial([4, 4, 4], in_turns=True))
PLAIN = rotary.RotaryEmbedding(24)
SHAPES = [(5,), (3, 5), (1, 5), (3, 2, 5), (1, 2, 5), (3, 1, 5)]

ropes = pytest.mark.parametrize(
    "rope", [SECTIONS[1], SPLIT, IN_TURNS], ids=["sections", "split", "in turns"]
)


def same(got: Any, want: Any) -> None:
    for one, other in zip(*(y if isinstance(y, tuple) else (y,) for y in (got, want)), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert_array_equal(one, other)


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax")


@pytest.fixture(params=[False, True], ids=["x64 off", "x64 on"])
def x64(jax: Any, request: pytest.FixtureRequest) -> Any:
    with jax.enable_x64(request.param):
        yield request.param


def whole(function: Any) -> Any:
    """Return a function as torch.compile traces it, run eagerly: no code is generated."""
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager")


# -- text ----------------------------------------------------------------------------------------

TEXT: list[dict[str, Any]] = [
    {},
    {"offset": 7},
    {"offset": -2.5},
    {"offset": [5, 1000]},
    {"positions": [3, 1, 4, 1, 5]},
    {"positions": ROWS[0, :1]},
    {"positions": ROWS[:1]},
]
# The same calls of an embedding without axes.
AS_ONE = [*TEXT[:-1], {"positions": ROWS[0]}]


def test_text_equals_one_axis_to_the_bit_under_jit(jax: Any) -> None:
    def rotated(x: Any) -> Any:
        return [rope(x, **call) for rope in SECTIONS for call in TEXT]

    want = [PLAIN(X, **call) for call in AS_ONE]
    for got, one in zip(jax.jit(rotated)(X), 3 * want, strict=True):
        same(got, one)


@pytest.mark.parametrize("rope", SECTIONS, ids=lambda rope: rope.axes.order)
def test_traced_text_equals_one_axis_to_the_bit(jax: Any, rope: Any) -> None:
    def rotated(x: Any, calls: Any) -> Any:
        return [rope(x, **call) for call in calls]

    given = [{name: np.asarray(v) for name, v in call.items()} for call in TEXT[1:]]
    want = [PLAIN(X, **call) for call in AS_ONE[1:]]
    for got, one in zip(jax.jit(rotated)(X, given), want, strict=True):
        same(got, one)


def test_text_equals_one_axis_to_the_bit_under_torch_compile() -> None:
    torch = pytest.importorskip("torch")

    def rotated(x: Any, positions: Any) -> Any:
        told = [rope(x, **call) for rope in SECTIONS for call in TEXT]
        return told + [rope(x, positions=p) for rope in SECTIONS for p in positions]

    positions = [torch.from_numpy(p) for p in (ROWS[0, 0], ROWS[0, :1], ROWS[:1])]
    want = 3 * [PLAIN(X, **call) for call in AS_ONE]
    want += 3 * [PLAIN(X, positions=p) for p in (ROWS[0, 0], ROWS[0, :1], ROWS[0])]
    for got, one in zip(whole(rotated)(torch.from_numpy(X), positions), want, strict=True):
        same(got, one)


# -- axes that differ, JAX -----------------------------------------------------------------------


@ropes
def test_traced_positions_give_the_bits_of_the_host(jax: Any, rope: Any, x64: bool) -> None:
    given = [RNG.uniform(-(10**6), 10**6, shape).astype(np.float32) for shape in SHAPES]
    given = [*given[::2], ROWS] if x64 else [*given, ROWS[:, 0]]
    program = jax.jit(lambda x, given: [rope(x, positions=p) for p in given])
    for got, where in zip(program(X, given), given, strict=True):
        same(got, rope(X, positions=where))


@ropes
def test_float64_tables_of_traced_positions_are_those_of_the_host(jax: Any, rope: Any) -> None:
    where = RNG.uniform(-1e9, 1e9, (3, 40))
    with jax.enable_x64(True):
        like = jax.numpy.zeros(1)
        got = jax.jit(lambda p: rope.tables(p, like=like, dtype="float64"))(where)
        same(tuple(got), rope.tables(where, dtype="float64"))


@ropes
def test_positions_may_be_mapped_over(jax: Any, rope: Any) -> None:
    mapped = jax.vmap(lambda x, p: rope(x, positions=p), in_axes=(0, 1))
    same(jax.jit(mapped)(X, ROWS), rope(X, positions=ROWS))


@ropes
def test_a_shift_along_the_axes_may_be_traced(jax: Any, rope: Any) -> None:
    by = np.array([3, -200.5, 7], np.float32)
    program = jax.jit(
        lambda x, by: (rope.shift(x, by), rope.shift(x, [3, -200.5, 7]), rope.shift(x, by[1]))
    )
    want = rope.shift(X, by)
    same(program(X, by), (want, want, rope.shift(X, -200.5)))


@ropes
def test_tables_too_large_for_a_constant_are_those_of_the_host(
    jax: Any, rope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rotary.backends import _jax_tables

    monkeypatch.setattr(_jax_tables, "_CONSTANT_BYTES", 0)
    calls = [{}, {"offset": [5, 1000]}, *({"positions": p} for p in (ROWS, ROWS[:1], ROWS[:, 0]))]
    program = jax.jit(lambda x: [rope(x, **call) for call in calls])
    for got, call in zip(program(X), calls, strict=True):
        same(got, rope(X, **call))


@pytest.mark.parametrize(
    ("rope", "shape"),
    [*((SECTIONS[1], shape) for shape in SHAPES[:5]), (SPLIT, (3, 2, 5)), (IN_TURNS, (3, 5))],
    ids=lambda value: str(getattr(value, "axes", value)),
)
def test_the_gradient_by_position_is_the_derivative(
    jax: Any, rope: Any, shape: tuple[int, ...]
) -> None:
    weights, where = RNG.standard_normal(X.shape), RNG.uniform(-5, 5, shape)
    wide = X.astype(float)

    def total(p: Any) -> Any:
        return (rope(jax.numpy.asarray(wide), positions=p) * weights).sum()

    def numeric(index: tuple[int, ...], step: float = 2.0**-14) -> float:
        ahead, behind = where.copy(), where.copy()
        ahead[index] += step
        behind[index] -= step
        change = rope(wide, positions=ahead) - rope(wide, positions=behind)
        return float((change * weights).sum() / (2 * step))

    want = np.array([numeric(index) for index in np.ndindex(shape)]).reshape(shape)
    # A central difference is off by step²/6 of the third derivative, at most (2π)³ a term.
    allowed = 2.0**-28 / 6 * (2 * np.pi) ** 3 * np.abs(wide).max() * np.abs(weights).sum()
    with jax.enable_x64(True):
        got = jax.jit(jax.grad(total))(where)
    assert got.shape == shape
    assert np.abs(want).max() > 1000 * allowed
    np.testing.assert_allclose(got, want, rtol=0, atol=allowed)


def test_a_traced_length_chooses_among_longrope_s_tables(jax: Any) -> None:
    rule = scaling.LongRoPE([1.25] * 12, [1.0 + i for i in range(12)], 4096, factor=32.0)
    rope = rotary.RotaryEmbedding(24, axes=SECTIONS[1].axes, scaling=rule)
    program = jax.jit(lambda x, p, n: rope(x, positions=p, seq_len=n))
    for length in (4096, 4097):
        same(program(X, ROWS, length), rope(X, positions=ROWS, seq_len=length))


def test_an_embedding_is_a_static_argument(jax: Any) -> None:
    program = jax.jit(lambda rope, x, p: rope(x, positions=p), static_argnums=0)
    for rope in (SECTIONS[0], SPLIT):
        same(program(rope, X, ROWS), rope(X, positions=ROWS))
    again = rotary.RotaryEmbedding(24, axes=Sections((4, 3, 5)))
    before = program._cache_size()
    program(again, X, ROWS)
    assert program._cache_size() == before


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        (np.zeros((2, 5), np.int32), ValueError, ("got shape (2, 5), expected (5,) or (3, 5)",)),
        (np.zeros((2, 2, 5), np.int32), ValueError, ("got shape (2, 2, 5)", "or (3, 2, 5)")),
        (np.zeros((3, 5, 2), np.int32), ValueError, ("got shape (3, 5, 2)", "or (3, 2, 5)")),
        (np.zeros((3, 5), np.float16), TypeError, ("got dtype float16",)),
        (np.zeros((3, 5), bool), TypeError, ("got dtype bool",)),
    ],
)
def test_wrong_traced_positions_are_refused(
    jax: Any, refused: Any, where: Any, error: type[Exception], words: tuple[str, ...]
) -> None:
    with refused(error, "positions", *words):
        jax.jit(lambda x, p: SECTIONS[0](x, positions=p))(X, where)
    with refused(error, "positions", *words):
        SECTIONS[0](X, positions=where)


@pytest.mark.parametrize(
    ("by", "error", "words"),
    [
        (np.zeros(2, np.int32), ValueError, ("got shape (2,), expected one number",)),
        (np.zeros((3, 1), np.int32), ValueError, ("got shape (3, 1), expected one number",)),
        (np.zeros(3, np.float16), TypeError, ("got dtype float16",)),
    ],
)
def test_wrong_traced_shifts_are_refused(
    jax: Any, refused: Any, by: Any, error: type[Exception], words: tuple[str, ...]
) -> None:
    with refused(error, "by", *words):
        jax.jit(SECTIONS[0].shift)(X, by)


# -- axes that differ, torch ---------------------------------------------------------------------


@ropes
def test_torch_compile_gives_the_bits_of_the_host(rope: Any) -> None:
    torch = pytest.importorskip("torch")
    given = [RNG.uniform(-(10**6), 10**6, shape).astype(np.float32) for shape in SHAPES]
    x, by = torch.from_numpy(X), torch.tensor([3, -200.5, 7])

    def rotated(x: Any, given: Any, by: Any) -> Any:
        several = [(rope(x, positions=p), rope(x, x[:, :1], positions=p)[1]) for p in given]
        return several, rope.shift(x, by), rope.shift(x, [3, -200.5, 7]), rope.inverse(x, offset=9)

    several, *others = whole(rotated)(x, [torch.from_numpy(p) for p in given], by)
    for got, where in zip(several, given, strict=True):
        want = rope(X, positions=where)
        same(got, (want, want[:, :1]))
    shifted = rope.shift(X, [3, -200.5, 7])
    same(tuple(others), (shifted, shifted, rope.inverse(X, offset=9)))


@ropes
def test_torch_gradients_pass_traced_positions(rope: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    program = torch.compile(lambda x, p: rope(x, positions=p), fullgraph=True, backend="aot_eager")
    x, d = (torch.from_numpy(a).requires_grad_() for a in (X, X[::-1].copy()))
    (got,) = torch.autograd.grad(program(x, torch.from_numpy(ROWS)), x, d.detach())
    same(got, rope.inverse(X[::-1].copy(), positions=ROWS))


def test_torch_serves_images_of_other_sizes_by_one_program() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    program = torch.compile(
        lambda x, p: SPLIT(x, positions=p), fullgraph=True, backend="eager", dynamic=True
    )
    for frames, height, width in ((1, 2, 3), (2, 4, 2), (1, 5, 7)):
        where = grid(height, width, frames=frames)
        x = RNG.standard_normal((1, 2, where.shape[1], 24)).astype(np.float32)
        same(program(*map(torch.from_numpy, (x, where))), SPLIT(x, positions=where))


@pytest.mark.parametrize("kind", [np.float32, np.array])
def test_torch_compile_does_not_truncate_lists_of_numpy_numbers(kind: Any) -> None:
    torch = pytest.importorskip("torch")
    where = [kind(p) for p in (0.5, 1.5, 2.5, 3.5, 4.5)]
    got = whole(lambda x: SPLIT(x, positions=where))(torch.from_numpy(X))
    same(got, SPLIT(X, positions=where))


def test_torch_compile_takes_a_list_of_one_position() -> None:
    torch = pytest.importorskip("torch")
    x = X[..., :1, :].copy()
    same(whole(lambda x: SPLIT(x, positions=[5]))(torch.from_numpy(x)), SPLIT(x, positions=[5]))

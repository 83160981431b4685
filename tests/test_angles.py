"""Tables of frequencies held in arrays: values to the last bit, and gradients."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

import rotary
from rotary import cos_sin
from rotary.conformance import oracle
from rotary.positions import LIMIT

RNG = np.random.default_rng(0)
SEQ, BATCH, HEADS, PAIRS = 5, 2, 3, 4
# (axes, positions, frequencies)
SHAPES = [
    (axes, (*leading, *positions), (*leading, *frequencies))
    for axes, leading in ((None, ()), (1, (1,)), (2, (2,)), (3, (3,)))
    for positions in ((SEQ,), (BATCH, SEQ))
    for frequencies in ((PAIRS,), (HEADS, PAIRS))
]
MIXED = SHAPES[9], SHAPES[-1]  # axes; with batch and heads
shapes = pytest.mark.parametrize(("axes", "where", "omega"), SHAPES, ids=str)


def host(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def same(got: Any, want: Any) -> None:
    for one, other in zip(got, want, strict=True):
        assert host(one).dtype == host(other).dtype
        assert_array_equal(host(one), host(other))


def drawn(where: tuple[int, ...], omega: tuple[int, ...], kind: str = "float32") -> Any:
    """Return positions and frequencies."""
    return RNG.uniform(-99, 99, where), RNG.standard_normal(omega).astype(kind)


def angles(where: Any, omega: Any, axes: int | None) -> np.ndarray:
    """Σ p·ω by float64 operations, one after the other."""
    p, w = np.asarray(where, np.float64), np.asarray(omega, np.float64)
    p, w = (p[None], w[None]) if axes is None else (p, w)
    by_head = w.ndim == 3
    p, w = (p if p.ndim == 3 else p[:, None]), (w if by_head else w[:, None])
    out = np.empty((p.shape[1], w.shape[1], p.shape[2], w.shape[2]))
    for b, h, n, i in np.ndindex(out.shape):
        total = float(p[0, b, n]) * float(w[0, h, i])
        for a in range(1, len(p)):
            total = total + float(p[a, b, n]) * float(w[a, h, i])
        out[b, h, n, i] = total
    batched = np.ndim(where) - (axes is not None) == 2
    if by_head:
        return out
    return out[:, 0] if batched else out[0, 0]


def check_values(got: Any, angle: np.ndarray, kind: str) -> None:
    """Assert float32 to be rounded correctly, float64 to be off by at most 0.501 ulp."""
    for table, function in zip(got, (mpmath.cos, mpmath.sin), strict=True):
        table = host(table)
        assert table.dtype == kind
        assert table.shape == angle.shape
        with mpmath.workprec(300):
            for value, x in zip(table.flat, angle.flat, strict=True):
                right = function(mpmath.mpf(float(x)))
                if kind == "float32":
                    assert value == oracle.round_to_bits(right, 24)
                else:
                    error = abs(mpmath.mpf(float(value)) - right)
                    assert error <= 0.501 * math.ulp(float(right))


def wide(library: Any) -> Any:
    """Let float64 be, where it has to be asked for."""
    if library.name != "jax":
        return contextlib.nullcontext()
    return pytest.importorskip("jax").enable_x64(True)


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float64"])
@shapes
def test_tables_are_those_of_the_angle(
    library: Any, axes: int | None, where: Any, omega: Any, kind: str
) -> None:
    p, w = drawn(where, omega, kind)
    with wide(library):
        own = library.array(w)
        got = cos_sin(p, own, axes=axes)
        check_values(got, angles(p, w, axes), kind)
        for given in (p.tolist(), library.array(p)):
            same(cos_sin(given, own, axes=axes), got)
        single = p.astype(np.float32)
        same(cos_sin(library.array(single), own, axes=axes), cos_sin(single, own, axes=axes))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.floats(-(2.0**53), 2.0**53),
    st.floats(-1, 1, allow_subnormal=False),
    st.floats(-(2.0**40), 2.0**40),
    st.floats(-(2.0**11), 2.0**11),
)
def test_large_and_small_angles_are_as_exact(p: float, w: float, q: float, v: float) -> None:
    for kind, least in (("float32", 2.0**-126), ("float64", 2.0**-960)):
        one, other = np.array([w], kind), np.array([[w], [v]], kind)
        for where, omega, axes in (([p], one, None), ([[p], [q]], other, 2)):
            angle = angles(where, omega, axes)
            # Below, the sine or a word of the angle is subnormal.
            if abs(angle[0, 0]) <= LIMIT and not 0 < abs(angle[0, 0]) <= least:
                check_values(cos_sin(where, omega, axes=axes), angle, kind)


def test_supplied_numbers_and_arrays_of_frequencies_give_the_same_tables(library: Any) -> None:
    omega, where = RNG.uniform(-1, 1, PAIRS).astype(np.float32), np.arange(-300, 300)
    rope = rotary.RotaryEmbedding(2 * PAIRS, inv_freq=omega)  # exact products: 24 + 10 bits
    like = library.array(omega)
    same(cos_sin(where, like), rope.tables(where, like=like))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tables_come_in_the_dtype_in_which_like_rotates(library: Any, dtype: str) -> None:
    if dtype not in library.dtypes:
        pytest.skip(f"{library.name} has no {dtype}")
    kind = "float64" if dtype == "float64" else "float32"
    for frequencies in ("float32", "float64"):
        p, w = drawn((SEQ,), (PAIRS,), frequencies)
        with wide(library):
            like = library.array(np.zeros((2, 1)), dtype)
            check_values(cos_sin(p, library.array(w), like=like), angles(p, w, None), kind)


def test_lists_of_numpy_numbers_are_not_truncated(library: Any) -> None:
    w = library.array(np.ones(1, np.float32))
    want = cos_sin(np.array([0.5, 2.5]), w)
    same(cos_sin([np.float32(0.5), np.float32(2.5)], w), want)
    same(cos_sin([np.array(0.5), np.array(2.5)], w), want)


def test_no_tokens_are_no_error(library: Any) -> None:
    like = library.array(np.ones((2, HEADS, PAIRS), np.float32))
    assert cos_sin([], like[0, 0, :])[0].shape == (0, PAIRS)
    assert cos_sin(np.zeros((2, 1, 0)), like, axes=2)[1].shape == (1, HEADS, 0, PAIRS)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_tables_by_head_rotate_as_rope_vit_says(library: Any, layout: str) -> None:
    """Heo et al., arXiv 2403.13298, equation 14: x·exp(i(θx·px + θy·py)), θ for each head."""
    omega = RNG.standard_normal((2, HEADS, PAIRS))
    x = RNG.standard_normal((BATCH, HEADS, 6, 2 * PAIRS))
    where = rotary.axes.grid(2, 3)
    turned = np.empty_like(x)
    first, second = oracle.pair_indices(2 * PAIRS, 2 * PAIRS, layout, "leading")
    for h in range(HEADS):
        angle = np.outer(where[0], omega[0, h]) + np.outer(where[1], omega[1, h])
        z = (x[:, h, :, first] + 1j * x[:, h, :, second]).transpose(1, 2, 0) * np.exp(1j * angle)
        turned[:, h, :, first], turned[:, h, :, second] = np.moveaxis(
            np.stack([z.real, z.imag]), -1, 1
        )
    with wide(library):
        tables = cos_sin(where, library.array(omega), axes=2)
        assert tables[0].shape == (1, HEADS, 6, PAIRS)
        got = host(rotary.rotate(library.array(x), *tables, layout=layout))
    np.testing.assert_allclose(got, turned, rtol=0, atol=8 * 2.0**-53 * np.abs(x).max())
    # Height and width are two.
    swapped = cos_sin(where[::-1].copy(), library.array(omega.astype(np.float32)), axes=2)
    assert np.any(np.abs(host(swapped[0]) - host(tables[0])) > 0.1)


# -- gradients -----------------------------------------------------------------------------------


def pulled_back(p: Any, w: Any, axes: int | None, d: np.ndarray) -> tuple[Any, Any]:
    """Return the gradients of ⟨(cos, sin), d⟩ by positions and frequencies, and their sizes."""
    angle = angles(p, w, axes)
    p, w = np.asarray(p, np.float64), np.asarray(w, np.float64)
    by_angle = d[1] * np.cos(angle) - d[0] * np.sin(angle)
    p, w = (p[None], w[None]) if axes is None else (p, w)
    seqs, by = ("bn" if p.ndim == 3 else "n"), ("hi" if w.ndim == 3 else "i")
    at = f"{'b' if p.ndim == 3 else ''}{'h' if w.ndim == 3 else ''}ni"
    if w.ndim == 3 and p.ndim == 2:
        by_angle = by_angle[0]
    to_w, to_p = f"{at},a{seqs}->a{by}", f"{at},a{by}->a{seqs}"
    out = [(np.einsum(to_p, by_angle, w), np.einsum(to_w, by_angle, p))]
    size = np.abs(by_angle) + np.abs(d).max()
    out += [(np.einsum(to_p, size, abs(w)), np.einsum(to_w, size, abs(p)))]
    return tuple(tuple(g[0] if axes is None else g for g in pair) for pair in out)


def check_gradient(got: Any, want: np.ndarray, size: np.ndarray, kind: str) -> None:
    """Assert a sum of n rounded terms to be off by at most n·u·Σ|term|, whatever its order."""
    assert host(got).dtype == kind
    assert host(got).shape == want.shape
    unit = (SEQ * BATCH * HEADS + 8) * np.finfo(kind).eps
    assert np.all(np.abs(host(got) - want) <= unit * size)
    assert np.any(np.abs(want) > 1000 * unit * size)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@shapes
def test_torch_gradients_by_frequencies(
    axes: int | None, where: Any, omega: Any, kind: str
) -> None:
    torch = pytest.importorskip("torch")
    p, w = drawn(where, omega, kind)
    leaf = torch.from_numpy(w).requires_grad_()
    cos, sin = cos_sin(p, leaf, axes=axes)
    d = RNG.standard_normal((2, *cos.shape)).astype(kind)
    got = torch.autograd.grad((cos, sin), leaf, tuple(torch.from_numpy(d)))[0]
    (_, want), (_, size) = pulled_back(p, w, axes, d)
    check_gradient(got, want, size, kind)
    assert torch.autograd.grad(cos_sin(p, leaf, axes=axes)[1].sum(), leaf)[0].dtype == leaf.dtype


@pytest.mark.parametrize(("axes", "where", "omega"), MIXED, ids=str)
def test_torch_differentiates_twice(axes: int | None, where: Any, omega: Any) -> None:
    torch = pytest.importorskip("torch")
    p, w = drawn(where, omega, "float64")
    leaf = torch.from_numpy(w).requires_grad_()
    p = p / 50  # numerical derivatives want small ones
    assert torch.autograd.gradcheck(lambda w: cos_sin(p, w, axes=axes), leaf)
    assert torch.autograd.gradgradcheck(lambda w: cos_sin(p, w, axes=axes), leaf)


def test_torch_gradients_of_a_wide_table_come_back_in_the_frequencies_dtype() -> None:
    torch = pytest.importorskip("torch")
    leaf = torch.tensor([0.25, 0.5], requires_grad=True)
    cos, _ = cos_sin([1.0, 2.0], leaf, like=torch.zeros(1, dtype=torch.float64))
    (got,) = torch.autograd.grad(cos.sum(), leaf)
    want = [-math.sin(w) - 2 * math.sin(2 * w) for w in (0.25, 0.5)]
    assert_array_equal(got, np.array(want, np.float32))


@pytest.mark.parametrize(("axes", "where", "omega"), MIXED, ids=str)
def test_torch_compile_gives_values_and_gradients(axes: int | None, where: Any, omega: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    p, w = drawn(where, omega)
    leaf, positions = torch.from_numpy(w).requires_grad_(), torch.from_numpy(p)

    def tables(w: Any, p: Any) -> Any:
        return torch.stack(cos_sin(p, w, axes=axes))

    program = torch.compile(tables, fullgraph=True, backend="aot_eager")
    both = program(leaf, positions)
    same(both.detach(), cos_sin(p, w, axes=axes))
    d = RNG.standard_normal(both.shape).astype(np.float32)
    (got,) = torch.autograd.grad(both, leaf, torch.from_numpy(d), create_graph=True)
    (want,) = torch.autograd.grad(tables(leaf, positions), leaf, torch.from_numpy(d))
    np.testing.assert_allclose(host(got), host(want), rtol=0, atol=1e-4 * float(want.abs().max()))
    with pytest.raises(RuntimeError):  # no wrong number
        torch.autograd.grad(got.sum(), leaf)


def test_torch_learns_frequencies_through_a_rotation() -> None:
    torch = pytest.importorskip("torch")
    q, k = (torch.from_numpy(RNG.standard_normal((1, HEADS, 6, 2 * PAIRS))) for _ in range(2))

    def scores(omega: Any) -> Any:
        tables = cos_sin(rotary.axes.grid(2, 3), omega, axes=2)
        return rotary.rotate(q, *tables) @ rotary.rotate(k, *tables).mT

    omega = torch.from_numpy(RNG.standard_normal((2, HEADS, PAIRS))).requires_grad_()
    assert torch.autograd.gradcheck(scores, omega)


def test_torch_forward_mode_is_right_or_an_error() -> None:
    torch = pytest.importorskip("torch")
    w = torch.tensor([0.25, 0.5])
    try:
        _, change = torch.func.jvp(lambda w: cos_sin([1.0], w)[0], (w,), (torch.ones(2),))
    except (NotImplementedError, RuntimeError):
        return
    np.testing.assert_allclose(change[0], -np.sin([0.25, 0.5]), rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "where", "omega", "x64"),
    [*((*shape, False) for shape in (SHAPES[0], *MIXED)), (*SHAPES[10], True)],
    ids=str,
)
def test_jax_values_and_gradients(axes: int | None, where: Any, omega: Any, x64: bool) -> None:
    jax = pytest.importorskip("jax")
    kind = "float64" if x64 else "float32"
    p, w = drawn(where, omega, kind)
    p = p.astype(kind)
    d = RNG.standard_normal((2, *angles(p, w, axes).shape)).astype(kind)
    along = [RNG.standard_normal(x.shape).astype(kind) for x in (p, w)]
    wants, sizes = pulled_back(p, w, axes, d)

    def tables(p: Any, w: Any) -> Any:
        return jax.numpy.stack(cos_sin(p, w, axes=axes))

    @jax.jit
    def program(p: Any, w: Any) -> Any:
        both, back = jax.vjp(tables, p, w)
        _, pull = jax.vjp(lambda w: tables(p, w), w)  # positions are no argument
        _, change = jax.jvp(tables, (p, w), tuple(along))
        return both, back(d), pull(d)[0], (change * d).sum()

    with jax.enable_x64(x64):
        both, gradients, alone, change = program(p, w)
        eager = jax.grad(lambda w: (tables(p, w) * d).sum())(jax.numpy.asarray(w))
    same(both, cos_sin(p, w, axes=axes))
    for got, want, size in zip(gradients, wants, sizes, strict=True):
        check_gradient(got, want, size, kind)
    for got in (alone, eager):
        check_gradient(got, wants[1], sizes[1], kind)
    expected = sum((a * g).sum() for a, g in zip(along, wants, strict=True))
    scale = sum((abs(a) * g).sum() for a, g in zip(along, sizes, strict=True))
    assert abs(float(change) - expected) <= 200 * np.finfo(kind).eps * scale


def test_jax_differentiates_twice() -> None:
    jax = pytest.importorskip("jax")
    p, w = np.array([1.0, -2.5]), np.array([0.3, 0.7, 1.1])

    def total(p: Any, w: Any) -> Any:
        return cos_sin(p, w)[0].sum()

    with jax.enable_x64(True):
        (by_p, _), (_, by_w) = jax.jit(jax.hessian(total, (0, 1)))(p, w)
    angle = np.outer(p, w)
    want = p[:, None] ** 2 * np.cos(angle), w**2 * np.cos(angle)
    np.testing.assert_allclose(by_w, -np.diag(want[0].sum(0)), rtol=0, atol=1e-14)
    np.testing.assert_allclose(by_p, -np.diag(want[1].sum(1)), rtol=0, atol=1e-14)


def test_jax_maps_over_frequencies_and_positions() -> None:
    jax = pytest.importorskip("jax")
    p, w = drawn((HEADS, SEQ), (HEADS, PAIRS))
    p = p.astype(np.float32)
    each = [np.stack(cos_sin(a, b)) for a, b in zip(p, w, strict=True)]
    mapped = jax.vmap(lambda p, w: jax.numpy.stack(cos_sin(p, w)))
    same(jax.jit(mapped)(p, w), each)
    slope = jax.jit(jax.vmap(jax.grad(lambda w, p: cos_sin(p, w)[0].sum()), (0, 0)))(w, p)
    angle = p[:, :, None].astype(float) * w[:, None]
    want = -(p[:, :, None] * np.sin(angle)).sum(1)
    np.testing.assert_allclose(slope, want, rtol=0, atol=1e-6 * np.abs(p).sum())


def test_jax_traces_any_of_the_arrays() -> None:
    jax = pytest.importorskip("jax")
    p, w = np.arange(SEQ, dtype=np.int32), RNG.standard_normal(PAIRS).astype(np.float32)
    fractional, own = RNG.uniform(-99, 99, SEQ), jax.numpy.asarray(w)
    x = RNG.standard_normal((2, SEQ, 2 * PAIRS)).astype(np.float32)
    same(jax.jit(cos_sin)(p, w), cos_sin(p, w))
    same(jax.jit(lambda p: cos_sin(p, own))(p), cos_sin(p, w))
    # float64 positions that are known count as such, whatever JAX is set to.
    same(jax.jit(lambda w: cos_sin(fractional, w))(w), cos_sin(fractional, w))
    turned = jax.jit(lambda x: rotary.rotate(x, *cos_sin(fractional, own, like=x)))(x)
    assert_array_equal(turned, rotary.rotate(x, *cos_sin(fractional, w)))
    assert jax.grad(lambda w, p: cos_sin(p, w)[0].sum())(own, p).shape == w.shape


def test_mlx_differentiates_twice_or_refuses() -> None:
    mx = pytest.importorskip("mlx.core")
    slope = mx.grad(lambda w: mx.sum(cos_sin([1.0, 2.0], w)[0]))
    w = np.array([0.25, 0.5], np.float32)
    np.testing.assert_allclose(slope(mx.array(w)), -np.sin(w) - 2 * np.sin(2 * w), rtol=1e-5)
    try:
        second = mx.grad(lambda w: mx.sum(slope(w)))(mx.array(w))
    except (RuntimeError, TypeError, ValueError):
        return
    np.testing.assert_allclose(second, -np.cos(w) - 4 * np.cos(2 * w), rtol=1e-5)

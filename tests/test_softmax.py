"""Softmax attention: the formula within its bound everywhere, and nothing through a mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import LIBRARIES
from naive_attention import Exact, attention, normal
from numpy.testing import assert_array_equal

import rotary
from rotary import backends, softmax_attention
from rotary.conformance import libraries

BATCH, HEADS, KV_HEADS, DIM, WIDTH = 2, 4, 2, 8, 5
GARBAGE = [math.inf, -math.inf, math.nan]


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


def operands(queries: int = 6, keys: int = 6, seed: int = 0) -> tuple[np.ndarray, ...]:
    return (
        normal(BATCH, HEADS, queries, DIM, seed=seed),
        normal(BATCH, KV_HEADS, keys, DIM, seed=seed + 1),
        normal(BATCH, KV_HEADS, keys, WIDTH, seed=seed + 2),
    )


def some(*shape: int) -> np.ndarray:
    """Return a mask that hides a third, but not the first key, nor any but it from one query."""
    mask = normal(*shape, seed=9) > -0.4
    mask[..., 0] = True
    mask[..., -1, 1:] = False
    return mask


def values(x: Any) -> np.ndarray:
    """Return x as float64 on the host: NumPy takes no bfloat16 from torch."""
    x = x.detach() if hasattr(x, "detach") else x
    wide = backends.owner_of(x).widen(x, "float32") if "float16" in str(x.dtype) else x
    return np.asarray(wide).astype(np.float64)


def attend(library: Any, *arrays: np.ndarray, **keywords: Any) -> np.ndarray:
    """Return attention in a library, its arrays made here."""
    run, added = prepared(library, keywords)
    return values(run(*map(library.array, arrays), added))


def pull_back(
    library: Any, direction: np.ndarray, *arrays: np.ndarray, function: Any = None, **keywords: Any
) -> Any:
    """Return the gradients of ⟨attention of arrays, direction⟩; JAX and torch have them."""
    run, added = prepared(library, keywords)
    run = run if function is None else function
    direction = library.array(direction)
    if library.name == "torch":
        from torch.autograd import grad

        leaves = [library.array(x).requires_grad_() for x in arrays]
        return tuple(g.numpy() for g in grad(run(*leaves, added), leaves, direction))
    return tuple(map(np.asarray, back_of(run)(direction, added, *map(library.array, arrays))))


@lru_cache
def back_of(run: Any) -> Any:
    """Return the gradient of a function of arrays and what is added, as one program of JAX."""
    import jax

    def back(direction: Any, added: Any, *arrays: Any) -> Any:
        return jax.vjp(lambda *x: run(*x, added), *arrays)[1](direction)

    return jax.jit(back)


def prepared(library: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    added = {n: library.array(x) for n, x in keywords.items() if n in ("bias", "mask")}
    fixed = tuple((n, x) for n, x in keywords.items() if n not in added)
    return program(fixed, library.name == "jax"), added


@lru_cache
def program(fixed: tuple[tuple[str, Any], ...], jitted: bool) -> Any:
    """Return attention with these keywords, in JAX as one program, which is faster to make."""

    def f(q: Any, k: Any, v: Any, added: Any) -> Any:
        return softmax_attention(q, k, v, **added, **dict(fixed))

    if jitted:
        import jax

        return jax.jit(f)
    return f


# -- the formula ---------------------------------------------------------------------------------


# Programs take seconds each: one dtype for those, all for what runs at once.
WAYS = [
    ("numpy", "eager", "float16 bfloat16 float32 float64"),
    ("torch", "eager", "float16 bfloat16 float32 float64"),
    ("torch", "compiled", "float32"),
    ("jax", "eager", "bfloat16"),
    ("jax", "compiled", "float16 float32"),
    ("jax", "compiled, x64", "float32 float64"),
    ("array-api-strict", "eager", "float32 float64"),
    ("array-api-strict", "eager, without x64", "float32"),
    # Its exponential of float64 is that of float32.
    ("mlx", "eager", "float16 bfloat16 float32"),
    ("mlx", "compiled", "float32"),
    ("dask", "lazy", "bfloat16 float64"),
    ("ndonnx", "exported", "float16 float32"),
]


@pytest.mark.parametrize(
    ("name", "way", "dtype"),
    [(name, way, dtype) for name, way, dtypes in WAYS for dtype in dtypes.split()],
)
def test_it_is_the_formula_within_the_bound(name: str, way: str, dtype: str) -> None:
    library, run = load(name, way)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    bias, mask = normal(HEADS, 4, 6, seed=3), some(BATCH, 1, 4, 6)
    arrays = [x.astype(kind) for x in (*operands(4, 6), bias)]
    # Of float32, since not every library's arrays of bool come from the host alike.
    q, *rest = (library.from_host(x) for x in (*arrays, mask.astype(np.float32)))

    def f(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        return softmax_attention(q, k, v, causal=True, bias=bias, mask=mask > 0.5, scale=0.7)

    got = library.to_host(run(f, q, q, *rest))
    assert got.dtype == kind
    q, k, v, bias = arrays
    attention(q, k, v, dtype, causal=True, bias=bias, mask=mask, scale=0.7).holds(got)


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (1, 9), (5, 64), (40, 40)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_the_formula_at_every_length(
    queries: int, keys: int, causal: bool, dtype: str
) -> None:
    q, k, v = (x.astype(dtype) for x in operands(queries, keys))
    got = softmax_attention(q, k, v, causal=causal)
    assert got.dtype == dtype
    attention(q, k, v, dtype, causal=causal).holds(got)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("causal", "extra"), [(0, None), (1, None), (0, "bias"), (0, "mask")])
def test_it_is_the_attention_of_torch(causal: int, extra: str | None, grouped: bool) -> None:
    torch, causal = pytest.importorskip("torch"), bool(causal)
    q, k, v = (torch.from_numpy(x) for x in operands())
    if not grouped:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    added = {"bias": normal(HEADS, 6, 6), "mask": some(6, 6)}
    added = {} if extra is None else {extra: added[extra]}
    ours = {name: torch.from_numpy(x) for name, x in added.items()}
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=grouped, attn_mask=ours.get(extra)
    )
    exact = attention(*(x.numpy() for x in (q, k, v)), "float64", causal=causal, **added)
    exact.holds(theirs)
    exact.holds(softmax_attention(q, k, v, causal=causal, **ours))


def test_a_head_attends_to_the_keys_of_its_group(library: Any) -> None:
    q, k, v = operands()
    k[:, 1], v[:, 1] = math.nan, math.nan
    got = attend(library, q, k, v)
    assert np.all(np.isfinite(got[:, :2]))  # heads 0 and 1 read key head 0
    assert np.all(np.isnan(got[:, 2:]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_16_bits_are_rounded_once(name: str, dtype: str) -> None:
    library = LIBRARIES[name]()
    q, k, v = (library.array(x, dtype) for x in operands())
    backend = backends.owner_of(q)
    wide = softmax_attention(*(backend.widen(x, "float32") for x in (q, k, v)), causal=True)
    got = softmax_attention(q, k, v, causal=True)
    assert got.dtype == q.dtype
    assert_array_equal(values(got), values(backend.narrow(wide, q.dtype)))


def test_leading_axes_may_be_none_or_many(library: Any) -> None:
    q, k, v = operands()
    one = attend(library, q[0], k[0], v[0], causal=True)
    attention(q[0], k[0], v[0], "float64", causal=True).holds(one)
    many = attend(library, *(x[None, :, None] for x in (q, k, v)), causal=True)
    assert many.shape == (1, BATCH, 1, HEADS, 6, WIDTH)
    attention(q, k, v, "float64", causal=True).holds(many[0, :, 0])


@pytest.mark.parametrize(
    "shape", [(6, 6), (1, 6), (6, 1), (4, 6, 6), (4, 1, 6), (2, 1, 1, 6), (2, 4, 6, 6)]
)
def test_bias_and_mask_broadcast(library: Any, shape: tuple[int, ...]) -> None:
    q, k, v = operands()
    bias, mask = normal(*shape, seed=3), normal(*shape, seed=4) > -1
    got = attend(library, q, k, v, bias=bias, mask=mask)
    attention(q, k, v, "float64", bias=bias, mask=mask).holds(got)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_bias_for_16_bits_may_be_float32(name: str) -> None:
    library = LIBRARIES[name]()
    q, k, v = (library.array(x, "float16") for x in operands())
    bias = rotary.relative.alibi_bias(6, 6, HEADS, like=q)
    got = values(softmax_attention(q, k, v, bias=bias, causal=True))
    given = (values(x) for x in (q, k, v))
    attention(*given, "float16", bias=values(bias), causal=True).holds(got)


# -- what the positions of keys do ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_without_positions_is_permutation_equivariant(library: Any, dtype: str) -> None:
    order = np.random.default_rng(0).permutation(6)
    q, k, v = (x.astype(dtype) for x in operands())
    exact = attention(q, k, v, dtype)
    exact.holds(attend(library, q, k, v))
    together = attend(library, *(x[:, :, order] for x in (q, k, v)))
    exact.holds(together[:, :, np.argsort(order)])
    exact.holds(attend(library, q, k[:, :, order], v[:, :, order]))


def test_attention_with_positions_is_not() -> None:
    q, k, v = operands()
    order = np.random.default_rng(0).permutation(6)
    rope = rotary.RotaryEmbedding(DIM)
    want = softmax_attention(*rope(q, k), v)
    got = softmax_attention(*rope(q[:, :, order], k[:, :, order]), v[:, :, order])
    assert np.abs(got[:, :, np.argsort(order)] - want).max() > 0.01


@pytest.mark.parametrize("queries", [1, 4])
def test_causal_lines_up_the_ends(library: Any, queries: int) -> None:
    q, k, v = operands()
    exact = Exact(*(x[:, :, -queries:] for x in attention(q, k, v, "float64", causal=True)))
    exact.holds(attend(library, q[:, :, -queries:], k, v, causal=True))


def test_large_scores_do_not_overflow(library: Any) -> None:
    _, _, v = (x.astype(np.float32) for x in operands())
    q, k = (np.zeros((BATCH, heads, 6, DIM), np.float32) for heads in (HEADS, KV_HEADS))
    q[..., range(6), range(6)] = k[..., range(6), range(6)] = 100.0
    # Scores of 10^4 for one key, 0 for the others, whose weight is nothing.
    assert_array_equal(attend(library, q, k, v, scale=1.0), np.repeat(v, 2, 1))


# -- masks ---------------------------------------------------------------------------------------

HIDING = {
    "causal": {"causal": True},
    "mask": {"mask": np.tril(np.ones((6, 6), bool))},
    "bias": {"bias": np.where(np.tril(np.ones((6, 6), bool)), 0.0, -math.inf)},
}


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_hidden_keys_and_values_change_no_bit(library: Any, how: str, garbage: float) -> None:
    q, k, v = operands()
    want = attend(library, q, k, v, **HIDING[how])
    k[:, :, 4, 1:3], v[:, :, 4:, 2] = garbage, garbage
    v[:, 1, 5], k[:, 1, 5] = -garbage, garbage
    got = attend(library, q, k, v, **HIDING[how])
    assert_array_equal(got[:, :, :4], want[:, :, :4])
    assert not np.any(np.isfinite(got[:, :, 4]))  # which sees the key that is garbage


def test_a_mask_of_each_row_hides_for_that_row_alone(library: Any) -> None:
    q, k, v = operands()
    mask = np.ones((BATCH, 1, 6, 6), bool)
    mask[0, :, :, 5] = False
    k[:, :, 5] = math.nan
    got = attend(library, q, k, v, mask=mask)
    assert np.all(np.isfinite(got[0]))
    assert np.all(np.isnan(got[1]))


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("how", ["mask", "bias"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_hidden_keys_and_values_change_no_gradient(name: str, how: str, garbage: float) -> None:
    visible = np.ones((1, 6), bool)
    visible[:, 2] = False
    hiding = {how: visible if how == "mask" else np.where(visible, 0.0, -math.inf)}
    library, (q, k, v) = LIBRARIES[name](), operands()
    direction = normal(BATCH, HEADS, 6, WIDTH, seed=5)
    want = pull_back(library, direction, q, k, v, **hiding)
    k[:, :, 2, 3], v[:, :, 2] = garbage, garbage
    got = pull_back(library, direction, q, k, v, **hiding)
    for a, b in zip(got, want, strict=True):
        assert_array_equal(a, b)
    assert np.all(np.isfinite(got[0]))
    assert not np.any(got[1][:, :, 2])
    assert not np.any(got[2][:, :, 2])


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_later_values_change_no_gradient_of_earlier_queries(name: str, garbage: float) -> None:
    library, (q, k, v) = LIBRARIES[name](), operands()
    direction = normal(BATCH, HEADS, 6, WIDTH, seed=5)
    direction[:, :, 4:] = 0.0
    want = pull_back(library, direction, q, k, v, causal=True)
    v[:, :, 4:, 1:] = garbage
    for a, b in zip(pull_back(library, direction, q, k, v, causal=True), want, strict=True):
        assert np.all(np.isfinite(a))
        assert_array_equal(a, b)


@pytest.mark.parametrize("how", ["mask", "bias"])
def test_a_query_that_sees_no_key_gives_zeros(library: Any, how: str) -> None:
    q, k, v = operands()
    k[:, :, 2], v[:, :, 1] = math.inf, math.nan  # whatever it does not see
    visible = np.ones((6, 6), bool)
    visible[3] = False
    hiding = {how: visible if how == "mask" else np.where(visible, 0.0, -math.inf)}
    got = attend(library, q, k, v, **hiding)
    assert_array_equal(got[:, :, 3], np.zeros((BATCH, HEADS, WIDTH)))
    assert np.all(np.isnan(got[:, :, 4]))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_query_that_sees_no_key_has_no_gradient(name: str) -> None:
    library, arrays = LIBRARIES[name](), operands()
    mask = np.arange(6)[:, None] != np.full((1, 6), 3)
    direction = normal(BATCH, HEADS, 6, WIDTH, seed=5)
    want = pull_back(library, direction, *arrays, mask=mask)
    assert not np.any(want[0][:, :, 3])
    assert all(np.all(np.isfinite(gradient)) for gradient in want)
    direction[:, :, 3] *= -7
    for a, b in zip(pull_back(library, direction, *arrays, mask=mask), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_visible_infinities_are_seen(library: Any) -> None:
    q, k, v = operands()
    v[:, :, 2] = [math.inf, -math.inf, math.nan, math.inf, 1.0]
    v[:, :, 3, 3] = -math.inf
    got = attend(library, q, k, v, causal=True)
    seen = np.broadcast_to([math.inf, -math.inf, math.nan, math.inf], (BATCH, HEADS, 4))
    assert_array_equal(got[:, :, 2, :4], seen)
    assert np.all(np.isnan(got[:, :, 3:, 3]))  # ∞ − ∞
    assert np.all(np.isfinite(got[..., 4]))
    assert np.all(np.isfinite(got[:, :, :2]))


@pytest.mark.parametrize("none_of", ["queries", "rows", "keys", "features"])
def test_nothing_gives_nothing(library: Any, none_of: str) -> None:
    q, k, v = operands()
    arrays, shape = {
        "queries": ((q[:, :, :0], k, v), (BATCH, HEADS, 0, WIDTH)),
        "rows": ((q[:0], k[:0], v[:0]), (0, HEADS, 6, WIDTH)),
        "keys": ((q, k[:, :, :0], v[:, :, :0]), (BATCH, HEADS, 6, WIDTH)),
        "features": ((q, k, v[..., :0]), (BATCH, HEADS, 6, 0)),
    }[none_of]
    assert_array_equal(attend(library, *arrays), np.zeros(shape))


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_gradients_are_those_of_the_naive_form(name: str) -> None:
    torch = pytest.importorskip("torch")
    library, (q, k, v) = LIBRARIES[name](), operands()
    bias, mask = normal(HEADS, 6, 6, seed=3), some(6, 6)
    direction = normal(BATCH, HEADS, 6, WIDTH, seed=4)
    leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v, bias)]
    *_, added = leaves
    heads = [0, 0, 1, 1]
    scores = leaves[0] @ leaves[1][:, heads].mT * DIM**-0.5 + added
    hidden = torch.from_numpy(~(mask & np.tril(np.ones((6, 6), bool))))
    weights = torch.softmax(scores.masked_fill(hidden, -math.inf), -1)
    output = weights @ leaves[2][:, heads]
    want = torch.autograd.grad(output, leaves, torch.from_numpy(direction))

    def by_bias(q: Any, k: Any, v: Any, bias: Any, added: Any) -> Any:
        return softmax_attention(q, k, v, causal=True, bias=bias, **added)

    got = pull_back(library, direction, q, k, v, bias, function=by_bias, mask=mask)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * b.abs().max())


def test_a_program_of_torch_has_the_gradient() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    q, k, v = (torch.from_numpy(x).to(torch.bfloat16).requires_grad_() for x in operands())

    def loss(q: Any, k: Any, v: Any) -> Any:
        return (softmax_attention(q, k, v, causal=True) ** 2).sum()

    want = torch.autograd.grad(loss(q, k, v), (q, k, v))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(q, k, v), (q, k, v))
    for a, b in zip(got, want, strict=True):
        # Two bfloat16 numbers next to each other may both be a rounding of what is between.
        assert torch.all((a - b).abs() <= 2.0**-7 * b.abs() + 1e-3)


def test_heads_may_be_mapped_over() -> None:
    jax = pytest.importorskip("jax")
    q, k, v = (x.astype(np.float32) for x in operands())
    mapped = jax.jit(jax.vmap(lambda q, k, v: softmax_attention(q, k, v, causal=True)))
    attention(q, k, v, "float32", causal=True).holds(mapped(q, k, v))


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"q": (6, 8)}, ValueError, "q", "got shape (6, 8), expected (..., heads, seq, head_dim)"),
        ({"k": (6, 8)}, ValueError, "k", "got shape (6, 8), expected (..., heads, seq, head_dim)"),
        ({"v": (6,)}, ValueError, "v", "got shape (6,), expected (..., heads, seq, head_dim)"),
        ({"k": (2, 2, 6, 7)}, ValueError, "k", "expected (2, kv_heads, Tk, 8) to meet q's (2, 4"),
        ({"k": (1, 2, 6, 8)}, ValueError, "k", "got shape (1, 2, 6, 8), expected (2, kv_heads, Tk"),
        ({"k": (2, 6, 8)}, ValueError, "k", "got shape (2, 6, 8), expected (2, kv_heads, Tk, 8)"),
        ({"k": (2, 3, 6, 8)}, ValueError, "k", "3 heads, expected a divisor of q's 4"),
        ({"k": (2, 8, 6, 8)}, ValueError, "k", "8 heads, expected a divisor of q's 4"),
        ({"k": (2, 0, 6, 8)}, ValueError, "k", "0 heads, expected a divisor of q's 4"),
        ({"v": (2, 2, 5, 8)}, ValueError, "v", "got shape (2, 2, 5, 8), expected k's (2, 2, 6, 8)"),
        ({"v": (2, 4, 6, 8)}, ValueError, "v", "got shape (2, 4, 6, 8), expected k's (2, 2, 6, 8)"),
        ({"q": (2, 4, 6, 0)}, ValueError, "q", "expected features along the last axis"),
        ({"q": ("int32", (2, 4, 6, 8))}, TypeError, "q", "got dtype int32, expected one of float"),
        ({"k": ("float64", (2, 2, 6, 8))}, TypeError, "k", "got dtype float64, expected q's float"),
        ({"v": ("float64", (2, 2, 6, 5))}, TypeError, "v", "got dtype float64, expected q's float"),
        (
            {"bias": (6,)},
            ValueError,
            "bias",
            "expected (6, 6) or (4, 6, 6) or (2, 4, 6, 6), with 1",
        ),
        ({"bias": (5, 6)}, ValueError, "bias", "got shape (5, 6), expected (6, 6) or (4, 6, 6)"),
        ({"bias": (2, 6, 6)}, ValueError, "bias", "got shape (2, 6, 6), expected (6, 6) or (4,"),
        ({"bias": (1, 2, 4, 6, 6)}, ValueError, "bias", "got shape (1, 2, 4, 6, 6), expected"),
        ({"bias": ("float64", (6, 6))}, TypeError, "bias", "got dtype float64, expected float32"),
        ({"bias": ("bool", (6, 6))}, TypeError, "bias", "got dtype bool, expected float32"),
        ({"mask": ("bool", (6,))}, ValueError, "mask", "got shape (6,), expected (6, 6) or"),
        ({"mask": ("bool", (2, 6))}, ValueError, "mask", "got shape (2, 6), expected (6, 6) or"),
        ({"mask": (6, 6)}, TypeError, "mask", "got dtype float32, expected bool"),
        ({"q": (2, 4, 7, 8), "causal": True}, ValueError, "k", "got 6 keys for 7 queries with ca"),
        ({"causal": 1}, TypeError, "causal", "got 1, expected True or False"),
        ({"causal": None}, TypeError, "causal", "got None, expected True or False"),
        ({"scale": 0}, ValueError, "scale", "got 0.0, expected a positive, finite number"),
        ({"scale": math.inf}, ValueError, "scale", "got inf, expected a positive, finite number"),
        ({"scale": "1"}, TypeError, "scale", "got '1', expected a number"),
    ],
)
def test_what_does_not_fit_is_refused(
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

    right = {"q": (2, 4, 6, 8), "k": (2, 2, 6, 8), "v": (2, 2, 6, 5)}
    arguments = {key: made(value) for key, value in {**right, **wrong}.items()}
    with refused(error, name, words):
        softmax_attention(**arguments)


@pytest.mark.parametrize("name", ["k", "v", "bias", "mask"])
def test_arrays_are_of_one_library(library: Any, other: Any, refused: Any, name: str) -> None:
    arguments = dict(zip("qkv", (x.astype(np.float32) for x in operands()), strict=True))
    arguments |= {"bias": np.zeros((6, 6), np.float32), "mask": np.ones((6, 6), bool)}
    arguments = {key: library.array(x) for key, x in arguments.items()}
    arguments[name] = other.array(np.ones((2, 2, 6, 8), np.float32))
    words = f"got an array of {other.name}, expected q's library {library.name}"
    with refused(TypeError, name, words):
        softmax_attention(**arguments)
    with refused(TypeError, name, "expected an array"):
        softmax_attention(**{**arguments, name: [1.0]})


def test_lengths_are_known(refused: Any) -> None:
    da = pytest.importorskip("dask.array")
    q, k, v = (da.from_array(x) for x in operands())
    some_of_it = k[:, :, da.from_array(np.arange(6)) > 2]
    with refused(ValueError, "k", "got shape (2, 2, nan, 8), expected known lengths"):
        softmax_attention(q, some_of_it, v)


def test_arguments_are_left_alone(library: Any) -> None:
    arrays = [*operands(), normal(6, 6), some(6, 6)]
    q, k, v, bias, mask = given = list(map(library.array, arrays))
    program((("causal", True),), library.name == "jax")(q, k, v, {"bias": bias, "mask": mask})
    for before, x in zip(arrays, given, strict=True):
        assert_array_equal(np.asarray(x), before)

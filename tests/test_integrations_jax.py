"""The modules of Flax NNX and Equinox: the bits of the description they hold, and no state."""

from __future__ import annotations

import copy
import doctest
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rotary

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
eqx = pytest.importorskip("equinox")

import jax.numpy as jnp  # noqa: E402

from rotary.integrations import equinox as of_equinox  # noqa: E402
from rotary.integrations import flax as of_flax  # noqa: E402

ROPE = rotary.RotaryEmbedding(16, base=500_000.0, scaling=rotary.scaling.YaRN(16.0, 4096))
MODULES = pytest.mark.parametrize("modules", [of_flax, of_equinox], ids=["flax", "equinox"])
JIT = {of_flax: nnx.jit, of_equinox: eqx.filter_jit}


def sample(dtype: str, *shape: int, seed: int = 0) -> tuple[Any, Any]:
    """Return one array twice: NumPy's and JAX's."""
    values = np.random.default_rng(seed).standard_normal(shape)
    host = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return host, jnp.asarray(host)


def same(got: Any, expected: Any) -> bool:
    """Whether a JAX array holds the numbers of NumPy's: none differs by a bit."""
    assert isinstance(got, jax.Array)
    assert got.dtype == expected.dtype
    return np.array_equal(np.asarray(got).astype("f8"), expected.astype("f8"))


@MODULES
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_program_gives_the_bits_of_numpy_at_every_offset(modules: Any, dtype: str) -> None:
    traces = []

    @JIT[modules]
    def rotate(rope: Any, q: Any, k: Any, offset: Any) -> Any:
        traces.append(offset)
        return rope(q, k, offset=offset)

    q_host, q = sample(dtype, 2, 4, 5, 16)
    k_host, k = sample(dtype, 2, 2, 5, 16, seed=1)
    for offset in (0, 100_000):
        # A module of its own each time: equal descriptions share the program.
        got = rotate(modules.RotaryEmbedding(ROPE), q, k, jnp.int32(offset))
        assert all(map(same, got, ROPE(q_host, k_host, offset=offset)))
    assert len(traces) == 1
    assert same(modules.RotaryEmbedding(ROPE)(q, offset=7), ROPE(q_host, offset=7))


@MODULES
def test_other_calls_of_the_description_pass_through(modules: Any) -> None:
    host, x = sample("float32", 2, 5, 4, 16)
    xpos = rotary.RotaryEmbedding(16, xpos=rotary.XPos())
    got = modules.RotaryEmbedding(xpos)(x, seq_axis=-3, role="key")
    assert same(got, xpos(host, seq_axis=-3, role="key"))
    where = [[0, 3, 2, 9, 70_000], [5, 5, 5, 1, 0]]
    assert same(
        modules.RotaryEmbedding(ROPE)(x, seq_axis=-3, positions=where),
        ROPE(host, seq_axis=-3, positions=where),
    )


def _flax_gradient(rope: Any, x: Any, cotangent: Any) -> Any:
    return nnx.jit(nnx.grad(lambda x: jnp.sum(rope(x) * cotangent)))(x)


def _equinox_gradient(rope: Any, x: Any, cotangent: Any) -> Any:
    return eqx.filter_jit(eqx.filter_grad(lambda x: jnp.sum(rope(x) * cotangent)))(x)


@pytest.mark.parametrize(
    ("modules", "gradient"), [(of_flax, _flax_gradient), (of_equinox, _equinox_gradient)]
)
def test_the_gradient_is_the_adjoint_to_the_bit(modules: Any, gradient: Any) -> None:
    _, x = sample("float32", 2, 4, 5, 16)
    host, cotangent = sample("float32", 2, 4, 5, 16, seed=1)
    cos, sin = ROPE.tables(range(5))
    expected = rotary.rotate(host, cos, sin, inverse=True)
    assert same(gradient(modules.RotaryEmbedding(ROPE), x, cotangent), expected)


@MODULES
def test_linear_attention_is_that_of_its_description(modules: Any) -> None:
    def run(attn: Any, q: Any, k: Any, v: Any) -> Any:
        first, state = attn.prefill(*(x[:, :, :3] for x in (q, k, v)))
        last, state = attn.step(*(x[:, :, 3:] for x in (q, k, v)), state)
        return attn(q, k, v, causal=True), first, last, state

    attn = modules.LinearAttention("relu", rope=rotary.RotaryEmbedding(8), normalize=False)
    q_host, q = sample("float32", 1, 4, 4, 8)
    k_host, k = sample("float32", 1, 2, 4, 8, seed=1)
    v_host, v = sample("float32", 1, 2, 4, 6, seed=2)
    got = jax.tree.leaves(JIT[modules](run)(attn, q, k, v))
    expected = jax.tree.leaves(run(attn.description, q_host, k_host, v_host))
    for x, y in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert same(got[-1], expected[-1])  # the next position


class FlaxBlock(nnx.Module):
    """What a model holds: projections with parameters, and a rotation without."""

    def __init__(self, rngs: Any) -> None:
        self.project = nnx.Linear(16, 16, rngs=rngs)
        self.rope = of_flax.RotaryEmbedding(ROPE)

    def __call__(self, x: Any) -> Any:
        return self.rope(self.project(x))


def test_flax_finds_no_variable_in_the_modules() -> None:
    assert set(nnx.state(FlaxBlock(nnx.Rngs(0)))) == {"project"}
    for make, one, other in (
        (of_flax.RotaryEmbedding, ROPE, rotary.RotaryEmbedding(16)),
        (of_flax.LinearAttention, rotary.LinearAttention(), rotary.LinearAttention("relu")),
    ):
        graph, state = nnx.split(make(one))
        assert not jax.tree.leaves(state)
        assert graph == nnx.split(make(one))[0]
        assert graph != nnx.split(make(other))[0]
        assert nnx.merge(graph, state).description == one


def test_flax_transforms_take_a_model_with_the_modules() -> None:
    @nnx.split_rngs(splits=2)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs: Any) -> Any:
        return FlaxBlock(rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(block: Any, x: Any) -> Any:
        return block(x)

    _, x = sample("float32", 2, 5, 16)
    blocks = stacked(nnx.Rngs(0))
    expected = x
    for kernel, bias in zip(blocks.project.kernel[...], blocks.project.bias[...], strict=True):
        expected = ROPE(expected @ kernel + bias)
    np.testing.assert_allclose(through(blocks, x), expected, rtol=1e-5, atol=1e-6)

    gradient = nnx.jit(nnx.grad(lambda blocks: jnp.sum(through(blocks, x))))(blocks)
    assert set(gradient) == {"project"}
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def test_flax_attention_rotates_through_its_attention_function() -> None:
    rope = of_flax.RotaryEmbedding(8)

    def attend(query: Any, key: Any, value: Any, **options: Any) -> Any:
        query, key = rope(query, key, seq_axis=-3)
        return nnx.dot_product_attention(query, key, value, **options)

    @nnx.jit
    def both(mha: Any, x: Any) -> Any:
        q, k, v = (jnp.swapaxes(f(x), 1, 2) for f in (mha.query, mha.key, mha.value))
        out = rotary.softmax_attention(*rope.description(q, k), v)
        return mha(x), mha.out(jnp.swapaxes(out, 1, 2))

    mha = nnx.MultiHeadAttention(2, 16, attention_fn=attend, decode=False, rngs=nnx.Rngs(0))
    got, expected = both(mha, sample("float32", 1, 5, 16)[1])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_equinox_finds_no_array_in_the_modules() -> None:
    for module in (
        of_equinox.RotaryEmbedding(ROPE),
        of_equinox.RotaryPositionalEmbedding(16),
        of_equinox.LinearAttention(rope=ROPE),
    ):
        assert jax.tree.leaves(module) == []
        assert jax.tree.map(lambda x: x, module) == module


def test_equinox_transforms_take_a_model_with_the_modules() -> None:
    class Block(eqx.Module):
        project: Any
        rope: Any

        def __call__(self, x: Any) -> Any:
            return self.rope(jax.vmap(self.project)(x))

    _, x = sample("float32", 3, 5, 16)
    block = Block(
        eqx.nn.Linear(16, 16, key=jax.random.key(0)), of_equinox.RotaryPositionalEmbedding(16)
    )
    mapped = eqx.filter_vmap(block)(x)
    for n in range(3):
        np.testing.assert_allclose(mapped[n], block(x[n]), rtol=1e-5, atol=1e-6)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda block: jnp.sum(block(x[0]))))(block)
    assert float(jnp.abs(gradient.project.weight).max()) > 0


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_the_drop_in_is_the_rotation_of_equinox_up_to_its_rounding(
    theta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equinox.nn import _embedding

    # Its cache does not know theta.
    monkeypatch.setattr(_embedding, "internal_rope_embedding_cache", {})
    host, x = sample("float32", 20, 32)
    theirs = eqx.nn.RotaryPositionalEmbedding(32, theta)(x)
    ours = of_equinox.RotaryPositionalEmbedding(32, theta, jnp.float32)
    assert same(ours(x, key=None), rotary.RotaryEmbedding(32, base=theta)(host))
    # Positions up to 19 times 2⁻²⁴ of each frequency, twice, and the products.
    np.testing.assert_allclose(ours(x), theirs, rtol=0, atol=20 * 2.0**-23 * np.abs(host).max())


def test_equinox_attention_rotates_through_process_heads() -> None:
    ours, theirs = (
        jax.vmap(make(8), in_axes=1, out_axes=1)  # as Equinox documents it
        for make in (of_equinox.RotaryPositionalEmbedding, eqx.nn.RotaryPositionalEmbedding)
    )
    process_heads = of_equinox.RotaryEmbedding(8).process_heads
    host, x = sample("float32", 5, 2, 8)
    q, k, v = process_heads(x, x, x)
    assert v is x
    assert same(q, rotary.RotaryEmbedding(8)(host, seq_axis=-3))
    assert same(k, np.asarray(ours(x)))

    @eqx.filter_jit
    def attended(mha: Any, x: Any) -> Any:
        each = (process_heads, *(lambda q, k, v, f=f: (f(q), f(k), v) for f in (ours, theirs)))
        return [mha(x, x, x), *(mha(x, x, x, process_heads=f) for f in each)]

    mha = eqx.nn.MultiheadAttention(2, 16, key=jax.random.key(0))
    plain, short, long, expected = attended(mha, sample("float32", 5, 16)[1])
    np.testing.assert_allclose(short, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(long, expected, rtol=0, atol=1e-6)
    assert np.abs(plain - expected).max() > 1e-3


@MODULES
def test_modules_are_copied_with_their_description(modules: Any) -> None:
    for module in (modules.RotaryEmbedding(ROPE), modules.LinearAttention(rope=ROPE)):
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert other.description == module.description


@MODULES
def test_a_config_makes_a_module(modules: Any) -> None:
    rope = modules.RotaryEmbedding.from_config(ROPE.to_config())
    assert rope.description == ROPE


@MODULES
def test_what_does_not_describe_is_refused(modules: Any, refused: Any) -> None:
    with refused(ValueError, "description", "base"):
        modules.RotaryEmbedding(ROPE, base=1e6)
    with refused(TypeError, "description", "RotaryEmbedding(...)", "LinearAttention(...)"):
        modules.LinearAttention(ROPE)
    with refused(ValueError, "layout", "'whole'"):
        modules.RotaryEmbedding(16, layout="whole")
    learned = {
        of_flax: lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
        of_equinox: lambda: eqx.nn.Linear(4, 4, key=jax.random.key(0)),
    }[modules]
    with refused(TypeError, "feature_map", "Linear"):
        modules.LinearAttention(learned(), normalize=True)


@MODULES
def test_arrays_of_another_library_are_refused(modules: Any, refused: Any) -> None:
    host, x = sample("float32", 1, 2, 5, 16)
    rope, attn = modules.RotaryEmbedding(ROPE), modules.LinearAttention()
    with refused(TypeError, "q", "numpy.ndarray", "jax.Array"):
        rope(host)
    with refused(TypeError, "k", "numpy", "jax"):
        rope(x, host)
    with refused(ValueError, "out", "immutable"):
        rope(x, out=x)
    for call in (attn, attn.prefill, lambda *qkv: attn.step(*qkv, None)):
        with refused(TypeError, "q", "numpy.ndarray", "jax.Array"):
            call(host, host, host)


def test_what_the_drop_in_cannot_take_is_refused(refused: Any) -> None:
    make = of_equinox.RotaryPositionalEmbedding
    with refused(ValueError, "embedding_size", "7", "even"):
        make(7)
    with refused(TypeError, "embedding_size", "'8'"):
        make("8")
    with refused(ValueError, "theta", "-1.0"):
        make(8, theta=-1.0)
    for shape in ((2, 5, 8), (5, 16), (8,)):
        with refused(ValueError, "x", str(shape), "(seq, 8)"):
            make(8)(jnp.ones(shape))
    with refused(TypeError, "x", "numpy.ndarray", "jax.Array"):
        make(8)(np.ones((5, 8), np.float32))


@MODULES
def test_the_examples_hold(modules: Any) -> None:
    assert doctest.testmod(modules).failed == 0

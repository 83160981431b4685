"""Differentiation and compilation: the gradient of a rotation is the rotation back, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import rotary
from rotary import backends, dtypes
from rotary.conformance import libraries
from rotary.tables import cache

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
check_grads = pytest.importorskip("jax.test_util").check_grads
jnp = jax.numpy
lax = jax.lax

DTYPES = ("float16", "bfloat16", "float32", "float64")
EMBEDDINGS = [
    rotary.RotaryEmbedding(16),
    rotary.RotaryEmbedding(16, layout="interleaved", rotary_dim=6, rotary_side="trailing"),
]
SHAPE = (2, 3, 10, 16)
WHERE = {"offset": 7}

embeddings = pytest.mark.parametrize("rope", EMBEDDINGS, ids=lambda rope: rope.layout)


@pytest.fixture
def empty_cache():
    """No tables are kept at the start, and none that the test made afterwards."""
    cache.clear()
    yield
    cache.clear()


def random(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# torch


def tensor(seed: int, dtype: str = "float32", shape: tuple[int, ...] = SHAPE):
    return torch.from_numpy(random(seed, shape)).to(getattr(torch, dtype))


def value_and_gradient(f, x, cotangent):
    leaf = x.detach().clone().requires_grad_()
    y = f(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, cotangent)[0]


def assert_same(got, expected) -> None:
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@embeddings
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_gradient_is_the_inverse_of_the_cotangent(rope, dtype):
    x, d = tensor(0, dtype), tensor(1, dtype)
    _, gradient = value_and_gradient(lambda x: rope(x, **WHERE), x, d)
    assert_same(gradient, rope.inverse(d, **WHERE))
    _, back = value_and_gradient(lambda x: rope.inverse(x, **WHERE), x, d)
    assert_same(back, rope(d, **WHERE))
    _, moved = value_and_gradient(lambda x: rope.shift(x, 3), x, d)
    assert_same(moved, rope.shift(d, -3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_gradient_reaches_queries_and_keys(dtype):
    rope = EMBEDDINGS[1]
    q, k = tensor(0, dtype).requires_grad_(), tensor(1, dtype)[:, :1].requires_grad_()
    dq, dk = tensor(2, dtype), tensor(3, dtype)[:, :1]
    gradients = torch.autograd.grad(rope(q, k, **WHERE), (q, k), (dq, dk))
    assert_same(gradients[0], rope.inverse(dq, **WHERE))
    assert_same(gradients[1], rope.inverse(dk, **WHERE))


ROTATIONS = [
    {"layout": layout, "rotary_side": side, "inverse": inverse}
    for layout in ("half", "interleaved")
    for side, inverse in (("leading", False), ("trailing", True))
]
rotations = pytest.mark.parametrize(
    "how", ROTATIONS, ids=lambda how: "-".join(map(str, how.values()))
)


@rotations
@pytest.mark.parametrize("table_shape", [(3, 2), (2, 3, 2), (2, 1, 3, 2)])
def test_torch_gradients_of_x_and_tables_are_numerically_right(how, table_shape):
    arguments = [tensor(i, "float64", s) for i, s in enumerate([(2, 2, 3, 6), *[table_shape] * 2])]
    arguments = [a.requires_grad_() for a in arguments]
    assert torch.autograd.gradcheck(lambda *a: rotary.rotate(*a, **how), arguments)


@rotations
def test_torch_second_derivatives_are_numerically_right(how):
    arguments = [tensor(i, "float64", s) for i, s in enumerate([(2, 2, 4), (2, 1), (2, 1)])]
    arguments = [a.requires_grad_() for a in arguments]
    assert torch.autograd.gradgradcheck(lambda *a: rotary.rotate(*a, **how), arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_differentiates_twice(dtype):
    """The gradient is linear in the cotangent; its derivative is the rotation again."""
    rope, v = EMBEDDINGS[0], tensor(2, dtype)
    x, d = tensor(0, dtype).requires_grad_(), tensor(1, dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(rope(x, **WHERE), x, d, create_graph=True)
    (second,) = torch.autograd.grad(gradient, d, v)
    assert_same(second, rope(v, **WHERE))


def test_torch_records_a_gradient_only_where_asked():
    rope, x = EMBEDDINGS[1], tensor(0).requires_grad_()
    assert rope(x).requires_grad
    assert not rope(x.detach()).requires_grad
    with torch.no_grad():
        assert not rope(x).requires_grad
        written = rope(x.detach().clone(), out=x.detach().clone())
        assert_same(written, rope(x))
    with torch.inference_mode():
        assert_same(rope(x).clone(), written)
    for table in rope.tables(range(4), like=x):
        assert not table.requires_grad


def test_torch_tables_first_used_in_inference_mode_serve_gradients_later(empty_cache):
    rope, x, d = EMBEDDINGS[0], tensor(0), tensor(1)
    with torch.inference_mode():
        rope(x, **WHERE)
    _, gradient = value_and_gradient(lambda x: rope(x, **WHERE), x, d)
    assert_same(gradient, rope.inverse(d, **WHERE))


@embeddings
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_function_transforms_keep_the_bits(rope, dtype):
    x, d = tensor(0, dtype), tensor(1, dtype)

    def f(x):
        return rope(x, **WHERE)

    assert_same(torch.func.vmap(f, in_dims=1, out_dims=1)(x), f(x))
    value, tangent = torch.func.jvp(f, (x,), (d,))
    assert_same(value, f(x))
    assert_same(tangent, f(d))
    value, pull_back = torch.func.vjp(f, x)
    assert_same(value, f(x))
    assert_same(pull_back(d)[0], rope.inverse(d, **WHERE))
    gradients = torch.func.vmap(torch.func.grad(lambda x, d: (f(x) * d).sum()))(x, d)
    assert_same(gradients, rope.inverse(d, **WHERE))


def test_torch_checkpointing_keeps_the_gradient():
    from torch.utils.checkpoint import checkpoint

    rope, x, d = EMBEDDINGS[0], tensor(0), tensor(1)
    _, gradient = value_and_gradient(lambda x: checkpoint(rope, x, use_reentrant=False), x, d)
    assert_same(gradient, rope.inverse(d))


# torch, compiled


def _compiler_missing() -> str | None:
    return next(w.unavailable for w in libraries.load("torch").ways if w.name == "compiled")


def compiled(*marks):
    """Mark a test that compiles: it needs a C++ compiler, and torch's compiler warns of itself."""

    def mark(test):
        for one in (
            pytest.mark.skipif(_compiler_missing() is not None, reason=str(_compiler_missing())),
            pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
            pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
            *marks,
        ):
            test = one(test)
        return test

    return mark


def compile_whole(f):
    torch.compiler.reset()  # programs of other tests do not count
    return torch.compile(f, fullgraph=True)


def trace_whole(f):
    """Return f as torch.compile traces it, run eagerly: quick, where no code is generated."""
    torch.compiler.reset()
    return torch.compile(f, fullgraph=True, backend="eager")


@compiled(pytest.mark.parametrize("dtype", ["float32", "bfloat16"]))
def test_torch_compiled_value_and_gradient_are_the_eager_bits(dtype):
    rope, x, d = EMBEDDINGS[1], tensor(0, dtype), tensor(1, dtype)
    y, gradient = value_and_gradient(compile_whole(lambda x: rope(x, **WHERE)), x, d)
    assert_same(y, rope(x, **WHERE))
    assert_same(gradient, rope.inverse(d, **WHERE))


@compiled(pytest.mark.parametrize("dtype", ["float16", "bfloat16"]))
def test_torch_compiled_chain_rounds_between_its_links(dtype):
    """A compiler would keep float32 between two rotations, and between their gradients."""
    rope, x, d = EMBEDDINGS[0], tensor(0, dtype), tensor(1, dtype)

    def chain(x):
        return rope(rope(x, **WHERE), offset=100)

    y, gradient = value_and_gradient(compile_whole(chain), x, d)
    assert_same(y, chain(x))
    assert_same(gradient, value_and_gradient(chain, x, d)[1])
    assert_same(gradient, rope.inverse(rope.inverse(d, offset=100), **WHERE))


@compiled()
def test_torch_compiled_offsets_may_change_from_call_to_call():
    rope, x = EMBEDDINGS[0], tensor(0)
    step = compile_whole(lambda x, offset: rope(x, offset=offset))
    for offset in (0, 1, 2, 300, -5, 2**52, 0.5, -2.25, 2.0**40):
        assert_same(step(x, offset), rope(x, offset=offset))


@compiled(
    pytest.mark.xfail(
        reason="Dynamo guards the length of the dictionaries of known array types and dtypes, "
        "which the first call and the first array of another library change"
    )
)
@pytest.mark.parametrize("between", [lambda: None, lambda: EMBEDDINGS[0](random(0))])
def test_torch_compiles_the_first_call_of_a_process_once(between, monkeypatch):
    monkeypatch.setattr(dtypes, "_names", {}, raising=False)
    monkeypatch.setattr(backends, "_owners", {}, raising=False)
    programs = []

    def count(program, _):
        programs.append(program)
        return program.forward

    torch.compiler.reset()
    rotate, x = torch.compile(lambda x: EMBEDDINGS[0](x), fullgraph=True, backend=count), tensor(0)
    rotate(x)
    between()
    rotate(x)
    assert len(programs) == 1


@compiled()
def test_torch_compiled_lengths_may_change_from_call_to_call():
    rope = EMBEDDINGS[0]
    step = trace_whole(lambda x, offset: rope(x, offset=offset))
    offset = 0
    for seq in (10, 1, 1, 1, 7, 300):
        x = tensor(seq, shape=(2, 3, seq, 16))
        assert_same(step(x, offset), rope(x, offset=offset))
        offset += seq


@compiled()
def test_torch_compiled_positions_may_be_a_tensor():
    rope, q, k = EMBEDDINGS[0], tensor(0), tensor(1)[:, :1]
    rotate = compile_whole(lambda q, k, positions: rope(q, k, positions=positions))
    whole, rows = torch.arange(10), torch.arange(20).reshape(2, 10)
    for positions in (whole, whole * 3 - 2, whole / 3, rows):
        for got, x in zip(rotate(q, k, positions), (q, k), strict=True):
            assert_same(got, rope(x, positions=positions))


@compiled()
def test_torch_compiled_offsets_may_be_tensors_and_rows_of_numbers():
    rope, x = EMBEDDINGS[0], tensor(0)
    rotate = trace_whole(lambda x, offset: rope(x, offset=offset))
    for offset in (torch.tensor(3), torch.tensor(4), torch.tensor([3.0, 0.25]), [3, 1000]):
        assert_same(rotate(x, offset), rope(x, offset=offset))


@compiled()
def test_torch_compiled_calls_write_in_place():
    rope, x = EMBEDDINGS[0], tensor(0)
    expected = rope(x)
    assert compile_whole(lambda x: rope(x, out=x))(x) is x
    assert_same(x, expected)


@compiled()
def test_torch_compiled_shifts_and_tables_are_the_eager_bits():
    rope, k = EMBEDDINGS[0], tensor(0)
    shift = trace_whole(lambda k, by: rope.shift(k, by))
    for by in (3, 4, -2, 0.5):
        assert_same(shift(k, by), rope.shift(k, by))
    tables = trace_whole(lambda positions, like: rope.tables(positions, like=like))
    positions = torch.arange(6).reshape(2, 3) * 1000
    for got, expected in zip(tables(positions, k), rope.tables(positions, like=k), strict=True):
        assert_same(got, expected)


@compiled()
def test_torch_compiled_positions_are_made_on_the_host_whatever_the_default_device():
    """On a GPU each call would wait for them; on a device without values they would be lost."""
    rope, x = EMBEDDINGS[0], tensor(0)
    offsets = (None, 4, 0.5, [1, 2.5])
    expected = [rope(x, offset=offset) for offset in offsets]
    with torch.device("meta"):
        for offset, y in zip(offsets, expected, strict=True):
            assert_same(trace_whole(lambda x, o: rope(x, offset=o))(x, offset), y)
        assert_same(rope(x, offset=4), expected[1])


def test_torch_exported_programs_rotate_any_length():
    rope = EMBEDDINGS[0]

    class Module(torch.nn.Module):
        def forward(self, x):
            return rope(x, **WHERE)

    lengths = {"x": {2: torch.export.Dim("seq", min=2, max=1000)}}
    program = torch.export.export(Module(), (tensor(0),), dynamic_shapes=lengths)
    for seq in (10, 3, 300):
        x = tensor(seq, shape=(2, 3, seq, 16))
        assert_same(program.module()(x), rope(x, **WHERE))


@compiled()
def test_torch_compiled_gradients_of_tables_are_the_eager_ones():
    """A sum over batch and heads may take another order: equal up to its rounding."""
    x, d = tensor(0, "bfloat16"), tensor(1, "bfloat16")
    tables = [table.requires_grad_() for table in EMBEDDINGS[0].tables(range(10), like=tensor(0))]
    x.requires_grad_()

    def gradients(f):
        return torch.autograd.grad(f(x, *tables), (x, *tables), d)

    eager, got = gradients(rotary.rotate), gradients(compile_whole(rotary.rotate))
    assert_same(got[0], eager[0])
    for a, b in zip(got[1:], eager[1:], strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# JAX


@pytest.fixture(
    params=[
        ("float16", False),
        ("bfloat16", False),
        ("float32", False),
        ("float32", True),
        ("float64", True),
    ],
    ids=lambda param: f"{param[0]}-x64 {'on' if param[1] else 'off'}",
)
def dtype(request):
    """Each dtype, under a setting of x64 that has it."""
    name, x64 = request.param
    with jax.enable_x64(x64):
        yield name


def array(seed: int, dtype: str = "float32", shape: tuple[int, ...] = SHAPE):
    return jnp.asarray(random(seed, shape), dtype)


def assert_equal(got, expected) -> None:
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(
        np.asarray(got).astype(np.float64), np.asarray(expected).astype(np.float64)
    )


def pull_back(f):
    return lambda x, d: jax.vjp(f, x)[1](d)[0]


def forward(rope):
    return lambda x: rope(x, **WHERE)


def backward(rope):
    return lambda d: rope.inverse(d, **WHERE)


# Eagerly each operation is a program of its own to compile: one embedding is enough.
ways = pytest.mark.parametrize(
    ("rope", "run"),
    [(EMBEDDINGS[0], jax.jit), (EMBEDDINGS[1], jax.jit), (EMBEDDINGS[1], lambda f: f)],
    ids=["half-jit", "interleaved-jit", "interleaved-eager"],
)
eager_and_jit = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])


@ways
def test_jax_value_and_derivatives_keep_the_bits(rope, run, dtype):
    x, d = array(0, dtype), array(1, dtype)
    x_host, d_host = map(np.asarray, (x, d))
    f, f_back = forward(rope), backward(rope)
    assert_equal(run(f)(x), f(x_host))
    assert_equal(run(pull_back(f))(x, d), f_back(d_host))
    assert_equal(run(pull_back(f_back))(x, d), f(d_host))
    value, tangent = run(lambda x, d: jax.jvp(f, (x,), (d,)))(x, d)
    assert_equal(value, f(x_host))
    assert_equal(tangent, f(d_host))


@eager_and_jit
def test_jax_linearize_and_transpose_keep_the_bits(run, dtype):
    rope, x, d = EMBEDDINGS[1], array(0, dtype), array(1, dtype)
    f = forward(rope)
    assert_equal(run(lambda x, d: jax.linearize(f, x)[1](d))(x, d), f(d))
    assert_equal(run(lambda x, d: jax.linear_transpose(f, x)(d)[0])(x, d), backward(rope)(d))


@ways
def test_jax_grad_and_vmap_compose(rope, run):
    x, d = array(0), array(1)
    f = forward(rope)

    def loss(x, d):
        return jnp.sum(f(x) * d)

    expected = rope.inverse(d, **WHERE)
    assert_equal(run(jax.grad(loss))(x, d), expected)
    assert_equal(run(jax.vmap(jax.grad(loss)))(x, d), expected)
    assert_equal(run(jax.vmap(jax.grad(loss), in_axes=1, out_axes=1))(x, d), expected)
    assert_equal(run(jax.vmap(jax.vmap(f)))(x), f(x))


@eager_and_jit
def test_jax_forward_over_reverse_keeps_the_bits(run, dtype):
    """For ½‖Rx‖² the gradient is RᵀRx; along w it changes by RᵀRw."""
    rope, x, w = EMBEDDINGS[1], array(0, dtype), array(1, dtype)
    f, f_back = forward(rope), backward(rope)

    def gradient(x):
        y, back = jax.vjp(f, x)
        return back(y)[0]

    value, tangent = run(lambda x, w: jax.jvp(gradient, (x,), (w,)))(x, w)
    assert_equal(value, f_back(f(x)))
    assert_equal(tangent, f_back(f(w)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@eager_and_jit
def test_jax_checkpoint_and_scan_keep_the_bits(run, dtype):
    rope, x, d = EMBEDDINGS[0], array(0, dtype), array(1, dtype)
    f, f_back = forward(rope), backward(rope)

    def scanned(x):
        return lax.scan(lambda x, _: (f(x), None), x, None, length=3)[0]

    def chain(x):
        return f(f(f(x)))

    assert_equal(run(scanned)(x), chain(x))
    for program in (scanned, chain, jax.checkpoint(scanned), jax.checkpoint(chain)):
        assert_equal(run(pull_back(program))(x, d), f_back(f_back(f_back(d))))


CONTROL_FLOW = {
    "cond": lambda f: lambda x: lax.cond(x[0, 0, 0, 0] < 1e9, f, lambda x: x, x),
    "map": lambda f: lambda x: lax.map(f, x),
    "while": lambda f: (
        lambda x: lax.while_loop(
            lambda state: state[0] < 1, lambda state: (1, f(state[1])), (0, x)
        )[1]
    ),
}


@pytest.mark.parametrize("what", CONTROL_FLOW)
def test_jax_control_flow_keeps_the_bits(what):
    f, x = forward(EMBEDDINGS[0]), array(0)
    assert_equal(jax.jit(CONTROL_FLOW[what](f))(x), f(x))


@pytest.mark.parametrize(
    ("how", "table_shape"), [(ROTATIONS[0], (2, 3, 2)), (ROTATIONS[3], (3, 2))]
)
def test_jax_gradients_of_x_and_tables_are_numerically_right(how, table_shape):
    shapes = ((2, 2, 3, 6), table_shape, table_shape)
    with jax.enable_x64(True):
        arguments = [array(i, "float64", shape) for i, shape in enumerate(shapes)]
        check_grads(jax.jit(lambda *a: rotary.rotate(*a, **how)), arguments, order=2)


@eager_and_jit
def test_jax_frequencies_can_be_learned(run):
    """Through a caller's own cos and sin: ∂/∂ω ⟨R(pω)x, d⟩ = Σ p·⟨R(pω + π/2)x, d⟩."""
    with jax.enable_x64(True):
        x, d = array(0, "float64", (5, 8)), array(1, "float64", (5, 8))
        omega, positions = jnp.asarray([1.0, 0.5, 0.1, 0.01]), jnp.arange(5.0)[:, None]

        def rotated(angle):
            return rotary.rotate(x, jnp.cos(angle), jnp.sin(angle))

        got = run(jax.grad(lambda omega: jnp.sum(rotated(positions * omega) * d)))(omega)
        turned = (rotated(positions * omega + np.pi / 2) * d).reshape(5, 2, 4).sum(1)
        np.testing.assert_allclose(got, (positions * turned).sum(0), rtol=1e-12)


def test_jax_derivatives_at_traced_positions_keep_the_bits(dtype):
    rope, x, d = EMBEDDINGS[1], array(0, dtype), array(1, dtype)
    positions = np.arange(20, dtype=np.float32).reshape(2, 10) / 3 - 1

    def program(x, d, positions):
        y, back = jax.vjp(lambda x: rope(x, positions=positions), x)
        return y, back(d)[0]

    y, gradient = jax.jit(program)(x, d, positions)
    assert_equal(y, rope(np.asarray(x), positions=positions))
    assert_equal(gradient, rope.inverse(np.asarray(d), positions=positions))


def test_jax_tracers_do_not_leak(empty_cache):
    rope, x = EMBEDDINGS[0], array(0)
    with jax.checking_leaks():
        for program in (
            jax.jit(forward(rope)),
            jax.jit(lambda x: pull_back(forward(rope))(x, x)),
            jax.vmap(forward(rope)),
            jax.jit(lambda x: rope.tables(range(5), like=x)[0]),
            jax.jit(lambda x: rope(x, offset=jnp.argmax(x[0, 0, 0]))),
        ):
            assert_equal(program(x), program(x))


def test_jax_tables_cached_within_a_trace_serve_eager_calls(empty_cache):
    rope, x = EMBEDDINGS[0], array(0)
    expected = rope(np.asarray(x), **WHERE)
    # An array that a traced function closes over is concrete, so its tables are kept.
    programs = [
        jax.jit(forward(rope)),
        jax.jit(lambda zero: zero + rope(x, **WHERE)),
        jax.vmap(forward(rope)),
    ]
    for program in programs:
        argument = jnp.zeros_like(x) if program is programs[1] else x
        for first, second in ((program, forward(rope)), (forward(rope), program)):
            cache.clear()
            for call in (first, second):
                assert_equal(call(argument if call is program else x), expected)


def test_jax_tables_cached_under_one_x64_setting_serve_the_other(empty_cache):
    rope, host = EMBEDDINGS[0], random(0)
    for setting in (True, False, True):
        with jax.enable_x64(setting):
            x = jnp.asarray(host)
            assert x.dtype == (jnp.float64 if setting else jnp.float32)
            for call in (rope, jax.jit(rope)):
                assert_equal(call(x), rope(np.asarray(x)))


SHARDED = """
import jax, numpy as np, rotary
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

rope = rotary.RotaryEmbedding(16, rotary_dim=8)
x, d = np.random.default_rng(0).standard_normal((2, 2, 4, 6, 16)).astype(np.float32)
y, gradient = rope(x, offset=3), rope.inverse(d, offset=3)
mesh, heads = Mesh(np.array(jax.devices()), ("heads",)), P(None, "heads")
assert mesh.size == 2

def forward(x):
    return rope(x, offset=3)

def pull_back(f):
    return lambda x, d: jax.vjp(f, x)[1](d)[0]

def shard(f, count):
    return jax.shard_map(f, mesh=mesh, in_specs=(heads,) * count, out_specs=heads)

x_there, d_there = (jax.device_put(a, NamedSharding(mesh, heads)) for a in (x, d))
second = jax.device_put(x, jax.devices()[1])
for got, expected in (
    (shard(forward, 1)(x), y),
    (jax.jit(shard(forward, 1))(x), y),
    (jax.jit(pull_back(shard(forward, 1)))(x, d), gradient),
    (jax.jit(shard(pull_back(forward), 2))(x, d), gradient),
    (forward(x_there), y),
    (jax.jit(forward)(x_there), y),
    (jax.jit(pull_back(forward))(x_there, d_there), gradient),
    (forward(second), y),
):
    np.testing.assert_array_equal(np.asarray(got), expected)
    on_second = got.devices() == {jax.devices()[1]}
    assert on_second or got.sharding.spec[1] == "heads", got.sharding
"""


def test_jax_sharded_programs_keep_the_bits():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        env={**os.environ, **two},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

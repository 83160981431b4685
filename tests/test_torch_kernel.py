"""torch on the CPU's kernels: recorded, compiled, transformed; and what they leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rotary
from rotary.backends import Turn, kernels
from rotary.rotation import rotate_by_array_code

torch = pytest.importorskip("torch")
_torch = pytest.importorskip("rotary.backends._torch")
_torch_rotation = pytest.importorskip("rotary.backends._torch_rotation")

pytestmark = pytest.mark.skipif(
    kernels.kernel("rotation") is None, reason=f"rotation: {kernels.off('rotation')}"
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TURNS = [
    Turn("half", "leading", None, False),
    Turn("interleaved", "trailing", None, True),
    Turn("half", "trailing", (3, 5), False),
]


def samples(*shape: int, dtype: Any = torch.float32, seed: int = 0) -> Any:
    """Return normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tables(*shape: int, dtype: Any) -> tuple[Any, Any]:
    """Return tables that go with a dtype."""
    angles = 9 * samples(*shape, dtype=torch.float64, seed=7)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return angles.cos().to(real), angles.sin().to(real)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Record what the kernel rotates."""
    calls: list[Any] = []
    rotate = _torch_rotation._cpu.rotate

    def counted(*args: Any, **keywords: Any) -> bool:
        done = rotate(*args, **keywords)
        calls.append(done)
        return done

    small = _torch_rotation._rotate_blocks

    def counted_if_done(*args: Any) -> bool:
        done = small(*args)
        calls.extend([True] * done)
        return done

    monkeypatch.setattr(_torch_rotation._cpu, "rotate", counted)
    monkeypatch.setattr(_torch_rotation, "_rotate_blocks", counted_if_done)
    yield calls
    assert all(calls)


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_give_the_bits_of_the_array_code(
    dtype: Any, turn: Turn, used: list[Any]
) -> None:
    q, k = samples(2, 6, 5, 20, dtype=dtype), samples(2, 2, 5, 20, dtype=dtype, seed=1)
    cos, sin = tables(2, 1, 5, 8, dtype=dtype)
    wanted = rotate_by_array_code((q, k), cos, sin, turn, _torch)
    found = _torch.rotate((q, k), cos, sin, turn, None)
    assert all(map(torch.equal, found, wanted))
    leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
    recorded = _torch.rotate(leaves, cos, sin, turn, None)
    assert all(map(torch.equal, recorded, wanted))
    directions = (
        samples(2, 6, 5, 20, dtype=dtype, seed=2),
        samples(2, 2, 5, 20, dtype=dtype, seed=3),
    )
    gradients = torch.autograd.grad(recorded, leaves, directions)
    back = turn._replace(inverse=not turn.inverse)
    assert all(
        map(torch.equal, gradients, rotate_by_array_code(directions, cos, sin, back, _torch))
    )
    assert len(used) == 3


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_tensors_rotate_by_their_addresses(dtype: Any, turn: Turn) -> None:
    whole = samples(3, 6, 5, 24, dtype=dtype)
    cos, sin = tables(9, 8, dtype=dtype)
    cos, sin = cos[2:7], sin[2:7]
    for x in (whole[..., :20], whole[::2, ::3, :, 2:22], whole.transpose(0, 1)[..., 4:]):
        _check_small(x, cos, sin, turn)
        _check_small(x, cos[:1], sin[:1], turn)


def _check_small(x: Any, cos: Any, sin: Any, turn: Turn) -> None:
    (right,) = rotate_by_array_code((x,), cos, sin, turn, _torch)
    out = torch.full(x.shape, 77, dtype=x.dtype)
    given = (_torch_rotation._KERNELS["cpu"], (x,), (out,), cos, sin, turn)
    assert _torch_rotation._rotate_blocks(*given)
    assert torch.equal(out, right)


def test_one_of_two_outputs_may_be_without_a_gradient(used: list[Any]) -> None:
    rope, q, k = rotary.RotaryEmbedding(8), samples(2, 3, 8), samples(2, 3, 8, seed=1)
    q.requires_grad_()
    rotated, other = rope(q, k)
    rotated.sum().backward()
    assert torch.equal(q.grad, rope.inverse(torch.ones(2, 3, 8)))
    assert rope(q, k)[1].requires_grad == other.requires_grad


def test_gradients_of_gradients_hold() -> None:
    rope = rotary.RotaryEmbedding(8, rotary_dim=6)
    x = samples(2, 3, 8, dtype=torch.float64).requires_grad_()
    checks = {"check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(rope, (x,), **checks)
    assert torch.autograd.gradgradcheck(lambda x: rope(x * x), (x,), check_batched_grad=True)


def test_gradients_may_be_batched_in_both_ways() -> None:
    rope, x = rotary.RotaryEmbedding(8), samples(3, 8).requires_grad_()
    directions = samples(4, 3, 8, seed=1)
    y = rope(x)
    wanted = torch.stack([rope.inverse(d) for d in directions])
    batched = torch.autograd.grad(y, x, directions, is_grads_batched=True, retain_graph=True)[0]
    assert torch.equal(batched, wanted)
    pull_back = torch.func.vjp(rope, x.detach())[1]
    assert torch.equal(torch.func.vmap(lambda d: pull_back(d)[0])(directions), wanted)


def test_memory_may_lie_in_any_way(used: list[Any]) -> None:
    rope = rotary.RotaryEmbedding(8)
    whole = samples(4, 6, 5, 16)
    for x in (
        whole[::2, ::3, :, 4:12],
        whole.transpose(1, 2)[..., :8].transpose(1, 2),
        whole[..., ::2],
        whole[:1, :1, :, :8].expand(3, 2, 5, 8),
    ):
        found = rope(x)
        assert torch.equal(found, rope(x.contiguous()))
        assert found.is_contiguous()
    y = whole.clone()
    part = y[::2, :, :, 3:11]
    assert rope(part, out=part) is part
    assert torch.equal(part, rope(whole[::2, :, :, 3:11]))
    assert torch.equal(y[1::2], whole[1::2])
    assert len(used) == 4 * 2 + 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_place_it_is_x_that_changes(dtype: Any, used: list[Any]) -> None:
    rope, x = rotary.RotaryEmbedding(8), samples(2, 3, 8, dtype=dtype)
    wanted = rope(x.clone())
    version = x._version
    assert rope(x, out=x) is x
    assert torch.equal(x, wanted)
    assert x._version > version  # or autograd would not see that what it keeps has changed


def test_a_saved_tensor_that_was_rotated_in_place_is_found_out() -> None:
    rope, x = rotary.RotaryEmbedding(8), samples(2, 3, 8)
    w = samples(2, 3, 8, seed=1).requires_grad_()
    y = (x * w).sum()
    with torch.no_grad():
        rope(x, out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_what_has_no_memory_of_its_own_is_left_to_the_array_code(used: list[Any]) -> None:
    rope, x = rotary.RotaryEmbedding(8), samples(4, 3, 8)
    wanted = rope(x)
    used.clear()
    assert torch.equal(torch.func.vmap(rope)(x), wanted)
    assert torch.equal(torch.func.jvp(rope, (x,), (x,))[1], wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(rope(dual)).tangent, wanted)

    class Subclass(torch.Tensor):
        pass

    assert torch.equal(rope(x.as_subclass(Subclass)).as_subclass(torch.Tensor), wanted)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    assert torch.equal(rope(negative), -wanted)
    assert not used
    assert rope(x.to("meta")).is_meta


def test_tracers_see_operations() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    rope, x = rotary.RotaryEmbedding(8), samples(4, 3, 8)
    wanted = rope(x)
    graph = make_fx(rope)(torch.zeros(4, 3, 8))
    assert torch.equal(graph(x), wanted)
    with pytest.warns((DeprecationWarning, torch.jit.TracerWarning)):
        traced = torch.jit.trace(lambda x: rope(x), torch.zeros(4, 3, 8), check_trace=False)
    assert torch.equal(traced(x), wanted)


def test_inference_tensors_and_parameters_rotate(used: list[Any]) -> None:
    rope, x = rotary.RotaryEmbedding(8), samples(4, 3, 8)
    wanted = rope(x)
    with torch.inference_mode():
        assert torch.equal(rope(x * 1), wanted)
    parameter = torch.nn.Parameter(x)
    assert torch.equal(rope(parameter), wanted)
    with torch.no_grad():
        assert torch.equal(rope(parameter), wanted)
    assert len(used) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_compiled_program_holds_one_operator(dtype: Any) -> None:
    rope, graphs = rotary.RotaryEmbedding(8), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    q, k = samples(2, 4, 3, 8, dtype=dtype), samples(2, 2, 3, 8, dtype=dtype, seed=1)
    torch.compiler.reset()
    compiled = torch.compile(rope, fullgraph=True, backend=backend)
    assert all(map(torch.equal, compiled(q, k, offset=3), rope(q, k, offset=3)))
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("rotary.rotation" in name for name in names) == 1


def test_the_operator_keeps_the_rules_of_operators() -> None:
    q, k = samples(2, 4, 3, 8).requires_grad_(), samples(2, 2, 3, 8, seed=1).requires_grad_()
    cos, sin = tables(3, 3, dtype=torch.float32)
    for blocks in (None, [1, 2]):
        given = ([q, k], cos, sin, "half", "trailing", blocks, False)
        torch.library.opcheck(torch.ops.rotary.rotation.default, given)


def test_large_pages_are_advice() -> None:
    from rotary.backends.kernels._memory import ask_for_large_pages

    x = torch.ones(3 * 2**20)
    for skipped in (0, 1, 4097):
        ask_for_large_pages(x.data_ptr() + skipped, x.nbytes - skipped)
    assert bool((x == 1).all())

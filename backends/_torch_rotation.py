"""How torch reaches the fused rotation: at once, recorded for a gradient, or as one operator.

The kernels read and write memory, so that they are for tensors that have some: what a transform of
torch.func, a tracer or a subclass stands for is rotated by the array code.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import forward_ad

from rotary.backends._protocol import Backend, Turn
from rotary.backends.kernels import _cpu, kernel
from rotary.backends.kernels._memory import ask_for_large_pages

Tensors = tuple[torch.Tensor, ...]

_PATTERNS = {torch.float16: torch.uint16, torch.bfloat16: torch.int16}
# Found now: torch.compile cannot follow an import.
_KERNELS = {
    "cpu": kernel("rotation"),
    "cuda": kernel("triton") if torch.cuda.is_available() else None,
}
_NUMPY = {
    torch.float32: (np.dtype(np.float32), np.dtype(np.float32)),
    torch.float64: (np.dtype(np.float64), np.dtype(np.float64)),
    torch.float16: (np.dtype(np.uint16), np.dtype(np.float32)),
    torch.bfloat16: (np.dtype(np.int16), np.dtype(np.float32)),
}
# Bytes up to which a call costs more than its numbers, and one thread is enough.
_SMALL = 2**17
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def fused(
    arrays: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn, outs: Tensors | None
) -> Tensors | None:
    """Rotate by a kernel; None where none fits."""
    if not has_memory((*arrays, cos, sin, *(outs or ()))):
        return None
    device = arrays[0].device.type
    found = _KERNELS.get(device)
    if found is None:
        return None
    results = tuple(map(_contiguous_like, arrays)) if outs is None else outs
    if device == "cpu":
        if outs is None:
            if _rotate_blocks(found, arrays, results, cos, sin, turn):
                return results
            for x in results:
                ask_for_large_pages(x.data_ptr(), x.nbytes)
        seen = _cpu.seen(arrays, results, _view)
        done = _cpu.rotate(found, *seen, _view(cos), _view(sin), turn, fresh=outs is None)
    else:
        done = found.rotate(arrays, results, cos, sin, turn, fresh=outs is None)
    if not done:
        return None
    for out in outs or ():
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)
    return results


def _rotate_blocks(
    found: Any, arrays: Tensors, outs: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn
) -> bool:
    """Rotate small tensors by their addresses, in half the time of seeing them as arrays."""
    dtypes = _NUMPY.get(arrays[0].dtype)
    if dtypes is None or cos.dim() != 2 or cos.stride() != sin.stride() or cos.stride(1) != 1:
        return False
    for x in arrays:
        if x.dim() != 4 or x.stride(3) != 1 or x.nbytes > _SMALL:
            return False
    rows, pairs = cos.shape
    work, more = found.bound_to_blocks(turn, pairs, *dtypes)  # compiled at its first use
    # One row turns all, as a shift has it.
    apart = cos.stride(0) if rows > 1 else 0
    tables = cos.data_ptr(), sin.data_ptr(), apart, pairs
    for x, out in zip(arrays, outs, strict=True):
        shape = tuple(x.shape)
        lead = 0 if turn.side == "leading" else shape[3] - 2 * pairs
        work(x.data_ptr(), x.stride(), shape, out.data_ptr(), tables, *more, lead)
    return True


def _contiguous_like(x: torch.Tensor) -> torch.Tensor:
    if x.is_contiguous():
        return torch.empty_like(x)  # in half the time
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def has_memory(tensors: Tensors) -> bool:
    """Whether nothing stands between these tensors and their numbers."""
    try:
        for x in tensors:
            x.data_ptr()
            if type(x) not in _PLAIN or x.layout is not torch.strided or x.is_neg():
                return False
    except RuntimeError:  # what vmap makes has none
        return False
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )


def _view(x: torch.Tensor) -> npt.NDArray[Any]:
    """Return the memory of a tensor as an array: bit patterns of what NumPy does not have."""
    pattern = _PATTERNS.get(x.dtype)
    x = x.detach() if x.requires_grad else x
    array: npt.NDArray[Any] = (x if pattern is None else x.view(pattern)).numpy()
    return array


def recorded(arrays: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn) -> Tensors | None:
    """Rotate by a kernel, with the adjoint as the gradient; None where none fits."""
    if not has_memory((*arrays, cos, sin)) or _KERNELS.get(arrays[0].device.type) is None:
        return None
    # torch leaves Function.apply untyped, here and below.
    results: Tensors = _Rotation.apply(turn, cos, sin, *arrays)  # type: ignore[no-untyped-call]
    return results


def compiled(
    arrays: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn, outs: Tensors | None
) -> Tensors | None:
    """Rotate by one operator of the graph that is being compiled; None where no kernel fits."""
    if _KERNELS.get(arrays[0].device.type) is None:
        return None
    blocks = None if turn.blocks is None else list(turn.blocks)
    results = _rotation(list(arrays), cos, sin, turn.layout, turn.side, blocks, turn.inverse)
    if outs is None:
        return tuple(results)
    for out, result in zip(outs, results, strict=True):
        out.copy_(result)
    return outs


def _anyhow(arrays: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn) -> Tensors:
    """Rotate by a kernel, or else by the array code."""
    results = fused(arrays, cos, sin, turn, None)
    return _by_array_code(arrays, cos, sin, turn) if results is None else results


def _by_array_code(arrays: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn) -> Tensors:
    # Late, since the rotation stands above the backends.
    from rotary.backends import _torch
    from rotary.rotation import rotate_by_array_code

    return rotate_by_array_code(arrays, cos, sin, turn, cast(Backend, _torch))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, turn: Turn, cos: torch.Tensor, sin: torch.Tensor, *arrays: Any) -> Any:
        ctx.turn = turn
        ctx.save_for_backward(cos, sin)
        return _anyhow(arrays, cos, sin, turn)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        back = ctx.turn._replace(inverse=not ctx.turn.inverse)
        run = _Rotation.apply if torch.is_grad_enabled() else _run_at_once
        if has_memory(cotangents):
            return None, None, None, *run(back, cos, sin, *cotangents)
        return None, None, None, *_batched_gradient(cotangents, cos, sin, ctx.turn)


def _run_at_once(turn: Turn, cos: torch.Tensor, sin: torch.Tensor, *arrays: Any) -> Tensors:
    return _anyhow(arrays, cos, sin, turn)


def _batched_gradient(
    cotangents: Tensors, cos: torch.Tensor, sin: torch.Tensor, turn: Turn
) -> Tensors:
    """Return gradients for `is_grads_batched`, which knows the gradients of operations only."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        arrays = tuple(
            torch.zeros(x.shape, dtype=x.dtype, device=x.device, requires_grad=True)
            for x in cotangents
        )
        rotated = _by_array_code(arrays, cos, sin, turn)
        return torch.autograd.grad(rotated, arrays, cotangents, create_graph=again)


@torch.library.custom_op("rotary::rotation", mutates_args=())
def _rotation(
    arrays: list[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: str,
    side: str,
    blocks: list[int] | None,
    inverse: bool,
) -> list[torch.Tensor]:
    turn = Turn(layout, side, None if blocks is None else tuple(blocks), inverse)
    return list(_anyhow(tuple(arrays), cos, sin, turn))


@_rotation.register_fake
def _(
    arrays: list[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: str,
    side: str,
    blocks: list[int] | None,
    inverse: bool,
) -> list[torch.Tensor]:
    return list(map(_contiguous_like, arrays))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    _, cos, sin, *ctx.turn = inputs
    ctx.save_for_backward(cos, sin)


def _pull_back(ctx: Any, cotangents: list[torch.Tensor]) -> Any:
    layout, side, blocks, inverse = ctx.turn
    gradients = _rotation(cotangents, *ctx.saved_tensors, layout, side, blocks, not inverse)
    return gradients, None, None, None, None, None, None


_rotation.register_autograd(_pull_back, setup_context=_keep)

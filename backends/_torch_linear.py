"""How torch reaches the kernel of linear attention: eager tensors on the CPU, without a copy."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from rotary.backends._protocol import Chunked, Memory
from rotary.backends._torch_rotation import has_memory
from rotary.backends.kernels import kernel
from rotary.backends.kernels._memory import ask_for_large_pages


def fused(
    chunked: Chunked, inputs: tuple[Any, ...], sums: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]] | None:
    """Attend by the kernel; None where none fits, or the array code has to be recorded."""
    given = tuple(x for x in (*inputs, *sums) if x is not None)
    if torch.compiler.is_compiling() or not all(x.is_cpu for x in given):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return None
    compiled = kernel("linear")
    if compiled is None or not has_memory(given):
        return None
    found: tuple[Any, tuple[Any, ...]] | None = compiled.attend_in(_MEMORY, chunked, inputs, sums)
    return found


def _seen(x: torch.Tensor) -> npt.NDArray[Any]:
    host: npt.NDArray[Any] = x.detach().numpy()
    return host


def _empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    room = torch.empty(shape, dtype=like.dtype, device="cpu")
    ask_for_large_pages(room.data_ptr(), room.nbytes)
    return room


def _widen(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return x.to(getattr(torch, dtype))


_MEMORY = Memory(_seen, torch.from_numpy, _empty, _widen, torch.Tensor.to)

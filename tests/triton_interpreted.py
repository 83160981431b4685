"""Triton's kernel on the host, by Triton's interpreter; for a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton.language as tl
from gpu_rotations import Subject
from triton.runtime import interpreter

from rotary.backends.kernels import _triton_rotation

_cast = interpreter.InterpreterBuilder.cast_impl


def _rounded_cast(self: Any, x: Any, kind: Any) -> Any:
    """Convert from and to bfloat16 as devices do: the interpreter (3.9) cuts off what is below."""
    kinds = x.dtype.scalar, kind.scalar
    if kinds == (tl.bfloat16, tl.float32):
        wide = (x.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)
    if kinds == (tl.float32, tl.bfloat16):
        narrow = x.data.astype(ml_dtypes.bfloat16).view(np.uint16)
        return interpreter.TensorHandle(narrow, tl.bfloat16)
    return _cast(self, x, kind)


_patch = interpreter._patch_lang
_patched: set[str] = set()


def _patched_once(function: Any) -> Any:
    """Patch the language for a module: the interpreter does so at every call, most of its time."""
    if function.__module__ not in _patched:
        _patched.add(function.__module__)
        _patch(function)
        # As NumPy (2.4) wants it; before 3.8 the interpreter made an int of an array of one.
        tl.tensor.__index__ = lambda x: int(x.handle.data.item())
    return SimpleNamespace(restore=lambda: None)


interpreter.InterpreterBuilder.cast_impl = _rounded_cast
interpreter._patch_lang = _patched_once


def tensor(host: Any, device: str = "cpu") -> torch.Tensor:
    """Return a tensor of its own."""
    if host.dtype == ml_dtypes.bfloat16:  # unknown to torch: hand over the bits
        return torch.from_numpy(host.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(host.copy())


def values(x: torch.Tensor) -> Any:
    """Return its numbers."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


SUBJECT = Subject(_triton_rotation.rotate, tensor, values)

"""Arrays of each library on a device, and the rotation as it is usually written.

x·cos + rotate_half(x)·sin,    cos and sin twice as wide as there are pairs
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rotary.benchmarks.contender import Call, UnavailableError

_ALIGNMENT = 64

Host = npt.NDArray[Any]


def host_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of a name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def empty(shape: tuple[int, ...], dtype: str) -> Host:
    """Return memory that begins at a cache line."""
    kind = host_dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(count + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + count].view(kind).reshape(shape)


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Host:
    """Return normally distributed numbers."""
    out, rng = empty(shape, dtype), np.random.default_rng(seed)
    flat = out.reshape(-1)
    for start in range(0, flat.size, 2**20):  # no intermediate as large as the result
        part = flat[start : start + 2**20]
        part[...] = rng.standard_normal(part.size, np.float32)
    return out


def to_library(library: str, host: Host, device: str) -> Any:
    """Return a host array as one of a library; on the CPU it may share the memory."""
    if library == "numpy":
        return host
    if library == "torch":
        import torch

        if host.dtype == ml_dtypes.bfloat16:  # unknown to torch: hand over the bits
            return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16).to(device)
        return torch.from_numpy(host).to(device)
    if library == "jax":
        import jax

        # A copy: what it may share, others write to in place.
        with x64(host.dtype):
            return jax.device_put(host.copy(), jax_device(device))
    if host.dtype == ml_dtypes.bfloat16:
        raise UnavailableError("CuPy has no bfloat16")
    import cupy

    return cupy.asarray(host)


def jax_device(device: str) -> Any:
    """Return JAX's first device of a kind."""
    import jax

    return jax.devices("gpu" if device == "cuda" else "cpu")[0]


def x64(dtype: Any) -> AbstractContextManager[Any]:
    """Return where JAX has float64, if that is the dtype."""
    if dtype != np.float64:
        return nullcontext()
    import jax

    on: AbstractContextManager[Any] = jax.enable_x64(True)
    return on


def jitted(function: Callable[..., Any], dtype: str, **options: Any) -> Callable[..., Any]:
    """Return a function under jax.jit, with float64 where that is the dtype."""
    import jax

    compiled: Callable[..., Any] = jax.jit(function, **options)
    if dtype != "float64":
        return compiled

    def call(*arrays: Any) -> Any:
        with x64(np.float64):
            return compiled(*arrays)

    return call


def joins(library: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what joins a library's arrays along an axis, and stacks them along a new one."""
    if library == "torch":
        import torch

        return torch.cat, torch.stack
    if library == "jax":
        import jax.numpy as jnp

        return jnp.concatenate, jnp.stack
    if library == "cupy":
        import cupy

        return cupy.concatenate, cupy.stack
    return np.concatenate, np.stack


def plain(library: str, layout: str) -> Callable[[Any, Any, Any], Any]:
    """Return the rotation as it is usually written, for tables as wide as what rotates."""
    concat, stack = joins(library)

    def rotate_half(x: Any) -> Any:
        if layout == "interleaved":
            return stack((-x[..., 1::2], x[..., 0::2]), -1).reshape(x.shape)
        half = x.shape[-1] // 2
        return concat((-x[..., half:], x[..., :half]), -1)

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        turning = cos.shape[-1]
        if turning == x.shape[-1]:
            return x * cos + rotate_half(x) * sin
        part = x[..., :turning]
        return concat((part * cos + rotate_half(part) * sin, x[..., turning:]), -1)

    return rotate


def widened(table: Host, layout: str, dtype: str) -> Host:
    """Return a table of pairs as one of features, in a dtype."""
    wide = np.repeat(table, 2, -1) if layout == "interleaved" else np.concatenate((table,) * 2, -1)
    out = empty(wide.shape, dtype)
    out[...] = wide
    return out


class Kept:
    """Arrays and functions of a case, made when the first contender asks for them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Call) -> Any:
        """Return what was made for the key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def compiled(kept: Kept, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function under torch.compile, which counts programs of other cases no more."""
    import torch

    kept.get("torch.compile", lambda: torch.compiler.reset() or True)  # type: ignore[func-returns-value]
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return made

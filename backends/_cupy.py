"""CuPy: eager, on CUDA devices; each ufunc is a kernel of its own, whose results are rounded.

CuPy computes on its current device and puts new arrays there, whatever `device=` says (cupy#9848),
and it copies from the host without waiting.  Nothing here may go through ``cupy.fuse``: its kernels
contract products with sums.  Its products of matrices are those of float32, and keep the bounds of
``arithmetic="fast"``, unless CUPY_TF32 is set in the environment.
"""

from __future__ import annotations

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import array_api_compat.cupy as xp
import cupy
import numpy.typing as npt

from rotary.backends._generic import linear_chunks, rows, scan
from rotary.backends._numpy import (
    apply,
    bits,
    custom_gradient,
    deferred_tables,
    finite_product,
    from_bits,
    is_traced,
    learned_tables,
    narrow,
    product,
    widen,
)
from rotary.backends._protocol import Turn
from rotary.backends.kernels import kernel
from rotary.dtypes import dtype_name

__all__ = [
    "apply",
    "bits",
    "custom_gradient",
    "deferred_tables",
    "finite_product",
    "from_bits",
    "is_traced",
    "learned_tables",
    "linear_chunks",
    "narrow",
    "product",
    "rows",
    "scan",
    "widen",
]

name = "cupy"


def _where(condition: Any, x: Any, y: Any) -> Any:
    """Select; CuPy (14.2) has no selection of bfloat16 and returns float32."""
    selected, arrays = cupy.where(condition, x, y), [a for a in (x, y) if hasattr(a, "dtype")]
    if arrays and all(dtype_name(a) == "bfloat16" for a in arrays):
        selected = selected.astype(arrays[0].dtype)
    return selected


_completed = SimpleNamespace(**{**vars(xp), "where": _where})


def namespace(x: Any) -> Any:
    """Return CuPy as array-api-compat completes it, and bfloat16 selected as what it is."""
    return _completed


def device_key(x: Any) -> Hashable | None:
    """Return the number of x's device, which has to be the current one: its objects do not hash."""
    device, current = x.device.id, cupy.cuda.runtime.getDevice()
    if device != current:
        raise ValueError(
            f"device: got an array on CUDA device {device} while CuPy computes on device "
            f"{current}; expected the call within `with x.device:`"
        )
    return int(device)


def same_device(x: Any, other: Any) -> bool:
    """Whether x and other are on the same device."""
    return bool(x.device.id == other.device.id == device_key(x))


def to_device(host: npt.NDArray[Any], like: Any) -> Any:
    """Return host on like's device."""
    with like.device:
        # Waiting for the copy: what is kept serves every stream.
        return cupy.asarray(host, blocking=True)


def to_host(x: Any) -> npt.NDArray[Any]:
    """Return x's values as a NumPy array, waiting for its device."""
    host: npt.NDArray[Any] = cupy.asnumpy(x)
    return host


def rotate(
    arrays: tuple[Any, ...], cos: Any, sin: Any, turn: Turn, outs: tuple[Any, ...] | None
) -> tuple[Any, ...] | None:
    """Rotate in one pass over the memory, where the kernel takes the arrays as they lie."""
    fused = kernel("cuda")
    if fused is None:
        return None
    results = tuple(cupy.empty(x.shape, x.dtype) for x in arrays) if outs is None else outs
    done = fused.rotate(arrays, results, cos, sin, turn, fresh=outs is None)
    return results if done else None


def refuse_out(out: Any, inputs: tuple[Any, ...]) -> str | None:
    """Why out cannot be written, or None."""
    if any(step == 0 and length > 1 for step, length in zip(out.strides, out.shape, strict=True)):
        return "the array is broadcast, its elements share memory"
    return None


def synchronize(x: Any) -> None:
    """Wait until x is computed, on the current stream of its device."""
    with x.device:
        cupy.cuda.get_current_stream().synchronize()

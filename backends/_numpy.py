"""NumPy: eager, on the host, each ufunc rounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.backends._generic import (
    apply,
    custom_gradient,
    finite_product,
    is_traced,
    product,
    rows,
    synchronize,
)
from rotary.backends._protocol import Chunked, Memory, Turn, Wanted
from rotary.backends.kernels import _cpu, kernel
from rotary.dtypes import dtype_name

__all__ = [
    "apply",
    "custom_gradient",
    "finite_product",
    "is_traced",
    "product",
    "rows",
    "synchronize",
]

name = "numpy"


def namespace(x: npt.NDArray[Any]) -> Any:
    """Return NumPy, which conforms from version 2."""
    return np


def device_key(x: npt.NDArray[Any]) -> Hashable | None:
    """Return the one device."""
    return "cpu"


def same_device(x: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Return True: there is but one."""
    return True


def to_device(host: npt.NDArray[Any], like: npt.NDArray[Any]) -> Any:
    """Return host itself, read-only from now on."""
    host.flags.writeable = False
    return host


def to_host(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return x itself."""
    return x


def rotate(
    arrays: tuple[npt.NDArray[Any], ...],
    cos: npt.NDArray[Any],
    sin: npt.NDArray[Any],
    turn: Turn,
    outs: tuple[npt.NDArray[Any], ...] | None,
) -> tuple[npt.NDArray[Any], ...] | None:
    """Rotate by the compiled kernel, or else block by block."""
    given = arrays if outs is None else (*arrays, *outs)
    if any(type(x) is not np.ndarray for x in given):
        return None  # a subclass may mean something else by what the kernels do
    fresh = outs is None
    results = tuple(np.empty(x.shape, x.dtype) for x in arrays) if outs is None else outs
    compiled, blocks = kernel("rotation"), kernel("blocks")
    if compiled is not None:
        pattern = _cpu.PATTERNS.get(dtype_name(arrays[0]))
        seen = arrays, results
        if pattern is not None:
            seen = _cpu.seen(arrays, results, lambda x: x.view(pattern))
        if _cpu.rotate(compiled, *seen, cos, sin, turn, fresh=fresh):
            return results
    if blocks is not None and _cpu.rotate(blocks, arrays, results, cos, sin, turn, fresh=fresh):
        return results
    return None


def linear_chunks(
    chunked: Chunked, inputs: tuple[Any, ...], sums: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]] | None:
    """Attend by the compiled kernel."""
    if any(x is not None and type(x) is not np.ndarray for x in (*inputs, *sums)):
        return None
    compiled = kernel("linear")
    if compiled is None:
        return None
    found: tuple[Any, tuple[Any, ...]] | None = compiled.attend_in(_MEMORY, chunked, inputs, sums)
    return found


def bits(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the bit patterns of float32 numbers."""
    return x.view(np.int32)


def from_bits(pattern: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the float32 numbers of bit patterns."""
    return pattern.view(np.float32)


def widen(x: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return x in the dtype of that name."""
    return x.astype(dtype)


def narrow(x: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """Return x rounded to a 16-bit dtype."""
    return x.astype(dtype)


def scan(
    step: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]], carry: Any, inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Run a loop along the first axis of every input, writing what comes out into its place."""
    count, outs = inputs[0].shape[0], None
    for n in range(count):
        carry, out = step(carry, tuple(x[n] for x in inputs))
        outs = _room(out, count) if n == 0 else outs
        _put(outs, n, out)
    return carry, outs


def _room(out: Any, count: int) -> Any:
    if out is None:
        return None
    if isinstance(out, tuple):
        rooms = [_room(x, count) for x in out]
        named: Any = type(out)
        return named(*rooms) if hasattr(named, "_fields") else tuple(rooms)
    # Laid out so that joining the steps along the last axis but one copies nothing.
    before = max(out.ndim - 2, 0)
    room = np.empty((*out.shape[:before], count, *out.shape[before:]), out.dtype)
    return np.moveaxis(room, before, 0)


def _put(outs: Any, n: int, out: Any) -> None:
    if isinstance(out, tuple):
        for room, x in zip(outs, out, strict=True):
            _put(room, n, x)
    elif out is not None:
        outs[n] = out


def deferred_tables(wanted: Wanted, rows: Any, like: Any) -> tuple[Any, Any] | None:
    """Return None: nothing is compiled."""
    return None


def learned_tables(positions: Any, inv_freq: Any, axes: int | None, dtype: str) -> Any | None:
    """Return None: nothing is compiled or differentiated."""
    return None


def refuse_out(out: npt.NDArray[Any], inputs: tuple[Any, ...]) -> str | None:
    """Why out cannot be written, or None."""
    return None if out.flags.writeable else "the array is read-only"


def _itself(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x


def _empty(shape: tuple[int, ...], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.empty(shape, like.dtype)


_MEMORY = Memory(_itself, _itself, _empty, widen, narrow)

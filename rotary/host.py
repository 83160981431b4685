"""Numbers on the host: whole ones read from a caller's arrays, and results returned like them.

Positions of a look-up, boundaries of packed sequences and masks mean nothing between two whole
numbers, so that their dtype has to be an integer one.  Where a compiled or lazy program alone knows
them, they are left to it.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from rotary import backends
from rotary.backends import Backend
from rotary.dtypes import WHOLE_DTYPES, dtype_name, name_of_dtype
from rotary.positions import read
from rotary.rotation import compute_dtype

_NUMPY_FLOAT32 = np.empty(0, np.float32)


def known_now(array: Any, backend: Backend) -> bool:
    """Whether the host can read these values before a compiled or lazy program runs."""
    if backend.is_traced(array):
        return False
    # The standard knows no tracing, so that the generic backend cannot tell.
    return backend.name != "generic" or not array_api_compat.is_lazy_array(array)


def check_whole_dtype(name: str, kind: str) -> None:
    """Raise unless the dtype of that name is an integer one."""
    if kind not in WHOLE_DTYPES:
        raise TypeError(f"{name}: got dtype {kind}, expected integers")


def read_whole(values: Any, backend: Backend, name: str) -> npt.NDArray[np.int64]:
    """Read whole numbers within ±2^53, or an array of them, of NumPy or of `backend`'s library."""
    is_array = hasattr(values, "dtype")
    if is_array:
        check_whole_dtype(name, dtype_name(values))
    host = read(values, backend, name)
    if not is_array and host.size:
        check_whole_dtype(name, np.asarray(values).dtype.name)
    return host.astype(np.int64)


def wanted(like: Any, dtype: Any) -> tuple[Any, Backend, str]:
    """Return the array that a result is like, its backend, and the result's dtype by name."""
    like = _NUMPY_FLOAT32 if like is None else like
    backend = backends.owner_of(like, "like")
    kind = compute_dtype("like", like) if dtype is None else name_of_dtype(dtype)
    if kind not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, expected float32 or float64")
    return like, backend, kind


def place(host: npt.NDArray[Any], index: int) -> str:
    """Say where the element of that flat index stands, for an error."""
    at = tuple(int(i) for i in np.unravel_index(index, host.shape))
    if not at:
        return ""
    return f" at index {at[0] if len(at) == 1 else at}"


def delivered(host: npt.NDArray[Any], kind: str, like: Any, backend: Backend) -> Any:
    """Return a copy in the dtype of that name, of like's library and on its device."""
    table = backend.to_device(host.astype(kind), like)
    return copied(table, kind, like, backend)


def copied(array: Any, kind: str, like: Any, backend: Backend) -> Any:
    """Return a copy that may be written to, of that dtype, in like's library."""
    array = backend.namespace(like).asarray(array, copy=True)
    if dtype_name(array) != kind:
        raise TypeError(f"dtype: {kind} is not available in {backends.library(like)} as it is set")
    return array

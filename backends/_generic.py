"""Any library that conforms to the array API standard."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

name = "generic"
namespace = array_api_compat.array_namespace


def device_key(x: Any) -> Hashable | None:
    """Return x's device, by its name: not every library's devices are hashable."""
    return str(array_api_compat.device(x))


def same_device(x: Any, other: Any) -> bool:
    """Whether x and other are on the same device."""
    return device_key(x) == device_key(other)


def is_traced(x: Any) -> bool:
    """Return False: the standard knows no tracing."""
    return False


def to_device(host: npt.NDArray[Any], like: Any) -> Any:
    """Return host as an array on like's device."""
    return namespace(like).asarray(host, device=array_api_compat.device(like))


def to_host(x: Any) -> npt.NDArray[Any]:
    """Return x's values as a NumPy array."""
    try:
        return np.asarray(x)
    except (RuntimeError, TypeError):  # libraries that move nothing to the host unless told to
        return np.from_dlpack(x, device="cpu")


def product(x: Any, factor: Any) -> Any:
    """x·factor, rounded: an eager library rounds each operation."""
    return x * factor


def widen(x: Any, dtype: str) -> Any:
    """Return x in the dtype of that name."""
    xp = namespace(x)
    return xp.astype(x, getattr(xp, dtype))


def narrow(x: Any, dtype: Any) -> Any:
    """Return x rounded to a 16-bit dtype."""
    return namespace(x).astype(x, dtype)


def deferred_tables(
    token: str, pairs: int, rows: Any, dtype: str, factor: float, like: Any
) -> tuple[Any, Any] | None:
    """Return None: nothing is compiled."""
    return None


def refuse_out(out: Any, inputs: tuple[Any, ...]) -> str | None:
    """Why out cannot be written, or None."""
    if not hasattr(type(out), "__setitem__"):
        return f"arrays of type {type(out).__qualname__} are immutable"
    return None


def synchronize(x: Any) -> None:
    """Do nothing: the standard knows no waiting."""

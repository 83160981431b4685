"""Any library that conforms to the array API standard, eager or lazy."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from rotary.backends._protocol import Wanted
from rotary.dtypes import dtype_name

name = "generic"
namespace = array_api_compat.array_namespace

# What every rotation asks of a namespace.
_NEEDED = ("asarray", "astype", "concat", "float32", "reshape", "stack")


def missing(x: Any) -> list[str]:
    """Return the operations that x's library lacks."""
    return [operation for operation in _NEEDED if not hasattr(namespace(x), operation)]


def device_key(x: Any) -> Hashable | None:
    """Return x's device, by its name: not every library's devices are hashable."""
    return str(_device(x))


def same_device(x: Any, other: Any) -> bool:
    """Whether x and other are on the same device."""
    return device_key(x) == device_key(other)


def is_traced(x: Any) -> bool:
    """Return False: the standard knows no tracing."""
    return False


def to_device(host: npt.NDArray[Any], like: Any) -> Any:
    """Return host as an array on like's device."""
    xp, device = namespace(like), _device(like)
    # A library without devices does not know the keyword.
    place = {} if device is None else {"device": device}
    kind, reason = host.dtype.name, None
    try:
        array = xp.asarray(host, dtype=getattr(xp, kind), **place)
    except (AttributeError, TypeError, ValueError) as error:
        array, reason = None, error
    if array is None or dtype_name(array) != kind:
        where = xp.__name__ if device is None else f"{xp.__name__} on {device}"
        raise TypeError(f"dtype: {kind} is not available in {where}") from reason
    return array


def to_host(x: Any) -> npt.NDArray[Any]:
    """Return x's values as a NumPy array."""
    try:
        host = np.asarray(x)
        if host.dtype != object:  # which NumPy makes of an array that it knows nothing about
            return host
    except (RuntimeError, TypeError, ValueError):
        pass  # a library that moves nothing to the host unless told to
    try:
        return np.from_dlpack(x, device="cpu")
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"got an array of {namespace(x).__name__}, {error}") from error


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


def deferred_tables(wanted: Wanted, rows: Any, like: Any) -> tuple[Any, Any] | None:
    """Return tables computed in the graph, where the positions are a lazy library's."""
    given = rows.given
    if not array_api_compat.is_lazy_array(given) or namespace(given) is not namespace(like):
        return None
    from rotary.backends import _generic_tables

    both = _generic_tables.of_lazy(rows, wanted)
    return both[0, ...], both[1, ...]


def refuse_out(out: Any, inputs: tuple[Any, ...]) -> str | None:
    """Why out cannot be written, or None."""
    if not hasattr(type(out), "__setitem__"):
        return f"arrays of type {type(out).__qualname__} are immutable"
    return None


def synchronize(x: Any) -> None:
    """Do nothing: the standard knows no waiting."""


def _device(x: Any) -> Any:
    """Return x's device, or None where a library has none."""
    try:
        return array_api_compat.device(x)
    except AttributeError:
        return None

"""Any library that conforms to the array API standard, eager or lazy."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from rotary.backends._protocol import Chunked, Operation, Turn, Wanted
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


def rows(pair: tuple[Any, Any], start: int, stop: int) -> tuple[Any, Any]:
    """Return rows of two tables."""
    cos, sin = pair
    return cos[start:stop, ...], sin[start:stop, ...]


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


finite_product = product


def rotate(
    arrays: tuple[Any, ...], cos: Any, sin: Any, turn: Turn, outs: tuple[Any, ...] | None
) -> tuple[Any, ...] | None:
    """Return None: the standard's own operations are all there is."""
    return None


def linear_chunks(
    chunked: Chunked, inputs: tuple[Any, ...], sums: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]] | None:
    """Return None."""
    return None


def bits(x: Any) -> Any:
    """Return the bit patterns of float32 numbers, by arithmetic where a library has no views."""
    xp = namespace(x)
    if hasattr(x, "view"):
        return x.view(xp.int32)
    size = xp.abs(x)
    kept = (size >= 2.0**-126) & xp.isfinite(x)
    y = xp.where(kept, size, xp.ones_like(x))
    # All products are by powers of two and exact.
    low = y < 1.0
    y = xp.where(low, y * 2.0**126, y)
    exponent = 127 - 126 * xp.astype(low, xp.int32)
    for n in (64, 32, 16, 8, 4, 2, 1):
        high = y >= 2.0**n
        y = xp.where(high, y * 2.0**-n, y)
        exponent = exponent + n * xp.astype(high, xp.int32)
    pattern = (exponent << 23) + xp.astype((y - 1.0) * 2.0**23, xp.int32)
    special = 0x7F800000 * xp.astype(size > 1.0, xp.int32)  # not for NaN, which comes next
    special = special + 0x7FC00000 * xp.astype(xp.isnan(x), xp.int32)
    pattern = xp.where(kept, pattern, special)
    return pattern + xp.astype(x < 0, xp.int32) * -(2**31)


def from_bits(pattern: Any) -> Any:
    """Return the float32 numbers of int32 bit patterns, or look their powers of two up."""
    xp = namespace(pattern)
    if hasattr(pattern, "view"):
        return pattern.view(xp.float32)
    powers = to_device(_powers(), pattern)
    exponent = xp.reshape(xp.astype((pattern >> 23) & 255, xp.int64), (-1,))
    shape = tuple(-1 if n is None else n for n in pattern.shape)
    power = xp.reshape(xp.take(powers, exponent, axis=0), shape)
    significand = xp.astype((pattern & 0x7FFFFF) | 0x800000, xp.float32) * 2.0**-23
    y = xp.where(pattern < 0, -significand, significand) * power
    return xp.where((pattern & 0x7FFFFFFF) > 0x7F800000, power * 0.0, y)  # ∞·0


@lru_cache(maxsize=1)
def _powers() -> npt.NDArray[np.float32]:
    """2^(e − 127) for each exponent e; 0 instead of subnormals, and ∞ for the last."""
    powers = np.array([0, *(2.0 ** (e - 127) for e in range(1, 255)), np.inf], np.float32)
    powers.flags.writeable = False
    return powers


def scan(
    step: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]], carry: Any, inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Run a loop along the first axis of every input."""
    outs = []
    for n in range(inputs[0].shape[0]):
        carry, out = step(carry, tuple(x[n, ...] for x in inputs))
        outs.append(out)
    return carry, stacked(outs, lambda arrays: namespace(arrays[0]).stack(arrays, axis=0))


def stacked(outs: list[Any], stack: Callable[[list[Any]], Any]) -> Any:
    """Return what the steps of a loop put out, stacked: arrays, or tuples of them, or None."""
    if outs[0] is None:
        return None
    if not isinstance(outs[0], tuple):
        return stack(outs)
    columns = [stacked(list(column), stack) for column in zip(*outs, strict=True)]
    named: Any = type(outs[0])
    return named(*columns) if hasattr(named, "_fields") else tuple(columns)


def custom_gradient(
    forward: Callable[..., tuple[Any, ...]], backward: Callable[..., tuple[Any, ...]]
) -> Callable[..., tuple[Any, ...]]:
    """Return forward: the standard knows no gradients."""
    return forward


def apply(operation: Operation, static: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operation."""
    # Infinities and what they leave behind are a part of the answer.
    with np.errstate(all="ignore"):
        return operation.forward(static, *inputs)


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


def learned_tables(positions: Any, inv_freq: Any, axes: int | None, dtype: str) -> Any | None:
    """Return tables computed in the graph of a lazy library, or else on the host."""
    from rotary.backends import _generic_tables

    if array_api_compat.is_lazy_array(inv_freq):
        return _generic_tables.of_frequencies(positions, inv_freq, axes, dtype)
    return _generic_tables.differentiable(positions, inv_freq, axes, dtype)


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

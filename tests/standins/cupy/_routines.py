"""CuPy's functions of arrays, with its parameters, or those of them that are used."""

import numpy as np

from cupy import cuda
from cupy._array import ndarray, new, operand, run, view
from cupy._ufuncs import UFUNCS, select

# The names of builtins are exported, and not used here.
__all__ = [
    "all",
    "amax",
    "amin",
    "any",
    "arange",
    "around",
    "array",
    "asarray",
    "asnumpy",
    "broadcast_to",
    "concatenate",
    "cumsum",
    "empty",
    "empty_like",
    "expand_dims",
    "flip",
    "full",
    "full_like",
    "matmul",
    "max",
    "min",
    "moveaxis",
    "ones",
    "ones_like",
    "reshape",
    "round",
    "searchsorted",
    "squeeze",
    "stack",
    "sum",
    "swapaxes",
    "take",
    "transpose",
    "where",
    "zeros",
    "zeros_like",
]


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        cuda.check_finished(obj._memory.event)
        here = obj._memory.device_id == cuda.runtime.getDevice()
        if here and not copy and dtype in (None, obj.dtype):
            return obj
        return new(obj._host.astype(dtype or obj.dtype))  # from another device too
    host = np.array(obj, dtype)
    if host.dtype == object:
        raise ValueError("Unsupported dtype object")
    copied = new(host)
    if blocking:
        cuda.get_current_stream().synchronize()
    return copied


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy, blocking=blocking)


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def arange(start, stop=None, step=1, dtype=None):
    return new(np.arange(start, stop, step, dtype) if stop is not None else np.arange(start))


def full(shape, fill_value, dtype=None):
    return new(np.full(shape, operand(fill_value), dtype))


def zeros(shape, dtype=float):
    return new(np.zeros(shape, dtype))


def ones(shape, dtype=float):
    return new(np.ones(shape, dtype))


def empty(shape, dtype=float):
    """Return an array of what memory holds: nothing to rely on."""
    return new(np.full(shape, 77, dtype))


def zeros_like(a, dtype=None):
    return zeros(a.shape, a.dtype if dtype is None else dtype)


def ones_like(a, dtype=None):
    return ones(a.shape, a.dtype if dtype is None else dtype)


def empty_like(prototype, dtype=None):
    return empty(prototype.shape, prototype.dtype if dtype is None else dtype)


def full_like(a, fill_value, dtype=None):
    return full(a.shape, fill_value, a.dtype if dtype is None else dtype)


def reshape(a, newshape, order="C", *, copy=None):
    host = a._host.reshape(newshape)
    if np.may_share_memory(host, a._host) and not copy:
        return view(a, host)
    return run(lambda x: x.reshape(newshape).copy(), a)


def broadcast_to(array, shape):
    return view(array, np.broadcast_to(array._host, shape))


def expand_dims(a, axis):
    return view(a, np.expand_dims(a._host, axis))


def squeeze(a, axis=None):
    return view(a, np.squeeze(a._host, axis))


def flip(a, axis=None):
    return view(a, np.flip(a._host, axis))


def moveaxis(a, source, destination):
    return view(a, np.moveaxis(a._host, source, destination))


def swapaxes(a, axis1, axis2):
    return view(a, np.swapaxes(a._host, axis1, axis2))


def transpose(a, axes=None):
    return view(a, np.transpose(a._host, axes))


def concatenate(tup, axis=0):
    return run(lambda *parts: np.concatenate(parts, axis), *_arrays(tup))


def stack(tup, axis=0):
    return run(lambda *parts: np.stack(parts, axis), *_arrays(tup))


def _arrays(tup):
    for x in tup:
        if not isinstance(x, ndarray):
            raise TypeError("Only cupy arrays can be concatenated")
    return tup


def take(a, indices, axis=None):
    if not isinstance(indices, ndarray):
        indices = new(np.array(indices, int))
    if indices.dtype.kind not in "iu":
        raise TypeError(f"Wrong type ({indices.dtype}) of indices for take")
    # Wrapped around, wherever they point.
    return run(lambda x, index: np.take(x, index, axis, mode="wrap"), a, indices)


def searchsorted(a, v, side="left", sorter=None):
    if sorter is not None or not isinstance(v, ndarray):
        raise NotImplementedError
    return run(lambda x, y: np.searchsorted(x, y, side), a, v)


def where(condition, x=None, y=None):
    if x is None or y is None:
        raise NotImplementedError
    return select(condition.astype(bool, copy=False), x, y)


def sum(a, axis=None, dtype=None, *, keepdims=False):
    """Return the sum in another order than NumPy's."""
    return run(lambda x: np.sum(np.flip(x, axis), axis, dtype, keepdims=keepdims), a)


def cumsum(a, axis=None, dtype=None):
    """Return the sums by doubling, as scans in parallel form them."""

    def scan(x):
        x = np.moveaxis(x.reshape(-1) if axis is None else x, axis or 0, 0)
        kind = dtype or (x.dtype if x.dtype.kind not in "biu" else np.int64)
        x, step = x.astype(kind), 1
        while step < len(x):
            x[step:] = x[step:] + x[:-step]
            step *= 2
        return np.moveaxis(x, 0, axis or 0)

    return run(scan, a)


def _reduction(function):
    def reduce(a, axis=None, *, keepdims=False):
        return run(lambda x: function(x, axis, keepdims=keepdims), a)

    return reduce


all, any, max, min = map(_reduction, (np.all, np.any, np.max, np.min))
amax, amin = max, min


def around(a, decimals=0):
    if decimals:
        raise NotImplementedError
    return UFUNCS["rint"](a) if a.dtype.kind == "f" else a.copy()


round = around


def matmul(x1, x2):
    return x1 @ x2

"""CuPy without a GPU: NumPy underneath, and CuPy's own mistakes to make.

It copies CuPy 14.2 (13 differs in having no bfloat16) where code written for NumPy goes wrong:

- Arrays live on one of two devices.  New ones go to the current device, on which everything is
  computed; an operand that lies elsewhere is an error, as it is without peer access.
- Devices compare but do not hash; there is no ``device=``.
- Only `get` and `asnumpy` make a NumPy array, and no NumPy array is an operand.
- Work is queued: what one stream has not finished another one must not read, and a copy from the
  host is queued like all else unless it is ``blocking``.  (CuPy reads garbage; here it raises.)
- There is no ``flags.writeable``: a broadcast array can be written.

Each operation is NumPy's own, rounded to the dtype, as each of CuPy's ufuncs is a kernel.
"""

# ruff: noqa: F401, F811

import numbers
import operator

import numpy as _np
from numpy import (
    bool_,
    complex64,
    complex128,
    dtype,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    intp,
    uint8,
    uint16,
    uint32,
    uint64,
)

from cupy import cuda, fft, linalg

__version__ = "14.2.0+standin"


class ndarray:  # noqa: N801
    """An array on a device."""

    __hash__ = None
    __array_ufunc__ = None  # NumPy leaves mixed operations to the methods here

    def __init__(self, host, device_id, event):
        self._host, self._device_id, self._event = host, device_id, event

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    device = property(lambda self: cuda.Device(self._device_id))

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def get(self):
        with self.device:
            cuda.check_finished(self._event)
            cuda.get_current_stream().synchronize()
        return self._host.copy()

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        return _run(lambda x: x.astype(dtype, copy=copy), self)

    def copy(self):
        return array(self)

    def view(self, dtype):
        return ndarray(self._host.view(dtype), self._device_id, self._event)

    def __getitem__(self, key):
        return ndarray(self._host[key], self._device_id, self._event)

    def __setitem__(self, key, value):
        # Through the flag: NumPy makes a broadcast array read-only, CuPy does not.
        host = _np.lib.stride_tricks.as_strided(self._host, writeable=True)
        host[key] = _operand(value)
        _operand(self)
        self._event = cuda.enqueue()


def _operand(x):
    """Return what the current device computes with."""
    if isinstance(x, list | tuple):
        return type(x)(map(_operand, x))
    if isinstance(x, _np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if not isinstance(x, ndarray):
        return x
    current = cuda.runtime.getDevice()
    if x._device_id != current:
        raise ValueError(
            f"The device where the array resides ({x._device_id}) is different from the current "
            f"device ({current}). Peer access is unavailable between these devices."
        )
    cuda.check_finished(x._event)
    return x._host


def _run(function, *operands, **options):
    with _np.errstate(all="ignore"):
        host = function(*map(_operand, operands), **options)
    return _new(host)


def _new(host):
    return ndarray(_np.asarray(host), cuda.runtime.getDevice(), cuda.enqueue())


def _method(function):
    return lambda self, *others: _run(function, self, *others)


def _reversed(function):
    return lambda x, y: function(y, x)


for _name in ("add", "sub", "mul", "truediv", "matmul", "and", "or", "lshift", "rshift"):
    _function = getattr(operator, f"__{_name}__")
    setattr(ndarray, f"__{_name}__", _method(_function))
    setattr(ndarray, f"__r{_name}__", _method(_reversed(_function)))
for _name in ("neg", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _method(getattr(operator, _name)))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        cuda.check_finished(obj._event)
        here = obj._device_id == cuda.runtime.getDevice()
        if here and not copy and dtype in (None, obj.dtype):
            return obj
        return _new(obj._host.astype(dtype or obj.dtype))  # from another device too
    host = _np.array(obj, dtype)
    if host.dtype == object:
        raise ValueError("Unsupported dtype object")
    copied = _new(host)
    if blocking:
        cuda.get_current_stream().synchronize()
    return copied


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy, blocking=blocking)


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else _np.asarray(a)


def is_available():
    return cuda.count() > 0


def _lifted(function):
    def lifted(*operands, **options):
        kinds = numbers.Number | str | tuple | type | None
        assert all(isinstance(o, kinds) for o in options.values())
        return _run(function, *operands, **options)

    return lifted


def __getattr__(name):
    """Lift any other function from NumPy."""
    if name.startswith("_"):
        raise AttributeError(name)
    return _lifted(getattr(_np, name))


# What `from cupy import *` has to see.
for _name in (
    "broadcast_to",
    "concatenate",
    "expand_dims",
    "maximum",
    "minimum",
    "ones",
    "reshape",
    "squeeze",
    "stack",
    "zeros",
):
    globals()[_name] = _lifted(getattr(_np, _name))

"""Arrays on a device: views share memory, and with it the work that is queued on it."""

from types import SimpleNamespace

import numpy as np

from cupy import cuda

NUMBERS = (bool, int, float, complex, np.generic)


class Memory:
    """What a new array has and its views share."""

    def __init__(self):
        self.device_id, self.event = cuda.runtime.getDevice(), cuda.enqueue()


class ndarray:  # noqa: N801
    """An array on a device."""

    __module__ = "cupy"
    __hash__ = None
    __array_ufunc__ = None  # NumPy leaves mixed operations to the methods here

    def __init__(self, host, memory):
        self._host, self._memory = host, memory

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    device = property(lambda self: cuda.Device(self._memory.device_id))
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))
    T = property(lambda self: view(self, self._host.T))

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def get(self):
        with self.device:
            cuda.check_finished(self._memory.event)
            cuda.get_current_stream().synchronize()
        return self._host.copy()

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[n] for n in range(len(self)))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == dtype:
            return self
        return run(lambda x: x.astype(dtype), self)

    def copy(self):
        return run(np.copy, self)

    def view(self, dtype):
        return view(self, self._host.view(dtype))

    def __getitem__(self, key):
        if not any(map(_is_index, _items(key))):
            return view(self, self._host[key])
        key, index = _one_index(key, self)
        return run(lambda x, _: x[key], self, index)

    def __setitem__(self, key, value):
        index = None
        if any(map(_is_index, _items(key))):
            key, index = _one_index(key, self)
        write(self, key, value, index)

    def __matmul__(self, other):
        return matmul(self, other)


def operand(x):
    """Return what the current device computes with: an array's values, or a number."""
    if isinstance(x, NUMBERS):
        return x
    if not isinstance(x, ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    current = cuda.runtime.getDevice()
    if x._memory.device_id != current:
        raise ValueError(
            f"The device where the array resides ({x._memory.device_id}) is different from the "
            f"current device ({current}). Peer access is unavailable between these devices."
        )
    cuda.check_finished(x._memory.event)
    return x._host


def run(function, *operands):
    """Compute a new array on the current device."""
    with np.errstate(all="ignore"):
        return new(function(*map(operand, operands)))


def new(host):
    """Return NumPy's array, which is nobody else's, as one on the current device."""
    return ndarray(np.asarray(host), Memory())


def view(x, host):
    """Return a part of x's memory; nothing is computed, and so no device is asked for."""
    return ndarray(host, x._memory)


def write(x, key, value, *others):
    """Set x[key] to a value, which is cast."""
    value, _ = operand(value), [operand(y) for y in (x, *others) if y is not None]
    # Through the flag: NumPy makes a broadcast array read-only, CuPy does not.
    np.lib.stride_tricks.as_strided(x._host, writeable=True)[key] = value
    x._memory.event = cuda.enqueue()


def matmul(x, y):
    """Return x @ y, summed in another order than NumPy's, and in float32 for 16 bits."""

    def product(x, y):
        kind = np.promote_types(x.dtype, y.dtype)
        compute = np.float32 if kind.itemsize == 2 and kind.kind not in "iu" else kind
        if x.ndim > 1 and y.ndim > 1:
            x, y = x[..., ::-1], y[..., ::-1, :]
        return (x.astype(compute) @ y.astype(compute)).astype(kind)

    if isinstance(x, NUMBERS) or isinstance(y, NUMBERS):
        raise ValueError("Scalar operands are not allowed, use '*' instead")
    return run(product, x, y)


def _items(key):
    return key if isinstance(key, tuple) else (key,)


def _is_index(item):
    return isinstance(item, ndarray | list | np.ndarray)


def _one_index(key, x):
    """Return a key whose one array is on the host, and that array."""
    key = list(_items(key))
    (at,) = (n for n, item in enumerate(key) if _is_index(item))
    index = key[at] if isinstance(key[at], ndarray) else new(np.array(key[at]))
    if index.dtype == bool:
        cuda.get_current_stream().synchronize()  # to know how many there are
        key[at] = operand(index)
        return tuple(key), index
    if index.dtype.kind not in "iu":
        raise IndexError("arrays used as indices must be of integer or boolean type.")
    open_ended = any(item is Ellipsis for item in key[:at])
    axis = sum(item is not None for item in (key[at:] if open_ended else key[:at]))
    # Wrapped around, wherever it points.
    key[at] = operand(index) % x.shape[-axis if open_ended else axis]
    return tuple(key), index

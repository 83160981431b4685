"""Ufuncs with CuPy's loops, of which the first that takes the operands decides the dtype."""

import numpy as np

from cupy._array import ndarray, new, operand, write

try:
    from ml_dtypes import bfloat16
except ImportError:  # no array is of it either
    bfloat16 = np.float16

_CHARACTERS = {"E": np.dtype(bfloat16)}  # ml_dtypes' own character for it
_WHOLE = "bBhHiIlLqQ"
_FLOATS = "eEfd"
_COMPLEX = "FD"
_INEXACT = _FLOATS + _COMPLEX


def _of_one(kinds, result=None):
    return [f"{k}->{result or k}" for k in kinds]


def _of_two(kinds, result=None):
    return [f"{k}{k}->{result or k}" for k in kinds]


_COMPARED = ["??->?", "qq->?", "QQ->?", "qQ->?", "Qq->?", *_of_two(_FLOATS, "?")]


class ufunc:  # noqa: N801
    """A function of numbers, one by one.

    A number of Python's goes by the array's dtype where its kind is no higher, as in NumPy 2.
    """

    def __init__(self, function, types):
        self._function, self.types, self._found = function, types, {}
        self._loops = [[list(map(_dtype, side)) for side in t.split("->")] for t in types]

    def __call__(self, *operands, out=None):
        hosts = [operand(x) for x in operands]
        inputs, (result,) = self._loop(tuple(map(_kind, hosts)))
        hosts = [np.asarray(x, kind) for x, kind in zip(hosts, inputs, strict=True)]
        with np.errstate(all="ignore"):
            host = np.asarray(self._function(*hosts)).astype(result, copy=False)
        if out is None:
            return new(host)
        if not np.can_cast(result, out.dtype, "same_kind"):
            raise TypeError(f"Cannot cast from {result!r} to {out.dtype!r}")
        if host.shape != out.shape:
            raise ValueError(f"operands of shape {host.shape} do not fit out's {out.shape}")
        write(out, ..., new(host))
        return out

    def _loop(self, kinds):
        if kinds not in self._found:
            weak = [isinstance(kind, type) for kind in kinds]
            dtypes = [np.dtype(kind) for kind in kinds]
            numbers = [_rank(d) for d, w in zip(dtypes, weak, strict=True) if w]
            arrays = [_rank(d) for d, w in zip(dtypes, weak, strict=True) if not w]
            if not numbers or not arrays or max(numbers) > max(arrays):
                weak = [False] * len(kinds)
            takes = [_weakly if w else np.can_cast for w in weak]
            self._found[kinds] = next(
                (
                    loop
                    for loop in self._loops
                    if all(take(d, to) for take, d, to in zip(takes, dtypes, loop[0], strict=True))
                ),
                None,
            )
        if self._found[kinds] is None:
            raise TypeError(f"Wrong type ({kinds}) of arguments for {self._function.__name__}")
        return self._found[kinds]


def _dtype(character):
    return _CHARACTERS.get(character) or np.dtype(character)


def _kind(x):
    """Return a dtype, or the type of a number of Python's."""
    return type(x) if type(x) in (int, float, complex) else np.asarray(x).dtype


def _rank(dtype):
    """Return the kind of a dtype: bool, whole, inexact, or what NumPy does not know."""
    kinds = (np.bool_, np.integer, np.inexact)
    return next((n for n, kind in enumerate(kinds) if issubclass(dtype.type, kind)), len(kinds))


def _weakly(number, dtype):
    if np.can_cast(number, dtype):
        return True
    try:
        return np.result_type(number.type(0).item(), dtype) == dtype
    except TypeError:
        return False


def _exp(x):
    """Return e^x, a unit in the last place off, as CUDA's may be."""
    y = np.exp(x)
    if x.dtype.char not in "fd":
        return y
    return np.where((y > 0) & (y < np.inf) & (y != 1), np.nextafter(y, y.dtype.type(2)), y)


_TYPES = {
    "absolute": [*_of_one("?" + _WHOLE + _FLOATS), "F->f", "D->d"],
    "negative": _of_one("?" + _WHOLE + _INEXACT),
    "sign": _of_one(_WHOLE + _INEXACT),
    "invert": _of_one("?" + _WHOLE),
    "logical_not": _of_one("?" + _WHOLE + "efd", "?"),
    "isfinite isinf isnan": _of_one(_INEXACT, "?"),
    "arccos arccosh arcsin arcsinh arctan arctanh rint sqrt": _of_one(_INEXACT),
    "arctan2": _of_two(_INEXACT),
    "add subtract multiply maximum minimum": _of_two("?" + _WHOLE + _INEXACT),
    "divide true_divide": ["qq->d", "qQ->d", "Qq->d", "QQ->d", *_of_two(_INEXACT)],
    "floor_divide remainder": _of_two(_WHOLE + _FLOATS),
    "power": ["??->b", *_of_two(_WHOLE + _INEXACT)],
    "bitwise_and bitwise_or bitwise_xor": _of_two("?" + _WHOLE),
    "left_shift right_shift": _of_two(_WHOLE),
    "equal not_equal less less_equal greater greater_equal": _COMPARED + _of_two(_COMPLEX, "?"),
    "logical_and logical_or": _COMPARED,
}
UFUNCS = {
    name: ufunc(getattr(np, name), types)
    for names, types in _TYPES.items()
    for name in names.split()
}
UFUNCS |= {"abs": UFUNCS["absolute"], "exp": ufunc(_exp, _of_one(_INEXACT))}
# No loop for bfloat16, which comes back as float32.
select = ufunc(np.where, ["???->?", *(f"?{k}{k}->{k}" for k in _WHOLE + "efd" + _COMPLEX)])

_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
_COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
_SIGNS = {"abs": "absolute", "neg": "negative", "invert": "invert"}


def _give_operators():
    for name, of in (_OPERATORS | _COMPARISONS).items():
        setattr(ndarray, f"__{name}__", lambda x, y, f=UFUNCS[of]: f(x, y))
    for name, of in _OPERATORS.items():
        setattr(ndarray, f"__r{name}__", lambda x, y, f=UFUNCS[of]: f(y, x))
        setattr(ndarray, f"__i{name}__", lambda x, y, f=UFUNCS[of]: f(x, y, out=x))
    for name, of in _SIGNS.items():
        setattr(ndarray, f"__{name}__", lambda x, f=UFUNCS[of]: f(x))


_give_operators()

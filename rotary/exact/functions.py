"""The public functions of exact arithmetic: checked, differentiable, one step for compilers.

float32 in and out; float16 and bfloat16 are widened.  Each gradient is made of the same functions,
so that its bits depend on nothing else either.
"""

from __future__ import annotations

import operator
from typing import Any

from rotary import backends, rotation
from rotary.backends import Backend
from rotary.backends._protocol import Operation
from rotary.dtypes import dtype_name
from rotary.exact import elementary, sums
from rotary.exact.products import Products, settle

_DTYPES = ("float16", "bfloat16", "float32")


def matmul(a: Any, b: Any) -> Any:
    """Return the matrix product a @ b, with the same bits on every library.

    It takes about as long as ten of the library's own.

    Parameters
    ----------
    a : array, shape (..., M, K)
        float32, or float16 and bfloat16, which are widened.
    b : array, shape (..., K, N)
        Of a's library; leading axes broadcast.

    Returns
    -------
    array, shape (..., M, N)
        float32.  With A and B the largest |a| of the row and |b| of the column,

            |error| ≤ 2^−24·|a·b| + K·2^−29·A·B        for K ≤ 64, 2^−27 for K ≤ 256;

        of random numbers, 98 and 92 in a hundred results are correctly rounded.  Longer products
        are sums of blocks of 256 in a tree, whose rounding is added: 2^−24·Σ|block| a level.
        Results below 2^−125 are zero, and subnormal numbers count as zero.  An infinity or a NaN
        in a row of a or in a column of b makes NaN of that row or column of the result, and of
        no other.

    Raises
    ------
    TypeError
        For other dtypes, float64 among them, or arrays of two libraries.
    ValueError
        For shapes that do not meet.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> a = np.array([[1e8, 1.0, -1e8]], np.float32)
    >>> b = np.ones((3, 1), np.float32)
    >>> rotary.exact.matmul(a, b)
    array([[1.]], dtype=float32)
    """
    backend = backends.owner_of(a, "a")
    rotation.check_same_place("b", b, "a", a, backend)
    a, b = _read("a", a, backend), _read("b", b, backend)
    if a.ndim < 2:
        raise ValueError(f"a: got shape {tuple(a.shape)}, expected (..., M, K)")
    leading = _broadcast(a.shape[:-2], b.shape[:-2])
    if b.ndim < 2 or a.shape[-1] != b.shape[-2] or leading is None:
        raise ValueError(
            f"b: got shape {tuple(b.shape)}, expected (..., K, N) that meets a's {tuple(a.shape)}"
        )
    return backend.apply(MATMUL, "", (a, b))[0]


def sum(x: Any, axis: int = -1, *, keepdims: bool = False) -> Any:
    """Return the sum along an axis, in an order that is fixed: halves are added to halves.

    Parameters
    ----------
    x : array
        float32, or float16 and bfloat16, which are widened.  It may be a product of two arrays:
        that is rounded before anything is added, compiled or not.
    axis : int
        The axis that is summed.
    keepdims : bool
        Whether it stays, with length 1.

    Returns
    -------
    array
        float32; |error| ≤ 2^−24·ceil(log2 n)·Σ|x| for n numbers.  Partial sums below 2^−125 are
        zero, subnormal numbers count as zero.

    Raises
    ------
    TypeError
        For other dtypes, float64 among them.
    ValueError
        If axis is none of x's.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> float(rotary.exact.sum(np.arange(5, dtype=np.float32)))
    10.0
    """
    backend = backends.owner_of(x)
    x = _read("x", x, backend)
    try:
        at = operator.index(axis)
    except TypeError as error:
        raise TypeError(f"axis: got {axis!r}, expected a whole number") from error
    if not -x.ndim <= at < x.ndim:
        raise ValueError(f"axis: got {axis}, expected an axis of x's shape {tuple(x.shape)}")
    at %= x.ndim
    (total,) = backend.apply(SUM, str(at), (x,))
    if keepdims:
        return total
    return backend.namespace(total).squeeze(total, axis=at)


def exp(x: Any) -> Any:
    """Return e^x, with the same bits on every library.

    Parameters
    ----------
    x : array
        float32, or float16 and bfloat16, which are widened.

    Returns
    -------
    array
        float32, within 0.9 ulp; 0 where e^x < 2^−125.5, below −86.98, and ∞ above 88.72.

    Raises
    ------
    TypeError
        For other dtypes, float64 among them.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> rotary.exact.exp(np.array([-100, 0, 1], np.float32))
    array([0.       , 1.       , 2.7182817], dtype=float32)
    """
    return _elementwise(EXP, x)


def reciprocal(x: Any) -> Any:
    """Return 1/x, with the same bits on every library.

    Parameters
    ----------
    x : array
        float32, or float16 and bfloat16, which are widened.

    Returns
    -------
    array
        float32, within 0.503 ulp; 0 where |x| ≥ 2^126, and ∞ where |x| < 2^−126: such numbers
        count as zero, and zeros have no sign.

    Raises
    ------
    TypeError
        For other dtypes, float64 among them.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> rotary.exact.reciprocal(np.array([0, 3, -4], np.float32))
    array([        inf,  0.33333334, -0.25      ], dtype=float32)
    """
    return _elementwise(RECIPROCAL, x)


def rsqrt(x: Any) -> Any:
    """Return 1/√x, with the same bits on every library.

    Parameters
    ----------
    x : array
        float32, or float16 and bfloat16, which are widened.

    Returns
    -------
    array
        float32, within 0.501 ulp; ∞ where |x| < 2^−126, NaN below.

    Raises
    ------
    TypeError
        For other dtypes, float64 among them.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> rotary.exact.rsqrt(np.array([0, 2, 4], np.float32))
    array([       inf, 0.70710677, 0.5       ], dtype=float32)
    """
    return _elementwise(RSQRT, x)


def _elementwise(operation: Operation, x: Any) -> Any:
    backend = backends.owner_of(x)
    return backend.apply(operation, "", (_read("x", x, backend),))[0]


def _read(name: str, x: Any, backend: Backend) -> Any:
    """Return an argument in float32, or raise."""
    kind = dtype_name(x)
    if kind not in _DTYPES:
        raise TypeError(f"{name}: got dtype {kind}, expected one of {', '.join(_DTYPES)}")
    return x if kind == "float32" else backend.widen(x, "float32")


def _broadcast(a: Any, b: Any) -> tuple[int, ...] | None:
    """Return the shape that two shapes broadcast to, or None."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True)
    shape = tuple(m if n == 1 else n for m, n in pairs)
    longest = all(n in (1, m) for x in (a, b) for n, m in zip(x[::-1], shape[::-1], strict=False))
    return shape if longest else None


def _matmul(a: Any, b: Any) -> Any:
    if 0 in a.shape or 0 in b.shape:
        return a @ b
    products = Products(backends.owner_of(a))
    return products.multiply(products.rows(a), products.columns(b))


def _matmul_gradients(a: Any, b: Any, g: Any) -> tuple[Any, ...]:
    turn = backends.owner_of(a).namespace(a).matrix_transpose
    return _unbroadcast(matmul(g, turn(b)), a), _unbroadcast(matmul(turn(a), g), b)


def _unbroadcast(gradient: Any, x: Any) -> Any:
    """Return a gradient summed over the axes along which x was broadcast."""
    while gradient.ndim > x.ndim:
        gradient = sum(gradient, 0)
    for axis in range(x.ndim - 2):
        if x.shape[axis] == 1 != gradient.shape[axis]:
            gradient = sum(gradient, axis, keepdims=True)
    return gradient


def _times(x: Any, y: Any) -> Any:
    """Return x·y, zero below 2^−125: gradients are differentiated in their turn."""
    return backends.owner_of(x).apply(TIMES, "", (x, y))[0]


def _settled_product(x: Any, y: Any) -> Any:
    return settle(backends.owner_of(x), x * y)


def _sum_shape(axis: str, shape: tuple[Any, ...]) -> tuple[Any, ...]:
    at = int(axis)
    return (*shape[:at], 1, *shape[at + 1 :])


def _tree(axis: str, x: Any) -> tuple[Any, ...]:
    return (sums.tree(backends.owner_of(x), x, int(axis)),)


def _spread(x: Any, g: Any) -> Any:
    return backends.owner_of(g).namespace(g).broadcast_to(g, x.shape)


def _elementwise_operation(name: str, function: Any, gradient: Any) -> Operation:
    """Return an operation; its gradient is a function of the result and of the cotangent."""
    return Operation(
        f"{__name__}:{name}",
        lambda _, x: (function(backends.owner_of(x), x),),
        lambda _, inputs, outputs, cotangents: (gradient(outputs[0], cotangents[0]),),
        lambda _, shape: ((shape, "float32"),),
    )


TIMES = Operation(
    f"{__name__}:TIMES",
    lambda _, x, y: (_settled_product(x, y),),
    lambda _, inputs, outputs, cotangents: tuple(_times(cotangents[0], x) for x in inputs[::-1]),
    lambda _, x, y: ((x, "float32"),),
)
EXP = _elementwise_operation("EXP", elementary.exp, lambda y, g: _times(g, y))
RECIPROCAL = _elementwise_operation(
    "RECIPROCAL", elementary.reciprocal, lambda y, g: -_times(g, _times(y, y))
)
RSQRT = _elementwise_operation(
    "RSQRT", elementary.rsqrt, lambda y, g: _times(g, _times(y, _times(y, y))) * -0.5
)
SUM = Operation(
    f"{__name__}:SUM",
    _tree,
    lambda _, inputs, outputs, cotangents: (_spread(inputs[0], cotangents[0]),),
    lambda axis, shape: ((_sum_shape(axis, shape), "float32"),),
)
MATMUL = Operation(
    f"{__name__}:MATMUL",
    lambda _, a, b: (_matmul(a, b),),
    lambda _, inputs, outputs, cotangents: _matmul_gradients(*inputs, *cotangents),
    lambda _, a, b: (((*(_broadcast(a[:-2], b[:-2]) or ()), a[-2], b[-1]), "float32"),),
)

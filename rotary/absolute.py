"""Encodings of absolute positions, which are added to features or stand beside them.

From a number (:func:`integer`) by its digits (:func:`binary`) to digits that turn smoothly
(:func:`sinusoidal`; Vaswani et al., arXiv 1706.03762, section 3.5), and a row for each position
that is trained (:func:`learned`; Gehring et al., arXiv 1705.03122, section 3.1):

    PE[p, 2i] = sin(p·ω_i),   PE[p, 2i + 1] = cos(p·ω_i),   ω_i = θ^(−2i/dim)
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary import backends, rotation
from rotary.backends import Backend
from rotary.checks import check_bool, check_choice, count, whole
from rotary.dtypes import dtype_name
from rotary.embedding import RotaryEmbedding
from rotary.host import (
    check_whole_dtype,
    delivered,
    known_now,
    place,
    read_whole,
    wanted,
)
from rotary.positions import LIMIT

METHODS = ("linear", "cubic")

# Up to here float32 holds every whole number.
_WHOLE_IN_FLOAT32 = 2**24


def sinusoidal(
    positions: Any,
    dim: int,
    *,
    base: float = 10_000.0,
    layout: str = "interleaved",
    frequency_dim: int | None = None,
    like: Any = None,
    dtype: Any = None,
) -> Any:
    """Return the sines and cosines of Vaswani et al. (2017), the numbers of the rotary tables.

    Parameters
    ----------
    positions : array or list, shape (...)
        Whole or fractional numbers up to ±2^53, known to the host or to a compiled program alone,
        as ``RotaryEmbedding.tables`` takes them.
    dim : int
        Number of features, even.
    base : float
        θ in ω_i = θ^(−2i/F).
    layout : {"interleaved", "half"}
        sin, cos, sin, cos, … as in the paper, or all sines and then all cosines as in
        tensor2tensor and fairseq.
    frequency_dim : int, optional
        F, dim by default.  tensor2tensor and fairseq have ω_i = θ^(−i/(dim/2 − 1)): dim − 2.
    like : array, optional
        The result comes in its library and on its device; NumPy by default.
    dtype : dtype or str, optional
        float32 or float64; by default that in which `like` rotates, else float32.

    Returns
    -------
    array, shape (..., dim)
        The bits of ``RotaryEmbedding(dim, base=base, frequency_dim=frequency_dim).tables(...)``,
        rearranged: float32 correctly rounded, float64 within 0.501 ulp.

    Raises
    ------
    TypeError
        For 16-bit float positions, or positions of another library.
    ValueError
        If dim is odd, a layout or dtype unknown, or a position NaN or beyond ±2^53.

    Examples
    --------
    >>> import rotary
    >>> rotary.absolute.sinusoidal([0, 1], 4)
    array([[0.        , 1.        , 0.        , 1.        ],
           [0.84147096, 0.5403023 , 0.00999983, 0.99995   ]], dtype=float32)
    """
    dim = whole("dim", dim)
    if dim % 2:
        raise ValueError(f"dim: got {dim}, expected an even number: a sine and a cosine each")
    check_choice("layout", layout, rotation.LAYOUTS)
    like, backend, _ = wanted(like, dtype)
    xp = backend.namespace(like)
    rope = RotaryEmbedding(dim, base=base, frequency_dim=frequency_dim)  # type: ignore[arg-type]
    cos, sin = rope.tables(positions, like=like, dtype=dtype)
    if layout == "half":
        return xp.concat([sin, cos], axis=-1)
    # A length that a lazy library leaves open is −1.
    shape = tuple(-1 if n is None else n for n in cos.shape[:-1])
    return xp.reshape(xp.stack([sin, cos], axis=-1), (*shape, dim))


def learned(positions: Any, table: Any) -> Any:
    """Return the rows of a trained table at these positions.

    Parameters
    ----------
    positions : array or list, shape (...)
        Integers from 0 to length − 1: a list, a NumPy array or an array of table's library.
    table : array, shape (length, dim)
        float16, bfloat16, float32 or float64, of any array library.

    Returns
    -------
    array, shape (..., dim)
        Of table's dtype, library and device.  Gradients reach the table; rows that are looked up
        twice get the sum.

    Raises
    ------
    TypeError
        If positions are not integers, or of another library; if table is not an array of floats.
    ValueError
        If table has not two axes or no rows; if a position is negative or has no row.

    Notes
    -----
    Where only a compiled or lazy program knows the positions (``jax.jit``, ``torch.compile``, dask)
    none can be refused: a position without a row then gives a row of NaN, never another row.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> table = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]])
    >>> rotary.absolute.learned([2, 0], table)
    array([[2. , 2.1],
           [0. , 0.1]])
    >>> rotary.absolute.learned([3], table)
    Traceback (most recent call last):
        ...
    ValueError: positions: got 3 at index 0, expected 0 to 2, as table has a length of 3
    """
    backend = backends.owner_of(table, "table")
    _check_table(table)
    if not known_now(positions, backend):
        return _learned_in_program(positions, table, backend)
    host = read_whole(positions, backend, "positions")
    _check_below(host, table.shape[0], f"as table has a length of {table.shape[0]}")
    return _rows(table, _index(host, table, backend), backend)


def _learned_in_program(positions: Any, table: Any, backend: Backend) -> Any:
    """Return rows of positions whose values are not known yet; NaN where there is none."""
    if isinstance(positions, np.ndarray) or not hasattr(positions, "dtype"):
        positions = backend.to_device(np.asarray(positions), table)
    rotation.check_same_place("positions", positions, "table", table, backend)
    check_whole_dtype("positions", dtype_name(positions))
    xp = backend.namespace(table)
    default = xp.asarray(0).dtype
    if xp.iinfo(positions.dtype).max < xp.iinfo(default).max:
        positions = xp.astype(positions, default)
    # Compared before any cast that may wrap a position around to one that has a row.
    last = min(table.shape[0] - 1, xp.iinfo(positions.dtype).max)
    inside = (positions >= 0) & (positions <= last)
    index = xp.astype(xp.where(inside, positions, xp.zeros_like(positions)), default)
    rows = _rows(table, index, backend)
    return xp.where(inside[..., None], rows, xp.full_like(rows, math.nan))


def _rows(table: Any, index: Any, backend: Backend) -> Any:
    xp = backend.namespace(table)
    # The standard takes along one axis by one axis.
    rows = xp.take(table, xp.reshape(index, (-1,)), axis=0)
    shape = tuple(-1 if n is None else n for n in index.shape)
    return xp.reshape(rows, (*shape, table.shape[1]))


def _index(host: npt.NDArray[Any], like: Any, backend: Backend) -> Any:
    """Return whole numbers as an index: some libraries take by int64 alone, some have none."""
    try:
        return backend.to_device(host.astype(np.int64), like)
    except TypeError:
        return backend.to_device(host.astype(np.int32), like)


def resample(
    table: Any,
    size: int | tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    prefix: int = 0,
    method: str = "linear",
    align_corners: bool = False,
) -> Any:
    """Resample a learned table to another length, or to another grid.

    The numbers of ``torch.nn.functional.interpolate`` with ``antialias=False`` ("linear" and
    "bilinear", "bicubic" with Keys' a = −3/4) within rounding, and the same bits on every library.

    Parameters
    ----------
    table : array, shape (prefix + length, dim) or (prefix + height·width, dim)
        float16, bfloat16, float32 or float64, of any array library.  The tokens of a grid lie
        row by row.
    size : int, or a pair of int
        The new length; with `grid`, the new height and width.
    grid : pair of int, optional
        Height and width that the table has.
    prefix : int
        Rows in front that are not resampled, such as that of a class token.
    method : {"linear", "cubic"}
        Interpolation between the 2 nearest rows along an axis, or the 4 nearest.
    align_corners : bool
        Whether the first and the last row stay where they are, as
        s = d·(old − 1)/(new − 1) says, or cells are as wide as they are long:
        s = (d + 1/2)·old/new − 1/2.

    Returns
    -------
    array, shape (prefix + new length, dim)
        Of table's dtype, library and device; `table` itself where the size stays.  Gradients pass.

    Raises
    ------
    TypeError
        If table is not an array of floats, or a size is not a whole number.
    ValueError
        If table has not two axes, a size is not positive, the grid is not that of the table, or the
        method is unknown.

    Notes
    -----
    Weights are rational numbers of the sizes, rounded once to the dtype of the arithmetic (float32
    for 16-bit tables, which are rounded once at the end).  Width comes first, then height.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> table = np.array([[0.0], [1.0], [4.0]])
    >>> rotary.absolute.resample(table, 5, align_corners=True)[:, 0]
    array([0. , 0.5, 1. , 2.5, 4. ])

    The table of a vision transformer, from 14 × 14 to 16 × 24 patches behind a class token:

    >>> table = np.ones((1 + 14 * 14, 8), np.float32)
    >>> larger = rotary.absolute.resample(
    ...     table, (16, 24), grid=(14, 14), prefix=1, method="cubic"
    ... )
    >>> larger.shape == (1 + 16 * 24, 8)
    True
    """
    backend = backends.owner_of(table, "table")
    compute = _check_table(table)
    check_choice("method", method, METHODS)
    check_bool("align_corners", align_corners)
    # operator.index makes a number of a length that torch.compile holds for variable.
    shape = tuple(map(operator.index, table.shape))
    old, new = (tuple(map(operator.index, n)) for n in _sizes(shape, size, grid, prefix))
    if old == new:
        return table

    xp, dim = backend.namespace(table), table.shape[1]
    body = table[prefix:, :] if prefix else table
    wide = body if compute == dtype_name(table) else backend.widen(body, compute)
    wide = xp.reshape(wide, (*old, dim))
    for axis in reversed(range(len(new))):
        if old[axis] != new[axis]:
            taps = _taps(old[axis], new[axis], method, align_corners, compute)
            wide = _weighted(wide, axis, taps, compute, backend)
    result = xp.reshape(wide, (math.prod(new), dim))
    if compute != dtype_name(table):
        result = backend.narrow(result, table.dtype)
    return xp.concat([table[:prefix, :], result], axis=0) if prefix else result


def _weighted(
    x: Any, axis: int, taps: list[tuple[list[int], list[float]]], compute: str, backend: Backend
) -> Any:
    """Return the sum of x[index]·weight along an axis, from left to right."""
    xp, total = backend.namespace(x), None
    for index, weight in taps:
        host = np.array(weight, compute).reshape(-1, *[1] * (x.ndim - 1 - axis))
        tap = xp.take(x, _index(np.array(index), x, backend), axis=axis)
        term = backend.product(tap, backend.to_device(host, x))
        total = term if total is None else total + term
    return total


def _taps(
    old: int, new: int, method: str, align_corners: bool, compute: str
) -> list[tuple[list[int], list[float]]]:
    """Return, for each of the nearest rows in turn, its index and weight in every new row."""
    # Whole numbers of Python alone: torch.compile follows neither decimals nor fractions.
    linear = method == "linear"
    kernel = _linear_kernel if linear else _cubic_kernel
    taps: list[tuple[list[int], list[float]]] = [([], []) for _ in range(2 if linear else 4)]
    for d in range(new):
        # The source coordinate s = numerator/denominator.
        if align_corners:
            numerator, denominator = d * (old - 1), max(new - 1, 1)
        else:
            numerator, denominator = (2 * d + 1) * old - new, 2 * new
        if linear:
            numerator = min(max(numerator, 0), (old - 1) * denominator)
        cell, rest = divmod(numerator, denominator)
        first = cell if linear else cell - 1
        for k, (share, of) in enumerate(kernel(rest, denominator)):
            taps[k][0].append(min(max(first + k, 0), old - 1))
            taps[k][1].append(_ratio(share, of, compute))
    return taps


def _linear_kernel(rest: int, of: int) -> list[tuple[int, int]]:
    """Return the weights of the 2 nearest rows, rest/of behind the first, as ratios."""
    return [(of - rest, of), (rest, of)]


def _cubic_kernel(rest: int, of: int) -> list[tuple[int, int]]:
    """Return the weights of the 4 nearest rows, rest/of behind the second, as ratios.

    Keys' kernel (1981) with a = −3/4: at a distance x of 1 or less (a + 2)x³ − (a + 3)x² + 1, at
    one up to 2 a·x³ − 5a·x² + 8a·x − 4a.
    """
    unit = 4 * of**3

    def near(n: int) -> tuple[int, int]:
        return 5 * n**3 - 9 * n**2 * of + unit, unit

    def far(n: int) -> tuple[int, int]:
        return -3 * (n**3 - 5 * n**2 * of + 8 * n * of**2 - unit), unit

    return [far(of + rest), near(rest), near(of - rest), far(2 * of - rest)]


def _ratio(numerator: int, denominator: int, compute: str) -> float:
    """Return a float64 that becomes the quotient, rounded once, in the dtype of that name."""
    if compute == "float64" or not numerator:
        return numerator / denominator
    # 52 bits and a sticky one: rounding that to 24 bits is rounding the quotient.
    shift = max(0, 52 - abs(numerator).bit_length() + denominator.bit_length())
    quotient, rest = divmod(numerator << shift, denominator)
    return math.ldexp(quotient | (rest != 0), -shift)


def _sizes(
    shape: tuple[int, ...], size: Any, grid: Any, prefix: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the checked old and new lengths of the axes that are resampled."""
    count("prefix", prefix)
    if prefix >= shape[0]:
        raise ValueError(
            f"prefix: got {prefix}, expected 0 to {shape[0] - 1}, as table has a length of "
            f"{shape[0]}"
        )
    rest = shape[0] - prefix
    if grid is None:
        if isinstance(size, tuple | list):
            raise ValueError(f"grid: got None beside size = {size!r}, expected (height, width)")
        return (rest,), (whole("size", size),)
    old, new = _pair("grid", grid), _pair("size", size)
    if math.prod(old) != rest:
        raise ValueError(
            f"grid: got {old}, {math.prod(old)} cells, expected {rest} as table of shape {shape} "
            f"has behind {prefix} rows of prefix"
        )
    return old, new


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: got {value!r}, expected (height, width)")
    if len(value) != 2:
        raise ValueError(f"{name}: got {value!r}, expected (height, width)")
    return whole(f"{name}[0]", value[0]), whole(f"{name}[1]", value[1])


def integer(
    positions: Any, *, length: int | None = None, like: Any = None, dtype: Any = None
) -> Any:
    """Return the position itself, or the position divided by a length: the simplest encodings.

    Parameters
    ----------
    positions : array or list, shape (...)
        Integers up to ±2^53 that the host can read.
    length : int, optional
        Positions 0 … length − 1 become numbers from 0 to 1, each quotient rounded once.
    like, dtype
        As for :func:`sinusoidal`.

    Returns
    -------
    array, shape (..., 1)

    Raises
    ------
    TypeError
        If positions are not integers, or only a compiled program knows them.
    ValueError
        If the length is not positive; for a position beyond ±2^24 that float32 should hold.

    Examples
    --------
    >>> import rotary
    >>> rotary.absolute.integer([0, 1, 2])[:, 0]
    array([0., 1., 2.], dtype=float32)
    >>> rotary.absolute.integer([0, 1, 2], length=4)[:, 0]
    array([0.  , 0.25, 0.5 ], dtype=float32)
    """
    like, backend, kind = wanted(like, dtype)
    host = read_whole(positions, backend, "positions")
    if length is not None:
        length = whole("length", length)
        if length > LIMIT:
            raise ValueError(f"length: got {length}, expected at most 2^53 = {LIMIT}")
        quotients = [_ratio(p, length, kind) for p in host.reshape(-1).tolist()]
        return delivered(np.array(quotients).reshape(*host.shape, 1), kind, like, backend)
    beyond = np.flatnonzero(np.abs(host) > _WHOLE_IN_FLOAT32)
    if kind == "float32" and beyond.size:
        raise ValueError(
            f"positions: got {host.flat[beyond[0]]}{place(host, beyond[0])}, expected at most "
            f"2^24 = {_WHOLE_IN_FLOAT32} either way, beyond which float32 skips whole numbers"
        )
    return delivered(host[..., None], kind, like, backend)


def binary(positions: Any, bits: int, *, like: Any = None, dtype: Any = None) -> Any:
    """Return the binary digits of positions, which alternate the slower the higher they are.

    Sines do the same without steps.

    Parameters
    ----------
    positions : array or list, shape (...)
        Integers from 0 to 2^bits − 1 that the host can read.
    bits : int
        Number of digits, up to 53.
    like, dtype
        As for :func:`sinusoidal`.

    Returns
    -------
    array, shape (..., bits)
        0 and 1, the least significant digit first.

    Raises
    ------
    TypeError
        If positions are not integers, or only a compiled program knows them.
    ValueError
        If a position is negative or needs more digits.

    Examples
    --------
    >>> import rotary
    >>> rotary.absolute.binary([0, 1, 6], 3)
    array([[0., 0., 0.],
           [1., 0., 0.],
           [0., 1., 1.]], dtype=float32)
    """
    bits = whole("bits", bits)
    if bits > 53:
        raise ValueError(f"bits: got {bits}, expected at most 53, as positions end at 2^53")
    like, backend, kind = wanted(like, dtype)
    host = read_whole(positions, backend, "positions")
    _check_below(host, 2**bits, f"as there are {bits} bits")
    digits = (host[..., None] >> np.arange(bits)) & 1
    return delivered(digits, kind, like, backend)


def _check_table(table: Any) -> str:
    """Return the dtype in which a (length, dim) table of floats is computed, or raise."""
    compute = rotation.compute_dtype("table", table)
    shape = tuple(table.shape)
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"table: got shape {shape}, expected (length, dim), a length of 1 or more")
    if any(n is None or n != n for n in shape):  # lazy libraries leave lengths open: None, or NaN
        raise ValueError(f"table: got shape {shape}, expected known lengths")
    return compute


def _check_below(host: npt.NDArray[np.int64], length: int, reason: str) -> None:
    outside = np.flatnonzero((host < 0) | (host >= length))
    if outside.size:
        raise ValueError(
            f"positions: got {host.flat[outside[0]]}{place(host, outside[0])}, expected 0 to "
            f"{length - 1}, {reason}"
        )

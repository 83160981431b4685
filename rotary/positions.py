"""Positions: what a caller may hand over, read on the host and checked.

Positions are whole or fractional, may be negative, and count as exact float64 numbers up to ±2^53,
where neighbouring whole numbers are still apart.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rotary import backends
from rotary.dtypes import WHOLE_DTYPES, dtype_name

LIMIT = 2**53


class Rows(NamedTuple):
    """The rows of a table that a call asks for, as the caller named them."""

    positions: Any
    offset: Any
    batch: int | None
    """Length of x's batch axis; None where x has none."""
    seq: int | None
    """Length of x's seq axis; None where positions may have any shape."""
    offset_name: str = "offset"
    axes: int = 1
    """Number of position axes."""

    @property
    def given(self) -> Any:
        """What the caller gave: positions, or an offset, or nothing."""
        return self.offset if self.positions is None else self.positions


class Span(NamedTuple):
    """The whole positions start … start + length − 1, shared by every batch row."""

    start: int
    length: int


def read_rows(rows: Rows, backend: backends.Backend) -> Span | npt.NDArray[np.float64]:
    """Return the positions of a call: a span, or float64 of shape (seq,), (1 or batch, seq).

    With several axes that differ, of shape (axes, seq), (axes, 1 or batch, seq).
    """
    check_one_given(rows)
    if rows.positions is None:
        return _from_offset(rows, backend)
    values = read(rows.positions, backend, "positions")
    check_shape(rows, values.shape)
    return as_span(values)


def _from_offset(rows: Rows, backend: backends.Backend) -> Span | npt.NDArray[np.float64]:
    assert rows.seq is not None
    name = rows.offset_name
    if rows.offset is None or type(rows.offset) is int:
        span = Span(rows.offset or 0, rows.seq)
        _check_span(span, name)
        return span
    offset = read(rows.offset, backend, name)
    check_shape(rows, offset.shape)
    values = counted_from(offset, np.arange(rows.seq, dtype=np.float64), rows.axes)
    _check_values(values, f"{name} + seq - 1")
    return as_span(values)


def counted_from(offset: Any, steps: Any, axes: int) -> Any:
    """Return offset + steps: (seq,), or (batch, seq) for an offset per row.

    With several axes, which are equal then, in front of them an axis of length 1.
    """
    values = offset[..., None] + steps
    return values[None, ...] if axes > 1 and values.ndim > 1 else values


def table_shape(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Return the shape of the tables of positions of that shape, without the pairs."""
    return shape[1:] if axes > 1 and len(shape) > 1 else shape


def check_deferred(rows: Rows, kind: str, shape: tuple[int, ...]) -> None:
    """Check all of what was given but its values, which only the compiled program will know."""
    check_one_given(rows)
    check_dtype(rows.offset_name if rows.positions is None else "positions", kind)
    check_shape(rows, shape)


def check_one_given(rows: Rows) -> None:
    """Raise if positions and offset were both given."""
    if rows.positions is not None and rows.offset is not None:
        raise ValueError("positions: got offset too, expected positions or offset")


def check_shape(rows: Rows, shape: tuple[int, ...]) -> None:
    """Raise unless positions, or else an offset, of this shape name a row for each of x's."""
    seq, batch = rows.seq, rows.batch
    if seq is None:
        if rows.axes > 1 and len(shape) > 1 and shape[0] not in (1, rows.axes):
            raise ValueError(
                f"positions: got shape {shape}, expected a first axis of {rows.axes} for the axes, "
                f"or of 1 where they are equal"
            )
        return
    if rows.positions is None:
        if shape not in ((), (batch,)):
            per_row = "" if batch is None else f", or one per batch row, shape ({batch},)"
            raise ValueError(f"{rows.offset_name}: got shape {shape}, expected one number{per_row}")
        return
    shapes = [(seq,)] if batch is None else [(seq,), (batch, seq), (1, seq)]
    words = "(seq,) or (batch, seq)"
    if rows.axes > 1:
        # One row for all axes where they are equal, as text has them.
        shapes = [(seq,), *((n, *shape) for n in (rows.axes, 1) for shape in shapes)]
        words = "(seq,), (axes, seq) or (axes, batch, seq)"
    if shape not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(
            f"positions: got shape {shape}, expected {expected} to match the array's {words}"
        )


def check_dtype(name: str, kind: str) -> None:
    """Raise unless numbers of the dtype of that name count as positions."""
    if kind in ("float16", "bfloat16"):
        raise TypeError(
            f"{name}: got dtype {kind}, which cannot tell neighbouring positions apart beyond "
            f"{2048 if kind == 'float16' else 256}; expected integers, float32 or float64"
        )
    if kind not in WHOLE_DTYPES and kind not in ("float32", "float64"):
        raise TypeError(f"{name}: got dtype {kind}, expected integers, float32 or float64")


def as_span(values: npt.NDArray[np.float64]) -> Span | npt.NDArray[np.float64]:
    """Return consecutive whole positions as a span, anything else as it is."""
    if values.ndim != 1 or values.size == 0 or values[0] != np.rint(values[0]):
        return values
    start, length = int(values[0]), values.shape[0]
    consecutive = np.array_equal(values, np.arange(start, start + length, dtype=np.float64))
    return Span(start, length) if consecutive else values


def after_last(where: Span | npt.NDArray[np.float64]) -> int:
    """Return the largest position + 1: the length of the sequence, as far as it is known."""
    if isinstance(where, Span):
        return max(0, where.start + where.length)
    return max(0, math.floor(float(where.max(initial=-1.0))) + 1)


def read(positions: Any, backend: backends.Backend, name: str) -> npt.NDArray[np.float64]:
    """Read numbers, a NumPy array or an array of `backend`'s library as checked float64."""
    array = _as_array(positions, name)
    kind = dtype_name(array)
    check_dtype(name, kind)
    host = _to_host(array, backend, name)
    if kind in ("int64", "uint64") and host.size and max(-int(host.min()), int(host.max())) > LIMIT:
        raise ValueError(_beyond(name, host))
    values = np.asarray(host, dtype=np.float64)
    _check_values(values, name)
    return values


def validate(positions: Any) -> None:
    """Check the values of positions, waiting for their device if need be.

    Parameters
    ----------
    positions : array, list or number
        Integers, float32 or float64 of any shape.

    Raises
    ------
    TypeError
        If the dtype is a 16-bit float, boolean, complex or not numeric.
    ValueError
        If a value is NaN, infinite or beyond ±2^53.

    Examples
    --------
    >>> import rotary
    >>> rotary.validate([0, 1, 2.5, -3])
    >>> rotary.validate([0.0, float("nan")])
    Traceback (most recent call last):
        ...
    ValueError: positions: got NaN at index 1, expected finite numbers
    """
    read(positions, backends.owner_of(_as_array(positions, "positions"), "positions"), "positions")


def _to_host(array: Any, backend: backends.Backend, name: str) -> npt.NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    owner = backends.owner_of(array, name)
    if owner is not backend:
        raise TypeError(
            f"{name}: got an array of {backends.library(array)}, expected numbers, a NumPy array "
            f"or an array of the library at hand ({backend.name})"
        )
    if owner.is_traced(array):
        raise TypeError(
            f"{name}: got a traced array of {owner.name}, whose values are known only when the "
            f"compiled program runs; expected values that the host can read"
        )
    try:
        return owner.to_host(array)
    except TypeError as error:
        raise TypeError(f"{name}: {error}, expected values that the host can read") from error


def _as_array(positions: Any, name: str) -> Any:
    if hasattr(positions, "dtype") and hasattr(positions, "shape"):
        return np.asarray(positions) if isinstance(positions, np.generic) else positions
    try:
        array = np.asarray(positions)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{name}: got {type(positions).__name__}, expected numbers or an array of them: "
            f"{reason}"
        ) from error
    if array.dtype == object and array.size and all(_is_whole(p) for p in array.flat):
        raise ValueError(
            f"{name}: got whole numbers of more than 64 bits, expected them within ±2^53 = ±{LIMIT}"
        )
    if array.size == 0:
        return array.astype(np.float64)
    return array


def _is_whole(number: Any) -> bool:
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def _check_span(span: Span, name: str) -> None:
    last = span.start + span.length - 1
    if span.start < -LIMIT or last > LIMIT:
        raise ValueError(
            f"{name}: got positions from {span.start} to {last}, expected them within "
            f"±2^53 = ±{LIMIT}"
        )


def _check_values(values: npt.NDArray[np.float64], name: str) -> None:
    # One pass for the usual case; NaN fails the comparison too.
    if values.size == 0 or (values.min() >= -LIMIT and values.max() <= LIMIT):
        return
    bad = np.argwhere(~np.isfinite(values))
    if len(bad) == 0:
        raise ValueError(_beyond(name, values))
    index = tuple(int(i) for i in bad[0])
    shown = "NaN" if np.isnan(values[index]) else str(values[index])
    where = f" at index {index[0] if len(index) == 1 else index}" if index else ""
    raise ValueError(f"{name}: got {shown}{where}, expected finite numbers")


def _beyond(name: str, values: npt.NDArray[Any]) -> str:
    return (
        f"{name}: got values from {values.min()} to {values.max()}, expected them within "
        f"±2^53 = ±{LIMIT}"
    )

"""Asking a black box: arrays of one dtype in, float64 out, and what it does besides.

A box is any function (x, positions) → rotated x with x of shape (batch, heads, seq, dim).  It may
take positions by value, count rows, or count from the first position; the three look alike here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Function = Callable[[npt.NDArray[Any], npt.NDArray[Any]], Any]

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""In the order in which a box is asked for them."""

ROWS_AT_ONCE = 16
"""Rows are filled up to a multiple of this, so that compiled boxes see few shapes."""


class RefusedError(ValueError):
    """The box raised, or gave something that is no rotated x."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name, bfloat16 too."""
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name!r}, expected one of {', '.join(DTYPES)}")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def rounded(values: Array, name: str | None) -> Array:
    """Round to the numbers of a dtype; None leaves float64 as it is."""
    if name is None or name == "float64":
        return values
    with np.errstate(all="ignore"):
        return values.astype(numpy_dtype(name)).astype(np.float64)


def holds(values: Array, name: str) -> bool:
    """Whether all of these numbers are numbers of that dtype."""
    return bool((rounded(values, name) == values).all())


class Box:
    """A function, how it takes its positions, and what was noticed while it was asked."""

    def __init__(self, function: Function, head_dim: int, dtype: str = "float32") -> None:
        self.function = function
        self.head_dim = head_dim
        self.dtype = dtype
        self.takes = "positions"
        """"positions" by value; "rows" counted from 0; "first" position, rows counted from it."""
        self.changes_input = False
        self.returned = ""
        self.calls = 0

    def call(self, x: Array, positions: Array, dtype: str | None = None) -> Array:
        """Ask once, with positions as they are."""
        given = np.ascontiguousarray(x.astype(numpy_dtype(dtype or self.dtype)))
        kept = given.copy()
        whole = bool((positions == np.rint(positions)).all())
        where = positions.astype(np.int64) if whole else positions.copy()
        self.calls += 1
        try:
            with np.errstate(all="ignore"):
                answer = np.asarray(self.function(given, where))
                values = answer.astype(np.float64)
        except Exception as error:  # whatever it raises
            words = (str(error).strip() or "no message").splitlines()[0]
            raise RefusedError(f"{type(error).__name__}: {words}") from error
        if values.shape != x.shape:
            raise RefusedError(f"it returned shape {values.shape} for x of shape {x.shape}")
        if given.tobytes() != kept.tobytes():
            self.changes_input = True
        self.returned = answer.dtype.name
        return values

    def ask(self, x: Array, positions: Array, dtype: str | None = None) -> Array:
        """Return the answers for rows of x, (batch, heads, seq, dim), at any positions."""
        if self.takes == "positions":
            missing = -len(positions) % ROWS_AT_ONCE
            filled = np.concatenate([x, np.repeat(x[:, :, -1:], missing, axis=2)], axis=2)
            where = np.concatenate([positions, np.repeat(positions[-1:], missing)])
            return self.call(filled, where, dtype)[:, :, : len(positions)]
        if self.takes == "rows":
            rows = positions.astype(np.int64)
            count = int(rows.max()) + 1
            whole = np.zeros((*x.shape[:2], count, x.shape[3]))
            whole[:, :, rows] = x
            return self.call(whole, np.arange(count, dtype=np.float64), dtype)[:, :, rows]
        answers = [
            self.call(x[:, :, i : i + 1], positions[i : i + 1], dtype)
            for i in range(len(positions))
        ]
        return np.concatenate(answers, axis=2)

    def response(self, vectors: Array, positions: Array, dtype: str | None = None) -> Array:
        """Return what each of (count, dim) vectors becomes at each position: (seq, count, dim)."""
        x = np.repeat(vectors[:, None, None, :], len(positions), axis=2)
        return self.ask(x, positions, dtype)[:, 0].swapaxes(0, 1)


def open_box(function: Function, head_dim: int | None, dtype: str | None) -> Box:
    """Find the head dimension and a dtype that the box answers; raise RefusedError if none."""
    first: RefusedError | None = None
    for name in (dtype,) if dtype else DTYPES:
        for dim in (head_dim,) if head_dim else (64, 128, 32, 96, 80, 256, 48, 16, 8, 192, 576):
            box = Box(function, dim, name)
            try:
                box.call(np.ones((1, 1, 4, dim)), np.arange(4.0))
            except RefusedError as error:
                first = first or error
                continue
            return box
    raise RefusedError(
        f"function: got {first} for x of shape (1, 1, 4, {head_dim or 64}), expected rotated x"
    )


def find_how_positions_are_taken(box: Box, rng: np.random.Generator) -> str | None:
    """Set ``box.takes``; return why positions cannot be read from its outputs, or None."""
    x = rng.standard_normal((1, 1, ROWS_AT_ONCE, box.head_dim))
    x = x[:, :, :1] + np.zeros_like(x)
    counted = np.arange(float(ROWS_AT_ONCE))
    mixed = np.roll(counted[::-1], 3)
    plain = box.call(x, counted)
    if not np.array_equal(plain, box.call(x, counted), equal_nan=True):
        return "the same question asked twice in a row gets two answers"
    if not np.isfinite(plain).all():
        return "its outputs are not finite numbers"
    if _alike(plain, plain[:, :, :1]):
        if np.array_equal(rounded(x, box.dtype), plain):
            return "it does not rotate: its outputs are its inputs at every position"
        return "its outputs do not depend on the position"
    if _alike(box.call(x, mixed), plain[:, :, mixed.astype(np.int64)]):
        return None
    try:
        moved = box.call(x, counted + 5)
    except RefusedError:
        moved = plain
    if _alike(moved, plain):
        box.takes = "rows"
    elif _alike(moved[:, :, :-5], plain[:, :, 5:]):
        box.takes = "first"
    return None


def _alike(got: Array, expected: Array) -> bool:
    """Whether they are equal but for a few bits: the sine of a library may depend on the lane."""
    return bool((np.abs(got - expected) <= 2.0**-20 * np.abs(expected).max()).all())

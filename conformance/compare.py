"""Comparison of arrays: by bits, by ulps, by a bound.

Bits: −0 and +0 are equal, any NaN equals any NaN; a compiler's guard and its libraries decide
those.  Where subnormal numbers enter or leave, zero may stand for them ("flush"), and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BITS: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True)
class Difference:
    """What a comparison found."""

    elements: int
    differing: int
    worst: float
    """Largest distance: in units in the last place, or as a share of the bound."""
    worst_index: tuple[int, ...] | None = None
    flushed: int = 0


def bits(got: npt.NDArray[Any], expected: npt.NDArray[Any], *, flush: bool = False) -> Difference:
    """Count elements whose bits differ."""
    _check_alike(got, expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    flushed = 0
    if flush:
        tiny = np.abs(expected) < np.asarray(_smallest_normal(expected.dtype), expected.dtype)
        as_zero = ~same & tiny & (got == 0)
        flushed = int(as_zero.sum())
        same |= as_zero
    distance = np.where(same, 0, _distance(got, expected))
    return _worst(distance, int(same.size - same.sum()), flushed)


def ulps(
    got: npt.NDArray[Any],
    high: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    most: float,
) -> Difference:
    """Measure the error of got against high + low, in units in the last place of high."""
    _check_alike(got, high)
    error = np.abs((got - high) - low) / np.spacing(np.abs(high))
    return _worst(error, int((~(error <= most)).sum()))


def bound(
    got: npt.NDArray[Any], expected: npt.NDArray[Any], allowed: npt.NDArray[Any]
) -> Difference:
    """Measure |got − expected| as a share of what is allowed, element by element."""
    if got.shape != expected.shape:
        raise ValueError(f"got shape {got.shape}, expected {expected.shape}")
    error = np.abs(got.astype(np.float64) - expected)
    # Not `> 0`, which is false for NaN.
    share = np.divide(error, allowed, out=np.zeros_like(error), where=error != 0)
    return _worst(share, int((~(share <= 1)).sum()))


def _worst(distance: npt.NDArray[Any], differing: int, flushed: int = 0) -> Difference:
    if distance.size == 0:
        return Difference(0, differing, 0.0, None, flushed)
    index = np.unravel_index(int(np.argmax(distance)), distance.shape)
    worst = float(distance[index])
    where = tuple(int(i) for i in index) if worst else None
    return Difference(distance.size, differing, worst, where, flushed)


def _check_alike(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ValueError(
            f"got shape {got.shape} of {got.dtype}, expected {expected.shape} of {expected.dtype}"
        )


def _smallest_normal(dtype: np.dtype[Any]) -> float:
    # bfloat16 has float32's exponents; NumPy's finfo does not know it.
    return float(np.finfo(np.float32 if dtype.name == "bfloat16" else dtype).smallest_normal)


def _distance(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """How many numbers of the dtype lie between; float64 would lose those of float64."""
    a, b = _ordinal(got), _ordinal(expected)
    # The difference of two int64 may need 64 bits and no sign.
    distance: npt.NDArray[np.uint64] = np.maximum(a, b).view(np.uint64) - np.minimum(a, b).view(
        np.uint64
    )
    return distance


def _ordinal(x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return numbers of the floats in their order, so that neighbours differ by one."""
    kind = _BITS[x.dtype.itemsize]
    pattern = x.view(kind).astype(np.int64)
    ordinal: npt.NDArray[np.int64] = np.where(pattern < 0, np.iinfo(kind).min - pattern, pattern)
    return ordinal

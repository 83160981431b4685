"""Numbers that a person would have written, among those that a measurement allows."""

from __future__ import annotations

import math

import numpy as np

USUAL_BASES = (10_000.0, 500_000.0, 1_000_000.0, 100_000.0, 50_000.0, 1e7, 150_000.0, 160_000.0)


def digits(value: float) -> int:
    """Return how many significant decimal digits a number takes."""
    if value == 0 or not math.isfinite(value):
        return 1
    mantissa = f"{value:.16e}".partition("e")[0].replace(".", "").lstrip("-")
    for count in range(1, 17):
        if float(f"{value:.{count - 1}e}") == value:
            return count
    return len(mantissa)


def simplest(low: float, high: float) -> float:
    """Return the number of fewest decimal digits in an interval, near its middle."""
    middle = (low + high) / 2
    if not (math.isfinite(middle) and low < high):
        return middle
    for count in range(1, 18):
        value = float(f"{middle:.{count - 1}e}")
        if low <= value <= high:
            return value
    return middle


def simplest_whole(low: float, high: float) -> int | None:
    """Return the whole number in an interval that is a length: a power of two, or a round one."""
    first, last = max(1, math.ceil(low)), math.floor(min(high, 2.0**40))
    if first > last:
        return None
    for unit in (1, 3, 5, 7):
        exponent = math.ceil(math.log2(first / unit)) if first > unit else 0
        if first <= unit * 2**exponent <= last and unit * 2**exponent >= 128:
            return int(unit * 2**exponent)
    for step in (10.0**k for k in range(int(math.log10(last)), 0, -1)):
        value = math.ceil(first / step) * step
        if first <= value <= last:
            return int(value)
    for exponent in range(int(math.log2(last)), 0, -1):
        value = math.ceil(first / 2**exponent) * 2**exponent
        if first <= value <= last:
            return int(value)
    return first


def intersection(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float] | None:
    """Return where all intervals meet."""
    low, high = float(np.max(lows)), float(np.min(highs))
    return (low, high) if low <= high else None

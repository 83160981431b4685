"""Checks of numbers that describe something; an error names the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: Any) -> int:
    """Return a positive whole number as an int, or raise."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    if value <= 0:
        raise ValueError(f"{name}: got {value}, expected a positive number")
    return int(value)


def count(name: str, value: Any) -> int:
    """Return a whole number of 0 or more as an int, or raise."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    if value < 0:
        raise ValueError(f"{name}: got {value}, expected 0 or more")
    return int(value)


def positive(name: str, value: Any) -> float:
    """Return a positive, finite number as a float, or raise."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    try:
        number = float(value)
    except OverflowError:  # whole numbers know no infinity
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: got {number}, expected a positive, finite number")
    return number


def check_bool(name: str, value: Any) -> None:
    """Raise unless value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected True or False")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, choices))}")


def even_dim(name: str, value: Any, most: int, most_name: str) -> int:
    """Return a positive even number up to `most`, or raise."""
    number = whole(name, value)
    if number % 2 or number > most:
        raise ValueError(
            f"{name}: got {number}, expected an even number up to {most_name} = {most}"
        )
    return number

"""Cases that are functions of arrays: inputs, the call, and what an oracle expects of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ALL_DTYPES = ("float16", "bfloat16", "float32", "float64")
WIDE = ("float32", "float64")
EAGER_AND_COMPILED = ("eager", "lazy", "compiled", "exported")
GRADIENTS = ("gradient", "compiled gradient")


class Expected(NamedTuple):
    """An output, and how far off it may be; to the bit where nothing is allowed."""

    value: Array
    allowed: Array | None = None
    low: Array | None = None
    """Of a float64 value the rest of the real number, from which 0.501 ulp are allowed."""
    name: str = ""
    """Which of many outputs it is."""


@dataclass(frozen=True, eq=False)
class FunctionCase:
    """One function.

    Attributes
    ----------
    id, comment
        As for :class:`rotary.conformance.cases.Case`.
    call : callable
        f(x, *more) of a library's arrays; returns an array or a tuple of them.
    inputs : callable
        (random numbers, dtype, elements) → x, *more on the host; x has that dtype.
    expected : callable
        f(x, *more) on the host → what has to come out, one for each output.
    gradient : callable, optional
        (direction, x, *more) → the gradient of ⟨f(x), direction⟩ by x, for ways that differentiate.
    ways, dtypes
        As for ``Case``.
    refused : mapping of str to str
        A pattern of library/way/dtype → why it cannot run there.
    """

    id: str
    comment: str
    call: Callable[..., Any]
    inputs: Callable[[np.random.Generator, np.dtype[Any], int], tuple[Array, ...]]
    expected: Callable[..., tuple[Expected, ...]]
    gradient: Callable[..., Expected] | None = None
    ways: tuple[str, ...] | None = EAGER_AND_COMPILED
    dtypes: tuple[str, ...] = WIDE
    level: str = "bitwise"
    refused: Mapping[str, str] = field(default_factory=dict)
    kind: str = "function"

    def reason_not_to_run(self, library: str, way: str, dtype: str) -> str | None:
        """Return why it cannot run there, or None."""
        name = f"{library}/{way}/{dtype}"
        reasons = (why for pattern, why in self.refused.items() if fnmatchcase(name, pattern))
        return next(reasons, None)

    def random(self) -> np.random.Generator:
        """Return this case's own source of numbers."""
        return np.random.default_rng(zlib.crc32(self.id.encode()))


def every() -> tuple[FunctionCase, ...]:
    """Return all cases."""
    # Late: they are made from the class above.
    from rotary.conformance import attention_cases, encodings, golden_cases, linear_cases

    return (
        *encodings.learned_frequencies(),
        *encodings.sinusoidal(),
        *encodings.learned_positions(),
        *encodings.absolute(),
        *encodings.packed(),
        *attention_cases.softmax(),
        *attention_cases.shaw(),
        *attention_cases.biases(),
        *linear_cases.every(),
        *golden_cases.every(),
    )

"""NumPy: eager, functional and in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.conformance.libraries import Function, Library, Way


def library() -> Library:
    """Return NumPy."""
    return Library(
        name="numpy",
        version=np.__version__,
        dtypes=("float16", "bfloat16", "float32", "float64"),
        from_host=np.array,
        to_host=np.asarray,
        ways=(Way("eager", "value", eager), Way("in place", "value", in_place)),
    )


def eager(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    """f(x) as it comes."""
    return f(x, *more)


def in_place(f: Function, x: npt.NDArray[Any], direction: Any, *more: Any) -> Any:
    """f(x) written into x."""
    returned = f(x, *more, out=x)
    assert returned is x
    return x

"""array-api-strict: the standard and nothing else, through the generic backend."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import numpy.typing as npt

from rotary.conformance.libraries import Library, Way
from rotary.conformance.libraries._numpy import eager, in_place


def library() -> Library:
    """Return array-api-strict."""
    return Library(
        name="array-api-strict",
        version=array_api_strict.__version__,
        dtypes=("float32", "float64"),
        from_host=_from_host,
        to_host=np.asarray,
        ways=(Way("eager", "value", eager), Way("in place", "value", in_place)),
    )


def _from_host(host: npt.NDArray[Any]) -> Any:
    return array_api_strict.asarray(host, copy=True)

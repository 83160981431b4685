"""dask on NumPy, in several chunks, through the generic backend: lazy until the end."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt

from rotary.conformance.libraries import Library, Way
from rotary.conformance.libraries._numpy import eager, in_place


def library() -> Library:
    """Return dask."""
    return Library(
        name="dask",
        version=version("dask"),
        dtypes=("float16", "bfloat16", "float32", "float64"),
        from_host=_from_host,
        to_host=_to_host,
        ways=(Way("lazy", "value", eager), Way("in place", "value", in_place)),
    )


def _from_host(host: npt.NDArray[Any]) -> Any:
    # Two chunks an axis, so that tables and arrays have to meet chunk by chunk.
    return dask.array.from_array(host.copy(), chunks=tuple(-(-n // 2) for n in host.shape))


def _to_host(x: Any) -> npt.NDArray[Any]:
    return np.asarray(x.compute())

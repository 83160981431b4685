"""array-api-strict: the standard and nothing else, through the generic backend.

Its devices hold no other memory, but find code that forgets where an array is, or that makes
numbers of 64 bits where there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import numpy.typing as npt

from rotary.conformance.libraries import Function, Library, Way
from rotary.conformance.libraries._numpy import eager, in_place

_DEVICES = {"device1": "on device1", "no_float64": "without float64", "no_x64": "without x64"}


def library() -> Library:
    """Return array-api-strict."""
    ways = [Way("eager", "value", eager), Way("in place", "value", in_place)]
    for name, words in _DEVICES.items():
        refused = {} if name == "device1" else {"float64": f"device {name} has no float64"}
        ways.append(Way(f"eager, {words}", "value", _on(name), refused))
    return Library(
        name="array-api-strict",
        version=array_api_strict.__version__,
        dtypes=("float32", "float64"),
        from_host=_from_host,
        to_host=_to_host,
        ways=tuple(ways),
    )


def _from_host(host: npt.NDArray[Any]) -> Any:
    return array_api_strict.asarray(host, copy=True)


def _to_host(x: Any) -> npt.NDArray[Any]:
    return np.asarray(x.to_device(array_api_strict.Device("CPU_DEVICE")))


def _on(name: str) -> Callable[..., Any]:
    device = array_api_strict.Device(name)

    def run(f: Function, x: Any, direction: Any, *more: Any) -> Any:
        result = f(*(array.to_device(device) for array in (x, *more)))
        for array in result if isinstance(result, tuple) else (result,):
            if array.device != device:
                raise ValueError(f"got a result on {array.device}, expected {device}")
        return result

    return run

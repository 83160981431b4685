"""CuPy on CUDA devices: eager, in place, and on a device that is not the first."""

from __future__ import annotations

from typing import Any

import cupy
import ml_dtypes
import numpy as np

from rotary.conformance.libraries import CannotRunError, Function, Library, Way
from rotary.conformance.libraries._numpy import eager, in_place

DEVICES = ("cuda",)


def library() -> Library:
    """Return CuPy on its current device, or raise :class:`CannotRunError`."""
    try:
        (cupy.ones(1, np.float32) + 1).get()
    except Exception as error:
        raise CannotRunError(f"cupy cannot compute here: {error}") from error
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    one_device = None
    if cupy.cuda.runtime.getDeviceCount() < 2:
        one_device = "one CUDA device only"
    return Library(
        name="cupy",
        version=f"{cupy.__version__} on {device['name'].decode()}",
        dtypes=("float16", *_bfloat16(), "float32", "float64"),
        from_host=cupy.array,
        to_host=cupy.asnumpy,
        ways=(
            Way("eager", "value", eager),
            Way("eager, second device", "value", _on_second_device, unavailable=one_device),
            Way("in place", "value", in_place),
        ),
    )


def _bfloat16() -> tuple[str, ...]:
    """Return bfloat16 where CuPy has it: from version 14, with CUDA 12.2."""
    try:
        cupy.ones(1, np.float32).astype(ml_dtypes.bfloat16).get()
    except Exception:  # CuPy 13 fails in several places, compilers in their own ways
        return ()
    return ("bfloat16",)


def _on_second_device(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    # Through the host: another device would not wait for what the first one still computes.
    hosts = [cupy.asnumpy(array) for array in (x, *more)]
    with cupy.cuda.Device(1):
        return f(*map(cupy.asarray, hosts))

"""MLX, through the generic backend: eager, in place, compiled, vmapped and differentiated."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rotary.conformance.libraries import Function, Library, Way
from rotary.conformance.libraries._numpy import eager, in_place


def library() -> Library:
    """Return MLX on its default device."""
    refused = {}
    if mx.default_device().type != mx.DeviceType.cpu:
        refused["float64"] = "MLX has float64 on its CPU device only"
    ways = (
        Way("eager", "value", eager, refused),
        Way("in place", "value", in_place, refused),
        Way("vmapped", "value", _vmapped, refused),
        Way("gradient", "adjoint", _gradient, refused),
        Way("tangent", "tangent", _tangent, refused),
        Way("compiled", "value", _compiled, refused),
        Way("compiled chain", "chain", _compiled_chain, refused),
        Way("compiled gradient", "adjoint", _compiled_gradient, refused),
    )
    return Library(
        name="mlx",
        version=version("mlx"),
        dtypes=("float16", "bfloat16", "float32", "float64"),
        from_host=_from_host,
        to_host=_to_host,
        ways=ways,
        table_gradient=_table_gradient,
    )


def _from_host(host: npt.NDArray[Any]) -> mx.array:
    # Unless it is told the dtype, MLX makes float32 of float64.
    kind = "bool_" if host.dtype == bool else host.dtype.name
    return mx.array(host, getattr(mx, kind))


def _to_host(x: mx.array) -> npt.NDArray[Any]:
    if x.dtype == mx.bfloat16:  # which the buffer protocol does not know
        return np.asarray(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)


def _vmapped(f: Function, x: mx.array, direction: Any, *more: Any) -> Any:
    return mx.vmap(lambda x: f(x, *more), in_axes=1, out_axes=1)(x)


def _gradient(f: Function, x: mx.array, direction: mx.array, *more: Any) -> Any:
    return mx.vjp(lambda x: f(x, *more), [x], [direction])[1][0]


def _tangent(f: Function, x: mx.array, direction: mx.array, *more: Any) -> Any:
    return mx.jvp(lambda x: f(x, *more), [x], [direction])[1][0]


def _compiled(f: Function, x: mx.array, direction: Any, *more: Any) -> Any:
    return mx.compile(lambda *arrays: f(*arrays))(x, *more)


def _compiled_chain(f: Function, x: mx.array, direction: Any, *more: Any) -> Any:
    return mx.compile(lambda x, *more: f(f(x, *more), *more))(x, *more)


def _compiled_gradient(f: Function, x: mx.array, direction: mx.array, *more: Any) -> Any:
    return mx.compile(lambda *arrays: _gradient(f, *arrays))(x, direction, *more)


def _table_gradient(f: Function, x: Any, cos: Any, sin: Any, direction: Any) -> tuple[Any, Any]:
    by_cos, by_sin = mx.vjp(lambda cos, sin: f(x, cos, sin), [cos, sin], [direction])[1]
    return by_cos, by_sin

"""ndonnx, through the generic backend: its arrays are parts of ONNX graphs.

"eager" propagates constants; "exported" builds a graph of an unknown x, which onnxruntime runs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import ndonnx
import numpy.typing as npt

from rotary.conformance.libraries import Function, Library, Way
from rotary.conformance.libraries._numpy import eager, in_place


def library() -> Library:
    """Return ndonnx."""
    no_runtime = None
    if find_spec("onnxruntime") is None:
        no_runtime = "onnxruntime, which runs the graphs, is not installed"
    return Library(
        name="ndonnx",
        version=ndonnx.__version__,
        dtypes=("float16", "float32", "float64"),
        from_host=ndonnx.asarray,
        to_host=_to_host,
        ways=(
            Way("eager", "value", eager),
            Way("in place", "value", in_place),
            Way("exported", "value", _exported, unavailable=no_runtime),
            Way("exported chain", "chain", _exported_chain, unavailable=no_runtime),
        ),
    )


def _to_host(x: Any) -> npt.NDArray[Any]:
    host: npt.NDArray[Any] = x.unwrap_numpy()
    return host


def _exported(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    import onnxruntime

    given = {f"x{i}": array for i, array in enumerate((x, *more))}
    unknown = {n: ndonnx.argument(shape=a.shape, dtype=a.dtype) for n, a in given.items()}
    result = f(*unknown.values())
    several = isinstance(result, tuple)
    outputs = {f"y{i}": array for i, array in enumerate(result if several else (result,))}
    model = ndonnx.build(unknown, outputs)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = session.run(list(outputs), {name: _to_host(array) for name, array in given.items()})
    return tuple(map(ndonnx.asarray, values)) if several else ndonnx.asarray(values[0])


def _exported_chain(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return _exported(lambda x, *more: f(f(x, *more), *more), x, direction, *more)

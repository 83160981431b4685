"""Data types by name: the dtype objects of two libraries have nothing in common."""

from __future__ import annotations

from typing import Any

# Tables and products are kept in this dtype; 16-bit inputs are rounded once, at the end.
COMPUTE_DTYPE = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}
WHOLE_DTYPES = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))

# By array type first: dtype objects of different libraries do not compare.
_names: dict[type, dict[Any, str]] = {}


def dtype_name(x: Any) -> str:
    """Return the bare name of an array's dtype, such as ``"float32"`` or ``"bfloat16"``."""
    names = _names.get(type(x))
    if names is None:
        names = _names[type(x)] = {}
    name = names.get(x.dtype)
    if name is None:
        name = names[x.dtype] = name_of_dtype(x.dtype)
    return name


def name_of_dtype(dtype: Any) -> str:
    """Return the bare name of a dtype object of any library, or of its name."""
    # "float32", "torch.float32", "array_api_strict.float32", "<class 'numpy.float32'>"
    return str(dtype).rpartition(".")[2].rstrip("'>")

"""Which backend owns an array.

A backend is a module (or any object) that answers :class:`Backend`.  It is found by the type of the
array and imported only when an array of its library turns up; nothing here imports a library.
Third parties add one by an entry point of the group ``rotary.backends``, named like the top-level
module that defines their array type.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any, cast

from rotary.backends._protocol import Backend

__all__ = ["Backend", "owner_of"]

ENTRY_POINT_GROUP = "rotary.backends"

# Top-level module of the array's type → backend.
_SHIMS = {"numpy": "_numpy", "torch": "_torch", "jax": "_jax", "jaxlib": "_jax"}

_owners: dict[type, Backend] = {}
_lock = threading.Lock()


def owner_of(array: Any, name: str = "x") -> Backend:
    """Return the backend that owns an array.

    Parameters
    ----------
    array : array
        Of any library.
    name : str
        How to call the argument in an error.

    Raises
    ------
    TypeError
        If it is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> owner_of(np.zeros(3)).name
    'numpy'
    """
    owner = _owners.get(type(array))
    return _find(array, name) if owner is None else owner


def _find(array: Any, name: str) -> Backend:
    if not (hasattr(array, "shape") and hasattr(array, "dtype")) or not hasattr(array, "ndim"):
        raise TypeError(
            f"{name}: got {type(array).__module__}.{type(array).__qualname__}, expected an array"
        )
    with _lock:
        backend = _load(type(array))
    if backend is None:
        backend = _generic_if_conforming(array, name)
    _owners[type(array)] = backend
    return backend


def _load(kind: type) -> Backend | None:
    """Return the backend of a type by the modules that define it and its bases, or None."""
    roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
    for root in roots:
        if root in _SHIMS:
            return cast(Backend, import_module(f"rotary.backends.{_SHIMS[root]}"))
    # Late: reading the metadata of installed packages costs more than importing the core.
    from importlib.metadata import entry_points

    for root in roots:
        for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=root):
            return cast(Backend, entry_point.load())
    return None


def _generic_if_conforming(array: Any, name: str) -> Backend:
    from rotary.backends import _generic

    try:
        _generic.namespace(array)
    except TypeError as error:
        raise TypeError(
            f"{name}: got {type(array).__module__}.{type(array).__qualname__}, expected an array "
            f"of NumPy, torch, JAX or another library with the array API standard"
        ) from error
    return cast(Backend, _generic)

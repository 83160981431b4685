"""Which backend owns an array.

A backend is a module (or any object) that answers :class:`Backend`.  It is found by the type of the
array and imported only when an array of its library turns up; nothing here imports a library.
Third parties add one by an entry point of the group ``rotary.backends``, named like the top-level
module that defines their array type.
"""

from __future__ import annotations

from typing import Any, cast

from rotary.backends._protocol import Backend, Turn, Wanted

__all__ = ["Backend", "Turn", "Wanted", "library", "owner_of"]

ENTRY_POINT_GROUP = "rotary.backends"

_owners: dict[type, Backend] = {}


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


def library(array: Any) -> str:
    """Return what to call an array's library in an error."""
    owner = owner_of(array)
    return type(array).__module__.partition(".")[0] if owner.name == "generic" else owner.name


def _find(array: Any, name: str) -> Backend:
    if not (hasattr(array, "shape") and hasattr(array, "dtype")) or not hasattr(array, "ndim"):
        raise TypeError(
            f"{name}: got {type(array).__module__}.{type(array).__qualname__}, expected an array"
        )
    backend: Backend | None = _load(type(array))
    if backend is None:
        backend = _generic_if_conforming(array, name)
    _owners[type(array)] = backend
    return backend


def _load(kind: type) -> Any:
    """Return the backend of a type by the modules that define it and its bases, or None."""
    roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
    for root in roots:
        shim = _shim(root)
        if shim is not None:
            return shim
    # Late: reading the metadata of installed packages costs more than importing the core.
    from importlib.metadata import entry_points

    for root in roots:
        for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=root):
            return entry_point.load()
    return None


def _shim(root: str) -> Any:
    """Return the backend for types of this top-level module, or None."""
    # Import statements, with no lock around them and no cast after them: a compiled call may be
    # the first one of a program, and torch.compile(fullgraph=True) follows nothing else.
    if root == "numpy":
        from rotary.backends import _numpy

        return _numpy
    if root == "torch":
        from rotary.backends import _torch

        return _torch
    if root == "cupy":
        from rotary.backends import _cupy

        return _cupy
    if root in ("jax", "jaxlib"):
        from rotary.backends import _jax

        return _jax
    return None


def _generic_if_conforming(array: Any, name: str) -> Backend:
    from rotary.backends import _generic

    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    try:
        missing = _generic.missing(array)
    except TypeError as error:
        raise TypeError(
            f"{name}: got {kind}, expected an array of NumPy, CuPy, torch, JAX or another library "
            f"with the array API standard"
        ) from error
    if missing:
        raise TypeError(
            f"{name}: got {kind}, expected an array of a library with the array API standard; "
            f"{_generic.namespace(array).__name__} lacks {', '.join(missing)}"
        )
    return cast(Backend, _generic)

"""A library of somebody else: any module that says how its arrays are made.

It is one with a function ``library()`` that returns a :class:`Library`, as the files beside this
one; a backend (``rotary/backends/_protocol.py``), whose ``from_host(host)`` or, if it has none,
``to_device(host, host)`` makes an array; or an array library, whose ``asarray(host)`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary import backends
from rotary.conformance.libraries import KNOWN, CannotRunError, Library, NotInstalledError, Way
from rotary.conformance.libraries._numpy import eager, in_place
from rotary.conformance.subject import numpy_dtype
from rotary.dtypes import dtype_name

_DTYPES = ("float16", "bfloat16", "float32", "float64")
# By these a module is taken for a backend.
_OF_A_BACKEND = ("namespace", "product", "to_device", "to_host")


def library(name: str) -> Library:
    """Return the library of a module."""
    try:
        module = import_module(name)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise NotInstalledError(
            f"backend {name!r} is unknown; known are {', '.join(KNOWN)}, and modules that can be "
            f"imported: {reason}"
        ) from error
    except Exception as error:
        raise CannotRunError(f"{name} cannot be imported: {_one_line(error)}") from error
    if hasattr(module, "library") and not _is_backend(module):
        made = module.library()
        if not isinstance(made, Library):
            raise CannotRunError(
                f"{name}.library() gives {type(made).__name__}, expected "
                f"rotary.conformance.libraries.Library"
            )
        return replace(made, name=name)
    return _described(name, module)


def _is_backend(module: Any) -> bool:
    return all(hasattr(module, function) for function in _OF_A_BACKEND)


def _described(name: str, module: Any) -> Library:
    """Return the library whose arrays the module makes, as far as its arrays tell."""
    from_host = _from_host(name, module)
    try:
        array = from_host(np.zeros(1, np.float32))
    except Exception as error:
        raise CannotRunError(f"{name} makes no array: {_one_line(error)}") from error
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    try:
        owner = backends.owner_of(array, kind)
    except TypeError as error:
        if not _is_backend(module):
            raise CannotRunError(str(error)) from error
        owner = None
    if owner is None or (_is_backend(module) and owner is not module):
        raise CannotRunError(
            f"arrays of {kind} belong to {'no backend' if owner is None else owner.name}: is its "
            f"entry point of the group {backends.ENTRY_POINT_GROUP} installed?"
        )
    dtypes = tuple(
        d for d in ("float16", "bfloat16", "float32", "float64") if _has(module, name, d)
    )
    if not dtypes:
        raise CannotRunError(f"no dtype of NumPy's goes into a {kind} and comes back")
    immutable = owner.refuse_out(array, (array,))
    return Library(
        name=name,
        version=_version(module),
        dtypes=dtypes,
        from_host=from_host,
        to_host=owner.to_host,
        ways=(
            Way("eager", "value", eager),
            Way("in place", "value", in_place, unavailable=immutable),
        ),
    )


def _from_host(name: str, module: Any) -> Callable[[npt.NDArray[Any]], Any]:
    if hasattr(module, "from_host"):
        made: Callable[[npt.NDArray[Any]], Any] = module.from_host
        # In place, the suite's own numbers must not change.
        return lambda host: made(host.copy())
    if _is_backend(module):
        return lambda host: module.to_device(host.copy(), host)
    if hasattr(module, "asarray"):
        return lambda host: module.asarray(host.copy())
    raise CannotRunError(
        f"{name} is no backend (which has {', '.join(_OF_A_BACKEND)} and the others of "
        f"rotary.backends.Backend), and has neither library() nor asarray()"
    )


def _has(module: Any, name: str, dtype: str) -> bool:
    """Whether numbers of this dtype go in and come back as they were."""
    host = np.array([1.5, -2.0, 0.0], numpy_dtype(dtype))
    try:
        array = _from_host(name, module)(host)
        back = backends.owner_of(array).to_host(array)
    except Exception:  # whatever a library says of a dtype that it has not
        return False
    return dtype_name(array) == dtype and back.dtype == host.dtype and bool((back == host).all())


def _version(module: Any) -> str:
    """Return the version of a module, or of the distribution that it may belong to."""
    top = module.__name__.partition(".")[0]
    found = getattr(module, "__version__", None)
    try:
        return str(found or version(top))
    except PackageNotFoundError:
        return "of unknown version"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

"""Array libraries as the suite runs them: arrays in and out, and every way to run a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy.typing as npt

# Name on the command line → (file here, module that must be importable).
KNOWN = {
    "numpy": ("_numpy", "numpy"),
    "torch": ("_torch", "torch"),
    "jax": ("_jax", "jax"),
    "cupy": ("_cupy", "cupy"),
    "array-api-strict": ("_strict", "array_api_strict"),
    "mlx": ("_mlx", "mlx"),
    "dask": ("_dask", "dask"),
    "ndonnx": ("_ndonnx", "ndonnx"),
}

# What may be asked for; a library that has more than its processor says so in its file's DEVICES.
DEVICES = ("cpu", "cuda")

Function = Callable[..., Any]


@dataclass(frozen=True)
class Way:
    """A way to run a function f of one array.

    Attributes
    ----------
    name : str
        Such as "eager" or "compiled gradient"; after a comma, where or how: "eager, x64".
    quantity : {"value", "adjoint", "tangent", "chain"}
        What comes out: f(x); the gradient of ⟨f(x), direction⟩; the derivative of f along
        direction; f(f(x)).
    run : callable
        ``run(f, x, direction, *more)`` on arrays of the library; f takes x and what is more.
    refused : mapping of str to str
        dtype → why this way cannot run with it.
    unavailable : str, optional
        Why it cannot run at all on this machine.
    """

    name: str
    quantity: str
    run: Callable[..., Any]
    refused: Mapping[str, str] = field(default_factory=dict)
    unavailable: str | None = None


@dataclass(frozen=True)
class Library:
    """An array library under test."""

    name: str
    version: str
    dtypes: tuple[str, ...]
    from_host: Callable[[npt.NDArray[Any]], Any]
    to_host: Callable[[Any], npt.NDArray[Any]]
    ways: tuple[Way, ...]
    table_gradient: Callable[[Function, Any, Any, Any, Any], tuple[Any, Any]] | None = None
    """``(f, x, cos, sin, direction)`` → gradients of ⟨f(x, cos, sin), direction⟩ by cos and sin."""


class NotInstalledError(Exception):
    """A library that was asked for cannot be imported, or cannot run on this machine."""


class CannotRunError(Exception):
    """Why a library cannot run on this machine, though it may be installed."""


def installed() -> list[str]:
    """Return the names of the known libraries that this environment has."""
    return [name for name, (_, module) in KNOWN.items() if find_spec(module) is not None]


def load(name: str, device: str | None = None) -> Library:
    """Return a library by name, or raise :class:`NotInstalledError` saying why not.

    A name that is not known here is a module that can be imported: see ``_other.py``.  Its arrays
    are on a device of DEVICES, or wherever the library puts them.
    """
    try:
        return _load(name, device) if name in KNOWN else _load_other(name, device)
    except CannotRunError as error:
        raise NotInstalledError(f"backend {name!r} was asked for, but {error}") from error


def load_installed(device: str | None = None) -> tuple[list[Library], dict[str, str]]:
    """Return the libraries that run here, and why others do not that are installed.

    Raises :class:`NotInstalledError` where none has the device that is asked for.
    """
    loaded: list[Library] = []
    left_out: dict[str, str] = {}
    for name in installed():
        try:
            loaded.append(_load(name, device))
        except CannotRunError as error:
            left_out[name] = str(error)
    if device is not None and not loaded:
        reasons = "; ".join(left_out.values())
        raise NotInstalledError(
            f"device {device!r} was asked for, and no library has it: {reasons}"
        )
    return loaded, left_out


def _load(name: str, device: str | None) -> Library:
    file, module = KNOWN[name]
    try:
        found = import_module(f"{__name__}.{file}")
        devices = getattr(found, "DEVICES", ("cpu",))
        if device is not None and device not in devices:
            raise CannotRunError(f"{module} computes on {', '.join(devices)} alone")
        library: Library = found.library(device) if len(devices) > 1 else found.library()
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise CannotRunError(f"{module} cannot be imported: {reason}") from error
    return library


def _load_other(name: str, device: str | None) -> Library:
    from rotary.conformance.libraries import _other

    if device is not None:
        raise CannotRunError(f"the module itself says on which device, not device {device!r}")
    return _other.library(name)

"""Fused kernels: the bits of the generic code, as fast as the memory allows.

Each kernel serves the calls that it fits and leaves the others to the array code; the conformance
suite holds both to the same bits.  ``ROTARY_DISABLE_KERNELS`` names those that are to stay off,
with commas between, or is ``all``; it is read once, when the first kernel is asked for.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib import import_module
from types import ModuleType

from rotary.backends.kernels._threads import get_num_threads, set_num_threads

__all__ = ["disabled", "get_num_threads", "kernel", "off", "reasons", "set_num_threads"]

VARIABLE = "ROTARY_DISABLE_KERNELS"
# Name → the module here that holds it, and what that needs.
KNOWN = {
    "rotation": ("_cpu_rotation", "numba"),
    "tables": ("_cpu_tables", "numba"),
    "linear": ("_cpu_linear", "numba"),
    "blocks": ("_blocks", "NumPy"),
    "triton": ("_triton_rotation", "Triton"),
    "cuda": ("_cuda_rotation", "CuPy"),
}


@lru_cache(maxsize=1)
def disabled() -> frozenset[str]:
    """Return the names of the kernels that are switched off, or raise for one that is unknown."""
    names = frozenset(filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))))
    if names <= {"all", "1"}:
        return frozenset(KNOWN) if names else names
    if names - set(KNOWN):
        unknown = ", ".join(sorted(names - set(KNOWN)))
        raise ValueError(f"{VARIABLE}: got {unknown}, expected all, or some of {', '.join(KNOWN)}")
    return names


@lru_cache(maxsize=len(KNOWN))
def kernel(name: str) -> ModuleType | None:
    """Return the module of a kernel, or None where it is switched off or cannot be imported."""
    if name in disabled():
        return None
    try:
        return import_module(f"{__name__}.{KNOWN[name][0]}")
    except ImportError:
        return None


def compiler_in_use() -> bool:
    """Whether what compiles the CPU kernels was imported: that alone takes 0.4 s."""
    return "numba" in sys.modules


def off(name: str) -> str | None:
    """Return why a kernel does not run, or None: for reports."""
    if name in disabled():
        return f"switched off by {VARIABLE}"
    return None if kernel(name) is not None else f"{KNOWN[name][1]} cannot be imported"


def reasons() -> dict[str, str | None]:
    """Return for every kernel why it does not run, or None."""
    return {name: off(name) for name in KNOWN}

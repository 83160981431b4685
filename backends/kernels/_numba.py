"""Compilation by Numba, as all of the kernels on the CPU have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.extending import register_jitable

if numba.config.DISABLE_JIT:
    raise ImportError("numba: got NUMBA_DISABLE_JIT set, under which it compiles nothing")

# What a kernel calls; nothing is vectorised unless all of it is inlined.  A kernel in Numba's cache
# is told from others by what it closes over, and `numba.njit` makes others in every process.
inlined: Callable[[Any], Any] = register_jitable(forceinline=True)


def compiled(signature: Any, function: Callable[..., None]) -> Any:
    """Return the kernel of a signature, compiled or read from Numba's cache on disk."""
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to write: neither beside the file nor in the user's own cache
        return numba.njit(signature, nogil=True)(function)

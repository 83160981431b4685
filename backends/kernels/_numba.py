"""Compilation by Numba, as all of the kernels on the CPU have it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic, register_jitable

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


def source_of(*modules: ModuleType) -> int:
    """Return a number that changes with the text of modules whose functions a kernel calls.

    Numba looks at the date of the kernel's own file alone, and no further than into what its
    function closes over: this number.  It could be the functions, but their pickles are different
    bytes when Python has just compiled them and when it has read them from its own cache.
    """
    text = hashlib.sha256()
    for module in modules:
        loader: Any = module.__loader__
        text.update(loader.get_data(module.__file__))
    return int.from_bytes(text.digest()[:7])


@intrinsic
def pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to elements of like's type.

    What is known to lie side by side can be vectorised; an array's last stride is not known.
    """
    kind = types.CPointer(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, like), generate

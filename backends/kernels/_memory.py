"""Fresh memory in large pages, where the system has them to offer.

A page is made when it is first written: 8192 of the usual ones for 32 MiB, which takes longer than
to rotate them.  NumPy asks for large pages by itself; other libraries can be helped.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import lru_cache

LEAST_BYTES = 2**22
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


def ask_for_large_pages(address: int, nbytes: int) -> None:
    """Ask for large pages under memory that was not written yet; where there are none, do nothing.

    It is advice about pages that lie wholly within; what the memory holds is not touched.
    """
    madvise = _madvise()
    if madvise is None or nbytes < LEAST_BYTES:
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (address + nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), _ADVICE)


@lru_cache(maxsize=1)
def _madvise() -> Callable[..., int] | None:
    if _ADVICE is None:  # Linux alone has it
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), "madvise", None)
    return found

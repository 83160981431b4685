"""What a backend answers: the few things in which array libraries differ.

Everything else is array-API code in ``rotary/``.  A module whose functions have these names and
signatures is a backend.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt


class Wanted(NamedTuple):
    """Which tables a program needs, all of it by value."""

    token: str
    """Names the frequencies: ``Frequencies.from_token``."""
    length: int
    """Length of sequence that their scaling is for; 0 where it does not matter."""
    power: int
    """Power of the attention factor that multiplies them."""
    pairs: int
    dtype: str
    role: int = 0
    """Sign of the exponent of XPos's scale; 0 without one."""


class Backend(Protocol):
    """One array library."""

    @property
    def name(self) -> str:
        """Its name in errors and reports."""
        ...

    def namespace(self, x: Any, /) -> Any:
        """Return the array-API namespace of x."""
        ...

    def device_key(self, x: Any, /) -> Hashable | None:
        """Return something equal for arrays on the same device; None where x has no device yet."""
        ...

    def same_device(self, x: Any, other: Any, /) -> bool:
        """Whether x and other, both of this library, meet without a transfer."""
        ...

    def is_traced(self, x: Any, /) -> bool:
        """Whether x's values are known only when a compiled program runs."""
        ...

    def to_device(self, host: npt.NDArray[Any], like: Any, /) -> Any:
        """Return a host table as an array that meets `like` without a transfer.

        It may share the host's memory, and may be the host array itself where `like` is traced.
        """
        ...

    def to_host(self, x: Any, /) -> npt.NDArray[Any]:
        """Return x's values as a NumPy array, waiting for its device.

        Raises a TypeError that says what was got, where x has none.
        """
        ...

    def product(self, x: Any, factor: Any, /) -> Any:
        """x·factor, rounded before anything is added to it; so are its gradients."""
        ...

    def widen(self, x: Any, dtype: str, /) -> Any:
        """Return a 16-bit x in the dtype of that name; its gradient is rounded back once."""
        ...

    def narrow(self, x: Any, dtype: Any, /) -> Any:
        """Return x rounded to a 16-bit dtype, whatever a compiler does with the result."""
        ...

    def deferred_tables(self, wanted: Wanted, rows: Any, like: Any, /) -> tuple[Any, Any] | None:
        """Return tables as a step of the program being compiled; None where none is."""
        ...

    def refuse_out(self, out: Any, inputs: tuple[Any, ...], /) -> str | None:
        """Why a result of `inputs` cannot be written to out, or None."""
        ...

    def synchronize(self, x: Any, /) -> None:
        """Wait until x is computed."""
        ...

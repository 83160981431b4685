"""What a backend answers: the few things in which array libraries differ.

Everything else is array-API code in ``rotary/``.  A module whose functions have these names and
signatures is a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
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
    axes: int = 1
    """Number of position axes."""


class Turn(NamedTuple):
    """How pairs of features rotate, all of it by value."""

    layout: str
    """"half" or "interleaved"."""
    side: str
    """Which features rotate where tables have fewer: "leading" or "trailing"."""
    blocks: tuple[int, ...] | None
    """Pairs in each block that is laid out on its own; None for one block of all."""
    inverse: bool


class Chunked(NamedTuple):
    """Causal linear attention over chunks, all of it by value: what a kernel for it knows."""

    feature_map: str
    """"identity", "elu+1", "relu", "relu2" or "exp"."""
    rotate: str | None
    """Placement of the rotation; None without one."""
    layout: str
    side: str
    scale: float
    eps: float | None
    """None without the normaliser."""


class Memory(NamedTuple):
    """How arrays of a library on the host are NumPy's, without a copy."""

    seen: Callable[[Any], npt.NDArray[Any]]
    """``seen(x)`` → x's memory, if it holds numbers that NumPy has."""
    owned: Callable[[npt.NDArray[Any]], Any]
    """``owned(host)`` → new memory as an array of the library."""
    empty: Callable[[tuple[int, ...], Any], Any]
    """``empty(shape, like)`` → an array of like's dtype."""
    widen: Callable[[Any, str], Any]
    narrow: Callable[[Any, Any], Any]


class Operation(NamedTuple):
    """A function of arrays that compilers take whole, with its gradient.

    Unrolling such a function into a compiled program would take them minutes.  `static`, in every
    signature, is a string that holds all that is not an array.
    """

    name: str
    """``"module:attribute"``, where a compiled program finds this record again."""
    forward: Callable[..., tuple[Any, ...]]
    """``forward(static, *inputs)`` → the outputs, arrays of their own."""
    backward: Callable[..., tuple[Any, ...]]
    """``backward(static, inputs, outputs, cotangents)`` → a gradient for each input of floats, None
    for the others."""
    shapes: Callable[..., tuple[tuple[tuple[Any, ...], str], ...]]
    """``shapes(static, *input_shapes)`` → shape and name of the dtype of each output."""


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

    def rows(self, pair: tuple[Any, Any], start: int, stop: int, /) -> tuple[Any, Any]:
        """Return rows start … stop − 1 of two tables, shape (rows, pairs)."""
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

    def rotate(
        self,
        arrays: tuple[Any, ...],
        cos: Any,
        sin: Any,
        turn: Turn,
        outs: tuple[Any, ...] | None,
        /,
    ) -> tuple[Any, ...] | None:
        """Rotate arrays by the same tables, in a fused kernel; None where none fits.

        All was checked: the arrays are of one library, device and dtype, cos and sin broadcast with
        each of them as they are, and each of `outs`, if there are any, can be written and may be
        the array itself.  The bits are those of :func:`rotary.rotation.rotate_aligned`.
        """
        ...

    def linear_chunks(
        self, chunked: Chunked, inputs: tuple[Any, ...], sums: tuple[Any, ...], /
    ) -> tuple[Any, tuple[Any, ...]] | None:
        """Attend causally by a fused kernel; None where none fits.

        `inputs` and `sums` are those of :mod:`rotary.linear.chunks`, with a gate for each head or
        none and without beta and maximum; returned are the outputs (None without queries), in the
        dtype of the queries, and the sums after the tokens, new arrays.  Products and their sums
        are in the dtype of `sums`, in any order.
        """
        ...

    def finite_product(self, x: Any, factor: Any, /) -> Any:
        """x·factor, rounded whatever follows; x is finite data, or NaN, and never a constant.

        It is stricter than `product`, and has no rule for gradients.
        """
        ...

    def bits(self, x: Any, /) -> Any:
        """Return the bit patterns of float32 numbers as int32; those of subnormals may be 0."""
        ...

    def from_bits(self, pattern: Any, /) -> Any:
        """Return the float32 numbers of int32 bit patterns; 0 may stand for subnormals."""
        ...

    def scan(
        self,
        step: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]],
        carry: Any,
        inputs: tuple[Any, ...],
        /,
    ) -> tuple[Any, Any]:
        """Run ``carry, out = step(carry, slices)`` along the first axis of every input, in order.

        Returns the last carry and what the steps put out, stacked along a new first axis.  The
        carry and `out` are arrays, (named) tuples of them, or None; there is at least one step.
        """
        ...

    def custom_gradient(
        self,
        forward: Callable[..., tuple[Any, ...]],
        backward: Callable[..., tuple[Any, ...]],
        /,
    ) -> Callable[..., tuple[Any, ...]]:
        """Return ``forward(*arrays)`` → arrays with a gradient of its own.

        ``backward(inputs, outputs, cotangents)`` returns a gradient for each input, None for none.
        Neither may close over arrays that are traced.  Libraries without gradients ignore it.
        """
        ...

    def apply(
        self, operation: Operation, static: str, inputs: tuple[Any, ...], /
    ) -> tuple[Any, ...]:
        """Run an operation, as one step of a program that is being compiled."""
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

    def learned_tables(
        self, positions: Any, inv_freq: Any, axes: int | None, dtype: str, /
    ) -> Any | None:
        """Return tables of :mod:`rotary.angles`, (2, …, pairs), with a gradient by inv_freq.

        None where the host can make them and nothing is differentiated.
        """
        ...

    def refuse_out(self, out: Any, inputs: tuple[Any, ...], /) -> str | None:
        """Why a result of `inputs` cannot be written to out, or None."""
        ...

    def synchronize(self, x: Any, /) -> None:
        """Wait until x is computed."""
        ...

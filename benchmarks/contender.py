"""What is timed, as data: contenders, cases that they meet in, and goals they are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]

# What a figure says of a contender and another one: its time as a multiple of the other's; how many
# times faster it is; its work per second as a share of the other's.  "seconds" is its own time.
KINDS = ("times", "faster", "share", "seconds")


class UnavailableError(Exception):
    """Why a contender, or a library, cannot be timed here."""


@dataclass(frozen=True)
class Figure:
    """A figure of a contender, mostly in relation to another.

    Attributes
    ----------
    kind : {"times", "faster", "share", "seconds"}
    against : str
        The other contender; a pattern with ``*`` stands for the fastest that it matches.  Empty for
        seconds.
    heading : str
        What it is called: the heading of its column, and its key in the JSON report.
    """

    kind: str
    against: str
    heading: str


@dataclass(frozen=True)
class Goal:
    """A bound of a figure: at most for times and seconds, at least for faster and share."""

    figure: Figure
    bound: float

    def met(self, value: float) -> bool:
        """Whether a figure reaches the goal."""
        at_most = self.figure.kind in ("times", "seconds")
        return value <= self.bound if at_most else value >= self.bound


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work.

    Attributes
    ----------
    library : str
        Whose arrays it takes; "memory" for plain copies.
    title : str
        What it does, without its library.
    make : callable
        Makes the arrays and returns what is timed, a call without arguments that returns an array,
        a tuple of them, or None.  It may raise :class:`UnavailableError`.
    needs : tuple of str
        Modules, beyond its library, that have to be installed.
    refused : str, optional
        Why it has no place in this case.
    slow_start : bool
        Whether a compiler of seconds is at work before the first call ends; ``--quick`` leaves it
        out.
    without : tuple of str
        Kernels that are switched off while it runs.
    work : float, optional
        Floating-point operations of a call, where they are counted.
    figures, goals : tuple
    """

    library: str
    title: str
    make: Callable[[], Call]
    needs: tuple[str, ...] = ()
    refused: str | None = None
    slow_start: bool = False
    without: tuple[str, ...] = ()
    work: float | None = None
    figures: tuple[Figure, ...] = ()
    goals: tuple[Goal, ...] = ()

    @property
    def name(self) -> str:
        """Its name within its case."""
        return self.title if self.library == "memory" else f"{self.library}, {self.title}"


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work, and are timed in turn.

    Attributes
    ----------
    group : {"rotation", "decode", "tables", "linear"}
    title : str
    parameters : mapping
        Everything that sets this case apart, as JSON has it; ``threads`` and ``device`` among it.
    contenders : tuple of Contender
    calls : int, optional
        Calls that are timed together; by default as many as fill a few milliseconds.
    """

    group: str
    title: str
    parameters: Mapping[str, Any]
    contenders: tuple[Contender, ...]
    calls: int | None = None


@dataclass(frozen=True)
class Settings:
    """What `rotary bench` is asked for."""

    libraries: tuple[str, ...] = ("numpy", "torch", "jax")
    device: str = "cpu"
    dtypes: tuple[str, ...] = ("float32",)
    forms: tuple[str, ...] = ("half",)
    threads: tuple[int, ...] = (1,)
    mebibytes: tuple[float, ...] = (32.0,)
    tokens: tuple[int, ...] = (4096,)
    heads: int | None = None
    sweep: bool = False
    quick: bool = False
    repeats: int = 15
    device_reasons: Mapping[str, str] = field(default_factory=dict)
    """Library → why it cannot be timed on this device."""

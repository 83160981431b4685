"""The stopwatch: contenders in turn within each repeat, in an order that is shuffled anew.

A machine whose speed drifts treats them alike.  A ratio is taken within each repeat, and its median
and quartiles over the repeats are what is reported.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rotary.backends import kernels, owner_of
from rotary.benchmarks.contender import Call, Case, Contender

# Threads of OpenBLAS and OpenMP spin for a while after their work, and disturb whoever is next.
PAUSE_SECONDS = 0.02
# After a pause cores sleep, and the system may wake two threads on one of them.
WARM_SECONDS = 0.02
# Calls are timed together until they take this long; one launch on a GPU would hide in its wait.
_LEAST_SECONDS = {"cpu": 0.004, "cuda": 0.02}
_MOST_CALLS = 2000
# What takes longer does not need warming up in each repeat.
_LONG_SECONDS = 0.5
# A contender that would take longer than this in all runs in the first repeats alone, but in three.
_MOST_SECONDS = 20.0
_FEWEST = 3


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timed:
    """The times of a contender: seconds for a call, one for each repeat."""

    contender: Contender
    times: tuple[float, ...]
    calls: int
    first_call: float
    """Seconds until the first call was done: arrays, tables, compilation."""
    page_faults: float | None = None
    """Pages that a call got from the system, where that is counted: its memory was not used before.
    """

    @property
    def name(self) -> str:
        """The contender's name."""
        return self.contender.name


@dataclass(frozen=True)
class LeftOut:
    """A contender that was not timed, and why."""

    contender: Contender
    reason: str

    @property
    def name(self) -> str:
        """The contender's name."""
        return self.contender.name


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles."""
    low, median, high = np.percentile(np.asarray(values, np.float64), (25, 50, 75))
    return Spread(float(median), float(low), float(high))


def ratio(times: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the median and the quartiles of times/others, taken within each repeat.

    Where one ran in fewer repeats, those count that both have.
    """
    return spread([a / b for a, b in zip(times, others, strict=False)])


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Switch kernels off, as ROTARY_DISABLE_KERNELS does for a whole process."""
    if not names:
        yield
        return
    before = kernels.disabled
    off = before() | frozenset(names)
    _replace_disabled(lambda: off)
    try:
        yield
    finally:
        _replace_disabled(before)


def _replace_disabled(disabled: Callable[[], frozenset[str]]) -> None:
    kernels.disabled = disabled  # type: ignore[assignment]  # its cache is not needed here
    kernels.kernel.cache_clear()


def arrays_of(result: Any) -> tuple[Any, ...]:
    """Return the arrays that a call returned."""
    if result is None:
        return ()
    return tuple(result) if isinstance(result, tuple | list) else (result,)


class _Runner:
    """A contender that is made and warm."""

    def __init__(self, contender: Contender, calls: int | None, device: str, warm: float) -> None:
        self.contender = contender
        self._warm = warm
        began = time.perf_counter()
        self._call: Call = contender.make()
        # Elsewhere a call is done when it returns.
        self._waits = device != "cpu" or contender.library == "jax"
        # On a GPU one wait for all: calls queue up there, and one waits for another.
        self._waits_each = device == "cpu"
        self.times: list[float] = []
        self.faults: list[float] = []
        self.seconds(1)
        self.first_call = time.perf_counter() - began
        once = self.seconds(1)
        fill = math.ceil(_LEAST_SECONDS[device] / max(once, 1e-9))
        self.calls = calls or min(_MOST_CALLS, max(1, fill))
        self._long = once > _LONG_SECONDS
        self.seconds_a_repeat = once * self.calls + (not self._long) * max(once, warm)

    def seconds(self, calls: int) -> float:
        """Return the time of some calls, to the end of what they started."""
        call, waits_each = self._call, self._waits and self._waits_each
        with without(self.contender.without):
            result = None
            started = time.perf_counter()
            for _ in range(calls):
                result = call()
                if waits_each:
                    _wait(result)
            if self._waits and not waits_each:
                _wait(result)
            return time.perf_counter() - started

    def repeat(self) -> None:
        if not self._long:
            self._warm_up()
        before = _page_faults()
        self.times.append(self.seconds(self.calls) / self.calls)
        after = _page_faults()
        if before is not None and after is not None:
            self.faults.append((after - before) / self.calls)

    def _warm_up(self) -> None:
        started = time.perf_counter()
        while True:
            self.seconds(1)
            if time.perf_counter() - started >= self._warm:
                return

    def timed(self) -> Timed:
        faults = spread(self.faults).median if self.faults else None
        return Timed(self.contender, tuple(self.times), self.calls, self.first_call, faults)


def _page_faults() -> int | None:
    """Return how many pages this process got without reading a disk, where that is counted."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _wait(result: Any) -> None:
    for array in arrays_of(result):
        owner_of(array).synchronize(array)


def measure(
    case: Case,
    contenders: Sequence[Contender],
    *,
    repeats: int,
    pause: float = PAUSE_SECONDS,
    warm: float = WARM_SECONDS,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[list[Timed], list[LeftOut]]:
    """Time contenders of a case; what fails on the way is left out, with what it raised."""
    runners: list[_Runner] = []
    left_out: list[LeftOut] = []
    for contender in contenders:
        progress(f"{contender.name}: first call")
        try:
            runners.append(_Runner(contender, case.calls, case.parameters["device"], warm))
        # Somebody else's code must not end a run of minutes; what it raised is in the report.
        except Exception as error:
            left_out.append(LeftOut(contender, _told(error)))
    for number in range(repeats):
        order = list(runners)
        random.Random(number).shuffle(order)
        for runner in order:
            if number >= _FEWEST and (number + 1) * runner.seconds_a_repeat > _MOST_SECONDS:
                continue
            progress(f"{runner.contender.name}: repeat {number + 1} of {repeats}")
            time.sleep(pause)
            # What a collection costs would fall on whoever comes next.
            enabled = gc.isenabled()
            gc.disable()
            try:
                runner.repeat()
            finally:
                if enabled:
                    gc.enable()
    return [runner.timed() for runner in runners], left_out


def _told(error: Exception) -> str:
    """Return an error in one line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return text if type(error).__name__ == "UnavailableError" else f"{type(error).__name__}: {text}"

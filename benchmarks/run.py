"""One run: cases one after the other, and in each case all contenders in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec

from rotary.benchmarks import decode, linear, rotation, tables, timing
from rotary.benchmarks.contender import Call, Case, Contender, Settings, UnavailableError
from rotary.benchmarks.machine import facts, kernels_off, threads, versions
from rotary.benchmarks.report import Measured, Report
from rotary.benchmarks.timing import LeftOut

GROUPS: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "rotation": rotation.cases,
    "decode": decode.cases,
    "tables": tables.cases,
    "linear": linear.cases,
}
Progress = Callable[[str, str], None]


def run(
    groups: Iterable[str],
    settings: Settings,
    *,
    command: str = "",
    progress: Progress = lambda case, step: None,
) -> Report:
    """Time the cases of some groups.

    Parameters
    ----------
    groups : iterable of str
        Keys of `GROUPS`.
    settings : Settings
    command : str
        What was asked for, for the report.
    progress : callable
        Called with the title of a case, and what happens in it.

    Returns
    -------
    Report
    """
    started, when = time.perf_counter(), datetime.now(UTC)
    machine = facts(settings.device)
    measured = [
        _measured(case, settings, progress) for group in groups for case in GROUPS[group](settings)
    ]
    return Report(
        tuple(measured),
        machine,
        versions(),
        kernels_off(),
        settings,
        command,
        when.isoformat(timespec="seconds"),
        time.perf_counter() - started,
    )


def _measured(case: Case, settings: Settings, progress: Progress) -> Measured:
    run, left_out = [], []
    for contender in case.contenders:
        reason = refusal(contender, settings)
        if reason is None:
            run.append(contender)
        else:
            left_out.append(LeftOut(contender, reason))
    with threads(case.parameters["threads"], settings.libraries):
        timed, failed = timing.measure(
            case,
            run,
            repeats=settings.repeats,
            pause=0.0 if settings.quick else timing.PAUSE_SECONDS,
            progress=lambda step: progress(f"{case.group}: {case.title}", step),
        )
    return Measured(
        replace(case, contenders=tuple(map(_spent, case.contenders))),
        tuple(replace(one, contender=_spent(one.contender)) for one in timed),
        tuple(replace(one, contender=_spent(one.contender)) for one in (*left_out, *failed)),
    )


def _spent(contender: Contender) -> Contender:
    """Return a contender without what holds the arrays of its case."""
    return replace(contender, make=_nothing)


def _nothing() -> Call:
    raise UnavailableError("its case is over")


def refusal(contender: Contender, settings: Settings) -> str | None:
    """Return why a contender is not timed, or None."""
    own = () if contender.library == "memory" else (contender.library,)
    missing = [name for name in (*own, *contender.needs) if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if contender.refused is not None:
        return contender.refused
    if settings.quick and contender.slow_start:
        return "--quick leaves out what compiles for seconds"
    return None

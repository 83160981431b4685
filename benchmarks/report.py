"""What a run found: tables in the terminal, ratios first, and all of it as JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

import rotary
from rotary.benchmarks import timing
from rotary.benchmarks.contender import Case, Figure, Goal, Settings
from rotary.benchmarks.timing import LeftOut, Spread, Timed

SCHEMA = 1
# From so many sizes on, cases share one table, a column each, and are drawn as lines.
FEWEST_SIZES = 3
# What a narrow terminal does without.
_LEAST_NEEDED = ("page faults", "quartiles")


@dataclass(frozen=True)
class Measured:
    """A case, and what was found in it."""

    case: Case
    timed: tuple[Timed, ...]
    left_out: tuple[LeftOut, ...]

    def find(self, pattern: str) -> Timed | None:
        """Return the contender of that name, or the fastest that a pattern matches, or None."""
        matching = [t for t in self.timed if fnmatchcase(t.name, pattern)]
        if not matching:
            return None
        # Operations differ: a peak is the most in a second.
        return min(matching, key=lambda t: timing.spread(t.times).median / (t.contender.work or 1))

    def value(self, timed: Timed, figure: Figure) -> Spread | None:
        """Return a figure of a contender, or None where the other was not timed."""
        if figure.kind == "seconds":
            return timing.spread(timed.times)
        other = self.find(figure.against)
        if other is None:
            return None
        return figure_of(figure.kind, timed, other)


def figure_of(kind: str, timed: Timed, other: Timed) -> Spread:
    """Return a figure of a contender in relation to another."""
    if kind == "times":
        return timing.ratio(timed.times, other.times)
    times_faster = timing.ratio(other.times, timed.times)
    if kind == "faster":
        return times_faster
    work = (timed.contender.work or math.nan) / (other.contender.work or math.nan)
    return Spread(*(work * value for value in times_faster))


@dataclass(frozen=True)
class Report:
    """All cases of a run.

    Attributes
    ----------
    measured : tuple of Measured
    machine, versions : dict
    kernels : dict
        Kernel → why it is off, or None.
    settings : Settings
    command, date : str
    seconds : float
    """

    measured: tuple[Measured, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    kernels: dict[str, str | None]
    settings: Settings
    command: str
    date: str
    seconds: float

    def to_json(self) -> str:
        """Return the whole report as JSON; docs/bench.md says what is in it."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "command": self.command,
                "date": self.date,
                "rotary": rotary.__version__,
                "python": platform.python_version(),
                "machine": self.machine,
                "versions": self.versions,
                "kernels": self.kernels,
                "repeats": self.settings.repeats,
                "quick": self.settings.quick,
                "seconds": self.seconds,
                "cases": [_case_as_dict(found) for found in self.measured],
            },
            indent=1,
            allow_nan=False,
        )

    def show(self, console: Console) -> None:
        """Print a table for each case, what was left out, and the machine."""
        for group in dict.fromkeys(found.case.group for found in self.measured):
            cases = [found for found in self.measured if found.case.group == group]
            if by_size(cases):
                _show_together(group, cases, console)
            else:
                for found in cases:
                    _show(found, console)
            _show_left_out(cases, console)
        _show_machine(self, console)


def _case_as_dict(found: Measured) -> dict[str, Any]:
    case = found.case
    return {
        "group": case.group,
        "title": case.title,
        "parameters": dict(case.parameters),
        "contenders": [_timed_as_dict(found, timed) for timed in found.timed],
        "left_out": [
            {"name": one.name, "library": one.contender.library, "reason": one.reason}
            for one in found.left_out
        ],
    }


def _timed_as_dict(found: Measured, timed: Timed) -> dict[str, Any]:
    contender = timed.contender
    return {
        "name": timed.name,
        "library": contender.library,
        "seconds": _spread_as_dict(timing.spread(timed.times)),
        "times": list(timed.times),
        "calls": timed.calls,
        "first_call": timed.first_call,
        "page_faults": timed.page_faults,
        "flops": contender.work,
        "kernels_switched_off": list(contender.without),
        "figures": [
            {"name": f.heading, "kind": f.kind, "against": f.against, **_spread_as_dict(value)}
            for f in contender.figures
            if (value := found.value(timed, f)) is not None
        ],
        "goals": [_goal_as_dict(found, timed, goal) for goal in contender.goals],
    }


def _spread_as_dict(values: Spread) -> dict[str, float]:
    return {"median": values.median, "low": values.low, "high": values.high}


def _goal_as_dict(found: Measured, timed: Timed, goal: Goal) -> dict[str, Any]:
    value = found.value(timed, goal.figure)
    return {
        "name": goal.figure.heading,
        "kind": goal.figure.kind,
        "against": goal.figure.against,
        "bound": goal.bound,
        "median": None if value is None else value.median,
        "met": None if value is None else goal.met(value.median),
    }


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.9995 * size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def _digits(value: float) -> str:
    """Return a number with three digits."""
    value = float(f"{value:.2e}")
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:,.{places}f}"


def shown(figure: Figure, value: float) -> str:
    """Return a figure as it is read."""
    if figure.kind == "seconds":
        return duration(value)
    if figure.kind == "share":
        return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"
    return f"{_digits(value)} ×"


def _show(found: Measured, console: Console) -> None:
    columns = _columns(found)
    goals = columns.pop("goal", None)
    table = _table_of(found, columns | ({"goal": goals} if goals else {}))
    beside = goals is not None and _fits(table, console)
    if goals is not None and not beside:
        table = _table_of(found, columns)
    for least in _LEAST_NEEDED:
        if _fits(table, console):
            break
        columns.pop(least, None)
        table = _table_of(found, columns)
    console.print(f"[bold]{found.case.group}[/]: {escape(titled(found.case))}", soft_wrap=True)
    console.print(table)
    if goals is not None and not beside:
        for timed, goal in zip(found.timed, goals, strict=True):
            for line in filter(None, goal.split("\n")):
                console.print(f"  goal: {escape(timed.name)} {line}", soft_wrap=True)


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(width=1000)).maximum <= (
        console.width
    )


def _columns(found: Measured) -> dict[str, list[str]]:
    """Return what is told of the contenders, by headings."""
    timed = found.timed
    figures = [_figures(found, one) for one in timed]
    columns = {
        heading: [row.get(heading, "") for row in figures]
        for heading in dict.fromkeys(heading for row in figures for heading in row)
    }
    times = [timing.spread(one.times) for one in timed]
    columns["time"] = [duration(t.median) for t in times]
    columns["quartiles"] = [_between(t) for t in times]
    work = [one.contender.work for one in timed]
    if any(work):
        rates = zip(work, times, strict=True)
        columns["GFLOP/s"] = [f"{w / t.median / 1e9:,.0f}" if w else "" for w, t in rates]
    if found.case.group == "rotation" and found.case.parameters["device"] == "cpu":
        faults = [one.page_faults for one in timed]
        columns["page faults"] = ["" if n is None else f"{n:,.0f}" for n in faults]
    goals = ["\n".join(_told(found, one, goal) for goal in one.contender.goals) for one in timed]
    if any(goals):
        columns["goal"] = goals
    return columns


def _table_of(found: Measured, columns: dict[str, list[str]]) -> Table:
    table = _table("contender")
    for heading in columns:
        broken = heading.replace("faster than ", "faster than\n").replace("page ", "page\n")
        dim = "dim" if heading in _LEAST_NEEDED else ""
        side: JustifyMethod = "left" if heading == "goal" else "right"
        table.add_column(broken, justify=side, style=dim, no_wrap=True)
    for one, *cells in zip((t.name for t in found.timed), *columns.values(), strict=True):
        table.add_row(escape(one), *cells)
    return table


def _table(first: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(first, no_wrap=True)
    return table


def _figures(found: Measured, timed: Timed) -> dict[str, str]:
    """Return the figures of a contender that can be told, by their headings."""
    values = ((f, found.value(timed, f)) for f in timed.contender.figures)
    return {f.heading: shown(f, value.median) for f, value in values if value is not None}


def _between(times: Spread) -> str:
    """Return the quartiles, with one unit where one will do."""
    low, high = duration(times.low), duration(times.high)
    number, _, unit = low.partition(" ")
    return f"{number} – {high}" if high.endswith(f" {unit}") else f"{low} – {high}"


def titled(case: Case) -> str:
    threads = case.parameters["threads"]
    where = "" if case.parameters["device"] == "cpu" else f", {case.parameters['device']}"
    return f"{case.title}, {threads} thread{'s' * (threads > 1)}{where}"


def _told(found: Measured, timed: Timed, goal: Goal) -> str:
    """Return a goal, and whether it is reached."""
    figure, value = goal.figure, found.value(timed, goal.figure)
    sign = "≤" if figure.kind in ("times", "seconds") else "≥"
    if figure.kind == "seconds":
        bound = duration(goal.bound)
    elif figure.kind == "share":
        bound = f"{goal.bound:.0%}"
    else:
        bound = f"{goal.bound:.3g}"
    name = "" if figure.kind == "seconds" else f" {figure.heading}"
    if value is None:
        return f"[dim]{sign} {bound}{name}: not measured[/]"
    verdict = "[green]yes[/]" if goal.met(value.median) else "[red]no[/]"
    return f"{sign} {bound}{name}: {verdict}, {shown(figure, value.median).removesuffix(' ×')}"


def by_size(cases: list[Measured]) -> list[list[Measured]]:
    """Return cases that differ in nothing but their tokens together, if there are enough such."""
    alike: dict[str, list[Measured]] = {}
    for found in cases:
        if "tokens" in found.case.parameters:
            alike.setdefault(but_size(found.case), []).append(found)
    several = [one for one in alike.values() if len(one) >= FEWEST_SIZES]
    return list(alike.values()) if several else []


def _show_together(group: str, cases: list[Measured], console: Console) -> None:
    """Print one table of times, for cases that differ in size, and others that differ otherwise."""
    for alike in by_size(cases):
        table = _table("time, by tokens")
        for found in alike:
            table.add_column(f"{size(found.case):,}", justify="right", no_wrap=True)
        names = dict.fromkeys(timed.name for found in alike for timed in found.timed)
        for name in names:
            times = (found.find(name) for found in alike)
            row = ["" if t is None else duration(timing.spread(t.times).median) for t in times]
            table.add_row(escape(name), *row)
        console.print(f"[bold]{group}[/]: {escape(but_size(alike[0].case))}", soft_wrap=True)
        console.print(table)


def but_size(case: Case) -> str:
    """Return what cases have in common that differ in size alone."""
    given = case.parameters
    parts = [f"{k} {v}" for k in ("form", "heads", "device", "threads") if (v := given.get(k))]
    return ", ".join((given["dtype"], *parts))


def size(case: Case) -> int:
    return int(case.parameters["tokens"])


def _show_left_out(cases: Iterable[Measured], console: Console) -> None:
    reasons: dict[str, dict[str, None]] = {}
    for found in cases:
        for one in found.left_out:
            reasons.setdefault(one.reason, {})[one.name] = None
    for reason, names in reasons.items():
        line = f"not timed: {'; '.join(names)}: {escape(reason)}"
        console.print(line, style="dim", soft_wrap=True)
    console.print()


def _show_machine(report: Report, console: Console) -> None:
    machine = report.machine
    where = machine["accelerator"] or machine["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [
        f"{where}, {machine['cores']} cores, load {machine['load']} at the start, "
        f"{report.date}, {report.seconds:.0f} s",
        versions,
        "kernels: "
        + ", ".join(
            f"{n} {'on' if r is None else f'off ({r})'}" for n, r in report.kernels.items()
        ),
        f"medians of {report.settings.repeats} repeats, in each all contenders in turn; a ratio is "
        "the median of its ratios within a repeat",
    ]
    for line in lines:
        console.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)

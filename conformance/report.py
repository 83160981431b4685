"""What a run found: in the terminal, as JSON, and as a page."""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rotary
from rotary.conformance.runner import ELEMENTS, Cell

SCHEMA = 1
_SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Report:
    """All cells of a run.

    Attributes
    ----------
    cells : tuple of Cell
    versions : dict
        Library → version.
    elements : int
        Numbers a rotation was asked to have.
    seconds : float
    left_out : dict
        Library that is installed, but cannot run here and was not asked for → why not.
    kernels : dict
        Fused kernel → why it was not used, or None where it was, for what it fits.
    """

    cells: tuple[Cell, ...]
    versions: dict[str, str]
    elements: int
    seconds: float
    left_out: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str | None] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether something was run and everything that was run holds."""
        return bool(self.run) and not self.failures

    @property
    def run(self) -> tuple[Cell, ...]:
        """The cells that were run."""
        return tuple(cell for cell in self.cells if cell.verdict != "not run")

    @property
    def failures(self) -> tuple[Cell, ...]:
        """The cells that fail or could not be computed."""
        return tuple(cell for cell in self.cells if cell.verdict in ("fails", "error"))

    @property
    def differing(self) -> int:
        """Numbers outside their level, all cells together."""
        return sum(cell.differing for cell in self.cells)

    def again(self, cell: Cell) -> str:
        """Return the command that repeats a cell, on the same numbers."""
        command = ["rotary", "check", "--backend", cell.library, "--case", cell.case]
        command += ["--dtype", cell.dtype, "--way", cell.way]
        if self.elements != ELEMENTS:
            command += ["--elements", str(self.elements)]
        return shlex.join(command)

    def to_html(self, *, command: str | None = None) -> str:
        """Return the report as a page; `command` is what was run."""
        from rotary.conformance.html import render  # late: it reads this class

        return render(self, command=command)

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "rotary": rotary.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}",
                "versions": self.versions,
                "left_out": self.left_out,
                "kernels": self.kernels,
                "elements": self.elements,
                "seconds": self.seconds,
                "holds": self.holds,
                "cells": [_as_dict(cell) for cell in self.cells],
            },
            indent=1,
            allow_nan=False,
        )

    def show(self, console: Console, *, every_cell: bool = False) -> None:
        """Print a table of cases by libraries, then what fails and what was not run."""
        if every_cell:
            console.print(_cells(self.run))
        console.print(_summary(self))
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        console.print(f"numbers that differ·cells of dtype and way; {versions}", soft_wrap=True)
        _show_failures(self, console)
        for library, reason in self.left_out.items():
            console.print(f"left out: {library}: {escape(reason)}", style="dim", soft_wrap=True)
        if self.kernels:
            console.print(f"kernels: {_of_kernels(self.kernels)}", style="dim", soft_wrap=True)
        _show_not_run(self.cells, console)
        _show_largest(self.run, console)
        _show_flushed(self.run, console)
        if not self.run:
            console.print("[bold red]nothing was run[/]")
            return
        style, word = ("bold green", "holds") if self.holds else ("bold red", "fails")
        compared = sum(cell.elements for cell in self.run)
        console.print(
            f"[{style}]{word}[/]: {self.differing:,} of {compared:,} numbers differ, "
            f"{len(self.failures)} of {len(self.run)} cells fail, {self.seconds:.0f} s"
        )


def _of_kernels(kernels: dict[str, str | None]) -> str:
    on = [name for name, reason in kernels.items() if reason is None]
    off = [f"{name} off ({reason})" for name, reason in kernels.items() if reason is not None]
    return "; ".join([", ".join(on) or "none", *off])


def _as_dict(cell: Cell) -> dict[str, Any]:
    """Return the cell for JSON, which has no infinity and no NaN."""
    values = asdict(cell)
    if not math.isfinite(cell.worst):
        values["worst"] = str(cell.worst)
    return values


def _summary(report: Report) -> Table:
    # Eight libraries fit into 80 columns.
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("case", no_wrap=True)
    for library in report.versions:
        table.add_column(library.replace("-", "-\n"), justify="right")
    for case in dict.fromkeys(cell.case for cell in report.cells):
        cells = [cell for cell in report.run if cell.case == case]
        found = [_found([c for c in cells if c.library == library]) for library in report.versions]
        table.add_row(case, *found)
    return table


def _found(cells: list[Cell]) -> str:
    """Show the cells of one case and library."""
    if not cells:
        return "–"
    count = f"[dim]·{len(cells)}[/]"
    if any(cell.verdict == "error" for cell in cells):
        return f"[bold red]error[/]{count}"
    differing = sum(cell.differing for cell in cells)
    if differing:
        return f"[bold red]{differing:,}[/]{count}"
    return f"[green]0[/]{count}"


def _cells(cells: Iterable[Cell]) -> Table:
    table = Table(pad_edge=False)
    for heading in ("library", "case", "dtype", "way", "level", "worst", "verdict"):
        table.add_column(heading, justify="right" if heading == "worst" else "left")
    for cell in cells:
        verdict = f"[{'green' if cell.verdict == 'holds' else 'red'}]{cell.verdict}[/]"
        worst = f"{cell.worst:.3g}"
        table.add_row(cell.library, cell.case, cell.dtype, cell.way, cell.level, worst, verdict)
    return table


def _show_failures(report: Report, console: Console) -> None:
    failures = report.failures
    for cell in failures[:_SHOWN_FAILURES]:
        found = next(iter(cell.detail.splitlines()), "")
        if cell.verdict == "fails":
            where = "" if cell.worst_index is None else f" at {list(cell.worst_index)}"
            found = (
                f"{cell.differing:,} of {cell.elements:,} differ, worst {cell.worst:.3g}{where}: "
                f"{found}"
            )
        console.print(f"[red]{cell.verdict}[/] {escape(f'{cell.name}: {found}')}", soft_wrap=True)
        console.print(f"  {escape(report.again(cell))}", style="dim", soft_wrap=True)
    if len(failures) > _SHOWN_FAILURES:
        console.print(f"… and {len(failures) - _SHOWN_FAILURES} more")


def _show_not_run(cells: Iterable[Cell], console: Console) -> None:
    reasons = Counter((c.library, c.detail) for c in cells if c.verdict == "not run")
    for (library, reason), count in reasons.items():
        console.print(
            f"not run: {library}, {count} cells: {escape(reason)}", style="dim", soft_wrap=True
        )


def _show_largest(cells: Iterable[Cell], console: Console) -> None:
    """Say how much of what the levels other than bitwise allow was used."""
    largest: dict[str, float] = {}
    for cell in cells:
        if cell.level != "bitwise":
            largest[cell.level] = max(cell.worst, largest.get(cell.level, 0.0))
    for level, worst in largest.items():
        share = " of what is allowed" if level == "bound" else ""
        console.print(f"largest error, {level}: {worst:.4f}{share}", style="dim", soft_wrap=True)


def _show_flushed(cells: Iterable[Cell], console: Console) -> None:
    flushed: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        if cell.flushed:
            flushed[cell.library, cell.dtype] += cell.flushed
    for (library, dtype), count in flushed.items():
        console.print(
            f"flush: {library} gives zero for {count:,} subnormal {dtype} numbers", style="dim"
        )

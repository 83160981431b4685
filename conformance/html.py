"""A report as one page, for somebody who did not run it: no script, and nothing from elsewhere.

The page shows cases by libraries, not cells: a cell has its own lines where it fails, and where its
error is among the largest.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jinja2

import rotary
from rotary.conformance import cases as all_cases
from rotary.conformance import plot
from rotary.conformance.markup import clipped, environment
from rotary.conformance.reach import LEVELS, Held, Reach, spelled
from rotary.conformance.report import Report
from rotary.conformance.runner import ELEMENTS, Cell

# A run in which everything fails stays a page that opens.
_SHOWN_FAILURES = 200
_SHOWN_CHARACTERS = 600
_SHOWN_LARGEST = 3
_PLOTTED = rotary.RotaryEmbedding(64)
_PLOTTED_TO = 2**20


def write(
    report: Report, path: str | os.PathLike[str], held: Held | None = None, **rest: Any
) -> None:
    """Write the page that :func:`render` makes to a file."""
    Path(path).write_text(render(report, held, **rest), "utf-8")


def render(report: Report, held: Held | None = None, *, command: str | None = None) -> str:
    """Return a report as HTML.

    Parameters
    ----------
    report : Report
    held : Held, optional
        Of a foreign implementation, whose cells the report has.
    command : str, optional
        The command that was run.

    Examples
    --------
    >>> from rotary.conformance import html, run
    >>> page = html.render(run(["numpy"], cases=["tables/whole"]))
    >>> "<h1>Holds: 0 of 8,192 numbers differ</h1>" in page
    True
    """
    described, limit, reaches = _PLOTTED, _PLOTTED_TO, {}
    if held is not None:
        described, limit, reaches = held.embedding, held.limit, _reaches(held)
    curves = plot.of_tables(described, limit)
    if held is not None:
        curves += plot.of_implementation(held)
    failures = _worst_first(report)
    return _template().render(
        report=report,
        held=held,
        command=command,
        made=datetime.now(UTC),
        verdict=_verdict(report, held),
        rotary=rotary.__version__,
        machine=_machine(),
        usual_elements=ELEMENTS,
        libraries=[_Ran.of(report, library) for library in report.versions],
        levels=Counter(cell.level for cell in report.run),
        groups=_groups(report, {cell: n for n, cell in enumerate(failures, 1)}),
        failures=failures,
        largest=_largest(report),
        not_run=_not_run(report.cells),
        flushed=_flushed(report.run),
        reaches=reaches,
        plot=plot.plot(curves, levels=reaches or LEVELS),
        plotted=spelled(described),
        infinity=math.inf,
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    made = environment()
    made.filters |= {
        "number": lambda number: f"{number:,}",
        "short": _short,
        "clipped": partial(clipped, most=_SHOWN_CHARACTERS),
        "found": _found,
        "reached": _reached,
    }
    return made.get_template("report.html.j2")


# What a page says at its top.


def _verdict(report: Report, held: Held | None) -> tuple[str, str]:
    """Return "holds", "fails" or "measured", and the sentence that says what that means."""
    if held is not None:
        return _verdict_of_foreign(held)
    if not report.run:
        return "fails", "Nothing was run"
    compared = sum(cell.elements for cell in report.run)
    differ = f"{report.differing:,} of {compared:,} numbers differ"
    if report.holds:
        return "holds", f"Holds: {differ}"
    return "fails", f"Fails: {len(report.failures):,} of {len(report.run):,} cells; {differ}"


def _verdict_of_foreign(held: Held) -> tuple[str, str]:
    asked = any(reach.asked for part in held.parts for reach in part.reaches)
    word = "measured" if not asked else "holds" if held.holds else "fails"
    found = []
    for level, reaches in _reaches(held).items():
        every = (reach for reach in reaches if reach is not None)
        shortest = min(every, key=lambda r: math.inf if r.fails_at is None else r.fails_at)
        found.append(f"at {level:g} ulp {_reached(shortest)}")
    lead = {"measured": "Holds", "holds": "Holds as asked:", "fails": "Fails what was asked: holds"}
    return word, f"{lead[word]} {', '.join(found)}"


def _reaches(held: Held) -> dict[float, list[Reach | None]]:
    """Return level → what was found of every part; a share is another level for each dtype."""
    levels = sorted({reach.ulp for part in held.parts for reach in part.reaches})
    return {
        level: [next((r for r in part.reaches if r.ulp == level), None) for part in held.parts]
        for level in levels
    }


def _reached(reach: Reach) -> str:
    if reach.fails_at is None:
        return f"everywhere, up to position {reach.holds_to:,}"
    return "nowhere" if reach.holds_to is None else f"up to position {reach.holds_to:,}"


def _machine() -> dict[str, str]:
    system = platform.freedesktop_os_release() if _has_os_release() else {}
    return {
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "system": system.get("PRETTY_NAME") or platform.platform(aliased=True),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _has_os_release() -> bool:
    return any(Path(file).is_file() for file in ("/etc/os-release", "/usr/lib/os-release"))


def _processor() -> str:
    # platform.processor() is empty on many Linux systems.
    file = Path("/proc/cpuinfo")
    text = file.read_text("utf-8", "replace") if file.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


# Cases by libraries.


@dataclass(frozen=True)
class _Ran:
    """How a library was run."""

    name: str
    version: str
    cells: int
    numbers: int
    differing: int
    seconds: float
    dtypes: tuple[str, ...]
    ways: tuple[str, ...]

    @classmethod
    def of(cls, report: Report, library: str) -> _Ran:
        cells = [cell for cell in report.run if cell.library == library]
        return cls(
            library,
            report.versions[library],
            len(cells),
            sum(cell.elements for cell in cells),
            sum(cell.differing for cell in cells),
            sum(cell.seconds for cell in cells),
            _of(cells, "dtype"),
            _of(cells, "way"),
        )


@dataclass(frozen=True)
class _Square:
    """The cells of one case and library.

    Attributes
    ----------
    kind : {"same", "within", "fails", "error", "skipped", "none"}
    strength : int
        How large the share of numbers is that differ, 1 to 4; 0 for none.
    count : str
    partly : bool
        Whether some of its cells were not run.
    title : str
        What a pointer that rests on it shows.
    link : int, optional
        The number of a failure that is listed.
    """

    kind: str
    strength: int = 0
    count: str = ""
    partly: bool = False
    title: str = ""
    link: int | None = None

    @property
    def sign(self) -> str:
        """Tells the kinds apart without a colour."""
        signs = {"same": "=", "within": "≤", "fails": "≠", "error": "!", "skipped": "–"}
        return signs.get(self.kind, "")


def _groups(
    report: Report, listed: Mapping[Cell, int]
) -> list[tuple[str, list[tuple[str, str, list[_Square]]]]]:
    """Return prefix → case, its comment, and a square for each library."""
    by_square: dict[tuple[str, str], list[Cell]] = {}
    for cell in report.cells:
        by_square.setdefault((cell.case, cell.library), []).append(cell)
    comments = {case.id: case.comment for case in all_cases.every()}
    groups: dict[str, list[tuple[str, str, list[_Square]]]] = {}
    for case in dict.fromkeys(cell.case for cell in report.cells):
        squares = [
            _square(case, library, by_square.get((case, library), []), listed)
            for library in report.versions
        ]
        row = case, comments.get(case, ""), squares
        groups.setdefault(case.rpartition("/")[0], []).append(row)
    return list(groups.items())


def _square(case: str, library: str, cells: list[Cell], listed: Mapping[Cell, int]) -> _Square:
    where = f"{case} on {library}"
    if not cells:
        return _Square("none", title=f"{where}: has no cells")
    ran = [cell for cell in cells if cell.verdict != "not run"]
    if not ran:
        reasons = "; ".join(_of(cells, "detail"))
        return _Square("skipped", title=clipped(f"{where}: not run: {reasons}", 300))
    failing = [cell for cell in ran if cell.verdict != "holds"]
    kind = "same" if all(cell.level == "bitwise" for cell in ran) else "within"
    if failing:
        kind = "error" if any(cell.verdict == "error" for cell in failing) else "fails"
    count = f"{len(failing)}/{len(ran)}" if failing else str(len(ran))
    skipped = len(cells) - len(ran)
    link = min((listed[cell] for cell in failing if cell in listed), default=None)
    return _Square(kind, _strength(failing), count, skipped > 0, _title(where, cells, ran), link)


def _strength(failing: list[Cell]) -> int:
    """Return 1 to 4 by the largest share of numbers that differ, 4 from 10% on; else 0."""
    share = max((cell.differing / max(cell.elements, 1) for cell in failing), default=0.0)
    return min(4, max(1, 5 + math.floor(math.log10(share)))) if share else 0


def _title(where: str, cells: list[Cell], ran: list[Cell]) -> str:
    failing = sum(cell.verdict in ("fails", "error") for cell in ran)
    numbers = sum(cell.elements for cell in ran)
    differing = sum(cell.differing for cell in ran)
    lines = [
        f"{where}: {failing} of {len(ran)} cells fail, {differing:,} of {numbers:,} numbers differ",
        f"{', '.join(_of(ran, 'level'))}; {', '.join(_of(ran, 'dtype'))}",
        ", ".join(_of(ran, "way")),
    ]
    if len(ran) < len(cells):
        lines.append(f"{len(cells) - len(ran)} cells not run")
    return "\n".join(lines)


def _of(cells: Iterable[Cell], attribute: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(getattr(cell, attribute)) for cell in cells))


# Single cells, and what was not run.


def _worst_first(report: Report) -> list[Cell]:
    """Return the failures that are listed: first the worst of every case and library."""

    def badness(cell: Cell) -> tuple[float, float]:
        worst = cell.worst if cell.worst == cell.worst else math.inf
        return -cell.differing / max(cell.elements, 1), -worst

    squares: set[tuple[str, str]] = set()
    first: list[Cell] = []
    then: list[Cell] = []
    for cell in sorted(report.failures, key=badness):
        square = cell.case, cell.library
        (then if square in squares else first).append(cell)
        squares.add(square)
    return [*first, *then][:_SHOWN_FAILURES]


def _found(cell: Cell) -> str:
    """Say how far off a cell is, and where."""
    if cell.verdict == "error":
        return "could not be computed"
    where = "" if cell.worst_index is None else f" at index {list(cell.worst_index)}"
    unit = " of what is allowed" if cell.level == "bound" else " ulp"
    return (
        f"{cell.differing:,} of {cell.elements:,} numbers differ, "
        f"the worst by {cell.worst:.4g}{unit}{where}"
    )


def _largest(report: Report) -> list[tuple[str, list[Cell]]]:
    """Return, of each level that allows an error, the cells that hold with the largest.

    Only one of each case, whose error is often the same on all libraries.
    """
    found: dict[str, dict[str, Cell]] = {}
    for cell in sorted(report.run, key=lambda cell: -cell.worst):
        if cell.level not in ("bitwise", "reported") and cell.verdict == "holds":
            found.setdefault(cell.level, {}).setdefault(cell.case, cell)
    return [(level, list(cells.values())[:_SHOWN_LARGEST]) for level, cells in found.items()]


def _not_run(cells: Iterable[Cell]) -> dict[str, list[tuple[str, list[Cell]]]]:
    """Return library → reason → cells."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        if cell.verdict == "not run":
            found.setdefault(cell.library, {}).setdefault(cell.detail, []).append(cell)
    return {
        library: sorted(reasons.items(), key=lambda reason: -len(reason[1]))
        for library, reasons in found.items()
    }


def _flushed(cells: Iterable[Cell]) -> list[tuple[str, str, int, int]]:
    """Return library, dtype, how many numbers, and in how many cells."""
    numbers: Counter[tuple[str, str]] = Counter()
    count: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        if cell.flushed:
            numbers[cell.library, cell.dtype] += cell.flushed
            count[cell.library, cell.dtype] += 1
    return [(*key, number, count[key]) for key, number in numbers.items()]


def _short(number: float) -> str:
    """Return three digits of a number of any size."""
    if not math.isfinite(number):
        return "no number"
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if 1000 <= rounded < 1e9 else f"{rounded:g}"

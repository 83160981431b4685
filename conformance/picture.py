"""A report as one picture, for a page that has room for no more: subjects by libraries.

A square says how many numbers differ, of how many.  It follows its reader into the dark, has a sign
beside each colour, and is text: no script, no font of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import rotary
from rotary.conformance.markup import clipped, environment
from rotary.conformance.report import Report
from rotary.conformance.runner import Cell

SUBJECTS: dict[str, tuple[str, ...]] = {
    "tables of cos and sin": ("tables", "traced"),
    "rotation": ("rotation", "packed"),
    "scaling rules": ("scaling",),
    "images and video": ("axes",),
    "XPos": ("xpos",),
    "learned frequencies, gradients": ("learned", "gradient"),
    "sinusoidal, learned, resampled": ("sinusoidal", "absolute", "resampled"),
    "Shaw, T5, ALiBi, softmax attention": ("relative", "attention"),
    "linear attention": ("linear",),
    "golden vectors": ("vectors",),
}
"""What a row is called → the cases in it, by what stands before the slash."""

# Of a drawing; what is in front of the squares is as wide as the longest subject.
_LEFT, _TOP, _WIDE, _HIGH, _GAP = 264, 84, 92, 40, 4
_LONGEST_COMMAND = 120


@dataclass(frozen=True)
class Square:
    """The cells of one subject and library.

    Attributes
    ----------
    kind : {"same", "within", "fails", "none"}
        Bits are equal; all has but a bound; at least one cell fails; nothing was run.
    text : str
    below : str
        What has a bound beside bits that are equal.
    """

    kind: str
    text: str
    below: str = ""

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Square:
        """Return what the cells of a square come to."""
        run = [cell for cell in cells if cell.verdict != "not run"]
        if not run:
            return cls("none", "–")
        numbers = sum(cell.elements for cell in run)
        failing = [cell for cell in run if cell.verdict != "holds"]
        if failing:
            differing = _short(sum(cell.differing for cell in run))
            return cls("fails", f"≠ {differing}", f"of {_short(numbers)}")
        same = sum(cell.elements for cell in run if cell.level == "bitwise")
        within = f"≤ {_short(numbers - same)}" if same < numbers else ""
        return cls("same", f"= {_short(same)}", within) if same else cls("within", within)


def render(report: Report, *, command: str | None = None) -> str:
    """Return a report as SVG.

    Parameters
    ----------
    report : Report
    command : str, optional
        The command that was run; it is written below.

    Examples
    --------
    >>> from rotary.conformance import picture, run
    >>> drawn = picture.render(run(["numpy"], cases=["tables/whole"]))
    >>> "0 of 8,192 numbers differ" in drawn
    True
    """
    libraries = list(report.versions)
    rows = []
    for subject, prefixes in SUBJECTS.items():
        cells = [cell for cell in report.cells if cell.case.partition("/")[0] in prefixes]
        if cells:
            by_library = (Square.of(c for c in cells if c.library == name) for name in libraries)
            rows.append((subject, list(by_library)))
    compared = sum(cell.elements for cell in report.run)
    template = environment().get_template("picture.svg.j2")
    return template.render(
        report=report,
        rows=rows,
        libraries=libraries,
        verdict=f"{report.differing:,} of {compared:,} numbers differ",
        command=command and clipped(command, _LONGEST_COMMAND),
        made=datetime.now(UTC),
        rotary=rotary.__version__,
        left=_LEFT,
        top=_TOP,
        wide=_WIDE,
        high=_HIGH,
        gap=_GAP,
    )


def _short(number: int) -> str:
    """Return a count in three figures or so."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)

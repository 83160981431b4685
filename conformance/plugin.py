"""A plugin for pytest that runs the suite, a test for each cell.

::

    pytest -p rotary.conformance.plugin --pyargs rotary.conformance --rotary-backend NAME

It is no entry point, which every pytest would load; and no conftest, whose options ``--pyargs``
refuses.  Without it, nothing of rotary.conformance is collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

import rotary
from rotary.conformance import runner
from rotary.conformance.libraries import NotInstalledError
from rotary.conformance.runner import Cell, Task

_SUITE = Path(__file__).resolve()
_OPTIONS = ("backend", "case", "dtype", "way", "elements", "xfail")
_COLLECTED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("rotary", "rotary: what is held to the oracle, as in `rotary check`")
    for name, metavar, text in (
        ("backend", "NAME", "a library, or a module of one; by default all that are installed"),
        ("case", "ID", "case ids or patterns: rotation/half*"),
        ("dtype", "NAME", "float16, bfloat16, float32, float64; by default all"),
    ):
        option = f"--rotary-{name}"
        group.addoption(option, action="append", metavar=f"{metavar}[,{metavar}]", help=text)
    group.addoption("--rotary-way", action="append", metavar="NAME", help="ways of running")
    group.addoption("--rotary-elements", type=int, metavar="N", help="numbers in a rotation")
    group.addoption(
        "--rotary-xfail",
        type=Path,
        metavar="FILE",
        help="cells that are expected to fail: a name or pattern a line, '#' before a reason; one "
        "that passes, or a line that matches no cell, is an error",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Return the suite, where rotary.conformance is collected."""
    # By either of the two ways into it that a checkout has.
    if file_path.name == _SUITE.name and file_path.resolve() == _SUITE:
        suite: pytest.Collector = Suite.from_parent(parent, path=file_path)
        return suite
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Refuse options that nothing listens to."""
    given = [name for name in _OPTIONS if config.getoption(f"--rotary-{name}") is not None]
    if given and not config.stash.get(_COLLECTED, False):
        raise pytest.UsageError(
            f"--rotary-{given[0]}: the suite is not collected; add --pyargs rotary.conformance"
        )


class CellError(Exception):
    """A cell does not hold."""


class Suite(pytest.File):
    """All cells that are asked for."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each cell."""
        self.config.stash[_COLLECTED] = True
        option = self.config.getoption
        asked = {
            "cases": _names(option("--rotary-case")),
            "dtypes": _names(option("--rotary-dtype")),
            "ways": option("--rotary-way"),
            "elements": option("--rotary-elements"),
        }
        backends = _names(option("--rotary-backend"))
        try:
            collected = runner.collect(
                backends, **{n: v for n, v in asked.items() if v is not None}
            )
            expected = _read(option("--rotary-xfail"))
            if expected:
                _check(expected, backends)
        except (NotInstalledError, ValueError, OSError) as error:
            raise self.CollectError(f"rotary: {error}") from error
        elements = asked["elements"] or runner.ELEMENTS
        for planned in collected.planned:
            name = _name(planned)
            item = CellItem.from_parent(self, name=name, planned=planned, elements=elements)
            # A warning is no verdict, whatever the project at hand makes of warnings.
            item.add_marker(pytest.mark.filterwarnings("default"))
            for pattern, reason in expected.items():
                if fnmatchcase(name, pattern):
                    item.add_marker(pytest.mark.xfail(reason=reason or pattern, strict=True))
                    break
            yield item


class CellItem(pytest.Item):
    """One cell: library / case / dtype / way."""

    def __init__(self, *, planned: Task | Cell, elements: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.planned, self.elements = planned, elements

    def runtest(self) -> None:
        """Run the cell, or skip it with its reason."""
        if isinstance(self.planned, Cell):
            pytest.skip(self.planned.detail)
        cell = runner.run_task(self.planned, self.elements, rotary.RotaryEmbedding)
        if cell.verdict == "error":
            raise CellError(cell.detail)
        if cell.verdict != "holds":
            raise CellError(
                f"{cell.differing:,} of {cell.elements:,} differ from {cell.level}, worst "
                f"{cell.worst:.3g} at {cell.worst_index}: {cell.detail}"
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what failed, and how to run it alone."""
        if not isinstance(excinfo.value, CellError) or isinstance(self.planned, Cell):
            return super().repr_failure(excinfo, style)
        task = self.planned
        return (
            f"{excinfo.value}\nrotary check --backend {task.library.name} --case {task.case.id} "
            f"--dtype {task.dtype} --way '{task.way.name}'"
        )

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return the cell's name for the headings of reports."""
        return self.path, None, self.name


def _name(planned: Task | Cell) -> str:
    if isinstance(planned, Cell):
        return planned.name
    return f"{planned.library.name} / {planned.case.id} / {planned.dtype} / {planned.way.name}"


def _names(given: list[str] | None) -> list[str] | None:
    return None if given is None else [n.strip() for names in given for n in names.split(",")]


def _read(file: Path | None) -> dict[str, str]:
    """Return the patterns of an xfail file, and their reasons."""
    if file is None:
        return {}
    lines = (line.partition("#") for line in file.read_text("utf-8").splitlines())
    return {pattern.strip(): reason.strip() for pattern, _, reason in lines if pattern.strip()}


def _check(expected: dict[str, str], backends: list[str] | None) -> None:
    """Refuse a pattern that matches none of these backends' cells, chosen this time or not."""
    names = [_name(planned) for planned in runner.collect(backends).planned]
    for pattern in expected:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"--rotary-xfail: {pattern!r} matches no cell of what is run here")

"""The conformance table, run while the site is built: ``{conformance-table}``.

Each line of the content is a case of ``rotary check`` and, behind a colon, what it is in words.
Where something does not hold, the site is not built.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from rotary import conformance


class ConformanceTable(SphinxDirective):
    """Numbers that differ, of those compared: cases × libraries."""

    has_content = True
    option_spec = {  # noqa: RUF012 - as the base class has it
        "backends": directives.unchanged_required,
        "dtypes": directives.unchanged_required,
        "ways": directives.unchanged_required,
        "elements": directives.positive_int,
    }

    def run(self) -> list[nodes.Node]:
        words = {
            case: text.strip()
            for case, _, text in (line.partition(":") for line in self.content if line.strip())
        }
        names = {name: self.options[name].split() for name in ("backends", "dtypes", "ways")}
        elements = self.options["elements"]
        report = conformance.run(**names, cases=words, elements=elements)
        if not report.holds:
            failures = ", ".join(cell.name for cell in report.failures)
            raise ExtensionError(f"conformance-table: does not hold: {failures or 'nothing ran'}")
        table = _table(report, words)
        self.set_source_info(table)
        options = [["--backend", ",".join(names["backends"])], ["--case", ",".join(words)]]
        options += [["--dtype", ",".join(names["dtypes"])]]
        options += [[o for way in names["ways"] for o in ("--way", way)]]
        options += [["--elements", str(elements)]]
        lines = " \\\n    ".join(map(shlex.join, options))
        return [table, *_below(report, f"rotary check {lines}")]


def _table(report: conformance.Report, words: dict[str, str]) -> nodes.table:
    libraries = list(report.versions)
    rows = []
    for case, text in words.items():
        cells = [cell for cell in report.run if cell.case == case]
        found = {name: [cell for cell in cells if cell.library == name] for name in libraries}
        levels = dict.fromkeys(cell.level for cell in cells)
        counts = [_count(found[name]) for name in libraries]
        first = nodes.paragraph("", "", nodes.literal("", case), nodes.Text(f" {text}"))
        rows.append([first, ", ".join(levels), *counts])
    return _as_nodes(["case", "level", *libraries], rows)


def _below(report: conformance.Report, command: str) -> Iterable[nodes.Node]:
    """Say what was compared, and by what it is repeated."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    compared = sum(cell.elements for cell in report.run)
    said = (
        f"Run while this page was built, in {report.seconds:.0f} s: {len(report.run)} cells, "
        f"{compared:,} numbers compared with the oracle, {report.differing} outside their level. "
        f"{versions}. The same again:"
    )
    return nodes.paragraph("", said), nodes.literal_block(command, command, language="sh")


def _count(cells: Sequence[conformance.Cell]) -> str:
    compared, differing = (sum(getattr(c, n) for c in cells) for n in ("elements", "differing"))
    return f"{differing} of {compared:,}" if cells else "not run"


def _as_nodes(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> nodes.table:
    table = nodes.table("", classes=["conformance-table"])
    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec("", colwidth=1) for _ in head]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    table += group
    return table


def _row(entries: Sequence[Any]) -> nodes.row:
    held = (e if isinstance(e, nodes.Node) else nodes.paragraph("", e) for e in entries)
    return nodes.row("", *(nodes.entry("", one) for one in held))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("conformance-table", ConformanceTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""A report as JUnit's XML, which continuous integration reads: a test case for each cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from rotary.conformance.report import Report
from rotary.conformance.runner import Cell

# What XML 1.0 cannot hold, even escaped: a terminal's colours in an error's message.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """Return the report as JUnit's XML: a suite for each library, a test case for each cell.

    What fails is a failure, what could not be computed an error, and what was not run is skipped,
    with its reason.
    """
    root = ET.Element("testsuites", name="rotary check", time=f"{report.seconds:.3f}")
    for library, version in report.versions.items():
        cells = [cell for cell in report.cells if cell.library == library]
        suite = ET.SubElement(root, "testsuite", {"name": printable(library), **_counts(cells)})
        properties = ET.SubElement(suite, "properties")
        ET.SubElement(properties, "property", name="version", value=printable(version))
        for cell in cells:
            _add(suite, cell)
    for library, reason in report.left_out.items():
        suite = ET.SubElement(root, "testsuite", name=library, tests="1", skipped="1")
        case = ET.SubElement(suite, "testcase", classname=library, name="left out")
        ET.SubElement(case, "skipped", message=printable(reason))
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add(suite: ET.Element, cell: Cell) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=printable(f"{cell.library}.{cell.case}"),
        name=printable(f"{cell.dtype} / {cell.way} / {cell.level}"),
        time=f"{cell.seconds:.3f}",
    )
    tags = {"fails": "failure", "error": "error", "not run": "skipped"}
    if cell.verdict in tags:
        message = cell.detail
        if cell.verdict == "fails":
            message = (
                f"{cell.differing} of {cell.elements} differ, worst {cell.worst:.3g}: {message}"
            )
        ET.SubElement(case, tags[cell.verdict], message=printable(message)).text = printable(
            cell.name
        )


def _counts(cells: Iterable[Cell]) -> dict[str, str]:
    cells = list(cells)
    verdicts = Counter(cell.verdict for cell in cells)
    return {
        "tests": str(len(cells)),
        "failures": str(verdicts["fails"]),
        "errors": str(verdicts["error"]),
        "skipped": str(verdicts["not run"]),
        "time": f"{sum(cell.seconds for cell in cells):.3f}",
    }


def printable(text: str) -> str:
    """Return a text without what no markup can hold."""
    return _NO_XML.sub("�", text)

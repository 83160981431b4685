"""The report as a picture: what its squares say, and that it is an image that stands alone."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from rotary import cli
from rotary.conformance import cases
from rotary.conformance.picture import SUBJECTS, Square, render
from rotary.conformance.report import Report
from rotary.conformance.runner import Cell


def cell(
    library: str, case: str, level: str = "bitwise", verdict: str = "holds", n: int = 0
) -> Cell:
    return Cell(library, case, "float32", "eager", level, verdict, elements=2_000_000, differing=n)


def test_every_case_has_one_row() -> None:
    rows = [prefix for prefixes in SUBJECTS.values() for prefix in prefixes]
    assert sorted(rows) == sorted({case.id.partition("/")[0] for case in cases.every()})


def test_a_square_says_what_is_equal_and_what_has_a_bound() -> None:
    equal, bound = cell("numpy", "tables/whole"), cell("numpy", "tables/whole", "ulp <= 0.501")
    assert Square.of([equal, equal]) == Square("same", "= 4 M")
    assert Square.of([equal, bound]) == Square("same", "= 2 M", "≤ 2 M")
    assert Square.of([bound]) == Square("within", "≤ 2 M")


def test_a_square_says_how_many_numbers_differ() -> None:
    wrong = cell("numpy", "rotation/half", verdict="fails", n=1234)
    assert Square.of([cell("numpy", "rotation/half"), wrong]) == Square(
        "fails", "≠ 1.23 k", "of 4 M"
    )
    broken = cell("numpy", "rotation/half", verdict="error")
    assert Square.of([broken]).kind == "fails"


def test_what_was_not_run_is_no_success() -> None:
    assert Square.of([]) == Square.of([cell("numpy", "linear/state", verdict="not run")])
    assert Square.of([]).kind == "none"


def test_the_picture_names_subjects_and_libraries_and_escapes_what_it_is_told() -> None:
    cells = (cell("numpy", "tables/whole"), cell("a<b", "rotation/half", verdict="fails", n=5))
    report = Report(cells, {"numpy": "2.4", "a<b": "1.0+cpu"}, 1000, 1.0)
    root = ET.fromstring(render(report, command="rotary check --case 'rotation/*' " + "x" * 200))
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    assert texts[0] == "5 of 4,000,000 numbers differ"
    assert {"numpy", "2.4", "a<b", "1.0", "tables of cos and sin", "rotation", "≠ 5"} <= set(texts)
    assert "linear attention" not in texts
    assert texts[-1].endswith("x…")
    assert not [a for e in root.iter() for a in e.attrib if "href" in a]


def test_what_xml_cannot_hold_does_not_break_the_picture() -> None:
    report = Report((cell("a\x07b", "tables/whole"),), {"a\x07b": "1\x00"}, 1000, 1.0)
    assert ET.fromstring(render(report, command="rotary \x1b[31m")) is not None


def test_the_command_line_draws_it(tmp_path: Path) -> None:
    asked = ["check", "--backend", "numpy", "--case", "tables/whole", "--elements", "1000"]
    file = tmp_path / "table.svg"
    assert cli.main([*asked, "--picture", str(file)]) == 0
    assert "--picture" in file.read_text("utf-8")
    ET.parse(file)
    assert cli.main([*asked, "--picture", str(tmp_path / "no" / "table.svg")]) == 2

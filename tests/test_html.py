"""The report as a page: what stands on it, that it loads nothing, and how a browser shows it."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rotary
from rotary import cli
from rotary.backends import _numpy
from rotary.conformance import check_implementation, oracle, plot
from rotary.conformance.html import render, write
from rotary.conformance.report import Report
from rotary.conformance.runner import Cell

LEAVES = {"meta", "br", "hr", "img", "input", "link"}
DARK = "@media screen and (prefers-color-scheme: dark)"


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What is read, spaces put together."""
        texts = (c if isinstance(c, str) else c.text for c in self.children)
        return " ".join("".join(texts).split())

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Return the elements below of a tag, whose attributes have these words."""
        return [
            e
            for e in self._below()
            if tag in ("", e.tag)
            and all(set(v.split()) <= set(e[k].split()) for k, v in attributes.items())
        ]

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name.rstrip("_"), "")

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()


class Reader(HTMLParser):
    """Reads a page, and refuses what is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]
        self.feed(page)
        self.close()
        assert [e.tag for e in self.open] == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in LEAVES:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Element:
    return Reader(page).open[0]


NASTY = "<script>alert('&')</script>"
WRONG = Cell(
    "torch", "rotation/half", "float32", "compiled", "bitwise", "fails", 4000, 3, 0, 7.0,
    (0, 1, 2), f"expected np.float32(0.5), got {NASTY}",
)  # fmt: skip
BROKEN = Cell(
    "torch", "rotation/far", "float32", "eager", "bitwise", "error", detail="ValueError: \x1b[31m\0"
)
CELLS = (
    Cell("numpy", "rotation/half", "float32", "eager", "bitwise", "holds", 4000),
    Cell("numpy", "rotation/half", "bfloat16", "eager", "bitwise", "holds", 4000, flushed=12),
    Cell("numpy", "rotation/far", "float32", "eager", "bitwise", "holds", 4000),
    Cell("numpy", "tables/whole", "float64", "eager", "ulp <= 0.501", "holds", 10, worst=0.4375),
    Cell("numpy", "gradient/x", "float64", "g", "bound", "not run", detail=f"has no {NASTY}"),
    Cell("torch", "rotation/half", "float32", "eager", "bitwise", "holds", 4000),
    WRONG,
    BROKEN,
    Cell("torch", "tables/whole", "float32", "eager", "bitwise", "not run", detail="no"),
    Cell("torch", "tables/whole", "float64", "eager", "ulp <= 0.501", "holds", 10, worst=0.25),
    Cell(
        "torch", "gradient/x", "float64", "g", "bound", "holds", 10, 0, 0, 0.75, (4,),
        "expected 1.0, got 1.5",
    ),
)  # fmt: skip
VERSIONS = {"numpy": "2.4", "torch": "2.13+<cpu>"}
REPORT = Report(CELLS, VERSIONS, 4000, 12.5, {"cupy": f"no GPU {NASTY}"})


@lru_cache(maxsize=1)
def page() -> str:
    return render(REPORT, command="rotary check --html <report>")


@lru_cache(maxsize=1)
def tree() -> Element:
    return read(page())


@lru_cache(maxsize=1)
def held() -> Any:
    """Return what is found of the usual code, whose table ends."""

    def rope(x: Any, positions: Any) -> Any:
        if positions.max() > 1500:
            raise IndexError(f"no row {NASTY}")
        f = np.float32(10_000.0) ** np.float32([0.0, -0.25, -0.5, -0.75])
        angles = positions[:, None].astype(np.float32) * f
        return rotary.rotate(x, np.cos(angles), np.sin(angles))

    given = {"dtypes": ["float32", "bfloat16"], "positions": 2048, "rtol": 2.0**-21}
    return check_implementation(rope, rotary.RotaryEmbedding(8), **given)


@lru_cache(maxsize=1)
def held_page() -> str:
    return held().to_html(command="rotary check --implementation mine:rope")


PAGES = pytest.mark.parametrize("made", [page, held_page])


# It is a page, of its own.


@PAGES
def test_it_is_well_formed_and_its_links_lead_somewhere(made: Any) -> None:
    read_ = read(made())
    ids = [e["id"] for e in read_.all() if e["id"]]
    assert len(set(ids)) == len(ids)
    links = {e["href"] for e in read_.all("a")}
    assert links
    assert links <= {f"#{name}" for name in ids}
    for element in read_.all():
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(element[name].split()) <= set(ids)


@PAGES
def test_it_runs_nothing_and_loads_nothing(made: Any) -> None:
    read_ = read(made())
    names = {e.tag for e in read_.all()}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use"}
    for element in read_.all():
        assert not {"src", "srcset", "action", "data", "background"} & set(element.attributes)
        assert not any(name.startswith(("on", "xlink")) for name in element.attributes)
    assert not re.search(r"url\(|@import|https?:|//\w", made())
    (policy,) = (e for e in read_.all("meta") if e["http-equiv"])
    assert policy["content"].startswith("default-src 'none';")


@PAGES
def test_it_follows_the_colour_scheme_fits_a_phone_and_prints(made: Any) -> None:
    style = read(made()).all("style")[0].text
    assert DARK in style
    assert "@media print" in style
    assert "@media (max-width: 40rem)" in style
    named = {e["name"]: e["content"] for e in read(made()).all("meta")}
    assert named["color-scheme"] == "light dark"
    assert "width=device-width" in named["viewport"]
    # What is dark has every colour of what is light.
    light, dark = (re.search(rf"{p}{{([^}}]*)}}", style)[1] for p in (":root ", ":root .*:root "))
    light, dark = (re.findall(r"(--[\w-]+):", block) for block in (light, dark))
    assert sorted(light) == sorted(dark)
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= {*light, "--verdict"}


def test_what_others_wrote_is_shown_and_not_obeyed() -> None:
    assert NASTY not in page() + held_page()
    text = tree().text
    assert f"got {NASTY}" in text
    assert f"1 cell: has no {NASTY}" in text
    assert f"no GPU {NASTY}" in text
    assert "rotary check --html <report>" in text
    assert "2.13+<cpu>" in text
    assert "ValueError: \ufffd[31m\ufffd" in text
    assert "\0" not in page()
    assert f"no row {NASTY}" in read(held_page()).text


def test_a_run_in_which_everything_fails_is_a_page_that_opens() -> None:
    cells = [
        replace(WRONG, library=f"library-{n % 8}", case=f"rotation/{n // 48}", dtype=f"d{n}")
        for n in range(7000)
    ]
    versions = {f"library-{n}": "1.0" for n in range(8)}
    made = render(Report(tuple(replace(c, detail="x" * 5000) for c in cells), versions, 1, 1.0))
    assert len(made.encode()) < 10**6
    assert "200 of 7,000 cells are listed" in read(made).text


# What it says.


def test_the_verdict_is_a_sentence() -> None:
    def said(report: Report) -> str:
        (heading,) = read(render(report)).all("h1")
        return heading.text

    assert tree().all("header", class_="it-fails")
    assert tree().all("h1")[0].text == "Fails: 2 of 9 cells; 3 of 20,030 numbers differ"
    holding = tuple(cell for cell in CELLS if cell.verdict in ("holds", "not run"))
    assert said(replace(REPORT, cells=holding)) == "Holds: 0 of 16,030 numbers differ"
    assert said(replace(REPORT, cells=CELLS[4:5])) == "Nothing was run"


def test_it_says_what_was_compared_and_where() -> None:
    text = tree().all("section", id="how")[0].text
    assert rotary.__version__ in text
    for word in ("machine", "system", "Python", "made", "12.5 s", "about 4,000 numbers"):
        assert word in text
    (table,) = tree().all("section", id="how")[0].all("table")
    rows = {row.all("th")[0].text: [e.text for e in row.all("td")] for row in table.all("tr")[1:]}
    assert rows["numpy"][:4] == ["2.4", "4", "12,010", "0"]
    assert rows["torch"][:4] == ["2.13+<cpu>", "5", "8,020", "3"]
    assert rows["torch"][5] == "float32, float64; eager, compiled, g"


def squares() -> dict[tuple[str, str], Element]:
    (table,) = tree().all("table", class_="map")
    head, *rows = (row for row in table.all("tr") if row["class"] != "group")
    libraries = [e.children[0] for e in head.all("th")[1:-1]]
    assert libraries == list(VERSIONS)
    return {
        (row.all("th")[0].text, library): square
        for row in rows
        for library, square in zip(libraries, row.all("td")[:-1], strict=True)
    }


def test_every_case_and_library_has_a_square_that_is_read_without_colours() -> None:
    assert {where: square.text for where, square in squares().items()} == {
        ("rotation/half", "numpy"): "= 2",
        ("rotation/half", "torch"): "≠ 1/2",
        ("rotation/far", "numpy"): "= 1",
        ("rotation/far", "torch"): "! 1/1",
        ("tables/whole", "numpy"): "≤ 1",
        ("tables/whole", "torch"): "≤ 1",
        ("gradient/x", "numpy"): "–",
        ("gradient/x", "torch"): "≤ 1",
    }
    groups = [row.text for row in tree().all("tr", class_="group")]
    assert groups == ["rotation 2 cases", "tables 1 case", "gradient 1 case"]
    kinds = {(case, library): square["class"] for (case, library), square in squares().items()}
    assert kinds["rotation/half", "torch"] == "fails s1"  # 3 of 4000
    assert kinds["tables/whole", "torch"] == "within partly"
    assert kinds["gradient/x", "numpy"] == "skipped"
    title = squares()["rotation/half", "torch"]["title"]
    assert "1 of 2 cells fail, 3 of 8,000 numbers differ" in title
    assert "eager, compiled" in title


def test_a_case_says_which_mistake_it_catches() -> None:
    (row,) = (r for r in tree().all("tr") if r.text.startswith("rotation/half"))
    assert row.all("td", class_="catches")[0].text == "a contracted FMA; the wrong layout"


@pytest.mark.parametrize(("share", "strength"), [(1e-5, 1), (5e-3, 2), (0.05, 3), (0.4, 4), (1, 4)])
def test_the_larger_the_share_the_stronger_the_colour(share: float, strength: int) -> None:
    cell = replace(WRONG, differing=int(share * 10**6), elements=10**6)
    made = read(render(replace(REPORT, cells=(cell,))))
    (square,) = (e for e in made.all("td") if e.text == "≠ 1/1")
    assert square["class"] == f"fails s{strength}"


def test_a_failure_has_its_numbers_its_place_and_its_command() -> None:
    first, second = tree().all("ol", class_="failures")[0].all("li")
    assert "3 of 4,000 numbers differ, the worst by 7 ulp at index [0, 1, 2]" in first.text
    assert "expected np.float32(0.5)" in first.text
    (code,) = first.all("code")
    assert code.text == (
        "rotary check --backend torch --case rotation/half --dtype float32 --way compiled "
        "--elements 4000"
    )
    assert "could not be computed" in second.text
    link = squares()["rotation/half", "torch"].all("a")[0]["href"]
    assert link == f"#{first['id']}"


def test_the_worst_of_every_square_comes_first() -> None:
    many = [replace(WRONG, differing=n, dtype=f"d{n}") for n in range(1, 300)]
    few = replace(WRONG, case="rotation/far")
    made = read(render(replace(REPORT, cells=(few, *many))))
    names = [e.text for e in made.all("ol", class_="failures")[0].all("h3")]
    assert names[0] == "≠ torch / rotation/half / d299 / compiled"
    assert names[1] == "≠ torch / rotation/far / float32 / compiled"
    assert names[2] == "≠ torch / rotation/half / d298 / compiled"


def test_the_largest_error_of_every_level_is_said_with_its_command() -> None:
    lists = tree().all("ol", class_="largest")
    assert [e.all("strong")[0].text for e in lists] == ["0.7500", "0.4375"]
    assert [len(e.all("li")) for e in lists] == [1, 1]  # not the same case once more
    assert "torch / gradient/x / float64 / g, at index [4]" in lists[0].text
    assert "expected 1.0, got 1.5" in lists[0].text
    assert "--case gradient/x" in lists[0].all("code")[0].text


def test_what_was_not_run_and_what_was_flushed_are_said() -> None:
    text = tree().all("section", id="not-run")[0].text
    assert "cupy is installed and was left out: no GPU" in text
    assert "numpy: 12 numbers of bfloat16, in 1 cell" in text
    assert "1 cell: no (1 case; eager; float32)" in text


# The plot.


Run = list[tuple[float, float]]


def drawn(made: str) -> tuple[dict[str, list[Run]], Element]:
    """Return the runs of points of every kind of curve, and the drawing."""
    svg = read(made).all("svg", role="img")[0]
    runs: dict[str, list[Run]] = {}
    for curve in svg.all("g", class_="curve"):
        for line in curve.all("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
            runs.setdefault(curve["class"].split()[1], []).append(points)
    return runs, svg


@PAGES
def test_the_plot_has_titles_units_and_every_point_inside(made: Any) -> None:
    runs, svg = drawn(made())
    assert [e.text for e in svg.all("text", class_="axis")] == [
        "position in the sequence (tokens)",
        "error (ulp)",
    ]
    assert svg.all("title")[0].text == "Error by position"
    assert "usual practice" in svg.all("desc")[0].text
    for run in (run for every in runs.values() for run in every):
        assert all(84 <= x <= 700 and 16 <= y <= 330 for x, y in run)
        assert [x for x, _ in run] == sorted(x for x, _ in run)
    # Ours lies within the error of the nearest numbers, the usual practice leaves it.
    (shade,) = svg.all("rect", class_="nearest")
    (ours,), (usual,) = runs["ours"], runs["usual"]
    assert min(y for _, y in ours) >= float(shade["y"])
    assert min(y for _, y in usual) < float(shade["y"]) - 50
    assert len(runs.get("theirs", ())) == (2 if made is held_page else 0)
    assert "0 of" in read(made()).all("figcaption")[0].all("li")[0].text


def test_the_errors_of_the_plot_are_those_of_the_oracle() -> None:
    ours, usual = plot.of_tables(rotary.RotaryEmbedding(16), 5000)
    some = slice(None, None, 20)
    exact = oracle.tables(oracle.Angles(16), np.array(ours.positions[some], np.float64))
    tables = rotary.RotaryEmbedding(16).tables
    for curve, precision in ((ours, "exact"), (usual, "float32")):
        got = np.stack(tables(ours.positions[some], precision=precision)).astype(np.float64)
        off = np.hypot(*(got - exact.high)).max(axis=-1) * 2.0**23
        np.testing.assert_allclose(curve.errors[some], off, rtol=1e-6)
    assert (ours.differing, ours.numbers) == (0, 2 * 8 * len(ours.positions))
    assert ours.positions[-1] == 5000
    assert max(ours.errors) <= plot.NEAREST
    assert usual.up_to(5000) > 100 * plot.NEAREST


def test_what_gave_no_number_breaks_the_curve_and_is_marked() -> None:
    curve = plot.Curve("c", "theirs", (0, 1, 10, 100, 1000), (0.0, 1.0, math.inf, 5.0, 1e9))
    (line,) = plot.plot([curve]).lines
    assert [len(run.split()) for run in line.runs] == [1, 2]
    assert len(line.lost) == 1
    assert len(plot.plot([curve]).rows) <= 8
    assert plot.plot([curve]).rows[-1][1] == "10⁹"


# A foreign implementation.


def test_a_foreign_implementation_has_its_reach_and_its_curve() -> None:
    made = read(held_page())
    heading = made.all("h1")[0].text
    assert heading.startswith("Fails what was asked: holds at ")
    assert made.all("header", class_="it-fails")
    (table,) = made.all("section", id="reach")[0].all("table")
    rows = {row.all("th")[0].text: [e.text for e in row.all("td")] for row in table.all("tr")[1:]}
    parts = {part.dtype: part for part in held().parts}
    for column, dtype in enumerate(("float32", "bfloat16")):
        for reach in parts[dtype].reaches:
            row = rows[f"{reach.ulp:g} ulp" + (" asked for" if reach.asked else "")]
            end = "nowhere" if reach.holds_to is None else f"up to position {reach.holds_to:,}"
            assert row[column] == f"≠ {end}, fails at {reach.fails_at:,}"
    # 2^-21 is another number of ulps in each dtype.
    assert rows["4 ulp asked for"][1] == ""
    assert rows[f"{2.0**-14:g} ulp asked for"][0] == ""
    assert rows["largest error"][0].startswith("no number at position ")
    names = [e.text for e in made.all("figcaption")[0].all("li")]
    assert any(
        f"rotation of {held().name.rpartition(':')[2]}, bfloat16 (×: no number)" in name
        for name in names
    )
    assert "raises IndexError at" in made.text
    assert not made.all("table", class_="map")


def test_a_measurement_is_no_verdict_and_xpos_has_no_usual_practice() -> None:
    rope = rotary.RotaryEmbedding(8)
    made = read(check_implementation(lambda x, positions: -x, rope, positions=0).to_html())
    assert made.all("header", class_="it-measured")
    assert made.all("h1")[0].text == (
        "Holds at 2 ulp nowhere, at 10 ulp nowhere, at 1000 ulp nowhere"
    )
    assert "it computes another rotation" in made.text
    assert plot.of_tables(rotary.RotaryEmbedding(8, xpos=rotary.XPos(512.0)), 10) == ()
    (only,) = plot.of_implementation(check_implementation(lambda x, offset: x, rope, positions=2))
    assert plot.plot([only]).lines[0].curve is only


# The command.


def test_the_command_writes_a_page_whose_commands_repeat_the_failures(
    capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        _numpy, "product", lambda x, factor: np.nextafter(x * factor, x.dtype.type(0))
    )
    monkeypatch.setattr(_numpy, "rotate", lambda *_: None)  # no kernel
    file = tmp_path / "report.html"
    chosen = ["--case", "rotation/half,tables/whole", "--dtype", "float32", "--elements", "1000"]
    asked = ["check", "--backend", "numpy", *chosen, "--html", str(file)]
    assert cli.main(asked) == 1
    made = read(file.read_text("utf-8"))
    assert made.all("h1")[0].text.startswith("Fails: 2 of 3 cells; ")
    commands = [e.text for e in made.all("ol", class_="failures")[0].all("code")]
    assert len(commands) == 2
    first = made.all("ol", class_="failures")[0].all("pre")[0].text
    again = tmp_path / "again.json"
    assert cli.main([*shlex.split(commands[0])[1:], "--json", str(again)]) == 1
    (cell,) = json.loads(again.read_text())["cells"]
    assert cell["detail"] == first
    assert shlex.join(["rotary", *asked]) in made.text


def test_a_page_that_cannot_be_written_is_refused_before_the_run(capsys: Any) -> None:
    assert cli.main(["check", "--html", "no/such/folder/report.html"]) == 2
    assert "--html: there is no folder no/such/folder" in capsys.readouterr().err


def test_a_page_is_written_as_utf_8(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "report.html")
    assert read((tmp_path / "report.html").read_text("utf-8")).all("h1")


# In a browser.

# Sizes, and whether it is dark.
VIEWS = {
    "desktop": (1200, 700, False),
    "desktop-dark": (1200, 700, True),
    "phone": (500, 700, False),
    "phone-dark": (500, 700, True),
}
# A window is at least 500 wide; a frame is not.
MEASURE = """<!DOCTYPE html><body><iframe style="width:360px;height:640px" srcdoc="{}"></iframe>
<script>
onload = () => {{
  const frame = document.querySelector("iframe").contentWindow, page = frame.document;
  const box = page.querySelector(".tall"), at = e => e.getBoundingClientRect();
  const head = page.querySelectorAll(".map thead th")[1], side = page.querySelectorAll(".case")[1];
  box.style.maxHeight = "120px";
  box.style.maxWidth = "140px";
  box.scrollTo(60, 60);
  const found = {{
    overflow: page.documentElement.scrollWidth - frame.innerWidth,
    scrolled: [box.scrollTop, box.scrollLeft],
    stuck: [at(head).top - at(box).top, at(side).left - at(box).left],
    loaded: frame.performance.getEntriesByType("resource").length,
    cut: [...page.querySelectorAll("figure svg text")].filter(
      e => at(e).left < at(page.querySelector("figure > svg")).left - 1).length,
    apart: Math.min(...[...page.querySelectorAll(".grid text[text-anchor=end]")].map(
      e => at(e).left)) - at(page.querySelectorAll("text.axis")[1]).right,
    columns: page.querySelectorAll(".map thead th").length,
    letters: parseFloat(frame.getComputedStyle(page.querySelector("figure svg text")).fontSize)
      * at(page.querySelector("figure > svg")).width / 720,
  }};
  document.body.textContent = JSON.stringify(found);
}};
</script>"""


@dataclass(frozen=True)
class Browser:
    """What a headless Chromium made of the page."""

    pictures: dict[str, bytes]
    dom: str
    measured: dict[str, Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    names = ("chromium", "chromium-browser", "google-chrome")
    command = next(filter(None, map(shutil.which, names)), None)
    if command is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(page(), "utf-8")
    (folder / "measure.html").write_text(MEASURE.format(html.escape(page())), "utf-8")
    # Root, as in a container, has no sandbox.
    usual = [command, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]

    def start(name: str, file: str, *options: str) -> subprocess.Popen[str]:
        own = f"--user-data-dir={folder / name}"
        address = (folder / file).as_uri()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*usual, own, *options, address], text=True, **pipes)

    started = {"measure": start("measure", "measure.html", "--dump-dom")}
    for name, (width, height, dark) in VIEWS.items():
        options = ["--dump-dom", f"--screenshot={folder / name}.png"]
        if dark:
            options.append("--blink-settings=preferredColorScheme=0")
        started[name] = start(name, "page.html", f"--window-size={width},{height}", *options)
    try:
        printed = {name: one.communicate(timeout=60)[0] for name, one in started.items()}
    finally:
        for one in started.values():
            one.kill()
    pictures = {name: (folder / f"{name}.png").read_bytes() for name in VIEWS}
    found = json.loads(html.unescape(re.search(r"<body>(\{.*\})\s*</body>", printed["measure"])[1]))
    return Browser(pictures, printed["desktop"], found)


def top(picture: bytes, rows: int) -> np.ndarray:
    """Return the first rows of a PNG of 8 bits, shape (rows, width, channels)."""
    width, _, depth, kind = struct.unpack(">IIBB", picture[16:26])
    assert (depth, kind in (2, 6)) == (8, True)
    channels = {2: 3, 6: 4}[kind]
    data, at = b"", 8
    while at < len(picture):
        (length,) = struct.unpack(">I", picture[at : at + 4])
        if picture[at + 4 : at + 8] == b"IDAT":
            data += picture[at + 8 : at + 8 + length]
        at += length + 12
    stride = width * channels
    raw = zlib.decompressobj().decompress(data, rows * (stride + 1))
    above, out = bytearray(stride), []
    for n in range(rows):
        rule, *line = raw[n * (stride + 1) : (n + 1) * (stride + 1)]
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            corner = above[i - channels] if i >= channels else 0
            line[i] = (line[i] + _predicted(rule, left, above[i], corner)) & 255
        above = line
        out.append(line)
    return np.array(out, np.uint8).reshape(rows, width, channels)


def _predicted(rule: int, left: int, up: int, corner: int) -> int:
    if rule < 4:
        return (0, left, up, (left + up) // 2)[rule]
    return min((left, up, corner), key=lambda c: abs(left + up - corner - c))


@pytest.mark.parametrize("view", VIEWS)
def test_a_browser_shows_it_light_and_dark(browser: Browser, view: str) -> None:
    picture = browser.pictures[view]
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == VIEWS[view][:2]
    pixels = top(picture, 60)[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    dark = VIEWS[view][2]
    assert pixels[0, 0].tolist() == ([0x12, 0x16, 0x1B] if dark else [255, 255, 255])


def test_a_browser_reads_what_was_written(browser: Browser) -> None:
    shown = read(browser.dom)
    assert shown.all("h1")[0].text == tree().all("h1")[0].text
    for tag in ("td", "th", "li", "code", "polyline", "section"):
        assert len(shown.all(tag)) == len(tree().all(tag))


def test_it_fits_a_phone_whose_table_scrolls_under_its_headers(browser: Browser) -> None:
    found = browser.measured
    assert found["overflow"] <= 0
    assert found["scrolled"] == [60, 60]
    assert max(map(abs, found["stuck"])) <= 2
    assert found["columns"] == 2 + len(VERSIONS)
    assert found["cut"] == 0
    assert found["apart"] > 0
    assert found["letters"] > 9
    assert found["loaded"] == 0

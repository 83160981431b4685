"""The site as it is built: no warning, no link into nothing, and no page wider than a phone.

``pytest -m large tests/test_site.py`` builds it first; with ``ROTARY_SITE=DIR`` in the environment
what ``sphinx-build -W docs DIR`` wrote is looked at instead.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx", reason="the site needs the extra docs")
pytest.importorskip("furo", reason="the site needs the extra docs")

pytestmark = pytest.mark.large

# The start page, and pages of each section: pictures, equations, wide tables, long code.
SHOWN = (
    "index", "understand/index", "understand/rotary", "understand/linear",
    "understand/interpolation", "use/index", "use/decode", "use/transformers", "numbers",
    "conform", "vectors", "api/index", "api/embedding", "api/backends", "api/integrations",
    "extend", "reports/index", "bench", "census", "defects", "models", "auto_gallery/index",
    "auto_gallery/plot_linear_lm",
)  # fmt: skip
WIDTHS = (390, 1280)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Return the folder of the site, built from another folder than the checkout."""
    built = os.environ.get("ROTARY_SITE")
    if built:
        return Path(built).resolve()
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-d", folder / "trees"]
    done = subprocess.run(
        [*command, root / "docs", folder / "html"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Links(HTMLParser):
    """Ids of a page, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.pictures: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        self.targets |= {value for name in ("href", "src") if (value := given.get(name))}
        if tag == "img":
            self.pictures.append(given.get("alt"))


@functools.cache
def read(file: Path) -> Links:
    return Links(file.read_text("utf-8"))


def test_every_link_leads_to_a_file_and_its_place(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    broken = []
    for page in pages:
        for target in read(page).targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = urllib.parse.unquote(parts.path)
            file = (page.parent / path).resolve() if path else page
            place = urllib.parse.unquote(parts.fragment)
            inside = place and file.suffix == ".html"
            if not file.is_file() or (inside and place not in read(file).ids):
                broken.append((page.name, target))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(\w+:[^\"]*)", text)
        assert [url for url in loaded if not url.startswith("data:")] == [], page.name


def test_every_picture_says_in_words_what_it_shows(site: Path) -> None:
    for page in site.rglob("*.html"):
        thumbnails = page == site / "auto_gallery" / "index.html"  # their titles stand below
        assert thumbnails or all(read(page).pictures), page.name


def test_equations_are_drawn_by_the_browser(site: Path) -> None:
    text = (site / "understand" / "rotary.html").read_text("utf-8")
    assert text.count("<math ") > 10
    assert "\\(" not in text
    assert "$" not in re.sub(r"<(pre|code|script)\b.*?</\1>", "", text, flags=re.DOTALL)


def test_the_start_page_shows_numbers_that_were_compared(site: Path) -> None:
    text = (site / "index.html").read_text("utf-8")
    table = re.search(r"<table class=\"[^\"]*conformance-table.*?</table>", text, re.DOTALL)[0]
    cells = re.findall(r"<td><p>(\d+) of ([\d,]+)</p></td>", table)
    assert len(cells) >= 12
    assert {differing for differing, _ in cells} == {"0"}


# In a browser

# Every page in frames of each width; both themes of each are measured.
MEASURE = """<!doctype html><meta charset="utf-8"><body>{frames}<script>
const shown = e => {{
  const box = e.getBoundingClientRect();
  return box.width > 0 && box.height > 0;
}};
const name = e => e.tagName + "." + e.className + " " + (e.textContent || "").slice(0, 40);
const measured = (frame, theme) => {{
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  page.body.dataset.theme = theme;
  const article = page.querySelector("article") || page.body;
  // A box that scrolls on its own may hold what is wide; what holds the whole text may not scroll.
  const scrolls = e => {{
    for (; e && e !== article; e = e.parentElement) {{
      if (/auto|scroll|hidden|clip/.test(frame.contentWindow.getComputedStyle(e).overflowX))
        return true;
    }}
    return false;
  }};
  const images = [...article.querySelectorAll("img")];
  const figures = [...article.querySelectorAll("figure, .sphx-glr-thumbcontainer")].filter(shown);
  const overlap = (a, b) => {{
    const one = a.getBoundingClientRect(), two = b.getBoundingClientRect();
    return one.left < two.right - 1 && two.left < one.right - 1
      && one.top < two.bottom - 1 && two.top < one.bottom - 1;
  }};
  return {{
    page: frame.dataset.page, width: width, theme: theme,
    overflow: page.documentElement.scrollWidth - width,
    wide: [...article.querySelectorAll("*")].filter(
      e => shown(e) && e.getBoundingClientRect().right > width + 1 && !scrolls(e)).map(name),
    broken: images.filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src),
    invisible: images.filter(i => !shown(i)).length,
    images: images.length,
    pairs: article.querySelectorAll("figure.rotary-figure").length,
    overlapping: figures.filter(
      (a, i) => figures.slice(i + 1).some(b => !a.contains(b) && overlap(a, b))).map(name),
    letters: parseFloat(frame.contentWindow.getComputedStyle(article).fontSize),
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    equations: [...article.querySelectorAll("math")].filter(shown).length,
  }};
}};
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].flatMap(
    f => ["light", "dark"].map(theme => measured(f, theme)));
  document.body.textContent = JSON.stringify(found);
}};
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def measured(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a headless Chromium says of each page, at each width, in each theme."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "site").symlink_to(site)
    found = []
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for width in WIDTHS:
            frames = "".join(
                f'<iframe data-page="{page}" src="site/{page}.html" width="{width}" height="800" '
                'style="border: 0"></iframe>'
                for page in SHOWN
            )
            (folder / "measure.html").write_text(MEASURE.format(frames=frames), "utf-8")
            # Root, as in a container, has no sandbox.
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
            command += [f"--user-data-dir={folder / str(width)}", "--timeout=120000"]
            command += [f"http://127.0.0.1:{server.server_port}/measure.html"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
            text = re.search(r"<body>(\[.*\])\s*</body>", done.stdout, re.DOTALL)
            assert text, done.stdout[:2000]
            found += json.loads(html.unescape(text[1]))
        server.shutdown()
    assert len(found) == 2 * len(WIDTHS) * len(SHOWN)
    return found


def test_no_page_is_wider_than_the_screen(measured: Any) -> None:
    wide = [(m["page"], m["width"], m["overflow"], m["wide"][:3]) for m in measured]
    assert [m for m in wide if m[2] > 0 or m[3]] == []


def test_no_picture_is_broken_and_each_theme_shows_its_own(measured: Any) -> None:
    assert sum(m["images"] for m in measured) > 20
    for m in measured:
        assert m["broken"] == [], m["page"]
        # Of the two of a figure one is shown.
        assert m["invisible"] == m["pairs"], m["page"]


def test_figures_do_not_overlap(measured: Any) -> None:
    assert [(m["page"], m["width"], m["overlapping"]) for m in measured if m["overlapping"]] == []


def test_it_is_light_or_dark_and_large_enough_to_be_read(measured: Any) -> None:
    backgrounds = {(m["theme"], m["background"]) for m in measured}
    assert len({colour for _, colour in backgrounds}) == len(backgrounds) == 2
    assert min(m["letters"] for m in measured) >= 14
    assert all(m["equations"] for m in measured if m["page"] == "understand/rotary")

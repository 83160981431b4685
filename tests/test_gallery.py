"""The pages of the gallery are programs: titled, of examples that are there, without a warning."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "docs" / "gallery"
PAGES = sorted(GALLERY.glob("plot_*.py"))


def test_there_are_pages_and_a_header() -> None:
    assert len(PAGES) >= 4
    assert (GALLERY / "GALLERY_HEADER.rst").read_text("utf-8").startswith("Gallery\n=======\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_a_title_and_names_programs_that_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    title, line, *_ = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert line == "=" * len(title)
    for name in re.findall(r"docs/examples/\w+\.py", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r'import_module\("(\w+)"\)', text):
        assert (ROOT / "docs" / "examples" / f"{name}.py").is_file(), name


@pytest.mark.large
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_without_a_warning_in_its_own_folder(page: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", page.name],
        cwd=GALLERY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    assert done.stdout.strip() or "plt.figure" in page.read_text("utf-8")

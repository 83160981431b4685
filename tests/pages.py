"""Pages of Markdown as tests read them: their blocks, headings, links and tables of contents."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# ``` or :::, whatever its indentation; a fence ends where as many of its marks stand alone.
FENCE = re.compile(r"^( *)(```+|:::+)([^\n`]*)\n(.*?)^ *\2 *$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,4} +(.+?) *#*$", re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)")


class Block(NamedTuple):
    """A fenced block."""

    kind: str
    """What stands behind the fence: "python", "sh", "{toctree}", …"""
    code: str
    line: int
    """Where its first line is, counted from 1."""


class Page:
    """A file of Markdown."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text("utf-8")

    def blocks(self, kind: str = "") -> list[Block]:
        """Return the fenced blocks in order, of one kind if it is given."""
        found = []
        for match in FENCE.finditer(self.text):
            line = self.text.count("\n", 0, match.start(4)) + 1
            found.append(Block(match[3].strip(), textwrap.dedent(match[4]), line))
            if match[2].startswith(":"):  # Markdown again, which may hold blocks
                inner = Page.__new__(Page)
                inner.text = match[4]
                found += [b._replace(line=b.line + line - 1) for b in inner.blocks()]
        return [block for block in found if kind in ("", block.kind)]

    @property
    def prose(self) -> str:
        """The text outside of code; what is indented as code is left out, too."""
        outside = FENCE.sub(lambda m: m[4] if m[2].startswith(":") else "", self.text)
        outside = re.sub(r"(?<=\n\n)(?: {4}(?! *[-*\d]).*\n+)+", "", outside)
        return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "``", outside, flags=re.DOTALL)

    @property
    def indented(self) -> list[str]:
        """Lines of code that is indented, outside of fences."""
        outside = FENCE.sub("", self.text)
        return re.findall(r"^    ((?:.*\\\n)*.*)$", outside, re.MULTILINE)

    @property
    def code_spans(self) -> list[str]:
        """What stands between backticks in running text."""
        return re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", self.text))

    @property
    def anchors(self) -> set[str]:
        """The anchors of the headings, as GitHub and MyST make them."""
        anchors: set[str] = set()
        for heading in HEADING.findall(FENCE.sub("", self.text)):
            words = re.sub(r"[`*]|\]\([^)]*\)", "", heading).lower()
            anchor = stem = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            number = 0
            while anchor in anchors:
                number += 1
                anchor = f"{stem}-{number}"
            anchors.add(anchor)
        return anchors

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return LINK.findall(re.sub(r"``", "code", self.prose))

    @property
    def contents(self) -> list[str]:
        """Entries of the tables of contents."""
        entries = []
        for block in self.blocks("{toctree}"):
            lines = [line.strip() for line in block.code.splitlines()]
            lines = [line for line in lines if line and not line.startswith(":")]
            entries += [re.sub(r".*<(.+)>$", r"\1", line) for line in lines]
        return entries


def pages() -> list[Page]:
    """Return README, CONTRIBUTING, CHANGELOG and every page of the site that is not generated."""
    files = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
    files += sorted(DOCS.rglob("*.md"))
    return [Page(file) for file in files if "auto_gallery" not in file.parts]

"""docs/defects.md: every command prints what the page quotes, every example holds.

What a library is asked is read off the page, so that nothing stands there that was not run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from rotary import cli

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "examples" / "defects"
PAGE = (DOCS / "defects.md").read_text("utf-8")
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A command and what it prints, or an example in Python, of a library's section."""

    section: str
    kind: str
    code: str
    quoted: str = ""

    @property
    def requirement(self) -> tuple[str, str]:
        name, version = self.section.partition(":")[0].split()
        return name, version


def blocks() -> list[Block]:
    found: list[Block] = []
    for section in PAGE.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        fenced = [(kind, textwrap.dedent(code)) for _, kind, code in FENCED.findall(section)]
        texts = iter(code for kind, code in fenced if kind == "text")
        for kind, code in fenced:
            if kind != "text":
                found.append(Block(heading, kind, code, next(texts) if kind == "sh" else ""))
    return found


BLOCKS = blocks()
COMMANDS = [block for block in BLOCKS if block.kind == "sh"]
EXAMPLES = [block for block in BLOCKS if block.kind == "python"]


def name(block: Block) -> str:
    number = [b for b in BLOCKS if b.section == block.section].index(block)
    return f"{block.section} {number + 1}"


def need(block: Block) -> None:
    library, version = block.requirement
    try:
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{library} is not installed: pip install 'rotary[defects]'")
    if installed != version:
        pytest.skip(f"the page is about {library} {version}, installed is {installed}")


@contextlib.contextmanager
def fresh_process(library: str) -> Iterator[None]:
    """Give what a process of its own has: a folder to import from, no memory of other tests."""
    path = sys.path.copy()
    with contextlib.chdir(FOLDER), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries warn of is theirs
        if library == "equinox":
            from equinox.nn import _embedding

            _embedding.internal_rope_embedding_cache.clear()
        try:
            yield
        finally:
            sys.path[:] = path
            sys.modules.pop("released", None)


@functools.cache
def run(block: Block) -> tuple[int, str]:
    """Return the exit status and what was printed."""
    program, *arguments = shlex.split(block.code.replace("\\\n", " "))
    assert program == "rotary"
    out = io.StringIO()
    with fresh_process(block.requirement[0]), contextlib.redirect_stdout(out):
        status = cli.main(arguments)
    return status, out.getvalue()


@pytest.mark.parametrize("block", COMMANDS, ids=name)
def test_a_command_prints_what_the_page_quotes(block: Block) -> None:
    need(block)
    status, out = run(block)
    assert status == ("--rtol" in block.code)  # the one level that is asked for does not hold
    lines = block.quoted.splitlines()
    pattern = "".join(r"(?:.*\n)*?" if line == "…" else re.escape(line) + "\n" for line in lines)
    assert re.fullmatch(pattern, out), out


@pytest.mark.parametrize("block", EXAMPLES, ids=name)
def test_an_example_holds(block: Block) -> None:
    need(block)
    assert "assert" in block.code
    with fresh_process(block.requirement[0]):
        exec(compile(block.code, "defects.md", "exec"), {})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("angles in float32", ("base 10000; float32 angles",)),
        ("ignores `truncate`", ("scaling.YaRN(32.0, 4096))",)),  # truncate is the default
        ("dynamic NTK", ("scaling.DynamicNTK(2.0, 2048)", "note it remembers: ")),
        ("a cache without theta", ("share a memory whose key leaves them out",)),
        (
            "positions in bfloat16",
            ("bfloat16 x: positions are rounded to bfloat16", "it remembers: after a bfloat16"),
        ),
    ],
)
def test_the_five_defects_are_named(section: str, words: tuple[str, ...]) -> None:
    (block,) = (b for b in COMMANDS if section in b.section and "rotary identify" in b.code)
    need(block)
    status, out = run(block)
    assert status == 0
    assert [word for word in words if word not in out] == []


# The page


def test_nothing_on_the_page_is_left_out() -> None:
    assert {block.kind for block in BLOCKS} == {"sh", "python"}
    outside = FENCED.sub("", PAGE)
    assert "```" not in outside
    indented = re.findall(r"^    (.*)", outside, re.MULTILINE)
    assert indented == ["pip install '.[check,defects]'", "cd docs/examples/defects"]
    for section in PAGE.split("\n## ")[1:]:
        kinds = " ".join(kind for _, kind, _ in FENCED.findall(section))
        assert kinds.count("sh text") == kinds.count("sh") == kinds.count("text")


def test_the_extra_installs_the_versions_of_the_page(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    versions = {"==".join(block.requirement) for block in BLOCKS}
    assert set(project["optional-dependencies"]["defects"]) == versions


def test_the_page_points_to_every_defect_of_the_census() -> None:
    named = re.findall(r"^### (D\d+)$", (DOCS / "census.md").read_text("utf-8"), re.MULTILINE)
    rows = re.findall(r"^\| \[(D\d+)\]\(census\.md#(d\d+)\) \|", PAGE, re.MULTILINE)
    assert rows == [(defect, defect.lower()) for defect in named]


def test_links_of_the_page_lead_somewhere() -> None:
    files = re.findall(r"\]\(([^):#]+)(?:#\w+)?\)", PAGE)
    assert files
    assert [file for file in files if not (DOCS / file).exists()] == []

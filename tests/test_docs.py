"""README, CONTRIBUTING and docs: what stands there runs, and every link leads somewhere.

docs/defects.md and docs/census.md are held by test_defects.py and test_census.py, which run their
blocks apart from each other.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import DOCS, ROOT, Page, pages

import rotary
from rotary import cli

PAGES = pages()
RUN_ELSEWHERE = {"docs/census.md", "docs/defects.md"}
# Some pages are about one of these, and are skipped where it is not installed.
LIBRARIES = {
    "array_api_strict", "dask", "equinox", "flax", "jax", "matplotlib", "mlx", "ml_dtypes",
    "mpmath", "ndonnx", "onnx", "onnxruntime", "optax", "safetensors", "torch", "transformers",
}  # fmt: skip
LONGEST_BLOCK, WIDEST_LINE = 60, 100


def of(chosen: Any) -> Any:
    found = [page for page in PAGES if chosen(page)]
    assert found
    return pytest.mark.parametrize("page", found, ids=lambda page: page.name)


def with_blocks() -> Any:
    """Return the pages with blocks of Python; those that compile for seconds are large."""
    found = [p for p in PAGES if p.blocks("python") and p.name not in RUN_ELSEWHERE]
    slow = [p for p in found if p.name == "docs/use/jax.md"]
    assert slow
    return pytest.mark.parametrize(
        "page",
        [pytest.param(p, id=p.name, marks=pytest.mark.large if p in slow else ()) for p in found],
    )


# Code


def imported(code: str) -> set[str]:
    """Return the packages that a block imports."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@with_blocks()
def test_the_blocks_of_a_page_run_in_order(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = page.blocks("python")
    missing = {
        name
        for block in blocks
        for name in imported(block.code) - set(sys.modules)
        if find_spec(name) is None
    }
    if missing and missing <= LIBRARIES:
        pytest.skip(f"{', '.join(sorted(missing))} cannot be imported")
    module = ModuleType("__main__")  # what pickle and dataclasses look a class up in
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    threads = rotary.get_num_threads()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        # Of other libraries; whoever runs the page sees no more of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        try:
            for block in blocks:
                # Errors name the page and its line.
                code = "\n" * (block.line - 1) + block.code
                exec(compile(code, page.name, "exec"), vars(module))
        finally:
            rotary.set_num_threads(threads)
    promised = [
        line.strip() for block in blocks for line in re.findall(r"# prints (.+)", block.code)
    ]
    printed = iter(line.strip() for line in out.getvalue().splitlines())
    for line in promised:
        pattern = ".*".join(map(re.escape, line.split("…")))
        found = any(re.fullmatch(pattern, other) for other in printed)
        assert found, f"{line!r} is not printed there, but {out.getvalue()}"


@of(lambda page: page.blocks("python"))
def test_blocks_are_short_enough_to_be_read(page: Page) -> None:
    for block in page.blocks("python"):
        lines = block.code.splitlines()
        assert len(lines) <= LONGEST_BLOCK, f"{page.name}:{block.line}"
        assert max(map(len, lines)) <= WIDEST_LINE, f"{page.name}:{block.line}"


def commands(page: Page) -> list[list[str]]:
    """Return the calls of rotary's command line in blocks, fenced and indented."""
    lines = [line for block in page.blocks("sh") for line in joined(block.code)]
    lines += [line for code in page.indented for line in joined(code)]
    found = []
    for line in lines:
        if not re.match(r"(?:[A-Z_]+=\S+ )*(?:rotary|python|pip) ", line):
            continue
        for call in calls(line):
            while call and re.fullmatch(r"[A-Z_]+=.*", call[0]):
                call = call[1:]
            if call[:3] == ["python", "-m", "rotary"]:
                call = call[2:]
            if call[:1] == ["rotary"]:
                found.append(call[1:])
    return found


def joined(code: str) -> list[str]:
    return [line.strip() for line in re.sub(r"\\\n", " ", code).splitlines()]


def calls(line: str) -> list[list[str]]:
    """Return the words of a line, cut at what joins commands."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    reader.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in reader:
        if set(word) <= set("&;|"):
            found.append([])
        else:
            found[-1].append(word)
    return found


PARSER = cli._parser()


@of(commands)
def test_commands_have_the_options_that_they_are_given(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in commands(page):
        refused = None
        try:
            PARSER.parse_args(call)
        except SystemExit as stop:
            refused = stop.code and capsys.readouterr().err
        assert not refused, f"rotary {shlex.join(call)}: {refused}"


def test_a_renamed_option_would_be_found() -> None:
    with pytest.raises(SystemExit):
        PARSER.parse_args(["check", "--implementations", "a:b"])
    page = Page(ROOT / "README.md")
    page.text = (
        "    pip install x && rotary check --nothing  # or\n\n```sh\nA=1 rotary \\\n bench\n```\n"
    )
    assert commands(page) == [["bench"], ["check", "--nothing"]]


def options_of(command: str) -> set[str]:
    (commands_,) = (a.choices for a in PARSER._subparsers._group_actions)
    return set(commands_[command]._option_string_actions)


@of(lambda page: re.search(r"`rotary [a-z]", page.text))
def test_commands_in_running_text_exist(page: Page) -> None:
    for span in page.code_spans:
        words = span.split()
        if words[:1] != ["rotary"] or len(words) < 2:
            continue
        known = options_of(words[1])
        assert {word for word in words if word.startswith("--")} <= known, f"{page.name}: {span}"


def test_options_of_the_pytest_plugin_exist() -> None:
    known = set(re.findall(r'"(--rotary-[a-z-]+)"', (ROOT / "conformance/plugin.py").read_text()))
    named = {name for page in PAGES for name in re.findall(r"(--rotary-[a-z-]+)", page.text)}
    assert named
    assert named <= known


# Links


@of(lambda page: page.links)
def test_links_lead_to_files_and_headings(page: Page) -> None:
    anchors = {other.path: other.anchors for other in PAGES}
    broken = []
    for link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        if "auto_gallery" in target.parts:  # written when the site is built
            target = DOCS / "gallery" / target.name.replace("index.rst", "GALLERY_HEADER.rst")
            target = target.with_suffix(".py") if target.stem.startswith("plot_") else target
        if not target.exists() or (anchor and anchor not in anchors.get(target, ())):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_a_table_of_contents() -> None:
    by_path = {page.path: page for page in PAGES}
    waiting, reached, missing = [DOCS / "index.md"], set(), []
    while waiting:
        page = by_path[waiting.pop()]
        reached.add(page.path)
        for entry in page.contents:
            file = (page.path.parent / f"{entry.removesuffix('.md')}.md").resolve()
            if file in by_path:
                assert file not in reached, f"{file.name} is in two tables of contents"
                waiting.append(file)
            elif "auto_gallery" not in entry:
                missing.append(f"{page.name}: {entry}")
    assert missing == []
    assert {path for path in by_path if DOCS in path.parents} == reached


# API

MODULES = (
    "absolute", "axes", "backends", "backends.kernels", "conformance", "conformance.golden",
    "conformance.libraries", "exact", "figures", "linear", "relative", "scaling",
)  # fmt: skip
# Modules whose other names serve the suite itself.
CHOSEN = {
    "rotary.conformance.golden": ("Output", "Vector", "find", "read"),
    "rotary.conformance.libraries": ("Library", "NotInstalledError", "Way"),
}


ADAPTERS = sorted((ROOT / "rotary" / "integrations").glob("[!_]*.py"))


def public(name: str) -> list[str]:
    """Return the public names of a module: those that it lists, or makes."""
    if name in CHOSEN:
        return list(CHOSEN[name])
    if name.startswith("rotary.integrations."):  # read, not imported: that takes seconds
        text = (ROOT / f"{name.replace('.', '/')}.py").read_text("utf-8")
        (listed,) = re.findall(r"^__all__ = (\[[^]]*\])", text, re.MULTILINE)
        return list(ast.literal_eval(listed))
    module = importlib.import_module(name)
    return getattr(module, "__all__", None) or [
        own
        for own, value in vars(module).items()
        if not own.startswith("_") and getattr(value, "__module__", None) == name
    ]


def documented() -> list[str]:
    """Return the full names of what the pages of docs/api document."""
    names = []
    for page in PAGES:
        if page.path.parent != DOCS / "api":
            continue
        module = ""
        for block in page.blocks("{eval-rst}"):
            found = re.findall(r"^\.\. ([\w:]+):: (\S+)\n((?:   .*\n)*)", block.code, re.MULTILINE)
            for directive, name, options in found:
                if directive in ("currentmodule", "py:module", "automodule"):
                    module = name
                    if directive == "automodule" and ":members:" in options:
                        names += [f"{name}.{member}" for member in public(name)]
                else:
                    names.append(f"{module}.{name}")
    return names


def test_every_public_name_is_documented_once() -> None:
    def named(full: str) -> Any:
        module, _, name = full.rpartition(".")
        if module.startswith("rotary.integrations."):
            return full
        value = getattr(importlib.import_module(module), name)
        # Two names of one thing are one; constants are what their name says.
        return value if callable(value) else full

    names = documented()
    assert len(set(names)) == len(names)
    shown = [named(name) for name in names]
    assert [name for name, value in zip(names, shown, strict=True) if shown.count(value) > 1] == []
    modules = ["rotary", *(f"rotary.{name}" for name in MODULES)]
    modules += [f"rotary.integrations.{path.stem}" for path in ADAPTERS]
    for module in modules:
        for name in public(module):
            if module != "rotary" or not inspect.ismodule(getattr(rotary, name)):
                assert named(f"{module}.{name}") in shown, f"{module}.{name}"

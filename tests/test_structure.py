"""How the rooms hang together, read from the source."""

from __future__ import annotations

import ast
import doctest
import inspect
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import rotary

ROOT = Path(__file__).resolve().parent.parent
LINKED = {"backends", "benchmarks", "conformance"}
ADAPTERS = Path("rotary/integrations")
FRAMEWORKS = {"torch", "jax", "jaxlib", "cupy", "mlx", "dask", "numba", "triton"}


def sources(folder: str) -> list[Path]:
    """Return the Python files of a folder of the checkout, without what is linked into it."""
    files = (p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py"))
    kept = sorted(p for p in files if folder != "rotary" or p.parts[1] not in LINKED)
    assert kept or folder not in ("rotary", "backends", "tests")
    return kept


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it; relative ones have a dot in front."""
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize(
    "path", [path for path in sources("rotary") if ADAPTERS not in path.parents], ids=str
)
def test_the_mathematics_names_no_framework(path: Path) -> None:
    assert not FRAMEWORKS & {name.partition(".")[0] for name in imported(path)}
    with tokenize.open(ROOT / path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        names = {token.string for token in tokens if token.type == tokenize.NAME}
    assert not FRAMEWORKS & names


@pytest.mark.parametrize("path", sources("rotary") + sources("backends"), ids=str)
def test_adapters_are_imported_by_those_who_ask_for_them(path: Path) -> None:
    inside = ADAPTERS in path.parents
    assert inside or not [name for name in imported(path) if "rotary.integrations" in name]


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("rotary", "backends", "conformance", "tests", "docs", "benchmarks")
        for path in sources(folder)
    ],
    ids=str,
)
def test_the_linked_folders_are_imported_by_their_one_name(path: Path) -> None:
    # `import backends` works in the checkout, and makes every module of it a second time.
    assert not LINKED & {name.partition(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", sources("rotary") + sources("backends"), ids=str)
def test_imports_are_absolute(path: Path) -> None:
    assert not [name for name in imported(path) if name.startswith(".")]


@pytest.mark.parametrize("name", ["_generic.py", "_generic_tables.py"])
def test_the_generic_backend_names_no_library(name: str) -> None:
    text = (ROOT / "backends" / name).read_text("utf-8").lower()
    assert not [w for w in (*FRAMEWORKS, "ndonnx", "onnx", "array_api_strict") if w in text]


def test_shims_cannot_shadow_the_libraries() -> None:
    assert not [path for path in sources("backends") if path.name[0] != "_"]


@pytest.mark.parametrize("name", rotary.__all__)
def test_what_is_public_is_documented_with_an_example(name: str) -> None:
    public = getattr(rotary, name)
    if inspect.ismodule(public):
        return
    text = inspect.getdoc(public) or ""
    assert "\nExamples\n--------\n" in text
    assert ">>> " in text.partition("\nExamples\n--------\n")[2]


@pytest.mark.parametrize(
    "method",
    [
        method
        for name in rotary.__all__
        if inspect.isclass(getattr(rotary, name))
        for method in inspect.getmembers(getattr(rotary, name), inspect.isfunction)
        if not method[0].startswith("_") or method[0] == "__call__"
    ],
    ids=lambda method: method[1].__qualname__,
)
def test_every_public_method_is_documented(method: tuple[str, object]) -> None:
    assert inspect.getdoc(method[1])


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sources("rotary") + sources("backends")
        if path.name != "__main__.py"
        and not FRAMEWORKS & {name.partition(".")[0] for name in imported(path)}
    ],
    ids=str,
)
def test_the_examples_in_docstrings_hold(path: Path) -> None:
    parts = path.with_suffix("").parts
    name = ".".join(parts if parts[0] == "rotary" else ("rotary", *parts))
    results = doctest.testmod(import_module(name.removesuffix(".__init__")))
    assert results.failed == 0

"""The command line: ``rotary check`` holds array libraries, and foreign code, to the oracle.

A command is a line in ``_COMMANDS``, a function that says what it takes, and a function that does
it.  What they need is imported when they run: ``rotary --help`` needs no extra and no library.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_CHECK_NEEDS = ("jinja2", "mpmath", "ml_dtypes", "rich")
# Options of `rotary check` that choose among the suite's own cases, and those that say what a
# foreign implementation is: name, metavar, type, help.
_OF_THE_SUITE = ("backend", "case", "way", "elements", "device")
_OF_AN_IMPLEMENTATION: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    (
        "embedding",
        "JSON|FILE",
        str,
        'what it is to be: arguments of RotaryEmbedding, \'{"head_dim": 128, "base": 5e5}\', or a '
        "Hugging Face config; default: '{\"head_dim\": 64}'",
    ),
    ("make", "JSON", str, "keywords that make the object that is called, of a class or factory"),
    (
        "arguments",
        "WORDS",
        str,
        "what it takes: x,positions or x,position_ids or x,x,cos,sin or x,offset or x; default: "
        "told from the names of its parameters",
    ),
    ("keywords", "JSON", str, "further keywords of every call: '{\"interleaved\": true}'"),
    ("x-shape", "LETTERS", str, "default: B,H,S,D"),
    ("tables-shape", "LETTERS", str, "of cos and sin that it takes: S,R/2; default: B,S,R"),
    ("library", "NAME", str, "numpy, torch or jax; default: the one whose arrays it takes"),
    ("positions", "N", int, "the largest position; default: 1048576, or 65536 for x alone"),
    ("ulp", "N", float, "by how many ulps of the pair's length it may be off, wherever"),
    ("rtol", "X", float, "the same as a plain number"),
)


class _Command(NamedTuple):
    """A subcommand."""

    help: str
    takes: Callable[[argparse.ArgumentParser], None]
    """Adds its description and its arguments to a parser."""
    run: Callable[[argparse.Namespace], int]
    """Returns 0 if all holds, 1 if not; raises :class:`_RefusedError` if it could not be asked."""


class _RefusedError(Exception):
    """Why a command cannot do what was asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 if all holds, 1 if not, 2 if it could not be asked."""
    options = _parser().parse_args(arguments)
    options.asked = shlex.join(["rotary", *(sys.argv[1:] if arguments is None else arguments)])
    command = _COMMANDS[options.command]
    try:
        missing = [module for module in _CHECK_NEEDS if find_spec(module) is None]
        if missing:
            raise _RefusedError(f"needs {', '.join(missing)}: pip install 'rotary[check]'")
        return command.run(options)
    except _RefusedError as reason:
        print(f"rotary {options.command}: {reason}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rotary", description="Positional encodings with the same bits on every array library."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in _COMMANDS.items():
        command.takes(commands.add_parser(name, help=command.help))
    return parser


def _check_takes(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Hold rotary on the installed array libraries to an oracle, bit by bit, or hold a foreign "
        "implementation of rotary embeddings to it and say up to which position it holds. "
        "Exit status: 0 if everything asked for holds, 1 if not, 2 if it could not be run."
    )
    add = parser.add_argument
    add(
        "--backend",
        action="append",
        metavar="NAME[,NAME]",
        help="numpy, torch, jax, cupy, array-api-strict, mlx, dask, ndonnx, or a module: of a "
        "backend, or of an array library; default: all that are installed and run on this machine",
    )
    add("--case", action="append", metavar="ID[,ID]", help="case ids or patterns: rotation/half*")
    add(
        "--dtype",
        action="append",
        metavar="NAME[,NAME]",
        help="float16, bfloat16, float32, float64; default: all, float32 for an implementation",
    )
    add("--way", action="append", metavar="NAME", help="ways of running, such as 'eager'")
    add("--elements", type=int, metavar="N", help="numbers in a rotation; default: 100000")
    add(
        "--device",
        metavar="NAME",
        help="cpu or cuda, for libraries that have it; default: where each puts its arrays",
    )
    add("--verbose", action="store_true", help="list every cell")
    add("--json", type=Path, metavar="FILE", help="write the whole report there")
    add("--junit", type=Path, metavar="FILE", help="write the cells there as JUnit's XML")
    add("--html", type=Path, metavar="FILE", help="write the report there as a page to look at")
    add("--picture", type=Path, metavar="FILE", help="draw subjects by libraries there, as SVG")
    group = parser.add_argument_group("a foreign implementation")
    group.add_argument(
        "--implementation",
        metavar="MODULE:NAME",
        help="a function, class or object that rotates, or that makes cos and sin; it is imported",
    )
    for name, metavar, kind, text in _OF_AN_IMPLEMENTATION:
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)


def _check(options: argparse.Namespace) -> int:
    for file in ("json", "junit", "html", "picture"):
        _check_writable(f"--{file}", getattr(options, file))
    if options.implementation is not None:
        return _check_implementation(options)
    _refuse_given(options, (o[0] for o in _OF_AN_IMPLEMENTATION), "only with --implementation")
    from rotary import conformance
    from rotary.conformance import libraries

    if set(_names(options.backend) or ()) - set(libraries.KNOWN):
        _find_in_current_folder()
    chosen = {
        "backends": _names(options.backend),
        "cases": _names(options.case),
        "dtypes": _names(options.dtype),
        "ways": options.way,
        "elements": options.elements,
        "device": options.device,
    }
    try:
        report = _with_progress(conformance.run, chosen)
    except (conformance.NotInstalledError, ValueError) as error:
        raise _RefusedError(str(error)) from error
    return _deliver(options, report, lambda: report)


def _check_implementation(options: argparse.Namespace) -> int:
    _refuse_given(options, _OF_THE_SUITE, "not with --implementation")
    from rotary import conformance
    from rotary.conformance import implementation

    _find_in_current_folder()
    names = (option[0].replace("-", "_") for option in _OF_AN_IMPLEMENTATION)
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    given["dtypes"] = _names(options.dtype)
    try:
        for name in ("make", "keywords"):
            if given[name] is not None:
                given[name] = implementation.json_object(name, given[name])
        embedding, config = conformance.described(given.pop("embedding") or '{"head_dim": 64}')
        held = conformance.check_implementation(
            options.implementation,
            embedding,
            config=config,
            **{name: value for name, value in given.items() if value is not None},
        )
    except (conformance.NotInstalledError, OSError, TypeError, ValueError) as error:
        raise _RefusedError(str(error)) from error
    return _deliver(options, held, held.report)


def _deliver(options: argparse.Namespace, found: Any, report: Callable[[], Any]) -> int:
    """Show and write what was found, and return the exit status; `report` gives its cells."""
    from rich.console import Console

    from rotary.conformance import junit, picture

    found.show(Console(), every_cell=options.verbose)
    _write("--json", options.json, found.to_json)
    _write("--junit", options.junit, lambda: junit.to_junit(report()))
    _write("--html", options.html, lambda: found.to_html(command=options.asked))
    _write("--picture", options.picture, lambda: picture.render(report(), command=options.asked))
    return 0 if found.holds else 1


def _refuse_given(options: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    for name in names:
        if getattr(options, name.replace("-", "_")) is not None:
            raise _RefusedError(f"--{name}: {reason}")


def _find_in_current_folder() -> None:
    """Let modules be imported from where the command runs, as `python -m` does."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def _with_progress(run: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Return run(**given), without what is None, under a bar that shows how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("collecting")

        def progress(number: int, total: int, name: str) -> None:
            bar.update(task, completed=number, total=total, description=name)

        return run(**{n: v for n, v in given.items() if v is not None}, progress=progress)


def _names(given: list[str] | None) -> list[str] | None:
    return None if given is None else [n.strip() for names in given for n in names.split(",")]


def _check_writable(option: str, file: Path | None) -> None:
    """Refuse before a run of minutes what could not be written after it."""
    if file is not None and not file.parent.is_dir():
        raise _RefusedError(f"{option}: there is no folder {file.parent}")


def _write(option: str, file: Path | None, text: Callable[[], str]) -> None:
    """Write what was asked for."""
    if file is None:
        return
    try:
        file.write_text(text(), "utf-8")
    except OSError as error:
        raise _RefusedError(f"{option}: {error}") from error


def _vectors_takes(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the golden vectors from the oracle and write them, their JSON schema and their "
        "checksums: the same bytes each time."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write; made if missing")


def _vectors(options: argparse.Namespace) -> int:
    from rotary.conformance import golden_generator

    try:
        print(golden_generator.write(options.folder))
    except (OSError, ValueError) as error:
        raise _RefusedError(f"DIR: {error}") from error
    return 0


def _identify_takes(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tell from its outputs alone what a foreign implementation of rotary embeddings computes. "
        "Exit status: 0 if it is explained, 1 if not, 2 if it could not be asked."
    )
    parser.add_argument("implementation", metavar="MODULE:NAME", help="as for rotary check")
    parser.add_argument("--head-dim", type=int, metavar="N", help="default: 64")
    parser.add_argument("--dtype", metavar="NAME", help="of x; default: float32 where it is taken")
    parser.add_argument(
        "--longest", type=int, metavar="N", help="the longest sequence; default: 1048576"
    )
    parser.add_argument(
        "--other",
        metavar="MODULE:NAME",
        help="another implementation to ask in between, to see if the two share a memory",
    )
    parser.add_argument(
        "--other-make", metavar="JSON", help="keywords that make the other; of the same class"
    )
    for name, metavar, kind, text in _OF_AN_IMPLEMENTATION:
        if name not in ("positions", "ulp", "rtol"):
            parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)


def _identify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from rotary import conformance
    from rotary.conformance import implementation
    from rotary.conformance.identifying import foreign

    _find_in_current_folder()
    size = 64 if options.head_dim is None else options.head_dim
    try:
        make, keywords, other_make = (
            None if text is None else implementation.json_object(name, text)
            for name, text in (
                ("make", options.make),
                ("keywords", options.keywords),
                ("other-make", options.other_make),
            )
        )
        embedding, config = conformance.described(options.embedding or f'{{"head_dim": {size}}}')
        alike = ("arguments", "x_shape", "tables_shape", "library")
        given = {name: getattr(options, name) for name in alike}
        given |= {"keywords": keywords, "embedding": embedding, "config": config}
        function = foreign.box(options.implementation, make=make, **given)
        other = None
        if options.other is not None or other_make is not None:
            name = options.other or options.implementation
            other = foreign.box(name, make=other_make, **given)
        found = conformance.identify(
            function,
            head_dim=embedding.head_dim,
            dtype=options.dtype,
            other=other,
            **({} if options.longest is None else {"longest": options.longest}),
        )
    except (conformance.NotInstalledError, OSError, TypeError, ValueError) as error:
        raise _RefusedError(str(error)) from error
    found.show(Console())
    return 0 if found.explained else 1


def _bench_takes(parser: argparse.ArgumentParser) -> None:
    from rotary.benchmarks import command

    command.takes(parser)


def _bench(options: argparse.Namespace) -> int:
    from rotary.benchmarks import command

    try:
        command.run(options)
    except (OSError, ValueError) as error:
        raise _RefusedError(str(error)) from error
    return 0


def _plot_takes(parser: argparse.ArgumentParser) -> None:
    from rotary.figures import command

    command.takes(parser)


def _plot(options: argparse.Namespace) -> int:
    from rotary.figures import command

    try:
        command.run(options)
    except (OSError, ValueError) as error:
        raise _RefusedError(str(error)) from error
    return 0


_COMMANDS = {
    "bench": _Command("time it beside copies, the usual code and others", _bench_takes, _bench),
    "check": _Command("hold the installed array libraries to the oracle", _check_takes, _check),
    "identify": _Command("tell what a foreign implementation computes", _identify_takes, _identify),
    "plot": _Command("draw how it works, or a model's own positions", _plot_takes, _plot),
    "vectors": _Command("write the golden vectors for other languages", _vectors_takes, _vectors),
}

"""The command line: ``rotary check`` holds the installed array libraries to the oracle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_CHECK_NEEDS = ("mpmath", "ml_dtypes", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 if all holds, 1 if not, 2 if it could not be asked."""
    options = _parser().parse_args(arguments)
    missing = [module for module in _CHECK_NEEDS if find_spec(module) is None]
    if missing:
        return _refuse(f"needs {', '.join(missing)}: pip install 'rotary[check]'")
    return _check(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rotary", description="Positional encodings with the same bits on every array library."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="hold the installed array libraries to the oracle",
        description="Hold rotary on the installed array libraries to an oracle, bit by bit. "
        "Exit status: 0 if everything asked for holds, 1 if not, 2 if it could not be run.",
    )
    check.add_argument(
        "--backend",
        action="append",
        metavar="NAME[,NAME]",
        help="numpy, torch, jax, cupy, array-api-strict, mlx, dask, ndonnx; default: all that are "
        "installed and run on this machine",
    )
    check.add_argument(
        "--case", action="append", metavar="ID[,ID]", help="case ids or patterns: rotation/half*"
    )
    check.add_argument(
        "--dtype",
        action="append",
        metavar="NAME[,NAME]",
        help="float16, bfloat16, float32, float64; default: all",
    )
    check.add_argument(
        "--way", action="append", metavar="NAME", help="ways of running, such as 'eager'"
    )
    check.add_argument(
        "--elements", type=int, metavar="N", help="numbers in a rotation; default: 100000"
    )
    check.add_argument("--verbose", action="store_true", help="list every cell")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    return parser


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from rotary import conformance

    chosen = {
        "backends": _names(options.backend),
        "cases": _names(options.case),
        "dtypes": _names(options.dtype),
        "ways": options.way,
        "elements": options.elements,
    }
    if options.json is not None and not options.json.parent.is_dir():
        return _refuse(f"--json: there is no folder {options.json.parent}")
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("collecting")

            def progress(number: int, total: int, name: str) -> None:
                bar.update(task, completed=number, total=total, description=name)

            report = conformance.run(
                **{name: value for name, value in chosen.items() if value is not None},
                progress=progress,
            )
    except (conformance.NotInstalledError, ValueError) as error:
        return _refuse(str(error))
    report.show(console, every_cell=options.verbose)
    if options.json is not None:
        try:
            options.json.write_text(report.to_json())
        except OSError as error:
            return _refuse(f"--json: {error}")
    return 0 if report.holds else 1


def _names(given: list[str] | None) -> list[str] | None:
    return None if given is None else [n.strip() for names in given for n in names.split(",")]


def _refuse(reason: str) -> int:
    print(f"rotary check: {reason}", file=sys.stderr)
    return 2

"""``rotary bench``: what it takes, and what it does with that."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rotary.benchmarks.contender import Settings

GROUPS = ("rotation", "decode", "tables", "linear")
LIBRARIES = ("numpy", "torch", "jax", "cupy")
FORMS = ("half", "interleaved", "partial", "interleaved-partial")
DTYPES = ("float16", "bfloat16", "float32", "float64")
PICTURES = (".svg", ".png")
_QUICK_REPEATS = 3
_WIDTH = 200
_LINEAR_SWEEP = (1024, 4096, 16_384, 65_536, 262_144, 1_000_000)

_Number = TypeVar("_Number", int, float)


def takes(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and arguments."""
    parser.description = (
        "Time rotary beside copies, the usual code and other libraries, all in one run: every "
        "contender in turn within each repeat. Exit status: 0, whatever the times are, or 2 if it "
        "could not be run."
    )
    add = parser.add_argument
    add("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all")
    add("--backend", metavar="NAME[,NAME]", help=f"{', '.join(LIBRARIES)}; default: all")
    add("--device", metavar="NAME", default="cpu", help="cpu or cuda; default: cpu")
    add("--dtype", metavar="NAME[,NAME]", help=f"{', '.join(DTYPES)}; default: float32")
    add("--form", metavar="NAME[,NAME]", help=f"{', '.join(FORMS)}; default: half")
    add("--mebibytes", metavar="N[,N]", help="size of x in a rotation; default: 32")
    add("--sweep", action="store_true", help="rotations of 1 to 10^6 tokens, linear up to 10^6")
    add("--tokens", metavar="N[,N]", help="of linear attention; default: 4096")
    add("--heads", metavar="N", help="default: 32 in a rotation, 8 in linear; 1 and 2 in a sweep")
    add("--threads", metavar="N[,N]", help="of rotary, torch and BLAS; default: all cores")
    add("--repeats", metavar="N", help="default: 15")
    add("--quick", action="store_true", help="small sizes and three repeats: whether it runs")
    add("--json", type=Path, metavar="FILE", help="write all times there")
    add("--plot", type=Path, metavar="FILE", help="draw FILE_GROUP.svg, or .png, of each group")


def run(options: argparse.Namespace) -> None:
    """Run what was asked for; raise a ValueError or an OSError that says what cannot be."""
    from rich.console import Console

    groups = _chosen("GROUP", options.groups, GROUPS) or GROUPS
    for file, endings in ((options.json, None), (options.plot, PICTURES)):
        _check_file("--json" if endings is None else "--plot", file, endings)
    settings = _settings(options)

    from rotary.benchmarks.run import run as run_all

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDTH)  # a file wraps no lines
    with console.status("starting") as status:
        report = run_all(
            groups,
            settings,
            command=options.asked,
            progress=lambda case, step: status.update(f"{case}: {step}"),
        )
    report.show(console)
    if options.json is not None:
        options.json.write_text(report.to_json() + "\n", "utf-8")
    if options.plot is not None:
        from rotary.benchmarks import plots

        for file in plots.write(report, options.plot):
            console.print(f"wrote {file}", soft_wrap=True, markup=False, highlight=False)


def _settings(options: argparse.Namespace) -> Settings:
    from rotary.benchmarks.contender import Settings
    from rotary.benchmarks.machine import cores, no_device

    if options.device not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {options.device}, expected cpu or cuda")
    default = LIBRARIES if options.device == "cuda" else LIBRARIES[:3]
    libraries = _names("--backend", options.backend, LIBRARIES) or default
    reasons = {name: why for name in libraries if (why := no_device(name, options.device))}
    if len(reasons) == len(libraries):
        told = "; ".join(reasons.values())
        raise ValueError(f"--device: got {options.device}, but nothing asked for has it: {told}")
    quick, sweep = options.quick, options.sweep
    heads = _numbers("--heads", options.heads, int)
    repeats = _numbers("--repeats", options.repeats, int)
    tokens = _numbers("--tokens", options.tokens, int)
    threads = _numbers("--threads", options.threads, int)
    for name, given in (("--heads", heads), ("--repeats", repeats)):
        if given is not None and len(given) > 1:
            raise ValueError(f"{name}: got {len(given)} numbers, expected one")
    return Settings(
        libraries=libraries,
        device=options.device,
        dtypes=_names("--dtype", options.dtype, DTYPES) or ("float32",),
        forms=_names("--form", options.form, FORMS) or ("half",),
        threads=threads or (cores(),),
        mebibytes=_numbers("--mebibytes", options.mebibytes, float)
        or ((1.0,) if quick else (32.0,)),
        tokens=tokens or (_LINEAR_SWEEP if sweep else (4096,)),
        heads=None if heads is None else heads[0],
        sweep=sweep,
        quick=quick,
        repeats=_QUICK_REPEATS if quick and repeats is None else (repeats or (15,))[0],
        device_reasons=reasons,
    )


def _names(option: str, given: str | None, known: Sequence[str]) -> tuple[str, ...]:
    return () if given is None else _chosen(option, given.split(","), known)


def _chosen(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return names in their order, each once, or refuse one that is not known."""
    names = tuple(dict.fromkeys(name.strip() for name in given))
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: got {name or 'nothing'}, expected {', '.join(known)}")
    return names


def _numbers(
    option: str, given: str | None, kind: Callable[[str], _Number]
) -> tuple[_Number, ...] | None:
    """Return positive numbers."""
    if given is None:
        return None
    whole = "a whole number above 0" if kind is int else "a number above 0"
    found = []
    for text in given.split(","):
        try:
            number = kind(text)
        except ValueError as error:
            raise ValueError(f"{option}: got {text or 'nothing'}, expected {whole}") from error
        if not 0 < number < 2**40:
            raise ValueError(f"{option}: got {text}, expected {whole}")
        found.append(number)
    return tuple(found)


def _check_file(option: str, file: Path | None, endings: Sequence[str] | None) -> None:
    """Refuse before a run of minutes what could not be written after it."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {file.parent}")
    if endings is None:
        return
    if file.suffix not in endings:
        raise ValueError(f"{option}: got {file}, expected a name that ends in .svg or .png")
    if find_spec("matplotlib") is None:
        raise ValueError(f"{option}: needs matplotlib: pip install 'rotary[check]'")

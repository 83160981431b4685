"""``rotary plot``: what it takes, and what it does with that."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rotary.config import from_config
from rotary.config._reading import chosen_part, loaded
from rotary.embedding import RotaryEmbedding
from rotary.figures import FIGURES, NEEDS, SUFFIXES, draw, sheet, write


class _Model(NamedTuple):
    embedding: RotaryEmbedding
    context: int | None


def takes(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and arguments."""
    parser.description = (
        "Draw figures that explain rotary embeddings, or those of a model: of its config alone the "
        "four that depend on it, on one page. Exit status: 0, or 2 if it could not be drawn."
    )
    add = parser.add_argument
    add(
        "what",
        nargs="*",
        metavar="NAME|CONFIG",
        help=f"{', '.join(FIGURES)}; and a config.json, or a folder with one; default: list them",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to draw: .svg, .png or .pdf; FILE_NAME.svg and so on for several figures",
    )
    add("--dark", action="store_true", help="light lines on a dark background")
    add("--list", action="store_true", help="list the figures and what they show")
    add("--part", metavar="NAME", help="which sub-config of CONFIG: text_config")
    add("--layer-type", metavar="NAME", help="which layers of CONFIG: full_attention")
    add("--context", type=int, metavar="N", help="longest sequence; default: what CONFIG says")


def run(options: argparse.Namespace) -> None:
    """Draw what was asked for; raise a ValueError or an OSError that says what cannot be."""
    names, config = _sorted(options.what)
    if options.list or not options.what:
        print(_listed())
        return
    _check_file(options.output)
    model = None
    if config is not None:
        able = [name for name, figure in FIGURES.items() if figure.of_model]
        for other in names:
            if other not in able:
                raise ValueError(
                    f"NAME: got {other} with a config, but it draws no model; those that do: "
                    f"{', '.join(able)}"
                )
        model = _model(config, options)
    else:
        for option in ("part", "layer_type", "context"):
            if getattr(options, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')}: got one without a config")
    missing = [module for module in NEEDS if find_spec(module) is None]
    if missing:
        raise ValueError(f"needs {', '.join(missing)}: pip install 'rotary[check]'")
    chosen: list[str | None] = [*names] if names else [None]
    for name in chosen:
        to = _file(options.output, name, len(names))
        write(_figure(name, model, options.dark), to)
        print(f"wrote {to}")


def _figure(name: str | None, model: _Model | None, dark: bool) -> Any:
    if model is None:
        assert name is not None
        return draw(name, dark=dark)
    if name is None:
        return sheet(model.embedding, context=model.context, dark=dark)
    return draw(name, model.embedding, context=model.context, dark=dark)


def _sorted(given: list[str]) -> tuple[list[str], str | None]:
    """Return the names of figures, each once, and the config."""
    names = list(dict.fromkeys(one for one in given if one in FIGURES))
    configs = [one for one in given if one not in FIGURES]
    for one in configs:
        if not Path(one).exists() and not one.endswith(".json") and os.sep not in one:
            close = get_close_matches(one, FIGURES, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"NAME: got {one}, {hint}expected a config.json, a folder with one, or one of "
                f"{', '.join(FIGURES)}"
            )
    if len(configs) > 1:
        raise ValueError(f"CONFIG: got {len(configs)} of them, expected one: {', '.join(configs)}")
    return names, configs[0] if configs else None


def _model(config: str, options: argparse.Namespace) -> _Model:
    """Read a config; what it holds without effect is said, and no error."""
    path = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            values = loaded(path)
            embedding = from_config(values, part=options.part, layer_type=options.layer_type)
        except OSError as error:
            raise ValueError(f"CONFIG: cannot read {path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"CONFIG: {path}: {_one_line(error)}{_options_for(error)}") from error
    for warning in told:
        print(f"rotary plot: {path}: {_one_line(warning.message)}", file=sys.stderr)
    context = options.context
    if context is not None and context < 1:
        raise ValueError(f"--context: got {context}, expected a whole number above 0")
    return _Model(embedding, _context(values, options.part) if context is None else context)


def _context(values: Mapping[str, Any], part: str | None) -> int | None:
    """Return the context that a config names, if it does."""
    found = chosen_part(values, part).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def _options_for(error: Exception) -> str:
    """Return which option answers an error that asks for an argument of `from_config`."""
    name = str(error).partition(":")[0]
    return {"part": " (--part)", "layer_type": " (--layer-type)"}.get(name, "")


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())


def _check_file(file: Path | None) -> None:
    if file is None:
        raise ValueError("-o: got nothing, expected a name that ends in .svg, .png or .pdf")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"-o: got {file}, expected a name that ends in .svg, .png or .pdf")
    if not file.parent.is_dir():
        raise ValueError(f"-o: there is no folder {file.parent}")


def _file(file: Path, name: str | None, count: int) -> Path:
    return file if count < 2 else file.with_name(f"{file.stem}_{name}{file.suffix}")


def _listed() -> str:
    """Return the figures, a paragraph each."""
    paragraphs = []
    for name, figure in FIGURES.items():
        of_model = "  (or of a CONFIG)" if figure.of_model else ""
        text = textwrap.fill(
            figure.description, 92, initial_indent="    ", subsequent_indent="    "
        )
        paragraphs.append(f"{name}: {figure.title}{of_model}\n{text}")
    return "\n".join(paragraphs)

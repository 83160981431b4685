"""Somebody else's rotation as the suite calls it: a function, or an object such as a torch module.

How it is called is a list of words, one an argument: ``x,positions``, ``x,position_ids`` (a row of
them for each batch row, as in Hugging Face), ``x,cos,sin``, ``x,x,cos,sin``, ``x,offset``, or ``x``
alone, whose rows stand at 0, 1, 2, ….  What comes back has x's shape, once or more, or is a pair of
tables.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import rotary
from rotary import backends
from rotary.conformance import libraries, oracle
from rotary.conformance.libraries import Library, Way

Array = npt.NDArray[Any]

WORDS = ("x", "positions", "position_ids", "offset", "cos", "sin")
# What parameters are called, here and there.
_PARAMETERS = {
    **dict.fromkeys(("q", "query", "xq", "query_states", "k", "key", "xk", "key_states"), "x"),
    **dict.fromkeys(("t", "tensor", "hidden_states", "input", "inputs"), "x"),
    **dict.fromkeys(("pos", "position"), "positions"),
    **dict.fromkeys(("start_pos", "position_offset"), "offset"),
    **{word: word for word in WORDS},
}
_USUAL = ("x", "positions")
_BATCH, _HEADS = 1, 2


class NotCallableError(ValueError):
    """An implementation cannot be found, made or called, or gives what is no rotation."""


class Outputs(NamedTuple):
    """What came out: of each kind one or more arrays, or none."""

    rotated: tuple[Array, ...]
    """As (batch, heads, seq, head_dim)."""
    tables: tuple[Array, ...]
    """cos and sin, (seq, rotary_dim/2 or rotary_dim)."""


def load(name: str) -> Any:
    """Return what ``package.module:attribute`` names, by importing the module.

    Raises
    ------
    NotCallableError
        Where there is no such module or attribute, or the module cannot be imported.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise NotCallableError(f"implementation: got {name!r}, expected package.module:function")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise NotCallableError(
            f"implementation: {module_name} cannot be imported: {_one_line(error)}"
        ) from error
    try:
        return attrgetter(path)(module)
    except AttributeError as error:
        public = [n for n, value in vars(module).items() if n[0] != "_" and callable(value)]
        raise NotCallableError(
            f"implementation: {module_name} has no {path!r}, but {', '.join(public) or 'nothing'}"
        ) from error


def described(given: str) -> tuple[rotary.RotaryEmbedding, dict[str, Any] | None]:
    """Return the embedding that JSON describes, and the config if it is one of Hugging Face.

    Parameters
    ----------
    given : str
        A JSON object, or the path of a file that holds one: arguments of ``RotaryEmbedding``
        (numbers, and ``inv_freq`` as a list), or a config with ``model_type``.

    Examples
    --------
    >>> described('{"head_dim": 64, "base": 5e5}')[0].base
    500000.0
    """
    is_json = given.lstrip().startswith("{")
    values = json_object("embedding", given if is_json else Path(given).read_text("utf-8"))
    if "model_type" in values:
        return rotary.from_config(values), values
    try:
        return rotary.RotaryEmbedding(**values), None
    except TypeError as error:
        raise ValueError(f"embedding: got {given!r}: {error}") from error


def json_object(name: str, text: str) -> dict[str, Any]:
    """Return a JSON object, or raise a ValueError that names it."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}, which is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: got {text!r}, expected a JSON object")
    return value


def made(found: Any, arguments: Mapping[str, Any] | None, config: Any = None) -> Any:
    """Return the object that a class or factory makes; what is none of them, as it is.

    Parameters
    ----------
    found : object
        A class is called, whatever the arguments; anything else only where they are given.
    arguments : mapping, optional
        Keywords of that call.
    config : mapping, optional
        A Hugging Face config, for which a parameter of this name gets transformers' config object.
    """
    if arguments is None and not inspect.isclass(found):
        return found
    given, name = dict(arguments or {}), getattr(found, "__name__", repr(found))
    try:
        if config is not None and "config" in inspect.signature(found).parameters:
            given.setdefault("config", _config_object(config))
        return found(**given)
    except Exception as error:
        raise NotCallableError(
            f"implementation: {name}({', '.join(given)}) cannot be made: {_one_line(error)}"
        ) from error


def _config_object(config: Mapping[str, Any]) -> Any:
    fields = dict(config)
    return import_module("transformers").AutoConfig.for_model(fields.pop("model_type"), **fields)


@dataclass(frozen=True)
class Shapes:
    """How arrays are laid out, as letters: B, H, S, D; R and R/2 for tables.

    Attributes
    ----------
    x : str
        Such as ``B,H,S,D``, ``B,S,H,D`` or ``S,H,D``.
    tables : str
        Of cos and sin where they are given: ``B,S,R`` as in Hugging Face, ``S,R/2``, ``1,1,S,R``.
    """

    x: str = "B,H,S,D"
    tables: str = "B,S,R"

    def __post_init__(self) -> None:
        x, tables = self.x.split(","), self.tables.split(",")
        if sorted(set(x)) != sorted(x) or not {"S", "D"} <= set(x) <= set("BHSD") or x[-1] != "D":
            raise ValueError(f"x_shape: got {self.x!r}, expected such as B,H,S,D or B,S,H,D or S,D")
        wide = [letter for letter in tables if letter not in ("B", "1")]
        if wide not in (["S", "R"], ["S", "R/2"]) or tables[-1] != wide[-1]:
            raise ValueError(f"tables_shape: got {self.tables!r}, expected such as B,S,R or S,R/2")

    def arranged(self, x: Array) -> Array:
        """Return (B, H, S, D) as the implementation wants it; letters that are absent drop out."""
        letters = self.x.split(",")
        absent = [n for n, letter in enumerate("BHSD") if letter not in letters]
        kept = [letter for letter in "BHSD" if letter in letters]
        return np.squeeze(x, tuple(absent)).transpose([kept.index(letter) for letter in letters])

    def canonical(self, y: Array) -> Array:
        """Return what :meth:`arranged` gave, as (B, H, S, D)."""
        letters = self.x.split(",")
        kept = [letter for letter in "BHSD" if letter in letters]
        y = y.transpose([letters.index(letter) for letter in kept])
        return np.expand_dims(y, [n for n, letter in enumerate("BHSD") if letter not in letters])

    def table(self, table: Array, pairs: tuple[Any, Any]) -> Array:
        """Return (S, R/2) as the implementation wants it; in width R every pair has it twice."""
        letters = self.tables.split(",")
        if letters[-1] == "R":
            start = min(map(min, pairs))
            wide = np.empty((len(table), 2 * table.shape[1]), table.dtype)
            for members in pairs:
                wide[:, members - start] = table
            table = wide
        sizes = {"S": table.shape[0], letters[-1]: table.shape[1]}
        return table.reshape([sizes.get(letter, 1) for letter in letters])


@dataclass(frozen=True)
class Implementation:
    """A foreign implementation, and how to call it.

    Attributes
    ----------
    name : str
    function : callable
    library : Library
        Whose arrays it takes.
    arguments : tuple of str
        Of ``WORDS``, in the order of its parameters.
    keywords : mapping
        Handed over as they are.
    shapes : Shapes
    apply : callable, optional
        For one that makes tables: ``apply(q, k, cos, sin)`` of the same module.
    """

    name: str
    function: Callable[..., Any]
    library: Library
    arguments: tuple[str, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=Shapes)
    apply: Callable[..., Any] | None = None

    @property
    def takes_tables(self) -> bool:
        """Whether it only rotates, by the cos and sin that it is given."""
        return "cos" in self.arguments

    @property
    def implies_positions(self) -> bool:
        """Whether it takes x alone, at the positions 0 … seq − 1."""
        return not {"positions", "position_ids", "offset", "cos"} & set(self.arguments)

    def __call__(
        self, x: Array, positions: Array, tables: tuple[Array, Array], pairs: tuple[Any, Any]
    ) -> Outputs:
        """Call it, and return what came out on the host.

        Parameters
        ----------
        x : array, shape (batch, heads, seq, head_dim)
        positions : array of int64, shape (seq,)
        tables : pair of arrays, shape (seq, rotary_dim/2)
        pairs : pair of arrays
            Features of the first and of the second members.
        """
        if "offset" in self.arguments:
            rows = range(len(positions))
            each = [
                self._call(x[:, :, n : n + 1], positions[n : n + 1], tables, pairs) for n in rows
            ]
            return Outputs(
                tuple(
                    np.concatenate(ys, axis=2)
                    for ys in zip(*(y.rotated for y in each), strict=True)
                ),
                tuple(
                    np.concatenate(ys, axis=0) for ys in zip(*(y.tables for y in each), strict=True)
                ),
            )
        if not self.implies_positions:
            return self._call(x, positions, tables, pairs)
        every = np.ones((*x.shape[:2], int(positions.max()) + 1, x.shape[-1]), x.dtype)
        every[:, :, positions] = x
        found = self._call(every, np.arange(every.shape[2]), tables, pairs)
        return Outputs(
            tuple(y[:, :, positions] for y in found.rotated),
            tuple(table[positions] for table in found.tables),
        )

    def _call(
        self, x: Array, positions: Array, tables: tuple[Array, Array], pairs: tuple[Any, Any]
    ) -> Outputs:
        given = {"x": self.shapes.arranged(x)}
        if self.takes_tables:
            given["cos"], given["sin"] = (self.shapes.table(table, pairs) for table in tables)
        given["positions"] = positions
        given["position_ids"] = np.tile(positions, (_BATCH, 1))
        words = list(dict.fromkeys(w for w in ("x", *self.arguments) if w != "offset"))
        way = self._way(x.dtype.name)

        def call(*arrays: Any) -> Any:
            """Return what it gives and, where it makes tables, what rotates by them."""
            now = dict(zip(words, arrays, strict=True)) | {"offset": int(positions[0])}
            found = self.function(*(now[word] for word in self.arguments), **self.keywords)
            if self.apply is None or not _is_pair(found, given["x"].shape):
                return _flat(found)
            return [*found, *_flat(self.apply(now["x"], now["x"], *found))]

        first, *more = (self.library.from_host(given[word]) for word in words)
        arrays = [self._on_host(y) for y in way.run(lambda x, *m: call(x, *m), first, first, *more)]
        return self._sorted(arrays, given["x"].shape, len(positions), len(pairs[0]))

    def _way(self, dtype: str) -> Way:
        eager = [way for way in self.library.ways if way.name.partition(",")[0] == "eager"]
        fit = [way for way in eager if not way.unavailable and dtype not in way.refused]
        if dtype not in self.library.dtypes or not fit:
            raise NotCallableError(f"dtype: {self.library.name} has no {dtype}")
        return fit[0]

    def _on_host(self, y: Any) -> Array:
        """Return an output on the host: it may be of another library than what went in."""
        if isinstance(y, np.ndarray):
            return y
        try:
            name = backends.library(y)
        except TypeError as error:
            raise NotCallableError(f"implementation: {error}, or a pair of them") from error
        if name in libraries.KNOWN:
            return libraries.load(name).to_host(y)
        return self.library.to_host(y)

    def _sorted(self, arrays: list[Array], shape: tuple[int, ...], seq: int, pairs: int) -> Outputs:
        rotated = tuple(self.shapes.canonical(y) for y in arrays if y.shape == shape)
        rest = [y for y in arrays if y.shape != shape]
        tables = tuple(y.reshape(y.shape[-2:]) for y in rest if _is_table(y, seq, pairs))
        if len(rotated) + len(tables) < len(arrays) or len(tables) not in (0, 2) or not arrays:
            shapes = ", ".join(str(y.shape) for y in arrays)
            raise NotCallableError(
                f"implementation: got outputs of shape {shapes or '()'}, expected {shape}, or cos "
                f"and sin of (…, {seq}, {pairs}) or (…, {seq}, {2 * pairs})"
            )
        return Outputs(rotated, tables)


def adapted(
    function: Any,
    *,
    name: str | None = None,
    arguments: str | None = None,
    keywords: Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
    library: str | None = None,
    embedding: rotary.RotaryEmbedding,
) -> Implementation:
    """Return an implementation as the suite calls it.

    Parameters
    ----------
    function : callable
    name : str, optional
        By default its own.
    arguments : str, optional
        Words with commas between them; by default told from the names of its parameters.
    keywords, shapes
        As for :class:`Implementation`.
    library : str, optional
        A library of ``libraries.KNOWN``; by default the first of NumPy, torch and JAX, if it is
        imported, whose arrays it takes.
    embedding : RotaryEmbedding
        What it is to be, for trying.

    Raises
    ------
    NotCallableError
    """
    if not callable(function):
        raise NotCallableError(
            f"implementation: got {type(function).__name__}, expected what can be called"
        )
    words = _told(function) if arguments is None else tuple(w.strip() for w in arguments.split(","))
    if not (set(words) <= set(WORDS) and _says_where(words)):
        raise NotCallableError(
            f"arguments: got {','.join(words)}, expected words of {', '.join(WORDS)}, with x or "
            f"the positions among them, and cos and sin together"
        )

    def of(library: str) -> Implementation:
        return Implementation(
            name or str(getattr(function, "__qualname__", type(function).__qualname__)),
            function,
            libraries.load(library),
            words,
            dict(keywords or {}),
            shapes or Shapes(),
            None if {"cos", "sin"} & set(words) else _apply_of(function),
        )

    if library is not None:
        one = of(library)
        trial(one, embedding)
        return one
    reasons = []
    for candidate in ("numpy", "torch", "jax"):
        if candidate in sys.modules:
            try:
                one = of(candidate)
                trial(one, embedding)
            except Exception as error:
                reasons.append(f"with {candidate}: {_one_line(error)}")
            else:
                return one
    raise NotCallableError(f"implementation: cannot be called; {'; '.join(reasons)}")


def trial(implementation: Implementation, embedding: rotary.RotaryEmbedding) -> Outputs:
    """Call it on ones at positions 0 … 4, or raise what comes of it."""
    seq, pairs = 5, pairs_of(embedding)
    x = np.ones((_BATCH, heads(implementation), seq, embedding.head_dim), np.float32)
    table = np.ones((seq, embedding.rotary_dim // 2), np.float32)
    try:
        return implementation(x, np.arange(seq), (table, table), pairs)
    except NotCallableError:
        raise
    except Exception as error:
        raise NotCallableError(
            f"implementation: {implementation.name} cannot be called with "
            f"{', '.join(implementation.arguments)}: {_one_line(error)}"
        ) from error


def heads(implementation: Implementation) -> int:
    """Return how many heads x has."""
    return _HEADS if "H" in implementation.shapes.x else 1


def pairs_of(embedding: rotary.RotaryEmbedding) -> tuple[Any, Any]:
    """Return the features of the first and of the second members of all pairs."""
    from rotary.conformance import axes_oracle

    blocks = None if embedding.axes is None else axes_oracle.blocks(vars(embedding.axes))
    return oracle.pair_indices(
        embedding.head_dim, embedding.rotary_dim, embedding.layout, embedding.rotary_side, blocks
    )


def _told(function: Any) -> tuple[str, ...]:
    """Return the words for its parameters without defaults."""
    try:
        # The call of a torch module takes anything, and hands it to this method.
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return _USUAL
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    words = tuple(_PARAMETERS.get(name, "") for name in names)
    if "" not in words and _says_where(words):
        return words
    if len(names) == len(_USUAL):
        return _USUAL
    raise NotCallableError(
        f"arguments: cannot be told from the parameters ({', '.join(names)}); say what they are, "
        f"such as x,positions or x,x,cos,sin"
    )


def _says_where(words: tuple[str, ...]) -> bool:
    """Whether these words tell a call enough to rotate or to make tables."""
    if {"cos", "sin"} & set(words):
        return {"x", "cos", "sin"} <= set(words)
    return bool({"x", "positions", "position_ids"} & set(words))


def _apply_of(function: Any) -> Callable[..., Any] | None:
    """Return what rotates by the tables that function makes, as Hugging Face calls it."""
    owner = function if hasattr(function, "__module__") else type(function)
    module = sys.modules.get(str(owner.__module__))
    apply: Callable[..., Any] | None = getattr(module, "apply_rotary_pos_emb", None)
    return None if apply is function or not callable(apply) else apply


def _flat(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


def _is_pair(found: Any, shape: tuple[int, ...]) -> bool:
    """Whether these are two arrays, and not of x's shape."""
    pair = isinstance(found, tuple | list) and len(found) == 2
    return pair and all(tuple(getattr(y, "shape", shape)) != shape for y in found)


def _is_table(y: Array, seq: int, pairs: int) -> bool:
    *more, length, width = (0, 0, *y.shape)[-max(2, y.ndim) :]
    return set(more) <= {1} and length == seq and width in (pairs, 2 * pairs)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__

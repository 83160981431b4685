"""Up to which position a foreign implementation holds.

Its error is measured pair by pair: the length of the difference between what came out and the
exact rotation of x, in units of eps·(length of the exact pair), eps of x's dtype (2^-23 for
float32).  One such unit is called an ulp here; it depends neither on the angle nor on x.  Rounding
cos, sin, every product and sum once, as rotary does, stays below 1.92 of them.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import rotary
from rotary.conformance import implementation as foreign
from rotary.conformance import oracle
from rotary.conformance.cases import DTYPES
from rotary.conformance.implementation import Implementation, Shapes
from rotary.conformance.report import Report
from rotary.conformance.runner import Cell
from rotary.conformance.subject import numpy_dtype

SCHEMA = 1
LEVELS = (2.0, 10.0, 1000.0)
POSITIONS = 2**20
# Where x has to hold every position from 0 on.
IMPLIED_POSITIONS = 2**16
_MOST_POSITIONS = 2**53
_FIRST = 256
_AT_ONCE = 64

Errors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reach:
    """How far a level holds.

    Attributes
    ----------
    ulp : float
        The level.
    holds_to : int, optional
        The last position that was tested before the first at which it fails; None if it fails at 0.
    fails_at : int, optional
        The first that was found to fail; None if none was.
    asked : bool
        Whether the exit status depends on it.
    """

    ulp: float
    holds_to: int | None
    fails_at: int | None
    asked: bool = False


@dataclass(frozen=True)
class Part:
    """What was found of one output in one dtype.

    Attributes
    ----------
    name : {"rotation", "cos and sin"}
    dtype : str
        Of x.
    output : str
        Dtype that came out.
    positions, errors : tuple
        Every position that was tested, and the largest error there, in ulps.
    numbers : int
        Numbers compared.
    raised : str, optional
        The first error that it raised, instead of an answer.
    reaches : tuple of Reach
    """

    name: str
    dtype: str
    output: str
    positions: tuple[int, ...]
    errors: tuple[float, ...]
    numbers: int
    raised: str | None
    reaches: tuple[Reach, ...]

    @property
    def worst(self) -> tuple[int, float]:
        """The position with the largest error, and that."""
        return max(zip(self.positions, self.errors, strict=True), key=lambda found: found[1])


@dataclass(frozen=True)
class Held:
    """What was found of an implementation.

    Attributes
    ----------
    name, library, version : str
    embedding : RotaryEmbedding
        What it was held to.
    limit : int
        The largest position.
    parts : tuple of Part
    seconds : float
    """

    name: str
    library: str
    version: str
    embedding: rotary.RotaryEmbedding
    limit: int
    parts: tuple[Part, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every level that was asked for holds at every position that was tested."""
        asked = (reach for part in self.parts for reach in part.reaches if reach.asked)
        return all(reach.fails_at is None for reach in asked)

    @property
    def is_another(self) -> bool:
        """Whether it is off at once, by what no rounding explains."""
        return any(_wrong(part) for part in self.parts)

    def sentences(self) -> list[str]:
        """Return the findings, a line each."""
        return [line for part in self.parts for line in _sentences(part)]

    def show(self, console: Any, *, every_cell: bool = False) -> None:
        """Print the findings, and what they mean."""

        def say(line: str, style: str = "") -> None:
            console.print(line, style=style, soft_wrap=True, markup=False, highlight=False)

        say(f"{self.name} with {self.library} {self.version}, held to {spelled(self.embedding)}")
        for part in self.parts:
            for line in _sentences(part):
                say(line)
            if every_cell:
                for position, error in zip(part.positions, part.errors, strict=True):
                    say(f"  {position}: {error:.4g}", "dim")
        if self.is_another:
            say("off by more than any rounding: another rotation; `rotary identify` says which")
        say(
            "an ulp here is eps of the dtype times the length of the exact pair; the error is the "
            f"length of the difference; {len(self.parts[0].positions)} positions tested, "
            f"{self.seconds:.0f} s",
            "dim",
        )
        if any(reach.asked for part in self.parts for reach in part.reaches):
            say("holds" if self.holds else "fails", "bold green" if self.holds else "bold red")

    def to_json(self) -> str:
        """Return the findings as JSON, with the error at every position that was tested."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "rotary": rotary.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}",
                "implementation": self.name,
                "versions": {self.library: self.version},
                "embedding": spelled(self.embedding),
                "largest_position": self.limit,
                "seconds": self.seconds,
                "holds": self.holds,
                "parts": [_as_dict(part) for part in self.parts],
            },
            indent=1,
            allow_nan=False,
        )

    def to_html(self, *, command: str | None = None) -> str:
        """Return the findings as a page; `command` is what was run."""
        from rotary.conformance.html import render  # late: it reads this class

        return render(self.report(), self, command=command)

    def report(self) -> Report:
        """Return cells, whose numbers are positions: one a level that was asked for, or a part."""
        cells = [cell for part in self.parts for cell in _cells(self, part)]
        versions = {self.name: f"{self.library} {self.version}"}
        numbers = sum(part.numbers for part in self.parts)
        return Report(tuple(cells), versions, numbers, self.seconds)


def check_implementation(
    implementation: Callable[..., Any] | str,
    embedding: rotary.RotaryEmbedding,
    *,
    make: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    arguments: str | None = None,
    keywords: Mapping[str, Any] | None = None,
    x_shape: str = "B,H,S,D",
    tables_shape: str = "B,S,R",
    library: str | None = None,
    dtypes: Iterable[str] = ("float32",),
    positions: int | None = None,
    ulp: float | None = None,
    rtol: float | None = None,
) -> Held:
    """Hold a foreign implementation to the oracle, and find up to which position it holds.

    Parameters
    ----------
    implementation : callable or str
        A function or an object that is called, such as a torch module; or ``package.module:name``
        of one.  It returns x rotated, or queries and keys, or cos and sin; the latter are held
        themselves, and by the ``apply_rotary_pos_emb`` of the same module, if it has one.
    embedding : RotaryEmbedding
        What it is to be.
    make : mapping, optional
        Keywords by which a class or factory makes what is called; a class is always called.
    config : mapping, optional
        A Hugging Face config, of which transformers' config object is made for such a class.
    arguments : str, optional
        What it takes, in order: "x,positions", "x,position_ids" (one row for each batch row),
        "x,x,cos,sin"; "x,offset" is called row by row; "x" alone stands at 0, 1, 2, ….  By default
        told from the names of its parameters.
    keywords : mapping, optional
        Further keywords of every call.
    x_shape : str
        "B,S,H,D" where the heads stand behind the sequence; letters may be left out.
    tables_shape : str
        Of cos and sin where it takes them: "S,R/2", "1,1,S,R".
    library : str, optional
        Whose arrays it takes: numpy, torch, jax; by default found by trying.
    dtypes : iterable of str
        Of x.
    positions : int, optional
        The largest; 2^20 by default, and 2^16 where x has to hold every one of them.
    ulp, rtol : float, optional
        A level that has to hold at every position, as an error relative to the length of the pair:
        ulp·eps of the dtype, or rtol itself.

    Returns
    -------
    Held

    Raises
    ------
    NotCallableError
        A ValueError: it cannot be found, made or called, or gives what is no rotation.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> def rope(x, positions):
    ...     angles = positions[:, None].astype(np.float32) * np.float32([1.0, 0.01])
    ...     cos, sin = np.cos(angles), np.sin(angles)
    ...     a, b = x[..., :2], x[..., 2:]
    ...     return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    >>> held = check_implementation(rope, rotary.RotaryEmbedding(4), positions=4096)
    >>> [reach.holds_to for reach in held.parts[0].reaches]
    [369, 1860, 4096]
    """
    started = time.perf_counter()
    if positions is not None and not 0 <= positions <= _MOST_POSITIONS:
        raise ValueError(f"positions: got {positions}, expected 0 to 2^53")
    kinds = list(dict.fromkeys(dtypes))
    for dtype in kinds:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    asked = {dtype: _asked(ulp, rtol, dtype) for dtype in kinds}
    if isinstance(implementation, str):
        name, implementation = implementation, foreign.load(implementation)
    else:
        name = getattr(implementation, "__qualname__", type(implementation).__qualname__)
    one = foreign.adapted(
        foreign.made(implementation, make, config),
        name=name,
        arguments=arguments,
        keywords=keywords,
        shapes=Shapes(x_shape, tables_shape),
        library=library,
        embedding=embedding,
    )
    limit = positions
    if limit is None:
        limit = IMPLIED_POSITIONS if one.implies_positions else POSITIONS
    parts = [
        part
        for dtype in kinds
        for part in _Measurement(one, embedding, dtype).parts(limit, asked[dtype])
    ]
    seconds = time.perf_counter() - started
    library_ = one.library
    return Held(one.name, library_.name, library_.version, embedding, limit, tuple(parts), seconds)


def spelled(rope: rotary.RotaryEmbedding) -> str:
    """Return the call that makes an embedding, without what is as usual."""
    usual = vars(rotary.RotaryEmbedding(rope.head_dim, rotary_dim=rope.rotary_dim))
    usual = {**usual, "rotary_dim": rope.head_dim}
    given = {f.name: getattr(rope, f.name) for f in fields(rope) if f.init}
    parts = [f"{name}={value!r}" for name, value in given.items() if value != usual[name]]
    return f"RotaryEmbedding({', '.join([str(rope.head_dim), *parts])})"


def eps(dtype: str) -> float:
    """Return the distance from 1 to the next number of a dtype."""
    return float(ml_dtypes.finfo(numpy_dtype(dtype)).eps)  # type: ignore[no-untyped-call]


def _asked(ulp: float | None, rtol: float | None, dtype: str) -> list[float]:
    given = {"ulp": ulp, "rtol": rtol}
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: got {value}, expected a finite number of at least 0")
    return [
        level for level in (ulp, None if rtol is None else rtol / eps(dtype)) if level is not None
    ]


class _Measurement:
    """The errors of an implementation in one dtype, gathered call by call."""

    def __init__(self, one: Implementation, embedding: rotary.RotaryEmbedding, dtype: str) -> None:
        self.one, self.embedding, self.dtype = one, embedding, dtype
        self.pairs = foreign.pairs_of(embedding)
        if "offset" in one.arguments and _needs_length(embedding):
            raise foreign.NotCallableError(
                f"arguments: got an offset for {type(embedding.scaling).__name__}, whose angles "
                f"depend on the length of the whole sequence; expected positions"
            )
        self.errors: dict[str, dict[int, float]] = {}
        self.output: dict[str, str] = {}
        self.numbers: dict[str, int] = {}
        self.raised: str | None = None

    def parts(self, limit: int, asked: list[float]) -> list[Part]:
        """Search positions 0 … limit, and return what was found.

        Calls ascend first, and go back where they have to look closer.
        """
        levels = sorted({*LEVELS, *asked})
        self._gather(self._call(np.zeros(1, np.int64)))  # at 0 it raises if it ever does
        for octave in _octaves(limit):
            if not self._test(octave):
                break
        for errors in list(self.errors.values()):
            for level in levels:
                while len(gap := _gap(errors, level)):
                    self._test(gap)
        return [self._part(name, levels, asked) for name in self.errors]

    def _part(self, name: str, levels: list[float], asked: list[float]) -> Part:
        errors = dict(sorted(self.errors[name].items()))
        reaches = []
        for level in levels:
            holds_to, fails_at = _around(list(errors.items()), level)
            reaches.append(Reach(level, holds_to, fails_at, level in asked))
        return Part(
            name,
            self.dtype,
            self.output[name],
            tuple(errors),
            tuple(errors.values()),
            self.numbers[name],
            self.raised,
            tuple(reaches),
        )

    def _test(self, positions: npt.NDArray[np.int64]) -> bool:
        """Gather the errors at these positions; return whether it gave any answer."""
        try:
            self._gather(self._call(positions))
        except Exception as error:
            if len(positions) > 1:
                # Which of them it cannot do.
                left, right = (self._test(half) for half in np.array_split(positions, 2))
                return left or right
            if self.raised is None:
                self.raised = f"{type(error).__name__} at {positions[0]}: {error}"
            for errors in self.errors.values():
                errors[int(positions[0])] = math.inf
            return False
        return True

    def _gather(self, found: dict[str, tuple[npt.NDArray[np.int64], Errors, str, int]]) -> None:
        if self.errors and found.keys() != self.errors.keys():
            raise foreign.NotCallableError(f"got {' and '.join(found)} this time")
        for name, (positions, errors, output, numbers) in found.items():
            self.errors.setdefault(name, {}).update(
                zip(positions.tolist(), errors.tolist(), strict=True)
            )
            self.output[name] = output
            self.numbers[name] = self.numbers.get(name, 0) + numbers

    def _call(
        self, positions: npt.NDArray[np.int64]
    ) -> dict[str, tuple[npt.NDArray[np.int64], Errors, str, int]]:
        """Return, of each part, the error at every position, its dtype and its size."""
        rope, kind = self.embedding, numpy_dtype(self.dtype)
        rng = np.random.default_rng(0)
        shape = (1, foreign.heads(self.one), len(positions), rope.head_dim)
        # Of 24 bits at most, and none below 2^-24: see _rotation_errors.
        x = (rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape)).astype(np.float32)
        x = x.astype(kind)
        exact = oracle.tables(_angles(rope, positions), positions.astype(np.float64))
        given = exact.high if self.dtype == "float64" else exact.float32.astype(kind)
        high, low = exact.high, exact.low
        if self.one.takes_tables:
            high, low = given.astype(np.float64), np.zeros_like(low)
        out = self.one(x.copy(), positions, (given[0], given[1]), self.pairs)
        found = {}
        with np.errstate(all="ignore"):
            if out.tables:
                errors = _table_errors(out.tables, high, low, self.pairs)
                found["cos and sin"] = (errors, out.tables)
            if out.rotated:
                every = [_rotation_errors(y, x, high, low, self.pairs) for y in out.rotated]
                found["rotation"] = (np.max(every, axis=0), out.rotated)
        return {
            name: (
                positions,
                np.nan_to_num(errors / eps(self.dtype), nan=np.inf, posinf=np.inf),
                arrays[0].dtype.name,
                sum(y.size for y in arrays),
            )
            for name, (errors, arrays) in found.items()
        }


def _needs_length(rope: rotary.RotaryEmbedding) -> bool:
    return rope.scaling is not None and bool(rope.scaling.needs_length)


def _angles(rope: rotary.RotaryEmbedding, positions: npt.NDArray[np.int64]) -> oracle.Angles:
    """Return the embedding as the oracle reads it, at the length that these positions have."""
    return oracle.Angles(
        rope.rotary_dim,
        rope.base,
        rope.frequency_dim,
        rope.inv_freq,
        None if rope.xpos is None else rope.xpos.scale_base,
        None if rope.xpos is None else "query",
        rope.scaling,
        int(positions.max()) + 1 if _needs_length(rope) else 0,
        rope.axes,
    )


def _rotation_errors(
    y: npt.NDArray[Any], x: npt.NDArray[Any], high: Errors, low: Errors, pairs: tuple[Any, Any]
) -> Errors:
    """Return the largest error at each position, as a share of the pair's length.

    cos and sin are cut at 2^-24, so that products of x with the first parts, and their sums, are
    exact in float64; what is left is 2^-24 of them, and its rounding far below an ulp of float64.
    """
    x1, x2 = (x[..., members].astype(np.float64) for members in pairs)
    y1, y2 = (y[..., members].astype(np.float64) for members in pairs)
    cos, sin = np.rint(high * 2.0**24) * 2.0**-24
    cos_rest, sin_rest = (high - (cos, sin)) + low
    e1 = (y1 - (x1 * cos - x2 * sin)) - (x1 * cos_rest - x2 * sin_rest)
    e2 = (y2 - (x1 * sin + x2 * cos)) - (x1 * sin_rest + x2 * cos_rest)
    share = np.hypot(e1, e2) / (np.hypot(x1, x2) * np.hypot(*high))
    # Features that do not rotate.
    rest = np.setdiff1d(np.arange(x.shape[-1]), np.concatenate(pairs))
    before, after = (z[..., rest].astype(np.float64) for z in (x, y))
    share = np.concatenate([share, np.abs(after - before) / np.abs(before)], axis=-1)
    largest: Errors = share.max(axis=(0, 1, 3))
    return largest


def _table_errors(
    tables: tuple[npt.NDArray[Any], ...], high: Errors, low: Errors, pairs: tuple[Any, Any]
) -> Errors:
    """Return the largest error at each position, of cos and sin as one pair."""
    cos, sin = (table.astype(np.float64) for table in tables)
    columns = [slice(None)]
    if cos.shape[-1] > high.shape[-1]:  # every pair twice
        start = min(map(min, pairs))
        columns = [members - start for members in pairs]
    found = [
        np.hypot((cos[:, chosen] - high[0]) - low[0], (sin[:, chosen] - high[1]) - low[1])
        / np.hypot(*high)
        for chosen in columns
    ]
    largest: Errors = np.max(found, axis=(0, 2))
    return largest


def _octaves(limit: int) -> Iterable[npt.NDArray[np.int64]]:
    """Yield positions: the first ones all, then 64 an octave, and the limit."""
    yield np.arange(min(_FIRST, limit + 1))
    start = _FIRST
    while start <= limit:
        some = np.rint(start * 2.0 ** (np.arange(_AT_ONCE) / _AT_ONCE)).astype(np.int64)
        some = some[some < limit]
        start *= 2
        yield np.append(some, limit) if start > limit else some


def _gap(errors: Mapping[int, float], level: float) -> npt.NDArray[np.int64]:
    """Return positions between the last that holds and the first that fails, if there are any."""
    holds_to, fails_at = _around(sorted(errors.items()), level)
    if holds_to is None or fails_at is None:
        return np.zeros(0, np.int64)
    inside = np.linspace(holds_to, fails_at, _AT_ONCE + 2)[1:-1]
    return np.setdiff1d(np.rint(inside).astype(np.int64), [holds_to, fails_at])


def _around(errors: list[tuple[int, float]], level: float) -> tuple[int | None, int | None]:
    """Return the first position that fails, and the one before it, of those that were tested."""
    last = None
    for position, error in errors:
        if not error <= level:
            return last, position
        last = position
    return last, None


def _sentences(part: Part) -> list[str]:
    as_ = "" if part.output == part.dtype else f" (comes out as {part.output})"
    lines = [f"{part.name}, {part.dtype}{as_}"]
    for reach in part.reaches:
        if reach.fails_at is None:
            found = f"holds at every position tested, up to {reach.holds_to}"
        elif reach.holds_to is None:
            found = "fails at position 0"
        else:
            found = f"holds up to position {reach.holds_to}, fails at {reach.fails_at}"
        lines.append(f"  {reach.ulp:g} ulp: {found}")
    position, error = part.worst
    if math.isfinite(error):
        share = error * eps(part.dtype)
        lines.append(f"  largest error: {error:.3g} ulp, {share:.2g} of the length, at {position}")
    if part.raised is not None:
        lines.append(f"  raises {part.raised}")
    return lines


def _wrong(part: Part) -> bool:
    errors = zip(part.positions, part.errors, strict=True)
    return any(p <= 16 and 0.05 < e * eps(part.dtype) < math.inf for p, e in errors)


def _as_dict(part: Part) -> dict[str, Any]:
    """Return it for JSON, which has no infinity."""
    errors = [error if math.isfinite(error) else None for error in part.errors]
    return {**asdict(part), "errors": errors}


def _cells(held: Held, part: Part) -> list[Cell]:
    position, error = part.worst
    cell = Cell(
        held.name,
        part.name,
        part.dtype,
        held.library,
        "reported",
        "holds",
        elements=len(part.positions),
        worst=error,
        worst_index=(position,),
        detail="; ".join(line.strip() for line in _sentences(part)),
        seconds=held.seconds / len(held.parts),
    )
    return [
        replace(
            cell,
            level=f"ulp <= {reach.ulp:g}",
            verdict="holds" if reach.fails_at is None else "fails",
            differing=sum(not error <= reach.ulp for error in part.errors),
        )
        for reach in part.reaches
        if reach.asked
    ] or [cell]

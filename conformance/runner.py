"""Runs cases: library × case × dtype × way of running, each a cell with its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import rotary
from rotary.backends import kernels
from rotary.conformance import cases as all_cases
from rotary.conformance import compare, libraries, oracle, subject
from rotary.conformance.cases import AnyCase, Case
from rotary.conformance.functions import Expected, FunctionCase
from rotary.conformance.libraries import Library, Way

ELEMENTS = 10**5
MOST_ELEMENTS = 10**9
FLOAT64_ULPS = 0.501


@dataclass(frozen=True)
class Cell:
    """One comparison, or the reason why there was none.

    Attributes
    ----------
    library, case, dtype, way : str
        What was run.
    level : str
        "bitwise", "ulp <= 0.501" or "bound".
    verdict : {"holds", "fails", "error", "not run"}
    elements, differing, flushed : int
        Numbers compared, those outside the level, and subnormal ones that came out as zero.
    worst : float
        Largest difference: in ulps, or as a share of the bound.
    worst_index : tuple of int, optional
        Where it is.
    detail : str
        Expected and got at that place; or the reason or the error.
    seconds : float
        Time of the call, compilation included.
    """

    library: str
    case: str
    dtype: str
    way: str
    level: str
    verdict: str
    elements: int = 0
    differing: int = 0
    flushed: int = 0
    worst: float = 0.0
    worst_index: tuple[int, ...] | None = None
    detail: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The cell in one line."""
        return f"{self.library} / {self.case} / {self.dtype} / {self.way}"


@dataclass(frozen=True)
class Task:
    """A cell that is to be run."""

    library: Library
    case: AnyCase
    dtype: str
    way: Way


def plan(
    chosen_libraries: Iterable[Library],
    cases: Iterable[AnyCase],
    dtypes: Iterable[str],
    ways: Iterable[str] | None = None,
) -> Iterator[Task | Cell]:
    """Yield what is to be run, and cells "not run" with their reasons."""
    cases, dtypes = tuple(cases), tuple(dtypes)
    wanted = None if ways is None else set(ways)
    for library in chosen_libraries:
        for case in cases:
            for dtype in (d for d in case.dtypes if d in dtypes):
                for way in _ways(library, case):
                    if wanted is not None and way.name not in wanted:
                        continue
                    reason = _reason_not_to_run(library, case, dtype, way)
                    if reason is None:
                        yield Task(library, case, dtype, way)
                    else:
                        yield Cell(
                            library.name,
                            case.id,
                            dtype,
                            way.name,
                            case.level,
                            "not run",
                            detail=reason,
                        )


def _ways(library: Library, case: AnyCase) -> tuple[Way, ...]:
    if case.kind == "table gradient":
        gradient, reason = library.table_gradient, None
        if gradient is None:
            gradient, reason = _no_gradient, f"{library.name} computes no gradients"
        return (Way("table gradient", "table gradient", gradient, unavailable=reason),)
    wanted = case.ways
    if wanted is None:
        return library.ways
    # "eager" means "eager, x64" too, and "eager," only itself.
    return tuple(
        w for w in library.ways if w.name.partition(",")[0] in wanted or f"{w.name}," in wanted
    )


def _no_gradient(*_: Any) -> Any:
    # Its way is unavailable: the reason is reported, and nothing is run.
    raise NotImplementedError


def _reason_not_to_run(library: Library, case: AnyCase, dtype: str, way: Way) -> str | None:
    if dtype not in library.dtypes:
        return f"{library.name} has no {dtype}"
    reason = way.unavailable or way.refused.get(dtype)
    if reason is None and isinstance(case, FunctionCase):
        reason = case.reason_not_to_run(library.name, way.name, dtype)
    return reason


def run_task(task: Task, elements: int, make: subject.Make) -> Cell:
    """Run one cell; whatever goes wrong in it is its verdict."""
    started = time.perf_counter()
    try:
        with np.errstate(all="ignore"):
            level, difference, detail = _compare(task, elements, make)
    except Exception as error:
        return _cell(
            task,
            task.case.level,
            "error",
            detail=f"{type(error).__name__}: {error}",
            seconds=time.perf_counter() - started,
        )
    return _cell(
        task,
        level,
        "fails" if difference.differing else "holds",
        elements=difference.elements,
        differing=difference.differing,
        flushed=difference.flushed,
        worst=difference.worst,
        worst_index=difference.worst_index,
        detail=detail,
        seconds=time.perf_counter() - started,
    )


def _cell(task: Task, level: str, verdict: str, **rest: Any) -> Cell:
    return Cell(task.library.name, task.case.id, task.dtype, task.way.name, level, verdict, **rest)


def _compare(task: Task, elements: int, make: subject.Make) -> tuple[str, compare.Difference, str]:
    case, library = task.case, task.library
    if isinstance(case, FunctionCase):
        return _compare_function(task, case, elements)
    if case.kind == "tables":
        return _compare_tables(task, case, make)
    x, direction = subject.inputs(case, task.dtype, elements)
    if case.kind == "table gradient":
        return _compare_table_gradient(task, case, x, direction)
    f = subject.function(case, make, task.dtype)
    arrays = (library.from_host(array) for array in (x, direction, *case.traced.values()))
    got = library.to_host(task.way.run(f, *arrays))
    tables = reference_tables(case.angles, _key(case.where), task.dtype)
    want = subject.expected(case, task.way.quantity, x, direction, tables)
    difference = compare.bits(got, want, flush=case.values == "subnormal")
    return "bitwise", difference, _at_worst(difference, got, want)


def _compare_function(
    task: Task, case: FunctionCase, elements: int
) -> tuple[str, compare.Difference, str]:
    library, adjoint = task.library, task.way.quantity == "adjoint"
    given, direction, want = prepared(case, task.dtype, elements, adjoint)
    x, direction_, *more = (library.from_host(array) for array in (given[0], direction, *given[1:]))
    result = task.way.run(case.call, x, direction_, *more)
    outputs = [library.to_host(y) for y in (result if isinstance(result, tuple) else (result,))]
    if len(outputs) != len(want):
        raise ValueError(f"got {len(outputs)} outputs, expected {len(want)}")
    found = [_held(y, expected) for y, expected in zip(outputs, want, strict=True)]
    level = "bound" if any(expected.allowed is not None for expected in want) else "bitwise"
    if any(expected.low is not None for expected in want):
        level = f"ulp <= {FLOAT64_ULPS}"
    worst = max(range(len(found)), key=lambda i: (found[i].differing > 0, found[i].worst))
    together = replace(
        found[worst],
        elements=sum(difference.elements for difference in found),
        differing=sum(difference.differing for difference in found),
    )
    detail = _at_worst(found[worst], outputs[worst], want[worst].value)
    named = want[worst].name and detail
    return level, together, f"{want[worst].name}: {detail}" if named else detail


@lru_cache(maxsize=128)
def prepared(
    case: FunctionCase, dtype: str, elements: int, adjoint: bool
) -> tuple[tuple[Any, ...], Any, tuple[Expected, ...]]:
    """Return inputs, a direction for the gradient, and what has to come out: slow to make."""
    rng = case.random()
    given = case.inputs(rng, subject.numpy_dtype(dtype), elements)
    if not adjoint:
        want = case.expected(*given)
        return given, np.zeros_like(want[0].value), want
    assert case.gradient is not None
    shape, kind = prepared(case, dtype, elements, False)[1:][0].shape, given[0].dtype
    direction = rng.standard_normal(shape).astype(kind)
    return given, direction, (case.gradient(direction, *given),)


def _held(got: npt.NDArray[Any], expected: Expected) -> compare.Difference:
    if expected.low is not None:
        return compare.ulps(got, expected.value, expected.low, FLOAT64_ULPS)
    if expected.allowed is None:
        return compare.bits(got, expected.value)
    return compare.bound(got, expected.value, expected.allowed)


def _compare_tables(
    task: Task, case: Case, make: subject.Make
) -> tuple[str, compare.Difference, str]:
    library = task.library
    like = library.from_host(np.zeros(1, task.dtype))
    given = (library.from_host(array) for array in case.traced.values())
    pair = task.way.run(subject.function(case, make, task.dtype), like, like, *given)
    got = np.stack([library.to_host(table) for table in pair])
    want = oracle.tables(case.angles, case.where)
    if task.dtype == "float32":
        difference = compare.bits(got, want.float32)
        return "bitwise", difference, _at_worst(difference, got, want.float32)
    difference = compare.ulps(got, want.high, want.low, FLOAT64_ULPS)
    detail = _at_worst(difference, got, want.high)
    if not difference.differing:
        # Inside the bound, and the same bits as on NumPy.
        ours = reference_tables(case.angles, _key(case.where), task.dtype)
        same = compare.bits(got, ours)
        if same.differing:
            return "bitwise to NumPy", same, _at_worst(same, got, ours)
    return f"ulp <= {FLOAT64_ULPS}", difference, detail


def _compare_table_gradient(
    task: Task, case: Case, x: npt.NDArray[Any], direction: npt.NDArray[Any]
) -> tuple[str, compare.Difference, str]:
    library = task.library
    tables = reference_tables(case.angles, _key(case.where), task.dtype)
    arrays = (library.from_host(a) for a in (x, *tables, direction))
    gradients = task.way.run(subject.table_function(case), *arrays)
    got = np.stack([library.to_host(g) for g in gradients])
    want, allowed = subject.expected_table_gradient(case, x, direction)
    difference = compare.bound(got, want, allowed)
    return "bound", difference, _at_worst(difference, got, want)


def _key(positions: npt.NDArray[np.float64]) -> tuple[Any, bytes]:
    return positions.shape, positions.tobytes()


@lru_cache(maxsize=64)
def reference_tables(
    angles: oracle.Angles, positions: tuple[Any, bytes], dtype: str
) -> npt.NDArray[Any]:
    """Return the tables by which rotations are judged, shape (2, …, R/2).

    float32: the oracle's, correctly rounded.  float64: ours on NumPy, which the table cells hold
    to the oracle within 0.501 ulp; two that differ in a rounding would both be right.
    """
    where = np.frombuffer(positions[1]).reshape(positions[0])
    if dtype != "float64":
        return oracle.tables(angles, where).float32
    given = {name: value for name, value in vars(angles).items() if value is not None}
    role, seq_len = given.pop("role", None), given.pop("seq_len") or None
    if role is not None:
        given["xpos"] = rotary.XPos(given.pop("scale_base"))
    rope = rotary.RotaryEmbedding(head_dim=angles.rotary_dim, **given)
    return np.stack(rope.tables(where, dtype="float64", role=role, seq_len=seq_len))


def _at_worst(difference: compare.Difference, got: npt.NDArray[Any], want: npt.NDArray[Any]) -> str:
    index = difference.worst_index
    return "" if index is None else f"expected {want[index]!r}, got {got[index]!r}"


def run(
    backends: Iterable[str] | None = None,
    *,
    cases: Iterable[str] = ("*",),
    dtypes: Iterable[str] = all_cases.DTYPES,
    ways: Iterable[str] | None = None,
    elements: int = ELEMENTS,
    device: str | None = None,
    make: subject.Make = rotary.RotaryEmbedding,
    progress: Callable[[int, int, str], None] | None = None,
) -> Any:
    """Hold implementations to the oracle.

    Parameters
    ----------
    backends : iterable of str, optional
        Names of array libraries, such as "numpy" or "jax" (``libraries.KNOWN``), or of modules
        (``libraries.load``); by default all that are installed and run on this machine.
    cases : iterable of str
        Case ids, or patterns of them such as ``"rotation/*"``.
    dtypes : iterable of str
        Of float16, bfloat16, float32 and float64.
    ways : iterable of str, optional
        Ways of running, such as "eager"; by default all that a case asks for.
    elements : int
        About how many numbers a rotation has.
    device : {"cpu", "cuda"}, optional
        Where arrays are, of libraries that have it; by default where each library puts them.
    make : callable
        Makes what is under test from the arguments of ``RotaryEmbedding``.
    progress : callable, optional
        Called before each cell with its number, the number of cells and its name.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        For names that match nothing.
    NotInstalledError
        For a library or a device that was asked for and cannot be imported, or cannot run here.
    """
    from rotary.conformance.report import Report

    collected = collect(
        backends, cases=cases, dtypes=dtypes, ways=ways, elements=elements, device=device
    )
    planned = collected.planned
    cells, started = [], time.perf_counter()
    for number, item in enumerate(planned):
        if isinstance(item, Task):
            if progress is not None:
                name = f"{item.library.name} {item.case.id} {item.dtype} {item.way.name}"
                progress(number, len(planned), name)
            item = run_task(item, elements, make)
        cells.append(item)
    seconds = time.perf_counter() - started
    return Report(
        tuple(cells), collected.versions, elements, seconds, collected.left_out, kernels.reasons()
    )


class Collected(NamedTuple):
    """What is to be run."""

    planned: tuple[Task | Cell, ...]
    versions: dict[str, str]
    left_out: dict[str, str]


def collect(
    backends: Iterable[str] | None = None,
    *,
    cases: Iterable[str] = ("*",),
    dtypes: Iterable[str] = all_cases.DTYPES,
    ways: Iterable[str] | None = None,
    elements: int = ELEMENTS,
    device: str | None = None,
) -> Collected:
    """Return what :func:`run` would run; arguments and errors are those of :func:`run`."""
    left_out: dict[str, str] = {}
    if device is not None:
        _check_names("device", [device], libraries.DEVICES)
    if backends is None:
        chosen, left_out = libraries.load_installed(device)
    else:
        chosen = [libraries.load(name, device) for name in dict.fromkeys(backends)]
    _check_names("dtype", dtypes := tuple(dtypes), all_cases.DTYPES)
    if not 1 <= elements <= MOST_ELEMENTS:
        raise ValueError(f"elements: got {elements}, expected 1 to {MOST_ELEMENTS}")
    if ways is not None:
        known = {way.name for library in chosen for way in library.ways} | {"table gradient"}
        _check_names("way", ways := tuple(ways), sorted(known))
    planned = tuple(plan(chosen, all_cases.select(cases), dtypes, ways))
    return Collected(planned, {library.name: library.version for library in chosen}, left_out)


def _check_names(what: str, given: Iterable[Any], known: Any) -> None:
    for name in given:
        if name not in known:
            # Quoted: some names hold a comma.
            raise ValueError(f"{what}: got {name!r}, expected one of {', '.join(map(repr, known))}")

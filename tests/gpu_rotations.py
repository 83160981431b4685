"""Rotations that a GPU's kernel has to make with the bits of the array code.

They run on a GPU, and without one through what stands in for it: Triton's interpreter, and CUDA's
source compiled for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rotary.backends import Turn, _numpy, owner_of
from rotary.rotation import rotate_by_array_code

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
PLAIN = Turn("half", "leading", None, False)


class Case(NamedTuple):
    """Arrays, as parts of others of these shapes, tables of a shape, and how to turn."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    tables: tuple[int, ...]
    turn: Turn
    lie: Callable[..., tuple[Any, ...]] | None = None
    """``lie(*arrays, xp)`` → views of them."""


def turns() -> Iterator[Case]:
    """Every way to turn, of queries and keys; 16 bytes at once, and pair by pair."""
    all_ways = product(("half", "interleaved"), ("leading", "trailing"), (0, 1), (False, True))
    for n, (layout, side, blocks, inverse) in enumerate(all_ways):
        for pairs, dim, sizes in ((16, 40, (8, 8)), (7, 17, (2, 1, 4))):
            turn = Turn(layout, side, sizes if blocks else None, inverse)
            tables = ((5, pairs), (2, 1, 5, pairs), (1, 1, 5, pairs))[n % 3]
            yield Case(f"{turn} {pairs}", ((2, 2, 5, dim), (2, 1, 5, dim)), tables, turn)


def places() -> Iterator[Case]:
    """Every way to lie in memory."""
    yield Case("rank 2", ((5, 8),), (5, 4), PLAIN)
    yield Case("rank 3, a table a row", ((3, 5, 8),), (3, 5, 4), PLAIN)
    yield Case("heads have tables", ((2, 3, 5, 8),), (1, 3, 5, 4), PLAIN)
    yield Case("all have tables", ((2, 3, 5, 8),), (2, 3, 5, 4), PLAIN)
    yield Case("rank 5", ((2, 2, 2, 3, 8),), (3, 4), PLAIN)
    yield Case("rank 5, axes that do not merge", ((2, 3, 2, 3, 8),), (2, 1, 2, 3, 4), PLAIN)
    yield Case("rank 6", ((2, 2, 1, 2, 3, 8),), (2, 1, 1, 2, 1, 4), PLAIN)
    yield Case("more heads than a program takes", ((1, 19, 17, 8), (1, 3, 17, 8)), (17, 4), PLAIN)
    yield Case("one position", ((3, 5, 1, 8), (3, 2, 1, 8)), (1, 4), PLAIN)
    yield Case("one position a row", ((3, 5, 1, 8), (3, 2, 1, 8)), (3, 1, 1, 4), PLAIN)
    yield Case("wide rows", ((1, 1, 2, 610),), (2, 300), PLAIN)
    interleaved = PLAIN._replace(layout="interleaved")
    yield Case("wide interleaved rows", ((1, 1, 2, 610),), (2, 300), interleaved)
    yield Case("heads of another size", ((2, 2, 3, 16), (2, 1, 3, 12)), (3, 4), PLAIN)
    for shape in ((0, 3, 5, 8), (2, 0, 5, 8), (2, 3, 0, 8)):
        yield Case(f"empty {shape}", (shape,), (shape[-2], 4), PLAIN)
    yield Case("no keys", ((2, 3, 5, 8), (2, 0, 5, 8)), (5, 4), PLAIN)

    def heads_last(q: Any, k: Any, xp: Any) -> tuple[Any, ...]:
        return tuple(xp.permute_dims(x, (0, 2, 1, 3)) for x in (q, k))

    def packed(qkv: Any, xp: Any) -> tuple[Any, ...]:
        return qkv[:, :, 0], qkv[:, :, 1]

    def grouped(qkv: Any, xp: Any) -> tuple[Any, ...]:
        whole = xp.permute_dims(qkv, (0, 2, 1, 3))
        return whole[:, :4], whole[:, 4:6]

    def cut_out(x: Any, xp: Any) -> tuple[Any, ...]:
        return (x[1:, ::3, :, 3:13],)

    yield Case("seq before heads", ((2, 5, 4, 16), (2, 5, 2, 16)), (5, 8), PLAIN, heads_last)
    yield Case("packed", ((2, 5, 3, 4, 16),), (1, 5, 1, 8), PLAIN, packed)
    yield Case("packed by groups", ((2, 5, 8, 16),), (5, 8), PLAIN, grouped)
    yield Case("cut out", ((3, 5, 6, 20),), (6, 5), PLAIN, cut_out)


def samples(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Return numbers of every kind: subnormal ones, infinities, NaN, zeros of both signs."""
    kind, rng = DTYPES[dtype], np.random.default_rng(seed)
    unit = {2: np.uint16, 4: np.uint32, 8: np.uint64}[kind.itemsize]
    patterns = rng.integers(0, np.iinfo(unit).max, shape, unit, endpoint=True).view(kind)
    info = ml_dtypes.finfo(kind)
    least = float(info.smallest_subnormal)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, least, float(info.tiny) - least, float(info.max)]
    chosen = rng.choice(np.array(special, kind), shape)
    which = rng.random(shape)
    with np.errstate(invalid="ignore"):
        usual = rng.standard_normal(shape).astype(kind)
        return np.where(which < 0.6, usual, np.where(which < 0.8, patterns, chosen)).astype(kind)


def angles(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """Return cosines and sines; and numbers half way between two of 16 bits, a NaN of all ones."""
    real = np.float64 if dtype == "float64" else np.float32
    turn = np.random.default_rng(7).uniform(-9, 9, shape)
    cos, sin = np.cos(turn).astype(real), np.sin(turn).astype(real)
    cos[..., 0], sin[..., 0] = 1.5, 0
    if sin.size:
        pattern = np.uint64(2**63 - 1) if dtype == "float64" else np.uint32(2**31 - 1)
        sin[(*(0 for _ in shape[:-1]), -1)] = pattern.view(real)
    return cos, sin


class Subject(NamedTuple):
    """A kernel, and how arrays come to it and back."""

    rotate: Callable[..., bool]
    array: Callable[[Any], Any]
    host: Callable[[Any], Any]


def differing(subject: Subject, case: Case, dtype: str) -> str:
    """Return what differs, in new memory and in place; nothing, if all is well."""
    wholes = [samples(shape, dtype, n) for n, shape in enumerate(case.shapes)]
    cos, sin = angles(case.tables, dtype)
    before, parts = [x.copy() for x in wholes], _parts(case, wholes)
    wanted = rotate_by_array_code(parts, cos, sin, case.turn, _numpy)
    given = [subject.array(x) for x in wholes]
    tables = subject.array(cos), subject.array(sin)
    arrays = _parts(case, given)
    outs = tuple(subject.array(np.full(x.shape, 77, x.dtype)) for x in parts)
    if not subject.rotate(arrays, outs, *tables, case.turn, fresh=True):
        return f"{case.name}: does not fit"
    found = [(subject.host(x), y) for x, y in zip(outs, wanted, strict=True)]
    found += [(subject.host(x).copy(), y) for x, y in zip(given, before, strict=True)]
    if not subject.rotate(arrays, arrays, *tables, case.turn, fresh=False):
        return f"{case.name}: does not fit in place"
    for part, result in zip(parts, wanted, strict=True):
        part[...] = result
    found += [(subject.host(x), y) for x, y in zip(given, wholes, strict=True)]
    wrong = [_unlike(x, y) for x, y in found]
    return f"{case.name}: {wrong}" if any(wrong) else ""


def _parts(case: Case, wholes: list[Any]) -> tuple[Any, ...]:
    if case.lie is None:
        return tuple(wholes)
    return case.lie(*wholes, owner_of(wholes[0]).namespace(wholes[0]))


def _unlike(found: Any, wanted: Any) -> int:
    """Count numbers with other bits, but for those of NaN."""
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    unit = {2: np.uint16, 4: np.uint32, 8: np.uint64}[found.dtype.itemsize]
    same = np.ascontiguousarray(found).view(unit) == np.ascontiguousarray(wanted).view(unit)
    return int((~same & ~(np.isnan(found) & np.isnan(wanted))).sum())


def all_differing(subject: Subject, *, thorough: bool = True) -> list[str]:
    """Return what differs in any case.

    Thorough is every way to turn with every dtype; otherwise each is with one, in turn.
    """
    dtypes = list(DTYPES)
    # 32 cases, of which neighbours are in pairs: 5 and 4 have no factor in common.
    chosen = [(case, dtypes[n % 5 % 4]) for n, case in enumerate(turns())]
    if thorough:
        chosen = [(case, dtype) for case in turns() for dtype in dtypes]
    chosen += [(case, ("bfloat16", "float32")[n % 2]) for n, case in enumerate(places())]
    with np.errstate(all="ignore"):
        found = [(dtype, differing(subject, case, dtype)) for case, dtype in chosen]
    return [f"{dtype}, {wrong}" for dtype, wrong in found if wrong]

"""Which features a box turns together: the pairs that it reads, where it writes them.

At one position a rotary embedding is the matrix y_a = x_j·cos − x_k·sin, y_b = x_j·sin + x_k·cos
for each pair (j, k) → (a, b), and 1 for a feature at rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rotary.conformance.identifying.asking import Array, Box, RefusedError, holds, rounded

POSITIONS = np.array([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 19.0, 31.0])


class UnexplainedError(Exception):
    """The box is no rotary embedding; the message says what was seen."""


@dataclass(frozen=True)
class Structure:
    """Pairs in the order of their first features; angles are left to be read.

    Attributes
    ----------
    reads, writes : array, shape (pairs, 2)
        Features (j, k) and (a, b).
    rest : dict
        Feature read → feature written, for those that do not turn.
    rest_factor : float
        What features at rest are multiplied by.
    unit : float
        Relative spacing of the numbers that come out: 2^-8 for bfloat16, 2^-23 for float32.
    """

    reads: npt.NDArray[np.int64]
    writes: npt.NDArray[np.int64]
    rest: dict[int, int]
    rest_factor: float
    unit: float


def read_structure(box: Box, rng: np.random.Generator) -> Structure:
    """Find the pairs; raise UnexplainedError where the box does not turn pairs of features."""
    dim = box.head_dim
    vectors = np.concatenate([np.zeros((1, dim)), np.eye(dim)])
    answers = box.response(vectors, POSITIONS)
    if not np.isfinite(answers).all():
        raise UnexplainedError("its outputs for unit vectors are not finite numbers")
    if answers[:, 0].any():
        raise UnexplainedError(
            f"it adds something to x: zeros become up to {np.abs(answers[:, 0]).max():.3g}"
        )
    matrices = answers[:, 1:].swapaxes(1, 2)  # (seq, out, in)
    unit = _unit_of(answers)
    _check_rows_alone(box, matrices, unit, rng)
    return _pairs(matrices, unit)


def _unit_of(answers: Array) -> float:
    for name, unit in (("bfloat16", 2.0**-8), ("float16", 2.0**-11), ("float32", 2.0**-23)):
        if holds(answers, name):
            return unit
    return 2.0**-52


def _check_rows_alone(box: Box, matrices: Array, unit: float, rng: np.random.Generator) -> None:
    """Raise unless each row of random x becomes what the matrix of its position makes of it."""
    x = rounded(rng.standard_normal((2, 2, len(POSITIONS), box.head_dim)), box.dtype)
    try:
        y = box.ask(x, POSITIONS)
    except RefusedError as error:
        raise UnexplainedError(f"with 2 batch rows and 2 heads: {error}") from error
    expected = np.einsum("soi,bhsi->bhso", matrices, x)
    size = np.einsum("soi,bhsi->bhso", np.abs(matrices), np.abs(x))
    off = np.abs(y - expected)
    if (off <= 4 * max(unit, 2.0**-23) * size + 2.0**-24).all():
        return
    worst = f"random x becomes something else than its unit vectors say, by {off.max():.3g}"
    changed, row = x.copy(), len(POSITIONS) // 2
    changed[:, :, row] += 1.0
    moved = np.abs(box.ask(changed, POSITIONS) - y).max(axis=(0, 1, 3))
    if np.delete(moved, row).max() > 1e-3 * np.abs(y).max():
        raise UnexplainedError(f"a row of the output depends on other rows of x: {worst}")
    same = np.repeat(np.repeat(x[:1, :1], 2, axis=0), 2, axis=1)
    twice = box.ask(same, POSITIONS)
    for axis, name in ((1, "heads"), (0, "batch rows")):
        if np.abs(np.diff(twice, axis=axis)).max() > 64 * unit:
            raise UnexplainedError(f"equal rows of x come out differently in different {name}")
    if np.abs(box.ask(2 * x, POSITIONS) - 2 * y).max() > 64 * unit * np.abs(y).max():
        raise UnexplainedError(f"it is not linear in x: {worst}")
    raise UnexplainedError(worst)


def _pairs(matrices: Array, unit: float) -> Structure:
    largest = np.abs(matrices).max(axis=0)  # (out, in)
    for least in (0.0, 2.0**-22):
        targets = [tuple(np.flatnonzero(column > least).tolist()) for column in largest.T]
        if max(map(len, targets)) <= 2:
            break
    most = max(map(len, targets))
    if most > 2:
        raise UnexplainedError(
            f"a feature of x reaches {most} features of the output, expected 2: no pairs turn"
        )
    if min(map(len, targets)) == 0:
        raise UnexplainedError("a feature of x does not reach the output")
    by_targets: dict[tuple[int, ...], list[int]] = {}
    for feature, reached in enumerate(targets):
        by_targets.setdefault(reached, []).append(feature)
    reads, writes, rest = [], [], {}
    for reached, features in by_targets.items():
        if len(reached) == len(features) == 1:
            rest[features[0]] = reached[0]
        elif len(reached) == len(features) == 2:
            reads.append(features)
            writes.append(_written(matrices, features, reached, unit))
        else:
            raise UnexplainedError(
                f"features {list(reached)} of the output are made of features {features} of x, "
                f"expected as many of each"
            )
    factors = matrices[:, list(rest.values()), list(rest)]
    if factors.size and not np.ptp(factors) <= 4 * unit * np.abs(factors).max():
        raise UnexplainedError("features that do not turn are multiplied by different numbers")
    return Structure(
        np.array(reads, dtype=np.int64).reshape(-1, 2),
        np.array(writes, dtype=np.int64).reshape(-1, 2),
        rest,
        float(np.median(factors)) if factors.size else 1.0,
        unit,
    )


def _written(
    matrices: Array, features: list[int], reached: tuple[int, ...], unit: float
) -> tuple[int, int]:
    """Return the features (a, b) for which the pair's matrices are rotations."""
    j, k = features
    bound = 8 * unit * np.abs(matrices[:, list(reached)][:, :, features]).max()
    for a, b in (reached, reached[::-1]):
        same = np.abs(matrices[:, a, j] - matrices[:, b, k]) <= bound
        opposite = np.abs(matrices[:, b, j] + matrices[:, a, k]) <= bound
        if (same & opposite).all():
            return a, b
    raise UnexplainedError(_no_rotation(matrices, features, reached, bound))


def _no_rotation(
    matrices: Array, features: list[int], reached: tuple[int, ...], bound: float
) -> str:
    start = f"features {features} of x become features {list(reached)} of the output"
    j, k = features
    (a_j, a_k), (b_j, b_k) = ((matrices[:, out, j], matrices[:, out, k]) for out in reached)
    if (np.abs(a_j - b_k) <= bound).all() and (np.abs(a_k - b_j) <= bound).all():
        return f"{start} in opposite directions: a sign is missing"
    if all((np.abs(np.hypot(*row) - 1) <= bound).all() for row in ((a_j, a_k), (b_j, b_k))):
        return (
            f"{start} by two angles, one for each: tables arranged for one layout meet a "
            f"rotation in the other"
        )
    return f"{start} by matrices that are no rotations"


def flipped(structure: Structure, pairs: npt.NDArray[np.bool_]) -> Structure:
    """Return the structure with first and second features of these pairs exchanged."""
    chosen = pairs[:, None]
    return replace(
        structure,
        reads=np.where(chosen, structure.reads[:, ::-1], structure.reads),
        writes=np.where(chosen, structure.writes[:, ::-1], structure.writes),
    )


# Layouts


@dataclass(frozen=True)
class Layout:
    """How pairs lie in the features.

    Attributes
    ----------
    name : str
        "half" or "interleaved".
    rotary_dim : int
    start : int
        The first feature of those that turn.
    slots : array, shape (pairs,)
        Which of the rotary_dim/2 pairs each of them is; the missing ones are at rest.
    """

    name: str
    rotary_dim: int
    start: int
    slots: npt.NDArray[np.int64]

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Features of all pairs of the layout, shape (rotary_dim/2, 2)."""
        return places(self.name, self.rotary_dim, self.start)


def places(name: str, rotary_dim: int, start: int) -> npt.NDArray[np.int64]:
    """Return the features of the pairs of a layout, shape (rotary_dim/2, 2)."""
    i = np.arange(rotary_dim // 2)
    pairs = (i, i + rotary_dim // 2) if name == "half" else (2 * i, 2 * i + 1)
    features: npt.NDArray[np.int64] = start + np.stack(pairs, axis=1)
    return features


def layout_of(reads: npt.NDArray[np.int64], head_dim: int) -> Layout | None:
    """Name the layout of these pairs; None if they lie otherwise."""
    first, second = reads[:, 0], reads[:, 1]
    distance = int(second[0] - first[0])
    if not (second - first == distance).all():
        return None
    rotary_dim = 2 * distance
    if distance > 1 or len(reads) == 1:
        for start in (0, head_dim - rotary_dim):
            if start >= 0 and first.min() >= start and first.max() < start + distance:
                return Layout("half", rotary_dim, start, first - start)
    if distance != 1:
        return None
    end = int(second.max()) + 1
    if not (first % 2).any():
        if first.min() > 0 and end == head_dim:
            return Layout("interleaved", end - int(first.min()), int(first.min()), _halves(first))
        return Layout("interleaved", end, 0, first // 2)
    if end == head_dim and all((b - a) % 2 == 0 for a, b in pairwise(first.tolist())):
        return Layout("interleaved", end - int(first.min()), int(first.min()), _halves(first))
    return None


def _halves(first: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    slots: npt.NDArray[np.int64] = (first - first.min()) // 2
    return slots

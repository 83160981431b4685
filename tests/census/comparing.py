"""Compare a rotation of theirs with one of ours: by logits, and by value up to one permutation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import rotary

POSITIONS = np.array([0, 1, 17, 4095])
# Their angles are float32 products of a float32 frequency: off by (1 + pω) times a few 2^-24.
RTOL_FREQUENCIES = 2e-6
ANGLE = 8 * 2.0**-24


@dataclass
class Row:
    """One line of the table."""

    name: str
    folder: str
    model_type: str = ""
    layout: str = ""
    side: str = ""
    axes: str = ""
    order: str = ""
    scalings: list[str] = field(default_factory=list)
    status: str = "match"
    notes: list[str] = field(default_factory=list)


class DiffersError(Exception):
    """Theirs and ours are not the same."""


def random_pair(dim: int, count: int = len(POSITIONS)) -> Any:
    """Return random q and k, shape (2, count, dim)."""
    return np.random.default_rng(2104_09864).standard_normal((2, count, dim))


def close(ours: Any, theirs: Any, rtol: float, what: str) -> None:
    """Raise DiffersError unless two arrays agree."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise DiffersError(f"{what}: theirs of shape {theirs.shape}, ours {ours.shape}")
    error = float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-30), initial=0))
    if error > rtol:
        raise DiffersError(f"{what}: {error:.1e} apart")


def rotates_alike(theirs: Any, ours: rotary.RotaryEmbedding, positions: Any = POSITIONS) -> str:
    """Return the order of features in which theirs is ours; raise DiffersError if there is none."""
    dim, rotated = ours.head_dim, ours.rotary_dim
    pair = random_pair(dim, positions.shape[-1])
    mine = [ours(x, positions=positions) for x in pair]
    bound = _bound(mine, ours, positions)
    apart = _logits_apart(mine, theirs, bound)
    if np.any(apart > 1):
        raise DiffersError(f"logits: up to {np.max(apart):.1e} times the bound apart")
    for axis in range(1, 1 if ours.axes is None else ours.axes.count):
        swapped = np.array(positions)
        swapped[[axis - 1, axis]] = swapped[[axis, axis - 1]]
        mixed_up = [ours(x, positions=swapped) for x in pair]
        if np.all(_logits_apart(mixed_up, theirs, bound) <= 1):
            raise DiffersError(f"axes {axis - 1} and {axis}: would be mixed up unnoticed")

    start = dim - rotated if ours.rotary_side == "trailing" else 0
    pairs_to_halves = np.r_[0:rotated:2, 1:rotated:2]
    for name, order in (("as read", np.arange(rotated)), ("pairs to halves", pairs_to_halves)):
        whole = np.arange(dim)
        whole[start : start + rotated] = start + order
        apart = max(
            np.max(np.abs(a[:, whole] - b) / bound[:, None])
            for a, b in zip(mine, theirs, strict=True)
        )
        if apart <= 1:
            return name
    raise DiffersError("rotated features: in no known order")


def _bound(mine: Any, ours: rotary.RotaryEmbedding, positions: Any) -> Any:
    """Return what each token's features may differ by.

    An error of an angle moves a pair by its length times it; the largest angle is pω, ω ≤ 1, or
    2πp for frequencies in turns.
    """
    scale = np.max(np.abs(mine[0])) + np.max(np.abs(mine[1]))
    several = ours.axes is not None
    farthest = np.max(np.abs(positions), axis=0) if several else np.abs(positions)
    turn = 2 * np.pi if several and ours.axes.in_turns else 1
    return 2 * scale * ANGLE * (1 + turn * farthest)


def _logits_apart(mine: Any, theirs: Any, bound: Any) -> Any:
    """Return how far the logits are apart, in units of their bound."""
    scale = np.max(np.abs(mine[0])) + np.max(np.abs(mine[1]))
    logits = np.abs(mine[0] @ mine[1].T - theirs[0] @ theirs[1].T)
    return logits / (mine[0].shape[-1] * scale * (bound[:, None] + bound))

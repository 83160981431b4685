"""What a box was found to compute, as something that computes it, and how far it is off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import rotary
from rotary.conformance.identifying.angles import Precision
from rotary.conformance.identifying.asking import Array, Box, rounded
from rotary.conformance.identifying.structure import Structure

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A ``RotaryEmbedding`` and what is beside it.

    Attributes
    ----------
    rope : RotaryEmbedding
    direction : int
        1, or −1 for the opposite angle.
    origin : float
        The position that the box gives to position 0.
    reads, writes : tuple of int or None
        Orders of the features: the box gives ``rope(x[..., reads])[..., writes]``.
    """

    rope: rotary.RotaryEmbedding
    direction: int = 1
    origin: float = 0.0
    reads: Indices | None = None
    writes: Indices | None = None

    def apply(self, x: Array, positions: Array) -> Array:
        """Return what the box should give, in float64: x is (..., seq, dim), positions (seq,)."""
        rule = self.rope.scaling
        seq_len = int(positions.max()) + 1 if rule is not None and rule.needs_length else None
        cos, sin = self.rope.tables(positions + self.origin, dtype="float64", seq_len=seq_len)
        y: Array = rotary.rotate(
            x if self.reads is None else x[..., list(self.reads)],
            cos,
            sin,
            layout=self.rope.layout,
            rotary_side=self.rope.rotary_side,
            inverse=self.direction < 0,
        )
        return y if self.writes is None else y[..., list(self.writes)]


@dataclass(frozen=True)
class Trace:
    """How angles are computed, to know by how much tables may differ from the exact ones.

    Attributes
    ----------
    precision : Precision
    multiplied, meant : array, shape (pairs,)
        The frequencies that positions are multiplied by, and those of the model, in the order of
        the structure's pairs.
    """

    precision: Precision
    multiplied: Array
    meant: Array

    def error(self, positions: Array) -> Array:
        """Return by how much the angles may be off, (seq, pairs)."""
        angle = self.precision.angle(positions, self.multiplied)
        off = np.abs(angle - positions[:, None] * self.meant) + self.precision.slack(angle)
        error: Array = np.minimum(np.where(np.isfinite(off), off, 2.0), 2.0)
        return error


@dataclass(frozen=True)
class Comparison:
    """How far the box is from the model.

    Attributes
    ----------
    share : float
        The largest error as a share of what the precision found allows.
    worst : float
        The largest error relative to the length of the pair.
    position : float
        Where that is.
    """

    share: float
    worst: float
    position: float


def compare(
    box: Box,
    structure: Structure,
    model: Model,
    trace: Trace,
    positions: Array,
    rng: np.random.Generator,
    dtype: str | None = None,
) -> Comparison:
    """Ask about random x at these positions and compare with the model."""
    kind = dtype or box.dtype
    x = rounded(rng.standard_normal((2, 2, len(positions), box.head_dim)), kind)
    y = box.ask(x, positions, dtype)
    expected = model.apply(x, positions)
    size, error = np.abs(x), np.zeros((len(positions), box.head_dim))
    if model.reads is not None:
        size = size[..., list(model.reads)]
    if model.writes is not None:
        size = size[..., list(model.writes)]
    a, b = structure.writes.T
    pair = np.hypot(*(x[..., side] for side in structure.reads.T))
    factor = np.maximum(1.0, model.rope.attention_factor(int(positions.max()) + 1))
    size[..., a] = size[..., b] = pair * factor
    error[:, a] = error[:, b] = trace.error(positions + model.origin)
    sharp = _share_of_rounding(structure, trace, x, y, positions + model.origin, factor)
    unit = max(structure.unit, {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(kind, 0.0))
    allowed = size * (error + 8 * unit) + 2.0**-24 * (unit > 2.0**-24)
    off = np.where(np.isfinite(y), np.abs(y - expected), np.inf)
    relative = np.divide(off, size, out=np.zeros_like(off), where=size > 0)
    worst = np.unravel_index(int(np.argmax(relative)), off.shape)
    share = float(np.max(off / np.maximum(allowed, 1e-300)))
    return Comparison(max(share, sharp), float(relative[worst]), float(positions[worst[2]]))


def _share_of_rounding(
    structure: Structure, trace: Trace, x: Array, y: Array, where: Array, factor: float
) -> float:
    """Compare with the 16-bit roundings that were found themselves, which allow whole turns."""
    if not {"bfloat16", "float16"} & {trace.precision.positions, trace.precision.angles}:
        return 0.0
    angle = trace.precision.angle(where, trace.multiplied)
    first, second = (x[..., side] for side in structure.reads.T)
    with np.errstate(invalid="ignore"):
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        slack = np.minimum(trace.precision.slack(angle), 2.0)
    expected = first * cos - second * sin, first * sin + second * cos
    allowed = factor * np.hypot(first, second) * (slack + 8 * structure.unit) + 2.0**-24
    off = [np.abs(y[..., side] - e) for side, e in zip(structure.writes.T, expected, strict=True)]
    return float(np.max(np.stack(off) / allowed))


def sample_positions(last: int, count: int, rng: np.random.Generator) -> Array:
    """Return whole positions up to `last`, small and large ones, `last` among them.

    `count` of them at most: none comes twice, where a box that counts rows could answer only once.
    """
    spread = np.floor((last + 1.0) ** rng.uniform(0, 1, count - 1)) - 1
    positions: Array = np.unique(np.append(spread, float(last)))
    return positions

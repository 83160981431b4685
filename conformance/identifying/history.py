"""Memory: whether a box answers a question otherwise after others were asked.

The same questions are asked again, the longest first; then one in bfloat16 that is longer than all
before, and the same in float32; then one of another box that may share a memory with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rotary.conformance.identifying.angles import Precision, Reader, Reading, wrapped
from rotary.conformance.identifying.asking import Array, Box, Function, RefusedError
from rotary.conformance.identifying.model import Model, Trace, compare, sample_positions
from rotary.conformance.identifying.structure import Structure

UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def after_longer(reader: Reader, readings: tuple[Reading, ...]) -> Iterator[str]:
    """Ask again what was asked before longer sequences."""
    asked = max(reading.length for reading in readings)
    for reading in sorted(readings, key=lambda r: -r.length):
        change = _change(reader, reading)
        if change:
            yield (
                f"it remembers: after positions up to {asked - 1}, the answer for a sequence of "
                f"{reading.length} is another than before, by up to {change:.3g}"
            )
            return


def _change(reader: Reader, reading: Reading) -> float:
    """Return by how much the tables differ from what was read, 0 if by no bit."""
    again = np.stack(reader.tables(reading.positions))
    before = np.stack([reading.cos, reading.sin])
    if np.array_equal(again, before, equal_nan=True):
        return 0.0
    return float(np.nanmax(np.abs(again - before)))


def after_bfloat16(
    reader: Reader, structure: Structure, model: Model, trace: Trace, longest: int, refused: bool
) -> Iterator[tuple[str, str]]:
    """Ask in bfloat16, then the same in the box's own dtype; yield (what is meant, sentence)."""
    box = reader.box
    rng = np.random.default_rng(1)
    length = longest if refused else longest + longest // 2
    positions = sample_positions(length - 1, 16, rng)
    try:
        tables = reader.tables(positions, "bfloat16")
    except RefusedError as error:
        yield "bfloat16", f"bfloat16 x: refused ({error})"
        return
    found = _bfloat16_precision(tables, positions, model, trace, structure)
    if found:
        yield "bfloat16", f"bfloat16 x: {found}"
    try:
        after = compare(box, structure, model, trace, positions, rng)
        if after.share <= 1:
            return
        # Was it the length alone?
        longer = sample_positions(2 * length - 1, 16, rng)
        alone = not refused and compare(box, structure, model, trace, longer, rng).share <= 1
    except RefusedError:
        return
    cause = "a bfloat16 call" if alone or refused else "a bfloat16 call, or for longer sequences,"
    yield (
        "history",
        f"it remembers: after {cause} its {box.dtype} outputs are off by up to "
        f"{after.worst:.3g} at position {after.position:.0f}",
    )


def _bfloat16_precision(
    tables: tuple[Array, Array], positions: Array, model: Model, trace: Trace, structure: Structure
) -> str:
    """Say what happens to angles when x is bfloat16, where it is not the same as otherwise."""
    angles = np.arctan2(tables[1], tables[0])
    where = positions + model.origin
    noise = 4 * 2.0**-8
    own = trace.precision
    choices = {
        "": own,
        "positions are rounded to bfloat16": Precision("bfloat16", own.angles),
        "angles are rounded to bfloat16": Precision(None, "bfloat16"),
        "positions and angles are rounded to bfloat16": Precision("bfloat16", "bfloat16"),
    }
    for words, precision in choices.items():
        for omega in (trace.multiplied, trace.meant):
            angle = precision.angle(where, omega)
            if (np.abs(wrapped(angles - angle)) <= noise + precision.slack(angle)).all():
                return words
    return "angles are others than for float32, and no rounding explains them"


def after_another(reader: Reader, reading: Reading, other: Function) -> Iterator[str]:
    """Ask another box the same, then this one again."""
    box = Box(other, reader.box.head_dim, reader.box.dtype)
    box.takes = reader.box.takes
    own = np.stack([reading.cos, reading.sin])
    try:
        others = np.stack(Reader(box, reader.structure).tables(reading.positions))
    except RefusedError as error:
        yield f"the other function could not be asked: {error}"
        return
    if np.array_equal(others, own, equal_nan=True):
        yield (
            "the other function gives the same outputs to the bit: if it was built with other "
            "numbers, the two share a memory whose key leaves them out"
        )
    change = _change(reader, reading)
    if change:
        yield (
            f"it remembers: after the other function was asked, its own answer is another than "
            f"before, by up to {change:.3g}"
        )

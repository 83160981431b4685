"""Rules that depend on the length of the sequence: how frequencies change with it.

A box is asked for longer and longer sequences.  If its frequencies jump once, that is a switch
between two sets (LongRoPE); if they go on changing, a base that grows (dynamic NTK).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rotary.conformance.identifying.angles import Reader, Reading
from rotary.conformance.identifying.asking import RefusedError
from rotary.conformance.identifying.numbers import (
    USUAL_BASES,
    digits,
    intersection,
    simplest,
    simplest_whole,
)
from rotary.conformance.identifying.spectrum import Arguments, Spectrum
from rotary.conformance.identifying.structure import UnexplainedError
from rotary.scaling import DynamicNTK, LongRoPE

LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
LENGTHS_OF_ROWS = (64, 256, 1024, 4096)


@dataclass(frozen=True)
class Lengths:
    """Readings by length, and where frequencies change.

    Attributes
    ----------
    readings : tuple of Reading
        In the order of the questions.
    changed : int
        The number of readings with the frequencies of the shortest.
    refused : str
        What the box said to the first length that it did not take, if any.
    refused_length : int
        That length, 0 if none.
    """

    readings: tuple[Reading, ...]
    changed: int
    refused: str
    refused_length: int

    @property
    def short(self) -> Reading:
        """The last reading with the frequencies of the shortest."""
        return self.readings[self.changed - 1]

    @property
    def depends(self) -> bool:
        """Whether frequencies depend on the length."""
        return self.changed < len(self.readings)


def read_lengths(reader: Reader, longest: int) -> Lengths:
    """Ask for longer and longer sequences, up to where angles no longer double."""
    lengths = LENGTHS_OF_ROWS if reader.box.takes == "rows" else LENGTHS
    readings: list[Reading] = []
    refused, refused_length = "", 0
    for length in [n for n in lengths if n <= longest]:
        try:
            reading = reader.read(length)
        except RefusedError as error:
            refused, refused_length = str(error), length
            break
        readings.append(reading)
        if reading.doubled < length:
            break
    if not readings:
        raise UnexplainedError(f"it does not take {LENGTHS[0]} positions: {refused}")
    unit = reader.structure.unit
    changed = next(
        (i for i, r in enumerate(readings) if not same_frequencies(readings[0], r, unit)),
        len(readings),
    )
    if 0 < changed < len(readings) and not refused:
        more = (5, 6, 8) if len(readings) - changed < 3 else ()
        for quarters in more:
            try:
                readings.append(reader.read(lengths[len(readings) - 1] * quarters // 4))
            except (RefusedError, IndexError):
                break
    return Lengths(tuple(readings), changed, refused, refused_length)


def same_frequencies(a: Reading, b: Reading, unit: float) -> bool:
    """Whether two readings have the same frequencies and factor, as far as they tell."""
    allowed = 2 * (a.error + b.error)
    if not (np.abs(a.omega - b.omega) <= allowed).all():
        return False
    sizes = [float(np.median(r.amplitude[1])) for r in (a, b)]
    return abs(sizes[0] - sizes[1]) <= 4 * unit * max(sizes)


def find_switch(reader: Reader, lengths: Lengths) -> int:
    """Return the greatest length with the frequencies of the shortest."""
    short, long = lengths.short, lengths.readings[lengths.changed]
    low, high = short.length, long.length
    where = short.positions[:-1]
    expected = np.stack([short.cos, short.sin])[:, :-1]
    allowed = 4 * reader.structure.unit * np.abs(expected).max()
    while high - low > 1:
        middle = (low + high) // 2
        tables = np.stack(reader.tables(np.append(where, float(middle - 1))))[:, :-1]
        as_short = bool((np.abs(tables - expected) <= allowed).all())
        low, high = (middle, high) if as_short else (low, middle)
    return low


# Naming


def long_rope(
    short: Spectrum, long: Spectrum, length: int, bases: list[float]
) -> Iterator[Arguments]:
    """Propose LongRoPE with the base of the roundest factors, the likeliest first."""
    proposals = []
    dim = short.rotary_dim
    for base in dict.fromkeys([*bases, *USUAL_BASES]):
        omega = base ** (-2 * np.arange(len(short.omega)) / dim)
        factors = [
            tuple(
                simplest(float(w / (m + a)), float(w / max(m - a, 1e-300)))
                for w, m, a in zip(omega, s.omega, s.allowed, strict=True)
            )
            for s in (short, long)
        ]
        cost = sum(digits(f) for side in factors for f in side)
        proposals.append((cost, base, factors))
    for _, base, (low, high) in sorted(proposals, key=lambda p: p[0]):
        rule = LongRoPE(low, high, length)
        yield {"base": base, "scaling": _with_factors(rule, short, long)}


def _with_factors(rule: LongRoPE, short: Spectrum, long: Spectrum) -> LongRoPE:
    if abs(short.factor - long.factor) > short.factor_allowed + long.factor_allowed:
        low, high = (
            simplest(s.factor - s.factor_allowed, s.factor + s.factor_allowed)
            for s in (short, long)
        )
        return replace(rule, short_mscale=low, long_mscale=high)
    a, off = short.factor, short.factor_allowed
    if a == 1:
        return rule
    log_length = math.log(rule.original_max_position_embeddings)
    low, high = (math.exp(min(((a + k * off) ** 2 - 1) * log_length, 50.0)) for k in (-1, 1))
    s = simplest(low, high)
    if s > 1 and digits(s) <= 3:
        return replace(rule, factor=s)
    return replace(rule, attention_factor=simplest(a - off, a + off))


def dynamic_ntk(short: Spectrum, base: float, longer: dict[int, Spectrum]) -> Iterator[Arguments]:
    """Propose s and L of θ' = θ·(s·n/L − (s − 1))^(d/(d−2)) from two lengths or more."""
    growths = {n: _growth(short, spectrum) for n, spectrum in longer.items()}
    known = sorted((n, g) for n, g in growths.items() if g is not None)
    if len(known) < 2:
        return
    (n1, (low1, high1)), (n2, (low2, high2)) = known[0], known[-1]
    slopes = ((low2 - high1) / (n2 - n1), (high2 - low1) / (n2 - n1))
    factor = simplest(1 - high1 + slopes[0] * n1, 1 - low1 + slopes[1] * n1)
    for s in dict.fromkeys([factor, *(float(f"{factor:.{k}e}") for k in (0, 1, 2))]):
        if s <= 0:
            continue
        bounds = intersection(
            np.array([s * n / (high + s - 1) for n, (_, high) in known]),
            np.array([s * n / (low + s - 1) for n, (low, _) in known]),
        )
        length = None if bounds is None else simplest_whole(*bounds)
        if length is not None:
            yield {"base": base, "scaling": DynamicNTK(s, length)}


def _growth(short: Spectrum, long: Spectrum) -> tuple[float, float] | None:
    """Return the bounds of g where ω_i became ω_i·g^(−2i/(d−2))."""
    i = np.arange(1, len(short.omega))
    power = (short.rotary_dim - 2) / (2 * i)
    room = short.allowed[1:] / short.omega[1:] + long.allowed[1:] / long.omega[1:]
    ratio = short.omega[1:] / long.omega[1:]
    return intersection((ratio * (1 - room)) ** power, (ratio * (1 + room)) ** power)

"""One box under examination: how to ask it, what turns, how fast, how exactly, and the proof."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import rotary
from rotary.conformance.identifying import history, lengths, spectrum, words
from rotary.conformance.identifying.angles import (
    Reader,
    Reading,
    read_precision,
    representable,
    table_dtype,
    wrapped,
)
from rotary.conformance.identifying.asking import (
    Array,
    Box,
    Function,
    RefusedError,
    find_how_positions_are_taken,
    holds,
    rounded,
)
from rotary.conformance.identifying.diagnosis import Diagnosis
from rotary.conformance.identifying.model import (
    Comparison,
    Model,
    Trace,
    compare,
    sample_positions,
)
from rotary.conformance.identifying.structure import (
    Layout,
    UnexplainedError,
    flipped,
    layout_of,
    places,
    read_structure,
)


class Examination:
    """One box under examination, a step after the other."""

    def __init__(self, box: Box, other: Function | None, longest: int, evidence: list[str]) -> None:
        self.box, self.other, self.longest, self.evidence = box, other, longest, evidence
        self.rng = np.random.default_rng(0)
        self.notes: list[str] = []
        self.remembered: list[str] = []

    def diagnosis(self) -> Diagnosis:
        reason = find_how_positions_are_taken(self.box, self.rng)
        if reason is not None:
            raise UnexplainedError(reason)
        if self.box.takes == "rows":
            self.notes.append("it takes no positions: rows count from 0")
        elif self.box.takes == "first":
            self.notes.append("it takes the first position only: rows count from there")
        self.structure = read_structure(self.box, self.rng)
        if not len(self.structure.reads):
            raise UnexplainedError("it does not turn any pair of features")
        self.evidence.append(
            f"{len(self.structure.reads)} pairs of features turn, {len(self.structure.rest)} "
            f"features rest"
        )
        reading = self._read()
        if layout_of(self.structure.reads, self.box.head_dim) is None and (reading.omega < 0).any():
            # Which feature of a pair is the first is free there: the one that turns to the other.
            self.structure = flipped(self.structure, reading.omega < 0)
            reading = self._read()
        self.evidence.append(
            f"angles double at positions 1, 2, 4 … up to {reading.doubled - 1}: frequencies from "
            f"{np.abs(reading.omega).max():.9g} to {np.abs(reading.omega).min():.9g}"
        )
        if self.lengths.depends:
            self.remembered += history.after_longer(self.reader, self.lengths.readings)
        self._arrange(reading)
        arguments = self._name()
        self._set_model(arguments)
        self._read_precision(self._telling)
        last = self._end(reading)
        comparison = self._verify(last)
        self._ask_beyond()
        self._ask_again(last)
        return self._told(last, comparison)

    def _read(self) -> Reading:
        self.reader = Reader(self.box, self.structure)
        self.reader.find_origin()
        self.lengths = lengths.read_lengths(self.reader, self.longest)
        return self.lengths.short

    @property
    def _telling(self) -> Reading:
        """The reading that goes furthest."""
        return self.lengths.readings[-1] if self.lengths.depends else self.lengths.short

    # Geometry

    def _arrange(self, reading: Reading) -> None:
        """Find layout, side, direction and the order of features."""
        s, dim = self.structure, self.box.head_dim
        moving = reading.omega[reading.omega != 0]
        self.direction = -1 if len(moving) and (moving < 0).all() else 1
        layout = layout_of(s.reads, dim)
        self.reads: tuple[int, ...] | None = None
        self.reads_layout = "permuted" if layout is None else layout.name
        if layout is None:
            order = np.argsort(-np.abs(reading.omega), kind="stable")
            slots = np.empty_like(order)
            slots[order] = np.arange(len(order))
            layout = Layout("half", 2 * len(s.reads), 0, slots)
            self.reads = self._permuted_reads(layout)
        self.layout = layout
        self._find_writes()

    def _permuted_reads(self, layout: Layout) -> tuple[int, ...]:
        reads = np.empty(self.box.head_dim, dtype=np.int64)
        reads[layout.places[layout.slots]] = self.structure.reads
        reads[layout.rotary_dim :] = sorted(self.structure.rest)
        return tuple(reads.tolist())

    def _find_writes(self) -> None:
        """Find where the model's output features go; None where they stay."""
        s, layout, dim = self.structure, self.layout, self.box.head_dim
        inner = np.arange(dim) if self.reads is None else np.array(self.reads)
        writes = np.empty(dim, dtype=np.int64)
        for feature, target in s.rest.items():
            writes[target] = int(np.flatnonzero(inner == feature)[0])
        writes[s.writes] = layout.places[layout.slots]
        self.writes = None if (writes == np.arange(dim)).all() else tuple(writes.tolist())
        self.writes_layout = self.reads_layout
        if (s.reads == s.writes).all() and all(a == b for a, b in s.rest.items()):
            return
        self.writes_layout = "permuted"
        for name in ("half", "interleaved"):
            own = places(name, layout.rotary_dim, layout.start)[layout.slots]
            if self.reads is None and (own == s.writes).all():
                self.writes_layout = name

    # Names

    def _spectrum(self, reading: Reading, kind: str) -> tuple[spectrum.Spectrum, Array]:
        """Return the frequencies in the layout's order, and the errors of the measurement."""
        half = self.layout.rotary_dim // 2
        omega, error = np.zeros(half), np.zeros(half)
        omega[self.layout.slots] = reading.omega * self.direction + 0.0
        error[self.layout.slots] = reading.error
        unit = self.structure.unit
        amplitude = reading.amplitude[reading.positions < reading.doubled]
        # Where cos is 1, its rounding is the same for all and no noise.
        generic = np.minimum(np.abs(reading.cos), np.abs(reading.sin))
        generic = generic[reading.positions < reading.doubled] > 0.1
        factor = float(np.mean(amplitude[generic]) if generic.any() else np.median(amplitude))
        if not (np.abs(amplitude - factor) <= 8 * unit * factor).all():
            raise UnexplainedError(
                f"pairs are stretched by {amplitude.min():.4g} to {amplitude.max():.4g}, by "
                f"position or by pair"
            )
        room = 2 * unit if unit < 2.0**-20 else min(0.5, 2 / np.sqrt(1 + generic.sum())) * unit
        factor = 1.0 if abs(factor - 1) <= room * factor else factor
        allowed = spectrum.allowance(omega, error, kind)
        found = spectrum.Spectrum(
            omega,
            allowed,
            self.box.head_dim,
            self.layout.rotary_dim,
            factor,
            0.0 if factor == 1 else room * factor,
        )
        return found, error

    def _name(self) -> dict[str, Any]:
        """Return the arguments of the embedding, and set how frequencies are rounded."""
        reading = self._telling
        kind = representable(reading.omega, reading.error)
        narrow = [kind] if kind in ("bfloat16", "float16") else []
        usual = ["float64", "float32"]
        found = read_precision(reading, [reading.omega], self.reader.origin, self.structure.unit)
        if kind == "float32" or (found is not None and found[0].angles == "float32"):
            usual.reverse()  # what was rounded already fits many a number to the last digit
        for self.inv_freq in (*narrow, *usual):
            measured, _ = self._spectrum(self.lengths.short, self.inv_freq)
            arguments = self._named(measured)
            if arguments is not None:
                return arguments
        self.inv_freq = kind or "float64"
        measured, error = self._spectrum(self.lengths.short, "float64")
        if self.lengths.depends:
            raise UnexplainedError(
                "its frequencies depend on the length of the sequence, by no rule that is known"
            )
        return spectrum.given(measured, error)

    def _named(self, short: spectrum.Spectrum) -> dict[str, Any] | None:
        if not self.lengths.depends:
            return spectrum.named(short)
        longer = {
            r.length: self._spectrum(r, self.inv_freq)[0]
            for r in self.lengths.readings[self.lengths.changed :]
        }
        # Such rules count their exponents in the features that turn.
        plain = spectrum.named(replace(short, head_dim=short.rotary_dim))
        if plain is not None and set(plain) == {"base"}:
            for arguments in lengths.dynamic_ntk(short, plain["base"], longer):
                if all(s.fits(arguments, n) for n, s in longer.items()):
                    return arguments
        spectra = list(longer.values())
        if any(
            (np.abs(s.omega - spectra[0].omega) > s.allowed + spectra[0].allowed).any()
            for s in spectra
        ):
            return None
        switch = lengths.find_switch(self.reader, self.lengths)
        bases = [plain["base"]] if plain and "base" in plain else []
        for arguments in lengths.long_rope(short, spectra[-1], switch, bases):
            if short.fits(arguments, switch) and spectra[-1].fits(arguments, switch + 1):
                return arguments
        return None

    def _set_model(self, arguments: dict[str, Any]) -> None:
        layout = self.layout
        side = "trailing" if layout.start else "leading"
        rope = rotary.RotaryEmbedding(
            self.box.head_dim,
            layout=layout.name,
            rotary_dim=layout.rotary_dim,
            rotary_side=side,
            **arguments,
        )
        if self.structure.rest and self.structure.rest_factor != 1:
            outside = set(self.structure.rest) - set(layout.places.ravel().tolist())
            if outside or abs(self.structure.rest_factor - rope.attention_factor(0)) > 1e-2:
                raise UnexplainedError(
                    f"features that do not turn are multiplied by {self.structure.rest_factor:.6g}"
                )
        self.model = Model(rope, self.direction, self.reader.origin, self.reads, self.writes)

    # Precision and proof

    def _read_precision(self, reading: Reading) -> None:
        rope = self.model.rope
        meant = rope.frequencies(reading.length)[self.layout.slots] * self.direction
        kind = representable(reading.omega, reading.error)
        omegas = [rounded(reading.omega, kind), reading.omega, meant, rounded(meant, "float32")]
        found = read_precision(reading, omegas, self.reader.origin, self.structure.unit)
        if found is None:
            raise UnexplainedError(
                "its angles double as position × frequency does, but differ from it at other "
                "positions, by no rounding that is known"
            )
        precision, multiplied = found
        if multiplied is meant and precision.angles in ("bfloat16", "float16"):
            self.inv_freq = "float64"  # the product alone is rounded
        precision = replace(precision, tables=table_dtype(reading))
        self.trace = Trace(precision, multiplied, meant)

    def _end(self, reading: Reading) -> int:
        """Return the last position that holds, and note what comes after it."""
        if self.lengths.refused:
            last = self.reader.last_taken(reading.length, self.lengths.refused_length)
            self.notes.append(f"it refuses positions from {last + 1} on ({self.lengths.refused})")
            return last
        longest = max(r.length for r in self.lengths.readings)
        if reading.doubled < reading.length:
            last, then = self.reader.last_turned(
                reading, self.trace.precision, self.trace.multiplied
            )
            self.notes.append(f"from position {last + 1} on {then}")
            return last
        return longest - 1

    def _verify(self, last: int) -> Comparison:
        comparisons = []
        tops = [last]
        if self.lengths.depends:
            tops = [min(r.length - 1, last) for r in self.lengths.readings]
            if self.remembered:  # what is shorter has other answers now
                tops = [max(tops)]
        for top in tops:
            trace = self._trace_at(top + 1)
            where = sample_positions(top, 16, self.rng)
            comparisons.append(
                compare(self.box, self.structure, self.model, trace, where, self.rng)
            )
        worst = max(comparisons, key=lambda c: c.share)
        if worst.share > 1:
            raise UnexplainedError(
                f"{words.expression(self.model.rope)} comes near, but misses random x by "
                f"{worst.worst:.3g} at position {worst.position:.0f}, {worst.share:.3g} times "
                f"what rounding explains"
            )
        return worst

    def _trace_at(self, length: int) -> Trace:
        """Return how angles are computed for sequences of that length."""
        if not self.lengths.depends:
            return self.trace
        rule = self.model.rope.scaling
        assert rule is not None
        effective = rule.effective_length
        known = {effective(r.length): r for r in self.lengths.readings}
        meant = self.model.rope.frequencies(length)[self.layout.slots] * self.direction
        if effective(length) in known:
            multiplied = known[effective(length)].omega
        else:
            multiplied = meant
            if self.inv_freq in ("bfloat16", "float16"):
                multiplied = rounded(meant, self.inv_freq)
            elif "float32" in (self.inv_freq, self.trace.precision.angles):
                # Its own float32 steps are unknown here: a few units in the last place.
                multiplied = meant * (1 + 2.0**-21)
        return Trace(self.trace.precision, multiplied, meant)

    def _ask_beyond(self) -> None:
        """Say what comes of fractions, of negative positions, and of x in float64."""
        if self.box.takes == "positions":
            taken = "fractions too" if self.reader.fractional else "whole ones only"
            self.evidence.append(f"positions: {taken}")
            where = np.array([-1.0, -2.0, -7.0])
            off = self._miss(where)
            if off is None:
                self.notes.append("it refuses negative positions")
            elif off > 0:
                self.notes.append("negative positions are not turned as positive ones are")
        if self.box.dtype == "float32":
            try:
                tables = self.reader.tables(np.array([0.0, 1.0, 5.0, 27.0]), "float64")
            except RefusedError:
                self.evidence.append("float64 x: refused")
                return
            narrow = holds(np.stack(tables), "float32")
            self.evidence.append(f"float64 x: cos and sin are float{32 if narrow else 64}")

    def _miss(self, positions: Array) -> float | None:
        """Return by how much angles at these positions are off, beyond rounding; None: refused."""
        try:
            cos, sin = self.reader.tables(positions)
        except RefusedError:
            return None
        where = positions + self.reader.origin
        meant = self.model.rope.frequencies(8)[self.layout.slots] * self.direction
        off = np.abs(wrapped(np.arctan2(sin, cos) - where[:, None] * meant))
        off -= self.trace.error(where) + 8 * self.structure.unit
        return max(0.0, float(np.max(np.where(np.isfinite(off), off, np.inf))))

    def _ask_again(self, last: int) -> None:
        found = self.remembered
        if not self.lengths.depends:
            found += history.after_longer(self.reader, self.lengths.readings)
        ended = bool(self.lengths.refused) or last + 1 < self.lengths.readings[-1].length
        length = last + 1
        if not found and self.box.dtype != "bfloat16":
            trace = self._trace_at(length if ended else length + length // 2)
            for kind, sentence in history.after_bfloat16(
                self.reader, self.structure, self.model, trace, length, ended
            ):
                (self.notes if kind == "bfloat16" else found).append(sentence)
        if self.other is not None:
            found += history.after_another(self.reader, self.lengths.readings[0], self.other)

    def _told(self, last: int, comparison: Comparison) -> Diagnosis:
        precision = {
            "positions": self.trace.precision.positions or "float64",
            "inv_freq": self.inv_freq,
            "angles": self.trace.precision.angles or "float64",
            "tables": self.trace.precision.tables or "float64",
        }
        self.evidence.append(
            f"random x up to position {last}: at most {comparison.worst:.3g} of a pair's length "
            f"from this embedding, at position {comparison.position:.0f}; its precision explains "
            f"{comparison.worst / max(comparison.share, 1e-300):.3g}"
        )
        model = self.model
        notes = [
            *words.notes_of_model(model, self.reads_layout, self.writes_layout),
            *words.notes_of_precision(precision),
            *self.notes,
            *self.remembered,
        ]
        finding = words.finding(
            model, self.reads_layout, self.writes_layout, precision, bool(self.remembered)
        )
        return Diagnosis(
            True,
            finding,
            tuple(self.evidence),
            model.rope,
            tuple(notes),
            model.direction,
            model.origin,
            model.reads,
            model.writes,
            self.reads_layout,
            self.writes_layout,
            precision,
            tuple(self.remembered),
            takes=self.box.takes,
            last_position=last,
        )

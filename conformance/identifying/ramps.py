"""YaRN and Llama 3: which numbers make this ramp between ω and ω/s.

Both keep fast pairs, divide slow ones by s and go over in a straight line: YaRN's in the number of
the pair, Llama 3's in the frequency itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from rotary.conformance.identifying.asking import Array
from rotary.conformance.identifying.numbers import digits, simplest, simplest_whole
from rotary.scaling import Llama3, YaRN

if TYPE_CHECKING:
    from rotary.conformance.identifying.spectrum import Spectrum

TAU = 2 * math.pi


@dataclass(frozen=True)
class Ramp:
    """ω'/ω of a base, and the same as shares γ of the way from 1 to 1/s."""

    base: float
    dim: int
    omega: Array
    ratio: Array
    allowed: Array
    s: float

    @property
    def gamma(self) -> Array:
        return (1 - self.ratio) / (1 - 1 / self.s)

    @property
    def room(self) -> Array:
        """By how much γ may be off."""
        return self.allowed / abs(1 - 1 / self.s)

    @property
    def inside(self) -> range:
        """Pairs with 0 < γ < 1."""
        kept = self.gamma <= self.room
        full = self.gamma >= 1 - self.room
        last_kept = int(np.argmin(kept)) - 1 if not kept.all() else len(kept) - 1
        first_full = len(full) - int(np.argmin(full[::-1])) if not full.all() else 0
        return range(last_kept + 1, first_full)

    def wavelength(self, pair: float) -> float:
        """2π/ω of a pair, whole or not."""
        return float(TAU * self.base ** (2 * pair / self.dim))


def proposals(spectrum: Spectrum, base: float) -> Iterator[dict[str, Any]]:
    """Propose Llama3 and YaRN with this base."""
    count, dim = len(spectrum.omega), spectrum.rotary_dim
    if base <= 1:
        return
    omega = base ** (-2 * np.arange(count) / dim)
    ratio, allowed = spectrum.omega / omega, spectrum.allowed / omega
    falls = ratio[1:] <= ratio[:-1] + allowed[1:] + allowed[:-1]
    if not falls.all() or ratio[0] > 1 + allowed[0] or ratio[-1] >= 1 - allowed[-1]:
        return
    # Of the last pair alone it cannot be told whether the ramp ends before it.
    ends = abs(ratio[-1] - ratio[-2]) <= allowed[-1] + allowed[-2]

    def with_factor(s: float) -> Ramp:
        return Ramp(base, dim, omega, ratio, allowed, s)

    low, high = 1 / (ratio[-1] + allowed[-1]), 1 / max(ratio[-1] - allowed[-1], 1e-12)
    of_tail = simplest(float(low), float(high))
    rules: list[Iterator[Any]] = []
    if spectrum.factor == 1:
        rules.append(_llama3(with_factor(of_tail)))
        if not ends:
            rules.append(_llama3_of_line(with_factor(2.0)))
    if not ends:
        usual = _yarn_of_usual_lengths(with_factor(2.0))
        rules.append(_yarn_rule(s, numbers, spectrum) for s, numbers in usual)
    for s in sorted({of_tail, *_factors(spectrum)} - {1.0}, key=digits):
        rules.append(_yarn_rule(s, n, spectrum) for s, n in _with(s, _yarn(with_factor(s))))
    for rule in chain.from_iterable(rules):
        yield {"base": base, "scaling": rule}


def _factors(spectrum: Spectrum) -> list[float]:
    """Return s of YaRN's usual attention factor 1 + 0.1·ln s, if that is more than 1."""
    if spectrum.factor <= 1:
        return []
    bounds = ((spectrum.factor + k * spectrum.factor_allowed - 1) * 10 for k in (-1, 1))
    return [simplest(*(math.exp(min(b, 50.0)) for b in bounds))]


def _with(s: float, each: Iterator[dict[str, Any]]) -> Iterator[tuple[float, dict[str, Any]]]:
    return ((s, numbers) for numbers in each)


def _yarn_rule(s: float, numbers: dict[str, Any], spectrum: Spectrum) -> YaRN:
    usual = 1 + 0.1 * math.log(s) if s > 1 else 1.0
    if abs(usual - spectrum.factor) > spectrum.factor_allowed:
        low, high = (spectrum.factor + k * spectrum.factor_allowed for k in (-1, 1))
        numbers = {**numbers, "attention_factor": simplest(low, high)}
    length = numbers.pop("length")
    return YaRN(s, length, **numbers)


# YaRN


def _yarn(ramp: Ramp) -> Iterator[dict[str, Any]]:
    gamma, room, inside = ramp.gamma, ramp.room, ramp.inside
    default_width = ramp.dim * math.log(32.0) / (2 * math.log(ramp.base))
    if len(inside) >= 2:
        a, b = inside[0], inside[-1]
        slope = float(gamma[b] - gamma[a]) / (b - a)
        low = a - float(gamma[a]) / slope
        off = 2 * float(room[a] + room[b]) / slope * (1 + len(gamma) * 1.0)
        high = low + 1 / slope
        if abs(low - round(low)) <= off and abs(high - round(high)) <= off:
            yield from _of_whole_pairs(ramp, round(low), round(high))
        yield from _of_pairs(ramp, low, high, off)
        return
    if len(inside) == 1:
        pair, share = inside[0], float(gamma[inside[0]])
        yield from _of_whole_pairs(ramp, pair - 1, pair - 1 + round(1 / share))
        low = pair - share * default_width
        off = float(room[pair]) * default_width * 2
        if low > 0:
            yield from _of_pairs(ramp, low, low + default_width, off)
        else:
            yield from _of_pairs(ramp, 0.0, pair / share, off / share)
        return
    kept = inside.start - 1
    yield from _of_whole_pairs(ramp, kept, kept + 1)
    if default_width < 1:
        bounds = (ramp.wavelength(kept + default_width), ramp.wavelength(kept + 1))
        length = simplest_whole(*bounds)
        if length is not None:
            yield {"length": length, "truncate": False}


def _of_whole_pairs(ramp: Ramp, low: int, high: int) -> Iterator[dict[str, Any]]:
    """Propose lengths and turns that round to these pairs; 0 and d − 1 are ends."""
    fast = (0.0 if low <= 0 else ramp.wavelength(low), ramp.wavelength(low + 1))
    slow = (ramp.wavelength(high - 1), math.inf if high >= ramp.dim - 1 else ramp.wavelength(high))
    length = _between(max(32 * fast[0], slow[0]), min(32 * fast[1], slow[1]))
    if length is not None:
        yield {"length": length}
    length = _between(*slow)
    if length is not None:
        turns = simplest(length / fast[1] * (1 + 1e-12), length / max(fast[0], 1e-3))
        yield {"length": length, "beta_fast": turns}
    length = _between(32 * fast[0], 32 * fast[1])
    if length is not None:
        yield {"length": length, "beta_slow": simplest(length / slow[1], length / slow[0])}


def _between(low: float, high: float) -> int | None:
    """Return a length above low, at most high."""
    return simplest_whole(low * (1 + 1e-12), high)


def _of_pairs(ramp: Ramp, low: float, high: float, off: float) -> Iterator[dict[str, Any]]:
    """Propose lengths and turns whose pairs are these, unrounded."""
    grow = 2 * math.log(ramp.base) / ramp.dim * off + 1e-12
    slow, fast = ramp.wavelength(high), ramp.wavelength(low)
    for known in (1.0, 32.0):
        middle = slow if known == 1.0 else 32 * fast
        length = simplest_whole(middle * (1 - grow), middle * (1 + grow))
        if length is None:
            continue
        beta_fast = simplest(length / fast * (1 - 2 * grow), length / fast * (1 + 2 * grow))
        beta_slow = simplest(length / slow * (1 - 2 * grow), length / slow * (1 + 2 * grow))
        if low <= off:
            beta_fast = max(32.0, beta_fast)
        numbers: dict[str, Any] = {"length": length, "truncate": False}
        if beta_fast != 32:
            numbers["beta_fast"] = beta_fast
        if beta_slow != 1:
            numbers["beta_slow"] = beta_slow
        yield numbers


def _yarn_of_usual_lengths(ramp: Ramp) -> Iterator[tuple[float, dict[str, Any]]]:
    """Propose s where no pair has come to the end of the ramp."""
    for exponent in range(8, 22):
        length = 2**exponent
        ends = tuple(
            ramp.dim * math.log(length / (TAU * turns)) / (2 * math.log(ramp.base))
            for turns in (32.0, 1.0)
        )
        for truncate in (True, False):
            start, end = ends
            if truncate:
                start, end = float(math.floor(start)), float(math.ceil(end))
            start, end = max(start, 0.0), min(end, ramp.dim - 1.0)
            share = (len(ramp.ratio) - 1 - start) / (end - start) if end > start else 0.0
            if not 0 < share <= 1:
                continue
            drop = (1 - float(ramp.ratio[-1])) / share
            off = float(ramp.allowed[-1]) / share
            if off < drop < 1 - off:
                s = simplest(1 / (1 - drop + off), 1 / (1 - drop - off))
                yield s, {"length": length, **({} if truncate else {"truncate": False})}


# Llama 3


def _llama3(ramp: Ramp) -> Iterator[Llama3]:
    """t = 1 − γ = (L0/λ − low)/(high − low), with low = 1 where one of the three is free."""
    inside, omega = ramp.inside, ramp.omega
    t, room = 1 - ramp.gamma, ramp.room
    if len(inside) >= 2:
        a, b = inside[0], inside[-1]
        rise = float((t[a] - t[b]) / (omega[a] - omega[b]))
        start = float(t[a] - rise * omega[a])
        off = 4 * float(room[a] + room[b]) / abs(float(t[a] - t[b])) + 1e-13
        yield from _llama3_of(ramp.s, rise, start, off)
    elif len(inside) == 1:
        pair = inside[0]
        middle = (3 * float(t[pair]) + 1) * TAU / float(omega[pair])
        off = 3 * float(room[pair]) * TAU / float(omega[pair])
        length = simplest_whole(middle - off, middle + off)
        if length is not None:
            yield Llama3(ramp.s, 1.0, 4.0, length)
    else:
        kept = inside.start - 1
        length = simplest_whole(4 * TAU / float(omega[kept]), TAU / float(omega[kept + 1]))
        if length is not None:
            yield Llama3(ramp.s, 1.0, 4.0, length)


def _llama3_of(s: float, rise: float, start: float, off: float) -> Iterator[Llama3]:
    """Propose numbers of the line t = rise·ω + start."""
    if start >= 0 or rise <= 0:
        return
    width = -1 / start
    high = simplest(1 + width * (1 - 4 * off), 1 + width * (1 + 4 * off))
    middle = TAU * rise * (high - 1)
    length = simplest_whole(middle * (1 - 4 * off), middle * (1 + 4 * off))
    if length is not None and high > 1:
        yield Llama3(s, 1.0, high, length)


def _llama3_of_line(ramp: Ramp) -> Iterator[Llama3]:
    """Propose s where no pair has come to the end of the ramp, with turns 1 and 4."""
    falling = np.flatnonzero(ramp.ratio < 1 - ramp.allowed)
    if len(falling) < 2:
        return
    a, b = int(falling[0]), int(falling[-1])
    rise = float((ramp.ratio[a] - ramp.ratio[b]) / (ramp.omega[a] - ramp.omega[b]))
    start = float(ramp.ratio[a] - rise * ramp.omega[a])
    # ratio = 1/s + t·(1 − 1/s) and t = −1/3 at ω = 0.
    inverse = (3 * start + 1) / 4
    off = 4 * float(ramp.allowed[a] + ramp.allowed[b])
    if not off < inverse < 1 - off:
        return
    s = simplest(1 / (inverse + off), 1 / (inverse - off))
    if s > 1:
        middle = TAU * 3 * rise / (1 - 1 / s)
        room = off / abs(float(ramp.ratio[a] - ramp.ratio[b]))
        length = simplest_whole(middle * (1 - room), middle * (1 + room))
        if length is not None:
            yield Llama3(s, 1.0, 4.0, length)

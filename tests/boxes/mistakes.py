"""Boxes with a mistake or a habit: other features, other positions, memories, ends."""

from __future__ import annotations

import numpy as np

from boxes import rules
from boxes.ways import Box, Way, rotate_half


def pairs_to_halves(way: Way, rule: rules.InvFreq) -> Box:
    """DeepSeek's rope_interleave: reads pairs of neighbours, writes halves."""

    def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        b, h, s, d = x.shape
        x = x.reshape(b, h, s, d // 2, 2).swapaxes(-1, -2).reshape(b, h, s, d)
        inv_freq, factor = rule(int(positions.max()) + 1)
        angles = np.multiply.outer(positions, inv_freq)
        cos, sin = (factor * np.cos(angles)).astype("f4"), (factor * np.sin(angles)).astype("f4")
        return way(x, cos, sin).astype(x.dtype)

    return turned


def shuffled(inner: Box, order: np.ndarray) -> Box:
    """Features in an order of their own, there and back."""
    back = np.argsort(order)
    return lambda x, positions: inner(np.ascontiguousarray(x[..., order]), positions)[..., back]


def in_place(inner: Box) -> Box:
    def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        x[...] = inner(x.copy(), positions)
        return x

    return turned


def counting_rows(inner: Box, start: int = 0) -> Box:
    return lambda x, positions: inner(x, np.arange(x.shape[2]) + start)


def from_first_position(inner: Box) -> Box:
    return lambda x, positions: inner(x, positions[0] + np.arange(x.shape[2]))


def with_table(inner: Box, size: int, past_the_end: str) -> Box:
    """Keep a table of `size` rows; beyond it raise, clamp, leave x, or begin again."""

    def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        outside = positions >= size
        if past_the_end == "raise" and outside.any():
            raise IndexError(f"index {positions.max()} is out of bounds for axis 0 of size {size}")
        if past_the_end == "wrap":
            return inner(x, positions % size)
        y = inner(x, np.minimum(positions, size - 1))
        if past_the_end == "leave":
            y = np.where(outside[:, None], x, y)
        if past_the_end == "nan":
            y = np.where(outside[:, None], np.float32("nan"), y)
        return y

    return turned


# Defects of released libraries, as models of them


class Transformers:
    """transformers 5.23.0: float32 all the way; dynamic NTK keeps the longest length seen."""

    def __init__(self, dim: int, base: float, rule: rules.InvFreq | None = None) -> None:
        self.original = rules.plain_float32(dim, base)(0)[0] if rule is None else rule(0)[0]
        self.inv_freq = self.original.astype(np.float32)
        self.factor = 1.0 if rule is None else rule(0)[1]

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.update(int(positions.max()) + 1)
        angles = positions.astype(np.float32)[:, None] @ self.inv_freq[None]
        cos = (np.cos(angles) * np.float32(self.factor)).astype(x.dtype)
        sin = (np.sin(angles) * np.float32(self.factor)).astype(x.dtype)
        return rotate_half(x, cos, sin)

    def update(self, length: int) -> None:
        pass


class TransformersDynamic(Transformers):
    def __init__(self, dim: int, base: float, factor: float, original: int) -> None:
        super().__init__(dim, base)
        self.rule = rules.dynamic(dim, base, factor, original)
        self.original_length = self.longest = original

    def update(self, length: int) -> None:
        if length > self.longest:
            self.inv_freq = self.rule(length)[0].astype(np.float32)
            self.longest = length
        if length < self.original_length < self.longest:
            self.inv_freq = self.original
            self.longest = self.original_length


class Equinox:
    """equinox 0.13.8: one cache for all, its key is the size alone; rows are counted."""

    cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # noqa: RUF012  # that is the defect

    def __init__(self, dim: int, theta: float) -> None:
        self.dim, self.theta = dim, theta

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        seq = x.shape[2]
        if self.dim not in self.cache or len(self.cache[self.dim][0]) < seq:
            freqs = 1.0 / self.theta ** (np.arange(0.0, self.dim, 2)[: self.dim // 2] / self.dim)
            angles = np.outer(np.arange(float(seq)), freqs)
            self.cache[self.dim] = np.cos(angles).astype("f4"), np.sin(angles).astype("f4")
        cos, sin = (table[:seq] for table in self.cache[self.dim])
        return rotate_half(x, cos, sin).astype(x.dtype)


class RotaryEmbeddingTorch:
    """rotary-embedding-torch 0.9.1: positions in x's dtype; freqs are cached whoever asked."""

    cache_max = 8192

    def __init__(self, dim: int, theta: float = 10_000.0) -> None:
        self.freqs = rules.plain_float32(dim, theta)(0)[0]
        self.cached: np.ndarray | None = None

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        seq = x.shape[2]
        if self.cached is not None and seq <= len(self.cached):
            freqs = self.cached[:seq]
        else:
            where = np.arange(seq).astype(x.dtype)
            freqs = (where.astype(np.float32)[:, None] * self.freqs).repeat(2, axis=-1)
            if seq <= self.cache_max:
                self.cached = freqs
        two = np.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)
        y = x.astype(np.float32) * np.cos(freqs) + two.astype(np.float32) * np.sin(freqs)
        return y.astype(x.dtype)


def xpos_stretch(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """XPos's scale on queries, beside the rotation."""
    dim = x.shape[-1]
    zeta = (np.arange(0, dim, 2) / dim + 0.4) / 1.4
    angles = np.multiply.outer(positions, 1e4 ** (-np.arange(0, dim, 2) / dim))
    size = zeta ** (positions[:, None] / 512)
    return rotate_half(x, size * np.cos(angles), size * np.sin(angles)).astype(x.dtype)

"""Inverse frequencies in plain float64, a function of the length of the sequence each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

InvFreq = Callable[[int], tuple[np.ndarray, float]]
"""Length → (inverse frequencies, attention factor)."""


def plain(dim: int, base: float, frequency_dim: int | None = None) -> InvFreq:
    inv_freq = 1.0 / base ** (np.arange(0, dim, 2) / (frequency_dim or dim))
    return lambda length: (inv_freq, 1.0)


def plain_float32(dim: int, base: float) -> InvFreq:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    inv_freq = np.float32(1.0) / np.power(np.float32(base), exponents, dtype=np.float32)
    return lambda length: (inv_freq, 1.0)


def through_exp_float32(dim: int, base: float) -> InvFreq:
    """GPT-NeoX's and many JAX codes' way: exp of a float32 logarithm."""
    steps = np.arange(0, dim, 2, dtype=np.float32) * np.float32(-math.log(base) / dim)
    inv_freq = np.exp(steps)
    return lambda length: (inv_freq, 1.0)


def linear(dim: int, base: float, factor: float) -> InvFreq:
    inv_freq = plain(dim, base)(0)[0] / factor
    return lambda length: (inv_freq, 1.0)


def ntk(dim: int, base: float, factor: float) -> InvFreq:
    return plain(dim, base * factor ** (dim / (dim - 2)))


def dynamic(dim: int, base: float, factor: float, original: int) -> InvFreq:
    def of_length(length: int) -> tuple[np.ndarray, float]:
        n = max(length, original)
        grown = base * (factor * n / original - (factor - 1)) ** (dim / (dim - 2))
        return plain(dim, grown)(0)

    return of_length


def yarn(
    dim: int,
    base: float,
    factor: float,
    original: int,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    attention: float | None = None,
) -> InvFreq:
    def correction(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = correction(fast), correction(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    inv_freq = plain(dim, base)(0)[0]
    inv_freq = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    scale = (0.1 * math.log(factor) + 1 if factor > 1 else 1.0) if attention is None else attention
    return lambda length: (inv_freq, scale)


def llama3(dim: int, base: float, factor: float, low: float, high: float, original: int) -> InvFreq:
    inv_freq = plain(dim, base)(0)[0]
    wavelength = 2 * np.pi / inv_freq
    scaled = np.where(wavelength > original / low, inv_freq / factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(wavelength < original / high) & ~(wavelength > original / low)
    result = np.where(medium, smoothed, scaled)
    return lambda length: (result, 1.0)


def longrope(
    dim: int,
    base: float,
    short: Sequence[float],
    long: Sequence[float],
    original: int,
    factor: float = 1.0,
) -> InvFreq:
    inv_freq = plain(dim, base)(0)[0]
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return lambda length: (inv_freq / np.array(long if length > original else short), scale)


def proportional(dim: int, base: float, rotating: int, factor: float = 1.0) -> InvFreq:
    inv_freq = plain(dim, base)(0)[0] / factor
    inv_freq[rotating:] = 0.0
    return lambda length: (inv_freq, 1.0)


def of_numbers(inv_freq: Sequence[float], factor: float = 1.0) -> InvFreq:
    return lambda length: (np.array(inv_freq), factor)

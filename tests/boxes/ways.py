"""Six ways of writing RoPE, as they are found: each takes x and a table of angles.

x is (batch, heads, seq, dim), angles (seq, dim/2); `factor` multiplies cos and sin.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from boxes.rules import InvFreq


def complex_numbers(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Meta's Llama: pairs as complex numbers, torch.polar and view_as_complex."""
    z = x.reshape(*x.shape[:-1], -1, 2)
    freqs_cis = cos + 1j * sin
    turned = (z[..., 0] + 1j * z[..., 1]) * freqs_cis
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def rotate_half(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Hugging Face's Llama: cat((freqs, freqs)) and rotate_half."""
    cos, sin = np.concatenate([cos, cos], -1), np.concatenate([sin, sin], -1)
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + np.concatenate([-x2, x1], -1) * sin


def rotate_every_two(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """GPT-J: repeat_interleave of the tables, every second feature with a sign."""
    cos, sin = np.repeat(cos, 2, axis=-1), np.repeat(sin, 2, axis=-1)
    y = np.stack([-x[..., 1::2], x[..., ::2]], axis=-1)
    return x * cos + y.reshape(x.shape) * sin


def matrix_each(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Follow the paper: a 2 × 2 matrix for each pair of neighbours, by einsum."""
    matrices = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return np.einsum("sfoi,bhsfi->bhsfo", matrices, pairs).reshape(x.shape)


def split_and_cat(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """GPT-NeoX without rotate_half: chunks, four products, cat."""
    x1, x2 = np.split(x, 2, axis=-1)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def one_big_matrix(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Follow a textbook: the whole block-diagonal (dim, dim) matrix of each position."""
    seq, pairs = cos.shape
    matrices = np.zeros((seq, 2 * pairs, 2 * pairs), cos.dtype)
    i = np.arange(pairs)
    matrices[:, 2 * i, 2 * i], matrices[:, 2 * i + 1, 2 * i + 1] = cos, cos
    matrices[:, 2 * i, 2 * i + 1], matrices[:, 2 * i + 1, 2 * i] = -sin, sin
    return np.einsum("sij,bhsj->bhsi", matrices, x)


HALF = {"rotate_half": rotate_half, "split_and_cat": split_and_cat}
INTERLEAVED = {
    "complex_numbers": complex_numbers,
    "rotate_every_two": rotate_every_two,
    "matrix_each": matrix_each,
    "one_big_matrix": one_big_matrix,
}
Way = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Box = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cast(values: np.ndarray, name: str | None) -> np.ndarray:
    """Round to a dtype's numbers and go on in float32; None changes nothing."""
    if name is None:
        return values
    with np.errstate(all="ignore"):
        if name == "float32":
            return values.astype(np.float32)
        narrow = np.float16 if name == "float16" else ml_dtypes.bfloat16
        return values.astype(narrow).astype(np.float32)


def box(
    way: Way,
    rule: InvFreq,
    *,
    rotary_dim: int | None = None,
    trailing: bool = False,
    direction: int = 1,
    origin: float = 0.0,
    positions_in: str | None = None,
    inv_freq_in: str | None = None,
    angles_in: str | None = None,
    tables_in: str | None = "float32",
) -> Box:
    """Join a way and a rule to a function of x and positions."""

    def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        inv_freq, factor = rule(int(positions.max()) + 1)
        inv_freq = cast(inv_freq, inv_freq_in)
        where = cast(positions + origin, positions_in)
        if angles_in == "float32":
            where, inv_freq = where.astype(np.float32), inv_freq.astype(np.float32)
        angles = direction * cast(np.multiply.outer(where, inv_freq), angles_in)
        cos = cast(np.cos(angles) * factor, tables_in)
        sin = cast(np.sin(angles) * factor, tables_in)
        if angles_in == "float32":
            cos, sin = cos.astype(np.float32), sin.astype(np.float32)
        size = x.shape[-1] if rotary_dim is None else rotary_dim
        rest = x.shape[-1] - size
        part = x[..., rest:] if trailing else x[..., :size]
        y = way(part.astype(np.float32), cos, sin).astype(x.dtype)
        pieces = [x[..., :rest], y] if trailing else [y, x[..., size:]]
        return np.concatenate(pieces, axis=-1)

    return turned

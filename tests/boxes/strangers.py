"""What is no rotary embedding of one axis, though some of it looks like one."""

from __future__ import annotations

import numpy as np

from boxes.ways import Box, rotate_every_two, rotate_half

STRANGERS: dict[str, Box] = {}


def stranger(box: Box) -> Box:
    STRANGERS[box.__name__] = box
    return box


def angles(x: np.ndarray, positions: np.ndarray, base: float = 1e4) -> np.ndarray:
    dim = x.shape[-1]
    return np.multiply.outer(positions, base ** (-np.arange(0, dim, 2) / dim))


def turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return rotate_half(x, np.cos(angle), np.sin(angle)).astype(x.dtype)


def sinusoids(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    angle = angles(x, positions)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(positions), -1)


@stranger
def no_positions(x, positions):
    return x.copy()


@stranger
def the_same_turn_everywhere(x, positions):
    return turn(x, angles(x, np.full(len(positions), 3)))


@stranger
def only_zeros(x, positions):
    return np.zeros_like(x)


@stranger
def sinusoidal_added(x, positions):
    return x + sinusoids(x, positions).astype(x.dtype)


@stranger
def learned_positions_added(x, positions):
    table = np.random.default_rng(0).standard_normal((2048, x.shape[-1])).astype(x.dtype)
    return x + table[positions.astype(int) % 2048]


@stranger
def sinusoidal_multiplied(x, positions):
    return x * (1 + 0.5 * sinusoids(x, positions)).astype(x.dtype)


@stranger
def alibi_like_decay(x, positions):
    slopes = 2.0 ** -(np.arange(x.shape[1]) + 1)
    return (x * np.exp(-slopes[:, None, None] * positions[:, None])).astype(x.dtype)


@stranger
def decay_of_positions(x, positions):
    return (x / (1 + positions[:, None])).astype(x.dtype)


@stranger
def rope_times_decay(x, positions):
    return (turn(x, angles(x, positions)) * 0.99 ** positions[:, None]).astype(x.dtype)


@stranger
def query_scale_of_llama_4(x, positions):
    y = turn(x, angles(x, positions))
    return (y * (1 + 0.1 * np.log1p(positions // 8))[:, None]).astype(x.dtype)


@stranger
def random_orthogonal_matrices(x, positions):
    dim, y = x.shape[-1], np.empty_like(x)
    for row, p in enumerate(positions.tolist()):
        q, _ = np.linalg.qr(np.random.default_rng(int(p)).standard_normal((dim, dim)))
        y[:, :, row] = x[:, :, row] @ q
    return y


@stranger
def householder_reflections(x, positions):
    v = sinusoids(x, positions)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return (x - 2 * (x * v).sum(-1, keepdims=True) * v).astype(x.dtype)


@stranger
def reflected_pairs(x, positions):
    c, s = np.cos(angles(x, positions)), np.sin(angles(x, positions))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * c + b * s, a * s - b * c], axis=-1).astype(x.dtype) * np.float32(1)


@stranger
def hyperbolic_pairs(x, positions):
    angle = np.minimum(angles(x, positions), 5.0)
    c, s = np.cosh(angle), np.sinh(angle)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * c + b * s, a * s + b * c], axis=-1).astype(x.dtype)


@stranger
def sign_forgotten(x, positions):
    c, s = np.cos(angles(x, positions)), np.sin(angles(x, positions))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * c + b * s, b * c + a * s], axis=-1).astype(x.dtype)


@stranger
def turns_in_three_dimensions(x, positions):
    y, blocks = x.copy(), x.shape[-1] // 3
    for i in range(blocks):
        angle = positions * 1e4 ** (-i / blocks)
        c, s, a = np.cos(angle), np.sin(angle), x[..., 3 * i : 3 * i + 3]
        u = (a[..., 0] + a[..., 1] + a[..., 2]) / 3 * (1 - c)
        roll = (np.roll(a, 1, axis=-1) - np.roll(a, -1, axis=-1)) / np.sqrt(3) * s[:, None]
        y[..., 3 * i : 3 * i + 3] = a * c[:, None] + roll + u[..., None]
    return y


@stranger
def tables_of_halves_turned_by_neighbours(x, positions):
    angle = np.concatenate([angles(x, positions)] * 2, axis=-1)
    two = np.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    return (x * np.cos(angle) + two * np.sin(angle)).astype(x.dtype)


@stranger
def tables_of_neighbours_turned_by_halves(x, positions):
    angle = np.repeat(angles(x, positions), 2, axis=-1)
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return (x * np.cos(angle) + turned * np.sin(angle)).astype(x.dtype)


@stranger
def sines_of_the_wrong_position(x, positions):
    c, s = np.cos(angles(x, positions)), np.sin(angles(x, positions + 1))
    return rotate_half(x, c, s).astype(x.dtype)


@stranger
def logarithmic_positions(x, positions):
    return turn(x, angles(x, np.log1p(positions)))


@stranger
def square_root_positions(x, positions):
    return turn(x, angles(x, np.sqrt(positions)))


@stranger
def squared_positions(x, positions):
    return turn(x, angles(x, positions.astype(float) ** 2))


@stranger
def bucketed_positions(x, positions):
    return turn(x, angles(x, positions // 4))


@stranger
def positions_relative_to_the_length(x, positions):
    return turn(x, 100 * angles(x, positions / (positions.max() + 1)))


@stranger
def phases_of_their_own(x, positions):
    phases = np.random.default_rng(0).uniform(0, 6, x.shape[-1] // 2)
    return turn(x, angles(x, positions) + phases)


@stranger
def heads_of_different_base(x, positions):
    turned = [turn(x[:, h : h + 1], angles(x, positions, 1e4 * (h + 1))) for h in range(x.shape[1])]
    return np.concatenate(turned, axis=1)


@stranger
def batch_rows_of_different_offset(x, positions):
    return np.concatenate([turn(x[b : b + 1], angles(x, positions + b)) for b in range(len(x))])


@stranger
def normalised_first(x, positions):
    size = np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True)) + 1e-6
    return turn((x / size).astype(x.dtype), angles(x, positions))


@stranger
def squashed_after(x, positions):
    return np.tanh(turn(x, angles(x, positions)))


@stranger
def attention_mixes_rows(x, positions):
    y = turn(x, angles(x, positions))
    scores = y @ y.swapaxes(-1, -2) / np.sqrt(x.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ y).astype(x.dtype)


@stranger
def token_shift(x, positions):
    y = turn(x, angles(x, positions))
    y[:, :, 1:] += np.float32(0.5) * x[:, :, :-1]
    return y


@stranger
def cumulative_sum(x, positions):
    return np.cumsum(turn(x, angles(x, positions)), axis=2, dtype=x.dtype)


@stranger
def angles_of_the_content(x, positions):
    return turn(x, angles(x, positions) * (1 + 0.1 * np.tanh(x.mean(-1, keepdims=True))))


@stranger
def random_angles_each_position(x, positions):
    rows = [np.random.default_rng(int(p)).uniform(0, 6, x.shape[-1] // 2) for p in positions]
    return turn(x, np.stack(rows))


@stranger
def a_ramp_that_ends_nowhere(x, positions):
    """RoPE up to position 500, slower beyond: no rule, no table's end."""
    slow = np.where(positions < 500, positions, 500 + (positions - 500) / 2)
    return turn(x, angles(x, slow))


@stranger
def walsh_signs(x, positions):
    bits = (positions.astype(int)[:, None] >> (np.arange(x.shape[-1]) % 8)) & 1
    return (x * (1 - 2 * bits)).astype(x.dtype)


@stranger
def rows_rolled_by_the_position(x, positions):
    y = np.empty_like(x)
    for row, p in enumerate(positions.tolist()):
        y[:, :, row] = np.roll(x[:, :, row], int(p), axis=-1)
    return y


@stranger
def noise(x, positions):
    return turn(x, angles(x, positions)) + np.random.default_rng().standard_normal(x.shape).astype(
        x.dtype
    )


class Counter:
    """Begins each call where the last one ended."""

    __name__ = "continues_where_the_last_call_ended"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        y = rotate_every_two(x, *(f(angles(x, positions + self.seen)) for f in (np.cos, np.sin)))
        self.seen += x.shape[2]
        return y.astype(x.dtype)


stranger(Counter())

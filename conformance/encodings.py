"""The cases of functions: learned frequencies, absolute positions, packed batches."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

import rotary
from rotary import backends
from rotary.conformance import oracle
from rotary.conformance.functions import (
    ALL_DTYPES,
    EAGER_AND_COMPILED,
    GRADIENTS,
    Array,
    Expected,
    FunctionCase,
)

EAGER = ("eager", "lazy")


def _stacked(pair: tuple[Any, Any]) -> Any:
    return backends.owner_of(pair[0]).namespace(pair[0]).stack(list(pair))


def learned_frequencies() -> Iterable[FunctionCase]:
    def case(name: str, comment: str, where: Array, axes: int | None, *shape: int) -> FunctionCase:
        def angles(w: Array) -> Array:
            p = where.astype(np.float64)
            if axes is None:
                return np.multiply(p[..., None], w.astype(np.float64))
            total = p[0][..., None] * w[0].astype(np.float64)[..., None, :]
            for a in range(1, axes):
                total = total + p[a][..., None] * w[a].astype(np.float64)[..., None, :]
            angle: Array = total[None] if len(shape) == 3 else total
            return angle

        def inputs(rng: np.random.Generator, dtype: np.dtype[Any], _: int) -> tuple[Array, ...]:
            return (rng.standard_normal(shape).astype(dtype),)

        def expected(w: Array) -> tuple[Expected, ...]:
            tables = oracle.tables(oracle.Angles(2, inv_freq=(1.0,)), angles(w))
            if w.dtype == np.float32:
                return (Expected(tables.float32[..., 0]),)
            high = tables.high[..., 0]
            return (Expected(high, 0.501 * np.spacing(np.abs(high))),)

        def gradient(direction: Array, w: Array) -> Expected:
            angle, d = angles(w), direction.astype(np.float64)
            by_angle = d[1] * np.cos(angle) - d[0] * np.sin(angle)
            p = where.astype(np.float64).reshape(-1, where.shape[-1])
            terms = np.stack([by_angle * row[:, None] for row in p])
            if axes is None:
                terms = terms[0]
            terms = terms.reshape(*shape[:-1], where.shape[-1], shape[-1])
            # Two products and a sum for an angle, a product by p, and a sum of n terms.
            unit = (where.shape[-1] + 8) * float(np.finfo(w.dtype).eps)
            size = np.abs(terms) + (np.abs(d).sum() / d.size) * np.abs(p).max()
            return Expected(terms.sum(axis=-2), unit * size.sum(axis=-2))

        return FunctionCase(
            f"learned/{name}",
            comment,
            lambda w: _stacked(rotary.cos_sin(where, w, axes=axes)),
            inputs,
            expected,
            gradient,
            ways=(*EAGER_AND_COMPILED, *GRADIENTS),
            level="bound",
            refused={
                "mlx/compiled gradient/*": "mlx differentiates look-ups by their index",
            },
        )

    rng = np.random.default_rng(19)
    grid = rotary.axes.grid(4, 6)
    yield case("one-axis", "frequencies in float32 turns", rng.uniform(-99, 99, 40), None, 16)
    yield case("mixed", "a contracted sum over the axes", grid, 2, 2, 16)
    yield case("mixed-by-head", "heads taken for axes", grid, 2, 2, 3, 16)


def _of_tables(angles: oracle.Angles, where: Array, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return cos and sin, and how far off they may be: not at all in float32."""
    tables = oracle.tables(angles, where.astype(np.float64))
    if dtype == np.float32:
        return tables.float32, None
    return tables.high, 0.501 * np.spacing(np.abs(tables.high))


def _seed(dtype: np.dtype[Any]) -> Array:
    """Return an array that only says which library, device and dtype are meant."""
    return np.zeros(1, dtype)


def sinusoidal() -> Iterable[FunctionCase]:
    """Vaswani et al., both layouts; positions that the program alone knows."""
    whole = np.array([0, 1, 2, 77, 4095, 131_071, 10**6, 2**31 - 1, -5], np.int32)
    fractional = np.array([0.25, -1.5, 1e-3, 12345.678], np.float32)

    def case(name: str, where: Array, layout: str, dim: int, frequency_dim: int) -> FunctionCase:
        def arranged(tables: Array) -> Array:
            cos, sin = tables
            if layout == "half":
                return np.concatenate([sin, cos], axis=-1)
            return np.stack([sin, cos], axis=-1).reshape(-1, dim)

        def expected(like: Array, where: Array) -> tuple[Expected, ...]:
            angles = oracle.Angles(dim, frequency_dim=frequency_dim)
            tables, allowed = _of_tables(angles, where, like.dtype)
            return (Expected(arranged(tables), None if allowed is None else arranged(allowed)),)

        return FunctionCase(
            f"sinusoidal/{name}",
            "cosines before sines; the wrong layout; angles in float32",
            lambda like, p: rotary.absolute.sinusoidal(
                p, dim, layout=layout, frequency_dim=frequency_dim, like=like
            ),
            lambda rng, dtype, _: (_seed(dtype), where),
            expected,
        )

    yield case("interleaved", whole, "interleaved", 64, 64)
    yield case("half", whole, "half", 64, 62)
    yield case("fractional", fractional, "interleaved", 16, 16)


def learned_positions() -> Iterable[FunctionCase]:
    """Rows of a table, and tables of other sizes."""
    where = np.array([[0, 4, 6, 1], [5, 2, 2, 3]], np.int32)

    def gradient(direction: Array, table: Array, where: Array) -> Expected:
        total = np.zeros(table.shape)
        np.add.at(total, where, direction.astype(np.float64))
        # A row is looked up twice at most, so that a sum has one rounding.
        return Expected(total, np.abs(total) * float(eps(table.dtype)))

    yield FunctionCase(
        "learned/positions",
        "a row clamped or counted from the end",
        lambda table, p: rotary.absolute.learned(p, table),
        lambda rng, dtype, _: (rng.standard_normal((7, 24)).astype(dtype), where),
        lambda table, where: (Expected(table[where]),),
        gradient,
        ways=(*EAGER_AND_COMPILED, *GRADIENTS),
        dtypes=ALL_DTYPES,
    )
    for name, method, corners, old, new, prefix in (
        ("linear", "linear", False, (9,), (31,), 0),
        ("grid-linear", "linear", True, (4, 6), (5, 3), 0),
        ("grid-cubic", "cubic", False, (14, 9), (20, 17), 1),
    ):
        yield _resampled(name, method, corners, old, new, prefix)


def _resampled(
    name: str, method: str, corners: bool, old: tuple[int, ...], new: tuple[int, ...], prefix: int
) -> FunctionCase:
    rows = prefix + int(np.prod(old))
    size: Any = new[0] if len(new) == 1 else new
    grid: Any = None if len(new) == 1 else old

    def expected(table: Array) -> tuple[Expected, ...]:
        wide: Array = table.astype(_compute(table.dtype))
        body = wide[prefix:].reshape(*old, -1)
        for axis in reversed(range(len(new))):
            body = _interpolated(body, axis, new[axis], method, corners)
        out = np.concatenate([wide[:prefix], body.reshape(-1, body.shape[-1])])
        return (Expected(out.astype(table.dtype)),)

    return FunctionCase(
        f"resampled/{name}",
        "a contracted FMA; height for width; weights in float32",
        lambda table: rotary.absolute.resample(
            table, size, grid=grid, prefix=prefix, method=method, align_corners=corners
        ),
        lambda rng, dtype, _: (rng.standard_normal((rows, 24)).astype(dtype),),
        expected,
        dtypes=ALL_DTYPES if method == "cubic" else ("bfloat16", "float32"),
    )


def _interpolated(x: Array, axis: int, new: int, method: str, corners: bool) -> Array:
    """Return Σ x·weight, each product and each sum rounded, from left to right."""
    old = x.shape[axis]
    out = []
    for d in range(new):
        if corners:
            s = Fraction(d * (old - 1), max(new - 1, 1))
        else:
            s = (d + Fraction(1, 2)) * old / new - Fraction(1, 2)
        if method == "linear":
            s = min(max(s, Fraction(0)), Fraction(old - 1))
        cell = s.numerator // s.denominator
        taps = (cell, cell + 1) if method == "linear" else range(cell - 1, cell + 3)
        terms = [
            np.take(x, min(max(tap, 0), old - 1), axis) * _weight(abs(s - tap), method, x.dtype)
            for tap in taps
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        out.append(total)
    return np.stack(out, axis)


def _weight(x: Fraction, method: str, dtype: np.dtype[Any]) -> Any:
    if method == "linear":
        weight = 1 - x
    elif x <= 1:
        weight = Fraction(5, 4) * x**3 - Fraction(9, 4) * x**2 + 1
    else:
        weight = Fraction(-3, 4) * (x**3 - 5 * x**2 + 8 * x - 4)
    bits = 24 if dtype == np.float32 else 53
    return dtype.type(oracle.fraction_to_bits(weight, bits))


def absolute() -> Iterable[FunctionCase]:
    """Numbers and digits of positions."""
    where = np.array([0, 1, 2, 5, 1023, 4095])
    yield FunctionCase(
        "absolute/binary",
        "digits in the other order",
        lambda like: rotary.absolute.binary(where, 12, like=like),
        lambda rng, dtype, _: (_seed(dtype),),
        lambda like: (
            Expected(np.array([[(p >> i) & 1 for i in range(12)] for p in where], like.dtype)),
        ),
        ways=EAGER,
    )
    yield FunctionCase(
        "absolute/integer",
        "a quotient rounded twice",
        lambda like: rotary.absolute.integer(where, length=4099, like=like),
        lambda rng, dtype, _: (_seed(dtype),),
        lambda like: (
            Expected(
                np.array(
                    [
                        [oracle.fraction_to_bits(Fraction(int(p), 4099), _bits(like.dtype))]
                        for p in where
                    ],
                    like.dtype,
                )
            ),
        ),
        ways=EAGER,
    )


def packed() -> Iterable[FunctionCase]:
    """Sequences behind one another, and padded ones."""
    rope = rotary.RotaryEmbedding(32)
    boundaries = np.array([0, 5, 5, 6, 17, 40], np.int32)
    counted = np.concatenate([np.arange(n) for n in np.diff(boundaries)]).astype(np.float64)
    mask = np.arange(9) >= np.array([[4], [0], [7]])  # padded on the left
    offsets = rotary.offsets_from_mask(mask)
    padded = np.arange(9.0) - np.array([[4.0], [0.0], [7.0]])
    pairs = oracle.pair_indices(32, 32, "half", "leading")

    def expected(where: Array, axis: int) -> Any:
        def rotated(x: Array, *_: Array) -> tuple[Expected, ...]:
            cos, sin = oracle.tables(oracle.Angles(32), where).float32
            return (
                Expected(
                    oracle.rotate(x, np.expand_dims(cos, axis), np.expand_dims(sin, axis), pairs)
                ),
            )

        return rotated

    yield FunctionCase(
        "packed/cu-seqlens",
        "positions that do not start again",
        lambda x, ends: rope(
            x, positions=rotary.positions_from_cu_seqlens(ends, total=40), seq_axis=-3
        ),
        lambda rng, dtype, _: (rng.standard_normal((40, 3, 32)).astype(dtype), boundaries),
        expected(counted, -2),
        dtypes=("bfloat16", "float32"),
    )
    yield FunctionCase(
        "packed/left-padded",
        "one offset for all rows",
        lambda x: rope(x, offset=offsets),
        lambda rng, dtype, _: (rng.standard_normal((3, 2, 9, 32)).astype(dtype),),
        expected(padded, -3),
        dtypes=("bfloat16", "float32"),
    )


def _compute(dtype: np.dtype[Any]) -> type:
    return np.float64 if dtype == np.float64 else np.float32


def _bits(dtype: np.dtype[Any]) -> int:
    return 53 if dtype == np.float64 else 24


def eps(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[
        dtype.name
    ]


def half_ulp(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return half a unit in the last place of 16-bit numbers; nothing for wider ones."""
    if dtype.itemsize > 2:
        return np.zeros_like(x)
    smallest = 2.0**-24 if dtype == np.float16 else 2.0**-133
    return np.maximum(np.abs(x) * eps(dtype), smallest) / 2

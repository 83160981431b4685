"""The cases of softmax attention and of the relative encodings that stand beside its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import mpmath
import numpy as np

import rotary
from rotary.conformance import oracle
from rotary.conformance.encodings import eps, half_ulp
from rotary.conformance.functions import (
    EAGER_AND_COMPILED,
    GRADIENTS,
    Array,
    Expected,
    FunctionCase,
)

# A dtype for each way of computing: rounded to 16 bits, float32 and float64.
_DTYPES = ("bfloat16", "float32", "float64")
# Its error is that of float32.
_INEXACT = {"mlx/*/float64": "mlx has no exponential of float64"}
_HEADS, _GROUP, _DIM, _VALUES = 4, 2, 16, 24


def _operands(queries: int, keys: int) -> Any:
    """Return what makes q, k and v of two batch rows, two heads of q to one of k and v."""

    def inputs(rng: np.random.Generator, dtype: np.dtype[Any], _: int) -> tuple[Array, ...]:
        shapes = (
            (2, _HEADS, queries, _DIM),
            (2, _HEADS // _GROUP, keys, _DIM),
            (2, _HEADS // _GROUP, keys, _VALUES),
        )
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)

    return inputs


def _attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    visible: Array,
    bias: Array,
    by_key: Array | None = None,
    by_value: Array | None = None,
    roundings: int,
) -> Expected:
    """Return attention in float64, and the bound that ``softmax_attention`` states.

    by_key and by_value are what is added to k and v for each query: (Tq, Tk, features), or none.
    """
    wide_q, wide_k, wide_v = (x.astype(np.float64) for x in (q, k, v))
    k_all = np.repeat(wide_k, _GROUP, 1)[:, :, None] + (0 if by_key is None else by_key)
    v_all = np.repeat(wide_v, _GROUP, 1)[:, :, None] + (0 if by_value is None else by_value)
    size_k = np.repeat(np.abs(wide_k), _GROUP, 1)[:, :, None]
    size_k = size_k + (0 if by_key is None else np.abs(by_key))
    size_v = np.repeat(np.abs(wide_v), _GROUP, 1)[:, :, None]
    size_v = size_v + (0 if by_value is None else np.abs(by_value))
    scale, unit = _DIM**-0.5, 2.0**-53 if q.dtype == np.float64 else 2.0**-24
    scores = np.einsum("bhqd,bhqkd->bhqk", wide_q, np.broadcast_to(k_all, _pairwise(q, k_all)))
    scores = np.where(visible, scores * scale + bias, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    sizes = np.einsum(
        "bhqd,bhqkd->bhqk", np.abs(wide_q), np.broadcast_to(size_k, _pairwise(q, size_k))
    )
    farthest = np.where(visible, sizes * scale + np.abs(bias), 0.0).max(axis=-1)[..., None]
    off = 2 * (_DIM + 8) * unit * farthest + (roundings + 16) * unit
    value = np.einsum("bhqk,bhqke->bhqe", weights, np.broadcast_to(v_all, _pairwise(q, v_all)))
    size = np.einsum("bhqk,bhqke->bhqe", weights, np.broadcast_to(size_v, _pairwise(q, size_v)))
    return Expected(value, off * size + half_ulp(value, q.dtype))


def _pairwise(q: Array, x: Array) -> tuple[int, ...]:
    return (*q.shape[:3], *x.shape[3:])


def softmax() -> Iterable[FunctionCase]:
    """Grouped-query attention, causal and masked, and its gradient by q."""
    queries, keys = 7, 9
    mask = np.arange(keys) >= np.array([0, 3])[:, None, None, None]  # padded on the left
    visible = mask & (np.arange(keys) <= np.arange(queries)[:, None] + keys - queries)

    def expected(q: Array, k: Array, v: Array, mask: Array) -> tuple[Expected, ...]:
        bias = np.zeros(1)
        return (_attention(q, k, v, visible=visible, bias=bias, roundings=2 * keys),)

    def inputs(rng: np.random.Generator, dtype: np.dtype[Any], n: int) -> tuple[Array, ...]:
        q, k, v = _operands(queries, keys)(rng, dtype, n)
        v[1, :, :3] = np.inf  # masked: it must not show
        return q, k, v, mask

    def finite(q: Array, k: Array, v: Array, mask: Array) -> tuple[Expected, ...]:
        return expected(q, k, np.where(np.isfinite(v), v, 0).astype(v.dtype), mask)

    yield FunctionCase(
        "attention/softmax",
        "a head of another group; the ends of q and k; masked values times zero",
        lambda q, k, v, mask: rotary.softmax_attention(q, k, v, causal=True, mask=mask),
        inputs,
        finite,
        dtypes=_DTYPES,
        level="bound",
        refused=_INEXACT,
    )


def shaw() -> Iterable[FunctionCase]:
    """Relative positions of keys and values, against the tensor of all pairs."""
    queries, keys, farthest = 7, 9, 3
    clipped = np.clip(
        np.arange(keys) - (np.arange(queries)[:, None] + keys - queries), -farthest, farthest
    )

    def inputs(rng: np.random.Generator, dtype: np.dtype[Any], n: int) -> tuple[Array, ...]:
        tables = (rng.standard_normal((2 * farthest + 1, d)) for d in (_DIM, _VALUES))
        return (*_operands(queries, keys)(rng, dtype, n), *(t.astype(dtype) for t in tables))

    def expected(q: Array, k: Array, v: Array, a: Array, b: Array) -> tuple[Expected, ...]:
        rows = clipped + farthest
        return (
            _attention(
                q,
                k,
                v,
                visible=np.ones(1, bool),
                bias=np.zeros(1),
                by_key=a.astype(np.float64)[rows],
                by_value=b.astype(np.float64)[rows],
                roundings=3 * keys + 2 * farthest,
            ),
        )

    yield FunctionCase(
        "relative/shaw",
        "the sign of the distance; an end that is not clipped",
        lambda q, k, v, a, b: rotary.relative.shaw(q, k, v, a, b),
        inputs,
        expected,
        dtypes=_DTYPES,
        level="bound",
        refused=_INEXACT,
    )


def biases() -> Iterable[FunctionCase]:
    """T5's and ALiBi's, to the bit."""
    queries, keys = 40, 300
    distance = np.arange(keys) - (np.arange(queries)[:, None] + 260)

    def t5(name: str, bidirectional: bool) -> FunctionCase:
        buckets = np.vectorize(lambda d: _bucket(int(d), bidirectional))(distance)

        def gradient(direction: Array, table: Array) -> Expected:
            total, size = np.zeros((2, *table.shape))
            for heads, out in ((direction, total), (np.abs(direction), size)):
                np.add.at(out, buckets, np.moveaxis(heads.astype(np.float64), 0, -1))
            return Expected(total, distance.size * eps(table.dtype) * size)

        return FunctionCase(
            f"relative/t5-{name}",
            "a bucket decided by a rounded logarithm; the direction",
            lambda table: rotary.relative.t5_bias(
                queries, keys, table, offset=260, bidirectional=bidirectional
            ),
            lambda rng, dtype, _: (rng.standard_normal((32, 3)).astype(dtype),),
            lambda table: (Expected(np.moveaxis(table[buckets], -1, 0)),),
            gradient,
            ways=(*EAGER_AND_COMPILED, *GRADIENTS) if bidirectional else EAGER_AND_COMPILED,
            dtypes=("bfloat16", "float32"),
        )

    yield t5("both", True)
    yield t5("causal", False)

    def alibi(x: Array) -> tuple[Expected, ...]:
        bits = 24 if x.dtype == np.float32 else 53
        with mpmath.workprec(200):
            powers = [mpmath.mpf(2) ** -i for i in range(1, 9)]
            powers += [mpmath.sqrt(mpmath.mpf(2)) * mpmath.mpf(2) ** -i for i in range(1, 5)]
            slopes = [oracle.round_to_bits(p, bits) for p in powers]
        bias = np.array(slopes, x.dtype)[:, None, None] * distance.astype(x.dtype)
        return (Expected(x + bias),)

    yield FunctionCase(
        "relative/alibi",
        "slopes of 12 heads; the sign; a product contracted with the sum that follows",
        lambda x: x + rotary.relative.alibi_bias(queries, keys, 12, offset=260, like=x),
        lambda rng, dtype, _: (rng.standard_normal((12, queries, keys)).astype(dtype),),
        alibi,
    )


def _bucket(distance: int, bidirectional: bool) -> int:
    """Raffel et al.: 32 buckets to distance 128, a logarithm of a hundred digits."""
    buckets, first = 32, 0
    if bidirectional:
        buckets, first = 16, 16 if distance > 0 else 0
        n = abs(distance)
    else:
        n = max(-distance, 0)
    exact = buckets // 2
    if n < exact:
        return first + n
    with mpmath.workdps(100):
        share = mpmath.log(mpmath.mpf(n) / exact) / mpmath.log(mpmath.mpf(128) / exact)
        # At a power the digits end in noise: what is whole to 90 digits is whole.
        step = share * (buckets - exact)
        near = mpmath.nint(step)
        whole = int(near if abs(step - near) < mpmath.mpf(10) ** -90 else math.floor(step))
    return first + min(exact + whole, buckets - 1)

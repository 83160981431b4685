"""Softmax attention as it is written in papers, in float64, and the bound that ours has to keep."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


class Exact(NamedTuple):
    """What attention is, and how far from it a result of some dtype may be."""

    output: np.ndarray
    bound: np.ndarray

    def holds(self, got: Any, *, twice: bool = False) -> None:
        """Fail unless got keeps the bound, or twice the bound: for two results that both do."""
        got = np.asarray(got).astype(np.float64)
        assert got.shape == self.output.shape
        assert np.all(np.abs(got - self.output) <= (1 + twice) * self.bound)
        # A bound that lets everything pass would prove nothing.
        assert np.all(self.bound <= 0.05 * max(1.0, np.abs(self.output).max(initial=0)))


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dtype: str,
    *,
    causal: bool = False,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    key_table: Any = None,
    value_table: Any = None,
) -> Exact:
    """Evaluate attention with one vector for each query, key and feature.

    The bound is the one of the docstrings, for results of that dtype; float64 results get twice
    that, since what is compared to is no better.
    """
    unit = UNIT["float64" if dtype == "float64" else "float32"]
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    group = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, group, -3)[..., None, :, :], np.repeat(v, group, -3)[..., None, :, :]
    queries, dim = q.shape[-2:]
    keys = k.shape[-2]
    distance = np.arange(keys) - (np.arange(queries)[:, None] + keys - queries)
    key_rows, value_rows, terms = (np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), 2 * keys)
    if key_table is not None:
        farthest = key_table.shape[0] // 2
        rows = np.clip(distance, -farthest, farthest) + farthest
        key_rows, terms = key_table.astype(np.float64)[rows], 3 * keys + 2 * farthest
        if value_table is not None:
            value_rows = value_table.astype(np.float64)[rows]
    scale = dim**-0.5 if scale is None else scale
    bias = 0.0 if bias is None else np.asarray(bias).astype(np.float64)

    visible = np.ones((*q.shape[:-1], keys), bool)
    if causal:
        visible = visible & (distance <= 0)
    if mask is not None:
        visible = visible & mask
    q = q[..., None, :]
    scores = scale * np.sum(q * (k + key_rows), -1) + bias
    size = scale * np.sum(np.abs(q) * (np.abs(k) + np.abs(key_rows)), -1) + np.abs(bias)
    scores = np.where(visible, scores, -np.inf)
    top = np.max(scores, -1, keepdims=True, initial=-1e300)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights = (weights / np.where(total == 0, 1, total))[..., None]
    output = np.sum(weights * (v + value_rows), -2)

    shift = (dim + 8) * unit * np.max(np.where(visible, size, 0), -1, initial=0)[..., None]
    share = 2 * shift + (terms + 16) * unit
    bound = share * np.sum(weights * (np.abs(v) + np.abs(value_rows)), -2)
    if dtype in ("float16", "bfloat16"):
        bound = bound + UNIT[dtype] * (np.abs(output) + bound) + 2.0**-25
    return Exact(output, 2 * bound if dtype == "float64" else bound)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """Return normally distributed numbers."""
    seeds = [seed, math.prod(shape), len(shape)]
    return np.random.default_rng(seeds).standard_normal(shape).astype(dtype)

"""Softmax attention as a reference: plain products, exponentials and sums of any array library.

    s_ij = scale·q_i·k_j + b_ij,   w_ij = exp(s_ij)/Σ_n exp(s_in),   o_i = Σ_j w_ij v_j

Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1, with a bias b as relative
encodings add it.  What is masked is selected away, never multiplied by zero: whatever lies there,
infinite or not a number, changes nothing, nor does it in a gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rotary import backends, rotation
from rotary.backends import Backend
from rotary.checks import check_bool, positive
from rotary.dtypes import dtype_name, name_of_dtype


def softmax_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
) -> Any:
    """Attend to keys by the softmax of their scores.

    A reference: it holds all scores at once and uses the library's own products of matrices and
    exponentials, so that results agree between libraries within a bound, not to the bit.

    Parameters
    ----------
    q : array, shape (..., heads, Tq, D)
        float16, bfloat16, float32 or float64, of any library.
    k, v : array, shape (..., kv_heads, Tk, D) and (..., kv_heads, Tk, E)
        In q's dtype.  heads is a multiple of kv_heads; head h attends to head
        h // (heads/kv_heads) of them.
    causal : bool
        Hide later keys.  The ends line up: query i sees keys 0 … Tk − Tq + i, as a step of decoding
        with a cache needs it.
    bias : array, shape (Tq, Tk), (heads, Tq, Tk) or (..., heads, Tq, Tk), optional
        Added to the scaled scores; in q's dtype or that of the computation.  Each axis may have
        length 1 instead.  A key whose bias is −∞ is hidden.
    mask : array of bool, of such a shape, optional
        True where a query attends to a key.
    scale : float, optional
        D^(−1/2) by default.

    Returns
    -------
    array, shape (..., heads, Tq, E)
        Of q's dtype, library and device; float16 and bfloat16 are computed in float32 and rounded
        once.  Zeros for a query that sees no key.

    Raises
    ------
    TypeError
        For dtypes that do not rotate, arguments of different dtypes or libraries, a mask that is
        not of bool.
    ValueError
        For shapes that do not meet, lengths that are not known, causal with fewer keys than
        queries, a scale that is not positive.

    Notes
    -----
    With u = 2^-24 (2^-53 for float64), and |q_i|·|k_j| a sum over the features, the error of an
    output is at most, for a_i « 1,

        (2·a_i + (2·Tk + 16)·u) · Σ_j w_ij·|v_j|,
        a_i = (D + 8)·u · max_j(scale·|q_i|·|k_j| + |b_ij|)  over the keys that i sees,

    and half a unit in the last place of a 16-bit result.  It holds where the library forms products
    of matrices and exponentials in the precision of their dtype: JAX on GPUs and TPUs does so with
    ``jax_default_matmul_precision="highest"``; MLX has a float32 exponential for float64.

    A query or a key with a feature that is no finite number has scores that are not numbers, and so
    have the outputs of those that see it.  A value that is infinite makes the outputs of those that
    see it infinite, however small the weight.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> q, k = np.zeros((4, 3, 8)), np.zeros((2, 3, 8))  # heads, seq, head_dim
    >>> v = np.broadcast_to(np.array([[1.0], [2.0], [6.0]]), (2, 3, 1))
    >>> rotary.softmax_attention(q, k, v, causal=True)[0, :, 0]
    array([1. , 1.5, 3. ])
    """
    operands = read(q, k, v, causal, mask, scale)
    scores = products(operands.q, operands.k, operands.xp) * operands.scale
    if bias is not None:
        check_meets_scores("bias", bias, operands)
        bias = widened("bias", bias, operands)
        scores = scores + bias
        operands = operands._replace(visible=(*operands.visible, bias != -math.inf))
    weights = weigh(scores, operands)
    return rounded(weighted_sum(weights, operands.v, operands.xp), operands)


class Operands(NamedTuple):
    """Checked arguments of an attention, in the dtype of the computation."""

    q: Any
    k: Any
    v: Any
    scale: float
    visible: tuple[Any, ...]
    """Arrays of bool that broadcast with the scores; a query sees a key where all are True."""
    backend: Backend
    xp: Any
    dtype: Any
    """Of the result."""

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """(..., heads, Tq, Tk)."""
        return (*self.q.shape[:-1], self.k.shape[-2])

    @property
    def compute(self) -> str:
        """The name of the dtype of the computation."""
        return dtype_name(self.q)


class Weights(NamedTuple):
    """What each value counts."""

    values: Any
    """Shape (..., heads, Tq, Tk)."""
    seen: Any
    """Of that shape and dtype: positive where a query attends at all, else zero."""


def read(q: Any, k: Any, v: Any, causal: bool, mask: Any, scale: float | None) -> Operands:
    """Check the arguments of an attention and widen those of 16 bits."""
    backend = backends.owner_of(q, "q")
    compute = rotation.compute_dtype("q", q)
    _check_shapes(q, k, v, backend)
    check_bool("causal", causal)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else positive("scale", scale)
    dtype = q.dtype
    if compute != dtype_name(q):
        q, k, v = (backend.widen(x, compute) for x in (q, k, v))
    operands = Operands(q, k, v, scale, (), backend, backend.namespace(q), dtype)
    visible = [_not_later(operands)] if causal else []
    if mask is not None:
        check_meets_scores("mask", mask, operands)
        if dtype_name(mask) not in ("bool", "bool_"):
            raise TypeError(f"mask: got dtype {dtype_name(mask)}, expected bool")
        visible.append(mask)
    return operands._replace(visible=tuple(visible))


def products(x: Any, y: Any, xp: Any) -> Any:
    """Return x·y for all rows of both, NaN where a row holds what is no finite number.

    x has shape (..., heads, rows, features), y (..., kv_heads, columns, features), or
    (columns, features) for all heads.  Products are formed of finite numbers alone, so that what is
    selected away later has a gradient of zero, not of 0·∞.
    """
    folded = _folded(x, y, xp)
    finite_x, finite_y = xp.isfinite(folded), xp.isfinite(y)
    result = xp.where(finite_x, folded, 0.0) @ xp.matrix_transpose(xp.where(finite_y, y, 0.0))
    rows = xp.all(finite_x, axis=-1, keepdims=True)
    columns = xp.matrix_transpose(xp.all(finite_y, axis=-1, keepdims=True))
    return _unfolded(xp.where(xp.logical_and(rows, columns), result, math.nan), x, xp)


def weigh(scores: Any, operands: Operands) -> Weights:
    """Return the softmax of scores along the last axis, of those that are visible."""
    xp = operands.xp
    for visible in operands.visible:
        scores = xp.where(visible, scores, -math.inf)
    seen = xp.astype(scores != -math.inf, scores.dtype)
    if scores.shape[-1] == 0:  # nothing has no largest element
        return Weights(scores, seen)
    top = xp.max(scores, axis=-1, keepdims=True)
    exponentials = xp.exp(scores - xp.where(top == -math.inf, 0.0, top))
    total = xp.sum(exponentials, axis=-1, keepdims=True)
    return Weights(exponentials / xp.where(total == 0, 1.0, total), seen)


def weighted_sum(weights: Weights, v: Any, xp: Any) -> Any:
    """Return the sum of weights·v over the values that are seen.

    v has shape (..., kv_heads, Tk, E), or (Tk, E) for all heads.  A hidden 0·∞ would not be a
    number: finite values are summed, and the others make the sums that see them what they are.
    """
    values, seen = (_folded(x, v, xp) for x in weights)
    result = values @ xp.where(xp.isfinite(v), v, 0.0)
    nan = xp.isnan(v)
    up, down = (
        seen @ xp.astype(xp.logical_or(nan, v == end), v.dtype) > 0 for end in (math.inf, -math.inf)
    )
    result = xp.where(up, math.inf, xp.where(down, -math.inf, result))
    result = xp.where(xp.logical_and(up, down), math.nan, result)
    return _unfolded(result, weights.values, xp)


def rounded(result: Any, operands: Operands) -> Any:
    """Return a result in the dtype of the arguments."""
    if operands.dtype == operands.q.dtype:
        return result
    return operands.backend.narrow(result, operands.dtype)


def widened(name: str, x: Any, operands: Operands) -> Any:
    """Return an array beside q, k and v in the dtype of the computation, or raise."""
    if x.dtype == operands.q.dtype:
        return x
    if x.dtype != operands.dtype:
        expected = dict.fromkeys((operands.compute, name_of_dtype(operands.dtype)))
        raise TypeError(f"{name}: got dtype {dtype_name(x)}, expected {' or '.join(expected)}")
    return operands.backend.widen(x, operands.compute)


def check_meets_scores(name: str, x: Any, operands: Operands) -> None:
    """Raise unless x broadcasts with the scores, and does not make them larger."""
    rotation.check_same_place(name, x, "q", operands.q, operands.backend)
    shape, scores = tuple(x.shape), operands.scores_shape
    literal = len(shape) in (2, 3, len(scores))
    if not literal or any(n not in (1, m) for n, m in zip(shape[::-1], scores[::-1], strict=False)):
        ways = dict.fromkeys((scores[-2:], scores[-3:], scores))
        raise ValueError(
            f"{name}: got shape {shape}, expected {' or '.join(map(str, ways))}, "
            f"with 1 for any of its lengths"
        )


def _not_later(operands: Operands) -> Any:
    """Return whether key j is no later than query i, shape (Tq, Tk), their ends lined up."""
    queries, keys = operands.scores_shape[-2:]
    if keys < queries:
        raise ValueError(
            f"k: got {keys} keys for {queries} queries with causal=True, expected at least as many"
        )
    xp = operands.xp
    last = steps(queries, operands.q, operands.backend) + (keys - queries)
    columns = steps(keys, operands.q, operands.backend)
    return xp.reshape(columns, (1, keys)) <= xp.reshape(last, (queries, 1))


def steps(count: int, like: Any, backend: Backend) -> Any:
    """Return 0 … count − 1 as int32 beside an array."""
    # asarray: under tracing the host's array comes back, and all that follows belongs to the
    # program, or it would become a constant of its size.
    host = np.arange(count, dtype=np.int32)
    return backend.namespace(like).asarray(backend.to_device(host, like))


def _folded(x: Any, y: Any, xp: Any) -> Any:
    """Return x, shape (..., heads, rows, n), with the heads that share one of y's as more rows."""
    if len(y.shape) == 2 or x.shape[-3] == y.shape[-3]:
        return x
    *leading, heads, rows, n = x.shape
    kv_heads, group = y.shape[-3], heads // y.shape[-3]
    # In two steps, since dask splits and merges axes one at a time.
    x = xp.reshape(x, (*leading, kv_heads, group, rows, n))
    return xp.reshape(x, (*leading, kv_heads, group * rows, n))


def _unfolded(result: Any, x: Any, xp: Any) -> Any:
    """Return what was computed of folded rows with the leading axes of x."""
    *leading, heads, rows, _ = x.shape
    kv_heads, n = result.shape[-3], result.shape[-1]
    if heads == kv_heads:
        return result
    result = xp.reshape(result, (*leading, kv_heads, heads // kv_heads, rows, n))
    return xp.reshape(result, (*leading, heads, rows, n))


def _check_shapes(q: Any, k: Any, v: Any, backend: Backend) -> None:
    for name, x in (("k", k), ("v", v)):
        rotation.check_same_place(name, x, "q", q, backend)
        if x.dtype != q.dtype:
            raise TypeError(f"{name}: got dtype {dtype_name(x)}, expected q's {dtype_name(q)}")
    shapes = {name: tuple(x.shape) for name, x in (("q", q), ("k", k), ("v", v))}
    for name, shape in shapes.items():
        if len(shape) < 3:
            raise ValueError(f"{name}: got shape {shape}, expected (..., heads, seq, head_dim)")
        if any(n is None or n != n for n in shape):  # lazy libraries leave lengths open
            raise ValueError(f"{name}: got shape {shape}, expected known lengths")
    *leading, heads, _, head_dim = shapes["q"]
    *leading_of_k, kv_heads, _, head_dim_of_k = shapes["k"]
    if head_dim == 0:
        raise ValueError(f"q: got shape {shapes['q']}, expected features along the last axis")
    if leading_of_k != leading or head_dim_of_k != head_dim:
        wanted = ", ".join(map(str, (*leading, "kv_heads", "Tk", head_dim)))
        raise ValueError(
            f"k: got shape {shapes['k']}, expected ({wanted}) to meet q's {shapes['q']}"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"k: got shape {shapes['k']}, {kv_heads} heads, expected a divisor of q's {heads}"
        )
    if shapes["v"][:-1] != shapes["k"][:-1]:
        raise ValueError(
            f"v: got shape {shapes['v']}, expected k's {shapes['k']} except for the features"
        )

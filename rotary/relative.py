"""Relative encodings before RoPE: what a score gains by the distance between a key and a query.

Shaw, Uszkoreit and Vaswani, arXiv 1803.02155: a learned vector for each clipped distance, added to
the keys and to the values.  T5 (Raffel et al., arXiv 1910.10683, section 2.1): a learned number for
each bucket of distances and each head.  ALiBi (Press, Smith and Lewis, arXiv 2108.12409): a fixed
slope for each head.  Memory grows with heads × queries × keys, as that of the scores does.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from rotary import backends, rotation
from rotary.backends import Backend
from rotary.checks import check_bool, count, whole
from rotary.dtypes import WHOLE_DTYPES, dtype_name
from rotary.host import delivered, wanted
from rotary.softmax import (
    Operands,
    Weights,
    products,
    read,
    rounded,
    steps,
    weigh,
    weighted_sum,
    widened,
)

# Distances are counted in int32, the widest whole numbers that every library has.
_FARTHEST = 2**31 - 1


def shaw(
    q: Any,
    k: Any,
    v: Any,
    key_table: Any,
    value_table: Any,
    *,
    causal: bool = False,
    mask: Any = None,
    scale: float | None = None,
) -> Any:
    """Attend with a learned vector for each clipped distance, beside the keys and the values.

        s_ij = scale·q_i·(k_j + aK_ij),   o_i = Σ_j w_ij·(v_j + aV_ij),   w = softmax(s)

    with aK_ij and aV_ij the rows clip(j − i, −c, c) + c of the tables: equations 3 and 4 of Shaw et
    al., arXiv 1803.02155.  Memory is O(Tq·Tk + Tq·c) a head: scores by distance are formed against
    the 2c + 1 rows and moved to their places, weights are summed by distance before they meet them.

    Parameters
    ----------
    q : array, shape (..., heads, Tq, D)
        float16, bfloat16, float32 or float64, of any library.
    k, v : array, shape (..., kv_heads, Tk, D) and (..., kv_heads, Tk, E)
        As for :func:`rotary.softmax_attention`.  Tk ≥ Tq, and the ends line up: query i stands at
        position Tk − Tq + i of the keys, causal or not.
    key_table : array, shape (2c + 1, D)
        Shared by all heads; row r is for the distance r − c.  In q's dtype or that of the
        computation.
    value_table : array, shape (2c + 1, E), or None
        None adds nothing to the values.
    causal, mask, scale
        As for :func:`rotary.softmax_attention`.

    Returns
    -------
    array, shape (..., heads, Tq, E)
        Of q's dtype, library and device.

    Raises
    ------
    TypeError, ValueError
        As :func:`rotary.softmax_attention`; for tables of another shape or an even length, and for
        fewer keys than queries.

    Notes
    -----
    The bound of :func:`rotary.softmax_attention` holds with |k_j| + |aK_ij| and |v_j| + |aV_ij| in
    the places of |k_j| and |v_j|, and 3·Tk + 2c in that of 2·Tk.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> q = k = np.ones((1, 4, 1))  # one head of one feature
    >>> v = np.array([[[1.0], [2.0], [4.0], [8.0]]])
    >>> only_the_one_before = np.array([[1000.0], [0.0], [0.0]])  # distances -1 and below, 0, 1
    >>> rotary.relative.shaw(q, k, v, only_the_one_before, None)[0, 1:3, 0]
    array([1. , 1.5])
    """
    operands = read(q, k, v, causal, mask, scale)
    xp = operands.xp
    queries, keys = operands.scores_shape[-2:]
    if keys < queries:
        raise ValueError(f"k: got {keys} keys for {queries} queries, expected at least as many")
    key_table = _table("key_table", key_table, q.shape[-1], operands)
    if value_table is not None:
        value_table = _table("value_table", value_table, v.shape[-1], operands)
        if value_table.shape[0] != key_table.shape[0]:
            raise ValueError(
                f"value_table: got {value_table.shape[0]} rows, expected key_table's "
                f"{key_table.shape[0]}"
            )
    clip = _Clip.of(queries, keys, key_table.shape[0] // 2)
    by_distance = products(operands.q, key_table[clip.rows, :], xp)
    scores = products(operands.q, operands.k, xp)
    scores = scores + _skewed(clip.spread(by_distance, xp), keys, xp)
    weights = weigh(scores * operands.scale, operands)
    result = weighted_sum(weights, operands.v, xp)
    if value_table is not None:
        grouped = Weights(*(clip.gathered(_unskewed(x, xp), xp) for x in weights))
        result = result + weighted_sum(grouped, value_table[clip.rows, :], xp)
    return rounded(result, operands)


def t5_buckets(
    distances: Any,
    *,
    num_buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Any:
    """Return T5's bucket of each distance: one each for the near ones, wider ones farther away.

        n < m:  n,   else  min(m + ⌊ln(n/m)/ln(max_distance/m)·(b − m)⌋, b − 1),   m = ⌊b/2⌋

    of b = num_buckets buckets, for n = max(−distance, 0).  Bidirectional, n = |distance|,
    b = num_buckets/2, and keys that come later have the upper half of the buckets.  Raffel et al.,
    arXiv 1910.10683, section 2.1, as in Mesh TensorFlow's ``_relative_position_bucket``.  The first
    distance of each bucket is found in whole numbers, from n^(b−m) ≥ max_distance^i·m^(b−m−i), so
    that no library's logarithm decides.

    Parameters
    ----------
    distances : array or list of whole numbers, shape (...)
        Position of the key minus position of the query; signed integers.
    num_buckets : int
        At least 2; bidirectional even and at least 4.
    max_distance : int
        From here on all distances share the last bucket; more than m.
    bidirectional : bool
        Whether later keys are told apart; else all of them are in bucket 0.

    Returns
    -------
    array, shape (...)
        Of distances' library; int64 where those are int64, else int32.

    Raises
    ------
    TypeError
        If distances are no signed integers, a number is not whole.
    ValueError
        For bucket counts that are too small or, bidirectional, odd; a max_distance within m.

    Examples
    --------
    >>> import rotary
    >>> rotary.relative.t5_buckets([-200, -9, -8, -1, 0, 1, 11, 12])
    array([15,  8,  8,  1,  0, 17, 24, 25])
    """
    distances = _as_distances(distances)
    xp = backends.owner_of(distances, "distances").namespace(distances)
    # Comparisons with numbers beyond their range differ between libraries.
    kind = xp.int64 if dtype_name(distances) == "int64" else xp.int32
    distances = xp.astype(distances, kind)
    firsts = _first_distances(num_buckets, max_distance, bidirectional)
    buckets = xp.zeros_like(distances)
    for first in firsts:
        reached = distances <= -first
        if bidirectional:
            reached = xp.logical_or(reached, distances >= first)
        buckets = buckets + xp.astype(reached, kind)
    if bidirectional:
        buckets = buckets + xp.astype(distances > 0, kind) * (num_buckets // 2)
    return buckets


def t5_bias(
    query_length: int,
    key_length: int,
    table: Any,
    *,
    offset: Any = None,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Any:
    """Return T5's bias of each head, query and key: the table's row of their distance's bucket.

    For :func:`rotary.softmax_attention`; T5 itself has no scale there: ``scale=1.0``.  Buckets are
    those of :func:`t5_buckets`.  The numbers are the table's own, the same bits in every library.

    Parameters
    ----------
    query_length, key_length : int
        Tq and Tk, 0 or more; keys stand at positions 0 … Tk − 1.
    table : array, shape (num_buckets, heads)
        As checkpoints hold it (``relative_attention_bias.weight``): floats of any library.
        Gradients pass into it.
    offset : int, or array of a whole number, shape (), optional
        Position of the first query; Tk − Tq by default, where the ends line up.  An array of
        table's library may be known to a compiled program alone.
    max_distance, bidirectional
        As for :func:`t5_buckets`; T5's decoders are not bidirectional.

    Returns
    -------
    array, shape (heads, Tq, Tk)
        Of table's dtype, library and device.

    Raises
    ------
    TypeError, ValueError
        For lengths, an offset or a table that are no such thing; with fewer keys than queries an
        offset has to be given.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> table = np.arange(32.0)[:, None]  # one head, whose bias is the bucket's number
    >>> rotary.relative.t5_bias(2, 4, table)[0]
    array([[ 2.,  1.,  0., 17.],
           [ 3.,  2.,  1.,  0.]])
    """
    backend = backends.owner_of(table, "table")
    rotation.compute_dtype("table", table)
    if len(table.shape) != 2 or 0 in tuple(table.shape):
        raise ValueError(f"table: got shape {tuple(table.shape)}, expected (num_buckets, heads)")
    xp, (num_buckets, heads) = backend.namespace(table), table.shape
    distances = _distances(query_length, key_length, offset, table, backend)
    buckets = t5_buckets(
        distances,
        num_buckets=num_buckets,
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    # Selected row by row: libraries differ in the dtypes that index, and the gradient of a
    # selection is a sum in one order.
    values = xp.broadcast_to(table[:1, :], (distances.shape[0], heads))
    buckets = xp.reshape(buckets, (-1, 1))
    for bucket in range(1, num_buckets):
        values = xp.where(buckets == bucket, table[bucket : bucket + 1, :], values)
    return _by_distance(xp.permute_dims(values, (1, 0)), query_length, key_length, xp)


def alibi_slopes(num_heads: int, *, like: Any = None, dtype: Any = None) -> Any:
    """Return ALiBi's slope of each head: 2^(−8h/n) for head h = 1 … n of a power of two.

    For other numbers of heads, the slopes of the largest power of two below, then every other one
    of twice as many: Press et al., arXiv 2108.12409, section 3 and the authors' ``get_slopes``.
    Each is the number of its dtype that is nearest to the formula's, the same bits everywhere.

    Parameters
    ----------
    num_heads : int
        1 or more.
    like : array, optional
        The slopes come in its library and on its device; NumPy by default.
    dtype : dtype or str, optional
        float32 or float64; by default that in which `like` is computed, else float32.

    Returns
    -------
    array, shape (num_heads,)

    Raises
    ------
    TypeError, ValueError
        If num_heads is no positive whole number, dtype or like another kind.

    Examples
    --------
    >>> import rotary
    >>> rotary.relative.alibi_slopes(3)
    array([0.0625    , 0.00390625, 0.25      ], dtype=float32)
    """
    like, backend, kind = wanted(like, dtype)
    host = np.array(_slopes(whole("num_heads", num_heads), kind))
    return delivered(host, kind, like, backend)


def alibi_bias(
    query_length: int,
    key_length: int,
    num_heads: int,
    *,
    offset: Any = None,
    causal: bool = True,
    like: Any = None,
    dtype: Any = None,
) -> Any:
    """Return ALiBi's bias of each head, query and key: −slope·distance.

    For :func:`rotary.softmax_attention`.  A product of a slope of :func:`alibi_slopes` with a whole
    number, rounded once (up to a distance of 2^24 in float32, which has no larger odd numbers): the
    same bits in every library.

    Parameters
    ----------
    query_length, key_length : int
        Tq and Tk, 0 or more; keys stand at positions 0 … Tk − 1.
    num_heads : int
        1 or more.
    offset : int, or array of a whole number, shape (), optional
        Position of the first query; Tk − Tq by default, where the ends line up.  An array of
        like's library may be known to a compiled program alone.
    causal : bool
        True: slope·(key − query), the authors' formula, which is positive for later keys; attention
        with ``causal=True`` hides those.  False: −slope·|key − query|, for both directions.
    like, dtype
        As for :func:`alibi_slopes`.

    Returns
    -------
    array, shape (num_heads, Tq, Tk)

    Raises
    ------
    TypeError, ValueError
        For lengths, a number of heads or an offset that are no such thing; with fewer keys than
        queries an offset has to be given.

    Examples
    --------
    >>> import rotary
    >>> rotary.relative.alibi_bias(2, 3, 8)[0]
    array([[-0.5,  0. ,  0.5],
           [-1. , -0.5,  0. ]], dtype=float32)
    """
    like, backend, kind = wanted(like, dtype)
    check_bool("causal", causal)
    slopes = alibi_slopes(num_heads, like=like, dtype=kind)
    xp = backend.namespace(like)
    distances = _distances(query_length, key_length, offset, like, backend)
    if not causal:
        distances = -xp.abs(distances)
    distances = xp.reshape(xp.astype(distances, getattr(xp, kind)), (1, -1))
    # What follows may add it to something.
    values = backend.product(distances, xp.reshape(slopes, (-1, 1)))
    return _by_distance(values, query_length, key_length, xp)


class _Clip(NamedTuple):
    """How the columns of `_skewed` share the rows of a table by clipped distance."""

    left: int
    """Number of columns whose distance is below the table's."""
    right: int
    """Above."""
    rows: slice
    """Those of the table that are reached."""

    @staticmethod
    def of(queries: int, keys: int, farthest: int) -> _Clip:
        last = max(queries, 1) - 1  # distances are -keys … last
        rows = slice(farthest - min(farthest, keys), farthest + min(farthest, last) + 1)
        return _Clip(max(keys - farthest, 0), max(last - farthest, 0), rows)

    def spread(self, x: Any, xp: Any) -> Any:
        """Return the column of each distance, from one for each row that is reached."""
        *leading, _ = x.shape
        left = xp.broadcast_to(x[..., :1], (*leading, self.left))
        right = xp.broadcast_to(x[..., -1:], (*leading, self.right))
        return xp.concat([left, x, right], axis=-1)

    def gathered(self, x: Any, xp: Any) -> Any:
        """Return the sum of the columns that share a row."""
        first, last = self.left + 1, x.shape[-1] - self.right - 1
        if first > last:  # all share one
            return xp.sum(x, axis=-1, keepdims=True)
        left = xp.sum(x[..., :first], axis=-1, keepdims=True)
        right = xp.sum(x[..., last:], axis=-1, keepdims=True)
        return xp.concat([left, x[..., first:last], right], axis=-1)


def _skewed(x: Any, keys: int, xp: Any) -> Any:
    """Return x by distance as an array by key: y_ij = x_i,(Tq − i + j).

    x has shape (..., Tq, max(Tq, 1) + Tk), and its column c is for the distance of a key c − Tq
    places after the first query.  No index, whose gradient would scatter: each row of the shorter
    length begins one column earlier than the one before.
    """
    *leading, queries, width = x.shape
    flat = xp.reshape(x, (*leading, queries * width))[..., queries:]
    return xp.reshape(flat, (*leading, queries, width - 1))[..., :keys]


def _unskewed(y: Any, xp: Any) -> Any:
    """Return an array by key as one by distance, zero where there is no key; Tk ≥ Tq."""
    *leading, queries, keys = y.shape
    width = max(queries, 1) + keys
    rows = xp.concat([y, xp.zeros_like(y[..., : width - 1 - keys])], axis=-1)
    flat = xp.reshape(rows, (*leading, queries * (width - 1)))
    flat = xp.concat([xp.zeros_like(flat[..., :queries]), flat], axis=-1)
    return xp.reshape(flat, (*leading, queries, width))


def _by_distance(values: Any, queries: int, keys: int, xp: Any) -> Any:
    """Return (heads, Tq, Tk) of a number for each head and distance, in `_distances`' order."""
    heads, width = values.shape
    rows = xp.broadcast_to(xp.reshape(values, (heads, 1, width)), (heads, queries, width))
    return _skewed(rows, keys, xp)


def _distances(queries: Any, keys: Any, offset: Any, like: Any, backend: Backend) -> Any:
    """Return the distance of each column of `_skewed`, int32 beside `like`."""
    count("query_length", queries)
    count("key_length", keys)
    if offset is None:
        if keys < queries:
            raise ValueError(
                f"offset: got None with {queries} queries and {keys} keys, expected the position "
                f"of the first query"
            )
        offset = keys - queries
    columns = steps(max(queries, 1) + keys, like, backend) - queries
    if isinstance(offset, bool) or not isinstance(offset, Integral):
        return columns - _offset_in_program(offset, like, backend)
    if abs(offset) + queries + keys > _FARTHEST:
        raise ValueError(f"offset: got {offset}, expected distances of less than 2^31")
    return columns - int(offset)


def _offset_in_program(offset: Any, like: Any, backend: Backend) -> Any:
    """Return an offset that is an array, perhaps of a value that nobody knows yet, as int32."""
    if not hasattr(offset, "dtype") or isinstance(offset, np.generic):
        raise TypeError(f"offset: got {offset!r}, expected a whole number")
    if not isinstance(offset, np.ndarray):
        rotation.check_same_place("offset", offset, "like", like, backend)
    if dtype_name(offset) not in WHOLE_DTYPES or tuple(offset.shape) != ():
        raise TypeError(
            f"offset: got {dtype_name(offset)} of shape {tuple(offset.shape)}, expected one whole "
            f"number"
        )
    xp = backend.namespace(like)
    return xp.astype(xp.asarray(offset), xp.int32)


def _as_distances(distances: Any) -> Any:
    if not hasattr(distances, "dtype") or isinstance(distances, np.generic):
        try:
            host = np.asarray(distances)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"distances: got {type(distances).__name__}, expected whole numbers or an array of "
                f"them"
            ) from error
        distances = host if host.size else host.astype(np.int64)
    kind = dtype_name(distances)
    if kind not in WHOLE_DTYPES or kind[0] == "u":
        raise TypeError(
            f"distances: got dtype {kind}, expected signed integers: key minus query position"
        )
    return distances


def _first_distances(num_buckets: int, max_distance: int, bidirectional: bool) -> list[int]:
    """Return the smallest distance of each bucket but the first, of one direction."""
    buckets, most = whole("num_buckets", num_buckets), whole("max_distance", max_distance)
    check_bool("bidirectional", bidirectional)
    least = 4 if bidirectional else 2
    if buckets < least or (bidirectional and buckets % 2):
        even = "an even number of " if bidirectional else ""
        raise ValueError(f"num_buckets: got {buckets}, expected {even}{least} or more")
    if bidirectional:
        buckets //= 2
    exact = buckets // 2
    if not exact < most <= _FARTHEST:
        raise ValueError(
            f"max_distance: got {most}, expected more than the {exact} distances that have a "
            f"bucket each, and less than 2^31"
        )
    wide = buckets - exact
    firsts = list(range(1, exact + 1))
    for i in range(1, wide):
        bound = most**i * exact ** (wide - i)
        below, reached = firsts[-1] - 1, most
        while reached - below > 1:
            middle = (below + reached) // 2
            below, reached = (below, middle) if middle**wide >= bound else (middle, reached)
        firsts.append(reached)
    return firsts


def _slopes(num_heads: int, dtype: str) -> list[float]:
    """Return the slopes, each rounded once to dtype."""
    power = 1 << (num_heads.bit_length() - 1)
    eighths = [(8 * (h + 1), power) for h in range(power)]
    eighths += [(8 * (2 * h + 1), 2 * power) for h in range(num_heads - power)]
    return [_power_of_two(*exponent, 24 if dtype == "float32" else 53) for exponent in eighths]


def _power_of_two(numerator: int, denominator: int, bits: int) -> float:
    """Return 2^(−numerator/denominator), nearest with so many bits; the denominator is 2^n.

    In whole numbers, by square roots, which are exact to the last bit of their whole part.
    """
    whole_part = numerator // denominator
    # 2^(bits − fraction) has `bits` digits before the point, or is 2^bits, and one more bit rounds:
    # a fraction's power is irrational, never half-way.
    root = 1 << ((bits + 1) * denominator - numerator % denominator)
    while denominator > 1:
        root, denominator = math.isqrt(root), denominator // 2
    return ((root + 1) // 2) / (1 << (bits + whole_part))


def _table(name: str, table: Any, features: int, operands: Operands) -> Any:
    """Return a checked table of clipped distances in the dtype of the computation."""
    rotation.check_same_place(name, table, "q", operands.q, operands.backend)
    shape = tuple(table.shape)
    if len(shape) != 2 or shape[1] != features or shape[0] % 2 == 0:
        raise ValueError(
            f"{name}: got shape {shape}, expected (2c + 1, {features}), an odd number of rows"
        )
    return widened(name, table, operands)

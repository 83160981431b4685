"""Where the tokens of a call stand, and the tables that rotate them there.

Without positions from the caller, tokens are counted from the state's position on; masked tokens do
not count, so that a padded row is the row alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rotary import positions as _positions
from rotary.dtypes import WHOLE_DTYPES, dtype_name
from rotary.embedding import RotaryEmbedding
from rotary.linear.arithmetic import running_sum
from rotary.linear.inputs import Sizes, readable


class Placed(NamedTuple):
    """Positions of a call's tokens."""

    positions: Any
    """(seq,), (batch, seq) or as the caller gave them, on the host or in the arrays' library."""
    after: Any
    """The position of the token that follows, (batch,), in the arrays' library."""


class Tables(NamedTuple):
    """cos and sin of queries and keys, (1 or batch, 1, 1, seq, pairs); None where not needed."""

    cos: Any = None
    sin: Any = None
    key_cos: Any = None
    key_sin: Any = None


def place(
    rope: RotaryEmbedding | None, positions: Any, mask: Any, start: Any, sizes: Sizes, like: Any
) -> Placed:
    """Return the positions of a call's tokens.

    `start` is the position of the first one, (batch,), or None for 0.
    """
    backend, seq = sizes.backend, sizes.seq
    if positions is not None:
        axes = 1 if rope is None or rope.axes is None else rope.axes.count
        given, values = _given(positions, sizes, like, axes)
        return Placed(given, _after(values, mask, start, sizes, like, axes))
    xp = backend.namespace(like)
    first = 0 if start is None else _same(start, sizes)
    if start is None:
        start = _zeros(sizes, like)
    if mask is not None:
        counted = xp.astype(mask, start.dtype)
        steps = running_sum(xp, counted, -1) - 1
        # What stands before the first token takes no part: any position will do.
        where = start[:, None] + xp.maximum(steps, xp.zeros_like(steps))
        # Some libraries widen sums of whole numbers, and not all can be told not to.
        after = start + xp.astype(xp.sum(counted, axis=-1), start.dtype)
        return Placed(_of_axes(rope, where), after)
    if first is not None:
        where = np.arange(seq) + first
    else:
        steps = backend.to_device(np.arange(seq, dtype=dtype_name(start)), like)
        where = _of_axes(rope, start[:, None] + steps)
    return Placed(where, start + seq)


def _zeros(sizes: Sizes, like: Any) -> Any:
    """Return int32 zeros, (batch,), in the library of `like` even where it is traced."""
    host = np.zeros(sizes.batch, np.int32)
    return sizes.backend.namespace(like).asarray(sizes.backend.to_device(host, like))


def _of_axes(rope: RotaryEmbedding | None, where: Any) -> Any:
    """Return (batch, seq) as a rope of several axes takes positions that are equal on all."""
    return where if rope is None or rope.axes is None else where[None, ...]


def _same(start: Any, sizes: Sizes) -> Any:
    """Return the number that all rows start at, or None where they differ or nobody knows."""
    if sizes.backend.is_traced(start) or not sizes.batch:
        return None
    try:
        host = sizes.backend.to_host(start)
    except TypeError:
        return None
    return host[0] if (host == host[0]).all() else None


def _given(positions: Any, sizes: Sizes, like: Any, axes: int) -> tuple[Any, Any]:
    """Return positions to look up, and to count on from, in the arrays' library."""
    backend = sizes.backend
    own = hasattr(positions, "dtype") and not isinstance(positions, np.ndarray)
    if not own:
        host = _positions.read(positions, backend, "positions")
        if isinstance(positions, np.ndarray) and positions.dtype.kind == "f":
            host = host.astype(positions.dtype)
        elif (host == np.rint(host)).all():
            host = host.astype(np.int64 if np.abs(host).max(initial=0) >= 2**31 - 1 else np.int32)
        positions = host
        last = backend.to_device(host.copy(), like)
    else:
        last = positions
        kind = dtype_name(last)
        _positions.check_dtype("positions", kind)
        if kind in WHOLE_DTYPES and kind not in ("int32", "int64"):
            last = backend.namespace(like).astype(last, backend.namespace(like).int32)
    rows = _positions.Rows(positions, None, sizes.batch, sizes.seq, axes=axes)
    _positions.check_shape(rows, tuple(last.shape))
    return positions, last


def _after(last: Any, mask: Any, start: Any, sizes: Sizes, like: Any, axes: int) -> Any:
    """Return the largest position of a row's tokens, plus 1."""
    xp, batch = sizes.backend.namespace(like), sizes.batch
    if not sizes.seq:
        if start is not None:
            return start
        return _zeros(sizes, like)
    if axes > 1 and last.ndim > 1:
        last = xp.max(last, axis=0)
    if last.ndim == 1:
        last = last[None, :]
    last = xp.broadcast_to(last, (batch, sizes.seq))
    first = last[:, :1] if start is None else xp.astype(start, last.dtype)[:, None]
    if mask is not None:
        last = xp.where(mask, last, first - 1)
    return xp.max(last, axis=-1) + 1


def check_below(placed: Placed, length: int, counted: bool, sizes: Sizes, like: Any) -> None:
    """Raise unless positions are in 0 … length − 1, as far as they are known by now.

    `counted` says that each token stands one further on than the one before.
    """
    expected = f"expected 0 … {length - 1}, below the length of feature_map"
    if counted and sizes.seq > length:
        raise ValueError(f"positions: got {sizes.seq} tokens, {expected}")
    if sizes.backend.is_traced(like):  # compilers follow the host's numbers too
        return
    where = placed.positions
    host = where if isinstance(where, np.ndarray) else readable(where, sizes.backend)
    if host is not None and host.size and not 0 <= host.min() <= host.max() < length:
        raise ValueError(f"positions: got {host.min()} … {host.max()}, {expected}")


def look_up(
    rope: RotaryEmbedding, placed: Placed, sizes: Sizes, like: Any, pairs: int | None = None
) -> Tables:
    """Return the tables of queries and keys at these positions, one column repeated for pairs."""
    where = placed.positions
    if rope.xpos is None:
        tables = _expanded(rope, where, None, sizes, like)
        if pairs is not None:
            xp = sizes.backend.namespace(like)
            tables = [xp.broadcast_to(table, (*table.shape[:-1], pairs)) for table in tables]
        return Tables(*tables)
    query, key = (_expanded(rope, where, role, sizes, like) for role in ("query", "key"))
    return Tables(*query, *key)


def _expanded(rope: RotaryEmbedding, where: Any, role: Any, sizes: Sizes, like: Any) -> Any:
    xp = sizes.backend.namespace(like)
    pair = rope.tables(where, like=like, dtype=sizes.dtype, role=role)
    shape = tuple(pair[0].shape)
    rows = 1 if len(shape) == 2 else shape[0]
    return [xp.reshape(table, (rows, 1, 1, *shape[-2:])) for table in pair]

"""Tables: positions × frequencies → cos and sin, faithful to the last bit, and what is kept.

    cos[n, i] = round(a · cos(p_n · ω_i)),   sin[n, i] = round(a · sin(p_n · ω_i))

with the attention factor a, or with a·ζ_i^(±p_n/scale_base) under XPos.  The numbers come from
:mod:`rotary.exact.circle` and :mod:`rotary.exact.power`; here they are arranged, moved to a device
and remembered.  No table in proportion to the context is needed for truth: rows are kept only
because models ask for the same ones again in every layer.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rotary.axes import Axial
from rotary.backends import Backend, kernels
from rotary.cache import Cache
from rotary.dtypes import dtype_name
from rotary.exact import circle
from rotary.exact import power as powers
from rotary.frequencies import Frequencies, attention_factor, radians, radians_as_trained, turns
from rotary.positions import LIMIT, Rows, Span, table_shape
from rotary.xpos import exponents, rates, reach

# A call whose table would be larger rotates piece by piece, and keeps no table.
PIECE_BYTES = 64 * 2**20
# A block of 256 rows costs 0.1 to 1.2 ms to fill and serves 256 decoding steps.
BLOCK_ROWS = 256
CACHE_BYTES = 256 * 2**20
# NumPy's dozens of intermediates, of 64 KiB each, stay in the processor's cache; from 128 KiB on
# glibc gives memory back to the system whenever it is free, which takes more time than to fill it.
_ENTRIES_AT_ONCE = 2**13
# NumPy fills as many in 0.2 s.  The kernel takes a tenth of that or less, but 0.4 s to be imported
# where what compiles it has not been, and 10 ms where it has.
_ENTRIES_WORTH_AN_IMPORT = 2**22


def _look_up(table: npt.NDArray[np.float64], cell: npt.NDArray[np.float64]) -> Any:
    index = cell.astype(np.int64) & (circle.CELLS - 1)
    return table[0].take(index), table[1].take(index)


def by_pair(
    frequencies: Frequencies, positions: Any, xp: Any, asarray: Callable[[Any], Any]
) -> Any:
    """Return positions (…) with a last axis of one for all pairs, or of one for each.

    With several axes, positions (axes, …) and (1, …) come as (…, R/2) and (…, 1).
    """
    if frequencies.axes is None or positions.ndim < 2:
        return positions[..., None]
    if positions.shape[0] == 1:
        return positions[0, ...][..., None]
    index = asarray(np.array(frequencies.axes.axis_of_pair))
    return xp.moveaxis(xp.take(positions, index, axis=0), 0, -1)


_circle = circle.bind(rint=np.rint, sign=np.sign, look_up=_look_up, product=np.multiply)
_power = powers.bind(rint=np.rint, look_up=_look_up, product=np.multiply)


def evaluate(
    frequencies: Frequencies,
    positions: npt.NDArray[np.float64],
    dtype: str,
    power: int = 1,
    role: int = 0,
) -> npt.NDArray[Any]:
    """Return cos and sin on the host, shape (2, …, R/2) for positions of shape (…) or (axes, …).

    They are multiplied by the attention factor to the power of 1, 0 or −1, and by XPos's scale with
    an exponent of the sign `role`; 0 stands for none.
    """
    shape = table_shape(positions.shape, frequencies.axis_count)
    count = math.prod(shape)
    flat = positions.reshape(*positions.shape[: positions.ndim - len(shape)], count)
    both = np.empty((2, count, frequencies.pairs), dtype)
    kernel = None
    if both.size // 2 >= _ENTRIES_WORTH_AN_IMPORT or kernels.compiler_in_use():
        kernel = kernels.kernel("tables")
    if kernel is None:
        _fill(both, frequencies, flat, power, role)
    else:
        _fill_by_kernel(kernel, both, frequencies, flat, power, role)
    return both.reshape(2, *shape, frequencies.pairs)


def _fill(
    both: npt.NDArray[Any],
    frequencies: Frequencies,
    positions: npt.NDArray[np.float64],
    power: int,
    role: int,
) -> None:
    """Fill cos and sin (2, count, R/2) of positions (count,) or (axes, count)."""
    words, dtype = turns(frequencies), both.dtype.name
    table = circle.cosine_table(attention_factor(frequencies, power))
    step = max(1, _ENTRIES_AT_ONCE // max(1, frequencies.pairs))
    for first in range(0, both.shape[1], step):
        rows = slice(first, first + step)
        block = by_pair(frequencies, positions[..., rows], np, np.asarray)
        cell, *rest = _circle.reduce(block, *words)
        factor = _factor(
            frequencies,
            block,
            dtype,
            power,
            role,
            bound=_power,
            xp=np,
            asarray=np.asarray,
        )
        cos, cos_rest, sin, sin_rest = _circle.both(cell, *rest, table)
        both[0, rows] = _rounded(_circle, cos, cos_rest, factor, dtype)
        both[1, rows] = _rounded(_circle, sin, sin_rest, factor, dtype)


def _fill_by_kernel(
    kernel: ModuleType,
    both: npt.NDArray[Any],
    frequencies: Frequencies,
    positions: npt.NDArray[np.float64],
    power: int,
    role: int,
) -> None:
    """Do the same in one pass."""
    words, factor, farthest = turns(frequencies), attention_factor(frequencies, power), None
    table = circle.cosine_table(factor)
    if role:
        assert frequencies.xpos is not None
        farthest = reach(frequencies.xpos, factor, both.dtype.name)
        scale = exponents(frequencies.xpos, frequencies.rotary_dim, role)
        words, table = np.concatenate([words, scale]), np.concatenate([table, *powers.tables()])
    axis_of_pair = None
    if frequencies.axes is not None and positions.ndim > 1 and len(positions) > 1:
        axis_of_pair = frequencies.axes.axis_of_pair
    kernel.fill(both, positions, axis_of_pair, words, table, farthest)


class _Factor(NamedTuple):
    """ζ^(±p/scale_base) = 4^half·(high + low), with what it takes to multiply by it."""

    half: Any
    high: Any
    low: Any
    twos: Any
    bound: powers.Power


def _factor(
    frequencies: Frequencies,
    positions: Any,
    dtype: str,
    power: int,
    role: int,
    *,
    bound: powers.Power,
    xp: Any,
    asarray: Callable[[Any], Any],
) -> _Factor | None:
    """Return XPos's scale of these positions; NaN where it leaves the range of dtype."""
    if not role:
        return None
    assert frequencies.xpos is not None
    within = xp.abs(positions) <= reach(
        frequencies.xpos, attention_factor(frequencies, power), dtype
    )
    safe = xp.where(within, positions, asarray(np.asarray(0.0)))
    words = exponents(frequencies.xpos, frequencies.rotary_dim, role)
    fractions, twos = ([asarray(row) for row in table] for table in powers.tables())
    half, high, low = bound.power(safe, *(asarray(row) for row in words), fractions)
    return _Factor(half, xp.where(within, high, asarray(np.asarray(np.nan))), low, twos, bound)


def _rounded(bound: circle.Circle, high: Any, low: Any, factor: _Factor | None, dtype: str) -> Any:
    """Return (high + low)·factor, rounded to values of dtype."""
    if factor is not None:
        high, low = factor.bound.times(high, low, factor.high, factor.low)
    value = bound.to_float32(high, low) if dtype == "float32" else high + low
    return value if factor is None else factor.bound.scaled(value, factor.half, factor.twos)


ONE_RADIAN = Frequencies(2, 1.0, 2, (1.0,))
"""The one frequency by which positions are angles."""


def evaluate_as_trained(
    frequencies: Frequencies, positions: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Return cos and sin of angles that were rounded to float32, as the usual implementations do.

    Position, frequency and their product are float32, an error of up to half a radian a million
    positions out; the cosine of that angle is correctly rounded.
    """
    single = positions.astype(np.float32)
    if isinstance(frequencies.axes, Axial) and frequencies.axes.in_turns:
        # They multiply the position by 2π, not the frequency.
        single = np.float32(2 * math.pi) * single
        frequencies = replace(frequencies, axes=replace(frequencies.axes, in_turns=False))
    omega = radians_as_trained(frequencies)
    angles = by_pair(frequencies, single, np, np.asarray) * omega
    both = evaluate(ONE_RADIAN, angles.astype(np.float64), "float32")[..., 0]
    return both * np.float32(attention_factor(frequencies))


def in_program(
    frequencies: Frequencies,
    positions: Any,
    dtype: str,
    power: int,
    role: int = 0,
    *,
    xp: Any,
    product: Callable[[Any, Any], Any],
    asarray: Callable[[Any], Any] | None = None,
    take: Callable[[Any, Any], Any] = operator.getitem,
) -> Any:
    """Return cos and sin, shape (2, …, R/2), as a part of a program that is being compiled.

    The same algorithm for positions that only the program will know: float64 of shape (…) or
    (axes, …), in the library of namespace `xp`, whose `product` is that of
    :func:`rotary.exact.circle.bind`; `asarray` brings arrays from the host, and `take` picks by an
    index of any shape.  cos and sin are one array: compilers work twice for two.
    """
    asarray = asarray or xp.asarray

    def look_up(table: Any, cell: Any) -> Any:
        index = xp.astype(cell, xp.int32) & (circle.CELLS - 1)
        return take(table[0], index), take(table[1], index)

    operations = {"rint": xp.round, "look_up": look_up, "product": product}
    bound = circle.bind(sign=xp.sign, **operations)
    words = [asarray(row) for row in turns(frequencies)]
    positions = by_pair(frequencies, positions, xp, asarray)[None, ...]
    cell, *rest = bound.reduce(positions, *words)
    quarters = np.array([0.0, circle.QUARTER]).reshape(2, *[1] * (positions.ndim - 1))
    cosines = circle.cosine_table(attention_factor(frequencies, power))
    table = [asarray(row) for row in cosines]
    high, low = bound.cosine(cell - asarray(quarters), *rest, table)
    factor = _factor(
        frequencies,
        positions,
        dtype,
        power,
        role,
        bound=powers.bind(**operations),
        xp=xp,
        asarray=asarray,
    )
    return xp.astype(_rounded(bound, high, low, factor, dtype), getattr(xp, dtype))


def tangent(frequencies: Frequencies, both: Any, along: Any, role: int, xp: Any) -> Any:
    """Return the derivative of cos and sin, shape (2, …, R/2), as positions move along a tangent.

    By the position it is (−sin, cos)·ω; XPos's scale adds (cos, sin)·ln(ζ)/scale_base, with the
    sign of the role.
    """
    kind = dtype_name(both)
    slope = xp.stack([-both[1], both[0]]) * xp.asarray(radians(frequencies).astype(kind))
    if role:
        assert frequencies.xpos is not None
        rate = rates(frequencies.xpos, frequencies.rotary_dim, role)
        slope = slope + both * xp.asarray(rate.astype(kind))
    return slope * by_pair(frequencies, xp.astype(along, both.dtype), xp, xp.asarray)


@lru_cache(maxsize=256)
def _most_turns(token: str) -> float:
    return float(np.abs(turns(Frequencies.from_token(token))[0]).max(initial=0.0))


def check_range(
    frequencies: Frequencies,
    positions: Span | npt.NDArray[np.float64],
    dtype: str,
    power: int,
    role: int,
) -> None:
    """Raise for positions whose tables have no meaning, or are no numbers of dtype."""
    fastest = _most_turns(frequencies.token)
    if fastest <= 1.0 and not role:
        return
    ends = positions
    if isinstance(positions, Span):
        ends = np.array([positions.start, positions.start + positions.length - 1])
    farthest = float(np.abs(ends).max(initial=0.0))
    if farthest * fastest > LIMIT:  # beyond 2^53 turns reduction is not exact
        raise ValueError(
            f"positions: {farthest} at {fastest} turns per position is more than 2^53 turns, "
            f"beyond which an angle has no meaning"
        )
    if role:
        assert frequencies.xpos is not None
        most = reach(frequencies.xpos, attention_factor(frequencies, power), dtype)
        if farthest > most:
            raise ValueError(
                f"positions: got one {farthest} away from 0, expected at most {most}: beyond it "
                f"XPos's scale leaves the range of {dtype}"
            )


cache = Cache(CACHE_BYTES)


def cache_key(
    frequencies: Frequencies,
    where: Hashable,
    dtype: str,
    power: int,
    device: Hashable,
    role: int = 0,
) -> Hashable:
    """Everything that decides the content of a table: leave nothing out."""
    return frequencies.token, where, dtype, power, device, role


def _row_bytes(
    frequencies: Frequencies, positions: Span | npt.NDArray[np.float64], dtype: str
) -> int:
    """Bytes that one position of the seq axis has in both tables, batch rows together."""
    batch = 1
    if not isinstance(positions, Span):
        batch = math.prod(table_shape(positions.shape, frequencies.axis_count)[:-1])
    return 2 * frequencies.pairs * (8 if dtype == "float64" else 4) * batch


def may_be_long(frequencies: Frequencies, rows: Rows, dtype: str) -> bool:
    """Whether the tables of a call might not fit, by its shape alone."""
    features = 2 * frequencies.pairs * (8 if dtype == "float64" else 4)
    return (rows.seq or 0) * (rows.batch or 1) * features > PIECE_BYTES


def fits(frequencies: Frequencies, positions: Span | npt.NDArray[np.float64], dtype: str) -> bool:
    """Whether the tables of a call are small enough to be made at once."""
    length = positions.length if isinstance(positions, Span) else positions.shape[-1]
    return _row_bytes(frequencies, positions, dtype) * length <= PIECE_BYTES


def pieces(
    frequencies: Frequencies, positions: Span | npt.NDArray[np.float64], dtype: str
) -> Iterator[tuple[slice, Span | npt.NDArray[np.float64]]]:
    """Cut positions along seq so that the tables of each piece take at most PIECE_BYTES."""
    seq = positions.length if isinstance(positions, Span) else positions.shape[-1]
    length = max(1, PIECE_BYTES // _row_bytes(frequencies, positions, dtype))
    for start in range(0, seq, length):
        rows = slice(start, min(start + length, seq))
        if isinstance(positions, Span):
            yield rows, Span(positions.start + start, rows.stop - start)
        else:
            yield rows, positions[..., rows]


def look_up(
    frequencies: Frequencies,
    positions: Span | npt.NDArray[np.float64],
    dtype: str,
    power: int,
    like: Any,
    backend: Backend,
    *,
    role: int = 0,
    keep: bool = True,
) -> tuple[Any, Any]:
    """Return cos and sin, each (…, R/2), in `like`'s library and on its device.

    They may be views of what is kept: not to be written to.
    """
    check_range(frequencies, positions, dtype, power, role)
    if not keep:
        if isinstance(positions, Span):
            positions = positions.start + np.arange(positions.length, dtype=np.float64)
        host = evaluate(frequencies, positions, dtype, power, role)
        return backend.to_device(host[0], like), backend.to_device(host[1], like)
    if not isinstance(positions, Span):
        where = (positions.shape, positions.tobytes())
        return _kept(frequencies, where, positions, dtype, power, role, like, backend)
    # Whole blocks are kept, so that the steps of decoding share one entry.
    first = positions.start // BLOCK_ROWS * BLOCK_ROWS
    stop = positions.start + positions.length
    count = -(-(stop - first) // BLOCK_ROWS) * BLOCK_ROWS
    cos, sin = _kept(frequencies, Span(first, count), None, dtype, power, role, like, backend)
    if (first, count) == positions:
        return cos, sin
    return backend.rows((cos, sin), positions.start - first, stop - first)


def _kept(
    frequencies: Frequencies,
    where: Any,
    positions: npt.NDArray[np.float64] | None,
    dtype: str,
    power: int,
    role: int,
    like: Any,
    backend: Backend,
) -> tuple[Any, Any]:
    device = backend.device_key(like)
    key = cache_key(frequencies, where, dtype, power, (backend.name, device), role)
    pair: tuple[Any, Any] | None = cache.get(key)
    if pair is not None:
        return pair
    if positions is None:
        positions = np.arange(where.start, where.start + where.length, dtype=np.float64)
    host = evaluate(frequencies, positions, dtype, power, role)
    pair = backend.to_device(host[0], like), backend.to_device(host[1], like)
    if device is not None:
        cache.put(key, pair, host.nbytes)
    return pair

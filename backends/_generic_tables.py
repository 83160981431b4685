"""Tables as a part of a lazy library's graph: for positions whose values are not there yet."""

from __future__ import annotations

from typing import Any, cast

import array_api_compat
import numpy as np

from rotary.backends import _generic
from rotary.backends._protocol import Backend, Wanted
from rotary.dtypes import dtype_name


def of_lazy(rows: Any, wanted: Wanted) -> Any:
    """Return cos and sin, shape (2, …, pairs), of lazy positions or of a lazy offset."""
    # Late, since positions and tables stand above the backends.
    from rotary.frequencies import named
    from rotary.positions import check_deferred, counted_from
    from rotary.tables import in_program

    given = rows.given
    xp, operations = _generic.namespace(given), _operations(given)
    check_deferred(rows, dtype_name(given), tuple(given.shape))
    positions = xp.astype(given, xp.float64)
    if rows.positions is None:
        steps = operations["asarray"](np.arange(rows.seq, dtype=np.float64))
        positions = counted_from(positions, steps, rows.axes)
    return in_program(
        named(wanted.token, wanted.length),
        positions,
        wanted.dtype,
        wanted.power,
        wanted.role,
        **operations,
    )


def of_frequencies(positions: Any, inv_freq: Any, axes: int | None, dtype: str) -> Any:
    """Return cos and sin, shape (2, …, pairs), of a lazy library's frequencies."""
    from rotary.angles import check, in_program
    from rotary.positions import read

    xp, operations = _generic.namespace(inv_freq), _operations(inv_freq)
    if array_api_compat.is_lazy_array(positions) and _generic.namespace(positions) is xp:
        where = xp.astype(positions, xp.float64)
    else:
        where = operations["asarray"](read(positions, cast(Backend, _generic), "positions"))
    check(where, inv_freq, axes)
    return in_program(where, xp.astype(inv_freq, xp.float64), axes, dtype, **operations)


def differentiable(positions: Any, inv_freq: Any, axes: int | None, dtype: str) -> Any:
    """Return cos and sin, shape (2, …, pairs), from the host, with the right derivative.

    The standard knows no gradients, but some of its libraries do.  To the tables from the host is
    added what they change by as ω moves by ω − ω, a zero whose second term is cut off from the
    graph.
    """
    from rotary.angles import check, on_host, tangent
    from rotary.positions import read

    def asarray(host: Any) -> Any:
        return _generic.to_device(host, inv_freq)

    where = read(positions, cast(Backend, _generic), "positions")
    check(where, inv_freq, axes)
    host = on_host(where, _generic.to_host(inv_freq), axes, dtype)
    xp = _generic.namespace(inv_freq)
    cut_off = asarray(np.asarray(_generic.to_host(inv_freq)))
    both, near = asarray(host), asarray(where.astype(dtype))
    zero = xp.astype(inv_freq - cut_off, getattr(xp, dtype))
    # Taylor's series, of which derivatives up to the second one are right.
    first = tangent(both, near, zero, axes, xp)
    return both + first + tangent(first, near, zero, axes, xp) * 0.5


def _operations(like: Any) -> dict[str, Any]:
    """Return what a program is built from, in the library of `like`."""
    xp = _generic.namespace(like)

    def asarray(host: Any) -> Any:
        return _generic.to_device(host, like)

    def take(row: Any, index: Any) -> Any:
        # The standard takes by int64 of one axis.  A length that is open yet is -1.
        shape = tuple(-1 if n is None else n for n in index.shape)
        flat = xp.reshape(xp.astype(index, xp.int64), (-1,))
        return xp.reshape(xp.take(row, flat, axis=0), shape)

    return {"xp": xp, "product": _generic.product, "asarray": asarray, "take": take}

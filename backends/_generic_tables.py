"""Tables as a part of a lazy library's graph: for positions whose values are not there yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from rotary.backends import _generic
from rotary.backends._protocol import Wanted
from rotary.dtypes import dtype_name


def of_lazy(rows: Any, wanted: Wanted) -> Any:
    """Return cos and sin, shape (2, …, pairs), of lazy positions or of a lazy offset."""
    # Late, since positions and tables stand above the backends.
    from rotary.frequencies import named
    from rotary.positions import check_deferred
    from rotary.tables import in_program

    given = rows.given
    xp = _generic.namespace(given)

    def asarray(host: Any) -> Any:
        return _generic.to_device(host, given)

    def take(row: Any, index: Any) -> Any:
        # The standard takes by int64 of one axis.  A length that is open yet is -1.
        shape = tuple(-1 if n is None else n for n in index.shape)
        flat = xp.reshape(xp.astype(index, xp.int64), (-1,))
        return xp.reshape(xp.take(row, flat, axis=0), shape)

    check_deferred(rows, dtype_name(given), tuple(given.shape))
    positions = xp.astype(given, xp.float64)
    if rows.positions is None:
        positions = positions[..., None] + asarray(np.arange(rows.seq, dtype=np.float64))
    return in_program(
        named(wanted.token, wanted.length),
        positions,
        wanted.dtype,
        wanted.power,
        wanted.role,
        xp=xp,
        product=_generic.product,
        asarray=asarray,
        take=take,
    )

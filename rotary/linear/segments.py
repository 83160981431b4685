"""A part of a sequence by itself, under the delta rule: what it makes of any state before it.

    S_after = M S_before + S_alone

Both are linear in the columns of S: with values 0 and the identity as the state before, M is what
comes out (Yang et al., arXiv 2406.06484, section 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rotary.backends import Backend
from rotary.dtypes import dtype_name
from rotary.linear.chunks import Sums


def with_transition(v: Any, sums: Sums, backend: Backend) -> tuple[Any, Sums]:
    """Return values and sums with a column more for each feature, 0 and the identity."""
    xp, features = backend.namespace(v), sums.numerator.shape[-2]
    host = np.eye(features, dtype=dtype_name(sums.numerator))
    identity = xp.asarray(backend.to_device(host, sums.numerator))
    identity = xp.broadcast_to(identity, (*sums.numerator.shape[:-1], features))
    none = xp.broadcast_to(xp.zeros_like(v[..., :1]), (*v.shape[:-1], features))
    return xp.concat([v, none], axis=-1), sums._replace(
        numerator=xp.concat([sums.numerator, identity], axis=-1),
        numerator_low=xp.concat([sums.numerator_low, xp.zeros_like(identity)], axis=-1),
    )


def split(high: Any, low: Any, value_dim: int) -> tuple[Any, Any, Any]:
    """Return the segment's own sums in two words, and what it makes of the state before it."""
    transition = high[..., value_dim:] + low[..., value_dim:]
    return high[..., :value_dim], low[..., :value_dim], transition

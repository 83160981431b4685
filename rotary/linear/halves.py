"""Within a chunk, by halves: gates of a channel, and the triangular systems of the delta rule.

Of 2s neighbouring tokens, the second s see the first s across the boundary b between them:

    e^{c_i − c_j} = e^{c_i − c_b} · e^{c_b − c_j}

Both factors are at most 1 whatever the gates are, so that all weights between the halves are one
product of two matrices, channel by channel.  Levels s = 1, 2, 4, … meet each pair i > j once.
(GLA, arXiv 2312.06635, section 4.3, has two levels.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rotary.linear.arithmetic import Arithmetic, decay, dot


class Level(NamedTuple):
    """Decays between halves of s tokens each, (…, stretches, s, 1 or channels)."""

    since: Any
    """From the boundary to each token of the second half."""
    until: Any
    """From each token of the first half to the boundary."""


def sizes(length: int) -> list[int]:
    """Return the sizes of the halves of a chunk of that many tokens, the powers of 2 below."""
    return [1 << n for n in range((length - 1).bit_length())]


def levels(a: Arithmetic, c: Any, low: Any) -> tuple[Level, ...]:
    """Return the decays of each level from prefix sums of log gates in two words, (…, C, d)."""
    xp, found = a.backend.namespace(c), []
    c, low = _padded(a, c), _padded(a, low)
    for size in sizes(c.shape[-2]):
        (first, second), (first_low, second_low) = _halves(xp, c, size), _halves(xp, low, size)
        at, at_low = first[..., -1:, :], first_low[..., -1:, :]
        found.append(
            Level(
                decay(a, (second - at) + (second_low - at_low)),
                decay(a, (at - first) + (at_low - first_low)),
            )
        )
    return tuple(found)


def blocks(a: Arithmetic, q: Any, k: Any, decays: Sequence[Level] | None) -> list[tuple[int, Any]]:
    """Return size s and Σ_d q_i k_j e^{c_i − c_j} between the halves, (…, stretches, s, s)."""
    xp, found = a.backend.namespace(q), []
    q, k = _padded(a, q), _padded(a, k)
    for n, size in enumerate(sizes(q.shape[-2])):
        left, right = _halves(xp, q, size)[1], _halves(xp, k, size)[0]
        if decays is not None:
            left, right = left * decays[n].since, right * decays[n].until
        found.append((size, a.multiply(a.rows(left), a.rows_transposed(right))))
    return found


def scores(a: Arithmetic, q: Any, k: Any, decays: Sequence[Level]) -> Any:
    """Return Σ_d q_i k_j e^{c_i − c_j} for i ≥ j and 0 above, (…, C, C)."""
    length = q.shape[-2]
    grown = _padded(a, dot(a, q, k))[..., None]
    for _, between in blocks(a, q, k, decays):
        grown = _joined(a, grown, between)
    return grown[..., 0, :length, :length]


def spread(a: Arithmetic, q: Any, k: Any, v: Any, decays: Sequence[Level], *, strict: bool) -> Any:
    """Return Σ_j (q_i·k_j) e^{c_i − c_j} ⊙ v_j over j ≤ i, (…, C, d), or over j < i."""
    xp, length = a.backend.namespace(q), q.shape[-2]
    own = xp.zeros_like(q[..., :1] * v) if strict else a.settle(dot(a, q, k) * v)
    total, v = _padded(a, own), _padded(a, v)
    for (size, between), level in zip(blocks(a, q, k, None), decays, strict=True):
        values = _halves(xp, v, size)[0] * level.until
        update = a.product(_of_past(a, between, values), level.since)
        first, second = _halves(xp, total, size)
        both = xp.stack([first, a.settle(second + update)], axis=-3)
        total = xp.reshape(both, tuple(total.shape))
    return total[..., :length, :]


def solved(a: Arithmetic, between: list[tuple[int, Any]], b: Any, lower: Any) -> Any:
    """Return (1 + N)⁻¹ b, (…, C, d), where N is strictly lower triangular and given in blocks.

    The inverse of [[A, 0], [N, B]] is [[A⁻¹, 0], [−B⁻¹ N A⁻¹, B⁻¹]].  `lower` is the lower
    triangle of ones, (C, C).
    """
    length = b.shape[-2]
    inverse = _padded(a, a.backend.namespace(b).ones_like(b[..., :1]))[..., None]
    for size, block in between:
        if size > 1:
            first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
            block = _of_past(a, second, block, lower[:size, :size])
            block = _of_past(a, block, first)
        inverse = _joined(a, inverse, -block)
    return _of_past(a, inverse[..., 0, :length, :length], b, lower)


def _of_past(a: Arithmetic, weights: Any, v: Any, lower: Any = None) -> Any:
    """Return weights @ v, contracted over tokens: earlier results do not depend on later tokens.

    `lower` says which tokens a row sees, all of them by default.
    """
    values, scales = a.tokens(v)
    if scales is not None:
        # Where nothing is seen a scale may be NaN.
        weights = weights * scales if lower is None else a.weigh(weights, a.weigh(scales, lower))
    return a.multiply(a.rows(weights), values)


def _joined(a: Arithmetic, diagonal: Any, between: Any) -> Any:
    """Return [[first, 0], [between, second]] of neighbours on the diagonal."""
    concat = a.backend.namespace(between).concat
    first, second = diagonal[..., 0::2, :, :], diagonal[..., 1::2, :, :]
    zero = a.backend.namespace(between).zeros_like(between)
    upper = concat([first, zero], axis=-1)
    return concat([upper, concat([between, second], axis=-1)], axis=-2)


def _halves(xp: Any, x: Any, size: int) -> tuple[Any, Any]:
    """Return first and second halves of every 2·size tokens, each (…, stretches, size, d)."""
    *leading, length, dim = x.shape
    x = xp.reshape(x, (*leading, length // (2 * size), 2, size, dim))
    return x[..., 0, :, :], x[..., 1, :, :]


def _padded(a: Arithmetic, x: Any) -> Any:
    """Return x with zeros for tokens up to the next power of two, which the levels cover."""
    length = x.shape[-2]
    missing = (1 << (length - 1).bit_length()) - length
    if not missing:
        return x
    xp = a.backend.namespace(x)
    more = xp.zeros_like(x[..., :1, :])
    return xp.concat([x, *[more] * missing], axis=-2)

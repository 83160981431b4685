"""The state of linear attention: sums over the tokens seen so far, whatever their number.

    S = Σ_n e^{c_N − c_n} R_n φ(k_n) v_nᵀ,   z = Σ_n e^{c_N − c_n} φ(k_n)

(Katharopoulos et al., arXiv 2006.16236, equations 18 and 19; with rotation, RoFormer, arXiv
2104.09864, equation 19: the normaliser's keys are not rotated.)  Sums are compensated: what
rounding took from them is carried in the low words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rotary import backends, exact, rotation
from rotary.backends import Backend
from rotary.dtypes import dtype_name
from rotary.exact.sums import two_sum


class State(NamedTuple):
    """Sums over a segment of tokens: arrays of one library, which no call changes.

    All but the position are float32, or float64 for float64 inputs.  ``None`` stands for what the
    variant does not have.  A state is what :meth:`LinearAttention.prefill` hands over, and what
    :meth:`LinearAttention.segment` makes of a part of a sequence; JAX takes it as a pytree.
    """

    numerator: Any
    """S, shape (batch, kv_heads, features, value_dim): over rotated keys."""
    numerator_low: Any
    """What rounding took from S, of its shape."""
    normaliser: Any
    """z, shape (batch, kv_heads, features): over keys that are not rotated under
    ``placement="numerator"``; None without the normaliser."""
    normaliser_low: Any
    """What rounding took from z, of its shape, or None."""
    log_decay: Any
    """c_N, the sum of all log gates, shape (batch, kv_heads); None without decay."""
    log_decay_low: Any
    """Its second word, or None."""
    position: Any
    """The position of the next token, shape (batch,): int32 unless positions were given as int64
    or as floating-point numbers."""


def combine(left: State, right: State) -> State:
    """Return the state of two neighbouring segments, `left` before `right`.

    S = e^{c_right} S_left + S_right, and z alike: associative, so that segments of a sequence can
    be summed up apart (on several devices) and joined in any grouping.  The right segment has to
    have been made with the positions that its tokens have in the whole sequence.

    Parameters
    ----------
    left, right : State
        Of one variant, of the same shapes, dtype and library.

    Returns
    -------
    State
        Its position is the right one's.

    Raises
    ------
    TypeError, ValueError
        If they are no states, or not of one variant, shape, dtype or library.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> attn = rotary.LinearAttention(chunk_size=4)
    >>> x = np.linspace(-1, 1, 2 * 10 * 8, dtype=np.float32).reshape(1, 2, 10, 8)
    >>> _, state = attn.prefill(x, x, x)
    >>> left = attn.segment(x[:, :, :6], x[:, :, :6], positions=range(6))
    >>> right = attn.segment(x[:, :, 6:], x[:, :, 6:], positions=range(6, 10))
    >>> joined = rotary.linear.combine(left, right)
    >>> bool(np.allclose(joined.numerator, state.numerator, rtol=1e-6))
    True
    """
    check_state("left", left)
    check_state("right", right)
    check_alike("right", right, "left", left)
    backend = backends.owner_of(left.numerator)
    log_decay = log_decay_low = None
    decay = None
    if left.log_decay is not None:
        decay = _decay(backend, right)
        log_decay, log_decay_low = two_words(
            (left.log_decay, left.log_decay_low), (right.log_decay, right.log_decay_low)
        )
    numerator, numerator_low = _join(
        backend,
        (left.numerator, left.numerator_low),
        (right.numerator, right.numerator_low),
        None if decay is None else decay[..., None, None],
    )
    normaliser = normaliser_low = None
    if left.normaliser is not None:
        normaliser, normaliser_low = _join(
            backend,
            (left.normaliser, left.normaliser_low),
            (right.normaliser, right.normaliser_low),
            None if decay is None else decay[..., None],
        )
    return State(
        numerator,
        numerator_low,
        normaliser,
        normaliser_low,
        log_decay,
        log_decay_low,
        right.position,
    )


def _join(backend: Backend, left: Any, right: Any, decay: Any) -> tuple[Any, Any]:
    """Return decay·left + right, both in two words."""
    high, low = left
    if decay is not None:
        high, low = backend.product(high, decay), backend.product(low, decay)
    return two_words((high, low), right)


def two_words(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the sum of two numbers of two words each."""
    total, error = two_sum(x[0], y[0])
    return total, (x[1] + y[1]) + error


def _decay(backend: Backend, state: State) -> Any:
    """Return e^c of a segment."""
    xp = backend.namespace(state.log_decay)
    total = state.log_decay + state.log_decay_low
    total = xp.minimum(total, xp.zeros_like(total))
    return exact.exp(total) if dtype_name(total) == "float32" else xp.exp(total)


def check_state(name: str, state: Any) -> None:
    """Raise unless it is a state."""
    if not isinstance(state, State):
        raise TypeError(
            f"{name}: got {type(state).__module__}.{type(state).__qualname__}, expected a "
            f"rotary.linear.State"
        )


def check_alike(name: str, state: State, other_name: str, other: State) -> None:
    """Raise unless two states are of one variant, shape, dtype and library."""
    backend = backends.owner_of(other.numerator, f"{other_name}.numerator")
    for field, x, like in zip(State._fields, state, other, strict=True):
        if (x is None) != (like is None):
            raise ValueError(
                f"{name}: got a state {'without' if x is None else 'with'} {field}, expected one "
                f"of {other_name}'s variant"
            )
        if x is None or field == "position":
            continue
        if tuple(x.shape) != tuple(like.shape):
            raise ValueError(
                f"{name}: got {field} of shape {tuple(x.shape)}, expected {other_name}'s "
                f"{tuple(like.shape)}"
            )
        rotation.check_same_place(f"{name}.{field}", x, other_name, like, backend)
        if dtype_name(x) != dtype_name(like):
            raise TypeError(
                f"{name}: got {field} of dtype {dtype_name(x)}, expected {other_name}'s "
                f"{dtype_name(like)}"
            )


def check_place(state: State, like: Any) -> None:
    """Raise unless a state's arrays are of the library, and on the device, of k: `like`."""
    backend = backends.owner_of(like)
    for field, x in zip(State._fields, state, strict=True):
        if x is not None:
            rotation.check_same_place(f"state.{field}", x, "k", like, backend)


def check_given(state: State, expected: State, dtype: str, like: Any) -> None:
    """Raise unless a state has the shapes of `expected`, and this dtype, that of sums of k."""
    for field, x, shape in zip(State._fields, state, expected, strict=True):
        name = f"state.{field}"
        if (x is None) != (shape is None):
            raise ValueError(
                f"{name}: got {'None' if x is None else 'an array'}, expected a state of this "
                f"variant, {'without' if shape is None else 'with'} it"
            )
        if x is None:
            continue
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {shape}")
        if field != "position" and dtype_name(x) != dtype:
            raise TypeError(
                f"{name}: got dtype {dtype_name(x)}, expected {dtype}, in which "
                f"{dtype_name(like)} is summed"
            )

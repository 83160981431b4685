"""The state of linear attention: sums over the tokens seen so far, whatever their number.

    S = Σ_n e^{c_N − c_n} R_n φ(k_n) v_nᵀ,   z = Σ_n e^{c_N − c_n} φ(k_n)

(Katharopoulos et al., arXiv 2006.16236, equations 18 and 19; with rotation, RoFormer, arXiv
2104.09864, equation 19: the normaliser's keys are not rotated.)  Sums are compensated: what
rounding took from them is carried in the low words.  With the delta rule, S of a segment is
M S_before + S_alone, with M = Π_t e^{g_t}(1 − β_t k_t k_tᵀ) (Yang et al., arXiv 2406.06484,
section 3.1).
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
    variant does not have.  A state is what :meth:`rotary.LinearAttention.prefill` hands over, and
    what :meth:`rotary.LinearAttention.segment` makes of a part of a sequence; JAX takes it as a
    pytree.
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
    """c_N, the sum of all log gates, shape (batch, kv_heads), or (batch, kv_heads, features) with
    gates for each channel; None without decay and with the delta rule."""
    log_decay_low: Any
    """Its second word, or None."""
    transition: Any
    """M, what a segment under the delta rule makes of the state before it, shape (batch, kv_heads,
    features, features); (batch, kv_heads, 0, 0) in a state that was handed over, which holds all
    before it; None for the additive update."""
    maximum: Any
    """Of the random features so far, shape (batch, kv_heads), which the sums are relative to; None
    without them."""
    position: Any
    """The position of the next token, shape (batch,): int32 unless positions were given as int64
    or as floating-point numbers."""


def combine(left: State, right: State) -> State:
    """Return the state of two neighbouring segments, `left` before `right`.

    S = e^{c_right} S_left + S_right, and z alike; with the delta rule S = M_right S_left + S_right:
    associative, so that segments of a sequence can be summed up apart (on several devices) and
    joined in any grouping.  The right segment has to have been made with the positions that its
    tokens have in the whole sequence.

    Parameters
    ----------
    left, right : State
        Of one variant, of the same shapes, dtype and library.  With the delta rule, the right one
        has to come from :meth:`rotary.LinearAttention.segment`.

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
    if right.transition is not None:
        return _through(left, right)
    log_decay = log_decay_low = maximum = None
    of_left = of_right = None  # what either is multiplied by, (batch, kv_heads, 1 or features)
    if left.log_decay is not None:
        total = right.log_decay + right.log_decay_low
        of_left = _exp(backend, total if total.ndim == 3 else total[..., None])
        log_decay, log_decay_low = two_words(
            (left.log_decay, left.log_decay_low), (right.log_decay, right.log_decay_low)
        )
    if left.maximum is not None:
        maximum = backend.namespace(left.maximum).maximum(left.maximum, right.maximum)
        of_left, of_right = (_exp(backend, (x.maximum - maximum)[..., None]) for x in (left, right))
    numerator, numerator_low = two_words(
        _times(backend, (left.numerator, left.numerator_low), of_left),
        _times(backend, (right.numerator, right.numerator_low), of_right),
    )
    normaliser = normaliser_low = None
    if left.normaliser is not None:
        normaliser, normaliser_low = two_words(
            _times(backend, (left.normaliser, left.normaliser_low), of_left),
            _times(backend, (right.normaliser, right.normaliser_low), of_right),
        )
    return State(
        numerator,
        numerator_low,
        normaliser,
        normaliser_low,
        log_decay,
        log_decay_low,
        None,
        maximum,
        right.position,
    )


def _through(left: State, right: State) -> State:
    """Return the state of two segments under the delta rule."""
    if not right.transition.shape[-1]:
        raise ValueError(
            "right: got a state that prefill or step handed over, expected one of segment: it "
            "says what its tokens make of the state before them"
        )
    matmul = exact.matmul
    if dtype_name(right.numerator) != "float32":
        matmul = backends.owner_of(right.numerator).namespace(right.numerator).matmul
    passed = [matmul(right.transition, x) for x in (left.numerator, left.numerator_low)]
    transition = left.transition
    if transition.shape[-1]:
        transition = matmul(right.transition, transition)
    high, low = two_words((passed[0], passed[1]), (right.numerator, right.numerator_low))
    return right._replace(numerator=high, numerator_low=low, transition=transition)


def _times(backend: Backend, words: tuple[Any, Any], factor: Any) -> tuple[Any, Any]:
    """Return sums in two words, whose third axis is features, times a factor of these."""
    high, low = words
    if factor is None:
        return words
    if high.ndim == 4:
        factor = factor[..., None]
    return backend.product(high, factor), backend.product(low, factor)


def two_words(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the sum of two numbers of two words each."""
    total, error = two_sum(x[0], y[0])
    return total, (x[1] + y[1]) + error


def _exp(backend: Backend, x: Any) -> Any:
    """Return e^x where rounding alone makes x positive."""
    xp = backend.namespace(x)
    x = xp.minimum(x, xp.zeros_like(x))
    return exact.exp(x) if dtype_name(x) == "float32" else xp.exp(x)


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
        if field == "transition" and not (x.shape[-1] and like.shape[-1]):
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

"""Tables of frequencies that are arrays: learned ones, with gradients, and mixed axes.

    angle_i = Σ_a p_a·ω_{a,i}                 (RoPE-ViT "mixed", Heo et al., arXiv 2403.13298)

The angle is summed in float64, an axis at a time; cos and sin of that number are faithful to the
last bit, by the same algorithm as all other tables.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary import backends, rotation, tables
from rotary.checks import whole
from rotary.dtypes import dtype_name
from rotary.host import known_now
from rotary.positions import LIMIT, check_dtype, read


def cos_sin(
    positions: Any, inv_freq: Any, *, axes: int | None = None, like: Any = None
) -> tuple[Any, Any]:
    """Return the tables cos and sin of frequencies held in an array, for :func:`rotary.rotate`.

    Differentiable in the frequencies, on libraries that differentiate; positions pass no gradient
    on, except that of fractional ones in JAX.

    Parameters
    ----------
    positions : array or list, shape (seq,) or (batch, seq)
        Whole or fractional numbers up to ±2^53; with `axes` (axes, seq) or (axes, batch, seq).
    inv_freq : array, shape (pairs,) or (heads, pairs)
        ω in radians per position, float32 or float64; with `axes` (axes, pairs) or (axes, heads,
        pairs): the angle is then the sum over the axes.
    axes : int, optional
        Number of position axes, in front of both arrays.
    like : array, optional
        The tables come in the dtype in which it rotates; inv_freq by default.

    Returns
    -------
    cos, sin : array, shape (seq, pairs) or (batch, seq, pairs)
        With frequencies by head (1 or batch, heads, seq, pairs), for x of (batch, heads, seq, dim).

    Raises
    ------
    TypeError
        For 16-bit frequencies or positions, arrays of another kind or library.
    ValueError
        For shapes that do not meet, NaN, infinity, angles beyond ±2^53 radians; where only a
        compiled program knows the values, such angles give NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> mixed = np.array([[1.0, 0.5], [0.25, 2.0]], np.float32)  # (axes, pairs)
    >>> cos, sin = rotary.cos_sin(rotary.axes.grid(2, 3), mixed, axes=2)
    >>> cos.shape  # (seq, pairs)
    (6, 2)
    >>> bool(np.isclose(cos[4, 1], np.cos(1 * 0.5 + 1 * 2.0)))  # row 1, column 1
    True
    """
    like = inv_freq if like is None else like
    backend = backends.owner_of(like, "inv_freq" if like is inv_freq else "like")
    if like is not inv_freq:
        rotation.check_same_place("inv_freq", inv_freq, "like", like, backend)
    if dtype_name(inv_freq) not in ("float32", "float64"):
        raise TypeError(f"inv_freq: got dtype {dtype_name(inv_freq)}, expected float32 or float64")
    dtype = rotation.compute_dtype("like", like)
    if axes is not None:
        axes = whole("axes", axes)
    if known_now(positions, backend):
        # Once for all: libraries would truncate, round or refuse lists in ways of their own.
        positions = read(positions, backend, "positions")
    both = backend.learned_tables(positions, inv_freq, axes, dtype)
    if both is None:
        check(positions, inv_freq, axes)
        host = on_host(positions, backend.to_host(inv_freq), axes, dtype)
        # A traced `like` gets the host's array, which does not meet it yet.
        both = backend.namespace(like).asarray(backend.to_device(host, like), copy=True)
    return both[0, ...], both[1, ...]


def check(positions: Any, inv_freq: Any, axes: int | None) -> None:
    """Raise unless arrays of positions and frequencies meet; their values are not looked at."""
    check_dtype("positions", dtype_name(positions))
    leading = () if axes is None else (axes,)
    words = "" if axes is None else "axes, "
    end = "," if axes is None else ""
    for name, shape, expected in (
        ("positions", positions.shape, f"({words}seq{end}) or ({words}batch, seq)"),
        ("inv_freq", inv_freq.shape, f"({words}pairs{end}) or ({words}heads, pairs)"),
    ):
        if tuple(shape[: len(leading)]) != leading or len(shape) - len(leading) not in (1, 2):
            many = "" if axes is None else f" with axes = {axes}"
            raise ValueError(f"{name}: got shape {tuple(shape)}, expected {expected}{many}")


def table_shape(
    positions: tuple[int, ...], inv_freq: tuple[int, ...], axes: int | None
) -> tuple[int, ...]:
    """Return the shape of cos, from shapes that were checked."""
    if axes is not None:
        positions, inv_freq = positions[1:], inv_freq[1:]
    if len(inv_freq) == 1:
        return (*positions, *inv_freq)
    batch = positions[:-1] or (1,)
    return (*batch, inv_freq[0], positions[-1], inv_freq[-1])


def _by_axis(positions: Any, inv_freq: Any, axes: int | None) -> list[tuple[Any, Any]]:
    """Return p and ω of every axis, in shapes that broadcast to that of the tables."""
    if axes is None:
        each = [(positions, inv_freq)]
    else:
        each = [(positions[a, ...], inv_freq[a, ...]) for a in range(axes)]
    if each[0][1].ndim == 1:
        return [(p[..., None], w) for p, w in each]
    # (1 or batch, 1, seq, 1) and (heads, 1, pairs)
    rows = (None, None) if each[0][0].ndim == 1 else (slice(None), None)
    return [(p[(*rows, slice(None), None)], w[:, None, :]) for p, w in each]


def _angles(
    positions: Any, inv_freq: Any, axes: int | None, product: Callable[[Any, Any], Any]
) -> Any:
    """Return Σ p·ω, summed in the order of the axes."""
    terms = [product(p, w) for p, w in _by_axis(positions, inv_freq, axes)]
    return functools.reduce(operator.add, terms)


def on_host(
    positions: npt.NDArray[np.float64], inv_freq: npt.NDArray[Any], axes: int | None, dtype: str
) -> npt.NDArray[Any]:
    """Return cos and sin, shape (2, …, pairs)."""
    if not np.isfinite(inv_freq).all():
        raise ValueError("inv_freq: got NaN or infinity, expected finite numbers")
    angles = _angles(positions, inv_freq.astype(np.float64), axes, np.multiply)
    most = float(np.abs(angles).max(initial=0.0))
    if most > LIMIT:
        raise ValueError(f"inv_freq: got angles up to {most} radians, expected at most 2^53")
    return tables.evaluate(tables.ONE_RADIAN, angles, dtype)[..., 0]


def in_program(
    positions: Any,
    inv_freq: Any,
    axes: int | None,
    dtype: str,
    *,
    xp: Any,
    product: Callable[[Any, Any], Any],
    asarray: Callable[[Any], Any] | None = None,
    take: Callable[[Any, Any], Any] = operator.getitem,
) -> Any:
    """Return cos and sin, shape (2, …, pairs), as a part of a program that is being compiled.

    positions and inv_freq are float64; for the rest see :func:`rotary.tables.in_program`.
    """
    angles = _angles(positions, inv_freq, axes, product)
    both = tables.in_program(
        tables.ONE_RADIAN, angles, dtype, 1, xp=xp, product=product, asarray=asarray, take=take
    )[..., 0]
    # A comparison is false for NaN, too.
    return xp.where(xp.abs(angles) <= LIMIT, both, xp.asarray(np.nan, dtype=both.dtype))


def tangent(both: Any, positions: Any, along: Any, axes: int | None, xp: Any) -> Any:
    """Return the derivative of cos and sin, shape (2, …, pairs), as frequencies move `along`."""
    angle = _angles(positions, along, axes, lambda p, w: p * w)
    return xp.stack([-both[1, ...], both[0, ...]]) * angle


def pullback(
    both: Any, cotangent: Any, positions: Any, inv_freq: Any, axes: int | None, xp: Any
) -> Any:
    """Return the gradient by the frequencies, of their shape, from that by cos and sin."""
    by_angle = cotangent[1, ...] * both[0, ...] - cotangent[0, ...] * both[1, ...]
    gradients = []
    for p, w in _by_axis(positions, inv_freq, axes):
        terms = by_angle * p
        # What ω was broadcast along: all but the pairs, and the heads if it has them.
        kept = (terms.ndim - 1,) if w.ndim == 1 else (terms.ndim - 3, terms.ndim - 1)
        others = tuple(i for i in range(terms.ndim) if i not in kept)
        gradients.append(xp.sum(terms, axis=others))
    return gradients[0] if axes is None else xp.stack(gradients)

"""A case as a call of the library under test, and the answer that the oracle expects of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import rotary
from rotary import backends
from rotary.conformance import axes_oracle, oracle
from rotary.conformance.cases import Case

Make = Callable[..., Any]
"""Makes what is under test from the arguments of ``RotaryEmbedding``."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def function(case: Case, make: Make, dtype: str) -> Callable[..., Any]:
    """Return the call under test: a function of one array of that dtype (and ``out``).

    Where the case has an argument that is traced, it is the function's second array.
    """
    rope = make(**case.embedding)
    arguments = dict(case.arguments)
    if case.kind == "tables":
        where = case.where
        return lambda like, positions=where: rope.tables(positions, like=like, **arguments)
    if case.traced:
        (name,) = case.traced
        return lambda x, given, **out: rope(x, **{name: given}, **arguments, **out)
    if case.call == "inverse":
        return lambda x, **out: rope.inverse(x, **arguments, **out)
    if case.call == "shift":
        return lambda x: rope.shift(x, **arguments)
    if case.call == "query and key":
        return lambda x: _query_and_key(rope, x)
    if case.call == "strided":
        return lambda x: rope(x[..., ::2, :, :], **arguments)
    if case.call == "converted":
        other = make(**{**case.embedding, "layout": "interleaved"})
        return lambda x: _converted(case, other, x)
    if case.call == "rotate by head":
        return lambda x: _rotate_by_head(case, rope, x)
    return lambda x, **out: rope(x, **arguments, **out)


def _query_and_key(rope: Any, x: Any) -> Any:
    """Rotate all heads as queries and, in the same call, the first two as keys; join them."""
    xp = backends.owner_of(x).namespace(x)
    return xp.concat(list(rope(x, x[:, :2, ...])), axis=1)


def _converted(case: Case, other: Any, x: Any) -> Any:
    """Rotate in the other layout, between two conversions of the features."""
    geometry = {name: case.embedding[name] for name in ("head_dim", "rotary_dim", "rotary_side")}
    y = other(rotary.convert_layout(x, to="interleaved", axis=-1, **geometry))
    return rotary.convert_layout(y, to="half", axis=-1, **geometry)


def _rotate_by_head(case: Case, rope: Any, x: Any) -> Any:
    """Rotate by tables of x's rank."""
    xp = backends.owner_of(x).namespace(x)
    axis = -3 if case.head_first else -2
    tables = rope.tables(case.where, like=x)
    return rotary.rotate(x, *(xp.expand_dims(table, axis=axis) for table in tables))


def table_function(case: Case) -> Callable[..., Any]:
    """Return rotation as a function of x, cos and sin."""
    layout = case.embedding.get("layout", "half")
    return lambda x, cos, sin: rotary.rotate(x, cos, sin, layout=layout)


def inputs(case: Case, dtype: str, elements: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return x and a direction for its derivatives."""
    rng, shape = case.random(), case.shape(elements)
    kind = numpy_dtype(dtype)
    direction = rng.standard_normal(shape, np.float32).astype(kind)
    if case.values == "normal":
        x = rng.standard_normal(shape, np.float32) * 2.0 ** rng.integers(-4, 5, shape)
    elif case.values == "special":
        x = rng.standard_normal(shape)
        chosen = rng.random(shape)
        for share, value in enumerate((0.0, -0.0, np.inf, -np.inf, np.nan)):
            x[(chosen > 0.1 * share) & (chosen < 0.1 * share + 0.05)] = value
    elif case.values == "subnormal":
        # ml_dtypes leaves it untyped.
        info = ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
        # Below half the smallest normal number, so that sums of two stay subnormal.
        x = rng.uniform(-0.5, 0.5, shape) * float(info.smallest_normal)
        return x.astype(kind), direction
    else:
        x = _cancelling(case, shape, rng)
    return x.astype(kind), direction


def _cancelling(case: Case, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """x1·cos − x2·sin nearly zero: what is left is the rounding of the products."""
    cos, sin = _broadcast(oracle.tables(case.angles, case.where).high, case)
    first, second = _pairs(case)
    x = rng.standard_normal(shape)
    scale = rng.standard_normal((*shape[:-1], len(first)))
    x[..., first], x[..., second] = scale * sin, scale * cos
    return x


def expected(
    case: Case, quantity: str, x: npt.NDArray[Any], direction: npt.NDArray[Any], tables: Any
) -> npt.NDArray[Any]:
    """Return what must come out, from tables (cos, sin) of the dtype in which x rotates."""
    cos, sin = _broadcast(tables, case)
    inverse = case.call == "inverse"

    def rotated(x: npt.NDArray[Any], inverse: bool) -> npt.NDArray[Any]:
        return oracle.rotate(x, cos, sin, _pairs(case), inverse=inverse)

    if case.call == "strided":
        return rotated(x[..., ::2, :, :], inverse)
    if case.call == "query and key" and quantity == "value":
        return np.concatenate([rotated(x, inverse), rotated(x[:, :2], inverse)], axis=1)
    if quantity == "adjoint":
        return rotated(direction, not inverse)
    if quantity == "tangent":
        return rotated(direction, inverse)
    if quantity == "chain":
        return rotated(rotated(x, inverse), inverse)
    return rotated(x, inverse)


def expected_table_gradient(
    case: Case, x: npt.NDArray[Any], direction: npt.NDArray[Any]
) -> tuple[Any, Any]:
    """Return the gradients by (cos, sin), and a bound on the error of each, (2, seq, pairs).

    A sum of n products, whatever its order, is off by at most n·u·Σ|terms|, u half an ulp of 1.
    """
    first, second = _pairs(case)
    wide_x, wide_d = x.astype(np.float64), direction.astype(np.float64)
    x1, x2, d1, d2 = (
        wide_x[..., first],
        wide_x[..., second],
        wide_d[..., first],
        wide_d[..., second],
    )
    terms = np.stack([np.stack([d1 * x1, d2 * x2]), np.stack([d2 * x1, -d1 * x2])])
    others = tuple(range(1, terms.ndim - 2))
    count = 2 * int(np.prod([terms.shape[i] for i in others[1:]]))
    unit = float(np.finfo(x.dtype).eps) / 2
    return terms.sum(axis=others), count * unit * np.abs(terms).sum(axis=others)


def _pairs(case: Case) -> tuple[Any, Any]:
    e = case.embedding
    return oracle.pair_indices(
        case.head_dim,
        case.angles.rotary_dim,
        e.get("layout", "half"),
        e.get("rotary_side", "leading"),
        None if e.get("axes") is None else axes_oracle.blocks(vars(e["axes"])),
    )


def _broadcast(tables: Any, case: Case) -> tuple[npt.NDArray[Any], ...]:
    """Insert the head axis into each table of (…, seq, pairs)."""
    axis = -3 if case.head_first else -2
    return tuple(np.expand_dims(table, axis) for table in tables)

"""Tables as a part of a JAX program: for positions that it alone knows, or for very many of them.

float64 is switched on for the tables alone, whatever the caller's setting.  No memory in proportion
to the context: only the rows of the call at hand exist while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rotary.backends import owner_of
from rotary.backends._jax_rounded import finite_product
from rotary.backends._protocol import Wanted

# Larger tables would bloat the program as constants.
_CONSTANT_BYTES = 4 * 2**20


def exceeds_constant(rows: Any, pairs: int) -> bool:
    """Whether the tables of these rows are too large for a constant of the program."""
    return rows.seq is not None and rows.seq * pairs * 2 * 4 > _CONSTANT_BYTES


def of_traced(rows: Any, wanted: Wanted) -> Any:
    """Return cos and sin, shape (2, …, pairs), of traced positions or of a traced offset."""
    # Late, here and below, since positions and tables stand above the backends.
    from rotary.positions import check_deferred

    given = rows.given
    check_deferred(rows, str(given.dtype), given.shape)
    steps = None if rows.positions is not None else rows.seq
    whole = jnp.issubdtype(given.dtype, jnp.integer)
    return (_of_given if whole else _of_fractional)(given, steps, wanted)


def of_host(rows: Any, wanted: Wanted, like: Any) -> Any:
    """Return cos and sin, shape (2, …, pairs), of positions known now."""
    from rotary.frequencies import named
    from rotary.positions import Span, read_rows
    from rotary.tables import check_range

    where = read_rows(rows, owner_of(like))
    frequencies = named(wanted.token, wanted.length)
    check_range(frequencies, where, wanted.dtype, wanted.power, wanted.role)

    def positions(zero: Any) -> Any:
        if not isinstance(where, Span):
            return zero + jnp.asarray(where)
        return zero + where.start + jnp.arange(where.length, dtype=jnp.float64)

    # An operand keeps XLA from computing the whole table at compile time.
    return _in_program(positions, lax.optimization_barrier(jnp.int32(0)), wanted)


def _of_given(given: Any, steps: int | None, wanted: Wanted) -> Any:
    from rotary.positions import counted_from

    def positions(given: Any) -> Any:
        if steps is None:
            return given
        return counted_from(given, jnp.arange(steps, dtype=jnp.float64), wanted.axes)

    return _in_program(positions, given, wanted)


# Differentiating error-free transformations would cost much and say nothing.
_of_fractional = jax.custom_jvp(_of_given, nondiff_argnums=(1, 2))


@_of_fractional.defjvp
def _(steps: int | None, wanted: Wanted, primals: Any, tangents: Any) -> tuple[Any, Any]:
    from rotary.frequencies import named
    from rotary.positions import counted_from
    from rotary.tables import tangent

    both = _of_fractional(*primals, steps, wanted)
    along = tangents[0] if steps is None else counted_from(tangents[0], jnp.zeros(1), wanted.axes)
    return both, tangent(named(wanted.token, wanted.length), both, along, wanted.role, jnp)


def _in_program(positions: Callable[[Any], Any], operand: Any, wanted: Wanted) -> Any:
    """Return cos and sin of positions(operand), a function that is given float64 and returns it."""
    from rotary.frequencies import named
    from rotary.tables import in_program

    frequencies = named(wanted.token, wanted.length)

    def compute(operand: Any) -> Any:
        with jax.enable_x64(True):
            where = positions(lax.convert_element_type(operand, jnp.float64))
            return in_program(
                frequencies,
                where,
                wanted.dtype,
                wanted.power,
                wanted.role,
                xp=jnp,
                product=finite_product,
            )

    return _once(compute, operand)


def of_frequencies(positions: Any, inv_freq: Any, axes: int | None, dtype: str) -> Any:
    """Return cos and sin, shape (2, …, pairs), of frequencies or positions that are traced."""
    from rotary.angles import check, in_program, tangent
    from rotary.positions import read

    host = None
    if not isinstance(positions, jax.core.Tracer):
        # float64 constants: as arguments they would become float32 where x64 is off.
        host = read(positions, owner_of(inv_freq), "positions")
    check(positions if host is None else host, inv_freq, axes)

    def compute(operand: Any) -> Any:
        with jax.enable_x64(True):
            omega, *where = (lax.convert_element_type(x, jnp.float64) for x in operand)
            # Not a constant: the guard of its products would be folded away.
            given = where[0] if where else lax.optimization_barrier(jnp.asarray(host))
            return in_program(given, omega, axes, dtype, xp=jnp, product=finite_product)

    @jax.custom_jvp
    def tables(*operand: Any) -> Any:
        return _once(compute, operand)

    @tables.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        both = tables(*primals)
        omega, where = primals[0], primals[1] if host is None else host
        change = tangent(both, jnp.asarray(where, both.dtype), tangents[0], axes, jnp)
        if host is None and jnp.issubdtype(where.dtype, jnp.floating):
            change = change + tangent(both, tangents[1], omega, axes, jnp)
        return both, change.astype(both.dtype)

    return tables(inv_freq) if host is not None else tables(inv_freq, positions)


def _once(compute: Callable[[Any], Any], operand: Any) -> Any:
    return lax.platform_dependent(operand, cpu=partial(_apart, compute), default=compute)


def _apart(function: Callable[[Any], Any], x: Any) -> Any:
    """Return function(x), computed once: XLA on CPU would repeat it for each user, head by head.

    It fuses through an optimization barrier, but not into a branch.  Measured for tables and the
    rotation of 32 heads: 1.1 times the time with a constant table; without this, 12 times.
    """
    result = jax.eval_shape(function, x)
    always = lax.optimization_barrier(jnp.asarray(True))

    def never(_: Any) -> Any:
        return varying(jnp.zeros(result.shape, result.dtype), axes_of(result))

    return lax.cond(always, function, never, x)


def axes_of(kind: Any) -> frozenset[Any]:
    """Return the axes of a ``jax.shard_map`` along which an array of that type varies."""
    kind = getattr(kind, "mat", getattr(kind, "manual_axis_type", None))
    return getattr(kind, "varying", frozenset())


def varying(x: Any, axes: frozenset[Any]) -> Any:
    """Return x as an array that varies along those axes of a ``jax.shard_map``, too."""
    axes -= axes_of(jax.typeof(x))
    return lax.pcast(x, tuple(axes), to="varying") if axes else x

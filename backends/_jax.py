"""JAX, eager and compiled, x64 off or on.

XLA contracts a product with the sum that follows: under ``jax.jit`` a quarter of a rotation's
elements would change.  Adding a zero that the compiler cannot see through keeps the product
rounded.  Plain differentiation would lose that guard in the gradient, so two primitives carry it:
`rounded`, whose transpose is the identity below, and an identity whose transpose is `rounded`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

name = "jax"


def namespace(x: jax.Array) -> Any:
    """Return jax.numpy."""
    return jnp


def device_key(x: jax.Array) -> Hashable | None:
    """Return x's sharding, and whether it is bound to it."""
    return None if is_traced(x) else (_replicated(x), x.committed)


def same_device(x: jax.Array, other: jax.Array) -> bool:
    """Whether x and other share their devices, or JAX is free to choose them for one."""
    if is_traced(x) or is_traced(other) or not (x.committed and other.committed):
        return True
    return x.sharding.device_set == other.sharding.device_set


def is_traced(x: jax.Array) -> bool:
    """Whether x is a tracer."""
    return isinstance(x, jax.core.Tracer)


def to_device(host: npt.NDArray[Any], like: jax.Array) -> Any:
    """Return host on all of like's devices; itself under tracing, where it becomes a constant."""
    if is_traced(like):
        return host
    # Within somebody's jit a new array would be a tracer, and the cache would leak it.
    with jax.ensure_compile_time_eval():
        array = jax.device_put(host, _replicated(like)) if like.committed else jnp.asarray(host)
    if array.dtype != host.dtype:
        raise TypeError(f"dtype: {host.dtype} is not available in JAX without jax_enable_x64")
    return array


def to_host(x: jax.Array) -> npt.NDArray[Any]:
    """Return x's values as a NumPy array, waiting for its device."""
    return np.asarray(x)


def product(x: Any, factor: Any) -> Any:
    """x·factor, rounded before anything is added to it; so are its gradients."""
    return _rounded.bind(_rounded_cotangent.bind(jnp.asarray(x)) * factor)


def widen(x: jax.Array, dtype: str) -> jax.Array:
    """Return x in the dtype of that name."""
    return x.astype(dtype)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """Return x rounded to a 16-bit dtype."""
    return x.astype(dtype)


def deferred_tables(
    token: str, pairs: int, rows: Any, dtype: str, factor: float, like: jax.Array
) -> tuple[Any, Any] | None:
    """Return tables computed by the program itself, where it alone knows the positions."""
    # Late, since positions and tables stand above the backends.
    from rotary.positions import check_deferred

    given = rows.given
    if not is_traced(given):
        return None
    check_deferred(rows, str(given.dtype), given.shape)
    steps = None if rows.positions is not None else rows.seq
    compute = _whole_tables if jnp.issubdtype(given.dtype, jnp.integer) else _tables
    both = compute(given, steps, token, dtype, factor)
    return both[0], both[1]


def _whole_tables(given: Any, steps: int | None, token: str, dtype: str, factor: float) -> Any:
    from rotary.frequencies import Frequencies
    from rotary.tables import in_program

    def compute(given: Any) -> Any:
        # float64 within, whatever the caller's setting is.
        with jax.enable_x64(True):
            positions = lax.convert_element_type(given, jnp.float64)
            if steps is not None:
                positions = positions[..., None] + jnp.arange(steps, dtype=jnp.float64)
            frequencies = Frequencies.from_token(token)
            return in_program(
                frequencies, positions, dtype, factor, xp=jnp, product=_finite_product
            )

    return lax.platform_dependent(given, cpu=partial(_apart, compute), default=compute)


def _apart(function: Callable[[Any], Any], x: Any) -> Any:
    """Return function(x), computed once: XLA on CPU would repeat it for each user, head by head.

    It fuses through an optimization barrier, but not into a branch.  Measured for tables and the
    rotation of 32 heads: 1.1 times the time with a constant table; without this, 12 times.
    """
    result = jax.eval_shape(function, x)
    always = lax.optimization_barrier(jnp.asarray(True))
    return lax.cond(always, function, lambda _: jnp.zeros(result.shape, result.dtype), x)


# Differentiating error-free transformations would cost much and say nothing.
_tables = jax.custom_jvp(_whole_tables, nondiff_argnums=(1, 2, 3, 4))


@_tables.defjvp
def _(
    steps: int | None, token: str, dtype: str, factor: float, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    from rotary.frequencies import Frequencies
    from rotary.tables import slope

    both = _tables(*primals, steps, token, dtype, factor)
    each = tangents[0][..., None] if steps is None else tangents[0][..., None, None]
    return both, slope(Frequencies.from_token(token), both, jnp) * each.astype(both.dtype)


def _finite_product(x: Any, factor: Any) -> Any:
    """x·factor, rounded in every expression: LLVM sees through a constant zero in most of them."""
    return x * factor + (x - x)


def refuse_out(out: Any, inputs: tuple[Any, ...]) -> str | None:
    """Say that arrays are immutable."""
    return "JAX arrays are immutable"


def synchronize(x: jax.Array) -> None:
    """Wait until x is computed."""
    x.block_until_ready()


def _replicated(x: jax.Array) -> Any:
    """Return the sharding under which each of x's devices holds a whole table."""
    if isinstance(x.sharding, NamedSharding):
        return NamedSharding(x.sharding.mesh, PartitionSpec())
    return x.sharding


def _guarded(x: Any) -> Any:
    return x + lax.optimization_barrier(jnp.zeros((), x.dtype))


def _identity(x: Any) -> Any:
    return x


def _linear_primitive(primitive_name: str, lowered: Callable[[Any], Any]) -> Primitive:
    """Return an elementwise primitive that is the identity when run eagerly."""
    primitive = Primitive(primitive_name)
    primitive.def_impl(_identity)
    primitive.def_abstract_eval(_identity)
    mlir.register_lowering(primitive, mlir.lower_fun(lowered, multiple_results=False))
    batching.defvectorized(primitive)
    return primitive


def _set_transpose(primitive: Primitive, transpose: Primitive) -> None:
    def rule(cotangent: Any, _: Any) -> list[Any]:
        return [cotangent if type(cotangent) is ad.Zero else transpose.bind(cotangent)]

    ad.deflinear2(primitive, rule)


_rounded = _linear_primitive("rotary_rounded", _guarded)
_rounded_cotangent = _linear_primitive("rotary_rounded_cotangent", _identity)
_set_transpose(_rounded, _rounded_cotangent)
_set_transpose(_rounded_cotangent, _rounded)

"""JAX, eager and compiled, x64 off or on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import NamedSharding, PartitionSpec

from rotary.backends import _jax_tables
from rotary.backends._jax_rounded import rounded, rounded_cotangent
from rotary.backends._protocol import Wanted

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
    return rounded.bind(rounded_cotangent.bind(jnp.asarray(x)) * factor)


def widen(x: jax.Array, dtype: str) -> jax.Array:
    """Return x in the dtype of that name."""
    return x.astype(dtype)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """Return x rounded to a 16-bit dtype."""
    return x.astype(dtype)


def deferred_tables(wanted: Wanted, rows: Any, like: jax.Array) -> tuple[Any, Any] | None:
    """Return tables that the program computes: it alone knows the positions, or they are many."""
    if is_traced(rows.given):
        both = _jax_tables.of_traced(rows, wanted)
    elif is_traced(like) and _jax_tables.exceeds_constant(rows, wanted.pairs):
        both = _jax_tables.of_host(rows, wanted, like)
    else:
        return None
    return both[0], both[1]


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

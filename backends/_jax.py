"""JAX, eager and compiled, x64 off or on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from rotary.backends import _jax_rotation, _jax_tables
from rotary.backends._jax_rounded import finite_product, rounded, rounded_cotangent
from rotary.backends._protocol import Operation, Turn, Wanted

__all__ = ["finite_product"]

name = "jax"


def namespace(x: jax.Array) -> Any:
    """Return jax.numpy."""
    return jnp


def device_key(x: jax.Array) -> Hashable | None:
    """Return x's sharding, and whether it is bound to it; under tracing the host itself."""
    return "host" if is_traced(x) else (_replicated(x), x.committed)


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
        host.flags.writeable = False
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


def rotate(
    arrays: tuple[jax.Array, ...], cos: Any, sin: Any, turn: Turn, outs: None
) -> tuple[jax.Array, ...]:
    """Rotate by one program, compiled for eager calls or a part of the caller's."""
    return _jax_rotation.rotate(arrays, cos, sin, turn)


def rows(pair: tuple[Any, Any], start: int, stop: int) -> tuple[Any, Any]:
    """Return rows start … stop − 1 of two tables, by one program for every start."""
    if not isinstance(pair[0], jax.Array) or is_traced(pair[0]):
        return pair[0][start:stop, :], pair[1][start:stop, :]
    with _jax_rotation.in_its_dtype(pair[0]):
        both: tuple[Any, Any] = _sliced(pair, start, stop - start)
    return both


@partial(jax.jit, static_argnums=2)
def _sliced(pair: tuple[Any, Any], start: Any, length: int) -> tuple[Any, Any]:
    cos, sin = (lax.dynamic_slice_in_dim(table, start, length) for table in pair)
    return cos, sin


def linear_chunks(chunked: Any, inputs: Any, sums: Any) -> Any:
    """Return None: the loop over chunks is compiled already."""
    return None


def bits(x: jax.Array) -> jax.Array:
    """Return the bit patterns of float32 numbers."""
    return lax.bitcast_convert_type(x, jnp.int32)


def from_bits(pattern: jax.Array) -> jax.Array:
    """Return the float32 numbers of bit patterns."""
    return lax.bitcast_convert_type(pattern, jnp.float32)


def scan(
    step: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]], carry: Any, inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Run a loop of the program along the first axis of every input."""
    carry, outs = lax.scan(step, carry, inputs)
    return carry, outs


def custom_gradient(
    forward: Callable[..., tuple[Any, ...]], backward: Callable[..., tuple[Any, ...]]
) -> Callable[..., tuple[Any, ...]]:
    """Return forward with the gradient of backward, in reverse mode."""

    def remember(*inputs: Any) -> tuple[Any, Any]:
        outputs = function(*inputs)  # not forward: outputs are differentiated in their turn
        return outputs, (inputs, outputs)

    def pull_back(kept: Any, cotangents: Any) -> tuple[Any, ...]:
        return tuple(backward(*kept, cotangents))

    function = jax.custom_vjp(forward)
    function.defvjp(remember, pull_back)
    return function


def apply(operation: Operation, static: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operation, compiled: eager loops would be compiled anew by every call."""
    outputs: tuple[Any, ...] = _compiled(operation, static)(*inputs)
    return outputs


@lru_cache(maxsize=256)
def _compiled(operation: Operation, static: str) -> Callable[..., tuple[Any, ...]]:
    forward, backward = partial(operation.forward, static), partial(operation.backward, static)
    return jax.jit(custom_gradient(forward, backward))


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


def learned_tables(positions: Any, inv_freq: Any, axes: int | None, dtype: str) -> Any | None:
    """Return tables that the program computes, where it alone knows one of them."""
    if is_traced(positions) or is_traced(inv_freq):
        return _jax_tables.of_frequencies(positions, inv_freq, axes, dtype)
    return None


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

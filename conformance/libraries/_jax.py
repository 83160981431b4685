"""JAX: eager, jitted, vmapped, scanned, sharded, differentiated both ways; x64 off and on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rotary.conformance.libraries import CannotRunError, Function, Library, Way

if "jax" not in sys.modules and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
    # Two devices on the host, so that sharded programs can be run on any machine.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2".strip()

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DEVICES = ("cpu", "cuda")
_NEEDS_X64 = {"float64": "JAX has no float64 with x64 off"}


def library(device: str | None = None) -> Library:
    """Return JAX on a device, by default its own default, or raise :class:`CannotRunError`."""
    try:
        devices = jax.devices(device)
    except RuntimeError as error:
        name = "CUDA" if device == "cuda" else device
        raise CannotRunError(f"jax finds no {name} device") from error
    version, one_device = jax.__version__, None
    if len(devices) < 2:
        one_device = "one device only; XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two"
    if devices[0].platform != "cpu":
        version = f"{version} on {devices[0].device_kind}"
        one_device = one_device and "one device only"
    on = partial(_on, devices[0])
    ways = []
    for name, quantity, run in (
        ("eager", "value", _eager),
        ("compiled", "value", _compiled),
        ("compiled chain", "chain", _compiled_chain),
        ("vmapped", "value", _vmapped),
        ("scanned", "value", _scanned),
        ("gradient", "adjoint", _gradient),
        ("compiled gradient", "adjoint", _compiled_gradient),
        ("vmapped gradient", "adjoint", _vmapped_gradient),
        ("compiled tangent", "tangent", _compiled_tangent),
        ("sharded", "value", _sharded),
    ):
        unavailable = one_device if run is _sharded else None
        run = partial(run, devices[:2]) if run is _sharded else run
        ways.append(Way(name, quantity, on(_with_x64(False, run)), _NEEDS_X64, unavailable))
        ways.append(Way(f"{name}, x64", quantity, on(_with_x64(True, run)), {}, unavailable))
    return Library(
        name="jax",
        version=version,
        dtypes=("float16", "bfloat16", "float32", "float64"),
        from_host=np.asarray,  # each way makes its own arrays, under its own x64 setting
        to_host=np.asarray,
        ways=tuple(ways),
        table_gradient=on(_with_x64(True, _table_gradient)),
    )


def _on(device: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    def there(*arguments: Any) -> Any:
        with jax.default_device(device):
            return run(*arguments)

    return there


def _with_x64(on: bool, run: Callable[..., Any]) -> Callable[..., Any]:
    def under(f: Function, *arrays: Any) -> Any:
        with jax.enable_x64(on):
            return jax.tree.map(np.asarray, run(f, *map(jnp.asarray, arrays)))

    return under


def _eager(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return f(x, *more)


def _compiled(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return jax.jit(f)(x, *more)


def _compiled_chain(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return jax.jit(lambda x, *more: f(f(x, *more), *more))(x, *more)


def _vmapped(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return jax.jit(_by_heads(f, 1, len(more)))(x, *more)


def _scanned(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    def by_heads(x: Any, *more: Any) -> Any:
        return lax.scan(lambda _, one: (None, f(one, *more)), None, jnp.moveaxis(x, 1, 0))[1]

    return jnp.moveaxis(jax.jit(by_heads)(x, *more), 0, 1)


def _pull_back(f: Function) -> Function:
    return lambda x, direction, *more: jax.vjp(lambda x: f(x, *more), x)[1](direction)[0]


def _gradient(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return _pull_back(f)(x, direction, *more)


def _compiled_gradient(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return jax.jit(_pull_back(f))(x, direction, *more)


def _vmapped_gradient(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    return jax.jit(_by_heads(_pull_back(f), 2, len(more)))(x, direction, *more)


def _compiled_tangent(f: Function, x: Any, direction: Any, *more: Any) -> Any:
    def push(x: Any, direction: Any, *more: Any) -> Any:
        return jax.jvp(lambda x: f(x, *more), (x,), (direction,))[1]

    return jax.jit(push)(x, direction, *more)


def _sharded(devices: Any, f: Function, x: Any, direction: Any, *more: Any) -> Any:
    mesh = Mesh(np.array(devices), ("heads",))
    split = NamedSharding(mesh, PartitionSpec(None, "heads"))
    return jax.jit(f)(jax.device_put(x, split), *more)


def _by_heads(f: Function, mapped: int, shared: int) -> Function:
    """Map f over axis 1 of its first arrays; the others are the same for all."""
    return jax.vmap(f, in_axes=(1,) * mapped + (None,) * shared, out_axes=1)


def _table_gradient(f: Function, x: Any, cos: Any, sin: Any, direction: Any) -> tuple[Any, Any]:
    def by_tables(cos: Any, sin: Any) -> Any:
        return f(x, cos, sin)

    gradients: tuple[Any, Any] = jax.jit(lambda c, s, d: jax.vjp(by_tables, c, s)[1](d))(
        cos, sin, direction
    )
    return gradients

"""Products that XLA does not contract with the sum that follows, nor in their gradients.

Under ``jax.jit`` a quarter of a rotation's elements would change.  Adding a zero that the compiler
cannot see through keeps the product rounded.  Plain differentiation would lose that guard in the
gradient, so two primitives carry it: `rounded`, whose transpose is `rounded_cotangent`, and
`rounded_cotangent`, an identity whose transpose is `rounded`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def _guarded(x: Any) -> Any:
    return x + lax.optimization_barrier(jnp.zeros((), x.dtype))


def _identity(x: Any) -> Any:
    return x


def _linear_primitive(name: str, lowered: Callable[[Any], Any]) -> Primitive:
    """Return an elementwise primitive that is the identity when run eagerly."""
    primitive = Primitive(name)
    primitive.def_impl(_identity)
    primitive.def_abstract_eval(_identity)
    mlir.register_lowering(primitive, mlir.lower_fun(lowered, multiple_results=False))
    batching.defvectorized(primitive)
    return primitive


def _set_transpose(primitive: Primitive, transpose: Primitive) -> None:
    def rule(cotangent: Any, _: Any) -> list[Any]:
        return [cotangent if type(cotangent) is ad.Zero else transpose.bind(cotangent)]

    ad.deflinear2(primitive, rule)


rounded = _linear_primitive("rotary_rounded", _guarded)
rounded_cotangent = _linear_primitive("rotary_rounded_cotangent", _identity)
_set_transpose(rounded, rounded_cotangent)
_set_transpose(rounded_cotangent, rounded)


def rounded_product(x: Any, factor: Any) -> Any:
    """x·factor, rounded before it is added to anything; what is differentiated needs the above."""
    return _guarded(x * factor)


def finite_product(x: Any, factor: Any) -> Any:
    """x·factor for finite x, rounded in whatever expression follows.

    The zero above is constant, which is enough for rotation; LLVM sees through it in a·b + constant
    and in every Horner step, but not through x − x.
    """
    return x * factor + (x - x)

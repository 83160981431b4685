"""Linear attention as one operation with its gradient, which compilers take whole.

All that is not an array is a string: what a compiled program keeps of a call.
"""

from __future__ import annotations

from ast import literal_eval
from functools import lru_cache
from typing import Any, NamedTuple

from rotary.backends import Backend, owner_of
from rotary.backends._protocol import Operation
from rotary.exact.products import LONGEST
from rotary.linear import chunks, feature_maps, gradients
from rotary.linear.arithmetic import arithmetic
from rotary.linear.chunks import Form, Inputs, Sums
from rotary.linear.feature_maps import Token

_MASK = Inputs._fields.index("mask")  # the one input that is not of floats


class Settings(NamedTuple):
    """A form by name: :class:`rotary.linear.chunks.Form` without its functions."""

    arithmetic: str
    input_dtype: str
    dtype: str
    chunk_size: int
    causal: bool
    feature_map: Token
    rotate: str | None
    layout: str
    rotary_side: str
    scale: float
    eps: float | None
    decays: bool
    delta: bool


def form(settings: Settings, backend: Backend) -> Form:
    """Return the form, for a library."""
    return Form(
        arithmetic(settings.arithmetic, backend),
        settings.dtype,
        settings.chunk_size,
        settings.causal,
        feature_maps.named(settings.feature_map),
        settings.rotate,
        settings.layout,
        settings.rotary_side,
        settings.scale,
        settings.eps,
        settings.decays,
        settings.delta,
    )


def run(settings: Settings, inputs: Inputs, sums: Sums) -> tuple[Any, Sums]:
    """Return outputs (None without queries) and the sums to carry on."""
    given = (*inputs, *sums)
    present = tuple(i for i, x in enumerate(given) if x is not None)
    arrays = tuple(given[i] for i in present)
    static = ", ".join([repr(x) for x in (*settings, *present)])
    results = list(owner_of(inputs.k).apply(OPERATION, static, arrays))
    out = results.pop(0) if inputs.q is not None else None
    return out, Sums(*(None if x is None else results.pop(0) for x in sums))


class _Static(NamedTuple):
    """What the string holds."""

    settings: Settings
    present: tuple[int, ...]
    """Which of the inputs and sums there are."""

    def restore(self, arrays: Any) -> tuple[Inputs, Sums]:
        """Return inputs and sums, with None for what is not there."""
        count = len(Inputs._fields)
        whole: list[Any] = [None] * (count + len(Sums._fields))
        for i, x in zip(self.present, arrays, strict=True):
            whole[i] = x
        return Inputs(*whole[:count]), Sums(*whole[count:])


@lru_cache(maxsize=256)
def _read(static: str) -> _Static:
    values = literal_eval(f"({static})")
    count = len(Settings._fields)
    return _Static(Settings(*values[:count]), values[count:])


def _forward(static: str, *arrays: Any) -> tuple[Any, ...]:
    settings, present = _read(static)
    inputs, sums = _Static(settings, present).restore(arrays)
    bound = form(settings, owner_of(inputs.k))
    found = chunks.fused(bound, settings.feature_map, inputs, sums)
    if found is None and inputs.q is None:
        found = None, chunks.absorb(bound, inputs, sums)
    out, after = chunks.run(bound, inputs, sums) if found is None else found
    return tuple(x for x in (out, *after) if x is not None)


def _backward(static: str, arrays: Any, _: Any, cotangents: Any) -> tuple[Any, ...]:
    settings, present = _read(static)
    inputs, sums = _Static(settings, present).restore(arrays)
    bound = form(settings, owner_of(inputs.k))
    if settings.arithmetic == "exact" and inputs.v.shape[-1] > LONGEST:
        raise ValueError(
            f"v: got value_dim = {inputs.v.shape[-1]}, expected at most {LONGEST} for the gradient "
            f"with arithmetic='exact'"
        )
    rest = list(cotangents)
    by_out = rest.pop(0) if inputs.q is not None else None
    by_sums = Sums(*(None if x is None else rest.pop(0) for x in sums))
    of_inputs, of_sums = gradients.pull_back(bound, inputs, sums, by_out, by_sums)
    found = (*of_inputs, *of_sums)
    zeros_like = bound.arithmetic.backend.namespace(inputs.k).zeros_like
    return tuple(
        zeros_like(x) if found[i] is None and i != _MASK else found[i]
        for i, x in zip(present, arrays, strict=True)
    )


def _shapes(static: str, *shapes: tuple[Any, ...]) -> tuple[tuple[tuple[Any, ...], str], ...]:
    settings, present = _read(static)
    inputs, sums = _Static(settings, present).restore(shapes)
    of_sums = tuple((tuple(x), settings.dtype) for x in sums if x is not None)
    if inputs.q is None:
        return of_sums
    return (((*inputs.q[:-1], inputs.v[-1]), settings.input_dtype), *of_sums)


OPERATION = Operation("rotary.linear.operation:OPERATION", _forward, _backward, _shapes)

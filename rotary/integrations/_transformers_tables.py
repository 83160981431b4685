"""Rotary modules of transformers: what one puts into its tables is found by asking it.

``rotary.from_config`` reads the module's config; the module, built anew from the same config, makes
tables at a few positions, and the arrangement in which exact tables agree with them stands for it.
A module whose tables agree in none is refused: its config is not what it computes.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

import rotary
from rotary.axes import Axial
from rotary.integrations._transformers_functions import WRITTEN
from rotary.scaling import LongRoPE

NAME = re.compile(r"\w*(?:Rotary|RoPE|RopePosition)(?!\w*Attention)\w*")
# Theirs are cos and sin of float32 products of float32 frequencies: an angle is off by a few
# 2^-24 of (1 + position).
ANGLE = 8 * 2.0**-24
_POSITIONS = (0, 1, 17, 1023)


class Refused(ValueError):  # noqa: N818  # a reason, which the caller puts into a sentence
    """Why a module cannot be replaced."""


@dataclass(frozen=True)
class Tables:
    """Exact tables in the arrangement of one rotary module, for one type of layers."""

    rope: rotary.RotaryEmbedding
    form: str
    """A key of WRITTEN, or "complex"."""
    backwards: bool = False
    """The module turns forwards and its apply function back: sin changes its sign (NanoChat)."""
    flipped: bool = False
    """The module takes positions with the width first."""
    leading: bool = False
    """The module puts an axis of length 1 before its tables."""

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """Return tables in float32, for a float64 x in float64, in the module's own shape."""
        like = x if x.is_floating_point() else x.float()
        cos, sin = self._columns(self._positions(position_ids), like)
        sin = -sin if self.backwards else sin
        cos, sin = (cos[None], sin[None]) if self.leading else (cos, sin)
        if self.form == "complex":
            return torch.complex(cos, sin)
        write = WRITTEN[self.form]
        return write(cos), write(sin)

    def _columns(self, positions: torch.Tensor, like: torch.Tensor) -> Any:
        """Return cos and sin, one column a pair."""
        rule = self.rope.scaling
        if rule is None or not rule.needs_length or not torch.compiler.is_compiling():
            return self.rope.tables(positions, like=like)
        if isinstance(rule, LongRoPE):
            length: Any = positions.max() + 1  # by which the graph chooses one of two tables
            return self.rope.tables(positions, like=like, seq_len=length)
        return _outside_the_graph(self.rope, positions, like)

    def _positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        axes = self.rope.axes
        if axes is None:
            return position_ids
        if not isinstance(axes, Axial):
            return position_ids.expand(axes.count, -1, -1)
        by_axis = torch.movedim(position_ids, -1, 0)
        return by_axis.flip(0) if self.flipped else by_axis


def _tables(rope: rotary.RotaryEmbedding, positions: torch.Tensor, like: torch.Tensor) -> Any:
    return rope.tables(positions, like=like)


# Frequencies that depend on the positions: a compiled graph does not know these.
_outside_the_graph: Any = torch.compiler.disable(_tables)


def tables_of(module: torch.nn.Module) -> dict[str | None, Tables]:
    """Return a module's tables by type of layer, under None where there is one; or raise Refused.

    The module itself is not called: a bfloat16 model's has lost its frequencies, one on the meta
    device has none, and one with a dynamic rule keeps what it has seen.
    """
    config = getattr(module, "config", None)
    parameters = tuple(inspect.signature(type(module).forward).parameters)[1:]
    if parameters not in (("x", "position_ids"), ("x", "position_ids", "layer_type")):
        raise Refused(
            f"makes its tables from ({', '.join(parameters)}), expected (x, position_ids)"
        )
    if config is None or not hasattr(config, "to_dict"):
        raise Refused("keeps no config")
    for name in module.state_dict():
        if not name.endswith("inv_freq"):  # these are compared (ESM keeps them in its checkpoints)
            raise Refused(f"has learned {name}, which its config does not tell")
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            fresh = type(module)(copy.deepcopy(config))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise Refused(f"is not built from its config alone: {error}") from error
    _check_frequencies(module, fresh)
    return {
        kind: _arranged(fresh, described(config, kind), kind)
        for kind in _layer_types(config, fresh)
    }


def _layer_types(config: Any, fresh: torch.nn.Module) -> list[str | None]:
    """Return the layer types that a module has frequencies for, or None for all."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [name for name, values in rope.items() if isinstance(values, dict)]
    return [name for name in nested if hasattr(fresh, f"{name}_inv_freq")] or [None]


def described(config: Any, layer_type: str | None = None) -> rotary.RotaryEmbedding:
    """Return the embedding that a config describes, or raise Refused."""
    values = config.to_dict()
    if layer_type is not None and layer_type not in (getattr(config, "layer_types", None) or ()):
        values["layer_types"] = [layer_type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # keys without effect: the module does not read them
            return rotary.from_config(values, layer_type=layer_type)
    except (TypeError, ValueError) as error:
        raise Refused(f"has a config that rotary does not read: {error}") from error


def _check_frequencies(module: torch.nn.Module, fresh: torch.nn.Module) -> None:
    """Raise Refused if somebody has given the module frequencies that its config does not tell."""
    expected = dict(fresh.named_buffers(recurse=False))
    for name, held in module.named_buffers(recurse=False):
        wanted = expected.get(name)
        # Without the first copy, the frequencies of a dynamic rule are those of the last call.
        if not name.endswith("inv_freq") or held.is_meta or wanted is None:
            continue
        if not name.endswith("original_inv_freq") and f"{_stem(name)}original_inv_freq" in expected:
            continue
        rtol = max(1e-5, 2 * torch.finfo(held.dtype).eps)
        if held.shape != wanted.shape or not torch.allclose(
            held.float().cpu(), wanted.float(), rtol=rtol, atol=torch.finfo(held.dtype).tiny
        ):
            raise Refused(f"holds another {name} than its config describes")


def _stem(name: str) -> str:
    return name.removesuffix("inv_freq")


def _arranged(fresh: torch.nn.Module, rope: rotary.RotaryEmbedding, kind: str | None) -> Tables:
    """Return the arrangement in which exact tables are the module's, or raise Refused."""
    forms, either = (*WRITTEN, "complex"), (False, True)
    towers = isinstance(rope.axes, Axial)
    closest = float("inf")
    for batched in either if towers else (False,):
        probes = [positions[None] if batched else positions for positions in _probes(rope)]
        asked = [(positions, _asked(fresh, positions, kind)) for positions in probes]
        for form, *flags in product(forms, either, either if towers else (False,), either):
            tables = Tables(rope, form, *flags)
            apart = max(_apart(theirs, tables, positions) for positions, theirs in asked)
            if apart <= 1:
                return tables
            closest = min(closest, apart)
    how = "of another shape" if closest == float("inf") else f"{closest:.0e} roundings apart"
    raise Refused(f"makes other tables than its config describes, {how}: {rope}")


def _probes(rope: rotary.RotaryEmbedding) -> Iterator[torch.Tensor]:
    """Yield position_ids: short ones, and long ones where the rule asks for the length."""
    start = torch.tensor(_POSITIONS)
    rule: Any = rope.scaling
    if rule is None or not rule.needs_length:
        yield _by_axis(rope, start)
        return
    context = int(rule.original_max_position_embeddings)
    yield _by_axis(rope, start.clamp(max=context - 1))
    yield _by_axis(rope, torch.tensor([0, 1, 17, context + 29]))


def _by_axis(rope: rotary.RotaryEmbedding, positions: torch.Tensor) -> torch.Tensor:
    """Return positions in the shape in which models hand them over, each axis its own."""
    axes = rope.axes
    if axes is None:
        return positions[None]
    rolled = torch.stack([positions.roll(i) for i in range(axes.count)])
    if not isinstance(axes, Axial):
        return rolled[:, None]
    return rolled.T


def _asked(fresh: torch.nn.Module, position_ids: torch.Tensor, kind: str | None) -> Any:
    """Return what a module gives at these positions; a copy of it: some keep what they see."""
    x = torch.zeros(1, position_ids.shape[-1], 8)
    extra: Mapping[str, Any] = {} if kind is None else {"layer_type": kind}
    try:
        with torch.device("cpu"):
            return copy.deepcopy(fresh).forward(x, position_ids, **extra)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise Refused(f"raises {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _apart(theirs: Any, tables: Tables, position_ids: torch.Tensor) -> float:
    """Return how far theirs and ours are apart, in units of what float32 explains."""
    mine = tables(torch.zeros(1), position_ids)
    if isinstance(theirs, tuple) != isinstance(mine, tuple):
        return float("inf")
    turn = 2 * torch.pi if getattr(tables.rope.axes, "in_turns", False) else 1.0
    farthest = int(position_ids.abs().max())
    factor = abs(tables.rope.attention_factor(farthest + 1))
    bound = ANGLE * (1 + turn * farthest) * max(1.0, factor)
    worst = 0.0
    for a, b in zip(theirs, mine, strict=True) if isinstance(theirs, tuple) else [(theirs, mine)]:
        if a.shape != b.shape:
            return float("inf")
        worst = max(worst, float((a - b).abs().max()) / bound)
    return worst

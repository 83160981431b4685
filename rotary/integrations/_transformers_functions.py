"""Functions of transformers that rotate: what one does is found by asking it.

A modeling file has its own ``apply_rotary_pos_emb``, which differs from the others in how it reads
the tables, which features it pairs and where it puts them.  No list of names tells that: the
function rotates a small random input, and the description under which ``rotary.rotate`` gives the
same is the one that stands for it.  A function without such a description is refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch

import rotary

NAME = re.compile(
    r"_?apply_rotary\w*|apply_multidimensional_rope|vision_apply_rotary_emb|rotate_queries_or_keys"
)
_TABLE = re.compile(r"cos|sin|freqs_cis?")
_IGNORED = frozenset({"position_ids", "unsqueeze_dim"})
_TOLERANCE = 1e-5  # of float32 rotations of numbers about 1, added up in another order


# How tables of one column a pair are laid out in what a model hands around.


def _halves(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table, table], dim=-1)


def _pairs(table: torch.Tensor) -> torch.Tensor:
    return torch.repeat_interleave(table, 2, dim=-1)


def _single(table: torch.Tensor) -> torch.Tensor:
    return table


def _blocks(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([_halves(block) for block in table.chunk(2, dim=-1)], dim=-1)


WRITTEN: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "halves": _halves,
    "pairs": _pairs,
    "single": _single,
    "blocks": _blocks,
}
"""From one column a pair to theirs, in "blocks" with halves in each of two blocks of features; the
form "complex" is cos + i·sin instead."""


def _read(form: str, table: torch.Tensor) -> torch.Tensor:
    """Return one column a pair."""
    if form == "halves":
        return table[..., : table.shape[-1] // 2]
    if form == "blocks":
        return torch.cat([_read("halves", block) for block in table.chunk(2, dim=-1)], dim=-1)
    return table[..., ::2] if form == "pairs" else table


@dataclass(frozen=True)
class Rotation:
    """What a function of theirs does, in the words of :func:`rotary.rotate`."""

    parameters: tuple[str, ...]
    defaults: tuple[tuple[str, Any], ...]
    arrays: tuple[str, ...]
    """Which parameters rotate."""
    form: str
    """How it reads the tables."""
    layout: str
    rotary_side: str = "leading"
    to_halves: bool = False
    """It reads pairs (2i, 2i + 1) and writes their members to i and i + R/2 (DeepSeek-V3)."""
    inverse: bool = False
    seq_axis: int = -2
    """Of x, where no ``unsqueeze_dim`` says it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Rotate by theirs' arguments, and return what theirs returns."""
        given = {**dict(self.defaults), **dict(zip(self.parameters, args, strict=False)), **kwargs}
        cos, sin = self._tables(given)
        dim = given.get("unsqueeze_dim")
        rotated = tuple(self._turn(given[name], cos, sin, dim) for name in self.arrays)
        optional = given[self.arrays[-1]] is None and self.arrays[-1] in dict(self.defaults)
        return rotated[0] if optional or len(rotated) == 1 else rotated

    def _tables(self, given: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.form == "complex":
            both = next(given[name] for name in self.parameters if name.startswith("freqs"))
            return both.real, both.imag
        return _read(self.form, given["cos"]), _read(self.form, given["sin"])

    def _turn(self, x: Any, cos: torch.Tensor, sin: torch.Tensor, dim: int | None) -> Any:
        if x is None:
            return None
        seq_axis = self.seq_axis
        if dim is not None:
            place = dim + cos.ndim + 1 if dim < 0 else dim
            seq_axis = -3 if place == x.ndim - 2 else -2
            cos, sin = cos.unsqueeze(dim), sin.unsqueeze(dim)
        # Tables are made in this dtype; where a caller has cast them on the way, they come back.
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        pairs = cos.shape[-1]
        y = rotary.rotate(
            x,
            cos.to(compute),
            sin.to(compute),
            layout=self.layout,
            rotary_side=self.rotary_side,
            blocks=(pairs // 2, pairs // 2) if self.form == "blocks" else None,
            inverse=self.inverse,
            seq_axis=seq_axis,
        )
        return torch.cat([y[..., 0::2], y[..., 1::2]], dim=-1) if self.to_halves else y


@lru_cache(maxsize=256)
def rotation_of(function: Callable[..., Any]) -> Rotation | None:
    """Return what a function does, None if it is nothing that :func:`rotary.rotate` does."""
    signature = inspect.signature(function)
    names = tuple(signature.parameters)
    first = next((i for i, name in enumerate(names) if _TABLE.match(name)), 0)
    tables = [name for name in names[first:] if _TABLE.match(name)]
    others = {name for name in names[first:] if name not in tables}
    form = {("cos", "sin"): "real", ("freqs_cis",): "complex", ("freqs_ci",): "complex"}
    if not first or tuple(tables) not in form or not others <= _IGNORED:
        return None
    asked = Rotation(
        parameters=names,
        defaults=tuple(
            (name, parameter.default)
            for name, parameter in signature.parameters.items()
            if parameter.default is not parameter.empty
        ),
        arrays=names[:first],
        form=form[tuple(tables)],
        layout="half",
    )
    found = next((made for made in _descriptions(asked) if _agrees(function, made)), None)
    return None if found is None or _takes_longer_tables(function, found) else found


def _descriptions(asked: Rotation) -> Iterator[Rotation]:
    """Yield all that a function with these parameters might do."""
    forms = ("complex",) if asked.form == "complex" else tuple(WRITTEN)
    axes = (-2,) if "unsqueeze_dim" in asked.parameters else (-2, -3)
    orders = (("half", False), ("interleaved", False), ("interleaved", True))
    for form, axis, order, side, inverse in product(
        forms, axes, orders, ("leading", "trailing"), (False, True)
    ):
        yield replace(
            asked,
            form=form,
            seq_axis=axis,
            layout=order[0],
            to_halves=order[1],
            rotary_side=side,
            inverse=inverse,
        )


def _agrees(function: Callable[..., Any], ours: Rotation) -> bool:
    """Whether both rotate part of the features alike, or all where theirs takes no part."""
    for head_dim in (12, 8):
        if ours.rotary_side == "trailing" and head_dim == 8:
            return False
        given = _random(ours, head_dim)
        try:
            theirs = function(**given)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            continue
        if not isinstance(theirs, torch.Tensor | tuple):
            return False
        try:
            mine = ours(**given)
        except (TypeError, ValueError):
            return False
        return _close(theirs, mine)
    return False


def _takes_longer_tables(function: Callable[..., Any], ours: Rotation) -> bool:
    """Whether it cuts tables to the length of its first array (Muse Glimmer's assistant)."""
    given = _random(ours, 8)
    first = ours.arrays[0]
    length = given[first].shape[ours.seq_axis]
    given[first] = given[first].narrow(ours.seq_axis, 1, length - 1)
    try:
        function(**given)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True


def _close(theirs: Any, mine: Any) -> bool:
    if isinstance(theirs, tuple) != isinstance(mine, tuple):
        return False
    pairs = zip(theirs, mine, strict=False) if isinstance(theirs, tuple) else [(theirs, mine)]
    return all(
        isinstance(a, torch.Tensor)
        and a.shape == b.shape
        and bool((a - b).abs().max() <= _TOLERANCE)
        for a, b in pairs
    )


def _random(ours: Rotation, head_dim: int) -> dict[str, Any]:
    """Return arguments with 4 pairs: no two angles, features, heads or positions alike."""
    seq, heads, pairs = 5, 3, 4
    generator = torch.Generator().manual_seed(2104_09864)
    batch: tuple[int, ...] = (2,)
    rank_3 = ours.seq_axis == -3 and ours.form != "complex"
    if rank_3:
        batch = ()
    place = (seq, heads) if ours.seq_axis == -3 else (heads, seq)
    # Not 1-periodic, far from 0 and from each other.
    angles = torch.rand((*batch, seq, pairs), generator=generator) * 3 + 0.3
    given: dict[str, Any] = {
        name: torch.randn((*batch, *place, head_dim), generator=generator) for name in ours.arrays
    }
    if ours.form == "complex":
        name = next(name for name in ours.parameters if name.startswith("freqs"))
        return {**given, name: torch.polar(torch.ones_like(angles), angles)}
    if "unsqueeze_dim" in ours.parameters:
        given["unsqueeze_dim"] = 1
        if "position_ids" in ours.parameters and "position_ids" not in dict(ours.defaults):
            given["position_ids"] = torch.zeros(2, seq, 2)  # for the number of axes alone (Gemma 4)
    elif not rank_3:
        angles = angles[0]  # tables that broadcast as they are
    write = WRITTEN[ours.form]
    return {**given, "cos": write(angles.cos()), "sin": write(angles.sin())}

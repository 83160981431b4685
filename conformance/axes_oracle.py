"""Several position axes, written anew from the numbers of a description alone.

Pair by pair: which axis turns it, and θ's exponent −2·numerator/denominator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Pair = tuple[int, int, int]
"""Axis, numerator and denominator."""


def pairs(kind: str, numbers: Mapping[str, Any], denominator: int) -> list[Pair]:
    """Return all pairs of ``Sections`` or ``Axial`` with these fields."""
    sizes = list(numbers["sizes"])
    if kind == "Sections":
        return [(axis, i, denominator) for i, axis in enumerate(_sections(sizes, numbers["order"]))]
    order = list(numbers["axis_order"])
    out: list[Pair] = []
    for place in range(sum(sizes)):
        if numbers["order"] == "cycled":
            rank, step = place % len(sizes), place // len(sizes)
        else:
            rank, step = 0, place
            while step >= sizes[order[rank]]:
                step -= sizes[order[rank]]
                rank += 1
        axis = order[rank]
        if numbers["frequencies"] == "own":
            out.append((axis, step, 2 * sizes[axis]))
        else:
            out.append((axis, len(sizes) * step + rank, denominator))
    return out


def _sections(sizes: list[int], order: str) -> list[int]:
    left = list(sizes)
    out: list[int] = []
    for place in range(sum(sizes)):
        if order == "blocks":
            axis = next(a for a, n in enumerate(left) if n)
        elif order == "cycled":
            axis = place % len(sizes)
            axis = axis if left[axis] else 0
        else:
            axis = 1 + place % (len(sizes) - 1)
            axis = axis if left[axis] else 0
        left[axis] -= 1
        out.append(axis)
    return out


def blocks(numbers: Mapping[str, Any]) -> list[int] | None:
    """Return the pairs of each block of features, where every axis has one."""
    if not numbers.get("split_features"):
        return None
    return [numbers["sizes"][axis] for axis in numbers["axis_order"]]

"""Sentences and Python expressions for what was found."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import rotary
from rotary.conformance.identifying.model import Model


def expression(rope: rotary.RotaryEmbedding) -> str:
    """Return the embedding as Python writes it, what is usual left out."""
    usual = {
        "base": 10_000.0,
        "layout": "half",
        "rotary_dim": rope.head_dim,
        "rotary_side": "leading",
        "frequency_dim": rope.rotary_dim,
        "inv_freq": None,
    }
    given = [str(rope.head_dim)]
    given += [
        f"{name}={getattr(rope, name)!r}"
        for name, value in usual.items()
        if getattr(rope, name) != value
    ]
    if rope.scaling is not None:
        given.append(f"scaling={rule(rope.scaling)}")
    return f"rotary.RotaryEmbedding({', '.join(given)})"


def rule(scaling: Any) -> str:
    """Return a scaling rule as Python writes it, what is usual left out."""
    given = []
    for f in fields(scaling):
        value = getattr(scaling, f.name)
        if f.default is MISSING:
            given.append(repr(value))
        elif value != f.default:
            given.append(f"{f.name}={value!r}")
    return f"rotary.scaling.{type(scaling).__name__}({', '.join(given)})"


def finding(
    model: Model, reads: str, writes: str, precision: dict[str, str], remembers: bool
) -> str:
    """Return the finding in one sentence."""
    rope = model.rope
    order = f"{reads} layout" if reads == writes else f"{reads} layout, written {writes}"
    part = "all" if rope.rotary_dim == rope.head_dim else f"the {rope.rotary_side}"
    if rope.inv_freq is not None:
        numbers = "frequencies of no known formula"
    else:
        numbers = f"base {rope.base:g}"
        if float(f"{rope.base:g}") != rope.base:
            numbers = f"base {rope.base!r}"
        if rope.frequency_dim != rope.rotary_dim:
            numbers += f" with denominator {rope.frequency_dim}"
    pieces = [order, f"{part} {rope.rotary_dim} of {rope.head_dim} features", numbers]
    if rope.scaling is not None:
        pieces.append(type(rope.scaling).__name__)
    if model.direction < 0:
        pieces.append("turned the opposite way")
    if model.origin:
        pieces.append(f"positions shifted by {model.origin:g}")
    pieces += _coarse(precision)
    if remembers:
        pieces.append("with a memory")
    return f"A rotary embedding: {'; '.join(pieces)}."


def _coarse(precision: dict[str, str]) -> list[str]:
    """Say what is coarser than float64, tables apart unless they are 16-bit numbers."""
    pieces = []
    if precision["positions"] != "float64":
        pieces.append(f"positions rounded to {precision['positions']}")
    if precision["angles"] != "float64":
        pieces.append(f"{precision['angles']} angles")
    elif precision["inv_freq"] != "float64":
        pieces.append(f"{precision['inv_freq']} frequencies")
    if precision["tables"] in ("bfloat16", "float16"):
        pieces.append(f"{precision['tables']} tables")
    return pieces


def notes_of_model(model: Model, reads: str, writes: str) -> list[str]:
    """Say what the embedding alone does not express."""
    notes = []
    if model.direction < 0:
        notes.append("it turns by the opposite angle, as rotary.rotate(..., inverse=True) does")
    if model.origin:
        notes.append(f"position p is turned as position p + {model.origin:g}")
    if reads != writes:
        notes.append(
            f"it reads pairs of the {reads} layout and writes them in the {writes} one: equal to "
            f"the embedding up to one fixed order of features, y[..., writes]"
        )
    elif reads == "permuted":
        notes.append("its pairs lie in a fixed order of features of its own: x[..., reads]")
    scaling: Any = model.rope.scaling
    name = type(scaling).__name__
    if name == "Linear":
        notes.append(
            f"Linear({scaling.factor!r}) is the same as positions in steps of 1/{scaling.factor:g}"
        )
    if name == "YaRN" and scaling.factor == 1:
        notes.append("YaRN of factor 1 stands for its attention factor alone")
    if name == "YaRN" and scaling.truncate and scaling.factor != 1:
        notes.append("with truncate, other lengths and turns round to the same pairs")
    if name == "LongRoPE":
        notes.append("another base with factors to match would give the same outputs")
    return notes


def notes_of_precision(precision: dict[str, str]) -> list[str]:
    """Say how exactly its steps are computed."""
    words = []
    if precision["positions"] != "float64":
        words.append(f"positions are rounded to {precision['positions']}")
    if precision["inv_freq"] != "float64":
        words.append(f"inverse frequencies are {precision['inv_freq']}")
    angles = precision["angles"]
    words.append(
        "angles are exact to float64 or better"
        if angles == "float64"
        else f"angles are rounded to {angles}"
        + (", as transformers rounds them" if angles == "float32" else "")
    )
    tables = precision["tables"]
    words.append(f"cos and sin are {tables}")
    return [", ".join(words)]

"""From the normalised record to the embedding: a table gives the scaling rule of each rope_type.

Rotations that no rule describes, backwards or of the type "ntk", become supplied frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from rotary.axes import Axes, Axial, Sections
from rotary.config._families import KEYS, OWN
from rotary.config._reading import Record
from rotary.embedding import RotaryEmbedding
from rotary.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, Proportional, Scaling, YaRN
from rotary.xpos import XPos


def _needed(record: Record, key: str) -> Any:
    value = record.numbers.get(key)
    if value is None:
        raise ValueError(
            f"{key}: missing in the rope dictionary, expected with rope_type {record.rope_type!r}"
        )
    return value


def _dynamic(record: Record) -> Scaling:
    if record.numbers.get("alpha"):
        return NTK(record.numbers["alpha"])
    if record.length is None:
        raise ValueError("max_position_embeddings: missing, expected with rope_type 'dynamic'")
    return DynamicNTK(_needed(record, "factor"), record.length)


def _yarn(record: Record) -> Scaling:
    numbers = dict(record.numbers)
    original = _needed(record, "original_max_position_embeddings")
    numbers["factor"] = _factor(record, original)
    for key in ("beta_fast", "beta_slow"):
        if not numbers.get(key):  # 0 means the default, as null does
            numbers.pop(key, None)
    attn_factor = numbers.pop("attn_factor", None)
    rule = YaRN(**numbers)
    if attn_factor is None:
        return rule
    if rule.attention_factor is not None:
        raise ValueError(
            f"attn_factor: got {attn_factor} and attention_factor {rule.attention_factor}, "
            f"expected one of them"
        )
    # YaRN's own code multiplies by it what the formula gives.
    unscaled = RotaryEmbedding(4, scaling=rule).attention_factor()
    return replace(rule, attention_factor=attn_factor * unscaled)


def _factor(record: Record, original: int) -> Any:
    """Return s, which null leaves to be max_position_embeddings / L0."""
    if "factor" not in record.numbers:
        return _needed(record, "factor")
    if record.numbers["factor"] is not None:
        return record.numbers["factor"]
    if record.length is None:
        raise ValueError(
            "factor: got None, expected a number, or max_position_embeddings beside it"
        )
    return record.length / original


def _longrope(record: Record) -> Scaling:
    numbers = dict(record.numbers)
    original = _needed(record, "original_max_position_embeddings")
    for key in ("short_factor", "long_factor"):
        _needed(record, key)
    if numbers.get("factor") is None and record.length is not None:
        numbers["factor"] = record.length / original
    return LongRoPE(**numbers)


def _llama3(record: Record) -> Scaling:
    return Llama3(**{key: _needed(record, key) for key in sorted(KEYS["llama3"])})


_RULES: dict[str, Callable[[Record], Scaling | None]] = {
    "default": lambda record: None,
    "axial": lambda record: None,
    "linear": lambda record: Linear(_needed(record, "factor")),
    "dynamic": _dynamic,
    "ntk": lambda record: None,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": lambda record: Proportional(
        record.numbers["partial_rotary_factor"], record.numbers.get("factor") or 1.0
    ),
}
TYPE_OF_RULE: dict[type, str] = {
    Linear: "linear",
    NTK: "dynamic",
    DynamicNTK: "dynamic",
    YaRN: "yarn",
    LongRoPE: "longrope",
    Llama3: "llama3",
    Proportional: "proportional",
}

AXES_OF_KIND: dict[str, Callable[..., Axes]] = {"sections": Sections, "axial": Axial}


def embedding_of(record: Record) -> RotaryEmbedding:
    rotary_dim = record.rotated + record.rotated % 2
    rope = RotaryEmbedding(
        record.head_dim,
        base=record.base,
        layout=record.layout,
        rotary_dim=rotary_dim,
        rotary_side=record.rotary_side if rotary_dim < record.head_dim else "leading",
        frequency_dim=record.rotated,
        inv_freq=record.inv_freq,
        scaling=_RULES[record.rope_type](record),
        axes=record.axes,
    )
    if record.rope_type == "ntk":
        rope = _supplied(rope, _fixed_ntk(rope, record))
    return _turned_back(rope) if record.backwards else rope


def _turned_back(rope: RotaryEmbedding) -> RotaryEmbedding:
    """Return the embedding of the opposite angles: with negative frequencies."""
    if isinstance(rope.scaling, YaRN) and rope.base != 10_000.0:
        raise ValueError(
            f"rope_theta: got {rope.base} with rope_type 'yarn', expected 10000.0 in a family that "
            f"rotates backwards"
        )
    if isinstance(rope.scaling, Llama3):  # it asks for the sign
        return _supplied(replace(rope, scaling=None), -rope.frequencies())
    return _supplied(rope, -replace(rope, scaling=None).frequencies())


def _supplied(rope: RotaryEmbedding, inv_freq: Iterable[float]) -> RotaryEmbedding:
    return replace(
        rope,
        base=10_000.0,
        frequency_dim=rope.rotary_dim,
        inv_freq=tuple(float(w) for w in inv_freq),
    )


def _fixed_ntk(rope: RotaryEmbedding, record: Record) -> list[float]:
    """ω of the type "ntk" that vLLM and GTE's own code read: Su, kexue.fm/archives/9706.

    ω_i / s^(2(i+1)/d), or with mixed_b ω_i / exp(a·(i+1)^b), a = ln s / (d/2)^b.
    """
    s, power = float(_needed(record, "factor")), record.numbers.get("mixed_b")
    if s <= 0:
        raise ValueError(f"factor: got {s}, expected a positive number")
    b = 1.0 if power is None else float(power)
    a = math.log(s) / (record.rotated / 2) ** b
    return [w / math.exp(a * (i + 1) ** b) for i, w in enumerate(rope.frequencies())]


def own_embedding(given: Mapping[str, Any]) -> RotaryEmbedding:
    """Return what to_config wrote."""
    for key in ("head_dim", "rotary_dim", "frequency_dim", "layout", "rotary_side"):
        if given.get(key) is None:
            raise ValueError(f"{key}: missing, expected with model_type {OWN!r}")
    rope = dict(given.get("rope_parameters") or {})
    rope_type, base = rope.pop("rope_type", "default"), rope.pop("rope_theta", 10_000.0)
    record = Record(
        head_dim=given["head_dim"],
        rotated=given["rotary_dim"],
        layout=given["layout"],
        rotary_side=given["rotary_side"],
        backwards=False,
        base=base,
        rope_type=rope_type,
        numbers=rope,
        length=given.get("max_position_embeddings"),
    )
    return RotaryEmbedding(
        record.head_dim,
        base=record.base,
        layout=record.layout,
        rotary_dim=record.rotated,
        rotary_side=record.rotary_side,
        frequency_dim=given["frequency_dim"],
        inv_freq=given.get("inv_freq"),
        scaling=_RULES[rope_type](record),
        axes=None if given.get("axes") is None else _own_axes(given["axes"]),
        xpos=None if given.get("xpos") is None else XPos(**given["xpos"]),
    )


def _own_axes(given: Mapping[str, Any]) -> Axes:
    numbers = dict(given)
    kind = numbers.pop("kind", None)
    if kind not in AXES_OF_KIND:
        raise ValueError(
            f"axes: got kind {kind!r}, expected {' or '.join(map(repr, AXES_OF_KIND))}"
        )
    return AXES_OF_KIND[kind](**numbers)

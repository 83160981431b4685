"""Hugging Face configs in and out: which rotation a model's config describes.

In three steps: every spelling is read into one normalised record (``_reading``), the record's
rope_type gives the scaling rule by a table, and both give the embedding (``_building``).  What a
file leaves unsaid, and how a family lays out its features, stands in ``_families``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from rotary.config._building import TYPE_OF_RULE, embedding_of, own_embedding
from rotary.config._families import (
    ALWAYS,
    EVERY_4TH_FROM_LAST,
    EVERY_NTH_WITHOUT,
    LABELS,
    NO_ATTENTION,
    ONLY_SLIDING,
    ONLY_SLIDING_IF_ANY,
    OWN,
)
from rotary.config._reading import (
    Config,
    Rope,
    chosen_part,
    label_of,
    loaded,
    quoted,
    record_of,
    ropes_of,
)
from rotary.embedding import RotaryEmbedding
from rotary.scaling import NTK, DynamicNTK

__all__ = ["from_config", "layers_from_config", "to_config"]


def from_config(
    config: Any, *, part: str | None = None, layer_type: str | None = None
) -> RotaryEmbedding:
    """Return the rotary embedding that a Hugging Face config describes.

    Every spelling is read: ``rope_parameters``, the legacy ``rope_scaling``, keys at top level such
    as ``rotary_pct``, dictionaries nested by layer type.  Layout and side follow ``model_type``;
    what the config leaves unsaid is what transformers' config class would fill in.

    Models of images and video give an embedding with ``axes``.  Its positions are height and width,
    or time, height and width, in this order whatever the model's own code expects;
    :func:`rotary.axes.grid` makes them.  HunYuan-VL's are those of its sections: place in the text,
    width, height, number of the image.

    Multi-head latent attention (``qk_rope_head_dim``) gives an embedding of the whole head with
    ``rotary_side="trailing"``; for the rotated features alone take
    ``dataclasses.replace(rope, head_dim=rope.rotary_dim, rotary_side="leading")``.

    Parameters
    ----------
    config : dict, path, or object with ``to_dict()``
        A model's config; a path leads to a config.json or to a folder with one.
    part : str, optional
        Which sub-config: "text_config", or with dots "thinker_config.text_config".  By default the
        config itself if it describes a rotation, else the only sub-config that does.
    layer_type : str, optional
        Which layers, where they differ: "full_attention", "sliding_attention".

    Returns
    -------
    RotaryEmbedding

    Warns
    -----
    UserWarning
        For known keys that have no effect here, by name.

    Raises
    ------
    TypeError
        For a config of another kind, or a value of the wrong kind.
    ValueError
        For missing, unknown and contradictory keys and numbers out of range, by name; where
        `part` or `layer_type` is needed; for a part without rotation.

    Examples
    --------
    >>> import rotary
    >>> llama = {
    ...     "model_type": "llama",
    ...     "hidden_size": 4096,
    ...     "num_attention_heads": 32,
    ...     "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0},
    ... }
    >>> rope = rotary.from_config(llama)
    >>> rope.head_dim, rope.base, rope.layout, rope.scaling
    (128, 500000.0, 'half', Linear(factor=4.0))
    >>> gptj = {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "rotary_dim": 64}
    >>> rope = rotary.from_config(gptj)
    >>> rope.head_dim, rope.rotary_dim, rope.layout
    (256, 64, 'interleaved')
    >>> rotary.from_config({"model_type": "qwen2_vl", "head_dim": 128}).axes
    Sections(sizes=(16, 24, 24), order='blocks')
    """
    chosen = chosen_part(loaded(config), part)
    if chosen.model_type == OWN:
        return own_embedding(chosen.given)
    ropes = ropes_of(chosen)
    label = label_of(chosen, ropes, layer_type)
    return embedding_of(record_of(chosen.of_layer(layer_type), ropes[label]))


def layers_from_config(config: Any, *, part: str | None = None) -> list[RotaryEmbedding | None]:
    """Return the rotary embedding of every layer, or None where a layer has no positions.

    Parameters
    ----------
    config, part
        As for :func:`from_config`.

    Returns
    -------
    list of RotaryEmbedding or None
        One for each of ``num_hidden_layers``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`from_config`, and where the number of layers or their types are not known.

    Examples
    --------
    >>> import rotary
    >>> gemma = {
    ...     "model_type": "gemma3_text",
    ...     "head_dim": 256,
    ...     "num_hidden_layers": 6,
    ...     "rope_theta": 1_000_000.0,
    ...     "rope_local_base_freq": 10_000.0,
    ...     "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    ... }
    >>> [(rope.base, rope.scaling) for rope in rotary.layers_from_config(gemma)[4:]]
    [(10000.0, None), (1000000.0, Linear(factor=8.0))]
    """
    chosen = chosen_part(loaded(config), part)
    count = chosen.get("num_hidden_layers")
    if not isinstance(count, int):
        raise ValueError(f"num_hidden_layers: got {count!r}, expected a whole number")
    if chosen.model_type == OWN:
        return [own_embedding(chosen.given)] * count
    ropes, types = ropes_of(chosen), chosen.layer_types(count)
    if types is None and (None not in ropes or chosen.model_type in ONLY_SLIDING):
        names = quoted(ropes if None not in ropes else ("full_attention", "sliding_attention"))
        raise ValueError(f"layer_types: missing, expected one of {names} for each layer")
    made: dict[Any, RotaryEmbedding] = {}
    layers: list[RotaryEmbedding | None] = []
    for index in range(count):
        kind = None if types is None else types[index]
        values = _of_layer(chosen, ropes, index, kind)
        if values is not None:
            key = repr((values, kind))
            if key not in made:
                made[key] = embedding_of(record_of(chosen.of_layer(kind), values))
            layers.append(made[key])
        else:
            layers.append(None)
    return layers


def to_config(rope: RotaryEmbedding) -> dict[str, Any]:
    """Return an embedding as a dictionary that ``json`` writes and :func:`from_config` reads back.

    The keys are transformers' where it has them; ``layout``, ``rotary_side``, ``rotary_dim``,
    ``frequency_dim``, ``axes`` and ``xpos`` are ours, and so is the model_type "rotary".

    Examples
    --------
    >>> import rotary
    >>> rope = rotary.RotaryEmbedding(8, scaling=rotary.scaling.Linear(2.0))
    >>> rope.to_config()["rope_parameters"]
    {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 2.0}
    >>> rotary.from_config(rope.to_config()) == rope
    True
    """
    out: dict[str, Any] = {
        "model_type": OWN,
        "head_dim": rope.head_dim,
        "rotary_dim": rope.rotary_dim,
        "frequency_dim": rope.frequency_dim,
        "layout": rope.layout,
        "rotary_side": rope.rotary_side,
    }
    dictionary: dict[str, Any] = {"rope_type": "default"}
    if rope.inv_freq is None:
        dictionary["rope_theta"] = rope.base
    else:
        out["inv_freq"] = list(rope.inv_freq)
    if rope.axes is not None:
        numbers = {name: _listed(value) for name, value in vars(rope.axes).items()}
        out["axes"] = {"kind": type(rope.axes).__name__.lower(), **numbers}
    if rope.xpos is not None:
        out["xpos"] = asdict(rope.xpos)
    if rope.scaling is not None:
        dictionary["rope_type"] = TYPE_OF_RULE[type(rope.scaling)]
        for field in fields(rope.scaling):  # type: ignore[arg-type]  # rules are dataclasses
            value = getattr(rope.scaling, field.name)
            if value is not None:
                dictionary[field.name] = _listed(value)
    if isinstance(rope.scaling, NTK):
        dictionary["alpha"] = dictionary.pop("factor")
    if isinstance(rope.scaling, DynamicNTK):
        name = "original_max_position_embeddings"
        out["max_position_embeddings"] = dictionary.pop(name)
    out["rope_parameters"] = dictionary
    return out


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _of_layer(
    config: Config, ropes: Mapping[str | None, Rope | None], index: int, kind: str | None
) -> Rope | None:
    """Return the rope dictionary of one layer, None where it has no positions."""
    if kind in NO_ATTENTION or not _has_positions(config, index, kind):
        return None
    label = LABELS.get(config.model_type, {}).get(kind or "", kind)
    values = ropes[None] if None in ropes else ropes.get(label)
    bases = config.given.get("layer_rope_theta")
    if values is not None and bases is not None:
        return {**values, "rope_theta": bases[index]} if bases[index] else None
    scaled = config.given.get("rope_scaling_layers")
    if values is not None and scaled is not None and index not in scaled:
        return {k: v for k, v in values.items() if k in ALWAYS} | {"rope_type": "default"}
    return values


def _has_positions(config: Config, index: int, kind: str | None) -> bool:
    layers = config.given.get("no_rope_layers")
    if layers:  # a list of ones, and of zeros for the layers without
        return bool(layers[index])
    if config.model_type in EVERY_NTH_WITHOUT:
        return (index + 1) % (config.given.get("no_rope_layer_interval") or 4) != 0
    if config.model_type in EVERY_4TH_FROM_LAST and config.given.get("layer_rope_theta") is None:
        return bool((config.get("num_hidden_layers") - 1 - index) % 4)
    if config.model_type in ONLY_SLIDING_IF_ANY:
        return config.get("sliding_window") is None or kind == "sliding_attention"
    if config.model_type in ONLY_SLIDING:
        return kind == "sliding_attention" or _is_forced(config, index)
    return True


def _is_forced(config: Config, index: int) -> bool:
    """Whether it is one of Cohere 2 MoE's first, dense layers, all with positions."""
    kinds = config.given.get("mlp_layer_types")
    pattern = config.given.get("prefix_dense_sliding_window_pattern")
    return kinds is not None and pattern == 1 and kinds[index] == "dense"

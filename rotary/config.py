"""Hugging Face configs in and out: which rotation a model's config describes.

In three steps: every spelling is read into one normalised record, the record's rope_type gives the
scaling rule by a table, and both give the embedding.  What a file leaves unsaid is filled in from
``families.json``, the defaults of transformers' config classes by ``model_type``; how a family lays
out its features stands in the tables below.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from rotary.embedding import RotaryEmbedding
from rotary.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, Proportional, Scaling, YaRN
from rotary.xpos import XPos


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Families that rotate pairs (2i, 2i + 1); all others rotate halves.  Those that write what they
# read in pairs back in halves (DeepSeek-V3 and its kin) differ by one fixed permutation of features
# of q and of k, which no logit sees.
_INTERLEAVED = _names(
    """axk2 bailing_hybrid blt blt_global_transformer blt_local_decoder blt_local_encoder
    blt_patcher codegen cohere cohere2 cohere2_moe deepseek_v2 deepseek_v32 deepseek_v4
    dots3_note_text ernie4_5 ernie4_5_moe glm glm4 glm_moe_dsa gptj helium llama4_text longcat_flash
    mistral_large4_text moonshine moonshine_streaming openai_privacy_filter pe_audio_encoder
    pe_audio_video_encoder pe_video_encoder roformer"""
)
# Families whose key rope_interleave decides; where it is silent they rotate pairs.
_INTERLEAVED_BY_KEY = _names(
    "axk1 deepseek_v3 glm4_moe_lite kimi_k2 mistral4 mistral_large4_text youtu"
)
# Families that rotate by the opposite angle.
_BACKWARDS = frozenset({"nanochat"})
# Families whose rotated features come last, beside those with a key qk_rope_head_dim.
_TRAILING = frozenset({"deepseek_v4"})
# Families that read positions of several axes.
_SEVERAL_AXES = _names(
    """cohere_compass_text cosmos3_edge_text dinov3_vit efficientloftr eomt_dinov3
    ernie4_5_vl_moe_text esmfold2 glm4v_moe_text glm4v_text glm_image_text glm_ocr_text
    hunyuan_vl_text lightglue llama4_vision_model musicflamingo neomme paddleocr_vl_text
    qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl qwen2_5_vl_text qwen2_vl qwen2_vl_text
    qwen3_5_moe_text qwen3_5_text qwen3_omni_moe_talker_text qwen3_omni_moe_text qwen3_vl_moe_text
    qwen3_vl_text qwen4_exp_text sapiens2 vjepa2"""
)
# Families that carry the keys and rotate nothing.
_STILL = frozenset({"glm5_next_text", "jamba", "kimi_linear", "nemotron_h"})
# A key of the config, and its values for which nothing rotates.
_OFF: dict[str, tuple[str, tuple[Any, ...]]] = {
    "clvp_encoder": ("use_rotary_embedding", (False,)),
    "esm": ("position_embedding_type", (None, "absolute", "relative_key", "relative_key_query")),
    "falcon": ("alibi", (True,)),
    "granitemoehybrid": ("position_embedding_type", (None, "nope")),
    "seamless_m4t": ("position_embeddings_type", (None, "relative", "relative_key")),
    "wav2vec2-bert": ("position_embeddings_type", (None, "relative", "relative_key")),
    "wav2vec2-conformer": ("position_embeddings_type", (None, "relative", "relative_key")),
    "zamba2": ("use_mem_rope", (False,)),
}
# Families without positions in layers of other types than sliding_attention; the second set only
# where the config has a sliding_window.
_ONLY_SLIDING = frozenset({"afmoe", "cohere2", "cohere2_moe", "flint"})
_ONLY_SLIDING_IF_ANY = frozenset({"exaone4", "exaone_moe", "kolibri1"})
# Families with a layer without positions at every no_rope_layer_interval-th place.
_EVERY_NTH_WITHOUT = frozenset({"llama4_text", "mistral_large4_text", "smollm3"})
# The same, every fourth counted from the last, where there is no layer_rope_theta.
_EVERY_4TH_FROM_LAST = frozenset({"muse_glimmer_text", "muse_spark_text"})
# Layer types without attention, or with attention that has no positions.
_NO_ATTENTION = _names("conv linear_attention mamba mamba2 moe mlp recurrent rglru short_conv")
# Which of the two nested dictionaries a layer of another type reads.
_LABELS: dict[str, dict[str, str]] = {
    "deepseek_v4": {
        "sliding_attention": "main",
        "compressed_sparse_attention": "compress",
        "heavily_compressed_attention": "compress",
    }
}
# Flat spellings of what is nested now: for each layer type the key of its θ, and whether the flat
# dictionary scales it.
_Layered = dict[str, tuple[str, bool]]
_GEMMA3: _Layered = {
    "full_attention": ("rope_theta", True),
    "sliding_attention": ("rope_local_base_freq", False),
}
_MODERNBERT: _Layered = {
    "full_attention": ("global_rope_theta", True),
    "sliding_attention": ("local_rope_theta", True),
}
_LAYERED: dict[str, _Layered] = {
    "deepseek_v4": {"main": ("rope_theta", False), "compress": ("compress_rope_theta", True)},
    "dots3_note_text": {
        "indexed_attention": ("rope_theta", True),
        "sliding_attention": ("swa_rope_theta", True),
    },
    "gemma3_text": _GEMMA3,
    "gemma3n_text": _GEMMA3,
    "modernbert": _MODERNBERT,
    "modernbert-decoder": _MODERNBERT,
    "olmo3": {"full_attention": ("rope_theta", True), "sliding_attention": ("rope_theta", False)},
    "t5gemma2_decoder": _GEMMA3,
    "t5gemma2_text": _GEMMA3,
}

# Every how many layers one has full attention: first or last of them, as in the family's default.
_PATTERN_KEYS = (
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "global_attn_every_n_layers",
)
# Other names of a key; the first that is present counts.
_SPELLINGS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads", "speech_encoder_attention_heads"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "max_position_embeddings": ("n_positions", "n_ctx"),
    "layer_types": ("layers_block_type",),
}
# Keys at top level that say the same as a key of the rope dictionary: they have to agree.
_TOP_LEVEL = {
    "rope_theta": ("rope_theta", "rotary_emb_base", "rotary_embedding_base", "max_wavelength"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"),
}
# Any of these at top level shows a rotation where the model_type is not known.
_MARKS = (
    "rope_parameters",
    "rope_scaling",
    *(name for names in _TOP_LEVEL.values() for name in names),
    "rotary_dim",
    "rope_local_base_freq",
    "global_rope_theta",
    "qk_rope_head_dim",
)

_TYPE_NAMES = {"su": "longrope"}  # Phi-3's old name; its family reads yarn as longrope, too
_READS_YARN_AS_LONGROPE = frozenset({"phi3", "phi4_multimodal"})
_AXES_KEYS = ("mrope_section", "xdrope_section")
_AXES_TYPES = ("axial", "mrope", "xdrope")
_ALWAYS = frozenset({"rope_type", "rope_theta", "partial_rotary_factor"})
_NEVER = frozenset({"finetuned", "max_position_embeddings", "mrope_interleaved"})
# What each rope_type reads.  What only another one reads has no effect; all else is an error.
_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "alpha"}),
    "ntk": frozenset({"factor", "mixed_b"}),
    "yarn": _names(
        """factor original_max_position_embeddings attention_factor attn_factor beta_fast beta_slow
        mscale mscale_all_dim truncate llama_4_scaling_beta"""
    ),
    "longrope": _names(
        """short_factor long_factor factor original_max_position_embeddings attention_factor
        short_mscale long_mscale"""
    ),
    "llama3": _names("factor low_freq_factor high_freq_factor original_max_position_embeddings"),
    "proportional": frozenset({"factor"}),
}
_KNOWN = _ALWAYS | _NEVER | frozenset().union(*_KEYS.values())
_OWN = "rotary"  # the model_type of to_config's dictionaries


def from_config(
    config: Any, *, part: str | None = None, layer_type: str | None = None
) -> RotaryEmbedding:
    """Return the rotary embedding that a Hugging Face config describes.

    Every spelling is read: ``rope_parameters``, the legacy ``rope_scaling``, keys at top level such
    as ``rotary_pct``, dictionaries nested by layer type.  Layout and side follow ``model_type``;
    what the config leaves unsaid is what transformers' config class would fill in.

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
        `part` or `layer_type` is needed; for a part without rotation; for positions of several
        axes, which this release does not have.

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
    """
    chosen = _part(_loaded(config), part)
    if chosen.model_type == _OWN:
        return _own(chosen.given)
    ropes = _ropes(chosen)
    label = _label(chosen, ropes, layer_type)
    return _embedding(_record(chosen.of_layer(layer_type), ropes[label]))


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
    chosen = _part(_loaded(config), part)
    count = chosen.get("num_hidden_layers")
    if not isinstance(count, int):
        raise ValueError(f"num_hidden_layers: got {count!r}, expected a whole number")
    if chosen.model_type == _OWN:
        return [_own(chosen.given)] * count
    ropes, types = _ropes(chosen), chosen.layer_types(count)
    if types is None and (None not in ropes or chosen.model_type in _ONLY_SLIDING):
        names = _quoted(ropes if None not in ropes else ("full_attention", "sliding_attention"))
        raise ValueError(f"layer_types: missing, expected one of {names} for each layer")
    made: dict[Any, RotaryEmbedding] = {}
    layers: list[RotaryEmbedding | None] = []
    for index in range(count):
        kind = None if types is None else types[index]
        values = _of_layer(chosen, ropes, index, kind)
        if values is not None:
            key = repr((values, kind))
            if key not in made:
                made[key] = _embedding(_record(chosen.of_layer(kind), values))
            layers.append(made[key])
        else:
            layers.append(None)
    return layers


def to_config(rope: RotaryEmbedding) -> dict[str, Any]:
    """Return an embedding as a dictionary that ``json`` writes and :func:`from_config` reads back.

    The keys are transformers' where it has them; ``layout``, ``rotary_side``, ``rotary_dim``,
    ``frequency_dim`` and ``xpos`` are ours, and so is the model_type "rotary".

    Examples
    --------
    >>> import rotary
    >>> rope = rotary.RotaryEmbedding(8, scaling=rotary.scaling.Linear(2.0))
    >>> rope.to_config()["rope_parameters"]
    {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 2.0}
    >>> rotary.from_config(rope.to_config()) == rope
    True
    """
    if rope.axes is not None:
        raise ValueError(f"axes: got {rope.axes!r}, expected None: no key tells it")
    out: dict[str, Any] = {
        "model_type": _OWN,
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
    if rope.xpos is not None:
        out["xpos"] = asdict(rope.xpos)
    if rope.scaling is not None:
        dictionary["rope_type"] = _TYPE_OF_RULE[type(rope.scaling)]
        for field in fields(rope.scaling):  # type: ignore[arg-type]  # rules are dataclasses
            value = getattr(rope.scaling, field.name)
            if value is not None:
                dictionary[field.name] = list(value) if isinstance(value, tuple) else value
    if isinstance(rope.scaling, NTK):
        dictionary["alpha"] = dictionary.pop("factor")
    if isinstance(rope.scaling, DynamicNTK):
        name = "original_max_position_embeddings"
        out["max_position_embeddings"] = dictionary.pop(name)
    out["rope_parameters"] = dictionary
    return out


# Finding the part


@dataclass(frozen=True)
class _Config:
    """One config or sub-config, and what its family fills in."""

    name: str
    given: Mapping[str, Any]
    model_type: str
    family: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return a key's value by any of its spellings; the family's default if it is not there."""
        given = self.written(key)
        return given if given is not None or key in self.given else self.family.get(key)

    def written(self, key: str) -> Any:
        """Return a key's value by any of its spellings, None if the config is silent."""
        spelled = self.family.get("spelled", {}).get(key)
        for name in (key, spelled, *_SPELLINGS.get(key, ())):
            if name is not None and self.given.get(name) is not None:
                return self.given[name]
        return None

    def layer_types(self, count: int) -> list[str] | None:
        """Return one type a layer, from the list, or from the pattern that repeats."""
        types = self.written("layer_types")
        if types is not None:
            if len(types) < count:
                raise ValueError(
                    f"layer_types: got {len(types)}, expected one for each of "
                    f"num_hidden_layers = {count}"
                )
            return list(types[:count])
        pattern = self._pattern()
        return None if pattern is None else [pattern[i % len(pattern)] for i in range(count)]

    def _pattern(self) -> list[str] | None:
        """Return the layer types that repeat."""
        pattern: list[str] | None = self.written("block_types") or self.family.get("layer_pattern")
        for name in _PATTERN_KEYS:
            length = self.given.get(name)
            if isinstance(length, int) and length > 0:
                others = ["sliding_attention"] * (length - 1)
                if pattern is not None and pattern[0] == "full_attention":
                    return ["full_attention", *others]
                return [*others, "full_attention"]
        return pattern

    def of_layer(self, layer_type: str | None) -> _Config:
        """Return this config with what it overrides for layers of one type."""
        overrides: Mapping[str, Any] = {}
        table = self.given.get("per_layer_config")
        types = self.written("layer_types")
        if table and types and layer_type in types:
            by_index = {int(index): values for index, values in table.items()}
            overrides = by_index.get(types.index(layer_type), {})
        elif not table and layer_type == "full_attention" and self.get("global_head_dim"):
            overrides = {"head_dim": self.get("global_head_dim")}
        return replace(self, given={**self.given, **overrides})


def _loaded(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if hasattr(config, "to_dict"):
        return _loaded(config.to_dict())
    if isinstance(config, str | os.PathLike):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
        raise TypeError(f"config: got {type(values).__name__} in {path}, expected an object")
    raise TypeError(
        f"config: got {type(config).__name__}, expected a dict, a path or an object with to_dict()"
    )


@lru_cache(maxsize=1)
def _families() -> dict[str, dict[str, Any]]:
    text = resources.files("rotary").joinpath("families.json").read_text(encoding="utf-8")
    families: dict[str, dict[str, Any]] = json.loads(text)
    families["kimi_k2"] = families["deepseek_v3"]  # its code is DeepSeek-V3's
    return families


def _config(name: str, given: Mapping[str, Any], parent: str = "") -> _Config:
    families = _families()
    model_type = given.get("model_type") or ""
    if parent and model_type not in families:
        # A sub-config without a name of its own is what its parent's name says.
        stem = name.rpartition(".")[2].removesuffix("_config")
        named = (f"{model_type or parent}_{stem}", model_type, f"{parent}_{stem}")
        model_type = next((n for n in named if n in families), model_type)
    return _Config(name, given, model_type, families.get(model_type, {}))


def _parts(config: _Config) -> Iterator[_Config]:
    """Yield the sub-configs at any depth."""
    for key, value in config.given.items():
        if isinstance(value, Mapping) and (
            key.endswith("_config") or key in ("encoder", "decoder")
        ):
            prefix = "" if config.name == "config" else f"{config.name}."
            inner = _config(prefix + key, value, config.model_type)
            yield inner
            yield from _parts(inner)


def _part(values: Mapping[str, Any], part: str | None) -> _Config:
    whole = _config("config", values)
    parts = {inner.name: inner for inner in _parts(whole)}
    rotating = [name for name, inner in parts.items() if _why_still(inner) is None]
    if part is not None:
        if part not in parts:
            raise ValueError(
                f"part: got {part!r}, expected one of {_quoted(parts) or 'none: it has no parts'}"
            )
        chosen = parts[part]
    elif _why_still(whole) is None or not rotating:
        chosen = whole
    elif len(rotating) > 1:
        raise ValueError(
            f"part: got None, expected one of {_quoted(rotating)}: each has a rotation"
        )
    else:
        chosen = parts[rotating[0]]
    reason = _why_still(chosen)
    if reason is not None:
        expected = f"; expected one of {_quoted(rotating)}" if rotating else ""
        raise ValueError(f"{chosen.name}: describes no rotation: {reason}{expected}")
    return chosen


def _why_still(config: _Config) -> str | None:
    """Return why a config describes no rotation, or None if it does."""
    if config.model_type == _OWN:
        return None
    if config.model_type in _STILL:
        return f"model_type {config.model_type!r} rotates nothing"
    if config.model_type in _OFF:
        key, values = _OFF[config.model_type]
        if config.get(key) in values:
            return f"{key}: got {config.get(key)!r}"
    if config.model_type in _families() or config.model_type in _SEVERAL_AXES:
        return None
    if any(config.given.get(key) is not None for key in _MARKS):
        return None
    return f"model_type {config.model_type!r} is not known to rotate, and no key of {_MARKS} is set"


# Reading every spelling


@dataclass(frozen=True)
class _Record:
    """One rotation, all spellings gone."""

    head_dim: int
    rotated: int  # d, the features that rotate: an odd number leaves one of them still
    layout: str
    rotary_side: str
    backwards: bool
    base: float
    rope_type: str
    numbers: Mapping[str, Any]  # what the rope_type reads, without nulls
    length: int | None  # max_position_embeddings


_Rope = Mapping[str, Any]


def _ropes(config: _Config) -> dict[str | None, _Rope | None]:
    """Return the rope dictionary, under None, or one a layer type."""
    _check_one_axis(config)
    given = _agreeing(config)
    default: Mapping[str, Any] = config.family.get("rope", {})
    if any(isinstance(value, Mapping) for value in given.values()):
        for key, value in given.items():
            if value is not None and not isinstance(value, Mapping):
                _warn_inert(key, "beside dictionaries nested by layer type")
        return {k: v for k, v in given.items() if v is None or isinstance(v, Mapping)}
    if isinstance(config.given.get("rope_theta"), list):
        return dict(_of_lists(config, given))
    layered = _LAYERED.get(config.model_type)
    if layered is None and config.given.get("rope_local_base_freq") is not None:
        layered = _GEMMA3
    if layered is not None:
        return dict(_of_layered(config, given, layered))
    if given or not default:
        return {None: given}
    if any(isinstance(value, Mapping) for value in default.values()):
        return dict(default.items())
    return {None: default}


def _agreeing(config: _Config) -> dict[str, Any]:
    """Return rope_parameters and the legacy rope_scaling in one, where they agree."""
    merged: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        values = config.given.get(name)
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {values!r}, expected a dictionary")
        for key, value in values.items():
            if merged.get(key) is not None and value is not None and merged[key] != value:
                raise ValueError(
                    f"{key}: got {merged[key]!r} in rope_parameters and {value!r} in rope_scaling, "
                    f"expected one of them"
                )
            merged[key] = merged.get(key) if value is None else value
    return merged


def _of_layered(config: _Config, flat: _Rope, layered: _Layered) -> Iterator[tuple[str, _Rope]]:
    """Yield a dictionary a layer type from a flat one and one θ key a layer type."""
    for kind, (theta_key, scales) in layered.items():
        default = config.family.get("rope", {}).get(kind) or {}
        values = dict(flat) if scales and flat else dict(default)
        theta = config.given.get(theta_key)
        if theta is not None and values.get("rope_theta") not in (None, theta, *_one(default)):
            raise ValueError(
                f"rope_theta: got {values['rope_theta']} in the rope dictionary and {theta_key} "
                f"{theta}, expected one of them"
            )
        if theta is not None:
            values["rope_theta"] = theta
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in default:
                values.setdefault(key, default[key])
        rope_type = values.get("rope_type") or values.get("type")
        if config.model_type == "deepseek_v4" and rope_type == "yarn":
            values.setdefault("attention_factor", 1.0)  # its code multiplies by no factor
        yield kind, values


def _one(default: _Rope) -> tuple[Any, ...]:
    return (default["rope_theta"],) if "rope_theta" in default else ()


def _of_lists(config: _Config, flat: _Rope) -> Iterator[tuple[str, _Rope]]:
    """Yield a dictionary a layer type from lists with one θ a layer (Step 3.7)."""
    bases, types = config.given["rope_theta"], config.written("layer_types")
    if not types or len(types) > len(bases):
        raise ValueError(
            f"rope_theta: got {len(bases)} numbers, expected one for each of the "
            f"{len(types or ())} layer_types"
        )
    shares = config.given.get("partial_rotary_factors")
    for kind in dict.fromkeys(types):
        index = types.index(kind)
        values = {**(flat if kind == "full_attention" else {}), "rope_theta": bases[index]}
        if shares:
            values["partial_rotary_factor"] = shares[index]
        yield kind, values


def _check_one_axis(config: _Config) -> None:
    """Raise where the positions have several axes."""
    found = None
    if config.model_type in _SEVERAL_AXES:
        found = ("model_type", config.model_type)
    for name in ("rope_parameters", "rope_scaling"):
        outer = config.given.get(name) or config.family.get("rope") or {}
        inner = outer.values() if isinstance(outer, Mapping) else ()
        for values in (outer, *inner):
            if isinstance(values, Mapping):
                found = next(((k, values[k]) for k in _AXES_KEYS if values.get(k)), found)
                kind = values.get("rope_type") or values.get("type")
                if kind in _AXES_TYPES and found is None:
                    found = ("rope_type", kind)
    if found is not None:
        raise ValueError(
            f"{found[0]}: got {found[1]!r}, expected one position axis: several position axes are "
            f"not available in this release"
        )


def _label(
    config: _Config, ropes: Mapping[str | None, _Rope | None], layer_type: str | None
) -> str | None:
    """Return the key under which a layer type's dictionary stands."""
    if None in ropes:
        types = config.written("layer_types") or config.family.get("layer_pattern") or ()
        if layer_type is not None and layer_type not in types:
            raise ValueError(
                f"layer_type: got {layer_type!r}, expected None: all layers rotate alike"
            )
        return None
    label = _LABELS.get(config.model_type, {}).get(layer_type or "", layer_type)
    if ropes.get(label) is None:
        expected = _quoted(k for k, values in ropes.items() if values is not None)
        reason = "has no positions" if label in ropes else "the rope dictionary is nested"
        raise ValueError(f"layer_type: got {layer_type!r}, expected one of {expected}: {reason}")
    return label


def _of_layer(
    config: _Config, ropes: Mapping[str | None, _Rope | None], index: int, kind: str | None
) -> _Rope | None:
    """Return the rope dictionary of one layer, None where it has no positions."""
    if kind in _NO_ATTENTION or not _has_positions(config, index, kind):
        return None
    label = _LABELS.get(config.model_type, {}).get(kind or "", kind)
    values = ropes[None] if None in ropes else ropes.get(label)
    bases = config.given.get("layer_rope_theta")
    if values is not None and bases is not None:
        return {**values, "rope_theta": bases[index]} if bases[index] else None
    scaled = config.given.get("rope_scaling_layers")
    if values is not None and scaled is not None and index not in scaled:
        return {k: v for k, v in values.items() if k in _ALWAYS} | {"rope_type": "default"}
    return values


def _has_positions(config: _Config, index: int, kind: str | None) -> bool:
    layers = config.given.get("no_rope_layers")
    if layers:  # a list of ones, and of zeros for the layers without
        return bool(layers[index])
    if config.model_type in _EVERY_NTH_WITHOUT:
        return (index + 1) % (config.given.get("no_rope_layer_interval") or 4) != 0
    if config.model_type in _EVERY_4TH_FROM_LAST and config.given.get("layer_rope_theta") is None:
        return bool((config.get("num_hidden_layers") - 1 - index) % 4)
    if config.model_type in _ONLY_SLIDING_IF_ANY:
        return config.get("sliding_window") is None or kind == "sliding_attention"
    if config.model_type in _ONLY_SLIDING:
        return kind == "sliding_attention" or _is_forced(config, index)
    return True


def _is_forced(config: _Config, index: int) -> bool:
    """Whether it is one of Cohere 2 MoE's first, dense layers, all with positions."""
    kinds = config.given.get("mlp_layer_types")
    pattern = config.given.get("prefix_dense_sliding_window_pattern")
    return kinds is not None and pattern == 1 and kinds[index] == "dense"


def _record(config: _Config, rope: _Rope | None) -> _Record:
    rope = {} if rope is None else rope
    rope_type = _rope_type(config, rope)
    numbers = _numbers(rope, rope_type)
    base = _agreed(config, rope, "rope_theta", 10_000.0)
    share = _agreed(config, rope, "partial_rotary_factor", 1.0)
    if share > 1:
        raise ValueError(f"partial_rotary_factor: got {share}, expected at most 1")
    name = "partial_rotary_factor"
    share_given = rope.get(name) is not None or config.given.get(name) is not None
    head_dim, rotated, side = _geometry(config, share, share_given, rope_type)
    if rope_type == "proportional":
        numbers["partial_rotary_factor"] = share
    name = "original_max_position_embeddings"
    if name in _KEYS[rope_type]:
        given = (config.written(name), numbers.get(name), config.family.get(name))
        longest = config.get("max_position_embeddings")
        numbers[name] = next((n for n in (*given, longest) if n is not None), None)
    return _Record(
        head_dim=head_dim,
        rotated=rotated,
        layout=_layout(config),
        rotary_side=side,
        backwards=config.model_type in _BACKWARDS,
        base=base,
        rope_type=rope_type,
        numbers=numbers,
        length=config.get("max_position_embeddings"),
    )


def _rope_type(config: _Config, rope: _Rope) -> str:
    kinds = {}
    for key in ("rope_type", "type"):
        if rope.get(key) is not None:
            kind = _TYPE_NAMES.get(rope[key], rope[key])
            as_longrope = kind == "yarn" and config.model_type in _READS_YARN_AS_LONGROPE
            kinds[key] = "longrope" if as_longrope else kind
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"rope_type: got {rope['rope_type']!r} and type {rope['type']!r}, expected one of them"
        )
    rope_type = next(iter(kinds.values()), "default")
    if rope_type not in _KEYS:
        raise ValueError(f"rope_type: got {rope_type!r}, expected one of {_quoted(_KEYS)}")
    return str(rope_type)


def _numbers(rope: _Rope, rope_type: str) -> dict[str, Any]:
    """Return what the rope_type reads; warn of what it does not, raise for what nothing reads."""
    read = _KEYS[rope_type]
    if rope_type == "dynamic" and rope.get("alpha"):
        read = frozenset({"alpha"})
    numbers = {}
    for key, value in rope.items():
        if key == "type":
            continue
        if key not in _KNOWN:
            raise ValueError(
                f"{key}: got {value!r} in the rope dictionary of rope_type {rope_type!r}, expected "
                f"one of {_quoted(sorted(_KEYS[rope_type] | _ALWAYS))}"
            )
        if value is None and key != "factor":
            continue
        if key in read:
            numbers[key] = value
        elif key == "llama_4_scaling_beta":
            raise ValueError(
                f"{key}: got {value!r} with rope_type {rope_type!r}, expected it with 'yarn' only"
            )
        elif key not in _ALWAYS and value is not None:
            _warn_inert(key, f"with rope_type {rope_type!r}")
    return numbers


def _agreed(config: _Config, rope: _Rope, key: str, usual: float) -> float:
    """Return a positive number that stands in the rope dictionary or at top level, or a default."""
    found = {f"the rope dictionary's {key}": rope.get(key)} if rope.get(key) is not None else {}
    nested_default = key == "rope_theta" and isinstance(config.given.get(key), list)
    if not found or not _is_layered(config):
        for name in () if nested_default else _TOP_LEVEL[key]:
            if config.given.get(name) is not None:
                found[name] = config.given[name]
    if len(set(found.values())) > 1:
        told = " and ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(f"{key}: got {told}, expected one of them")
    names = (config.family.get(name) for name in _TOP_LEVEL[key])
    default = next((value for value in names if value is not None), usual)
    value = next(iter(found.values()), default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key}: got {value!r}, expected a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{key}: got {value}, expected a positive, finite number")
    return float(value)


def _is_layered(config: _Config) -> bool:
    """Whether each layer type has its dictionary, beside which the top level is a default only."""
    values = config.given.get("rope_parameters") or config.given.get("rope_scaling") or {}
    return (
        any(isinstance(value, Mapping) for value in values.values())
        or config.model_type in _LAYERED
        or any(
            config.given.get(k) is not None for k in ("rope_local_base_freq", "layer_rope_theta")
        )
    )


def _geometry(
    config: _Config, share: float, share_given: bool, rope_type: str
) -> tuple[int, int, str]:
    """Return the size of a head, how many of its features rotate, and on which side."""
    latent = config.get("qk_rope_head_dim")
    if latent and config.model_type not in _TRAILING:
        rest = _size(config, "qk_nope_head_dim") if config.get("qk_nope_head_dim") else 0
        return rest + latent, latent, "trailing" if rest else "leading"
    if config.get("head_dim") is not None:
        head_dim = _size(config, "head_dim")
    else:
        head_dim = _size(config, "hidden_size") // _size(config, "num_attention_heads")
    rotated = head_dim if rope_type == "proportional" else int(head_dim * share)
    if config.model_type == "clvp_encoder":
        heads = _size(config, "num_attention_heads")
        rotated = max(_size(config, "projection_dim") // (2 * heads), 32)
    if config.get("rotary_dim") is not None and not share_given:
        rotated = _size(config, "rotary_dim")
    elif config.written("rotary_dim") not in (None, rotated):
        raise ValueError(
            f"rotary_dim: got {config.written('rotary_dim')} and partial_rotary_factor {share} of "
            f"{head_dim} features, expected one of them"
        )
    trailing = config.model_type in _TRAILING and rotated < head_dim
    return head_dim, rotated, "trailing" if trailing else "leading"


def _size(config: _Config, key: str) -> int:
    value = config.get(key)
    if value is None:
        raise ValueError(f"{key}: missing in {config.name}, expected a whole number")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key}: got {value!r}, expected a whole number")
    if value <= 0:
        raise ValueError(f"{key}: got {value}, expected a positive number")
    return value


def _layout(config: _Config) -> str:
    pairs = config.model_type in _INTERLEAVED
    for key in ("rope_interleave", "rotary_emb_interleaved"):
        if config.given.get(key) is not None and config.model_type not in _INTERLEAVED:
            return "interleaved" if config.given[key] else "half"
    return "interleaved" if pairs or config.model_type in _INTERLEAVED_BY_KEY else "half"


# From the record to the embedding


def _needed(record: _Record, key: str) -> Any:
    value = record.numbers.get(key)
    if value is None:
        raise ValueError(
            f"{key}: missing in the rope dictionary, expected with rope_type {record.rope_type!r}"
        )
    return value


def _dynamic(record: _Record) -> Scaling:
    if record.numbers.get("alpha"):
        return NTK(record.numbers["alpha"])
    if record.length is None:
        raise ValueError("max_position_embeddings: missing, expected with rope_type 'dynamic'")
    return DynamicNTK(_needed(record, "factor"), record.length)


def _yarn(record: _Record) -> Scaling:
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


def _factor(record: _Record, original: int) -> Any:
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


def _longrope(record: _Record) -> Scaling:
    numbers = dict(record.numbers)
    original = _needed(record, "original_max_position_embeddings")
    for key in ("short_factor", "long_factor"):
        _needed(record, key)
    if numbers.get("factor") is None and record.length is not None:
        numbers["factor"] = record.length / original
    return LongRoPE(**numbers)


def _llama3(record: _Record) -> Scaling:
    return Llama3(**{key: _needed(record, key) for key in sorted(_KEYS["llama3"])})


_RULES: dict[str, Callable[[_Record], Scaling | None]] = {
    "default": lambda record: None,
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
_TYPE_OF_RULE: dict[type, str] = {
    Linear: "linear",
    NTK: "dynamic",
    DynamicNTK: "dynamic",
    YaRN: "yarn",
    LongRoPE: "longrope",
    Llama3: "llama3",
    Proportional: "proportional",
}


def _embedding(record: _Record) -> RotaryEmbedding:
    rotary_dim = record.rotated + record.rotated % 2
    rope = RotaryEmbedding(
        record.head_dim,
        base=record.base,
        layout=record.layout,
        rotary_dim=rotary_dim,
        rotary_side=record.rotary_side if rotary_dim < record.head_dim else "leading",
        frequency_dim=record.rotated,
        scaling=_RULES[record.rope_type](record),
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


def _fixed_ntk(rope: RotaryEmbedding, record: _Record) -> list[float]:
    """ω of the type "ntk" that vLLM and GTE's own code read: Su, kexue.fm/archives/9706.

    ω_i / s^(2(i+1)/d), or with mixed_b ω_i / exp(a·(i+1)^b), a = ln s / (d/2)^b.
    """
    s, power = float(_needed(record, "factor")), record.numbers.get("mixed_b")
    if s <= 0:
        raise ValueError(f"factor: got {s}, expected a positive number")
    b = 1.0 if power is None else float(power)
    a = math.log(s) / (record.rotated / 2) ** b
    return [w / math.exp(a * (i + 1) ** b) for i, w in enumerate(rope.frequencies())]


def _own(given: Mapping[str, Any]) -> RotaryEmbedding:
    """Return what to_config wrote."""
    for key in ("head_dim", "rotary_dim", "frequency_dim", "layout", "rotary_side"):
        if given.get(key) is None:
            raise ValueError(f"{key}: missing, expected with model_type {_OWN!r}")
    rope = dict(given.get("rope_parameters") or {})
    rope_type, base = rope.pop("rope_type", "default"), rope.pop("rope_theta", 10_000.0)
    record = _Record(
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
        xpos=None if given.get("xpos") is None else XPos(**given["xpos"]),
    )


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _warn_inert(key: str, why: str) -> None:
    warnings.warn(f"{key}: has no effect {why}", UserWarning, stacklevel=2)

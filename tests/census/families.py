"""Write rotary/config/families.json: what each config class fills in where a file is silent.

Run ``python tests/census/families.py`` with the transformers of pyproject.toml; test_census.py
fails while the file is not current.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.configuration_utils import PreTrainedConfig

MODELS = Path(transformers.__file__).parent / "models"
TARGET = Path(__file__).parents[2] / "rotary" / "config" / "families.json"

# A config class with one of these fields, or named here, describes a rotation.
MARKS = {"rope_parameters", "rope_theta", "rotary_embedding_base", "qk_rope_head_dim", "rotary_dim"}
UNMARKED = {"roformer", "clvp_encoder", "esmfold2_atom_encoder"}
# Classes without a model_type of their own.
NAMELESS = {"EsmFold2AtomEncoderConfig": "esmfold2_atom_encoder"}
# Where a key stands for which the class has another name, beside its attribute_map.
_MEMORY = {"num_hidden_layers": "memory_attention_num_layers"}
SPELLED = {
    "edgetam_video": _MEMORY,
    "efficientloftr": {"num_hidden_layers": "num_attention_layers"},
    "musicflamingo": {"head_dim": "audio_config.hidden_size"},
    "sam2_video": _MEMORY,
    "sam3_tracker_video": _MEMORY,
}
# Default arguments of a __post_init__, which no field shows.
_GLOBAL_HEADS = (
    "diffusion_gemma_text",
    "embedding_gemma2_text",
    "gemma4_text",
    "gemma4_unified_text",
)
BUILT: dict[str, dict[str, Any]] = {
    **{name: {"global_head_dim": 512} for name in _GLOBAL_HEADS},
    "musicflamingo": {"audio_config.hidden_size": 1280},
}
# These carry the keys and rotate nothing.
STILL = {"glm5_next_text", "jamba", "kimi_linear", "nemotron_h"}

PLAIN = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "head_dim",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "rope_interleave",
    "rotary_dim",
    "rotary_embedding_base",
    "rope_theta",
    "projection_dim",
    "sliding_window",
    "position_embedding_type",
    "position_embeddings_type",
    "use_mem_rope",
    "use_rotary_embedding",
    "alibi",
    "global_head_dim",
    "embed_dim",
    "memory_attention_hidden_size",
    "memory_attention_downsample_rate",
    "memory_attention_num_attention_heads",
    "num_spatial_rope_pairs_per_axis",
    "spatial_rope_base_frequency",
    "num_uid_rope_pairs",
    "uid_rope_base_frequency",
)
RENAMED = {"hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"} | {
    "max_position_embeddings"
}


def config_classes() -> Iterator[type[PreTrainedConfig]]:
    """Yield every config class of every model folder."""
    for path in sorted(MODELS.glob("*/configuration_*.py")):
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, PreTrainedConfig)
                and value.__module__ == module.__name__
                and model_type_of(value)
            ):
                yield value


def model_type_of(cls: type[PreTrainedConfig]) -> str:
    """Return the name under which the file lists a class, "" for none."""
    return cls.model_type or NAMELESS.get(cls.__name__, "")


def field_defaults(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the defaults that are written in the class, not those computed from others."""
    return {
        f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
    }


def period(types: list[str] | None) -> list[str] | None:
    """Return the shortest pattern that repeats into these layer types, where there are several."""
    for length in range(2, 13):
        if types and len(set(types)) > 1 and len(types) >= 2 * length:
            pattern = types[:length]
            if all(kind == pattern[i % length] for i, kind in enumerate(types)):
                return pattern
    return None


def row(cls: type[PreTrainedConfig]) -> dict[str, Any] | None:
    """Return one family's defaults by the names that rotary reads, or None if none rotates."""
    model_type = model_type_of(cls)
    written = field_defaults(cls) | BUILT.get(model_type, {})
    if model_type in STILL or not (MARKS & written.keys() or model_type in UNMARKED):
        return None
    renamed = {k: v for k, v in cls.attribute_map.items() if k in RENAMED}
    renamed |= SPELLED.get(model_type, {})
    out = {
        name: written.get(renamed.get(name, name))
        for name in PLAIN
        if isinstance(written.get(renamed.get(name, name)), int | float | str)
    }
    config = cls()
    rope = getattr(config, "rope_parameters", None) or {}
    plain = rope.get("rope_type") in (None, "default", "axial")
    if not plain or any(map(_is_nested, rope.values())):
        out["rope"] = dict(sorted(rope.items()))  # some are made from a set
    else:
        for name, usual in (("rope_theta", 10_000.0), ("partial_rotary_factor", 1.0)):
            if rope.get(name, usual) != usual:
                out[name] = rope[name]
    pattern = period(getattr(config, "layer_types", None))
    if pattern:
        out["layer_pattern"] = pattern
    if renamed:
        out["spelled"] = renamed
    return out


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict)


def text() -> str:
    """Return the file's content: one line a family."""
    transformers.logging.set_verbosity_error()
    rows = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cls in config_classes():
            found = row(cls)
            if found is not None:
                rows[model_type_of(cls)] = found
    lines = (f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")

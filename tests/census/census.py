"""Hold from_config to every rotary embedding of transformers: frequencies, factor, rotation.

Each class is built from a default config and from one config a rope_type that it takes.  Its own
tables and its own apply function rotate random q and k, and so does ``rotary.from_config`` of the
same config's dictionary.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import several_axes
import torch
import transformers
from comparing import (
    POSITIONS,
    RTOL_FREQUENCIES,
    DiffersError,
    Row,
    close,
    random_pair,
    rotates_alike,
)

import rotary
from rotary.config._families import READS_YARN_AS_LONGROPE

MODELS = Path(transformers.__file__).parent / "models"
NAMED = re.compile(r"^class (\w*(?:Rotary|RoPE|RopePosition)\w*)", re.MULTILINE)
BESIDE = re.compile(r"def \w*(?:rotate_half|rotate_every_two|apply_rotary|rotate_queries)\w*\(")
BLOCK = re.MULTILINE | re.DOTALL
CONTEXT = 2048  # positions beyond it need the long side of length-dependent rules

# Classes whose annotation is a config of several parts, or none.
CONFIGS = {
    "BltRotaryEmbedding": "BltGlobalTransformerConfig",
    "ClvpRotaryPositionalEmbedding": "ClvpEncoderConfig",
    "DeepseekOcr2VisionRotaryEmbedding": "DeepseekOcr2VisionEncoderConfig",
    "DiaRotaryEmbedding": "DiaDecoderConfig",
    "Emu3RotaryEmbedding": "Emu3TextConfig",
    "GlmAsrRotaryEmbedding": "GlmAsrEncoderConfig",
    "MiniMaxM3VLRotaryEmbedding": "MiniMaxM3VLTextConfig",
    "MuseGlimmerTextRotaryEmbedding": "MuseGlimmerTextConfig",
    "MuseSparkTextRotaryEmbedding": "MuseSparkTextConfig",
    "Nemotron3DiarizationRotaryEmbedding": "Nemotron3DiarizationAudioConfig",
    "PaddleOCRRotaryEmbedding": "PaddleOCRTextConfig",
    "Qwen2VLRotaryEmbedding": "Qwen2VLTextConfig",
    "Qwen2_5OmniRotaryEmbedding": "Qwen2_5OmniTextConfig",
    "Qwen2_5_VLRotaryEmbedding": "Qwen2_5_VLTextConfig",
    "Qwen3OmniMoeTalkerRotaryEmbedding": "Qwen3OmniMoeTalkerTextConfig",
    "Qwen3OmniMoeRotaryEmbedding": "Qwen3OmniMoeTalkerCodePredictorConfig",
    "SeamlessM4TConformerRotaryPositionalEmbedding": "SeamlessM4TConfig",
    "Step3p7RotaryEmbedding": "Step3p7TextConfig",
    "T5GemmaRotaryEmbedding": "T5GemmaModuleConfig",
    "VoxtralRealtimeRotaryEmbedding": "VoxtralRealtimeTextConfig",
    "Wav2Vec2BertRotaryPositionalEmbedding": "Wav2Vec2BertConfig",
    "Wav2Vec2ConformerRotaryPositionalEmbedding": "Wav2Vec2ConformerConfig",
}
# What has to be set for a default config to rotate.
_HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
SWITCHES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    },
    "glm4v_text": {"rope_parameters": _HALF},
    "glm4v_moe_text": {"head_dim": 128, "rope_parameters": _HALF},
    "glm_image_text": {"rope_parameters": _HALF},
    "hunyuan_vl_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [16, 16, 16, 16],
        }
    },
    "qwen3_omni_moe_text": {"num_attention_heads": 32, "head_dim": 128},
    "esm": {"position_embedding_type": "rotary"},
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "seamless_m4t": {"position_embeddings_type": "rotary"},
    "wav2vec2-bert": {"position_embeddings_type": "rotary"},
    "wav2vec2-conformer": {"position_embeddings_type": "rotary"},
    "zamba2": {"use_mem_rope": True},
}
# Files that rotate without a class, and do not rotate after all.
FILES = dict.fromkeys(
    ("nemotron_asr_streaming", "parakeet", "jamba", "nemotron_h"),
    "none: rotate_half is defined and never called",
)


# Whose defaults do not fit together (D12).
UNFIT = {
    "cohere_compass_text",
    "glm4v_moe_text",
    "glm4v_text",
    "glm_image_text",
    "hunyuan_vl_text",
    "qwen3_omni_moe_text",
}


# What there is


def modeling_files() -> Iterator[tuple[str, Path, list[str]]]:
    """Yield folder, file and the names of its rotary classes, for files that rotate."""
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        names = NAMED.findall(text)
        if names or BESIDE.search(text):
            yield path.parent.name, path, names


def rows() -> list[Row]:
    """Return a row for every class, and for every file that rotates without one."""
    transformers.logging.set_verbosity_error()
    out = []
    for folder, path, names in modeling_files():
        try:
            module = importlib.import_module(f"transformers.models.{folder}.{path.stem}")
        except ImportError as error:
            out += [Row(n, folder, status=f"not imported: {error}") for n in names or [path.stem]]
            continue
        out += [row_of(module, folder, name) for name in names]
        if not names:
            out.append(row_of_file(module, folder, path))
    return out


def row_of(module: ModuleType, folder: str, name: str) -> Row:
    """Check one class with all the scalings that it takes."""
    row, cls = Row(name, folder), getattr(module, name)
    config_class = config_class_of(module, cls)
    config = config_class(**copy.deepcopy(SWITCHES.get(config_class.model_type, {})))
    if "Attention" in name:
        several_axes.check_attention(row, module, cls, config)
        return row
    row.model_type = several_axes.model_type_of(config) or config_class.__name__
    scales = "ROPE_INIT_FUNCTIONS" in source_of(module, cls)
    kinds = ["default", *SCALINGS] if scales else ["default"]
    if config.model_type in READS_YARN_AS_LONGROPE:
        kinds = [kind for kind in kinds if "yarn" not in kind]
    if config.model_type in several_axes.SHARES_OF_AXES:
        kinds = [kind for kind in kinds if kind != "proportional"]
    types = _layer_types(config)
    row.axes = " / ".join(sorted({several_axes.told(from_config(config, t)) for t in types}))
    for kind in kinds:
        check_kind(row, module, cls, config, kind)
    if config.model_type in UNFIT:
        row.notes.append("default config: defect D12")
    if any("defect" not in note for note in row.notes):
        row.status = "differs"
    elif "default" not in row.scalings:
        row.status = "their defect"
    return row


@lru_cache(maxsize=8)
def _text_of(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def source_of(module: ModuleType, cls: type) -> str:
    """Return the source of a class and of its bases in the same file: inspect parses the file."""
    names = [c.__name__ for c in cls.__mro__ if c.__module__ == module.__name__]
    parts = (re.search(rf"^class {n}\b.*?(?=^\S)", _text_of(module), BLOCK) for n in names)
    return "".join(part[0] for part in parts if part is not None)


def config_class_of(module: ModuleType, cls: type) -> Any:
    """Return the class of the config from which a rotary class is built."""
    configs = importlib.import_module(module.__name__.replace("modeling_", "configuration_"))
    if cls.__name__ in CONFIGS:
        return getattr(configs, CONFIGS[cls.__name__])
    annotation = next(iter(inspect.signature(cls).parameters.values())).annotation
    if isinstance(annotation, str):
        annotation = getattr(module, annotation)
    return annotation


# Configs with every scaling


def _factors(pairs: int) -> list[float]:
    return [1.0 + i / 4 for i in range(pairs)]


def _yarn() -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": CONTEXT,
    }


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": _factors(pairs),
        "long_factor": [2 * f for f in _factors(pairs)],
        "original_max_position_embeddings": CONTEXT,
        "factor": 4.0,
        "short_mscale": 1.25,
        "long_mscale": 1.5,
    }


SCALINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "linear": lambda pairs: {"rope_type": "linear", "factor": 3.0},
    "dynamic": lambda pairs: {"rope_type": "dynamic", "factor": 2.0},
    "yarn": lambda pairs: _yarn(),
    "yarn, truncate: false": lambda pairs: _yarn() | {"truncate": False},
    "longrope": _longrope,
    "llama3": lambda pairs: {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    },
    "proportional": lambda pairs: {"rope_type": "proportional", "factor": 2.0},
}


KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section")


def scaled(config: Any, kind: str, layer_type: str | None, pairs: int) -> Any:
    """Return a copy of a config that scales one layer type, or all, so."""
    config = copy.deepcopy(config)
    if kind == "default":
        return config
    extra = SCALINGS[kind](pairs)
    if config.model_type != "phimoe":
        extra = {k: v for k, v in extra.items() if "mscale" not in k}
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    kept = {k: rope[k] for k in KEPT if k in rope}
    if kind == "proportional":
        kept |= several_axes.wider(from_config(config, layer_type))
    if layer_type is None:
        config.rope_parameters = kept | extra
    else:
        config.rope_parameters = {**config.rope_parameters, layer_type: kept | extra}
    original = "original_max_position_embeddings"
    if original in extra and hasattr(config, original):
        setattr(config, original, CONTEXT)
    if kind == "dynamic":
        config.max_position_embeddings = CONTEXT
    return config


def _layer_types(config: Any) -> list[str | None]:
    """Return the layer types with a rope dictionary of their own, or None for all."""
    rope = getattr(config, "rope_parameters", None)
    if not _nested(rope):
        return [None]
    return [name for name, values in rope.items() if isinstance(values, dict)]


def _nested(rope: Any) -> bool:
    return any(isinstance(value, dict) for value in (rope or {}).values())


# One class with one scaling


def check_kind(row: Row, module: ModuleType, cls: Any, config: Any, kind: str) -> None:
    """Add to a row what one scaling shows."""
    types = _layer_types(config)
    named = types != [None] and config.model_type != "deepseek_v4"
    if named and not set(types) <= set(config.layer_types):
        config.layer_types = types  # some default configs use one type only
    told = set()
    for layer_type in types:
        alike = config if kind == "default" else scaled(config, "linear", layer_type, 0)
        pairs = several_axes.pairs_scaled(from_config(alike, layer_type))
        asked = scaled(config, kind, layer_type, pairs)
        told.add(outcome(row, module, cls, asked, layer_type, kind))
    told.discard("")
    if told:
        row.notes += [f"{kind}: {text}" for text in sorted(told)]
    else:
        row.scalings.append(kind)


def outcome(
    row: Row, module: ModuleType, cls: Any, config: Any, layer_type: str | None, kind: str
) -> str:
    """Return "" where theirs and ours agree, else why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = from_config(config, layer_type)
        try:
            make = Theirs if ours.axes is None else several_axes.Theirs
            theirs = make(module, cls, config, layer_type, ours)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            for name, where in RAISING.items():
                if where(config.model_type, kind, text):
                    return f"defect {name}"
            return f"theirs raises {text}"
        try:
            row.order = compare(theirs, ours, kind)
        except DiffersError as error:
            for name, mistaken in MISTAKEN.items():
                other = mistaken(config.model_type, ours)
                if other is not None and _agrees(theirs, other, kind):
                    return f"defect {name}"
            return str(error)
        row.layout, row.side = ours.layout, ours.rotary_side
    return ""


def _agrees(theirs: Theirs, ours: Any, kind: str) -> bool:
    try:
        compare(theirs, ours, kind)
    except DiffersError:
        return False
    return True


# Their defects, each with a runnable reproduction on the page: what their code says when it
# raises, or what ours would have to be to make the same mistake.
RAISING: dict[str, Callable[[str, str, str], bool]] = {
    "D2": lambda model, kind, text: "yarn" in kind and "size of tensor b (10)" in text,
    "D3": lambda model, kind, text: "for *: 'NoneType' and 'float'" in text,
    "D4": lambda model, kind, text: model == "phimoe" and text.startswith("KeyError"),
    "D5": lambda model, kind, text: model == "minimax_m3_vl_text" and kind == "longrope",
    "D6": lambda model, kind, text: kind == "proportional" and "must match the size" in text,
    "D11": lambda model, kind, text: (
        model in several_axes.SHARES_OF_AXES and text.startswith("AttributeError")
    ),
}


def _ignoring_truncate(
    model_type: str, ours: rotary.RotaryEmbedding
) -> rotary.RotaryEmbedding | None:
    rule = ours.scaling
    if isinstance(rule, rotary.scaling.YaRN) and not rule.truncate:
        return replace(ours, scaling=replace(rule, truncate=True))
    return None


def _never_long(model_type: str, ours: rotary.RotaryEmbedding) -> rotary.RotaryEmbedding | None:
    rule = ours.scaling
    if model_type == "phimoe" and isinstance(rule, rotary.scaling.LongRoPE):
        return replace(ours, scaling=replace(rule, long_factor=rule.short_factor))
    return None


def _rotating_all(model_type: str, ours: rotary.RotaryEmbedding) -> rotary.RotaryEmbedding | None:
    if model_type == "minimax_m3_vl_text":
        return replace(ours, rotary_dim=ours.head_dim, frequency_dim=ours.head_dim)
    return None


MISTAKEN: dict[str, Callable[[str, rotary.RotaryEmbedding], Any]] = {
    "D1": _ignoring_truncate,
    "D4": _never_long,
    "D5": _rotating_all,
    "D9": several_axes.cut_in_halves,
}


def from_config(config: Any, layer_type: str | None) -> rotary.RotaryEmbedding:
    """Return ours for a config of theirs, through its dictionary."""
    values = config.to_dict()
    values["model_type"] = several_axes.model_type_of(config)
    if layer_type is not None and layer_type not in (getattr(config, "layer_types", None) or ()):
        values["layer_types"] = [layer_type]
    return rotary.from_config(values, layer_type=layer_type)


class Theirs:
    """What a class of theirs gives: frequencies, factor, and rotated q and k."""

    positions = POSITIONS

    def __init__(
        self,
        module: ModuleType,
        cls: Any,
        config: Any,
        layer_type: str | None,
        ours: rotary.RotaryEmbedding,
    ) -> None:
        made = cls(config)
        prefix = "" if layer_type is None else f"{layer_type}_"
        self.inv_freq = getattr(made, f"{prefix}inv_freq").numpy().copy()
        self.factor = getattr(made, f"{prefix}attention_scaling", 1.0)
        if config.model_type == "phimoe":  # its forward overrides it
            self.factor = None
        both, apply = tables(made, layer_type), apply_of(module, config)
        self.rotated = [applied(apply, x, both, ours) for x in random_pair(ours.head_dim)]


def compare(theirs: Theirs, ours: rotary.RotaryEmbedding, kind: str) -> str:
    """Return the order of features; raise DiffersError unless all the numbers agree."""
    length = CONTEXT if kind in ("dynamic", "longrope") else None
    frequencies = np.abs(ours.frequencies(length))
    if ours.axes is not None:
        frequencies = np.sort(frequencies)
    if theirs.inv_freq is not None:
        close(frequencies, theirs.inv_freq, RTOL_FREQUENCIES, "frequencies")
    if theirs.factor is not None:
        close(ours.attention_factor(length), theirs.factor, 1e-6, "attention factor")
    return rotates_alike(theirs.rotated, ours, theirs.positions)


def tables(theirs: Any, layer_type: str | None) -> Any:
    """Return what a class's forward gives at the positions."""
    extra = {} if layer_type is None else {"layer_type": layer_type}
    x = torch.zeros(1, len(POSITIONS), 8)
    names = inspect.signature(theirs.forward).parameters
    if "position_ids" in names:
        return theirs(x, torch.as_tensor(POSITIONS)[None], **extra)
    rows = theirs(torch.zeros(1, int(POSITIONS[-1]) + 1, 8))
    if rows.ndim == 3:  # angles (CLVP)
        return rows[0, POSITIONS].cos()[None], rows[0, POSITIONS].sin()[None]
    return tuple(table[POSITIONS, 0, 0][None] for table in rows)


Apply = Callable[[torch.Tensor, Any, int], torch.Tensor]


def apply_of(module: ModuleType, config: Any) -> Apply:
    """Return the module's own rotation as a function of x, tables and the number rotated."""
    if config.model_type in ("llama4_text", "deepseek_v2"):
        return _complex(module.apply_rotary_emb, config.model_type == "llama4_text")
    if config.model_type.startswith(("wav2vec2", "seamless")):
        return _hidden_states(module)
    pairs = getattr(module, "apply_rotary_pos_emb_interleave", None)
    if pairs is not None and not config.model_type.endswith("audio_encoder"):
        function = pairs if getattr(config, "rope_interleave", True) else None
    else:
        function = None
    return _ordinary(function or module.apply_rotary_pos_emb)


def _ordinary(function: Any) -> Apply:
    text, names = inspect.getsource(function), list(inspect.signature(function).parameters)
    by_itself = re.search(r"rotary_dim|rot_dim|rope_dim", text) is not None

    def apply(x: torch.Tensor, both: Any, rotated: int) -> torch.Tensor:
        part, rest = (x, x[..., :0]) if by_itself else (x[..., :rotated], x[..., rotated:])
        if names[0] == "x":
            out = function(part, *both)
        elif "v" in names:
            cos, sin = (table[0] for table in both)
            out = function(part, part, part, cos, sin, torch.arange(len(POSITIONS))[None])[0]
        else:
            out = function(part, part, *both)[0]
        return torch.cat([out, rest], dim=-1)

    return apply


def _complex(function: Any, heads_last: bool) -> Apply:
    def apply(x: torch.Tensor, table: Any, rotated: int) -> torch.Tensor:
        if not heads_last:
            return function(x, x, table)[0]
        turned = x.transpose(1, 2)
        return function(turned, turned, table)[0].transpose(1, 2)

    return apply


def _hidden_states(module: ModuleType) -> Apply:
    name = next(n for n in vars(module) if n.endswith("SelfAttention"))
    function = getattr(module, name)._apply_rotary_embedding

    def apply(x: torch.Tensor, both: Any, rotated: int) -> torch.Tensor:
        class Attention:
            num_heads, head_size = 1, x.shape[-1]

        four = torch.stack([table[0][:, None, None, :] for table in both])
        return function(Attention(), x[:, 0], four)[:, None]

    return apply


def applied(apply: Apply, x: Any, both: Any, ours: rotary.RotaryEmbedding) -> Any:
    """Return x as theirs rotates it; what the model cuts off first is cut off here."""
    rest = ours.head_dim - ours.rotary_dim if ours.rotary_side == "trailing" else 0
    wide = torch.as_tensor(x)[None, None]
    out = apply(wide[..., rest:], both, ours.rotary_dim)
    return torch.cat([wide[..., :rest], out], dim=-1)[0, 0].double().numpy()


def row_of_file(module: ModuleType, folder: str, path: Path) -> Row:
    """Check a file that rotates without a class for it."""
    row = Row(path.stem, folder)
    if folder in FILES:
        row.status = FILES[folder]
        return row
    if folder in several_axes.FILES:
        several_axes.FILES[folder](row, module)
        return row
    configs = importlib.import_module(module.__name__.replace("modeling_", "configuration_"))
    name = {"codegen": "CodeGenConfig", "gptj": "GPTJConfig", "roformer": "RoFormerConfig"}[folder]
    config = getattr(configs, name)()
    ours = rotary.from_config(config.to_dict())
    rotate = _roformer if folder == "roformer" else _gptj
    try:
        theirs = [rotate(module, x, ours.rotary_dim) for x in random_pair(ours.head_dim)]
        row.order = rotates_alike(theirs, ours)
    except DiffersError as error:
        row.status, row.notes = "differs", [str(error)]
    row.model_type, row.scalings = config.model_type, ["default"]
    row.layout, row.side = ours.layout, ours.rotary_side
    return row


def _gptj(module: ModuleType, x: Any, rotated: int) -> Any:
    table = module.create_sinusoidal_positions(int(POSITIONS[-1]) + 1, rotated)[POSITIONS][None]
    wide = torch.as_tensor(x)[None, :, None]  # batch, seq, heads, dim
    turned = module.apply_rotary_pos_emb(wide[..., :rotated], *table.chunk(2, dim=-1))
    return torch.cat([turned, wide[..., rotated:]], dim=-1)[0, :, 0].numpy()


def _roformer(module: ModuleType, x: Any, rotated: int) -> Any:
    embedding = module.RoFormerSinusoidalPositionalEmbedding(int(POSITIONS[-1]) + 1, rotated)
    embedding.weight = torch.nn.Parameter(embedding.create_weight(), requires_grad=False)
    rotate = module.RoFormerSelfAttention.apply_rotary_position_embeddings
    wide = torch.as_tensor(x)[None, None]
    table = embedding.weight[POSITIONS].detach()[None, None]
    return rotate(table, wide, wide)[0][0, 0].numpy()

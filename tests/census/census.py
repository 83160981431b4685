"""Hold from_config to every rotary embedding of transformers: frequencies, factor, rotation.

Each class is built from a default config and from one config a rope_type that it takes.  Its own
tables and its own apply function rotate random q and k, and so does ``rotary.from_config`` of the
same config's dictionary.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers

import rotary
from rotary.config._families import READS_YARN_AS_LONGROPE, SEVERAL_AXES

MODELS = Path(transformers.__file__).parent / "models"
NAMED = re.compile(r"^class (\w*(?:Rotary|RoPE|RopePosition)\w*)", re.MULTILINE)
BESIDE = re.compile(r"def \w*(?:rotate_half|rotate_every_two|apply_rotary|rotate_queries)\w*\(")
POSITIONS = np.array([0, 1, 17, 4095])
CONTEXT = 2048  # positions beyond it need the long side of length-dependent rules
# Their angles are float32 products of a float32 frequency: off by (1 + pω) times a few 2^-24.
RTOL_FREQUENCIES = 2e-6
ANGLE = 8 * 2.0**-24

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
    "Qwen3OmniMoeRotaryEmbedding": "Qwen3OmniMoeTalkerCodePredictorConfig",
    "SeamlessM4TConformerRotaryPositionalEmbedding": "SeamlessM4TConfig",
    "Step3p7RotaryEmbedding": "Step3p7TextConfig",
    "T5GemmaRotaryEmbedding": "T5GemmaModuleConfig",
    "VoxtralRealtimeRotaryEmbedding": "VoxtralRealtimeTextConfig",
    "Wav2Vec2BertRotaryPositionalEmbedding": "Wav2Vec2BertConfig",
    "Wav2Vec2ConformerRotaryPositionalEmbedding": "Wav2Vec2ConformerConfig",
}
# What has to be set for a default config to rotate.
SWITCHES: dict[str, dict[str, Any]] = {
    "esm": {"position_embedding_type": "rotary"},
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "seamless_m4t": {"position_embeddings_type": "rotary"},
    "wav2vec2-bert": {"position_embeddings_type": "rotary"},
    "wav2vec2-conformer": {"position_embeddings_type": "rotary"},
    "zamba2": {"use_mem_rope": True},
}
# Rows that are no rotation of one position axis: the reason stands in the table.
AXES = "several axes: next issue"
SEVERAL = {
    "EsmFold2RotaryEmbedding",
    "DINOv3ViTRopePositionEmbedding",
    "Sapiens2RopePositionEmbedding",
    "MusicFlamingoRotaryEmbedding",
}
FILES = {
    "nemotron_asr_streaming": "none: rotate_half is defined and never called",
    "parakeet": "none: rotate_half is defined and never called",
    "jamba": "none: rotate_half is defined and never called",
    "nemotron_h": "none: rotate_half is defined and never called",
    "lightglue": AXES,
    "vjepa2": AXES,
}


@dataclass
class Row:
    """One line of the table."""

    name: str
    folder: str
    model_type: str = ""
    layout: str = ""
    side: str = ""
    order: str = ""
    scalings: list[str] = field(default_factory=list)
    status: str = "match"
    notes: list[str] = field(default_factory=list)


class DiffersError(Exception):
    """Theirs and ours are not the same."""


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
    if name in SEVERAL or "Attention" in name:
        row.status = AXES
        return row
    config_class = config_class_of(module, cls)
    config = config_class(**SWITCHES.get(config_class.model_type, {}))
    row.model_type = config.model_type or config_class.__name__
    if is_of_several_axes(config):
        row.status = AXES
        refused(config)
        return row
    text = inspect.getsource(cls)
    kinds = ["default", *SCALINGS] if "ROPE_INIT_FUNCTIONS" in text else ["default"]
    if config.model_type in READS_YARN_AS_LONGROPE:
        kinds = [kind for kind in kinds if "yarn" not in kind]
    for kind in kinds:
        check_kind(row, module, cls, config, kind)
    if any("defect" not in note for note in row.notes):
        row.status = "differs"
    elif "default" not in row.scalings:
        row.status = "their defect"
    return row


def config_class_of(module: ModuleType, cls: type) -> Any:
    """Return the class of the config from which a rotary class is built."""
    configs = importlib.import_module(module.__name__.replace("modeling_", "configuration_"))
    if cls.__name__ in CONFIGS:
        return getattr(configs, CONFIGS[cls.__name__])
    annotation = next(iter(inspect.signature(cls).parameters.values())).annotation
    if isinstance(annotation, str):
        annotation = getattr(module, annotation)
    return annotation


def is_of_several_axes(config: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    return config.model_type in SEVERAL_AXES or rope.get("rope_type") == "axial"


def refused(config: Any) -> None:
    """Raise unless from_config says that there are several axes."""
    try:
        rotary.from_config(config.to_dict())
    except ValueError as error:
        if "several position axes" in str(error):
            return
        raise
    raise DiffersError("several axes, and not refused")


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


def scaled(config: Any, kind: str, layer_type: str | None, pairs: int) -> Any:
    """Return a copy of a config that scales one layer type, or all, so."""
    config = copy.deepcopy(config)
    if kind == "default":
        return config
    extra = SCALINGS[kind](pairs)
    if config.model_type != "phimoe":
        extra = {k: v for k, v in extra.items() if "mscale" not in k}
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    kept = {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}
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


def _nested(rope: Any) -> bool:
    return any(isinstance(value, dict) for value in (rope or {}).values())


# One class with one scaling


def check_kind(row: Row, module: ModuleType, cls: Any, config: Any, kind: str) -> None:
    """Add to a row what one scaling shows."""
    rope = getattr(config, "rope_parameters", None)
    types: list[str | None] = [None]
    if _nested(rope):
        types = [name for name, values in rope.items() if isinstance(values, dict)]
        if not set(types) <= set(config.layer_types) and config.model_type != "deepseek_v4":
            config.layer_types = types  # some default configs use one type only
    told = set()
    for layer_type in types:
        alike = config if kind == "default" else scaled(config, "linear", layer_type, 0)
        pairs = math.ceil(from_config(alike, layer_type).frequency_dim / 2)
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
            theirs = Theirs(module, cls, config, layer_type, ours)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
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


def _agrees(theirs: Theirs, ours: rotary.RotaryEmbedding, kind: str) -> bool:
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


MISTAKEN = {"D1": _ignoring_truncate, "D4": _never_long, "D5": _rotating_all}


def from_config(config: Any, layer_type: str | None) -> rotary.RotaryEmbedding:
    """Return ours for a config of theirs, through its dictionary."""
    values = config.to_dict()
    values.setdefault("model_type", config.model_type)
    if layer_type is not None and layer_type not in (getattr(config, "layer_types", None) or ()):
        values["layer_types"] = [layer_type]
    return rotary.from_config(values, layer_type=layer_type)


class Theirs:
    """What a class of theirs gives: frequencies, factor, and rotated q and k."""

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


def random_pair(dim: int) -> Any:
    """Return random q and k at the positions, shape (2, positions, dim)."""
    return np.random.default_rng(2104_09864).standard_normal((2, len(POSITIONS), dim))


def compare(theirs: Theirs, ours: rotary.RotaryEmbedding, kind: str) -> str:
    """Return the order of features; raise DiffersError unless all the numbers agree."""
    length = CONTEXT if kind in ("dynamic", "longrope") else None
    close(np.abs(ours.frequencies(length)), theirs.inv_freq, RTOL_FREQUENCIES, "frequencies")
    if theirs.factor is not None:
        close(ours.attention_factor(length), theirs.factor, 1e-6, "attention factor")
    return rotates_alike(theirs.rotated, ours)


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


# Comparing


def close(ours: Any, theirs: Any, rtol: float, what: str) -> None:
    """Raise DiffersError unless two arrays agree."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise DiffersError(f"{what}: theirs of shape {theirs.shape}, ours {ours.shape}")
    error = float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-30), initial=0))
    if error > rtol:
        raise DiffersError(f"{what}: {error:.1e} apart")


def rotates_alike(theirs: Any, ours: rotary.RotaryEmbedding) -> str:
    """Return the order of features in which theirs is ours; raise DiffersError if there is none."""
    dim, rotated = ours.head_dim, ours.rotary_dim
    mine = [ours(x, positions=POSITIONS) for x in random_pair(dim)]

    # An error of an angle moves a pair by its length times it; the largest angle is pω, ω ≤ 1.
    scale = np.max(np.abs(mine[0])) + np.max(np.abs(mine[1]))
    bound = 2 * scale * ANGLE * (1 + POSITIONS)
    logits = np.abs(mine[0] @ mine[1].T - theirs[0] @ theirs[1].T)
    if np.any(logits > dim * scale * (bound[:, None] + bound)):
        raise DiffersError(
            f"logits: up to {np.max(logits[:3, :3]):.1e} apart at positions up to 17"
        )

    start = dim - rotated if ours.rotary_side == "trailing" else 0
    pairs_to_halves = np.r_[0:rotated:2, 1:rotated:2]
    for name, order in (("as read", np.arange(rotated)), ("pairs to halves", pairs_to_halves)):
        whole = np.arange(dim)
        whole[start : start + rotated] = start + order
        apart = max(
            np.max(np.abs(a[:, whole] - b) / bound[:, None])
            for a, b in zip(mine, theirs, strict=True)
        )
        if apart <= 1:
            return name
    raise DiffersError("rotated features: in no known order")


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

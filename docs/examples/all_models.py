"""Every rotary class of transformers: whether replace_rotary takes a model with it, or why not.

Models are built from their default configs, with few layers and experts, on the meta device, which
holds no numbers; what is asked of modules and functions is computed all the same.  Prints the lists
of docs/models.md:

    python docs/examples/all_models.py [FOLDER ...]
"""

import contextlib
import copy
import importlib
import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from rotary.integrations.transformers import replace_rotary

MODELS = Path(transformers.__file__).parent / "models"
CLASS = re.compile(r"^class (\w*(?:Rotary|RoPE|RopePosition)(?!\w*Attention)\w*)", re.MULTILINE)
WITHOUT_CLASS = ("codegen", "gptj", "lightglue", "roformer", "vjepa2")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
ROPE = {"rope_type": "default", "rope_theta": 1e4}
# What a default config needs to be built, or to rotate.
NEEDED = {
    "bamba": {"attn_layer_indices": [1]},
    "clvp_encoder": {"use_rotary_embedding": True},
    "dots1": {"n_routed_experts": 8},
    "esm": {"position_embedding_type": "rotary", "vocab_size": 33},
    "glm4v_text": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "glm4v_moe_text": {"head_dim": 128, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "glm_image_text": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "granitemoehybrid": {
        "position_embedding_type": "rope",
        "layer_types": ["mamba", "attention"] * 2,
        "num_hidden_layers": 4,
    },
    "hunyuan_vl_text": {
        "head_dim": 128,
        "rope_parameters": {**ROPE, "mrope_section": [16, 16, 16, 16]},
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen3_omni_moe_text": {"num_attention_heads": 32, "head_dim": 128},
    "seamless_m4t": {"position_embeddings_type": "rotary"},
    "wav2vec2-bert": {"position_embeddings_type": "rotary"},
    "wav2vec2-conformer": {"position_embeddings_type": "rotary"},
    "zamba2": {"use_mem_rope": True},
}


def files():
    """Yield folder, module and rotary classes of each modeling file that rotates."""
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        names = CLASS.findall(path.read_text(encoding="utf-8"))
        if names or path.parent.name in WITHOUT_CLASS:
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
            yield path.parent.name, module, names or [path.stem]


def models(module):
    """Yield the model classes of a file, the first of each config class."""
    seen = set()
    for cls in list(vars(module).values()):
        usual = isinstance(cls, type) and issubclass(cls, PreTrainedModel)
        if not usual or cls.__module__ != module.__name__ or "PreTrained" in cls.__name__:
            continue
        if cls.config_class is not None and cls.config_class not in seen:
            seen.add(cls.config_class)
            yield cls


def needed(config):
    """Set, at any depth, what a default config leaves unfit."""
    for name, value in NEEDED.get(config.model_type, {}).items():
        setattr(config, name, copy.deepcopy(value))
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            needed(value)


def small(config):
    """Cut layers and experts down, at any depth."""
    for names, most in ((LAYERS, 4), (EXPERTS, 8)):
        for name in names:
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, min(getattr(config, name), most))
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(getattr(config, name, None), list):
            with contextlib.suppress(AttributeError):  # computed by some
                setattr(config, name, getattr(config, name)[:4])
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            small(value)


def outcome(cls, cut):
    """Return the rotary classes replaced in a model, or None and why there are none."""
    try:
        with torch.device("meta"):
            config = cls.config_class(**copy.deepcopy(NEEDED.get(cls.config_class.model_type, {})))
            needed(config)
            if cut:
                small(config)
            model = cls(config)
    except Exception as error:  # whatever a default config leads to
        return None, f"its default config builds no model: {type(error).__name__}"
    try:
        replacement = replace_rotary(model)
    except ValueError as error:
        return None, str(error)
    return {type(model.get_submodule(name)).__name__ for name in replacement.embeddings}, ""


def reason(messages):
    """Return the most telling of several reasons, short."""
    told = [text for text in messages if "cannot replace" in text] or messages
    text = told[0].partition(": it ")[2] or told[0]
    return re.sub(r": RotaryEmbedding\(.*", "", text.removeprefix("model: "))


def rows(folders):
    """Yield folder, rotary class, and "" or why no model with it was replaced."""
    for folder, module, names in files():
        if folders and folder not in folders:
            continue
        replaced, messages = set(), []
        for cut in (True, False):  # a config that is cut may not fit together
            for cls in models(module):
                found, message = outcome(cls, cut)
                replaced |= found or set()
                messages += [message] if message and "found neither" not in message else []
            if {*names} <= replaced:
                break
        for name in names:
            of_file = name.startswith("modeling_") and bool(replaced)
            text = (
                ""
                if name in replaced or of_file
                else reason(messages or ["rotates in a method of its own"])
            )
            yield folder, name, text


def main(folders):
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = list(rows(folders))
    refused = [row for row in found if row[2]]
    print(f"{len(found) - len(refused)} of {len(found)} rotary classes")
    print()
    for folder, name, text in refused:
        print(f"| {name} | {folder} | {text} |")


if __name__ == "__main__":
    main(sys.argv[1:])

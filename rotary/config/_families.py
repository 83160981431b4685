"""What is known of the families and the keys of configs, as data.

What a file leaves unsaid is filled in from ``families.json``, the defaults of transformers' config
classes by ``model_type``; how a family lays out its features stands in the tables below.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any


def names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Families that rotate pairs (2i, 2i + 1); all others rotate halves.  Those that write what they
# read in pairs back in halves (DeepSeek-V3 and its kin) differ by one fixed permutation of features
# of q and of k, which no logit sees.
INTERLEAVED = names(
    """axk2 bailing_hybrid blt blt_global_transformer blt_local_decoder blt_local_encoder
    blt_patcher codegen cohere cohere2 cohere2_moe deepseek_v2 deepseek_v32 deepseek_v4
    dots3_note_text edgetam_video efficientloftr ernie4_5 ernie4_5_moe ernie4_5_vl_moe_text glm glm4
    glm4v_text glm_moe_dsa glm_ocr_text gptj helium inkling2_vision llama4_text llama4_vision_model
    longcat_flash mistral_large4_text moonshine moonshine_streaming musicflamingo
    openai_privacy_filter pe_audio_encoder pe_audio_video_encoder pe_video_encoder roformer
    sam2_video sam3_tracker_video sam3_vit_model"""
)
# Families whose key rope_interleave decides; where it is silent they rotate pairs.
INTERLEAVED_BY_KEY = names(
    "axk1 deepseek_v3 glm4_moe_lite kimi_k2 mistral4 mistral_large4_text youtu"
)
# Families that rotate by the opposite angle.
BACKWARDS = frozenset({"nanochat"})
# Families whose rotated features come last, beside those with a key qk_rope_head_dim.
TRAILING = frozenset({"deepseek_v4"})
# Families that carry the keys and rotate nothing.
STILL = frozenset({"glm5_next_text", "jamba", "kimi_linear", "nemotron_h"})
# Families with a rotation that no frequencies describe, and why.
BEYOND = {
    "lightglue": "its frequencies are learned weights, which rotary.cos_sin takes",
    "vjepa2": "its code turns the two members of a pair by different angles",
}
# Keys that give the size of a head: the first, divided by the others.
WIDTHS: dict[str, tuple[str, ...]] = {
    "qwen2_vl_vision": ("embed_dim", "num_attention_heads"),
    **dict.fromkeys(
        ("edgetam_video", "sam2_video", "sam3_tracker_video"),
        (
            "memory_attention_hidden_size",
            "memory_attention_downsample_rate",
            "memory_attention_num_attention_heads",
        ),
    ),
}
# Families that rotate all heads as one.
TOGETHER = frozenset({"efficientloftr"})
# A key of the config, and its values for which nothing rotates.
OFF: dict[str, tuple[str, tuple[Any, ...]]] = {
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
ONLY_SLIDING = frozenset({"afmoe", "cohere2", "cohere2_moe", "flint"})
ONLY_SLIDING_IF_ANY = frozenset({"exaone4", "exaone_moe", "kolibri1"})
# Families with a layer without positions at every no_rope_layer_interval-th place.
EVERY_NTH_WITHOUT = frozenset({"llama4_text", "mistral_large4_text", "smollm3"})
# The same, every fourth counted from the last, where there is no layer_rope_theta.
EVERY_4TH_FROM_LAST = frozenset({"muse_glimmer_text", "muse_spark_text"})
# Layer types without attention, or with attention that has no positions.
NO_ATTENTION = names("conv linear_attention mamba mamba2 moe mlp recurrent rglru short_conv")
# Which of the two nested dictionaries a layer of another type reads.
LABELS: dict[str, dict[str, str]] = {
    "deepseek_v4": {
        "sliding_attention": "main",
        "compressed_sparse_attention": "compress",
        "heavily_compressed_attention": "compress",
    }
}
# Flat spellings of what is nested now: for each layer type the key of its θ, and whether the flat
# dictionary scales it.
Layered = dict[str, tuple[str, bool]]
GEMMA3: Layered = {
    "full_attention": ("rope_theta", True),
    "sliding_attention": ("rope_local_base_freq", False),
}
MODERNBERT: Layered = {
    "full_attention": ("global_rope_theta", True),
    "sliding_attention": ("local_rope_theta", True),
}
LAYERED: dict[str, Layered] = {
    "deepseek_v4": {"main": ("rope_theta", False), "compress": ("compress_rope_theta", True)},
    "dots3_note_text": {
        "indexed_attention": ("rope_theta", True),
        "sliding_attention": ("swa_rope_theta", True),
    },
    "gemma3_text": GEMMA3,
    "gemma3n_text": GEMMA3,
    "modernbert": MODERNBERT,
    "modernbert-decoder": MODERNBERT,
    "olmo3": {"full_attention": ("rope_theta", True), "sliding_attention": ("rope_theta", False)},
    "t5gemma2_decoder": GEMMA3,
    "t5gemma2_text": GEMMA3,
}

# Every how many layers one has full attention: first or last of them, as in the family's default.
PATTERN_KEYS = (
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "global_attn_every_n_layers",
)
# Other names of a key; the first that is present counts.
SPELLINGS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads", "speech_encoder_attention_heads"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "max_position_embeddings": ("n_positions", "n_ctx"),
    "layer_types": ("layers_block_type",),
}
# Keys at top level that say the same as a key of the rope dictionary: they have to agree.
TOP_LEVEL = {
    "rope_theta": ("rope_theta", "rotary_emb_base", "rotary_embedding_base", "max_wavelength"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"),
}
# Any of these at top level shows a rotation where the model_type is not known.
MARKS = (
    "rope_parameters",
    "rope_scaling",
    *(name for names in TOP_LEVEL.values() for name in names),
    "rotary_dim",
    "rope_local_base_freq",
    "global_rope_theta",
    "qk_rope_head_dim",
)

# Other names of a rope_type.  "su" is Phi-3's old one; its family reads yarn as longrope, too.  The
# last two only say that there are several axes.
# Sub-configs whose key does not end in "_config".
PARTS = names("encoder decoder atom_encoder diffusion_module structure_head")
TYPE_NAMES = {"su": "longrope", "mrope": "default", "xdrope": "dynamic"}
READS_YARN_AS_LONGROPE = frozenset({"phi3", "phi4_multimodal"})
ALWAYS = frozenset({"rope_type", "rope_theta", "partial_rotary_factor"})
NEVER = frozenset({"finetuned", "max_position_embeddings"})
OF_AXES = names("mrope_section xdrope_section mrope_interleaved interleaved")
# What each rope_type reads.  What only another one reads has no effect; all else is an error.
KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "axial": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "alpha"}),
    "ntk": frozenset({"factor", "mixed_b"}),
    "yarn": names(
        """factor original_max_position_embeddings attention_factor attn_factor beta_fast beta_slow
        mscale mscale_all_dim truncate llama_4_scaling_beta"""
    ),
    "longrope": names(
        """short_factor long_factor factor original_max_position_embeddings attention_factor
        short_mscale long_mscale"""
    ),
    "llama3": names("factor low_freq_factor high_freq_factor original_max_position_embeddings"),
    "proportional": frozenset({"factor"}),
}
KNOWN = ALWAYS | NEVER | OF_AXES | frozenset().union(*KEYS.values())
OWN = "rotary"  # the model_type of to_config's dictionaries


@lru_cache(maxsize=1)
def family_defaults() -> dict[str, dict[str, Any]]:
    text = resources.files("rotary.config").joinpath("families.json").read_text(encoding="utf-8")
    families: dict[str, dict[str, Any]] = json.loads(text)
    families["kimi_k2"] = families["deepseek_v3"]  # its code is DeepSeek-V3's
    return families

"""Defects of transformers 5.23.0 that the census meets, each as a program that shows it.

The programs stand on the page as they are here; test_census.py runs them.
"""

from __future__ import annotations

DEFECTS = {
    "D1": (
        "YaRN nested by layer type ignores `truncate: false`: it is looked up beside the nested "
        "dictionaries, not inside. Frequencies are up to 40% off.",
        """
from transformers import Olmo3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

rule = {
    "rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0,
    "original_max_position_embeddings": 2048,
}
config = Olmo3Config()
found = []
for truncate in (True, False):
    config.rope_parameters = {"full_attention": {**rule, "truncate": truncate}}
    found.append(ROPE_INIT_FUNCTIONS["yarn"](config, layer_type="full_attention")[0])
assert (found[0] == found[1]).all()  # the key makes no difference
""",
    ),
    "D2": (
        "YaRN raises where an odd number of features rotates (GLM-4 MoE's default: 42 · 0.5 = 21): "
        "11 frequencies meet a ramp of 10.",
        """
from transformers import Glm4MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

config = Glm4MoeConfig()
config.rope_parameters = {
    **config.rope_parameters, "rope_type": "yarn", "factor": 8.0,
    "original_max_position_embeddings": 2048,
}
try:
    ROPE_INIT_FUNCTIONS["yarn"](config)
except RuntimeError as error:
    assert "must match" in str(error)
else:
    raise AssertionError("no longer raises")
""",
    ),
    "D3": (
        "dynamic, yarn and longrope raise where `head_dim` is null, the default of Mixtral, "
        "Ministral, MiniMax and HunYuan: `getattr` finds the None and does not fall back.",
        """
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

config = MixtralConfig(rope_parameters={
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
    "original_max_position_embeddings": 32768,
})
try:
    MixtralRotaryEmbedding(config)
except TypeError as error:
    assert "NoneType" in str(error)
else:
    raise AssertionError("no longer raises")
""",
    ),
    "D4": (
        "PhiMoE computes its frequencies anew in every call, without a length: `long_factor` is "
        "never used, only `long_mscale`. With any other rope_type than longrope it raises "
        "KeyError.",
        """
import torch
from transformers import PhimoeConfig
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

def angles(long):
    config = PhimoeConfig(hidden_size=64, num_attention_heads=8, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [long] * 4, "original_max_position_embeddings": 16,
        "short_mscale": 1.0, "long_mscale": 1.0,
    })
    return PhimoeRotaryEmbedding(config)(torch.zeros(1), torch.arange(100)[None])[0]

assert (angles(1.0) == angles(8.0)).all()  # 100 positions of 16, and the long factors do nothing
""",
    ),
    "D5": (
        "MiniMax-M3's text config documents `rotary_dim` as the number of features that rotate, "
        "and rotates all of them unless `partial_rotary_factor` is given, too.",
        """
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLRotaryEmbedding

config = MiniMaxM3VLTextConfig(rotary_dim=64)
assert 2 * len(MiniMaxM3VLRotaryEmbedding(config).inv_freq) == config.head_dim == 128
""",
    ),
    "D6": (
        "proportional makes tables for the whole head, which families that cut the rotated "
        "features off first (Mistral 4, dots3-note) cannot apply.",
        """
from transformers import Mistral4Config
from transformers.models.mistral4.modeling_mistral4 import Mistral4RotaryEmbedding

config = Mistral4Config()
config.rope_parameters = {
    "rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
}
assert 2 * len(Mistral4RotaryEmbedding(config).inv_freq) == 2 * config.qk_rope_head_dim
""",
    ),
    "D7": (
        "OLMo 3's legacy spelling loses `rope_theta` for the sliding layers: the first read pops "
        "it, and the second finds the default.",
        """
from transformers import Olmo3Config

config = Olmo3Config(rope_theta=10_000.0)
assert config.rope_parameters["full_attention"]["rope_theta"] == 10_000.0
assert config.rope_parameters["sliding_attention"]["rope_theta"] == 500_000.0
""",
    ),
    "D8": (
        "Dynamic NTK has a memory: what a position gets depends on longer sequences that were "
        "seen before.",
        """
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

config = LlamaConfig(max_position_embeddings=2048, rope_parameters={
    "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0,
})
rope = LlamaRotaryEmbedding(config)
x, positions = torch.zeros(1), torch.arange(5000)[None]
before = rope(x, positions)[0]
rope(x, torch.arange(10_000)[None])
assert (rope(x, positions)[0] - before).abs().max() > 1.5
""",
    ),
    "D9": (
        "HunYuan-VL cuts the sections from the doubled angles, so that the two members of a pair "
        "turn by different axes: where these differ, as for every image, it is no rotation, and "
        "lengths change. The model's own code repeats the list of sections instead of doubling "
        "its numbers; so does ours.",
        """
import torch
from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import (
    HunYuanVLRotaryEmbedding, apply_rotary_pos_emb,
)

config = HunYuanVLTextConfig(rope_parameters={
    "rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 16, 16, 16],
})
rope, q = HunYuanVLRotaryEmbedding(config), torch.ones(1, 1, 1, 128)

def length(positions):  # in the text, width, height, number of the image
    cos, sin = rope(q, torch.tensor(positions)[:, None, None])
    return apply_rotary_pos_emb(q, q, cos, sin)[0].norm() / q.norm()

assert abs(length([5, 5, 5, 5]) - 1) < 1e-6
assert abs(length([5, 2, 9, 0]) - 1) > 1e-3
""",
    ),
    "D10": (
        "V-JEPA 2 tiles cos and sin for halves and rotates pairs of neighbours, so that the two "
        "members of a pair turn by different angles: it is no rotation, and scores depend on more "
        "than the difference of positions. The model was trained so "
        "(facebookresearch/vjepa2#15); no rotary embedding is equal to it.",
        """
import torch
from transformers.models.vjepa2.modeling_vjepa2 import rotate_queries_or_keys

def turned(x, position):
    return rotate_queries_or_keys(x[None, None, None], torch.tensor([position]))

q, k = torch.arange(40.0).sin().reshape(2, 20)
assert abs(turned(q, 7).norm() / q.norm() - 1) > 1e-3
scores = [(turned(q, m) * turned(k, n)).sum() for m, n in ((3, 5), (13, 15))]
assert abs(scores[0] - scores[1]) > 1e-3
""",
    ),
    "D11": (
        "EfficientLoFTR and MusicFlamingo name rope_types for which their configs lack a key: "
        "`max_position_embeddings` in the one, `hidden_size` in the other, which is asked for even "
        "where `head_dim` is there.",
        """
from transformers import EfficientLoFTRConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.musicflamingo.configuration_musicflamingo import MusicFlamingoConfig

for made, missing in (
    (EfficientLoFTRConfig(), "max_position_embeddings"), (MusicFlamingoConfig(), "hidden_size"),
):
    made.rope_parameters = {
        **made.rope_parameters, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    try:
        ROPE_INIT_FUNCTIONS["yarn"](made)
    except AttributeError as error:
        assert missing in str(error)
    else:
        raise AssertionError("no longer raises")
""",
    ),
    "D12": (
        "Defaults that do not fit together: sections of 32 for 64 pairs (GLM-4V, GLM-Image) or 11 "
        "(GLM-4V MoE), heads of 73 features (Qwen3-Omni), no sections (HunYuan-VL), no rope "
        "parameters (Cohere Compass). The rotary class of a default config raises, or what it "
        "gives cannot be applied; the census sets what is missing.",
        """
import importlib
import torch

for folder, name in (
    ("glm4v", "Glm4vText"), ("glm_image", "GlmImageText"), ("glm4v_moe", "Glm4vMoeText"),
    ("qwen3_omni_moe", "Qwen3OmniMoeThinkerText"), ("hunyuan_vl", "HunYuanVL"),
    ("cohere_compass", "CohereCompass"),
):
    model = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    configs = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    config = getattr(configs, f"{name.replace('Thinker', '').removesuffix('Text')}TextConfig")()
    q = torch.zeros(1, 1, 5, config.hidden_size // config.num_attention_heads)
    try:
        rope = getattr(model, f"{name}RotaryEmbedding")(config)
        cos, sin = rope(q, torch.arange(5)[None, None])
        model.apply_rotary_pos_emb(q, q, cos, sin)
    except (KeyError, RuntimeError, TypeError):
        pass
    else:
        raise AssertionError(f"{name} no longer raises")
""",
    ),
}

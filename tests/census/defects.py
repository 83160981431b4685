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
}

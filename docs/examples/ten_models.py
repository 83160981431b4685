"""Ten models of transformers with their own rotary embedding and with rotary's: docs/models.md.

Small seeded models, logits at the positions 0 … and at 100 000 …; tables are held to mpmath, logits
to the same model in float64 with exact tables.  Prints the page's table:

    python docs/examples/ten_models.py [NAME ...]
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)

from rotary.conformance import oracle
from rotary.integrations.transformers import replace_rotary

FAR = 100_000
TOKENS = 32
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 131_072,
    "initializer_range": 0.3,  # attention that is not uniform, as after training
}


def rope(rope_type="default", theta=10_000.0, **numbers):
    return {"rope_type": rope_type, "rope_theta": theta, **numbers}


def llama():
    numbers = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rule = rope("llama3", 5e5, factor=8.0, original_max_position_embeddings=8192, **numbers)
    config = transformers.LlamaConfig(**SIZES, rope_parameters=rule)
    return transformers.LlamaForCausalLM(config)


def qwen2():
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES, rope_parameters=rope(theta=1e6))
    )


def gemma3():
    types = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=32,
        layer_types=types,
        rope_parameters=dict(zip(types, (rope(), rope("linear", 1e6, factor=8.0)), strict=True)),
    )
    return transformers.Gemma3ForCausalLM(config)


def phi3():
    rule = {
        "short_factor": [1.0 + i / 16 for i in range(12)],
        "long_factor": [1.0 + i for i in range(12)],
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
    }
    config = transformers.Phi3Config(
        **SIZES,
        pad_token_id=0,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rope_parameters=rope("longrope", **rule),
    )
    return transformers.Phi3ForCausalLM(config)


def deepseek_v3():
    rule = {"factor": 40.0, "original_max_position_embeddings": 4096}
    config = transformers.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 2},
        rope_parameters=rope("yarn", mscale=1.0, mscale_all_dim=1.0, **rule),
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        experts_implementation="eager",  # the one that takes float64
    )
    return transformers.DeepseekV3ForCausalLM(config)


def gpt_neox():
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    rule = rope(partial_rotary_factor=0.25)
    config = transformers.GPTNeoXConfig(**sizes, rope_parameters=rule)
    return transformers.GPTNeoXForCausalLM(config)


def gptj():
    config = transformers.GPTJConfig(
        vocab_size=128,
        n_embd=64,
        n_layer=2,
        n_head=2,
        rotary_dim=16,
        n_positions=FAR + TOKENS,  # the rows of its table
        initializer_range=0.3,
    )
    return transformers.GPTJForCausalLM(config)


def cohere():
    config = transformers.CohereConfig(**SIZES, rope_parameters=rope(theta=1e4), logit_scale=1.0)
    return transformers.CohereForCausalLM(config)


IDS = {"image_token_id": 120, "video_token_id": 121}
MARKS = {"vision_start_token_id": 122, "vision_end_token_id": 123}


def qwen2_vl():
    vision = Qwen2VLVisionConfig(
        depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, initializer_range=0.3
    )
    text = Qwen2VLTextConfig(**SIZES, rope_parameters=rope(theta=1e6, mrope_section=[4, 6, 6]))
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **IDS, **MARKS)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3_vl():
    vision = Qwen3VLVisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=64,
        num_position_embeddings=64,
        deepstack_visual_indexes=[1],
        initializer_range=0.3,
    )
    rule = rope(theta=5e6, mrope_section=[6, 5, 5], mrope_interleaved=True)
    text = Qwen3VLTextConfig(**SIZES, head_dim=32, rope_parameters=rule)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **IDS, **MARKS)
    return transformers.Qwen3VLForConditionalGeneration(config)


MODELS = {
    "Llama": (llama, "half; llama3"),
    "Qwen2": (qwen2, "half; θ 10⁶"),
    "Qwen2-VL": (qwen2_vl, "half; 3 axes in blocks; 2-D in the tower"),
    "Qwen3-VL": (qwen3_vl, "half; 3 axes dealt out; 2-D in the tower"),
    "Gemma 3": (gemma3, "half; two by layer type, one linear"),
    "Phi-3": (phi3, "half; 24 of 32 features; LongRoPE"),
    "DeepSeek-V3": (deepseek_v3, "pairs to halves; trailing 16 of 32; YaRN"),
    "GPT-NeoX": (gpt_neox, "half; 8 of 32 features"),
    "GPT-J": (gptj, "interleaved; 16 of 32 features"),
    "Cohere": (cohere, "interleaved"),
}


def made(name):
    """Return a model that is the same in every run."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def inputs(model, shift=0):
    """Return tokens at the positions shift …; Qwen-VL's with an image of 4 × 8 patches in it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 100, (1, TOKENS), generator=generator)
    if not hasattr(model.config, "vision_config"):
        return {"input_ids": ids, "position_ids": torch.arange(TOKENS)[None] + shift}
    config, vision = model.config, model.config.vision_config
    image = slice(6, 6 + 4 * 8 // vision.spatial_merge_size**2)
    ids[:, image.start - 1], ids[:, image.stop] = 122, 123
    ids[:, image] = config.image_token_id
    grid = torch.tensor([[1, 4, 8]])
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    kinds = (ids == config.image_token_id).int()
    positions, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grid)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn((4 * 8, width), generator=generator),
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
        "position_ids": positions + shift,
    }


def logits(model, given):
    dtype = next(model.parameters()).dtype
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        return model(**given, use_cache=False).logits.double()


def apart(a, b):
    """Return the largest difference of logits, as a share of the largest logit."""
    return float((a - b).abs().max() / b.abs().max())


# Tables, theirs and ours, and the truth


@dataclass
class Seen:
    """What a rotary module of the text made, and where."""

    positions: np.ndarray
    cos: torch.Tensor
    sin: torch.Tensor


def tables_seen(model, given, names):
    """Return the tables that the text's rotary modules make in a forward pass, by layer type."""
    seen, hooks = {}, []

    def keep(module, args, kwargs, out):
        bound = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
        seen[bound.get("layer_type")] = Seen(bound["position_ids"].numpy(), *out)

    for name in names:
        module = model.get_submodule(name)
        hooks.append(module.register_forward_hook(keep, with_kwargs=True))
    logits(model, given)
    for hook in hooks:
        hook.remove()
    return seen


def truth_of(embedding, positions):
    """Return mpmath's cos and sin, one column a pair."""
    angles = oracle.Angles(
        rotary_dim=embedding.rotary_dim,
        base=embedding.base,
        frequency_dim=embedding.frequency_dim,
        inv_freq=embedding.inv_freq,
        scaling=embedding.scaling,
        seq_len=int(positions.max()) + 1,
        axes=embedding.axes,
    )
    single = embedding.axes is None
    rows = positions.reshape(-1) if single else positions.reshape(len(positions), -1)
    return oracle.tables(angles, rows.astype(np.float64))


def errors(theirs, ours, embedding):
    """Return how far their tables are from the truth, and how many of ours are not it, rounded."""
    truth = truth_of(embedding, ours.positions)
    worst, wrong = 0.0, 0
    for which, name in enumerate(("cos", "sin")):
        mine, yours = (getattr(t, name)[0].numpy() for t in (ours, theirs))
        exact, rounded = truth.high[which], truth.float32[which]
        if mine.shape == rounded.shape:
            spread = np.asarray
        elif np.array_equal(mine[:, ::2], mine[:, 1::2]):
            spread = lambda t: np.repeat(t, 2, axis=-1)  # noqa: E731
        else:
            spread = lambda t: np.tile(t, 2)  # noqa: E731
        worst = max(worst, float(np.abs(yours - spread(exact)).max()))
        wrong += int((mine != spread(rounded)).sum())
    return worst, wrong


def gptj_tables(model, given, embedding):
    """Return their table's rows and ours: GPT-J has no module that makes them."""
    positions = given["position_ids"]
    sin, cos = model.transformer.h[0].attn.embed_positions[positions].chunk(2, dim=-1)
    mine = embedding.tables(positions, like=cos)
    return Seen(positions.numpy(), cos, sin), Seen(positions.numpy(), *mine)


@dataclass
class Row:
    """One line of the page."""

    name: str
    parameters: int
    layers: int
    short: float
    round_trip: bool
    their_tables: float
    our_wrong: int
    their_logits: float
    our_logits: float

    def cells(self):
        kind = MODELS[self.name][1]
        cells = [self.name, f"{self.parameters:,}", f"{self.layers}", kind, f"{self.short:.0e}"]
        tables = f"{self.their_tables:.1e}", f"{self.our_wrong}"
        return [*cells, *tables, f"{self.their_logits:.0e}", f"{self.our_logits:.0e}"]


def run(name):
    """Return what one model shows."""
    model = made(name)
    near, far = inputs(model), inputs(model, FAR)
    theirs, theirs_far = logits(model, near), logits(model, far)
    with replace_rotary(model) as replacement:
        ours, ours_far = logits(model, near), logits(model, far)
        of_text = [n for n in replacement.embeddings if "visual" not in n]
        described = replacement.embeddings[of_text[0]]
        if name != "GPT-J":
            our_tables = tables_seen(model, far, of_text)
    round_trip = torch.equal(logits(model, near), theirs)
    if name == "GPT-J":
        pairs = [(*gptj_tables(model, far, described[None]), described[None])]
    else:
        their_tables = tables_seen(model, far, of_text)
        pairs = [(their_tables[k], our_tables[k], described[k]) for k in described]
    found = [errors(*pair) for pair in pairs]
    model.double()
    with replace_rotary(model):
        judge = logits(model, far)
    return Row(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=2,
        short=apart(ours, theirs),
        round_trip=round_trip,
        their_tables=max(worst for worst, _ in found),
        our_wrong=sum(wrong for _, wrong in found),
        their_logits=apart(theirs_far, judge),
        our_logits=apart(ours_far, judge),
    )


def main(names):
    for name in names or MODELS:
        row = run(name)
        assert row.round_trip, name
        print("| " + " | ".join(row.cells()) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

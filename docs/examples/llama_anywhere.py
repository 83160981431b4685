"""Llama on any array library: a forward pass written once against the array API with `rotary`.

It reads a Hugging Face checkpoint folder as `save_pretrained` writes it, computes in float32 on
NumPy, torch or JAX, and prints the token ids that follow a prompt, the likeliest each time:

    python docs/examples/llama_anywhere.py FOLDER --backend jax --prompt-ids 1,450,4996 --tokens 20
"""

import argparse
import json
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import ml_dtypes  # noqa: F401  # teaches NumPy bfloat16
import numpy as np
from array_api_compat import array_namespace, device
from safetensors.numpy import load_file

import rotary

# What forward computes; others share tensor names with these families and mean something else.
RUNS = {"model_type": ["llama", "mistral", "smollm3"], "hidden_act": ["silu"], "sliding_window": []}


@dataclass(frozen=True)
class Config:
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    ropes: tuple[rotary.RotaryEmbedding | None, ...]
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False


def forward(config, weights, ids, cache, offset):
    """Return the final hidden states of ids at positions offset …, and the cache with them."""
    xp = array_namespace(ids)
    x = xp.take(weights["model.embed_tokens.weight"], xp.reshape(ids, (-1,)), axis=0)
    x = xp.reshape(x, (*ids.shape, -1))  # (batch, seq, hidden)
    filled = []
    for i, (past, rope) in enumerate(zip(cache, config.ropes, strict=True)):
        layer = f"model.layers.{i}"
        y = rms_norm(config, weights, f"{layer}.input_layernorm", x)
        y, present = attention(config, weights, f"{layer}.self_attn", y, rope, past, offset)
        x = x + y
        y = rms_norm(config, weights, f"{layer}.post_attention_layernorm", x)
        x = x + swiglu(weights, f"{layer}.mlp", y)
        filled.append(present)
    return rms_norm(config, weights, "model.norm", x), filled


def attention(config, weights, name, x, rope, past, offset):
    xp, (batch, seq, _), head_dim = array_namespace(x), x.shape, config.head_dim
    q, k, v = (linear(weights, f"{name}.{part}_proj", x) for part in "qkv")
    q, k, v = (xp.reshape(y, (batch, seq, -1, head_dim)) for y in (q, k, v))
    q, k, v = (xp.permute_dims(y, (0, 2, 1, 3)) for y in (q, k, v))  # (batch, heads, seq, head_dim)
    q, k = rope(q, k, offset=offset) if rope else (q, k)  # SmolLM 3 has layers without positions
    k, v = write(past[0], k, offset), write(past[1], v, offset)  # (batch, kv_heads, slots, …)
    q = xp.reshape(q, (batch, config.num_key_value_heads, -1, seq, head_dim))  # (…, group, seq, …)
    scores = q @ k[:, :, None, :, :].mT / head_dim**0.5  # (batch, kv_heads, group, seq, slots)
    slots = xp.arange(k.shape[2], device=device(x))
    scores = xp.where(slots <= slots[offset : offset + seq, None], scores, -xp.inf)
    scores = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    y = scores @ v[:, :, None, :, :] / xp.sum(scores, axis=-1, keepdims=True)
    y = xp.reshape(xp.permute_dims(y, (0, 3, 1, 2, 4)), (batch, seq, -1))  # heads side by side
    return linear(weights, f"{name}.o_proj", y), (k, v)


def write(past, new, offset):
    """Return past with new from slot `offset` on, in one shape, so that compilers see one step."""
    xp, end = array_namespace(past), offset + new.shape[2]
    if end > past.shape[2]:
        raise ValueError(f"cache: got {end} positions, expected up to {past.shape[2]}")
    slots = xp.arange(past.shape[2], device=device(past))
    moved = xp.take(new, xp.clip(slots - offset, 0, end - offset - 1), axis=2)  # (…, slots, …)
    return xp.where(((slots >= offset) & (slots < end))[:, None], moved, past)


def swiglu(weights, name, x):
    gate, up = linear(weights, f"{name}.gate_proj", x), linear(weights, f"{name}.up_proj", x)
    sigmoid = (1 + array_namespace(x).tanh(gate / 2)) / 2  # no exp that could overflow
    return linear(weights, f"{name}.down_proj", gate * sigmoid * up)


def rms_norm(config, weights, name, x):
    xp = array_namespace(x)
    scale = xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + config.rms_norm_eps)
    return x / scale * weights[f"{name}.weight"]


def linear(weights, name, x):
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def empty_cache(config, weights, batch, capacity):
    """Return room for the keys and values of positions 0 … capacity − 1, a pair a layer."""
    like = weights["model.norm.weight"]
    shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
    zeros = array_namespace(like).zeros(shape, dtype=like.dtype, device=device(like))
    return [(zeros, zeros)] * config.num_hidden_layers


def generate(config, weights, prompt, count):
    """Yield the `count` token ids that follow a prompt, each computed from the one before."""
    vocab_size = weights["model.embed_tokens.weight"].shape[0]
    wrong = [i for i in prompt if not 0 <= i < vocab_size]
    if wrong or not prompt:
        raise ValueError(f"token ids: got {wrong or 'none'}, expected 0 to {vocab_size - 1}")
    cache = empty_cache(config, weights, 1, len(prompt) + count)
    xp, where = array_namespace(cache[0][0]), device(cache[0][0])
    ids, offset = prompt, 0
    for _ in range(count):
        x, cache = forward(config, weights, xp.asarray([ids], device=where), cache, offset)
        offset += len(ids)
        ids = [int(xp.argmax(linear(weights, "lm_head", x[:, -1, :])))]
        yield ids[0]


def load(folder, backend):
    """Return the config of a checkpoint folder and its weights, float32 arrays by name."""
    config, found = read_config(folder / "config.json"), {}
    files, index = {"model.safetensors"}, folder / "model.safetensors.index.json"
    if index.is_file():
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    for file in files:
        found |= load_file(existing(folder / file))
    names = tensor_names(config)
    buffers = {name for name in found if name.endswith("rotary_emb.inv_freq")}  # recomputed here
    for name in sorted(names ^ (found.keys() - buffers)):
        raise ValueError(f"{name}: {'missing from' if name in names else 'of no use in'} {folder}")
    weights = {name: CONVERTERS[backend](np.asarray(found[name], np.float32)) for name in names}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights


def existing(path):
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return path


def read_config(path):
    raw = {k: v for k, v in json.loads(existing(path).read_bytes()).items() if v is not None}
    for key, expected in RUNS.items():
        if key in raw and raw[key] not in expected:
            raise ValueError(f"{key}: got {raw[key]!r}, expected one of {expected} or nothing")
    missing = {"model_type", "hidden_size", "num_attention_heads", "num_hidden_layers"} - raw.keys()
    if missing:
        raise ValueError(f"{path}: {', '.join(sorted(missing))} missing")
    heads = raw["num_attention_heads"]
    raw = {"num_key_value_heads": heads, "head_dim": raw["hidden_size"] // heads} | raw
    raw["ropes"] = tuple(rotary.layers_from_config(raw))  # base, scaling and layers without
    return Config(**{field.name: raw[field.name] for field in fields(Config) if field.name in raw})


def tensor_names(config):
    layer = [f"{norm}_layernorm.weight" for norm in ("input", "post_attention")]
    layer += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    kinds = ("weight", "bias") if config.attention_bias else ("weight",)
    layer += [f"self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in kinds]
    names = {f"model.layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in layer}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    return names if config.tie_word_embeddings else names | {"lm_head.weight"}


def to_jax(array):
    jax = import_module("jax")
    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU, TF32 is the default
    return jax.numpy.asarray(array)


CONVERTERS = {
    "numpy": np.asarray,
    "torch": lambda array: import_module("torch").from_numpy(array),
    "jax": to_jax,
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Print the token ids that follow a prompt.")
    parser.add_argument("folder", type=Path, help="checkpoint: config.json and *.safetensors")
    parser.add_argument("--backend", choices=CONVERTERS, default="numpy", help="array library")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="how many to print")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt-ids", metavar="1,2,3", help="token ids to start from")
    prompt.add_argument("--text-file", metavar="FILE", type=Path, help="or the bytes of a file")
    options = parser.parse_args(arguments)
    file, ids = options.text_file, options.prompt_ids
    ids = list(existing(file).read_bytes()) if file else [int(i) for i in ids.split(",")]
    for token in generate(*load(options.folder, options.backend), ids, options.tokens):
        print(token, flush=True)


if __name__ == "__main__":
    main()

"""Llama on any array library: a forward pass written once against the array API with `rotary`.

It reads a Hugging Face checkpoint folder as `save_pretrained` writes it, computes in float32 on
NumPy, torch or JAX, and prints the token ids that follow a prompt, the likeliest each time:

    python docs/examples/llama_anywhere.py FOLDER --backend jax --prompt-ids 1,450,4996 --tokens 20
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_api_compat import array_namespace, device
from safetensors import deserialize

import rotary


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool


# The model.  Weights are a dictionary of arrays; their library is the one that computes.


def forward(config, weights, ids, cache=None):
    """Return the final hidden states of ids (batch, seq), which follow the cache, and its successor."""
    xp = array_namespace(ids)
    rope = rotary.RotaryEmbedding(config.head_dim, base=config.rope_theta)
    x = xp.take(weights["model.embed_tokens.weight"], xp.reshape(ids, (-1,)), axis=0)
    x = xp.reshape(x, (*ids.shape, -1))  # (batch, seq, hidden)
    kept = []
    for i in range(config.num_hidden_layers):
        layer, past = f"model.layers.{i}", cache[i] if cache else None
        normed = rms_norm(config, weights, f"{layer}.input_layernorm", x)
        mixed, keys_values = attention(config, weights, f"{layer}.self_attn", normed, rope, past)
        x = x + mixed
        normed = rms_norm(config, weights, f"{layer}.post_attention_layernorm", x)
        x = x + swiglu(weights, f"{layer}.mlp", normed)
        kept.append(keys_values)
    return rms_norm(config, weights, "model.norm", x), kept


def logits(config, weights, x):
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return linear(weights, head, x)  # (batch, seq, vocab)


def attention(config, weights, name, x, rope, past):
    xp = array_namespace(x)
    q, k, v = (
        split_heads(linear(weights, f"{name}.{projection}_proj", x), config.head_dim)
        for projection in "qkv"
    )  # (batch, heads or kv_heads, seq, head_dim)
    offset = past[0].shape[2] if past else 0
    q, k = rope(q, k, offset=offset)
    if past:
        k, v = xp.concat([past[0], k], axis=2), xp.concat([past[1], v], axis=2)

    batch, heads, seq, head_dim = q.shape
    kv_heads, total = k.shape[1], k.shape[2]
    q = xp.reshape(q, (batch, kv_heads, heads // kv_heads, seq, head_dim))  # heads share a k and v
    scores = q @ k[:, :, None, :, :].mT / head_dim**0.5  # (batch, kv_heads, group, seq, total)
    positions = xp.arange(total, device=device(x))
    visible = positions <= positions[offset:, None]  # (seq, total)
    mixed = softmax(xp.where(visible, scores, -xp.inf)) @ v[:, :, None, :, :]
    mixed = xp.reshape(mixed, (batch, heads, seq, head_dim))
    mixed = xp.reshape(xp.permute_dims(mixed, (0, 2, 1, 3)), (batch, seq, heads * head_dim))
    return linear(weights, f"{name}.o_proj", mixed), (k, v)


def split_heads(x, head_dim):
    xp = array_namespace(x)
    x = xp.reshape(x, (*x.shape[:2], -1, head_dim))  # (batch, seq, heads, head_dim)
    return xp.permute_dims(x, (0, 2, 1, 3))  # (batch, heads, seq, head_dim)


def softmax(x):
    xp = array_namespace(x)
    x = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return x / xp.sum(x, axis=-1, keepdims=True)


def swiglu(weights, name, x):
    gate, up = linear(weights, f"{name}.gate_proj", x), linear(weights, f"{name}.up_proj", x)
    return linear(weights, f"{name}.down_proj", silu(gate) * up)


def silu(x):
    xp = array_namespace(x)
    e = xp.exp(-xp.abs(x))  # exp(−x) would overflow where x < −88
    return xp.where(x > 0, x, x * e) / (1 + e)


def rms_norm(config, weights, name, x):
    xp = array_namespace(x)
    scale = xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + config.rms_norm_eps)
    return x / scale * weights[f"{name}.weight"]


def linear(weights, name, x):
    y = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias


def generate(config, weights, prompt, count):
    """Yield the count token ids that follow a prompt of token ids; each is computed once."""
    ids, cache = prompt, None
    for _ in range(count):
        x, cache = forward(config, weights, token_array(config, weights, [ids]), cache)
        scores = logits(config, weights, x[:, -1:, :])  # (1, 1, vocab)
        ids = [int(array_namespace(scores).argmax(scores))]
        yield ids[0]


def token_array(config, weights, ids):
    """Return checked lists of token ids, one a batch row, as an array of the weights' library."""
    host = np.asarray(ids)
    if host.size == 0:
        raise ValueError("token ids: got none, expected at least one")
    if host.min() < 0 or host.max() >= config.vocab_size:
        raise ValueError(
            f"token ids: got values from {host.min()} to {host.max()}, expected 0 to "
            f"{config.vocab_size - 1}, below the config's vocab_size"
        )
    embeddings = weights["model.embed_tokens.weight"]
    return array_namespace(embeddings).asarray(ids, device=device(embeddings))


# The checkpoint.


def load(folder, backend):
    """Return the config of a checkpoint folder and its weights as float32 arrays of a backend."""
    config = read_config(Path(folder) / "config.json")
    weights = {}
    for file in tensor_files(Path(folder)):
        for name, tensor in deserialize(file.read_bytes()):
            if not name.endswith("rotary_emb.inv_freq"):  # a buffer in old checkpoints
                weights[name] = CONVERTERS[backend](to_float32(name, tensor))
    check_tensors(config, weights)
    return config, weights


def read_config(path):
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, expected the model's configuration")
    raw = json.loads(path.read_text(encoding="utf-8"))
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    expect("model_type", raw.get("model_type"), "llama")
    expect("rope_type", rope_type, "default")
    expect("hidden_act", raw.get("hidden_act", "silu"), "silu")
    sizes = ("vocab_size", "hidden_size", "intermediate_size")
    sizes += ("num_hidden_layers", "num_attention_heads")
    for key in sizes:
        if not isinstance(raw.get(key), int):
            raise ValueError(f"{key}: got {raw.get(key)!r}, expected a whole number in {path}")
    heads = raw["num_attention_heads"]
    return Config(
        **{key: raw[key] for key in sizes},
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        attention_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
    )


def expect(key, value, expected):
    if value != expected:
        raise ValueError(f"{key}: got {value!r}, expected {expected!r}")


def tensor_files(folder):
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
        raise ValueError(f"{folder}: got neither {single.name} nor {index.name}, expected one")
    if single.is_file():
        return [single]
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file, though {index.name} names it")
    return files


def to_float32(name, tensor):
    if tensor["dtype"] == "BF16":  # unknown to NumPy: the upper half of a float32
        bits = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor["shape"])
    dtypes = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    if tensor["dtype"] not in dtypes:
        raise ValueError(f"{name}: got dtype {tensor['dtype']}, expected BF16, {', '.join(dtypes)}")
    array = np.frombuffer(tensor["data"], dtypes[tensor["dtype"]])
    return array.astype(np.float32).reshape(tensor["shape"])


def check_tensors(config, weights):
    """Raise unless the weights are those that the config describes, by name and by shape."""
    expected = tensor_shapes(config)
    for what, names in (
        ("is missing", expected.keys() - weights.keys()),
        ("is used by nothing", weights.keys() - expected.keys()),
    ):
        if names:
            raise ValueError(f"{min(names)}: {what} in the checkpoint ({len(names)} such tensors)")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(weights[name].shape)}, expected {shape}")


def tensor_shapes(config):
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    vectors = ("input_layernorm.weight", "post_attention_layernorm.weight")
    matrices = {
        "self_attn.q_proj": (q_size, hidden, config.attention_bias),
        "self_attn.k_proj": (kv_size, hidden, config.attention_bias),
        "self_attn.v_proj": (kv_size, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, q_size, config.attention_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in (f"model.layers.{i}" for i in range(config.num_hidden_layers)):
        shapes |= {f"{layer}.{name}": (hidden,) for name in vectors}
        for name, (rows, columns, biased) in matrices.items():
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            if biased:
                shapes[f"{layer}.{name}.bias"] = (rows,)
    return shapes


def to_torch(array):
    import torch

    return torch.from_numpy(array)


def to_jax(array):
    import jax

    # Left to itself, JAX multiplies float32 matrices in TF32 or bfloat16 on GPUs and TPUs.
    jax.config.update("jax_default_matmul_precision", "highest")
    return jax.numpy.asarray(array)


CONVERTERS = {"numpy": np.asarray, "torch": to_torch, "jax": to_jax}


# The command line.


def token_ids(text):
    return [int(token) for token in text.split(",")]


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Print the tokens that follow a prompt.")
    parser.add_argument("folder", help="checkpoint: config.json and *.safetensors")
    parser.add_argument("--backend", choices=CONVERTERS, default="numpy", help="array library")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="how many (16)")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt-ids", type=token_ids, metavar="1,2,3", help="token ids")
    prompt.add_argument("--text-file", type=Path, metavar="FILE", help="its bytes are token ids")
    options = parser.parse_args(arguments)
    ids = options.prompt_ids or list(options.text_file.read_bytes())
    for token in generate(*load(options.folder, options.backend), ids, options.tokens):
        print(token, flush=True)


if __name__ == "__main__":
    main()

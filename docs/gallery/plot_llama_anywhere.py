"""
Llama on any array library
==========================

A small Llama with random weights is made by transformers and saved as any checkpoint is.  The
program ``docs/examples/llama_anywhere.py``, a forward pass written once against the array API,
reads the folder and continues a prompt on NumPy, on torch and on JAX.  The three write the same
tokens as transformers does.

With a checkpoint of your own, from the command line:

.. code-block:: sh

   python docs/examples/llama_anywhere.py FOLDER --backend jax --prompt-ids 1,450,4996
"""  # noqa: D205, D400

import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

examples = Path(globals().get("__file__", "page.py")).resolve().parent.parent / "examples"
sys.path.insert(0, str(examples))
llama = import_module("llama_anywhere")
logging.disable_progress_bar()

# %%
# A checkpoint
# ------------
#
# Llama 3's frequencies, which reach 8 times as far as those of its training, grouped queries, four
# layers; a token is a byte.

folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        max_position_embeddings=65_536,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
).eval()
model.save_pretrained(folder)
print(*sorted(path.name for path in folder.iterdir()))

# %%
# The same tokens
# ---------------
#
# Sixteen tokens, the likeliest each time, computed one after the other with a cache.  transformers
# reads the whole text again for each.

prompt = list(b"The rotation of a pair of features by its position")
expected = list(prompt)
with torch.no_grad():
    for _ in range(16):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
print("transformers", expected[len(prompt) :])

for backend in llama.CONVERTERS:
    config, weights = llama.load(folder, backend)
    tokens = list(llama.generate(config, weights, prompt, 16))
    print(f"{backend:12}", tokens)
    assert tokens == expected[len(prompt) :]

# %%
# How far apart the logits are
# ----------------------------
#
# Every library takes sums in an order of its own, so that logits agree to about 1e-5 of the largest
# and not to the last bit.  Rotation has no part in what NumPy, torch and JAX differ by: its bits
# are the same.  What is left are matrix products, and the angles that transformers rounds to
# float32.  Differences are relative to the largest logit; each of 192 positions says which token it
# takes for the likeliest next one.

ids = list((examples / "llama_anywhere.py").read_bytes()[:192])
with torch.no_grad():
    want = model(torch.tensor([ids])).logits[0].numpy()
largest = np.abs(want).max()

apart = {}
for backend in llama.CONVERTERS:
    config, weights = llama.load(folder, backend)
    cache = llama.empty_cache(config, weights, 1, len(ids))
    row = llama.CONVERTERS[backend](np.array([ids]))
    x, _ = llama.forward(config, weights, row, cache, 0)
    logits = np.asarray(llama.linear(weights, "lm_head", x))[0]
    apart[backend] = np.abs(logits - want).max(axis=-1) / largest
    same = np.mean(logits.argmax(-1) == want.argmax(-1))
    print(f"{backend:6} largest difference {apart[backend].max():.1e}, same token at {same:.0%}")
    assert apart[backend].max() < 1e-4

# %%

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (backend, rows), marker in zip(apart.items(), "osD", strict=True):
    axes.semilogy(rows, marker, markersize=3, label=backend)
axes.axhline(2.0**-24, color="grey", linestyle=":", label="rounding one number to float32")
axes.set_xlabel("position, tokens")
axes.set_ylabel("largest difference of a logit,\nrelative to the largest logit")
axes.set_title("Against transformers, float32")
axes.legend()
plt.show()

"""
Pictures of your own model
==========================

Every figure that shows a rotary embedding draws yours, too.  A description comes from the
``config.json`` of a checkpoint; here it is that of a model with YaRN, which reaches four times as
far as it was trained.  From the command line, all in one file:

.. code-block:: sh

   rotary plot config.json -o model.svg
"""  # noqa: D205, D400

from matplotlib import pyplot as plt

import rotary
from rotary import figures

config = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32_768,
    },
}
rope = rotary.from_config(config)
print(rope.head_dim, rope.layout, rope.base)
print(rope.scaling.factor, rope.scaling.original_max_position_embeddings)
print("cos and sin are multiplied by", rope.attention_factor())

# %%
# How far one turn of each pair reaches
# -------------------------------------
#
# Pairs whose turn is longer than the context of training never completed one there.  Those are what
# a scaling rule changes.

plt.figure(figures.draw("wavelengths", rope))
plt.show()

# %%
# What the rule does to each frequency
# ------------------------------------
#
# Pairs of short wavelength stay as they were trained, long ones are divided by the factor.

plt.figure(figures.draw("scaling", rope))
plt.show()

# %%
# How scores fall with distance
# -----------------------------

plt.figure(figures.draw("decay", rope))
plt.show()

# %%
# What angles in float32 cost this model
# --------------------------------------
#
# The error of the cosines at each position, for the tables that models usually compute and for
# those of ``rotary``.

plt.figure(figures.draw("error", rope))
plt.show()

# %%
# All of it on one page
# ---------------------

plt.figure(figures.sheet(rope))
plt.show()

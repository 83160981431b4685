"""
Random features converge to softmax
===================================

FAVOR+ (Performer, arXiv 2009.14794) writes the kernel of softmax attention as a product of random
features: exp(q·k/√D) is what φ(q)·φ(k) gives on average.  ``docs/examples/favor_convergence.py``
measures how far off it is with m features, for rows that are orthogonal, as
``rotary.linear.FavorPlus`` takes them, and for as many independent ones.

This page takes five seeds and up to 1024 features.  The whole of it, ten seeds and 4096 features:

.. code-block:: sh

   python docs/examples/favor_convergence.py favor_convergence.svg
"""  # noqa: D205, D400

import sys
from importlib import import_module
from pathlib import Path

from matplotlib import pyplot as plt

examples = Path(globals().get("__file__", "page.py")).resolve().parent.parent / "examples"
sys.path.insert(0, str(examples))
favor = import_module("favor_convergence")
favor.NUMBERS, favor.SEEDS = [16, 64, 256, 1024], 5

# %%
# The error, relative to what is estimated, over 1000 pairs of queries and keys of 64 features:

orthogonal, independent = favor.measured()
print("features  orthogonal  independent")
for m, first, second in zip(favor.NUMBERS, orthogonal, independent, strict=True):
    print(f"{m:8d}  {first:10.4f}  {second:11.4f}")

# %%
# Four times as many features halve it, and orthogonal rows need fewer of them.  Of rows of 64
# numbers no more than 64 are orthogonal to each other; more come in blocks of 64.

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
axes.loglog(favor.NUMBERS, independent, "s--", label="independent rows")
axes.loglog(favor.NUMBERS, orthogonal, "o-", label="orthogonal rows (FavorPlus)")
falling = [orthogonal[0] * (favor.NUMBERS[0] / m) ** 0.5 for m in favor.NUMBERS]
axes.loglog(favor.NUMBERS, falling, ":", color="grey", label="1/√m")
axes.set_xticks(favor.NUMBERS, [str(m) for m in favor.NUMBERS])
axes.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
axes.minorticks_off()
axes.set_xlabel("random features m")
axes.set_ylabel("error of φ(q)·φ(k), RMS,\nrelative to exp(q·k/√D)")
axes.set_title("The kernel of softmax by random features")
axes.legend()
plt.show()

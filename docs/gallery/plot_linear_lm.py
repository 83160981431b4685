"""
A language model with the same bits everywhere
==============================================

``docs/examples/linear_lm.py`` is a language model of bytes around linear attention with rotary
positions: its forward pass is written once against the array API, JAX trains it, and NumPy, torch
and JAX run it.  In the exact arithmetic of ``rotary`` the three give the same bits, logit by logit.

This page trains a small one, of one layer, for 200 steps.  The whole of it, two layers of width 128
and 1000 steps, takes some minutes on two CPU cores:

.. code-block:: sh

   python docs/examples/linear_lm.py train FOLDER
   python docs/examples/linear_lm.py compare FOLDER

There the loss falls from 8.000 to 1.781 bits a byte, 1.983 on text that was held out, and of
256,000 exact logits over 1000 tokens none differs between NumPy, torch and JAX.
"""  # noqa: D205, D400

import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

examples = Path(globals().get("__file__", "page.py")).resolve().parent.parent / "examples"
sys.path.insert(0, str(examples))
lm = import_module("linear_lm")

# %%
# Training
# --------
#
# The text is the help that Python ships.  A new model takes each of the 256 bytes for as likely as
# any other: 8 bits a byte.

folder = Path(tempfile.mkdtemp())
config = lm.Config(layers=1, heads=2, width=64, hidden=256)
losses, held_out = lm.train(folder, config, steps=200, batch=8)

# %%

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
axes.plot(range(1, len(losses) + 1), losses, linewidth=1, label="training text")
axes.axhline(
    held_out, color="black", linestyle="--", label=f"held out, pieces of 1024 bytes: {held_out:.2f}"
)
axes.set_xlabel("step")
axes.set_ylabel("loss, bits a byte")
axes.set_ylim(0, 8.5)
axes.set_title("200 steps of training, 1024 bytes each")
axes.legend(ncols=3)
plt.show()

# %%
# The same bits
# -------------
#
# Each library continues a prompt by 48 tokens, drawn by the same random numbers.  In exact
# arithmetic they write the same text, since no logit differs in a bit.

prompt, count = b"The for statement", 48
exact = {}
for library in lm.LIBRARIES:
    ids, logits, _ = lm.measure(lm.load(folder, library, "exact"), prompt, count, seed=0)
    exact[library] = logits
    differ = np.sum(logits.view(np.int32) != exact["numpy"].view(np.int32))
    print(f"{library:6} {differ} of {logits.size:,} logits differ from NumPy's")
    assert differ == 0
print(bytes(ids.tolist()))

# %%
# In its own arithmetic each library rounds sums in an order of its own, and most logits differ a
# little from the exact ones.  Where two tokens are almost as likely that is enough for
# another token, and then for another text.

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (library, logits), marker in zip(exact.items(), "osD", strict=True):
    _, fast, _ = lm.measure(lm.load(folder, library, "fast"), prompt, count, seed=0)
    apart = np.abs(fast - logits).max(axis=-1)
    axes.semilogy(apart, marker, markersize=4, label=library)
    share = np.mean(fast != logits)
    print(f"{library:6} {share:.0%} of the logits differ, by {apart.max():.1e} at most")
axes.set_xlabel("token")
axes.set_ylabel("largest difference\nfrom the exact logits")
axes.set_ylim(2e-7, 2e-5)
axes.set_title("Each library's own arithmetic against the exact one")
axes.legend(ncols=3)
plt.show()

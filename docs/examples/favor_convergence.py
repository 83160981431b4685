"""How well random features estimate softmax's kernel: the error of φ(q)·φ(k) by their number.

    python docs/examples/favor_convergence.py docs/images/favor_convergence.svg

It draws 1000 pairs q, k of 64 normal numbers of size 0.4, as normalised heads have them, and the
error of the estimate of exp(q·k/√64), relative to it, over 10 seeds; for orthogonal rows, as
FAVOR+ takes them, and for as many independent ones.
"""

import sys

import matplotlib
import numpy as np

from rotary.linear import FavorPlus
from rotary.linear.random_features import gaussians

matplotlib.use("svg")
from matplotlib import pyplot as plt

KEY_DIM, PAIRS, SEEDS, SIZE = 64, 1000, 10, 0.4
NUMBERS = [16 * 4**n for n in range(5)]


def features(x, projection):
    """Return φ(x), as FavorPlus describes it, without a stabiliser."""
    x = x * KEY_DIM**-0.25
    exponent = x @ projection.T - (x * x).sum(-1, keepdims=True) / 2
    return np.exp(exponent) / len(projection) ** 0.5


def error(projection, q, k):
    """Return the errors of the estimates, each relative to what is estimated."""
    estimate = (features(q, projection) * features(k, projection)).sum(-1)
    return estimate / np.exp((q * k).sum(-1) / KEY_DIM**0.5) - 1


def measured():
    """Return the root mean square error by number of features, orthogonal and independent."""
    rng = np.random.default_rng(0)
    q, k = SIZE * rng.standard_normal((2, PAIRS, KEY_DIM))
    found = []
    for number in NUMBERS:
        # Rows do not depend on how many follow.
        kinds = (
            [FavorPlus(NUMBERS[-1], seed).projection(KEY_DIM)[:number] for seed in range(SEEDS)],
            [
                gaussians(1000 + seed, number * KEY_DIM).reshape(number, KEY_DIM)
                for seed in range(SEEDS)
            ],
        )
        found.append(
            [np.sqrt(np.mean([error(rows, q, k) ** 2 for rows in kind])) for kind in kinds]
        )
    return np.array(found).T


def draw(path):
    """Measure, print and draw."""
    orthogonal, independent = measured()
    print("features  orthogonal  independent")
    for row in zip(NUMBERS, orthogonal, independent, strict=True):
        print("{:8d}  {:10.4f}  {:11.4f}".format(*row))
    plt.rcParams["svg.hashsalt"] = "rotary"
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(NUMBERS, independent, "s--", label="independent rows")
    axes.loglog(NUMBERS, orthogonal, "o-", label="orthogonal rows (FavorPlus)")
    falling = orthogonal[0] * (NUMBERS[0] / np.array(NUMBERS)) ** 0.5
    axes.loglog(NUMBERS, falling, ":", color="grey", label="1/√m")
    axes.set_xticks(NUMBERS, [str(n) for n in NUMBERS])
    axes.minorticks_off()
    axes.set_xlabel("random features m")
    axes.set_ylabel("error of φ(q)·φ(k), relative to exp(q·k/√D), RMS")
    axes.set_title("Random features converge to softmax's kernel")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "favor_convergence.svg")

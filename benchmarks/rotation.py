"""Time of one rotation as a multiple of a plain copy, for every installed library.

    python benchmarks/rotation.py [--mebibytes 32] [--repeats 15]

All contenders run in turn within each repeat, so that a machine whose speed drifts treats them
alike; medians are compared, as ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import rotary
from rotary.backends import owner_of

HEADS, HEAD_DIM = 32, 128


def contenders(x: np.ndarray, rope: rotary.RotaryEmbedding) -> dict[str, Callable[[], Any]]:
    """Return what is timed: name → a call without arguments."""
    own = x.copy()
    found: dict[str, Callable[[], Any]] = {
        "copy": lambda: np.copyto(np.empty_like(x), x),
        "numpy": lambda: rope(x),
        "numpy, in place": lambda: rope(own, out=own),
    }
    if find_spec("torch"):
        import torch

        tensor = torch.from_numpy(x.copy())
        compiled = torch.compile(rope, fullgraph=True)
        found["torch"] = lambda: rope(tensor)
        found["torch, compiled"] = lambda: compiled(tensor)
    if find_spec("jax"):
        import jax

        array = jax.numpy.asarray(x)
        jitted = jax.jit(rope)
        found["jax"] = lambda: rope(array)
        found["jax, compiled"] = lambda: jitted(array)
    return found


def seconds(call: Callable[[], Any]) -> float:
    """Return the time of one call, to the end of what it started."""
    started = time.perf_counter()
    result = call()
    if result is not None:
        owner_of(result).synchronize(result)
    return time.perf_counter() - started


def main() -> None:
    """Print a line a contender."""
    parser = argparse.ArgumentParser(description="Time of a rotation against a plain copy.")
    parser.add_argument("--mebibytes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    seq = max(1, options.mebibytes * 2**20 // (4 * HEADS * HEAD_DIM))
    x = np.random.default_rng(0).standard_normal((1, HEADS, seq, HEAD_DIM), np.float32)
    calls = contenders(x, rotary.RotaryEmbedding(HEAD_DIM))
    for call in calls.values():
        seconds(call)  # compilation, tables
    times = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"x {x.shape} float32, {x.nbytes / 2**20:.0f} MiB, median of {options.repeats}")
    for name, median in medians.items():
        print(f"{name:18} {median / medians['copy']:6.1f} x copy  {median * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()

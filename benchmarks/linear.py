"""Time of causal linear attention, fast and exact, on every installed library.

    python benchmarks/linear.py [--seq 4096] [--heads 8] [--dim 64] [--repeats 7] [--decay retnet]

All contenders run in turn within each repeat, so that a machine whose speed drifts treats them
alike; medians are compared, as ratios: exact to fast on the same library, and fast to NumPy's fast.
GFLOP/s counts seq·heads·(2·64·(2·dim) + 4·dim²), whatever the chunk size is.
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


def contenders(
    given: list[np.ndarray], attentions: dict[str, rotary.LinearAttention]
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return what is timed: library and arithmetic → a call without arguments."""
    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for arithmetic, attn in attentions.items():

        def call(q: Any, k: Any, v: Any, attn: rotary.LinearAttention = attn) -> Any:
            return attn(q, k, v, causal=True)

        found["numpy", arithmetic] = lambda call=call: call(*given)
        if find_spec("torch"):
            import torch

            tensors = [torch.from_numpy(x.copy()) for x in given]
            compiled = torch.compile(call, fullgraph=True)
            found["torch", arithmetic] = lambda call=call, x=tensors: call(*x)
            found["torch, compiled", arithmetic] = lambda call=compiled, x=tensors: call(*x)
        if find_spec("jax"):
            import jax

            arrays = [jax.numpy.asarray(x) for x in given]
            jitted = jax.jit(call)
            found["jax, compiled", arithmetic] = lambda call=jitted, x=arrays: call(*x)
    return found


def seconds(call: Callable[[], Any]) -> float:
    """Return the time of one call, to the end of what it started."""
    started = time.perf_counter()
    result = call()
    owner_of(result).synchronize(result)
    return time.perf_counter() - started


def main() -> None:
    """Print a line a library."""
    parser = argparse.ArgumentParser(description="Time of causal linear attention.")
    for name, default in (("seq", 4096), ("heads", 8), ("dim", 64), ("repeats", 7), ("chunk", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--decay", choices=["none", "retnet"], default="none")
    options = parser.parse_args()
    shape = (1, options.heads, options.seq, options.dim)
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    attentions = {
        arithmetic: rotary.LinearAttention(
            rope=rotary.RotaryEmbedding(options.dim),
            decay=rotary.linear.RetNet() if options.decay == "retnet" else None,
            chunk_size=options.chunk,
            arithmetic=arithmetic,
        )
        for arithmetic in ("fast", "exact")
    }
    calls = contenders(given, attentions)
    for call in calls.values():
        seconds(call)  # compilation, tables
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            time.sleep(0.02)  # OpenBLAS's threads spin for a while after a product
            times[name].append(seconds(call))
    medians = {name: statistics.median(each) for name, each in times.items()}
    operations = options.seq * options.heads * (256 * options.dim + 4 * options.dim**2)
    print(f"q, k, v {shape} float32, decay {options.decay}, median of {options.repeats}")
    for library in dict.fromkeys(library for library, _ in calls):
        fast, exact = medians[library, "fast"], medians[library, "exact"]
        print(
            f"{library:16} fast {fast * 1e3:8.1f} ms {operations / fast / 1e9:6.0f} GFLOP/s "
            f"{fast / medians['numpy', 'fast']:6.2f} x numpy   exact {exact * 1e3:9.1f} ms "
            f"{exact / fast:6.1f} x fast"
        )


if __name__ == "__main__":
    main()

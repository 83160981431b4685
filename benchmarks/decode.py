"""A step of decoding: q (1, 32, 1, 128) and k (1, 8, 1, 128) at one position, which moves on.

Tables are included, whoever makes them; each contender goes through positions of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, product
from typing import Any

import numpy as np

import rotary
from rotary.benchmarks import arrays
from rotary.benchmarks.contender import Call, Case, Contender, Figure, Goal, Settings
from rotary.benchmarks.rotation import threads_refused

Q_SHAPE, K_SHAPE = (1, 32, 1, 128), (1, 8, 1, 128)
BASE = 10_000.0
# Two blocks of the tables that are kept, so that every batch of calls makes as many.
_CALLS = 512
_QUICK_CALLS = 8
_APART = 1_000_000
_GOALS = {
    ("numpy", "ours"): 15e-6,
    ("torch", "ours"): 20e-6,
    ("jax", "ours, jit"): 25e-6,
}


def cases(settings: Settings) -> Iterator[Case]:
    """Yield the cases that are asked for."""
    for dtype, threads in product(settings.dtypes, settings.threads):
        contenders = tuple(_contenders(settings, dtype, threads))
        yield Case(
            "decode",
            f"q {Q_SHAPE}, k {K_SHAPE} {dtype}, one position",
            {
                "dtype": dtype,
                "q": list(Q_SHAPE),
                "k": list(K_SHAPE),
                "threads": threads,
                "device": settings.device,
            },
            contenders,
            calls=_QUICK_CALLS if settings.quick else _CALLS,
        )


def _contenders(settings: Settings, dtype: str, threads: int) -> Iterator[Contender]:
    starts = count(_APART, _APART)
    for library in settings.libraries:
        refused = settings.device_reasons.get(library) or threads_refused(library, threads)
        for title, make, needs in _ways(library):

            def made(
                make: Callable[..., Call] = make,
                library: str = library,
                start: int = next(starts),
            ) -> Call:
                pair = tuple(
                    arrays.to_library(library, arrays.normal(shape, dtype, seed), settings.device)
                    for seed, shape in enumerate((Q_SHAPE, K_SHAPE))
                )
                return make(library, pair, dtype, count(start), settings.device)

            usual = "plain, jit" if library == "jax" else "plain"
            figures = []
            if title != usual:
                figures.append(Figure("faster", f"{library}, {usual}", "faster than plain"))
            if title != "Hugging Face":
                figures.append(Figure("faster", "torch, Hugging Face", "faster than HF"))
            bound = _GOALS.get((library, title)) if settings.device == "cpu" else None
            goals = () if bound is None else (Goal(Figure("seconds", "", "time"), bound),)
            yield Contender(
                library, title, made, needs, refused, figures=tuple(figures), goals=goals
            )


def _ways(library: str) -> Iterator[tuple[str, Callable[..., Call], tuple[str, ...]]]:
    if library == "jax":
        yield "plain, jit", _plain_jitted, ()
        yield "ours", _ours, ()
        yield "ours, jit", _ours_jitted, ()
        return
    yield "plain", _plain, ()
    yield "ours", _ours, ()
    yield "ours, in place", _ours_in_place, ()
    if library == "torch":
        yield "Hugging Face", _hugging_face, ("transformers",)
        yield "rotary-embedding-torch", _rotary_embedding_torch, ("rotary_embedding_torch",)


def _ours(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    (q, k), rope = pair, rotary.RotaryEmbedding(128, base=BASE)
    if library == "jax" and dtype == "float64":

        def call() -> Any:
            with arrays.x64(np.float64):
                return rope(q, k, offset=next(at))

        return call
    return lambda: rope(q, k, offset=next(at))


def _ours_in_place(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    (q, k), rope = pair, rotary.RotaryEmbedding(128, base=BASE)
    return lambda: rope(q, k, offset=next(at), out=(q, k))


def _ours_jitted(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    (q, k), rope = pair, rotary.RotaryEmbedding(128, base=BASE)
    step = arrays.jitted(lambda q, k, offset: rope(q, k, offset=offset), dtype)
    return lambda: step(q, k, next(at))


def _inv_freq(library: str, device: str) -> Any:
    exponents = np.arange(0, 128, 2, dtype=np.float32) / 128
    host = (1.0 / BASE**exponents).astype(np.float32)
    return arrays.to_library(library, host, device)


def _plain(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    """Return the usual code: angles in float32, tables in x's dtype."""
    (q, k), inv_freq = pair, _inv_freq(library, device)
    rotate, (concat, _) = arrays.plain(library, "half"), arrays.joins(library)
    xp = __import__(library)

    def call() -> Any:
        angles = inv_freq * float(next(at))
        angles = concat((angles, angles), -1)
        cos, sin = xp.cos(angles), xp.sin(angles)
        if library == "torch":
            cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        else:
            cos, sin = cos.astype(q.dtype), sin.astype(q.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return call


def _plain_jitted(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    import jax.numpy as jnp

    (q, k), inv_freq = pair, _inv_freq(library, device)
    rotate = arrays.plain("jax", "half")

    def step(q: Any, k: Any, inv_freq: Any, offset: Any) -> Any:
        angles = inv_freq * offset
        angles = jnp.concatenate((angles, angles), -1)
        cos, sin = jnp.cos(angles).astype(q.dtype), jnp.sin(angles).astype(q.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    compiled = arrays.jitted(step, dtype)
    return lambda: compiled(q, k, inv_freq, next(at))


def _hugging_face(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    """Return what a Llama of transformers does: the module, then apply_rotary_pos_emb."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as llama

    (q, k), heads = pair, Q_SHAPE[1]
    config = LlamaConfig(
        hidden_size=heads * 128, num_attention_heads=heads, num_key_value_heads=K_SHAPE[1]
    )
    module = llama.LlamaRotaryEmbedding(config).to(device)

    def call() -> Any:
        position_ids = torch.full((1, 1), next(at), device=device)
        cos, sin = module(q, position_ids)
        return llama.apply_rotary_pos_emb(q, k, cos, sin)

    return call


def _rotary_embedding_torch(library: str, pair: Any, dtype: str, at: Any, device: str) -> Call:
    from rotary_embedding_torch import RotaryEmbedding

    (q, k), its = pair, RotaryEmbedding(128).to(device)

    def call() -> Any:
        offset = next(at)
        return tuple(its.rotate_queries_or_keys(x, offset=offset) for x in (q, k))

    return call

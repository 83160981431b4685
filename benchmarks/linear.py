"""Causal linear attention beside softmax attention, and the share of a matrix product's peak.

Operations are counted as tokens·heads·(2·64·(Dk + Dv) + 4·Dk·Dv), with 64 whatever the chunk size
is; the peak is that of the fastest product of two 2048 × 2048 matrices of any installed library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import rotary
from rotary.benchmarks import arrays
from rotary.benchmarks.contender import Call, Case, Contender, Figure, Goal, Settings
from rotary.benchmarks.machine import sets_blas_threads
from rotary.benchmarks.rotation import threads_refused

HEADS, DIM, CHUNK = 8, 64, 64
# So that a million tokens fit into the memory of a small machine.
_SWEPT_HEADS = 2
_QUICK_TOKENS = 128
_SIDE, _QUICK_SIDE = 2048, 256
# What grows with the square of the tokens, and what is exact, would take minutes beyond.
_MOST_TOKENS = {"SDPA": 16_384, "exact": 16_384, "fast-transformers": 1_000_000}
_PEAK = "*, matrix product"


@dataclass(frozen=True)
class _Setting:
    """A case, and what its contenders share."""

    tokens: int
    heads: int
    threads: int
    settings: Settings
    kept: arrays.Kept = field(default_factory=arrays.Kept)

    @property
    def work(self) -> float:
        return float(self.tokens * self.heads * (2 * CHUNK * 2 * DIM + 4 * DIM * DIM))

    def inputs(self, library: str) -> tuple[Any, ...]:
        """Return q, k and v."""
        shape = (1, self.heads, self.tokens, DIM)
        host = self.kept.get(
            "host", lambda: tuple(arrays.normal(shape, "float32", seed) for seed in range(3))
        )
        device = self.settings.device
        given: tuple[Any, ...] = self.kept.get(
            library, lambda: tuple(arrays.to_library(library, x, device) for x in host)
        )
        return given


def cases(settings: Settings) -> Iterator[Case]:
    """Yield the cases that are asked for."""
    heads = settings.heads or (_SWEPT_HEADS if settings.sweep else HEADS)
    lengths = (_QUICK_TOKENS,) if settings.quick else settings.tokens
    for tokens, threads in product(lengths, settings.threads):
        s = _Setting(tokens, heads, threads, settings)
        yield Case(
            "linear",
            f"causal, {tokens:,} tokens, {heads} heads of {DIM}, float32, chunks of {CHUNK}",
            {
                "dtype": "float32",
                "tokens": tokens,
                "heads": heads,
                "key_dim": DIM,
                "value_dim": DIM,
                "chunk_size": CHUNK,
                "flops": s.work,
                "threads": threads,
                "device": settings.device,
            },
            tuple(c for c in _contenders(s) if not (settings.sweep and c.slow_start)),
        )


def _contenders(s: _Setting) -> Iterator[Contender]:
    for library in s.settings.libraries:
        refused = s.settings.device_reasons.get(library) or threads_refused(library, s.threads)
        if refused is None and library == "numpy" and not sets_blas_threads(s.threads):
            refused = "the threads of NumPy's BLAS cannot be set: threadpoolctl is not installed"
        side = _QUICK_SIDE if s.settings.quick else _SIDE

        def peak(library: str = library, side: int = side) -> Call:
            return _matrix_product(library, side, s.settings.device)

        share = Figure("share", _PEAK, "share of peak")
        work = 2.0 * side**3
        yield Contender(
            library, "matrix product", peak, refused=refused, work=work, figures=(share,)
        )
        for contender in _ours(s, library):
            yield _refusing(contender, refused)
        if library == "torch":
            yield _refusing(_sdpa(s), refused)
            yield _refusing(_fast_transformers(s), refused)


def _refusing(contender: Contender, refused: str | None) -> Contender:
    return contender if refused is None else replace(contender, refused=refused)


def _ours(s: _Setting, library: str) -> Iterator[Contender]:
    for arithmetic, roped in (("fast", False), ("fast", True), ("exact", False)):
        attention = rotary.LinearAttention(
            arithmetic=arithmetic,
            chunk_size=CHUNK,
            rope=rotary.RotaryEmbedding(DIM) if roped else None,
        )
        title = f"ours, {arithmetic}" + (", with rope" if roped else "")

        def call(q: Any, k: Any, v: Any, attention: Any = attention) -> Any:
            return attention(q, k, v, causal=True)

        def eager(call: Any = call) -> Call:
            given = s.inputs(library)
            return lambda: call(*given)

        def jitted(call: Any = call) -> Call:
            compiled, given = arrays.jitted(call, "float32"), s.inputs(library)
            return lambda: compiled(*given)

        def torch_compiled(call: Any = call) -> Call:
            compiled, given = arrays.compiled(s.kept, call), s.inputs(library)
            return lambda: compiled(*given)

        more: dict[str, Any] = {"refused": _too_long(s, arithmetic)}
        best = library == "numpy" and title == "ours, fast" and s.settings.device == "cpu"
        figures, goals = _figures(s, library, title), _goals(s) if best else ()

        def contender(
            title: str, make: Callable[[], Call], figures: Any = figures, **more: Any
        ) -> Contender:
            return Contender(library, title, make, work=s.work, figures=figures, **more)

        if library == "jax":
            yield contender(f"{title}, jit", jitted, **more)
            continue
        yield contender(title, eager, goals=goals, **more)
        if best:
            off = ("linear",)
            yield contender("ours, fast, without numba", eager, without=off, **more)
        if library == "torch" and not roped:
            slow = {"slow_start": True, **more}
            yield contender(f"{title}, compiled", torch_compiled, **slow)


def _too_long(s: _Setting, kind: str) -> str | None:
    most = _MOST_TOKENS.get(kind, s.tokens)
    return None if s.tokens <= most else f"left out beyond {most:,} tokens"


def _figures(s: _Setting, library: str, title: str) -> tuple[Figure, ...]:
    found = [
        Figure("share", _PEAK, "share of peak"),
        Figure("faster", "torch, SDPA", "faster than SDPA"),
        Figure("faster", "torch, fast-transformers", "faster than fast-transformers"),
    ]
    if "exact" in title:
        fast = f"{library}, " + title.replace("exact", "fast") + (", jit" * (library == "jax"))
        found.append(Figure("times", fast, "× fast"))
    return tuple(found)


def _goals(s: _Setting) -> tuple[Goal, ...]:
    if s.tokens != 4096 or s.heads != HEADS:
        return ()
    share, sdpa, other = _figures(s, "numpy", "ours, fast")
    return Goal(share, 0.6), Goal(sdpa, 15.0), Goal(other, 4.0)


def _matrix_product(library: str, side: int, device: str) -> Call:
    a, b, to = (
        arrays.to_library(library, arrays.normal((side, side), "float32", seed), device)
        for seed in range(3)
    )
    if library == "jax":
        import jax.numpy as jnp

        compiled = arrays.jitted(jnp.matmul, "float32")
        return lambda: compiled(a, b)
    if library == "torch":
        import torch

        return lambda: torch.mm(a, b, out=to)
    xp = __import__(library)
    return lambda: xp.matmul(a, b, out=to)


def _sdpa(s: _Setting) -> Contender:
    def make() -> Call:
        from torch.nn.functional import scaled_dot_product_attention

        q, k, v = s.inputs("torch")
        return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)

    return Contender("torch", "SDPA", make, refused=_too_long(s, "SDPA"))


def _fast_transformers(s: _Setting) -> Contender:
    def make() -> Call:
        import torch
        from fast_transformers.attention import CausalLinearAttention
        from fast_transformers.masking import LengthMask, TriangularCausalMask

        device = s.settings.device
        # Its arrays are (batch, tokens, heads, dim).
        given = [x.transpose(1, 2).contiguous() for x in s.inputs("torch")]
        attention = CausalLinearAttention(DIM)
        lengths = LengthMask(torch.tensor([s.tokens]), s.tokens, device=device)
        # A mask of all pairs of tokens, which it looks at but does not use.
        causal = TriangularCausalMask(min(s.tokens, 1), device=device)
        return lambda: attention(*given, causal, lengths, lengths)

    return Contender(
        "torch",
        "fast-transformers",
        make,
        needs=("fast_transformers",),
        refused=_too_long(s, "fast-transformers"),
        figures=(Figure("faster", "torch, SDPA", "faster than SDPA"),),
    )

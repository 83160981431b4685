"""Rotation of x (1, heads, tokens, head_dim), from one token to a million.

The limit is a copy into memory that is there already.  rotary is timed as it is called, with tables
from its memory; the others are given cos and sin, as the layers of a model are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

import rotary
from rotary.backends.kernels import _threads
from rotary.benchmarks import arrays
from rotary.benchmarks.contender import Call, Case, Contender, Figure, Goal, Settings
from rotary.benchmarks.machine import cores

HEADS, HEAD_DIM = 32, 128
SWEEP = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_000_000)
_QUICK_SWEEP = (1, 64, 1024)
# What a sweep times: the limit, and for each library the usual code, ours and the best of others.
_SWEPT = (
    "plain",
    "plain, jit",
    "Hugging Face",
    "ours",
    "ours, in place",
    "ours, tables given",
    "ours, jit",
)
_BACKWARD = ", forward + backward"
# The goals of speed are for arrays that no cache holds.
_LARGE = 32 * 2**20
# Below this a second thread costs a copy more than it saves.
_LEAST_BYTES = 2**18


@dataclass(frozen=True)
class _Setting:
    """A case, and what its contenders share."""

    dtype: str
    form: str
    tokens: int
    heads: int
    threads: int
    settings: Settings
    kept: arrays.Kept = field(default_factory=arrays.Kept)

    @property
    def layout(self) -> str:
        return "interleaved" if self.form.startswith("interleaved") else "half"

    @property
    def rope(self) -> rotary.RotaryEmbedding:
        part = HEAD_DIM // 2 if self.form.endswith("partial") else HEAD_DIM
        return rotary.RotaryEmbedding(HEAD_DIM, layout=self.layout, rotary_dim=part)

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, self.heads, self.tokens, HEAD_DIM

    @property
    def nbytes(self) -> int:
        return self.heads * self.tokens * HEAD_DIM * arrays.host_dtype(self.dtype).itemsize

    def host(self, name: str) -> Any:
        """Return an array of x's shape on the host: x, what is rotated in place, a cotangent."""
        seed = ("x", "own", "cotangent", "target").index(name)
        return self.kept.get(name, lambda: arrays.normal(self.shape, self.dtype, seed))

    def array(self, library: str, name: str) -> Any:
        return self.kept.get(
            (library, name),
            lambda: arrays.to_library(library, self.host(name), self.settings.device),
        )

    def tables(self, library: str) -> tuple[Any, Any]:
        """Return cos and sin of every pair, (tokens, pairs)."""
        real = "float64" if self.dtype == "float64" else "float32"
        host = self.kept.get("tables", lambda: self.rope.tables(np.arange(self.tokens), dtype=real))
        return self._placed(library, "tables", host)

    def wide_tables(self, library: str, layout: str) -> tuple[Any, Any]:
        """Return cos and sin of every feature, (tokens, features), in x's dtype."""
        key = "wide", layout
        host = self.kept.get(
            key,
            lambda: tuple(arrays.widened(t, layout, self.dtype) for t in self.tables("numpy")),
        )
        return self._placed(library, key, host)

    def _placed(self, library: str, key: Any, host: tuple[Any, Any]) -> tuple[Any, Any]:
        device = self.settings.device
        pair: tuple[Any, Any] = self.kept.get(
            (library, key), lambda: tuple(arrays.to_library(library, t, device) for t in host)
        )
        return pair


def cases(settings: Settings) -> Iterator[Case]:
    """Yield the cases that are asked for."""
    for dtype, form, threads in product(settings.dtypes, settings.forms, settings.threads):
        heads = settings.heads or (1 if settings.sweep else HEADS)
        row = heads * HEAD_DIM * arrays.host_dtype(dtype).itemsize
        lengths = [max(1, round(size * 2**20 / row)) for size in settings.mebibytes]
        if settings.sweep:
            lengths = list(_QUICK_SWEEP if settings.quick else SWEEP)
        for tokens in lengths:
            yield _case(_Setting(dtype, form, tokens, heads, threads, settings))


def _case(setting: _Setting) -> Case:
    contenders = tuple(_contenders(setting))
    if setting.settings.sweep:
        limit = f"copy, {_counted(setting.threads)}"
        contenders = tuple(c for c in contenders if c.name == limit or c.title in _SWEPT)
    size = setting.nbytes / 2**20
    shown = f"{size:.3g} MiB" if size >= 1 else f"{setting.nbytes:,} bytes"
    return Case(
        "rotation",
        f"x {setting.shape} {setting.dtype}, {setting.form}, {shown}",
        {
            "dtype": setting.dtype,
            "form": setting.form,
            "shape": list(setting.shape),
            "tokens": setting.tokens,
            "heads": setting.heads,
            "bytes": setting.nbytes,
            "threads": setting.threads,
            "device": setting.settings.device,
        },
        contenders,
    )


def _counted(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")


def _contenders(s: _Setting) -> Iterator[Contender]:
    on_cpu = s.settings.device == "cpu"
    yield from _copies(s) if on_cpu else _device_copies(s)
    limit = Figure("times", f"copy, {_counted(s.threads)}" if on_cpu else "copy, *", "× copy")
    for library in s.settings.libraries:
        yield from _of_library(s, library, limit)


def _copies(s: _Setting) -> Iterator[Contender]:
    """Yield copies with one thread and with all, in memory that is there and in fresh memory."""
    for threads in dict.fromkeys((1, s.threads)):
        limit = Figure("times", f"copy, {_counted(s.threads)}", "× copy")

        def existing(threads: int = threads) -> Call:
            return _copy_parts(s, threads, fresh=False)

        def fresh(threads: int = threads) -> Call:
            return _copy_parts(s, threads, fresh=True)

        title = _counted(threads)
        yield Contender("memory", f"copy, {title}", existing, figures=(limit,))
        yield Contender("memory", f"fresh copy, {title}", fresh, figures=(limit,))


def _copy_parts(s: _Setting, threads: int, *, fresh: bool) -> Call:
    """Return a call that copies x's bytes, a part for each thread where threads pay."""
    source = s.host("x").reshape(-1).view(np.uint8)
    target = None if fresh else s.host("target").reshape(-1).view(np.uint8)
    if source.size < _LEAST_BYTES:
        threads = 1
    step = -(-source.size // threads)
    parts = [slice(first, first + step) for first in range(0, source.size, step)]

    def copy() -> None:
        to = np.empty_like(source) if target is None else target
        _threads.run(np.copyto, [(to[part], source[part]) for part in parts])

    return copy


def _device_copies(s: _Setting) -> Iterator[Contender]:
    """Yield copies on the GPU: the fastest is the limit of all."""

    def in_torch() -> Call:
        x, target = s.array("torch", "x"), s.array("torch", "target")
        return lambda: target.copy_(x)

    def in_cupy() -> Call:
        import cupy

        x, target = s.array("cupy", "x"), s.array("cupy", "target")

        def copy() -> Any:
            cupy.copyto(target, x)
            return target  # what is waited for

        return copy

    def in_jax() -> Call:
        import jax.numpy as jnp

        # It has no copy that does nothing else; this reads once and writes once as well.
        x, negative = s.array("jax", "x"), arrays.jitted(jnp.negative, s.dtype)
        return lambda: negative(x)

    for library, make in (("torch", in_torch), ("cupy", in_cupy), ("jax", in_jax)):
        if library in s.settings.libraries:
            yield Contender(
                "memory",
                f"copy, {library}",
                make,
                needs=(library,),
                refused=s.settings.device_reasons.get(library),
                figures=(Figure("times", "copy, *", "× copy"),),
            )


def _of_library(s: _Setting, library: str, limit: Figure) -> Iterator[Contender]:
    refused = s.settings.device_reasons.get(library) or threads_refused(library, s.threads)

    def contender(
        title: str, make: Callable[[], Call], usual: str | None = None, **more: Any
    ) -> Contender:
        figures = [limit]
        if usual is not None:
            figures.append(Figure("faster", f"{library}, {usual}", "faster than plain"))
        if library == "torch" and title != "Hugging Face":
            form = _BACKWARD if title.endswith(_BACKWARD) else ""
            if title != f"Hugging Face{form}":
                other = f"torch, Hugging Face{form}"
                figures.append(Figure("faster", other, "faster than HF"))
        goals = _goals(s, library, title)
        said = {"refused": refused, **more}
        if refused is not None:
            said["refused"] = refused
        return Contender(library, title, make, figures=tuple(figures), goals=goals, **said)

    compiler = "plain, jit" if library == "jax" else "plain"
    yield contender(compiler, lambda: _plain(s, library))
    yield contender("ours", lambda: _ours(s, library), compiler)
    if library == "jax":
        yield contender("ours, jit", lambda: _ours_jitted(s), compiler)
        yield contender("ours, jit, donated", lambda: _ours_donated(s), compiler)
        backward = compiler + _BACKWARD
        yield contender(backward, lambda: _jax_backward(s, ours=False))
        yield contender(f"ours, jit{_BACKWARD}", lambda: _jax_backward(s, ours=True), backward)
    else:
        yield contender("ours, in place", lambda: _ours_in_place(s, library), compiler)
    yield contender("ours, tables given", lambda: _tables_given(s, library), compiler)
    if library == "numpy":
        off: tuple[str, ...] = ("rotation",)
        yield contender("ours, without numba", lambda: _ours(s, "numpy"), compiler, without=off)
        yield contender(
            "ours, in place, without numba",
            lambda: _ours_in_place(s, "numpy"),
            compiler,
            without=off,
        )
        off = ("rotation", "blocks")
        yield contender("ours, without kernels", lambda: _ours(s, "numpy"), compiler, without=off)
    if library == "torch":
        yield from _more_of_torch(s, contender)


def threads_refused(library: str, threads: int) -> str | None:
    """Return why a library cannot run with that many threads, or None."""
    if library == "jax" and threads != cores():
        return "XLA's threads are as many as the cores it finds: run it under taskset"
    return None


def _more_of_torch(s: _Setting, contender: Callable[..., Contender]) -> Iterator[Contender]:
    yield contender(
        "plain, compiled", lambda: _torch_compiled(s, ours=False), "plain", slow_start=True
    )
    yield contender(
        "ours, compiled", lambda: _torch_compiled(s, ours=True), "plain", slow_start=True
    )
    yield contender(f"plain{_BACKWARD}", lambda: _torch_backward(s, _torch_plain(s)))
    yield contender(f"ours{_BACKWARD}", lambda: _torch_backward(s, s.rope), f"plain{_BACKWARD}")
    needs = {"needs": ("transformers",)}
    yield contender("Hugging Face", lambda: _hugging_face(s, backward=False), "plain", **needs)
    yield contender(
        f"Hugging Face{_BACKWARD}",
        lambda: _hugging_face(s, backward=True),
        f"plain{_BACKWARD}",
        **needs,
    )
    yield contender(
        "rotary-embedding-torch",
        lambda: _rotary_embedding_torch(s),
        "plain",
        needs=("rotary_embedding_torch",),
        refused=None if s.layout == "interleaved" else "it knows the interleaved layout alone",
    )


def _goals(s: _Setting, library: str, title: str) -> tuple[Goal, ...]:
    """Return what a contender is held to, on two cores and where no cache holds the array."""
    if s.nbytes < _LARGE:
        return ()
    if s.settings.device == "cuda":
        moved = title in ("ours, in place", "ours, jit, donated") and s.nbytes >= 2 * _LARGE
        return (Goal(Figure("times", "copy, *", "× copy"), 1 / 0.9),) if moved else ()
    copy = Figure("times", f"copy, {_counted(s.threads)}", "× copy")
    fresh = Figure("times", f"fresh copy, {_counted(s.threads)}", "× fresh copy")
    usual = Figure("faster", "numpy, plain", "faster than plain")
    jit = Figure("times", "jax, plain, jit", "× plain")
    given: dict[tuple[str, str], Goal] = {}
    if s.dtype == "float32":
        given = {
            ("numpy", "ours, in place"): Goal(copy, 1.3),
            ("numpy", "ours"): Goal(fresh, 1.5),
            ("numpy", "ours, without numba"): Goal(usual, 1.4),
            ("jax", "ours, jit"): Goal(jit, 1.05),
        }
    if s.dtype in ("float32", "bfloat16"):
        for end, bound in (("", 3.0), (", in place", 20.0), (_BACKWARD, 5.0)):
            other = "torch, Hugging Face" + (_BACKWARD if end == _BACKWARD else "")
            figure = Figure("faster", other, "faster than HF")
            given["torch", f"ours{end}"] = Goal(figure, bound)
    goal = given.get((library, title))
    return () if goal is None else (goal,)


def _plain(s: _Setting, library: str) -> Call:
    rotate = arrays.plain(library, s.layout)
    x, (cos, sin) = s.array(library, "x"), s.wide_tables(library, s.layout)
    if library == "jax":
        rotate = arrays.jitted(rotate, s.dtype)
    return lambda: rotate(x, cos, sin)


def _ours(s: _Setting, library: str) -> Call:
    rope, x = s.rope, s.array(library, "x")
    if library == "jax" and s.dtype == "float64":

        def call() -> Any:
            with arrays.x64(np.float64):
                return rope(x)

        return call
    return lambda: rope(x)


def _ours_in_place(s: _Setting, library: str) -> Call:
    rope, own = s.rope, s.array(library, "own")
    return lambda: rope(own, out=own)


def _tables_given(s: _Setting, library: str) -> Call:
    x, (cos, sin), layout = s.array(library, "x"), s.tables(library), s.layout

    def call() -> Any:
        return rotary.rotate(x, cos, sin, layout=layout)

    if library == "jax" and s.dtype == "float64":
        return arrays.jitted(call, s.dtype)
    return call


def _ours_jitted(s: _Setting) -> Call:
    x, rotate = s.array("jax", "x"), arrays.jitted(s.rope, s.dtype)
    return lambda: rotate(x)


def _ours_donated(s: _Setting) -> Call:
    own = [arrays.to_library("jax", s.host("own"), s.settings.device)]
    rotate = arrays.jitted(s.rope, s.dtype, donate_argnums=0)

    def call() -> Any:
        own[0] = rotate(own[0])
        return own[0]

    return call


def _jax_backward(s: _Setting, *, ours: bool) -> Call:
    import jax

    x, cotangent = s.array("jax", "x"), s.array("jax", "cotangent")
    usual, tables = arrays.plain("jax", s.layout), s.wide_tables("jax", s.layout)
    rope = s.rope

    def both(x: Any, cotangent: Any, cos: Any, sin: Any) -> Any:
        y, pull = jax.vjp(rope if ours else lambda x: usual(x, cos, sin), x)
        return y, *pull(cotangent)

    step = arrays.jitted(both, s.dtype)
    return lambda: step(x, cotangent, *tables)


def _torch_plain(s: _Setting) -> Callable[[Any], Any]:
    rotate, (cos, sin) = arrays.plain("torch", s.layout), s.wide_tables("torch", s.layout)
    return lambda x: rotate(x, cos, sin)


def _torch_compiled(s: _Setting, *, ours: bool) -> Call:
    x = s.array("torch", "x")
    if ours:
        rotate = arrays.compiled(s.kept, s.rope)
        return lambda: rotate(x)
    usual, tables = arrays.plain("torch", s.layout), s.wide_tables("torch", s.layout)
    rotate = arrays.compiled(s.kept, usual)
    return lambda: rotate(x, *tables)


def _torch_backward(s: _Setting, rotate: Callable[[Any], Any]) -> Call:
    import torch

    leaf = s.array("torch", "x").detach().requires_grad_()
    cotangent = s.array("torch", "cotangent")
    return lambda: torch.autograd.grad(rotate(leaf), leaf, cotangent)


def _hugging_face(s: _Setting, *, backward: bool) -> Call:
    """Return apply_rotary_pos_emb of a model of this form; x is q, and there are no heads of k.

    So it rotates one array as large as the others do, which decides whether its intermediates are
    memory that was used before.
    """
    import torch
    from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as of_glm
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as of_gpt_neox
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as of_llama

    apply = of_llama if s.form == "half" else of_gpt_neox if s.form == "partial" else of_glm
    # Its tables have the halves' order whatever the layout is.
    cos, sin = (table[None] for table in s.wide_tables("torch", "half"))
    q = s.array("torch", "x")
    k = q[:, :0]
    if not backward:
        return lambda: apply(q, k, cos, sin)
    leaf, cotangent = q.detach().requires_grad_(), s.array("torch", "cotangent")
    return lambda: torch.autograd.grad(apply(leaf, k, cos, sin)[0], leaf, cotangent)


def _rotary_embedding_torch(s: _Setting) -> Call:
    from rotary_embedding_torch import RotaryEmbedding

    # It keeps the angles of as many positions as it is told.
    its = RotaryEmbedding(s.rope.rotary_dim, cache_max_seq_len=max(s.tokens, 1))
    its = its.to(s.settings.device)
    x = s.array("torch", "x")
    return lambda: its.rotate_queries_or_keys(x)

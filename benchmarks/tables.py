"""Tables of cos and sin: a whole context, one block of those that are kept, one row of that.

The others take the cosine of float32 angles, which is off by 4e-3 at position 131 071.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np

import rotary
from rotary import tables
from rotary.backends import owner_of
from rotary.benchmarks import arrays
from rotary.benchmarks.contender import Call, Case, Contender, Figure, Goal, Settings
from rotary.benchmarks.rotation import threads_refused
from rotary.frequencies import Frequencies
from rotary.positions import Span

ROWS, PAIRS = 131_072, 64
_QUICK_ROWS = 1024
_USUAL = "float32 angles"
_WITH_NUMBA, _WITHOUT_NUMBA, _ROW = 0.13, 0.4, 5e-6


def cases(settings: Settings) -> Iterator[Case]:
    """Yield the cases that are asked for."""
    rows = _QUICK_ROWS if settings.quick else ROWS
    for threads in settings.threads:
        for length in (rows, tables.BLOCK_ROWS):
            shape = f"{length:,} × {PAIRS} cos and sin, float32"
            yield _case(settings, shape, length, threads, tuple(_of(settings, length, threads)))
        yield _case(settings, "one kept row, float32", 1, threads, tuple(_rows(settings, threads)))


def _case(
    settings: Settings, title: str, rows: int, threads: int, contenders: tuple[Contender, ...]
) -> Case:
    parameters = {
        "dtype": "float32",
        "rows": rows,
        "pairs": PAIRS,
        "threads": threads,
        "device": settings.device,
    }
    return Case("tables", title, parameters, contenders)


def _of(settings: Settings, rows: int, threads: int) -> Iterator[Contender]:
    """Yield ways to make tables."""
    refused = settings.device_reasons
    figures = {
        name: (Figure("faster", f"{name}, {_USUAL}", f"faster than {name}'s"),)
        for name in settings.libraries
    }
    if "numpy" in settings.libraries:
        host = refused.get("numpy")
        goal = rows == ROWS

        def ours(title: str, make: Callable[[], Call], bound: float, **more: Any) -> Contender:
            goals = (Goal(Figure("seconds", "", "time"), bound),) if goal else ()
            return Contender(
                "numpy", title, make, refused=host, figures=figures["numpy"], goals=goals, **more
            )

        yield ours("ours", lambda: _evaluate(rows), _WITH_NUMBA)
        yield ours(
            "ours, without numba", lambda: _evaluate(rows), _WITHOUT_NUMBA, without=("tables",)
        )
        yield Contender(
            "numpy",
            "ours, tables()",
            lambda: _public(rows),
            refused=host,
            figures=figures["numpy"],
        )
        yield Contender(
            "numpy",
            "float64 angles",
            lambda: _angles(rows, np.float64),
            refused=host,
            figures=figures["numpy"],
        )
        yield Contender("numpy", _USUAL, lambda: _angles(rows, np.float32), refused=host)
    for name, make in (("torch", _torch_angles), ("jax", _jax_angles)):
        if name in settings.libraries:

            def made(make: Callable[[int, str], Call] = make) -> Call:
                return make(rows, settings.device)

            why = refused.get(name) or threads_refused(name, threads)
            mine = figures.get("numpy", ())
            yield Contender(name, _USUAL, made, refused=why, figures=mine)


def _rows(settings: Settings, threads: int) -> Iterator[Contender]:
    for library in settings.libraries:

        def made(library: str = library) -> Call:
            return _kept_row(library, settings.device)

        bound = Goal(Figure("seconds", "", "time"), _ROW)
        yield Contender(
            library,
            "ours",
            made,
            refused=settings.device_reasons.get(library) or threads_refused(library, threads),
            goals=(bound,) if settings.device == "cpu" else (),
        )


def _frequencies() -> Frequencies:
    return Frequencies(2 * PAIRS, 10_000.0, 2 * PAIRS, None)


def _evaluate(rows: int) -> Call:
    """Return what makes a table where none is kept."""
    frequencies, positions = _frequencies(), np.arange(rows, dtype=np.float64)
    return lambda: tables.evaluate(frequencies, positions, "float32")


def _public(rows: int) -> Call:
    """Return the public call, which looks them up, keeps and copies them, for rows never asked."""
    rope, starts = rotary.RotaryEmbedding(2 * PAIRS), count(0, rows)

    def call() -> Any:
        start = next(starts)
        return rope.tables(np.arange(start, start + rows))

    return call


def _kept_row(library: str, device: str) -> Call:
    """Return the look-up of a row of a block that is kept."""
    like = arrays.to_library(library, np.zeros(1, np.float32), device)
    frequencies, backend = _frequencies(), owner_of(like)
    at = count()

    def call() -> Any:
        where = Span(next(at) % tables.BLOCK_ROWS, 1)
        return tables.look_up(frequencies, where, "float32", 1, like, backend)

    return call


def _inv_freq(dtype: Any) -> Any:
    return (1.0 / 10_000.0 ** (np.arange(PAIRS) / PAIRS)).astype(dtype)


def _angles(rows: int, dtype: Any) -> Call:
    positions, inv_freq = np.arange(rows, dtype=dtype), _inv_freq(dtype)

    def call() -> Any:
        angles = np.outer(positions, inv_freq)
        cos, sin = np.cos(angles), np.sin(angles)
        return cos.astype(np.float32, copy=False), sin.astype(np.float32, copy=False)

    return call


def _torch_angles(rows: int, device: str) -> Call:
    import torch

    positions = torch.arange(rows, dtype=torch.float32, device=device)
    inv_freq = torch.from_numpy(_inv_freq(np.float32)).to(device)

    def call() -> Any:
        angles = torch.outer(positions, inv_freq)
        return angles.cos(), angles.sin()

    return call


def _jax_angles(rows: int, device: str) -> Call:
    import jax.numpy as jnp

    positions = arrays.to_library("jax", np.arange(rows, dtype=np.float32), device)
    inv_freq = arrays.to_library("jax", _inv_freq(np.float32), device)

    def both(positions: Any, inv_freq: Any) -> Any:
        angles = jnp.outer(positions, inv_freq)
        return jnp.cos(angles), jnp.sin(angles)

    compiled = arrays.jitted(both, "float32")
    return lambda: compiled(positions, inv_freq)

"""The compiled tables are NumPy's to the bit, whatever the positions, the threads and the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rotary
from rotary import tables
from rotary.backends import kernels
from rotary.conformance import oracle
from rotary.frequencies import Frequencies

pytest.importorskip("numba", reason="the compiled tables need numba")

from rotary.backends.kernels import _cpu_tables, _threads

LIMIT = 2.0**53
POSITIONS = {
    "whole": np.arange(-300.0, 700.0),
    "fractional": np.random.default_rng(1).uniform(-1e6, 1e6, 500),
    "within 2^53": np.random.default_rng(2).integers(-(2**53), 2**53 + 1, 500).astype(float),
    "of any size": 2.0 ** np.random.default_rng(3).uniform(-1000, 53, 500),
    "at the ends": np.array([0.0, -0.0, LIMIT, -LIMIT, LIMIT - 1, 5e-324, -1e-310, 0.5, 1 / 3]),
}
YARN = rotary.scaling.YaRN(8.0, 4096)  # with an attention factor of 0.1·ln(8) + 1


@pytest.fixture
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``by_numpy(frequencies, positions, dtype, power, role)``: the tables without a kernel."""

    def evaluate(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "kernel", lambda name: None)
            return tables.evaluate(*arguments)

    return evaluate


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the same, by the kernel for certain."""

    def evaluate(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "kernel", {"tables": _cpu_tables}.__getitem__)
            patch.setattr(tables, "_fill", lambda *a: pytest.fail("NumPy filled the tables"))
            return tables.evaluate(*arguments)

    return evaluate


def same_bits(x: Any, y: Any) -> bool:
    """Whether two arrays are one, −0 apart from 0; any NaN is any other."""
    bits = np.uint32 if x.dtype == np.float32 else np.uint64
    alike = (x.view(bits) == y.view(bits)) | (np.isnan(x) & np.isnan(y))
    return x.dtype == y.dtype and x.shape == y.shape and bool(alike.all())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [1, 0, -1])
@pytest.mark.parametrize("kind", POSITIONS)
def test_the_kernels_tables_are_numpys(
    kind: str, power: int, dtype: str, by_numpy: Any, by_kernel: Any
) -> None:
    frequencies = Frequencies(100, 500_000.0, 100, scaling=YARN)
    arguments = frequencies, POSITIONS[kind], dtype, power
    assert same_bits(by_kernel(*arguments), by_numpy(*arguments))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_beside_the_zeros_of_cosine_and_sine(
    dtype: str, by_numpy: Any, by_kernel: Any
) -> None:
    worst = np.array(oracle.worst_positions(oracle.Angles(64, 1e6), [0, -20, -45], 53))
    assert len(worst) > 1000
    for positions in (worst, -worst):
        arguments = Frequencies(64, 1e6, 64), positions, dtype
        assert same_bits(by_kernel(*arguments), by_numpy(*arguments))


@pytest.mark.parametrize("dim", [2, 6, 40, 128, 1026])
@pytest.mark.parametrize("count", [0, 1, 2, 255, 1000])
def test_every_number_of_pairs_and_positions_has_its_tables(
    count: int, dim: int, by_numpy: Any, by_kernel: Any
) -> None:
    positions = np.random.default_rng(4).uniform(-1e5, 1e5, (2, count))[:, ::-1]
    arguments = Frequencies(dim, 10_000.0, dim), positions, "float32"
    assert same_bits(by_kernel(*arguments), by_numpy(*arguments))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_positions_that_are_angles_have_their_cosine_and_sine(
    dtype: str, by_numpy: Any, by_kernel: Any
) -> None:
    angles = np.random.default_rng(5).uniform(-1e9, 1e9, (7, 1001))
    arguments = tables.ONE_RADIAN, angles, dtype
    assert same_bits(by_kernel(*arguments), by_numpy(*arguments))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["blocks", "cycled"])
@pytest.mark.parametrize("shape", [(3, 257), (3, 2, 130), (1, 2, 130), (257,), (3, 0)])
def test_each_pair_is_turned_by_its_own_axis(
    shape: tuple[int, ...], order: str, dtype: str, by_numpy: Any, by_kernel: Any
) -> None:
    axes = rotary.axes.Sections([24, 20, 20], order=order)
    positions = np.random.default_rng(6).uniform(-1e5, 1e5, shape)
    arguments = Frequencies(128, 1e6, 128, axes=axes), positions, dtype
    assert same_bits(by_kernel(*arguments), by_numpy(*arguments))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("role", [1, -1])
def test_the_scale_of_xpos_is_in_them_and_nan_beyond_its_reach(
    role: int, dtype: str, by_numpy: Any, by_kernel: Any
) -> None:
    frequencies = Frequencies(64, 10_000.0, 64, scaling=YARN, xpos=rotary.XPos())
    most = tables.reach(rotary.XPos(), tables.attention_factor(frequencies), dtype)
    inside = np.concatenate([np.linspace(-most, most, 300), np.arange(-300.0, 300.0)])
    for power in (1, -1):
        arguments = frequencies, inside, dtype, power, role
        got = by_kernel(*arguments)
        assert same_bits(got, by_numpy(*arguments))
    beyond = frequencies, np.array([1.5, 2 * most, -LIMIT]), dtype, 1, role
    got = by_kernel(*beyond)
    assert same_bits(got, by_numpy(*beyond))
    assert np.isnan(got).any(axis=(0, 2)).tolist() == [False, True, True]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(
    count: int, by_numpy: Any, by_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    run = _threads.run
    monkeypatch.setattr(_cpu_tables, "_LEAST_ENTRIES", 1000)
    monkeypatch.setattr(_threads, "get_num_threads", lambda: count)
    monkeypatch.setattr(_threads, "run", lambda work, p: parts.append(len(p)) or run(work, p))
    arguments = Frequencies(48, 10_000.0, 48), np.arange(-1000.0, 1013.0), "float32"
    assert same_bits(by_kernel(*arguments), by_numpy(*arguments))
    assert parts == [count]


def test_threads_that_call_at_once_have_the_same_tables(by_numpy: Any) -> None:
    frequencies, positions = Frequencies(64, 10_000.0, 64), np.arange(3000.0)
    want = by_numpy(frequencies, positions, "float32")

    def evaluate(_: int) -> Any:
        return tables.evaluate(frequencies, positions, "float32")

    with ThreadPoolExecutor(8) as pool:
        assert all(same_bits(got, want) for got in pool.map(evaluate, range(64)))


_CHOICE = """
import hashlib, json, sys
import numpy as np
from rotary.frequencies import Frequencies
from rotary.tables import evaluate

def digest(positions, dtype="float32"):
    both = evaluate(Frequencies(16, 10_000.0, 16), positions, dtype)
    return hashlib.sha256(both.tobytes()).hexdigest()

small = digest(np.arange(1000) + 0.25, "float64")
before = "numba" in sys.modules
print(json.dumps([small, before, digest(np.arange(2.0**19)), "numba" in sys.modules]))
"""


def _run(script: str, folder: Path, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_only_large_tables_import_a_compiler_and_none_where_the_kernel_is_off(root: Path) -> None:
    on = _run(_CHOICE, root, ROTARY_DISABLE_KERNELS="")
    off = _run(_CHOICE, root, ROTARY_DISABLE_KERNELS="tables")
    assert [*on[1::2], *off[1::2]] == [False, True, False, False]
    assert on[::2] == off[::2]
    here = tables.evaluate(Frequencies(16, 10_000.0, 16), np.arange(1000) + 0.25, "float64")
    assert hashlib.sha256(here.tobytes()).hexdigest() == on[0]


_CACHED = """
import json
import numpy as np
from rotary import tables
from rotary.backends import kernels
from rotary.backends.kernels import _cpu_tables
from rotary.frequencies import Frequencies

arguments = Frequencies(32, 10_000.0, 32), np.arange(1000) + 0.25, "float64"
both = tables.evaluate(*arguments)
read = sum(_cpu_tables._kernel(False, False).stats.cache_hits.values())
kernels.kernel = lambda name: None
print(json.dumps([read, np.array_equal(both, tables.evaluate(*arguments)), both.sum()]))
"""


def test_the_kernel_is_read_from_disk_unless_its_text_has_changed(
    root: Path, tmp_path: Path
) -> None:
    for name in ("rotary", "backends"):
        shutil.copytree(root / name, tmp_path / name, symlinks=True)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    first = _run(_CACHED, tmp_path, **environment)
    second = _run(_CACHED, tmp_path, **environment)
    circle = tmp_path / "rotary" / "exact" / "circle.py"
    text = circle.read_text("utf-8")
    assert text.count("1 / 24") == 1
    circle.write_text(text.replace("1 / 24", "1 / 25"), "utf-8")
    third = _run(_CACHED, tmp_path, **environment)
    assert (first[:2], second[:2], third[:2]) == ([0, True], [1, True], [0, True])
    assert first[2] == second[2] != third[2]

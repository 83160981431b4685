"""Every case on every library; in every way, compiled ones too, for cases that stand for the rest.

``rotary check`` runs every case in every way and dtype: some 3000 programs to compile, which is too
much for every run of the tests.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from rotary import conformance
from rotary.conformance import cases, libraries

STAND_FOR_THE_REST = {
    "rotation/half",
    "rotation/interleaved-trailing",
    "traced/offset",
    "traced/tables-fractional",
    "scaling/yarn",
    "xpos/traced-offset",
    "axes/traced",
    "learned/mixed",
    "relative/alibi",
}
WITHOUT_PROGRAMS = ("eager", "lazy", "in place")
# Seconds each, eager calls too: one large program.  `rotary check` runs them whenever CI does.
LARGE_PROGRAMS = {
    "dask-relative/shaw",
    "dask-traced/offset-per-row",
    "dask-traced/positions-per-row",
    "jax-attention/softmax",
    "jax-axes/traced",
    "jax-learned/mixed",
    "jax-relative/shaw",
    "jax-relative/t5-both",
    "jax-xpos/traced-offset",
    "ndonnx-axes/traced",
    "ndonnx-traced/positions-per-row",
    "ndonnx-xpos/traced-offset",
}


def chosen() -> Iterator[tuple[str, cases.AnyCase]]:
    for name in libraries.KNOWN:
        for case in cases.every():
            # One compiled operation in JAX, eager or not: test_linear_exact.py has it.
            if case.id.startswith("linear/") and name == "jax":
                continue
            if not case.id.startswith("vectors/"):  # test_vectors.py has them
                yield name, case


def marks(name: str) -> Any:
    return pytest.mark.large if name in LARGE_PROGRAMS else ()


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(n, c, id=f"{n}-{c.id}", marks=marks(f"{n}-{c.id}")) for n, c in chosen()],
)
def test_every_case_holds(name: str, case: cases.AnyCase) -> None:
    if name == "cupy":  # all others are installed with the tests
        try:
            libraries.load(name)
        except libraries.NotInstalledError as reason:
            pytest.skip(str(reason))
    ways, dtypes = None, cases.DTYPES
    stands_for_the_rest = case.id in STAND_FOR_THE_REST
    if not stands_for_the_rest and case.kind != "table gradient":
        every_way = (way.name for way in libraries.load(name).ways)
        ways = [way for way in every_way if way.partition(",")[0] in WITHOUT_PROGRAMS]
    if case.kind == "function" or stands_for_the_rest:
        # What a compiler does with 16 bits shows in two rotations as well as in all.
        narrow = case.kind == "function" or case.id.startswith("rotation/")
        dtypes = ("bfloat16", "float32") if narrow else ("float32",)
    report = conformance.run([name], cases=[case.id], ways=ways, dtypes=dtypes, elements=2000)
    assert report.failures == ()
    assert report.differing == 0
    assert report.holds or not report.run


def test_what_is_left_to_the_check_is_there() -> None:
    assert {f"{name}-{case.id}" for name, case in chosen()} >= LARGE_PROGRAMS


def test_every_case_says_what_mistake_it_catches() -> None:
    assert all(case.comment for case in cases.every())
    ids = [case.id for case in cases.every()]
    assert len(ids) == len(set(ids))


def test_what_is_not_run_is_listed_with_its_reason() -> None:
    report = conformance.run(
        ["array-api-strict"], cases=["rotation/half"], dtypes=["float16"], elements=100
    )
    assert {cell.verdict for cell in report.cells} == {"not run"}
    assert all(cell.detail == "array-api-strict has no float16" for cell in report.cells)
    assert not report.holds


def test_jax_programs_hold_when_sharded_over_two_devices() -> None:
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rotary",
            "check",
            "--backend",
            "jax",
            "--way",
            "sharded",
            "--case",
            "rotation/half,traced/offset",
            "--elements",
            "2000",
        ],
        env={**os.environ, "XLA_FLAGS": flags, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one device only" not in done.stdout
    assert "0 of 6 cells fail" in done.stdout

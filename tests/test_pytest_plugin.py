"""``pytest -p rotary.conformance.plugin``: the suite in somebody else's continuous integration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rotary.backends import _numpy
from rotary.conformance import cases, libraries, plugin, runner

# What a run inside this process imports, it forgets again: all of it is to be here before.
assert plugin.runner is runner
assert cases.every()
libraries.load("numpy")

pytest_plugins = ["pytester"]

# What this process has imported cannot be rewritten; hypothesis reports at length, by importing
# all of itself.
INSIDE = ("-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:hypothesispytest")
SMALL = ("--rotary-backend", "numpy", "--rotary-elements", "100")
HALF = ("--rotary-case", "rotation/half", "--rotary-dtype", "float32")


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run the suite in this process, as ``pytest -p … --pyargs rotary.conformance`` does."""

    def run(*arguments: str, start: tuple[str, ...] = SMALL) -> pytest.RunResult:
        plugin = ("-p", "rotary.conformance.plugin", "--pyargs", "rotary.conformance")
        return pytester.runpytest_inprocess(*INSIDE, *plugin, "-rA", *start, *arguments)

    return run


@pytest.fixture
def contracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's products are off by one unit in the last place."""
    monkeypatch.setattr(
        _numpy, "product", lambda x, factor: np.nextafter(x * factor, x.dtype.type(0))
    )
    monkeypatch.setattr(_numpy, "rotate", lambda *_: None)  # no kernel


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    return {k: v for k, v in result.parseoutcomes().items() if k != "warnings"}


def test_every_cell_is_a_test_with_its_name(suite: Any) -> None:
    result = suite("--rotary-case", "rotation/half,gradient/tables-half")
    assert result.ret == 0
    # Four dtypes in two ways; NumPy computes no gradients.
    assert outcomes(result) == {"passed": 8, "skipped": 2}
    result.stdout.fnmatch_lines(["PASSED *::numpy / rotation/half / bfloat16 / in place"])
    result.stdout.fnmatch_lines(["SKIPPED *: numpy computes no gradients"])


def test_cells_are_chosen_as_in_rotary_check(suite: Any) -> None:
    result = suite(*HALF, "--rotary-way", "eager", "--collect-only", "-q")
    lines = [line for line in result.outlines if "::" in line]
    assert [line.partition("::")[2] for line in lines] == [
        "numpy / rotation/half / float32 / eager"
    ]


@pytest.mark.usefixtures("contracted")
def test_what_does_not_hold_fails_and_says_how_to_repeat_it(suite: Any) -> None:
    result = suite(*HALF)
    assert result.ret == 1
    assert outcomes(result) == {"failed": 2}
    result.stdout.fnmatch_lines(
        [
            "* differ from bitwise, worst *: expected *, got *",
            "rotary check --backend numpy --case rotation/half --dtype float32 --way 'in place'",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.usefixtures("contracted")
def test_what_is_expected_to_fail_may(suite: Any, pytester: pytest.Pytester) -> None:
    file = pytester.path / "expected.txt"
    file.write_text(
        "# What our library does not do yet.\n\n"
        "numpy / rotation/half / float32 / eager\n"
        "* / rotation/* / * / in place  # it contracts\n"
    )
    result = suite(*HALF, "--rotary-xfail", str(file))
    assert result.ret == 0
    assert outcomes(result) == {"xfailed": 2}
    result.stdout.fnmatch_lines(
        ["XFAIL *::numpy / rotation/half / float32 / in place*it contracts"]
    )


def test_what_is_expected_to_fail_and_holds_fails(suite: Any, pytester: pytest.Pytester) -> None:
    file = pytester.path / "expected.txt"
    file.write_text("numpy / rotation/half / float32 / eager\n")
    result = suite(*HALF, "--rotary-xfail", str(file))
    assert result.ret == 1
    assert outcomes(result) == {"passed": 1, "failed": 1}
    result.stdout.fnmatch_lines(["*XPASS(strict)*"])


def test_a_line_for_cells_that_were_not_chosen_this_time_is_no_error(
    suite: Any, pytester: pytest.Pytester
) -> None:
    file = pytester.path / "expected.txt"
    file.write_text("numpy / rotation/interleaved / float16 / eager\n")
    assert suite(*HALF, "--rotary-xfail", str(file)).ret == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rotary-backend", "numpi"), "rotary: backend 'numpi' is unknown; known are numpy*"),
        (("--rotary-case", "rotation/hlaf"), "rotary: case: 'rotation/hlaf' matches none of *"),
        (("--rotary-dtype", "int8"), "rotary: dtype: got 'int8', *"),
        (("--rotary-way", "backwards"), "rotary: way: got 'backwards', *"),
        (("--rotary-elements", "0"), "rotary: elements: got 0, *"),
        (("--rotary-xfail", "no/such/file"), "rotary: *No such file*no/such/file*"),
        (
            ("--rotary-xfail", "x.txt"),
            "rotary: --rotary-xfail: 'numpy / gone / *' matches no cell *",
        ),
    ],
)
def test_what_cannot_be_collected_is_an_error_and_never_a_skip(
    suite: Any, pytester: pytest.Pytester, arguments: tuple[str, ...], words: str
) -> None:
    (pytester.path / "x.txt").write_text(
        "numpy / rotation/half / float32 / eager\nnumpy / gone / *  # since 0.1\n"
    )
    result = suite(*arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert outcomes(result) == {"errors": 1}
    result.stdout.fnmatch_lines([words])


def test_options_that_nothing_listens_to_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own(): pass")
    plugin = (*INSIDE, "-p", "rotary.conformance.plugin")
    assert pytester.runpytest_inprocess(*plugin).ret == 0
    result = pytester.runpytest_inprocess(*plugin, *SMALL)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--rotary-backend: the suite is not collected; add --pyargs *"])


def test_without_the_plugin_nothing_is_collected(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*INSIDE, "--pyargs", "rotary.conformance")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_it_runs_from_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n"
    )
    plugin = ("-p", "rotary.conformance.plugin", "--pyargs", "rotary.conformance")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *SMALL, *HALF],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout

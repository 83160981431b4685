"""``rotary check``: its exit status, what it says, and what it writes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import rotary
from rotary import cli
from rotary.backends import _numpy
from rotary.conformance import cases, libraries

SMALL = ["check", "--backend", "numpy", "--elements", "1000"]
# What the command needs beyond what the library needs.
EXTRA = ("jinja2", "mpmath", "ml_dtypes", "rich")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def check(capsys):
    """Run ``rotary check`` on NumPy with small arrays; return its status, output and errors."""

    def run(*arguments: str, start: list[str] = SMALL) -> tuple[int, str, str]:
        status = cli.main([*start, *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def contracted(monkeypatch):
    """NumPy's products are off by one unit in the last place."""
    monkeypatch.setattr(
        _numpy, "product", lambda x, factor: np.nextafter(x * factor, x.dtype.type(0))
    )
    monkeypatch.setattr(_numpy, "rotate", lambda *_: None)  # no kernel


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def report_of(check, tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    """Run and return the status and the written report, read as strict JSON."""
    file = tmp_path / "report.json"
    status, _, _ = check("--json", str(file), *arguments)
    return status, json.loads(file.read_bytes(), parse_constant=pytest.fail)


# What holds.


def test_a_run_that_holds_exits_0(check):
    status, out, err = check("--case", "tables/whole,rotation/half")
    assert (status, err) == (0, "")
    assert "tables/whole" in out
    assert "rotation/half" in out
    assert np.__version__ in out
    assert "holds: 0 of " in out
    assert "0 of 10 cells fail" in out


def test_the_module_is_the_command():
    done = python("-m", "rotary", *SMALL, "--case", "rotation/half", "--dtype", "float32")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 of 2 cells fail" in done.stdout


def test_cases_may_be_patterns_and_options_may_be_repeated(check, tmp_path):
    status, report = report_of(
        check,
        tmp_path,
        *("--case", "rotation/half*, rotation/offset", "--case", "rotation/offset"),
        *("--backend", "numpy", "--dtype", "float32,float64", "--dtype", "float16"),
        *("--way", "eager"),
    )
    assert status == 0
    asked = ["rotation/half", "rotation/half-leading", "rotation/half-trailing", "rotation/offset"]
    assert list(report["versions"]) == ["numpy"]
    assert [(c["case"], c["dtype"], c["way"]) for c in report["cells"]] == [
        (case, dtype, "eager") for case in asked for dtype in ("float16", "float32", "float64")
    ]


def test_by_default_every_installed_library_is_run(check, monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda: ["numpy", "array-api-strict"])
    status, out, _ = check(start=["check", "--case", "rotation/half", "--elements", "100"])
    assert status == 0
    assert "numpy" in out
    assert "array-api-strict" in out
    assert "holds: 0 of " in out


def test_the_number_of_elements_is_what_was_asked_for(check, tmp_path):
    _, small = report_of(check, tmp_path, "--case", "rotation/half", "--elements", "1")
    _, large = report_of(check, tmp_path, "--case", "rotation/half", "--elements", "200000")
    assert (small["elements"], large["elements"]) == (1, 200_000)
    assert all(cell["elements"] < 50_000 for cell in small["cells"])
    assert all(200_000 <= cell["elements"] < 250_000 for cell in large["cells"])


# What is written.


def test_json_holds_the_whole_report(check, tmp_path):
    status, report = report_of(check, tmp_path, "--case", "tables/whole,rotation/half")
    assert status == 0
    assert report["schema"] == 1
    assert report["rotary"] == rotary.__version__
    assert report["versions"] == {"numpy": np.__version__}
    assert report["holds"] is True
    assert set(report) >= {"python", "machine", "elements", "seconds"}
    assert len(report["cells"]) == 2 + 4 * 2
    for cell in report["cells"]:
        assert cell["verdict"] == "holds"
        assert cell["library"] == "numpy"
        assert cell["elements"] > 0
        assert cell["differing"] == 0
    levels = {(cell["case"], cell["dtype"]): cell["level"] for cell in report["cells"]}
    assert levels["tables/whole", "float32"] == "bitwise"
    assert levels["tables/whole", "float64"] == "ulp <= 0.501"
    assert levels["rotation/half", "bfloat16"] == "bitwise"


@pytest.mark.usefixtures("contracted")
def test_json_of_a_failure_tells_where_and_what(check, tmp_path):
    status, report = report_of(check, tmp_path, "--case", "rotation/half", "--dtype", "float32")
    assert status == 1
    assert report["holds"] is False
    for cell in report["cells"]:
        assert cell["verdict"] == "fails"
        assert 0 < cell["differing"] <= cell["elements"]
        assert cell["worst"] >= 1
        assert len(cell["worst_index"]) == 4
        assert "expected" in cell["detail"]


def test_json_is_valid_where_errors_are_not_finite(check, monkeypatch, tmp_path):
    table = np.full((64, 32), np.nan)
    monkeypatch.setattr(rotary.RotaryEmbedding, "tables", lambda *_, **__: (table, table))
    status, report = report_of(check, tmp_path, "--case", "tables/whole", "--dtype", "float64")
    assert status == 1
    assert [cell["worst"] for cell in report["cells"]] == ["nan"]


def test_verbose_lists_every_cell(check):
    arguments = ("--case", "rotation/half", "--dtype", "float16,float32")
    cells = [("float16", "eager"), ("float16", "in place"), ("float32", "eager")]

    def listed(out: str, cell: tuple[str, str]) -> bool:
        return any(all(word in line for word in (*cell, "bitwise")) for line in out.splitlines())

    _, brief, _ = check(*arguments)
    status, out, _ = check(*arguments, "--verbose")
    assert status == 0
    assert all(listed(out, cell) and not listed(brief, cell) for cell in cells)


@pytest.mark.parametrize(
    ("library", "case", "dtypes", "reason"),
    [
        ("array-api-strict", "rotation/half", "float16", "array-api-strict has no float16"),
        ("array-api-strict", "gradient/tables-half", "float32", "computes no gradients"),
        ("jax", "tables/whole", "float64", "JAX has no float64 with x64 off"),
    ],
)
def test_cells_that_are_not_run_are_named_with_their_reason(
    check, tmp_path, library, case, dtypes, reason
):
    if library == "jax":
        pytest.importorskip("jax")
    file = tmp_path / "report.json"
    arguments = ["check", "--backend", f"numpy,{library}", "--case", f"{case},rotation/inverse"]
    status, out, _ = check(
        *("--dtype", f"{dtypes},float32", "--way", "eager", "--way", "table gradient"),
        *("--json", str(file)),
        start=[*arguments, "--elements", "100"],
    )
    assert status == 0
    cells = json.loads(file.read_text())["cells"]
    skipped = [c for c in cells if c["verdict"] == "not run" and c["library"] == library]
    assert skipped
    assert all(cell["detail"] for cell in cells if cell["verdict"] == "not run")
    assert any(cell["case"] == case and reason in cell["detail"] for cell in skipped)
    assert f"not run: {library}, " in out
    assert reason in out


def test_whatever_is_asked_for_stands_in_the_report_run_or_not(check, tmp_path):
    file = tmp_path / "report.json"
    check(
        *("--case", "rotation/half", "--json", str(file)),
        start=["check", "--backend", "array-api-strict", "--elements", "100"],
    )
    cells = json.loads(file.read_text())["cells"]
    ways = [way.name for way in libraries.load("array-api-strict").ways]
    assert sorted((cell["dtype"], cell["way"]) for cell in cells) == sorted(
        (dtype, way) for dtype in cases.DTYPES for way in ways
    )
    for cell in cells:
        if cell["dtype"] in ("float16", "bfloat16"):
            assert cell["verdict"] == "not run"
        assert cell["detail"] if cell["verdict"] == "not run" else cell["verdict"] == "holds"


def junit_of(check, tmp_path: Path, *arguments: str) -> tuple[int, ET.Element]:
    file = tmp_path / "report.xml"
    status, _, _ = check("--junit", str(file), *arguments)
    return status, ET.parse(file).getroot()


def test_junit_has_a_test_case_for_each_cell(check, tmp_path):
    status, root = junit_of(check, tmp_path, "--case", "rotation/half,gradient/tables-half")
    assert status == 0
    (suite,) = root
    counts = {name: suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")}
    assert counts == {
        "name": "numpy",
        "tests": "10",
        "failures": "0",
        "errors": "0",
        "skipped": "2",
    }
    named = {(case.get("classname"), case.get("name")) for case in suite.iter("testcase")}
    assert len(named) == 10
    assert ("numpy.rotation/half", "float32 / in place / bitwise") in named
    reasons = [skipped.get("message") for skipped in suite.iter("skipped")]
    assert reasons == ["numpy computes no gradients"] * 2
    assert [p.get("value") for p in suite.iter("property")] == [np.__version__]


@pytest.mark.usefixtures("contracted")
def test_junit_tells_what_failed(check, tmp_path):
    status, root = junit_of(check, tmp_path, "--case", "rotation/half", "--dtype", "float32")
    assert status == 1
    assert root[0].get("failures") == "2"
    assert all("expected" in failure.get("message") for failure in root.iter("failure"))


def test_junit_holds_what_xml_cannot(check, monkeypatch, tmp_path):
    def broken(*_):
        raise ValueError("\x1b[31m<no> & \x00")

    monkeypatch.setattr(_numpy, "rotate", broken)
    status, root = junit_of(check, tmp_path, "--case", "rotation/half", "--way", "eager")
    assert status == 1
    assert root[0].get("errors") == "4"
    assert {error.get("message") for error in root.iter("error")} == {
        "ValueError: \ufffd[31m<no> & \ufffd"
    }


# What fails.


@pytest.mark.usefixtures("contracted")
def test_a_run_that_fails_exits_1_and_says_how_to_repeat_it(check):
    status, out, _ = check("--case", "rotation/half,tables/whole", "--dtype", "float32")
    assert status == 1
    assert "fails numpy / rotation/half / float32 / in place: " in out
    assert " differ, worst " in out
    assert "2 of 3 cells fail" in out
    commands = [line.strip() for line in out.splitlines() if line.startswith("  rotary check")]
    assert len(commands) == 2
    for command in commands:
        status, out, _ = check(start=shlex.split(command)[1:])
        assert status == 1
        assert "1 of 1 cells fail" in out


def test_an_exception_is_a_verdict_not_the_end(check, monkeypatch):
    def broken(*_):
        raise MemoryError("out of [memory]")

    monkeypatch.setattr(_numpy, "rotate", broken)
    status, out, err = check("--case", "rotation/half,tables/whole", "--dtype", "float32")
    assert (status, err) == (1, "")
    assert "error numpy / rotation/half / float32 / eager: MemoryError: out of [memory]" in out
    assert "2 of 3 cells fail" in out


def test_a_run_of_nothing_does_not_hold(check):
    status, out, _ = check("--case", "gradient/*")
    assert status == 1
    assert "nothing was run" in out
    assert "not run: numpy, " in out


@pytest.mark.usefixtures("contracted")
def test_many_failures_are_shown_in_part(check):
    status, out, _ = check("--case", "rotation/*", "--way", "eager", "--elements", "100")
    assert status == 1
    assert out.count("\nfails numpy / ") == 20
    assert "… and " in out


# What cannot be asked.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "numpi"], ["backend 'numpi'", "known are numpy"]),
        (["--backend", ""], ["backend ''"]),
        (["--case", "rotation/hlaf"], ["case: 'rotation/hlaf'", "rotation/half"]),
        (["--case", "rotation/half,"], ["case: ''"]),
        (["--dtype", "int8"], ["dtype: got 'int8'", "float16", "bfloat16"]),
        (["--way", "backwards"], ["way: got 'backwards'", "'eager', 'in place'"]),
        (["--elements", "0"], ["elements: got 0", "1 to "]),
        (["--elements", "-5"], ["elements: got -5"]),
        (["--json", "no/such/folder/report.json"], ["--json", "no/such/folder"]),
        (["--junit", "no/such/folder/report.xml"], ["--junit", "no/such/folder"]),
        (["--backend", "json"], ["backend 'json'", "json is no backend", "nor asarray()"]),
        (["--backend", "no.such.module"], ["backend 'no.such.module' is unknown", "no.such"]),
        (["--backend", "numpy,no_such_library"], ["backend 'no_such_library' is unknown"]),
        (["--ulp", "2"], ["--ulp: only with --implementation"]),
    ],
)
def test_what_cannot_be_asked_exits_2_and_says_why(check, arguments, words):
    status, out, err = check(*arguments)
    assert status == 2
    assert out.strip() == ""
    assert err.startswith("rotary check: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "arguments", [[], ["chekc"], ["check", "--elements", "many"], ["check", "--bakend", "numpy"]]
)
def test_a_command_that_cannot_be_read_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: rotary" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_exits_2(check, tmp_path):
    status, _, err = check("--case", "rotation/half", "--json", str(tmp_path))
    assert status == 2
    assert err.startswith("rotary check: --json: ")


@pytest.mark.parametrize(
    ("name", "module"), [("torch", "torch"), ("array-api-strict", "array_api_strict")]
)
def test_a_backend_that_is_not_installed_exits_2(name, module):
    """It was asked for, so leaving it out would not do."""
    done = python("-c", without(module), "check", "--backend", f"numpy,{name}")
    assert (done.returncode, done.stdout.strip()) == (2, "")
    assert f"backend {name!r} was asked for, but {module} cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_backend_that_is_not_installed_is_left_out_of_the_default():
    others = {name: module for name, (_, module) in libraries.KNOWN.items() if name != "numpy"}
    arguments = ("check", "--case", "rotation/half", "--elements", "100")
    done = python("-c", without(*others.values()), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "numpy" in done.stdout
    assert not any(name in done.stdout for name in others)


@pytest.mark.parametrize("module", EXTRA)
def test_a_missing_extra_exits_2_and_tells_how_to_install_it(check, monkeypatch, module):
    find_spec = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == module else find_spec(name))
    status, out, err = check()
    assert (status, out) == (2, "")
    assert err == f"rotary check: needs {module}: pip install 'rotary[check]'\n"


def test_a_missing_extra_is_met_before_anything_is_imported():
    done = python("-c", without(*EXTRA), *SMALL)
    assert done.returncode == 2
    assert f"needs {', '.join(EXTRA)}: pip install 'rotary[check]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"]])
def test_help_needs_no_extra_and_no_library(arguments):
    done = python("-c", without(*EXTRA, "torch", "jax"), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: rotary" in done.stdout
    assert "check" in done.stdout


# Libraries and backends of somebody else.

PLUGIN = Path(__file__).resolve().parent / "plugin"
BOXED = ("check", "--backend", "boxed.rotary_backend", "--elements", "100")


@pytest.fixture
def boxed(monkeypatch, tmp_path):
    """Make the package of plugin/ importable, with its entry point if asked for."""

    def make(*, installed: bool) -> None:
        monkeypatch.syspath_prepend(PLUGIN)
        if installed:
            info = tmp_path / "boxed-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boxed\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(
                "[rotary.backends]\nboxed = boxed.rotary_backend\n"
            )
            monkeypatch.syspath_prepend(tmp_path)

    yield make
    for name in ("boxed", "boxed.rotary_backend"):
        sys.modules.pop(name, None)


def test_a_backend_of_somebody_else_is_checked_like_ours(check, boxed):
    boxed(installed=True)
    status, out, _ = check("--case", "rotation/half", start=[*BOXED])
    assert status == 0
    assert "0 of 8 cells fail" in out
    assert "boxed.rotary_backend 1.0" in out


def test_a_fault_of_somebody_elses_backend_is_found(check, boxed, monkeypatch):
    boxed(installed=True)
    from boxed import rotary_backend

    monkeypatch.setattr(rotary_backend, "product", lambda x, factor: x * factor * factor)
    status, out, _ = check("--case", "rotation/half", start=[*BOXED, "--way", "eager"])
    assert status == 1
    assert "rotary check --backend boxed.rotary_backend --case rotation/half" in out


def test_a_backend_that_no_array_finds_exits_2(check, boxed):
    boxed(installed=False)
    status, out, err = check(start=[*BOXED])
    assert (status, out.strip()) == (2, "")
    assert "arrays of boxed.Array belong to no backend: is its entry point" in err


def test_an_array_library_is_checked_by_its_name(check):
    start = ["check", "--backend", "array_api_strict", "--elements", "100"]
    status, out, _ = check("--case", "rotation/half,rotation/offset", start=start)
    assert status == 0
    assert "0 of 8 cells fail" in out


@pytest.mark.parametrize("good", [True, False])
def test_a_module_may_say_how_it_is_run(check, monkeypatch, good):
    module = ModuleType("mine")
    module.library = lambda: libraries.load("numpy") if good else "numpy"
    monkeypatch.setitem(sys.modules, "mine", module)
    start = ["check", "--backend", "mine", "--elements", "100"]
    status, out, err = check("--case", "rotation/half", start=start)
    assert status == (0 if good else 2)
    assert f"mine {np.__version__}" in out if good else "mine.library() gives str" in err


def without(*modules: str) -> str:
    """Return a program that runs the command as if these modules were not installed."""
    return f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in {modules} else find(name, *rest)
from rotary.cli import main

sys.exit(main())
"""


# On which device.


def has_cuda() -> bool:
    """Whether any library would find a CUDA device."""
    try:
        libraries.load_installed("cuda")
    except libraries.NotInstalledError:
        return False
    return True


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_library_may_be_asked_for_on_the_cpu(check, backend):
    asked = ["check", "--device", "cpu", "--backend", backend, "--elements", "100"]
    status, out, err = check("--case", "rotation/half", "--way", "eager", start=asked)
    assert (status, err) == (0, "")
    assert "holds: 0 of " in out


@pytest.mark.parametrize(
    ("backend", "device", "reason"),
    [
        ("torch", "cuda", "torch finds no CUDA device"),
        ("jax", "cuda", "jax finds no CUDA device"),
        ("numpy", "cuda", "numpy computes on cpu alone"),
        ("array-api-strict", "cuda", "array_api_strict computes on cpu alone"),
        ("cupy", "cpu", "cupy "),  # which cannot be imported, or computes on cuda alone
        ("json", "cuda", "the module itself says on which device, not device 'cuda'"),
    ],
)
def test_a_device_that_is_not_there_exits_2(check, backend, device, reason):
    if backend in ("torch", "jax") and has_cuda():
        pytest.skip("there is a CUDA device")
    status, out, err = check(start=["check", "--backend", backend, "--device", device])
    assert (status, out.strip()) == (2, "")
    start = f"rotary check: backend {backend!r} was asked for, but {reason}"
    assert err.startswith(start)
    assert err.count("\n") == 1


def test_a_device_that_no_library_has_exits_2(check):
    if has_cuda():
        pytest.skip("there is a CUDA device")
    status, out, err = check(start=["check", "--device", "cuda"])
    assert (status, out.strip()) == (2, "")
    assert err.startswith("rotary check: device 'cuda' was asked for, and no library has it: ")
    assert "torch finds no CUDA device; jax finds no CUDA device; " in err
    assert err.count("\n") == 1


def test_a_device_that_is_unknown_exits_2(check):
    status, out, err = check("--device", "tpu")
    assert (status, out.strip()) == (2, "")
    assert err == "rotary check: device: got 'tpu', expected one of 'cpu', 'cuda'\n"


def test_a_device_does_not_go_with_an_implementation(check):
    asked = ["check", "--implementation", "json:dumps", "--device", "cuda"]
    status, out, err = check(start=asked)
    assert (status, out.strip()) == (2, "")
    assert err == "rotary check: --device: not with --implementation\n"

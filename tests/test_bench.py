"""``rotary bench``: what it refuses, what it writes, and how its figures come about."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from rotary import cli
from rotary.backends import kernels
from rotary.benchmarks import arrays, command, decode, linear, machine, plots, rotation, tables
from rotary.benchmarks import run as running
from rotary.benchmarks.contender import (
    Call,
    Case,
    Contender,
    Figure,
    Goal,
    Settings,
    UnavailableError,
)
from rotary.benchmarks.report import Measured, duration, figure_of, shown
from rotary.benchmarks.timing import Timed, arrays_of, measure, ratio, spread, without

CORES = machine.cores()


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def bench(capsys):
    """Run ``rotary bench``; return its status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["bench", *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Run all groups on NumPy once; return the report and the folder with the pictures."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "report.json"), "--plot", str(folder / "out.svg")]
    assert cli.main(["bench", "--quick", "--backend", "numpy", *files]) == 0
    text = (folder / "report.json").read_text("utf-8")
    return json.loads(text, parse_constant=pytest.fail), folder


def timed(name: str, *times: float, work: float | None = None, **more) -> Timed:
    library, _, title = name.rpartition(", ")
    contender = Contender(library or "memory", title, lambda: lambda: None, work=work, **more)
    return Timed(contender, times, 1, 0.0)


def case(*contenders: Contender, calls: int | None = 1) -> Case:
    given = {"dtype": "float32", "threads": CORES, "device": "cpu"}
    return Case("rotation", "a case", given, contenders, calls)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sorting"], "GROUP: got sorting, expected rotation, decode, tables, linear"),
        (["--backend", "fortran"], "--backend: got fortran, expected numpy, torch, jax, cupy"),
        (["--backend", ""], "--backend: got nothing"),
        (["--dtype", "int8"], "--dtype: got int8, expected float16"),
        (["--form", "third"], "--form: got third, expected half"),
        (["--device", "tpu"], "--device: got tpu, expected cpu or cuda"),
        (["--mebibytes", "0"], "--mebibytes: got 0, expected a number above 0"),
        (["--mebibytes", "1,nan"], "--mebibytes: got nan, expected a number above 0"),
        (["--mebibytes", "inf"], "--mebibytes: got inf, expected a number above 0"),
        (["--threads", "1,-2"], "--threads: got -2, expected a whole number above 0"),
        (["--threads", "1.5"], "--threads: got 1.5, expected a whole number above 0"),
        (["--tokens", ""], "--tokens: got nothing, expected a whole number above 0"),
        (["--repeats", "three"], "--repeats: got three, expected a whole number above 0"),
        (["--repeats", "3,4"], "--repeats: got 2 numbers, expected one"),
        (["--heads", "0"], "--heads: got 0, expected a whole number above 0"),
        (["--json", "/no/such/folder/x.json"], "--json: there is no folder /no/such/folder"),
        (["--plot", "/no/such/folder/x.svg"], "--plot: there is no folder /no/such/folder"),
        (["--plot", "out.gif"], "--plot: got out.gif, expected a name that ends in .svg or .png"),
        (["--backend", "numpy", "--device", "cuda"], "NumPy has arrays on the CPU alone"),
        (["--backend", "cupy"], "CuPy has no arrays on the CPU"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_what_cannot_be_asked_exits_2_with_a_sentence(bench, arguments, words):
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("rotary bench: ")
    assert words in err
    assert err.count("\n") == 1


def test_without_a_gpu_cuda_exits_2_and_says_what_each_library_sees(bench, monkeypatch):
    def no_gpu(library: str) -> str:
        return f"{library} sees none"

    monkeypatch.setattr(machine, "_no_gpu", no_gpu)
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "cupy" else object())
    status, _, err = bench("--device", "cuda")
    assert status == 2
    assert err.startswith("rotary bench: --device: got cuda, but nothing asked for has it: ")
    for words in ("NumPy has arrays on the CPU alone", "torch sees none", "cupy is not installed"):
        assert words in err


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(bench, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    status, out, err = bench("--plot", "x.svg")
    assert (status, out) == (2, "")
    assert "--plot: needs matplotlib: pip install 'rotary[check]'" in err


def test_what_it_knows_by_name_is_what_there_is():
    assert tuple(running.GROUPS) == command.GROUPS
    for form in command.FORMS:
        settings = Settings(forms=(form,), mebibytes=(0.01,), threads=(CORES,))
        assert next(rotation.cases(settings)).parameters["form"] == form


def test_help_imports_no_library():
    code = (
        "import sys\nfrom rotary.cli import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'jax', 'numba', 'matplotlib', 'rich'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--mebibytes" in done.stdout


# How figures come about.


def test_a_ratio_is_the_median_of_ratios_within_a_repeat():
    # The machine was twice as slow in the second repeat, and disturbed in the third.
    assert ratio([2.0, 4.0, 90.0], [1.0, 2.0, 1.0]).median == 2.0
    # One of them ran twice only: the other's third repeat has no partner.
    assert ratio([3.0, 5.0], [1.0, 1.0, 7.0]) == spread([3.0, 5.0])


def test_quartiles_are_those_of_numpy():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [("times", 0.25, "0.250 ×"), ("faster", 4.0, "4.00 ×"), ("share", 2.0, "200%")],
)
def test_figures_say_what_their_kind_says(kind, value, text):
    one, other = timed("a, x", 1.0, 2.0, work=10.0), timed("b, x", 4.0, 8.0, work=20.0)
    found = figure_of(kind, one, other)
    assert found.median == value
    assert shown(Figure(kind, "b, x", ""), found.median) == text


def test_a_pattern_stands_for_the_fastest():
    slow, fast = timed("a, product", 4.0, work=8.0), timed("b, product", 3.0, work=8.0)
    found = Measured(case(), (slow, fast, timed("a, other", 1.0, work=1.0)), ())
    assert found.find("*, product") is fast
    assert found.find("c, product") is None
    assert found.value(slow, Figure("share", "*, product", "share of peak")).median == 0.75
    assert found.value(slow, Figure("times", "c, *", "")) is None


@pytest.mark.parametrize(
    ("kind", "at_most"), [("times", True), ("seconds", True), ("faster", False), ("share", False)]
)
def test_a_goal_bounds_from_the_side_that_its_figure_has(kind, at_most):
    goal = Goal(Figure(kind, "", ""), 2.0)
    assert [goal.met(value) for value in (1.9, 2.0, 2.1)] == [at_most, True, not at_most]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 ns"),
        (3.2e-9, "3.20 ns"),
        (9.999e-7, "1.00 µs"),
        (0.0123, "12.3 ms"),
        (1234.5, "1,230 s"),
    ],
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert duration(seconds) == text


# How contenders run.


def test_all_contenders_run_in_every_repeat_and_in_another_order():
    order: list[str] = []

    def contender(name: str) -> Contender:
        return Contender("memory", name, lambda: lambda: order.append(name))

    names = ["a", "b", "c", "d"]
    found, left_out = measure(case(), [contender(n) for n in names], repeats=4, pause=0.0, warm=0.0)
    assert not left_out
    assert [t.name for t in found] == names
    assert all(len(t.times) == 4 and t.calls == 1 for t in found)
    # Two calls to begin with, then a warm-up and a timed call in each repeat.
    first, rest = order[:8], order[8:]
    assert first == [name for name in names for _ in range(2)]
    repeats = [rest[8 * i : 8 * i + 8 : 2] for i in range(4)]
    assert all(sorted(repeat) == names for repeat in repeats)
    assert len({tuple(repeat) for repeat in repeats}) > 1


def test_what_raises_is_left_out_with_what_it_said():
    def unavailable() -> None:
        raise UnavailableError("it has no bfloat16")

    def broken() -> None:
        raise RuntimeError("no\nluck")

    makes = {"a": unavailable, "b": lambda: broken, "c": lambda: lambda: None}
    contenders = [Contender("memory", name, make) for name, make in makes.items()]
    found, left_out = measure(case(), contenders, repeats=1, pause=0.0, warm=0.0)
    assert [t.name for t in found] == ["c"]
    assert [(one.name, one.reason) for one in left_out] == [
        ("a", "it has no bfloat16"),
        ("b", "RuntimeError: no"),
    ]


def test_kernels_are_switched_off_for_a_while():
    for name in ("rotation", "blocks"):
        before = kernels.kernel(name)
        with without((name,)):
            assert kernels.kernel(name) is None
            assert kernels.off(name) == "switched off by ROTARY_DISABLE_KERNELS"
        assert kernels.kernel(name) is before


@pytest.mark.parametrize("dtype", command.DTYPES)
@pytest.mark.parametrize("form", command.FORMS)
def test_the_usual_code_rotates_as_ours_does(form, dtype):
    settings = Settings(
        libraries=("numpy",), dtypes=(dtype,), forms=(form,), mebibytes=(0.1,), threads=(CORES,)
    )
    made = {c.name: c.make for c in next(rotation.cases(settings)).contenders}
    ours = made["numpy, ours"]()()
    tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 4e-3, "bfloat16": 4e-2}[dtype]
    for name in ("numpy, plain", "numpy, ours, tables given", "numpy, ours, without kernels"):
        other = made[name]()()
        assert other.dtype == arrays.host_dtype(dtype)
        difference = np.abs(np.asarray(other, np.float64) - np.asarray(ours, np.float64))
        assert difference.max() <= tolerance * 5


@pytest.mark.parametrize("form", command.FORMS)
def test_what_torch_and_jax_are_timed_with_rotates_as_ours_does(form):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    settings = Settings(forms=(form,), mebibytes=(0.05,), threads=(CORES,))
    contenders = {c.name: c for c in next(rotation.cases(settings)).contenders}
    ours = contenders["numpy, ours"].make()()
    backward = [n for n in contenders if n.startswith("torch, ") and n.endswith("backward")]
    titles = ("plain", "ours", "Hugging Face", "rotary-embedding-torch", "ours, tables given")
    run = {
        name: np.asarray(arrays_of(c.make()())[0])
        for name, c in contenders.items()
        if c.library != "memory"
        and c.title.removesuffix(", jit") in titles
        and running.refusal(c, settings) is None
    }
    assert {"torch, plain", "torch, ours", "jax, plain, jit", "jax, ours, jit"} <= set(run)
    for result in run.values():
        np.testing.assert_allclose(result, ours, atol=2e-5)
    gradients = [
        np.asarray(contenders[name].make()()[0])
        for name in backward
        if running.refusal(contenders[name], settings) is None
    ]
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], atol=2e-5)


def test_a_missing_library_is_listed_with_its_reason(bench, monkeypatch):
    there = running.find_spec
    gone = ("torch", "transformers")
    monkeypatch.setattr(running, "find_spec", lambda name: None if name in gone else there(name))
    status, out, err = bench("decode", "--quick", "--repeats", "1", "--backend", "numpy,torch")
    assert (status, err) == (0, "")
    assert "numpy, ours" in out
    assert "not timed: torch, plain; torch, ours; torch, ours, in place; " in out
    assert "not timed: torch, Hugging Face: torch, transformers not installed" in out


def test_reasons_stand_for_what_has_no_place():
    settings = Settings(libraries=("torch", "jax"), threads=(CORES + 1,), mebibytes=(0.01,))
    reasons = {
        c.name: running.refusal(c, settings) for c in next(rotation.cases(settings)).contenders
    }
    assert reasons["copy, 1 thread"] is None
    assert reasons["torch, rotary-embedding-torch"] in (
        "it knows the interleaved layout alone",
        "rotary_embedding_torch not installed",
    )
    assert "XLA's threads" in reasons["jax, ours, jit"] or "jax not" in reasons["jax, ours, jit"]
    long = Settings(libraries=("torch",), threads=(CORES,), tokens=(10**6,))
    (attention,) = linear.cases(long)
    softmax = next(c for c in attention.contenders if c.name == "torch, SDPA")
    assert softmax.refused == "left out beyond 16,384 tokens"


def test_goals_stand_where_the_issue_names_them():
    settings = Settings(threads=(2,), dtypes=("float32", "bfloat16"))
    goals = {
        (found.parameters["dtype"], c.name): c.goals[0].bound
        for found in rotation.cases(settings)
        for c in found.contenders
        if c.goals
    }
    assert goals[("float32", "numpy, ours, in place")] == 1.3
    for dtype in ("float32", "bfloat16"):
        assert goals[(dtype, "torch, ours, in place")] == 20.0
    steps = [c for found in decode.cases(settings) for c in found.contenders if c.goals]
    assert {c.name: c.goals[0].bound for c in steps} == {
        "numpy, ours": 15e-6,
        "torch, ours": 20e-6,
        "jax, ours, jit": 25e-6,
    }
    assert tables.ROWS == 131_072


# What is written.


def test_a_run_writes_what_the_docs_name(written):
    report, _ = written
    assert report["schema"] == 1
    assert report["repeats"] == 3
    assert report["quick"] is True
    assert report["command"].startswith("rotary bench --quick --backend numpy --json ")
    assert report["versions"]["numpy"] == np.__version__
    assert set(report["kernels"]) == set(kernels.KNOWN)
    assert report["machine"]["cores"] == CORES
    assert report["machine"]["device"] == "cpu"
    assert {found["group"] for found in report["cases"]} == set(command.GROUPS)
    for found in report["cases"]:
        assert found["parameters"]["threads"] == CORES
        assert found["contenders"]
        for one in found["contenders"]:
            assert len(one["times"]) == 3
            assert one["seconds"] == spread(one["times"])._asdict()
            assert all(time > 0 for time in one["times"])
            assert one["calls"] >= 1
            assert one["library"] in ("memory", "numpy")
        assert found["left_out"] == []


def test_a_run_holds_every_ratio_to_the_times_it_has(written):
    report, _ = written
    found = next(c for c in report["cases"] if c["group"] == "rotation")
    times = {one["name"]: one["times"] for one in found["contenders"]}
    ours = next(one for one in found["contenders"] if one["name"] == "numpy, ours")
    figures = {f["name"]: f for f in ours["figures"]}
    assert figures["× copy"]["against"] in times
    expected = ratio(times["numpy, ours"], times[figures["× copy"]["against"]])
    assert figures["× copy"]["median"] == expected.median
    faster = ratio(times["numpy, plain"], times["numpy, ours"])
    assert figures["faster than plain"]["median"] == faster.median


def test_a_run_draws_a_picture_of_each_group(written):
    _, folder = written
    pictures = {file.stem: file for file in folder.glob("*.svg")}
    assert set(pictures) == {f"out_{group}" for group in command.GROUPS}
    for file in pictures.values():
        root = ET.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 20
    assert "time as a multiple of a copy" in pictures["out_rotation"].read_text("utf-8")


def test_a_sweep_is_drawn_as_lines_by_size(bench, tmp_path):
    arguments = ["--quick", "--sweep", "--repeats", "1", "--backend", "numpy"]
    status, out, _ = bench("rotation", *arguments, "--plot", str(tmp_path / "sweep.png"))
    assert status == 0
    assert "time, by tokens" in out
    picture = (tmp_path / "sweep_rotation.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_no_case_keeps_its_arrays(monkeypatch):
    alive: list[weakref.ref] = []

    def make() -> Call:
        array = np.zeros(3).view(type("Array", (np.ndarray,), {}))
        alive.append(weakref.ref(array))
        return lambda: array

    monkeypatch.setitem(
        running.GROUPS, "rotation", lambda settings: [case(Contender("memory", "a", make))]
    )
    report = running.run(["rotation"], Settings(libraries=("numpy",), quick=True, repeats=1))
    assert report.measured[0].timed[0].name == "a"
    gc.collect()
    assert [ref() for ref in alive] == [None]


def test_a_goal_that_is_missed_changes_no_exit_status(bench, monkeypatch):
    monkeypatch.setattr(decode, "_GOALS", {("numpy", "ours"): 1e-12, ("numpy", "plain"): 1e6})
    status, out, _ = bench("decode", "--quick", "--repeats", "1", "--backend", "numpy")
    assert status == 0
    assert ": no, " in out
    assert ": yes, " in out


def test_a_picture_of_nothing_is_none(tmp_path):
    report = SimpleNamespace(measured=(Measured(case(), (), ()),))
    assert plots.write(report, tmp_path / "x.svg") == []

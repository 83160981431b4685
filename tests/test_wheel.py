"""What is shipped: the wheel holds what git holds, with the linked folders as packages."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = os.environ if path is None else os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, to: Path) -> Path:
    """Build the wheel or the sdist with the hatchling that is installed."""
    run(
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        to,
        ".",
        cwd=source,
    )
    (built,) = to.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: dict[str, bytes], file: str) -> str:
    (name,) = (name for name in wheel if name.endswith(f".dist-info/{file}"))
    return wheel[name].decode()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what git knows, links as links, to where nothing else lies."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip(f"{ROOT} is not a git checkout, or there is no git")
    to = tmp_path_factory.mktemp("tree")
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(build("wheel", tree, tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_what_git_holds(tree: Path, wheel: dict[str, bytes]) -> None:
    expected = {}
    for folder, name in (
        ("rotary", "rotary"),
        ("backends", "rotary/backends"),
        ("benchmarks", "rotary/benchmarks"),
        ("conformance", "rotary/conformance"),
    ):
        files = (p for p in (tree / folder).rglob("*") if p.is_file() and not p.is_symlink())
        for file in files:
            expected[f"{name}/{file.relative_to(tree / folder).as_posix()}"] = file.read_bytes()
    shipped = {name: data for name, data in wheel.items() if ".dist-info/" not in name}
    assert sorted(shipped) == sorted(expected)
    assert shipped == expected
    assert "rotary/py.typed" in shipped
    assert "rotary/backends/_numpy.py" in shipped
    assert "rotary/benchmarks/__init__.py" in shipped
    assert "rotary/conformance/__init__.py" in shipped


def test_the_wheel_takes_one_name(wheel: dict[str, bytes]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rotary"}


def test_the_command_is_rotary(wheel: dict[str, bytes]) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"rotary": "rotary.cli:main"}
    # A plugin found by pytest would load into everybody's test runs.
    assert entry_points.sections() == ["console_scripts"]


def test_the_core_requires_numpy_and_array_api_compat_alone(wheel: dict[str, bytes]) -> None:
    fields = Parser().parsestr(metadata(wheel, "METADATA"))
    requirements = [Requirement(field) for field in fields.get_all("Requires-Dist", [])]
    core = {requirement.name for requirement in requirements if requirement.marker is None}
    assert core == {"numpy", "array-api-compat"}
    assert all("extra ==" in str(r.marker) for r in requirements if r.marker is not None)


def test_the_wheel_runs(wheel: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in wheel.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    code = (
        "import numpy, rotary, rotary.backends, rotary.benchmarks, rotary.conformance\n"
        "rotary.RotaryEmbedding(8)(numpy.ones((5, 8)))\n"
        "print(rotary.__file__)\n"
    )
    printed = run(sys.executable, "-P", "-c", code, cwd=tmp_path, path=tmp_path)
    assert Path(printed.strip()) == tmp_path / "rotary" / "__init__.py"
    assert "check" in run(sys.executable, "-P", "-m", "rotary", "-h", cwd=tmp_path, path=tmp_path)
    plugin = ("-p", "rotary.conformance.plugin", "--pyargs", "rotary.conformance")
    chosen = ("--rotary-backend", "numpy", "--rotary-case", "rotation/half")
    pytest_ = (sys.executable, "-P", "-m", "pytest", "-q", "--rootdir", tmp_path)
    assert "8 passed" in run(*pytest_, *plugin, *chosen, cwd=tmp_path, path=tmp_path)


def test_the_sdist_builds_the_same_wheel(
    tree: Path, wheel: dict[str, bytes], tmp_path: Path
) -> None:
    with tarfile.open(build("sdist", tree, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert contents(build("wheel", source, tmp_path / "wheel")) == wheel

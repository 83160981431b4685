"""CuPy: held to the same statements on a GPU, where there is one, and on a stand-in everywhere.

The stand-in (``standins/cupy``) is a NumPy that makes CuPy's difficulties.  It is imported by fresh
interpreters alone, so that nothing here takes it for CuPy.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreter import run

from rotary.conformance import libraries

HERE = Path(__file__).resolve().parent
STANDIN = HERE / "standins"


def names_of_checks() -> list[str]:
    """Read them from the source: importing it would import CuPy."""
    tree = ast.parse((HERE / "cupy_checks.py").read_text("utf-8"))
    (table,) = (n.value for n in tree.body if ast.unparse(n).startswith("CHECKS ="))
    return [name.id for name in table.generators[0].iter.elts]


def rotary_check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "rotary", "check", *arguments],
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def standin(**environment: str) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(STANDIN), *filter(None, sys.path)]), **environment}


@pytest.mark.parametrize("name", names_of_checks())
def test_on_the_stand_in(name: str) -> None:
    run(f"from cupy_checks import CHECKS; CHECKS[{name!r}]()", before=STANDIN)


@pytest.mark.parametrize("name", names_of_checks())
def test_on_a_gpu(name: str) -> None:
    try:
        libraries.load("cupy")
    except libraries.NotInstalledError as reason:
        pytest.skip(str(reason))
    import cupy
    from cupy_checks import CHECKS

    if "On two devices." in (CHECKS[name].__doc__ or "") and cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one CUDA device only")
    CHECKS[name]()


def test_every_line_of_the_shim_runs_on_the_stand_in() -> None:
    missed = run(
        """
        import dis, threading, types
        import rotary
        from cupy_checks import CHECKS

        ran, file = set(), sys.modules["rotary.backends"].__path__[0] + "/_cupy.py"

        def follow(frame, event, argument):
            if frame.f_code.co_filename == file:
                ran.add(frame.f_lineno)
                return follow

        def lines(code):
            yield from (line for _, line in dis.findlinestarts(code) if line)
            for constant in code.co_consts:
                if isinstance(constant, types.CodeType):
                    yield from lines(constant)

        sys.settrace(follow)
        for check in CHECKS.values():
            check()
        sys.settrace(None)
        every = set(lines(compile(open(file).read(), file, "exec")))
        assert len(every) > 20
        print(sorted(every - ran))
        """,
        before=STANDIN,
    )
    assert missed == "[]"


def test_the_stand_in_is_as_strict_as_cupy() -> None:
    run(
        """
        import cupy, numpy as np
        from cupy_checks import refused
        x = cupy.array([1.0, 2.0])
        assert not isinstance(x, np.ndarray)
        assert type(x).__module__ == "cupy"
        refused(lambda: hash(x.device), TypeError)
        refused(lambda: hash(x), TypeError)
        refused(lambda: np.asarray(x), TypeError)
        refused(lambda: x * np.ones(2), TypeError)
        refused(lambda: np.ones(2) * x, TypeError)
        refused(lambda: cupy.stack([x, np.ones(2)]), TypeError)
        with cupy.cuda.Device(1):
            assert cupy.array([1]).device == cupy.cuda.Device(1) != x.device
            refused(lambda: x + x, ValueError)
        with cupy.cuda.Stream(non_blocking=True):
            refused(lambda: x + x, AssertionError)
        refused(cupy.cuda.Device(2).use, RuntimeError)
        """,
        before=STANDIN,
    )


def test_the_suite_holds_on_the_stand_in() -> None:
    done = rotary_check("--backend", "cupy", "--elements", "500", **standin())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nholds: 0 of " in done.stdout


def test_where_cupy_is_not_installed_the_check_says_so() -> None:
    if "cupy" in libraries.installed():
        pytest.skip("cupy is installed")
    done = rotary_check("--backend", "numpy,cupy")
    assert done.returncode == 2
    assert done.stdout.strip() == ""
    assert done.stderr.strip() == (
        "rotary check: backend 'cupy' was asked for, but cupy cannot be imported: "
        "No module named 'cupy'"
    )


def test_where_there_is_no_cuda_device_the_check_says_so_in_cupys_words() -> None:
    done = rotary_check("--backend", "numpy,cupy", **standin(STANDIN_CUDA_DEVICES="0"))
    assert done.returncode == 2
    assert done.stdout.strip() == ""
    assert done.stderr.strip() == (
        "rotary check: backend 'cupy' was asked for, but cupy cannot compute here: "
        "cudaErrorNoDevice: no CUDA-capable device is detected"
    )


def test_a_library_that_cannot_run_is_left_out_with_its_reason_unless_asked_for() -> None:
    found = run(
        """
        import os
        os.environ["STANDIN_CUDA_DEVICES"] = "0"
        from rotary import conformance
        from rotary.conformance import libraries
        libraries.installed = lambda: ["numpy", "cupy"]
        report = conformance.run(cases=["rotation/half"], elements=100)
        assert report.holds
        assert list(report.versions) == ["numpy"]
        from rich.console import Console
        report.show(Console(width=200))
        """,
        before=STANDIN,
    )
    assert "left out: cupy: cupy cannot compute here: cudaErrorNoDevice: no CUDA-" in found

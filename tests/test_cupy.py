"""CuPy: held to the same statements on a GPU, where there is one, and on a stand-in everywhere.

The stand-in (``standins/cupy``) is a NumPy that makes CuPy's difficulties.  It is imported by fresh
interpreters alone, so that nothing here takes it for CuPy.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        refused(lambda: x + [1.0, 2.0], TypeError)
        refused(lambda: x.sqrt, AttributeError)
        refused(lambda: cupy.sum(x, where=x > 1), TypeError)
        with cupy.cuda.Device(1):
            assert cupy.array([1]).device == cupy.cuda.Device(1) != x.device
            refused(lambda: x + x, ValueError)
        with cupy.cuda.Stream(non_blocking=True):
            refused(lambda: x + x, AssertionError)
        refused(cupy.cuda.Device(2).use, RuntimeError)
        """,
        before=STANDIN,
    )


def test_the_stand_in_writes_to_memory_that_views_share() -> None:
    run(
        """
        import cupy, numpy as np
        from cupy_checks import refused
        x = cupy.zeros((2, 3), np.float32)
        turned, before = cupy.swapaxes(x, 0, 1), x
        x += 1
        assert x is before and turned.get().tolist() == [[1, 1]] * 3
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.get_current_stream().synchronize()
        with stream:
            x *= 2
        refused(lambda: turned + 1, AssertionError)
        stream.synchronize()
        assert (turned + 1).get().tolist() == [[3, 3]] * 3
        def halved(y):
            y //= 1.5
        refused(lambda: halved(cupy.ones(2, np.int32)), TypeError)
        with cupy.cuda.Device(1):
            refused(lambda: x.__iadd__(1), ValueError)
        """,
        before=STANDIN,
    )


def test_the_stand_in_has_the_dtypes_of_cupy() -> None:
    run(
        """
        import cupy, ml_dtypes, numpy as np
        from cupy_checks import refused
        half, single, whole = (cupy.ones(2, d) for d in (ml_dtypes.bfloat16, "f", np.int32))
        assert cupy.where(half > 0, half, half).dtype == np.float32
        assert (half + half).dtype == half.dtype
        assert (half * 2.0).dtype == (half + single).dtype == np.float32
        assert (single * 2.0).dtype == (single * np.float32(2)).dtype == np.float32
        assert (single * np.float64(2)).dtype == (single * whole).dtype == np.float64
        assert (whole << 3).dtype == (whole & 0x7FFFFFFF).dtype == np.int32
        refused(lambda: whole & 2**31, OverflowError)
        refused(lambda: single & 1, TypeError)
        refused(lambda: -(whole > 0), TypeError)
        assert cupy.sum(whole).dtype == cupy.cumsum(whole > 0).dtype == np.int64
        """,
        before=STANDIN,
    )


def test_the_stand_in_indexes_as_cupy_does() -> None:
    run(
        """
        import cupy, numpy as np
        from cupy_checks import refused
        x = cupy.reshape(cupy.arange(12), (4, 3))
        for index in (cupy.array([5, -1]), [5, -1], np.array([5, -1])):
            assert x[index].get().tolist() == cupy.take(x, index, axis=0).get().tolist()
            assert x[index].get().tolist() == [[3, 4, 5], [9, 10, 11]]
            assert x[..., index].get().tolist() == x.get()[:, [2, 2]].tolist()
        refused(lambda: x[4], IndexError)
        refused(lambda: x[cupy.array([0.0])], IndexError)
        stream = cupy.cuda.get_current_stream()
        queued = x + 1
        assert stream.done < stream.queued
        assert queued[queued > 11].get().tolist() == [12]
        y = x + 0
        y[y > 3] = 0
        assert y.get().sum() == 6
        """,
        before=STANDIN,
    )


def test_the_stand_in_sums_and_exponentiates_apart_from_numpy() -> None:
    run(
        """
        import cupy, numpy as np
        host = np.random.default_rng(0).standard_normal((200, 200), np.float32)
        x = cupy.array(host)
        for got, want in (
            (x @ x, host @ host),
            (cupy.sum(x, axis=-1), host.sum(-1)),
            (cupy.cumsum(x, axis=1), host.cumsum(1)),
            (cupy.exp(x), np.exp(host)),
        ):
            assert got.dtype == want.dtype and got.shape == want.shape
            assert (got.get() != want).mean() > 0.3
            assert np.abs(got.get() - want).max() < 1e-5 * np.abs(want).max()
        """,
        before=STANDIN,
    )


def described(*before: Path) -> dict[str, Any]:
    """Return what a CuPy has: loops of ufuncs, parameters of functions, attributes of arrays."""
    return json.loads(
        run(
            """
            import inspect, json, cupy
            found = {n: f for n, f in vars(cupy).items() if n[0] != "_" and callable(f)}
            functions = {n: f for n, f in found.items() if inspect.isfunction(f)}
            print(json.dumps({
                "loops": {n: f.types for n, f in found.items() if type(f).__name__ == "ufunc"},
                "parameters": {
                    n: [(p.name, repr(p.default)) for p in inspect.signature(f).parameters.values()]
                    for n, f in functions.items()
                },
                "attributes": sorted(set(dir(cupy.ndarray)) - set(dir(type("", (), {})))),
            }))
            """,
            before=before[0] if before else None,
        )
    )


def test_the_stand_in_has_nothing_that_cupy_has_not() -> None:
    try:
        import cupy
    except ImportError as reason:
        pytest.skip(str(reason))
    if not cupy.__version__.startswith("14."):
        pytest.skip("the stand-in copies CuPy 14")
    ours, theirs = described(STANDIN), described()
    assert len(ours["loops"]) > 30
    assert len(ours["parameters"]) > 30
    assert set(ours["attributes"]) <= set(theirs["attributes"])
    for name, loops in ours["loops"].items():
        # All but those of structures.
        assert loops == [loop for loop in theirs["loops"][name] if "V" not in loop], name
    for name, parameters in ours["parameters"].items():
        if name != "matmul":  # which takes any
            in_order = [p for p in theirs["parameters"][name] if p in parameters]
            assert in_order == parameters, name


def test_the_suite_holds_on_the_stand_in() -> None:
    done = rotary_check("--backend", "cupy", "--elements", "500", **standin())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nholds: 0 of " in done.stdout


def test_the_suite_holds_on_a_gpu() -> None:
    try:
        libraries.load("cupy")
    except libraries.NotInstalledError as reason:
        pytest.skip(str(reason))
    done = rotary_check("--backend", "cupy", "--elements", "500")
    assert done.returncode == 0, done.stdout + done.stderr


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

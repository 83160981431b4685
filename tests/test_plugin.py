"""A distribution of somebody else's brings the backend for its own arrays; see plugin/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from interpreter import run

PLUGIN = Path(__file__).resolve().parent / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which pip installed the plugin."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    shutil.copytree(PLUGIN, source, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_its_entry_point_adds_the_backend(installed: Path) -> None:
    code = """
        import boxed, numpy as np, rotary
        from rotary.backends import library, owner_of
        assert "boxed.rotary_backend" not in sys.modules
        q = boxed.Array(np.zeros((5, 8), np.float32))
        assert owner_of(q) is sys.modules["boxed.rotary_backend"]
        print(library(q))
        """
    assert run(code, installed) == "boxed"


def test_calls_go_through_it_and_rotate_right(installed: Path) -> None:
    code = """
        import boxed, numpy as np, rotary
        from boxed.rotary_backend import calls
        for dtype in ("float16", "float32", "float64"):
            x = np.linspace(-1, 1, 240).reshape(2, 3, 5, 8).astype(dtype)
            for layout in ("half", "interleaved"):
                rope = rotary.RotaryEmbedding(8, rotary_dim=6, layout=layout)
                got = rope(boxed.Array(x), positions=boxed.Array(np.arange(3, 8)))
                assert type(got) is boxed.Array
                assert got.dtype == dtype
                assert np.array_equal(got.data, rope(x, offset=3))
                out = boxed.Array(x.copy())
                assert rope.inverse(out, offset=3, out=out) is out
                assert np.array_equal(out.data, rope.inverse(x, offset=3))
        print(*sorted(calls))
        """
    assert run(code, installed) == "narrow product to_device to_host widen"


def test_its_refusals_are_passed_on(installed: Path) -> None:
    code = """
        import boxed, numpy as np, rotary
        x = np.zeros((5, 8), np.float32)
        q, shut = boxed.Array(x), boxed.Array(x.copy())
        shut.data.flags.writeable = False
        for arguments in ({"out": shut}, {"k": x}):
            try:
                rotary.RotaryEmbedding(8)(q, **arguments)
            except (TypeError, ValueError) as error:
                print(error)
        """
    assert run(code, installed).splitlines() == [
        "out: the box is shut; leave it out and take the returned array",
        "k: got an array of numpy, expected q's library boxed",
    ]


def test_without_the_entry_point_its_arrays_are_refused() -> None:
    code = """
        import boxed, numpy as np, rotary
        try:
            rotary.RotaryEmbedding(8)(boxed.Array(np.zeros((5, 8), np.float32)))
        except TypeError as error:
            print(error)
        """
    expected = "q: got boxed.Array, expected an array of NumPy, CuPy, torch, JAX or another library"
    assert run(code, PLUGIN).startswith(expected)

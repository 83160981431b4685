"""CUDA's kernel for CuPy: compiled for the host and, where nvcc is installed, for GPUs.

On the host it runs through the stand-in for CuPy (``standins/cupy``), whose `RawModule` is built by
g++; on a GPU through CuPy itself, in test_cupy.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from interpreter import run

HERE = Path(__file__).resolve().parent
STANDIN = HERE / "standins"
SOURCE = HERE.parent / "backends" / "kernels" / "rotation.cu"

needs_gpp = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def on_the_stand_in(code: str) -> str:
    """Return what a process prints that finds the stand-in as CuPy."""
    begin = f"sys.path.insert(0, {str(HERE)!r})\nimport cupy\nimport numpy as np\n"
    begin += "from rotary.backends.kernels import _cuda_rotation as kernel\n"
    return run(begin + code, before=STANDIN, ROTARY_DISABLE_KERNELS="")


@needs_gpp
def test_every_rotation_has_the_bits_of_the_array_code() -> None:
    found = on_the_stand_in(
        "import gpu_rotations\n"
        "subject = gpu_rotations.Subject(kernel.rotate, cupy.array, cupy.asnumpy)\n"
        "for kernel.MANY_BLOCKS in (4096, 1):\n"
        "    kernel._plan.cache_clear()\n"
        "    print(gpu_rotations.all_differing(subject))\n"
    )
    assert found == "[]\n[]"


@needs_gpp
def test_aligned_rows_are_moved_16_bytes_at_once() -> None:
    found = on_the_stand_in(
        "import gpu_rotations\n"
        "called, get = [], kernel._kernel\n"
        "kernel._kernel = lambda name: called.append(name) or get(name)\n"
        "subject = gpu_rotations.Subject(kernel.rotate, cupy.array, cupy.asnumpy)\n"
        "for case in gpu_rotations.turns():\n"
        "    with np.errstate(all='ignore'):\n"
        "        assert not gpu_rotations.differing(subject, case, 'bfloat16')\n"
        "    width = 'wide' if case.tables[-1] == 16 else 'single'\n"
        "    assert called[-2:] == [f'rotate_bfloat16_{case.turn.layout}_{width}'] * 2\n"
    )
    assert found == ""


@needs_gpp
def test_addresses_have_64_bits() -> None:
    found = on_the_stand_in(
        "from cupy._array import new\n"
        "import rotary\n"
        # Of which no more is taken than what is written to.
        "memory = np.empty(2**31 + 1000, np.float16)\n"
        "far = np.lib.stride_tricks.as_strided(memory, (2, 5, 16), (2**32, 32, 2))\n"
        "far[...] = np.random.default_rng(0).standard_normal(far.shape)\n"
        "rope = rotary.RotaryEmbedding(16)\n"
        "assert cupy.asnumpy(rope(new(far))).tobytes() == rope(far).tobytes()\n"
    )
    assert found == ""


@needs_gpp
def test_what_it_does_not_take_is_left_alone() -> None:
    found = on_the_stand_in(
        "from gpu_rotations import PLAIN\n"
        "x, apart, twice = (cupy.ones(n, np.float32) for n in ((5, 7, 8), (5, 7, 16), (6, 7, 8)))\n"
        "c, s, wide = (cupy.ones((7, n), np.float32) for n in (4, 4, 8))\n"
        "other, many = cupy.ones((5, 7, 8), np.float32), PLAIN._replace(blocks=(1,) * 17)\n"
        "more = [cupy.ones((7, n), np.float32) for n in (34, 17, 17)]\n"
        "for arrays, outs, cos, sin, turn in (\n"
        "    ((apart[..., ::2],), (x,), c, s, PLAIN),  # features with others between them\n"
        "    ((x,), (apart[..., ::2],), c, s, PLAIN),\n"
        "    ((twice[1:],), (twice[:-1],), c, s, PLAIN),  # a row apart\n"
        "    ((x, x), (x, x), c, s, PLAIN),  # twice the same\n"
        "    ((x,), (x,), x[0, :, :4], x[0, :, 4:], PLAIN),  # tables that would be written to\n"
        "    ((x,), (x,), c, wide[:, ::2], PLAIN),\n"
        "    ((x,), (x,), c, wide[:, :4], PLAIN),\n"
        "    ((x, 1 * x), (other, other), c, s, PLAIN),  # only the last one would stay\n"
        "    ((more[0],), (more[0],), *more[1:], many),\n"
        "):\n"
        "    print(kernel.rotate(arrays, outs, cos, sin, turn, fresh=False), end=' ')\n"
        "print(all((y.get() == 1).all() for y in (x, apart, twice, more[0])))\n"
    )
    assert found == "False " * 9 + "True"


@needs_nvcc
@pytest.mark.parametrize("capability", [80, 90])
def test_no_product_is_fused_with_a_sum_on_a_gpu(capability: int, tmp_path: Path) -> None:
    ptx = tmp_path / "rotation.ptx"
    command = ["nvcc", f"-arch=sm_{capability}", "--ptx", "-o", str(ptx), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    operation = re.compile(r"^\s*(?:@\S+\s+)?([a-z][a-z0-9_.]*)", re.MULTILINE)
    operations = set(operation.findall(ptx.read_text("utf-8")))
    real = {op for op in operations if re.search(r"\.f(16|32|64)$", op)}
    others = ("cvt.", "mov.", "ld.", "st.", "setp.", "selp.")
    arithmetic = {op for op in real if not op.startswith(others)}
    rounded = {f"{name}.rn.{kind}" for name in ("mul", "add", "sub") for kind in ("f32", "f64")}
    assert arithmetic - {"neg.f32", "neg.f64"} <= rounded
    assert {"mul.rn.f32", "add.rn.f32", "mul.rn.f64", "add.rn.f64"} <= arithmetic
    assert {"cvt.rn.f16.f32", "cvt.f32.f16", "st.global.v4.u32"} <= operations

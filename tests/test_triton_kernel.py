"""Triton's kernel for torch: by Triton's interpreter, as PTX for GPUs, and on one, if there is one.

The interpreter runs it on the host.  Its compiler needs no device, and its assembler says what a
device would be given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_rotations
import pytest
from interpreter import run

import rotary
from rotary.backends import Turn, kernels

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
_triton_rotation = pytest.importorskip(
    "rotary.backends.kernels._triton_rotation", exc_type=ImportError
)

HERE = Path(__file__).resolve().parent
NO_GPU = "torch finds no CUDA device"
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)


def interpreted(code: str) -> str:
    """Return what a process prints, in which Triton runs kernels by its interpreter."""
    begin = f"sys.path.insert(0, {str(HERE)!r})\n"
    return run(begin + code, TRITON_INTERPRET="1", ROTARY_DISABLE_KERNELS="")


def test_every_rotation_has_the_bits_of_the_array_code() -> None:
    found = interpreted(
        "import gpu_rotations, triton_interpreted\n"
        "from rotary.backends.kernels import _triton_rotation\n"
        "for _triton_rotation.MANY_PROGRAMS in (4096, 1):\n"
        "    _triton_rotation._plan.cache_clear()\n"
        "    print(gpu_rotations.all_differing(triton_interpreted.SUBJECT, thorough=False))\n"
    )
    assert found == "[]\n[]"


@pytest.mark.large
def test_every_rotation_of_every_dtype_has_the_bits_of_the_array_code() -> None:
    found = interpreted(
        "import gpu_rotations, triton_interpreted\n"
        "print(gpu_rotations.all_differing(triton_interpreted.SUBJECT))\n"
    )
    assert found == "[]"


def test_what_it_does_not_take_is_left_alone() -> None:
    found = interpreted(
        "import torch\n"
        "from gpu_rotations import PLAIN\n"
        "from triton_interpreted import SUBJECT\n"
        "x, (c, s) = torch.ones(5, 7, 8), torch.ones(2, 7, 4)\n"
        "apart, twice, other = (torch.ones(n) for n in ((5, 7, 16), (6, 7, 8), (5, 7, 8)))\n"
        "wide = torch.ones(7, 8)\n"
        "for arrays, outs, cos, sin in (\n"
        "    ((apart[..., ::2],), (x,), c, s),  # features with others between them\n"
        "    ((x,), (apart[..., ::2],), c, s),\n"
        "    ((twice[1:],), (twice[:-1],), c, s),  # a row apart\n"
        "    ((x, x), (x, x), c, s),  # twice the same\n"
        "    ((x,), (x,), x[0, :, :4], x[0, :, 4:]),  # tables that would be written to\n"
        "    ((x,), (x,), c, wide[:, ::2]),\n"
        "    ((x,), (x,), c, wide[:, :4]),\n"
        "    ((x, 1 * x), (other, other), c, s),  # only the last one would stay\n"
        "):\n"
        "    print(SUBJECT.rotate(arrays, outs, cos, sin, PLAIN, fresh=False), end=' ')\n"
        "print(all(map(torch.all, (x == 1, apart == 1, twice == 1))))\n"
    )
    assert found == "False " * 8 + "True"


class Absent:
    """Triton's driver of a device that is not there: it says for what to compile."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what a device would be given to rotate q and k."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, made = _triton_rotation._rotation, []

    class Compiled:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: made.append(kernel.warmup(*args, grid=grid, **options))

    monkeypatch.setattr(_triton_rotation, "_rotation", Compiled())

    def compile_for(capability: int, dtype: str, turn: Turn) -> Any:
        drivers = triton.runtime.driver
        held = "_active" if hasattr(drivers, "_active") else "active"
        monkeypatch.setattr(drivers, held, Absent(capability))
        q, k = (torch.empty(1, h, 64, 128, dtype=getattr(torch, dtype)) for h in (32, 8))
        real = torch.float64 if dtype == "float64" else torch.float32
        tables = torch.empty(64, 48, dtype=real), torch.empty(64, 48, dtype=real)
        outs = torch.empty_like(q), torch.empty_like(k)
        assert _triton_rotation.rotate((q, k), outs, *tables, turn, fresh=True)
        (one,) = made
        return one.asm

    return compile_for


@pytest.mark.parametrize(
    ("dtype", "turn", "capability"),
    [
        ("float16", Turn("half", "leading", None, False), 80),
        ("bfloat16", Turn("half", "trailing", (16, 16, 16), True), 80),
        ("bfloat16", Turn("interleaved", "leading", None, False), 90),
        ("float32", Turn("half", "leading", (16, 16, 16), False), 90),
        ("float64", Turn("interleaved", "trailing", None, True), 90),
    ],
    ids=str,
)
def test_no_product_is_fused_with_a_sum_on_a_gpu(
    compiled: Callable[..., Any], dtype: str, turn: Turn, capability: int
) -> None:
    made = compiled(capability, dtype, turn)
    assert made["cubin"]  # ptxas took it
    done = set(re.findall(r"^\s*(?:@\S+\s+)?([a-z][a-z0-9_.]*)", made["ptx"], re.MULTILINE))
    real = {op for op in done if re.search(r"\.b?f(16|32|64)", op)}
    arithmetic = {op for op in real if not op.startswith(("cvt.", "mov.", "ld.", "st."))}
    kind = "f64" if dtype == "float64" else "f32"
    assert arithmetic == {f"mul.rn.{kind}", f"add.rn.{kind}", f"sub.rn.{kind}"}
    assert not [op for op in real if "ftz" in op]
    narrowed = {"float16": "f16", "bfloat16": "bf16"}.get(dtype)
    if narrowed is not None:
        assert [op for op in real if op.startswith("cvt.rn") and narrowed in op]
    # All that is read and written is so 16 bytes at once.
    moved = {op for op in done if op.startswith(("ld.global", "st.global"))}
    width = "v2.b64" if kind == "f64" else "v4.b32"
    assert moved == {f"ld.global.{width}", f"st.global.{width}"}


@on_a_gpu
def test_every_rotation_on_a_gpu_has_the_bits_of_the_array_code() -> None:
    def tensor(host: Any) -> Any:
        return to_torch(host).cuda()

    def values(x: Any) -> Any:
        return to_numpy(x.cpu())

    subject = gpu_rotations.Subject(_triton_rotation.rotate, tensor, values)
    assert gpu_rotations.all_differing(subject) == []


def to_torch(host: Any) -> Any:
    """Return a tensor of its own."""
    import numpy as np

    if host.dtype == gpu_rotations.DTYPES["bfloat16"]:  # unknown to torch: hand over the bits
        return torch.from_numpy(host.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(host.copy())


def to_numpy(x: Any) -> Any:
    """Return the numbers of a tensor on the host."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(gpu_rotations.DTYPES["bfloat16"])
    return x.numpy()


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ROPES = [rotary.RotaryEmbedding(16), rotary.RotaryEmbedding(16, rotary_dim=6, layout="interleaved")]


@on_a_gpu
@pytest.mark.parametrize("rope", ROPES, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu_all_ways_have_the_bits_of_the_cpu(dtype: Any, rope: Any) -> None:
    if kernels.kernel("triton") is None:
        pytest.skip(f"triton: {kernels.off('triton')}")
    generator = torch.Generator().manual_seed(0)
    q, k, d = (torch.randn(2, 3, 5, 16, generator=generator).to(dtype) for _ in range(3))

    def all_ways(q: Any, k: Any, d: Any) -> list[Any]:
        leaf = q.clone().requires_grad_()
        torch.compiler.reset()
        compiled = torch.compile(lambda q, k: rope(q, k, offset=3), fullgraph=True)
        gradients = [torch.autograd.grad(f(leaf, k)[0], leaf, d)[0] for f in (rope, compiled)]
        place = q.clone()
        return [*rope(q, k), *compiled(q, k), *gradients, rope(place, out=place), rope.inverse(q)]

    there = all_ways(*(x.cuda() for x in (q, k, d)))
    for found, wanted in zip(there, all_ways(q, k, d), strict=True):
        assert found.is_cuda
        assert torch.equal(found.cpu(), wanted)


@on_a_gpu
def test_on_a_gpu_addresses_have_64_bits() -> None:
    room = 2**31 + 2**20
    if torch.cuda.mem_get_info()[0] < 3 * room:
        pytest.skip(f"the device has less than {3 * room} bytes left")
    memory = torch.zeros(room, dtype=torch.float16, device="cuda")
    far = memory.as_strided((2, 3, 5, 16), (2**31, 80, 16, 1))
    far.copy_(torch.randn(2, 3, 5, 16))
    rope = ROPES[0]
    wanted = rope(far.cpu())
    assert torch.equal(rope(far).cpu(), wanted)
    assert rope(far, out=far) is far
    assert torch.equal(far.cpu(), wanted)

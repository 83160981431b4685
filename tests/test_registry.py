"""A backend is found by the type of the array, and imported only when one turns up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from interpreter import run

from rotary.backends import owner_of

FRAMEWORKS = ("torch", "jax", "jaxlib", "cupy", "numba", "mlx", "dask", "array_api_strict")


def test_each_library_has_its_backend(library: Any) -> None:
    name = "generic" if library.name == "array_api_strict" else library.name
    assert owner_of(library.array(np.zeros(3))).name == name


def test_subclasses_are_owned_like_their_base() -> None:
    torch = pytest.importorskip("torch")

    class Subclass(np.ndarray):
        pass

    class SubTensor(torch.Tensor):
        pass

    assert owner_of(np.zeros(3).view(Subclass)).name == "numpy"
    assert owner_of(np.float32(1)).name == "numpy"
    assert owner_of(torch.nn.Parameter(torch.zeros(3))).name == "torch"
    assert owner_of(torch.zeros(3).as_subclass(SubTensor)).name == "torch"


def test_tracers_are_owned_by_jax() -> None:
    jax = pytest.importorskip("jax")
    seen = []

    def look(x: Any) -> Any:
        seen.append((owner_of(x).name, owner_of(x).is_traced(x)))
        return x.sum()

    x = jax.numpy.ones((1, 3))
    for transformed in (jax.jit(look), jax.grad(look), jax.vmap(look), jax.jit(jax.grad(look))):
        transformed(x)
    assert seen == [("jax", True)] * 4
    assert not owner_of(x).is_traced(x)


def test_an_owner_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    owner_of(np.zeros(3))
    monkeypatch.setattr("rotary.backends._find", None)
    assert owner_of(np.zeros(4)).name == "numpy"


@pytest.mark.parametrize("given", [[1.0], None, 3, "x", {}, np.ndarray, memoryview(b"x")])
def test_what_is_no_array_has_no_owner(given: Any) -> None:
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    with pytest.raises(TypeError, match=rf"^q: got {kind}, expected an array"):
        owner_of(given, "q")


def test_an_array_of_no_known_library_has_no_owner() -> None:
    class Array:
        shape, ndim, dtype = (3,), 1, np.dtype("float32")

    words = r"^q: got \S+Array, expected an array of NumPy, CuPy, torch, JAX or another library"
    for _ in range(2):
        with pytest.raises(TypeError, match=words):
            owner_of(Array(), "q")


def test_a_library_is_called_by_its_own_name(library: Any) -> None:
    from rotary import backends

    assert backends.library(library.array(np.zeros(3))) == library.name


def test_importing_rotary_imports_no_framework() -> None:
    found = run(f"import rotary; print([m for m in {FRAMEWORKS} if m in sys.modules])")
    assert found == "[]"


# Its kernels serve NumPy and torch where it is installed, from the first array on.
OTHERS = tuple(name for name in FRAMEWORKS if name != "numba")


def test_numpy_arrays_import_no_framework() -> None:
    found = run(f"""
        import numpy as np, rotary
        rope = rotary.RotaryEmbedding(8)
        q, k = rope(np.ones((2, 5, 8), np.float32), np.ones((2, 5, 8), np.float32), offset=[1, 2])
        rope.shift(rope.inverse(q, positions=[0, 1, 2, 3, 4.5]), 3)
        rotary.rotate(q, *rope.tables(range(5)), out=q)
        rotary.validate([1, 2])
        print([m for m in {OTHERS} if m in sys.modules])
        """)
    assert found == "[]"


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_framework_imports_no_other(framework: str) -> None:
    pytest.importorskip(framework)
    array = "torch.ones(5, 8)" if framework == "torch" else "jax.numpy.ones((5, 8))"
    found = run(f"""
        import {framework}, rotary
        before = set(sys.modules)
        rotary.RotaryEmbedding(8)({array})
        print([m for m in {OTHERS} if m in set(sys.modules) - before])
        """)
    assert found == "[]"


def test_importing_rotary_imports_little_beyond_numpy() -> None:
    # What takes long to import; the time itself depends on what else the machine does.
    slow = ("asyncio", "concurrent", "ctypes.util", "importlib.metadata", "logging", "unittest")
    found = run(f"""
        import numpy
        before = set(sys.modules)
        import rotary
        new = set(sys.modules) - before
        known = {{"numpy", *sys.stdlib_module_names}}
        print(sorted({{m.partition(".")[0] for m in new}} - known), [m for m in {slow} if m in new])
        """)
    assert found == "['array_api_compat', 'rotary'] []"


def test_a_compiled_call_may_be_the_first_one() -> None:
    pytest.importorskip("torch")
    same = run("""
        import torch, rotary
        rope = rotary.RotaryEmbedding(8)
        q = torch.randn(2, 3, 5, 8)
        compiled = torch.compile(rope, backend="aot_eager", fullgraph=True)
        print(torch.equal(compiled(q), rope(q)))
        """)
    assert same == "True"

"""What the tests share: the array libraries, and how an error has to look."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# A second CPU device, for arrays in different places; read when JAX starts.
if "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
    )


@dataclass(frozen=True)
class Library:
    """An array library, how to make its arrays, and its dtypes that rotate."""

    name: str
    array: Callable[..., Any]
    dtypes: tuple[str, ...]


def _numpy() -> Library:
    import ml_dtypes

    def array(values: Any, dtype: str | None = None) -> Any:
        return np.array(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    return Library("numpy", array, ("float16", "bfloat16", "float32", "float64"))


def _torch() -> Library:
    torch = pytest.importorskip("torch")

    def array(values: Any, dtype: str | None = None) -> Any:
        tensor = torch.from_numpy(np.array(values))
        return tensor if dtype is None else tensor.to(getattr(torch, dtype))

    return Library("torch", array, ("float16", "bfloat16", "float32", "float64"))


def _jax() -> Library:
    jax = pytest.importorskip("jax")

    def array(values: Any, dtype: str | None = None) -> Any:
        with jax.enable_x64(True):
            return jax.numpy.asarray(np.array(values), dtype=dtype)

    return Library("jax", array, ("float16", "bfloat16", "float32", "float64"))


def _array_api_strict() -> Library:
    strict = pytest.importorskip("array_api_strict")

    def array(values: Any, dtype: str | None = None) -> Any:
        return strict.asarray(np.array(values, dtype))

    return Library("array_api_strict", array, ("float32", "float64"))


LIBRARIES = {
    "numpy": _numpy,
    "torch": _torch,
    "jax": _jax,
    "array_api_strict": _array_api_strict,
}


@pytest.fixture(params=list(LIBRARIES))
def library(request: pytest.FixtureRequest) -> Library:
    """Each library in turn."""
    return LIBRARIES[request.param]()


@pytest.fixture
def other(library: Library) -> Library:
    """Return a library that is not `library`."""
    names = list(LIBRARIES)
    return LIBRARIES[names[(names.index(library.name) + 1) % len(names)]]()


@contextmanager
def _refused(
    error: type[Exception], name: str, *words: str, unchanged: tuple[Any, ...] = ()
) -> Iterator[None]:
    before = [_values(x) for x in unchanged]
    with pytest.raises(error) as caught:
        yield
    # The class itself: a library's own error may well be derived from TypeError.
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith((f"{name}: ", f"{name}[", f"{name} + ")), message
    assert "\n" not in message
    for word in words:
        assert word in message
    for x, then in zip(unchanged, before, strict=True):
        np.testing.assert_array_equal(_values(x), then)


def _values(x: Any) -> Any:
    return np.asarray(x.detach() if hasattr(x, "detach") else x).copy()


@pytest.fixture(scope="session")
def refused() -> Callable[..., AbstractContextManager[None]]:
    """``refused(error, name, *words, unchanged=())``: the block raises one clear sentence.

    It begins with the argument's name, holds the words, and leaves the arrays as they were.
    """
    return _refused


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout that these tests lie in; what is imported may be installed elsewhere."""
    return Path(__file__).resolve().parent.parent

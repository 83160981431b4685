"""The machine that timings are of, and how many threads the libraries use on it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rotary.backends import kernels
from rotary.backends.kernels import _threads

# Import name → the distribution whose version is reported.
_DISTRIBUTIONS = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "cupy": "cupy",
    "numba": "numba",
    "scipy": "scipy",
    "triton": "triton",
    "transformers": "transformers",
    "rotary_embedding_torch": "rotary-embedding-torch",
    "fast_transformers": "pytorch-fast-transformers",
}
# What changes speed from outside.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "XLA_FLAGS",
    _threads.VARIABLE,
    kernels.VARIABLE,
)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts(device: str) -> dict[str, Any]:
    """Return what a reader has to know about the machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": _memory(),
        "load": _load(),
        "device": device,
        "accelerator": _accelerator() if device == "cuda" else None,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    found = {}
    for module, distribution in _DISTRIBUTIONS.items():
        if find_spec(module) is None:
            continue
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:  # under another name, as CuPy's wheels are
            found[distribution] = getattr(sys.modules.get(module), "__version__", "unknown")
    return found


def kernels_off() -> dict[str, str | None]:
    """Return each kernel, and why it is off, or None."""
    return {name: kernels.off(name) for name in kernels.KNOWN}


def no_device(library: str, device: str) -> str | None:
    """Return why a library has no such device here, or None."""
    if library == "cupy" and device == "cpu":
        return "CuPy has no arrays on the CPU"
    if device == "cpu":
        return None
    if library == "numpy":
        return "NumPy has arrays on the CPU alone"
    if find_spec(library) is None:
        return f"{library} is not installed"
    try:
        return _no_gpu(library)
    # A driver that is missing shows in as many ways as there are libraries.
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        return f"{library} sees no GPU: {type(error).__name__}: {text}"


def _no_gpu(library: str) -> str | None:
    if library == "torch":
        import torch

        return None if torch.cuda.is_available() else "torch.cuda.is_available() is False"
    if library == "jax":
        import jax

        jax.devices("gpu")
        return None
    import cupy

    return None if cupy.cuda.runtime.getDeviceCount() else "cupy counts 0 devices"


def _accelerator() -> str | None:
    """Return the name of the GPU, from the first library that knows it."""
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    if find_spec("jax"):
        import jax

        return str(jax.devices()[0].device_kind)
    return None


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _load() -> float | None:
    """Return how many processes wanted a core in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def sets_blas_threads(count: int) -> bool:
    """Whether NumPy's BLAS can be brought to use that many threads."""
    return count == cores() or find_spec("threadpoolctl") is not None


@contextmanager
def threads(count: int, libraries: Iterable[str]) -> Iterator[None]:
    """Let rotary, torch and NumPy's BLAS use that many threads."""
    with ExitStack() as undo:
        undo.callback(_threads.set_num_threads, _threads.get_num_threads())
        _threads.set_num_threads(count)
        if "torch" in libraries and find_spec("torch"):
            import torch

            undo.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        if find_spec("threadpoolctl"):
            from threadpoolctl import threadpool_limits

            undo.enter_context(threadpool_limits(count, user_api="blas"))
        yield

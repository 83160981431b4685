"""torch: eager, in place, compiled, vmapped, and the gradients of these."""

from __future__ import annotations

import shutil
from functools import partial
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from rotary.conformance.libraries import CannotRunError, Function, Library, Way
from rotary.conformance.libraries._numpy import eager, in_place

DEVICES = ("cpu", "cuda")


def library(device: str | None = None) -> Library:
    """Return torch on a device, by default the CPU, or raise :class:`CannotRunError`."""
    version, no_compiler = str(torch.__version__), None
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        no_compiler = "torch.compile needs a C++ compiler, and none is installed"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise CannotRunError("torch finds no CUDA device")
        version = f"{version} on {torch.cuda.get_device_name()}"
        if find_spec("triton") is None:
            no_compiler = "torch.compile needs Triton on CUDA devices, and it is not installed"
    return Library(
        name="torch",
        version=version,
        dtypes=("float16", "bfloat16", "float32", "float64"),
        from_host=partial(_from_host, device=device or "cpu"),
        to_host=_to_host,
        ways=(
            Way("eager", "value", eager),
            Way("in place", "value", in_place),
            Way("vmapped", "value", _vmapped),
            Way("gradient", "adjoint", _gradient),
            Way("tangent", "tangent", _tangent),
            Way("compiled", "value", _compiled, unavailable=no_compiler),
            Way("compiled chain", "chain", _compiled_chain, unavailable=no_compiler),
            Way("compiled gradient", "adjoint", _compiled_gradient, unavailable=no_compiler),
        ),
        table_gradient=_table_gradient,
    )


def _from_host(host: npt.NDArray[Any], device: str) -> torch.Tensor:
    if host.dtype == ml_dtypes.bfloat16:  # unknown to torch: hand over the bits
        return torch.from_numpy(host.view(np.uint16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(host.copy()).to(device)


def _to_host(x: torch.Tensor) -> npt.NDArray[Any]:
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _vmapped(f: Function, x: torch.Tensor, direction: Any, *more: Any) -> Any:
    return torch.func.vmap(lambda x: f(x, *more), in_dims=1, out_dims=1)(x)


def _gradient(f: Function, x: torch.Tensor, direction: torch.Tensor, *more: Any) -> Any:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(f(leaf, *more), leaf, direction)[0]


def _tangent(f: Function, x: torch.Tensor, direction: torch.Tensor, *more: Any) -> Any:
    return torch.func.jvp(lambda x: f(x, *more), (x,), (direction,))[1]


def _compile(f: Function) -> Function:
    torch.compiler.reset()  # every case is a program of its own, not a recompilation
    return torch.compile(f, fullgraph=True)


def _compiled(f: Function, x: torch.Tensor, direction: Any, *more: Any) -> Any:
    return _compile(lambda *arrays: f(*arrays))(x, *more)


def _compiled_chain(f: Function, x: torch.Tensor, direction: Any, *more: Any) -> Any:
    return _compile(lambda x, *more: f(f(x, *more), *more))(x, *more)


def _compiled_gradient(f: Function, x: torch.Tensor, direction: torch.Tensor, *more: Any) -> Any:
    return _gradient(_compile(lambda *arrays: f(*arrays)), x, direction, *more)


def _table_gradient(f: Function, x: Any, cos: Any, sin: Any, direction: Any) -> tuple[Any, Any]:
    cos, sin = cos.detach().requires_grad_(), sin.detach().requires_grad_()
    by_cos, by_sin = torch.autograd.grad(f(x, cos, sin), (cos, sin), direction)
    return by_cos, by_sin

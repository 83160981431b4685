"""CUDA's kernels on the host: compiled by g++, thread after thread."""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from cupy import cuda
from cupy._array import ndarray, operand

_HEADER = Path(__file__).with_name("_raw.h")
_OPTIONS = ("-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing")
# A block of threads has no more, and a grid of blocks no more along each axis.
_MOST_THREADS = 1024
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)


class RawModule:
    """Kernels of one source."""

    def __init__(self, *, code, options=()):
        del options  # NVRTC's
        self._library = ctypes.CDLL(str(_built(code)))

    def get_function(self, name):
        return RawKernel(getattr(self._library, f"run_{name}"))


class RawKernel:
    """A kernel: what its arrays' work is queued on, other streams must not read."""

    def __init__(self, run):
        self._run = run

    def __call__(self, grid, block, args, *, shared_mem=0):
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        # CUDA says "invalid configuration argument".
        assert all(1 <= n <= most for n, most in zip(grid, _MOST_BLOCKS, strict=True)), grid
        assert 1 <= np.prod(block) <= _MOST_THREADS, block
        hosts = [_value(x) for x in args]
        before = [host.tobytes() for host in hosts]
        addresses = [
            ctypes.pointer(ctypes.c_void_p(host.ctypes.data))
            if isinstance(x, ndarray)
            else host.ctypes.data
            for x, host in zip(args, hosts, strict=True)
        ]
        pointers = (ctypes.c_void_p * len(args))(
            *(ctypes.cast(address, ctypes.c_void_p) for address in addresses)
        )
        self._run((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), pointers)
        for x, host, then in zip(args, hosts, before, strict=True):
            if host.tobytes() != then:
                x._memory.event = cuda.enqueue()


def _value(x):
    """Return what a kernel is given: an array's memory, or a structure by value."""
    if isinstance(x, np.ndarray) and x.size == 1:
        return x
    if not isinstance(x, ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return operand(x)


def _built(code):
    """Return the library of a source, compiled where that was not done before."""
    source = f'#include "{_HEADER}"\n{code}'
    key = hashlib.sha256((source + _HEADER.read_text("utf-8")).encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"cuda-on-host-{os.getuid()}-{key}.so"
    if not built.exists():
        kernels = r"__attribute__\(\(used\)\)\s+void\s+(\w+)\("
        takes = "const Index* grid, const Index* block, void** arguments"
        for name in re.findall(kernels, _compiled(source, "-E")):
            source += (
                f'\nextern "C" void run_{name}({takes}) {{ run({name}, grid, block, arguments); }}'
            )
        own = built.with_suffix(f".{os.getpid()}")
        _compiled(source, "-shared", "-fPIC", "-o", own)
        own.replace(built)
    return built


def _compiled(source, *options):
    command = ["g++", *_OPTIONS, *map(str, options), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout

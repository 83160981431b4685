"""Devices and streams; how many devices there are stands in an environment variable."""

import os
import shutil
import threading
from types import SimpleNamespace
from typing import ClassVar


class CUDARuntimeError(RuntimeError):
    pass


def count():
    return int(os.environ.get("STANDIN_CUDA_DEVICES", "2"))


class _Now(threading.local):
    device, stream = 0, None


_now = _Now()


def _get_device():
    if not count():
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return _now.device


def _get_device_count():
    _get_device()
    return count()


runtime = SimpleNamespace(
    getDevice=_get_device,
    getDeviceCount=_get_device_count,
    getDeviceProperties=lambda number: {"name": b"stand-in"},
    # Without a compiler there are no kernels of CUDA's, as on AMD's devices.
    is_hip=shutil.which("g++") is None,
)


class Device:
    __hash__ = None

    def __init__(self, device=None):
        self.id = _get_device() if device is None else int(device)
        self._before = []

    def __int__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __eq__(self, other):
        return self.id == int(other)

    def __enter__(self):
        self._before.append(_get_device())
        self.use()
        return self

    def __exit__(self, *_):
        _now.device = self._before.pop()

    def use(self):
        if self.id not in range(count()):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        _now.device = self.id

    def synchronize(self):
        for stream in Stream.all:
            stream.done = stream.queued


class Stream:
    """A non-blocking stream: one that does not wait for the others."""

    all: ClassVar = []

    def __init__(self, non_blocking=True):
        self.queued = self.done = 0
        self.all.append(self)

    def __enter__(self):
        self._before, _now.stream = _now.stream, self
        return self

    def __exit__(self, *_):
        _now.stream = self._before

    def synchronize(self):
        self.done = self.queued


_default = [Stream(), Stream()]


def get_current_stream():
    return _now.stream or _default[_get_device()]


def enqueue():
    """Queue some work, and return the event of its end."""
    stream = get_current_stream()
    stream.queued += 1
    return stream, stream.queued


def check_finished(event):
    """Raise where the current stream may run before the event of another one."""
    stream, number = event
    if number > stream.done and stream is not get_current_stream():
        raise AssertionError("a stream reads what another one has not finished")

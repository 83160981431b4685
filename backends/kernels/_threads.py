"""Threads of our own for kernels that release Python's lock.

Numba's own layers will not do: one aborts when two threads use it at once, another does not survive
a fork.  A caller and the threads that help it take the parts of its work one by one, and a thread
never waits for another, so that any number of callers can share them.
"""

from __future__ import annotations

import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

VARIABLE = "ROTARY_NUM_THREADS"


class _Pool:
    """How many threads there are to be, and those that run; made anew in the child of a fork."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.executor: ThreadPoolExecutor | None = None
        self.lock = threading.Lock()


_pool = _Pool()


def _forget_threads() -> None:
    """Begin anew in the child of a fork, which has none of its parent's threads."""
    global _pool
    _pool = _Pool(_pool.count)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def set_num_threads(count: int) -> None:
    """Set how many threads a call of a CPU kernel may use, the caller's included.

    Parameters
    ----------
    count : int
        1 or more.  At first it is ``ROTARY_NUM_THREADS`` of the environment, or else the number of
        cores that this process may use.  It changes no bits.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import rotary
    >>> before = rotary.get_num_threads()
    >>> rotary.set_num_threads(1)
    >>> rotary.get_num_threads()
    1
    >>> rotary.set_num_threads(before)
    """
    global _pool
    try:
        number = operator.index(count)
    except TypeError as error:
        raise TypeError(f"count: got {count!r}, expected a whole number") from error
    if isinstance(count, bool):
        raise TypeError(f"count: got {count!r}, expected a whole number")
    if number < 1:
        raise ValueError(f"count: got {number}, expected at least 1")
    before, _pool = _pool, _Pool(number)
    if before.executor is not None:
        before.executor.shutdown(wait=False)


def get_num_threads() -> int:
    """Return how many threads a call of a CPU kernel may use.

    Examples
    --------
    >>> import rotary
    >>> rotary.get_num_threads() >= 1
    True
    """
    if _pool.count is None:
        _pool.count = _from_environment() or _cores()
    return _pool.count


def _from_environment() -> int | None:
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{VARIABLE}: got {text!r}, expected a number of threads, 1 or more")
    return int(text)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(work: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> None:
    """Call ``work(*part)`` for every part, at once where there are threads to.

    Whoever is free takes the next part, so that a thread that wakes late delays nobody.
    """
    waiting = deque(parts)

    def some() -> None:
        while True:
            try:
                part = waiting.popleft()
            except IndexError:
                return
            work(*part)

    begun = [_begin(some) for _ in range(min(len(parts), get_num_threads()) - 1)]
    try:
        some()
    finally:
        # Nobody may write any more when this returns; what has not begun has nothing to do.
        failed = [f.exception() for f in begun if f is not None and not f.cancel()]
    for error in failed:
        if error is not None:
            raise error


def _begin(work: Callable[[], None]) -> Future[None] | None:
    """Have one of our threads do it; None where there is no thread any more."""
    pool = _pool
    with pool.lock:
        if pool.executor is None:
            from concurrent.futures import ThreadPoolExecutor  # late: `import rotary` is quick

            pool.executor = ThreadPoolExecutor(max(1, get_num_threads() - 1), "rotary")
    try:
        return pool.executor.submit(work)
    except RuntimeError:  # another thread has just set their number, or Python is shutting down
        return None

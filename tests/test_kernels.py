"""The CPU's kernels give the bits of the array code, for all callers, threads and processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from interpreter import run

import rotary
from rotary import backends
from rotary.backends import Turn, _numpy, kernels
from rotary.backends.kernels import _cpu, _threads
from rotary.rotation import rotate_by_array_code

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
KERNELS = ("rotation", "blocks")
UNITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Any:
    """Each kernel for NumPy arrays."""
    found = kernels.kernel(request.param)
    if found is None:
        pytest.skip(f"{request.param}: {kernels.off(request.param)}")
    return found


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two threads from the first byte on, so that small arrays are shared out too."""
    before, least = rotary.get_num_threads(), _cpu._THREADED_BYTES
    rotary.set_num_threads(2)
    _cpu._THREADED_BYTES = 1
    yield
    rotary.set_num_threads(before)
    _cpu._THREADED_BYTES = least


def samples(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    """Return numbers of every kind: all bit patterns are as likely."""
    kind = DTYPES[dtype]
    rng = np.random.default_rng(seed)
    unit = UNITS[kind.itemsize]
    patterns = rng.integers(0, np.iinfo(unit).max, shape, unit, endpoint=True).view(kind)
    usual = rng.standard_normal(shape).astype(kind)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, *tiny(kind)], kind)
    with np.errstate(invalid="ignore"):
        x = np.where(rng.random(shape) < 0.3, patterns, usual).astype(kind)
    x[rng.random(shape) < 0.1] = special[0]
    where = rng.random(shape) < 0.1
    x[where] = rng.choice(special, int(where.sum()))
    return x


def tiny(kind: np.dtype[Any]) -> list[float]:
    """Return the least normal number, the largest and the least subnormal one."""
    info = ml_dtypes.finfo(kind)
    least = float(info.smallest_subnormal)
    return [float(info.tiny), float(info.tiny) - least, least, float(info.max)]


def tables(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """Return cosines and sines that go with a dtype."""
    real = "float64" if dtype == "float64" else "float32"
    angles = np.random.default_rng(7).uniform(-9, 9, shape)
    return np.cos(angles).astype(real), np.sin(angles).astype(real)


def differing(x: Any, y: Any) -> int:
    """Return how many numbers differ: zeros may differ in their signs, NaN in its bits."""
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    with np.errstate(invalid="ignore"):
        return int(((x != y) & ~(np.isnan(x) & np.isnan(y))).sum())


def expected(arrays: tuple[Any, ...], cos: Any, sin: Any, turn: Turn) -> tuple[Any, ...]:
    """Return what the array code gives."""
    with np.errstate(all="ignore"):
        return rotate_by_array_code(arrays, cos, sin, turn, _numpy)


def by(kernel: Any, arrays: tuple[Any, ...], cos: Any, sin: Any, turn: Turn) -> tuple[Any, ...]:
    """Return what a kernel gives in new memory, which is full of other numbers before."""
    outs = tuple(np.full(x.shape, 77, x.dtype) for x in arrays)
    assert rotate_into(kernel, arrays, outs, cos, sin, turn, fresh=True)
    return outs


def rotate_into(
    kernel: Any,
    arrays: tuple[Any, ...],
    outs: tuple[Any, ...],
    cos: Any,
    sin: Any,
    turn: Turn,
    *,
    fresh: bool,
) -> bool:
    """Rotate by a kernel, bit patterns where it is a compiled one."""
    pattern = _cpu.PATTERNS.get(arrays[0].dtype.name) if kernel.__name__.endswith("tion") else None
    given = arrays, outs
    if pattern is not None:
        given = _cpu.seen(arrays, outs, lambda x: x.view(pattern))
    with np.errstate(all="ignore"):
        return _cpu.rotate(kernel, *given, cos, sin, turn, fresh=fresh)


TURNS = [
    Turn(layout, side, blocks, inverse)
    for layout, side, blocks, inverse in product(
        ("half", "interleaved"), ("leading", "trailing"), (None, (3, 5, 4)), (False, True)
    )
    if blocks is None or layout == "half"
]


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_gives_the_bits_of_the_array_code(kernel: Any, dtype: str, turn: Turn) -> None:
    q, k = samples((2, 6, 11, 30), dtype), samples((2, 2, 11, 30), dtype, seed=1)
    for shape in ((11, 12), (2, 1, 11, 12), (1, 1, 11, 12)):
        cos, sin = tables(shape, dtype)
        wanted = expected((q, k), cos, sin, turn)
        for found, right in zip(by(kernel, (q, k), cos, sin, turn), wanted, strict=True):
            assert differing(found, right) == 0
        own = q.copy(), k.copy()
        assert rotate_into(kernel, own, own, cos, sin, turn, fresh=False)
        for found, right in zip(own, wanted, strict=True):
            assert differing(found, right) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 2, 5, 8), (2, 1, 3, 2, 5, 8)], ids=str)
def test_a_kernel_takes_every_rank(kernel: Any, shape: tuple[int, ...], dtype: str) -> None:
    x, turn = samples(shape, dtype), Turn("half", "leading", None, False)
    for of_tables in ((5, 4), (*shape[:1], *(1 for _ in shape[1:-2]), 5, 4), (*shape[:-1], 4)):
        cos, sin = tables(of_tables if len(shape) > 2 else (5, 4), dtype)
        (found,), (right,) = by(kernel, (x,), cos, sin, turn), expected((x,), cos, sin, turn)
        assert differing(found, right) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_may_lie_in_any_way(kernel: Any, dtype: str) -> None:
    turn = Turn("half", "leading", None, False)
    whole = samples((4, 12, 6, 40), dtype)
    cos, sin = tables((6, 5), dtype)
    wide = [np.repeat(t, 2, axis=-1)[:, ::2] for t in (cos, sin)]
    wholly = whole.transpose(0, 2, 1, 3)
    for x in (
        whole[::2, ::3, :, 3:13],  # outer steps, and an offset
        whole[:, :, ::-1, 5:15],  # backwards
        whole[..., 1:21:2],  # features apart
        np.moveaxis(samples((10, 4, 12, 6), dtype), 0, -1),  # features outermost
        wholly.transpose(0, 2, 1, 3)[..., :10],
        np.broadcast_to(whole[:1, :1, :, :10], (3, 2, 6, 10)),
    ):
        (right,) = expected((x,), cos, sin, turn)
        (found,) = by(kernel, (x,), cos, sin, turn)
        assert differing(found, right) == 0
        result = rotary.rotate(x, *wide)  # tables that a compiled kernel does not take
        assert differing(result, right) == 0
        room = np.zeros((*x.shape[:-1], 20), x.dtype)[..., ::2]
        with np.errstate(all="ignore"):
            assert rotary.rotate(x, cos, sin, out=room) is room
        assert differing(room, right) == 0


@pytest.mark.parametrize("shape", [(0, 3, 5, 8), (2, 0, 5, 8), (2, 3, 0, 8), (0, 8)], ids=str)
def test_empty_arrays_stay_empty(kernel: Any, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    cos, sin = tables((shape[-2], 4), "float32")
    outs = (np.empty_like(x),)
    # None has to fit: the array code has as little to do.
    rotate_into(kernel, (x,), outs, cos, sin, Turn("half", "leading", None, False), fresh=True)
    assert rotary.rotate(x, cos, sin).shape == rotary.rotate(x, cos, sin, out=x).shape == shape


def test_what_overlaps_is_read_before_it_is_written() -> None:
    rope, rng = rotary.RotaryEmbedding(8), np.random.default_rng(0)
    memory = rng.standard_normal((3, 7, 8)).astype(np.float32)
    q, k = memory[:, :5], memory[:, 1:6]  # one row apart
    wanted = rope(q.copy(), k.copy())
    for out in ((k, q.copy()), (q, np.empty_like(k)), (np.empty_like(q), q)):
        again = memory.copy()
        views = again[:, :5], again[:, 1:6]
        into = tuple(views[0] if o is q else views[1] if o is k else np.empty_like(o) for o in out)
        if np.shares_memory(*into):
            continue
        results = rope(*views, out=into)
        for found, right in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(found, right)


def test_q_and_k_side_by_side_rotate_in_place() -> None:
    rope, rng = rotary.RotaryEmbedding(8), np.random.default_rng(0)
    qkv = rng.standard_normal((2, 5, 3, 4, 8)).astype(np.float32)
    wanted = rope(qkv[:, :, 0].copy(), qkv[:, :, 1].copy(), seq_axis=-3)
    q, k = qkv[:, :, 0], qkv[:, :, 1]
    found = rope(q, k, seq_axis=-3, out=(q, k))
    assert found[0] is q
    assert found[1] is k
    np.testing.assert_array_equal(q, wanted[0])
    np.testing.assert_array_equal(k, wanted[1])
    assert _cpu._apart((q, k), (q, k))


def test_outputs_that_overlap_are_written_in_order() -> None:
    rope, rng = rotary.RotaryEmbedding(8), np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 5, 8)).astype(np.float32)
    room = np.zeros((3, 5, 8), np.float32)
    assert not _cpu._apart((q, k), (room[:2], room[1:]))
    rope(q, k, out=(room[:2], room[1:]))
    np.testing.assert_array_equal(room, np.concatenate([rope(q)[:1], rope(k)]))


@pytest.mark.parametrize("role", [[], {}, 1], ids=str)
def test_a_role_that_has_no_hash_is_refused_like_any_other(refused: Any, role: Any) -> None:
    rope, q = rotary.RotaryEmbedding(8, xpos=rotary.XPos()), np.ones((5, 8), np.float32)
    rope(q, role="query")
    with refused(ValueError, "role", "expected 'query' or 'key'"):
        rope(q, role=role)


@pytest.mark.parametrize("role", ["shared", "xpos"])
def test_outputs_may_change_places(role: str) -> None:
    xpos = rotary.XPos() if role == "xpos" else None
    rope = rotary.RotaryEmbedding(8, xpos=xpos)
    q, k = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32)
    wanted = rope(q.copy(), k.copy())
    rope(q, k, out=(k, q))
    np.testing.assert_array_equal(k, wanted[0])
    np.testing.assert_array_equal(q, wanted[1])


def test_any_number_of_threads_gives_the_same_bits(kernel: Any) -> None:
    cos, sin = tables((13, 4), "float32")
    turn = Turn("half", "leading", None, False)
    for shape in ((1, 1, 13, 8), (3, 7, 13, 8), (1, 3, 13, 8)):
        x = samples(shape, "float32")
        (right,) = expected((x,), cos, sin, turn)
        for count in (1, 2, 3, 8):
            rotary.set_num_threads(count)
            assert differing(by(kernel, (x,), cos, sin, turn)[0], right) == 0


@pytest.mark.parametrize("given", [1.5, "2", None, True])
def test_a_number_of_threads_is_a_whole_number(refused: Any, given: Any) -> None:
    with refused(TypeError, "count", "whole number"):
        rotary.set_num_threads(given)


@pytest.mark.parametrize("given", [0, -1])
def test_a_number_of_threads_is_positive(refused: Any, given: int) -> None:
    with refused(ValueError, "count", str(given)):
        rotary.set_num_threads(given)


def test_work_is_done_once_and_its_error_is_raised() -> None:
    rotary.set_num_threads(3)
    done: list[int] = []
    _threads.run(done.append, [(n,) for n in range(50)])
    assert sorted(done) == list(range(50))

    def fail(n: int) -> None:
        if n == 49:
            raise ArithmeticError("of a part")

    with pytest.raises(ArithmeticError, match="of a part"):
        _threads.run(fail, [(n,) for n in range(50)])


LARGE = (1, 8, 128, 64)


def _rounds(library: str, rounds: int) -> list[str]:
    """Return what went wrong where eight threads rotate, each other arrays, at once."""
    array: Any = np.asarray
    if library == "torch":
        array = pytest.importorskip("torch").from_numpy
    rope = rotary.RotaryEmbedding(LARGE[-1])
    hosts = [np.random.default_rng(n).standard_normal(LARGE).astype(np.float32) for n in range(8)]
    small = [array(x[:, :, :1].copy()) for x in hosts]
    arrays = list(map(array, hosts))
    wanted = [
        (np.asarray(rope(x)), np.asarray(rope(y, offset=3)))
        for x, y in zip(arrays, small, strict=True)
    ]
    wrong: list[str] = []

    def call(n: int) -> None:
        for i in range(rounds):
            # One in ten is shared out over the threads.
            whole = i % 10 == 0
            found = rope(arrays[n]) if whole else rope(small[n], offset=3)
            if not np.array_equal(np.asarray(found), wanted[n][0 if whole else 1]):
                wrong.append(f"thread {n}, round {i}")
                return

    callers = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return wrong


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_many_threads_may_call_at_once(library: str) -> None:
    assert _rounds(library, 200) == []


@pytest.mark.large
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_eight_threads_call_ten_thousand_times(library: str) -> None:
    assert _rounds(library, 10_000) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_child_of_a_fork_rotates_too(library: str) -> None:
    pytest.importorskip(library)
    # With other threads at work in the parent, whose locks the child would inherit.
    found = run(f"""
        import os, threading, warnings
        import numpy as np, {library}
        import rotary
        from rotary.backends.kernels import _cpu
        warnings.simplefilter("ignore")  # Python's own, of a fork beside threads
        rotary.set_num_threads(2)
        host = np.random.default_rng(0).standard_normal({LARGE}).astype(np.float32)
        x = host if "{library}" == "numpy" else {library}.from_numpy(host)
        rope = rotary.RotaryEmbedding({LARGE[-1]})
        wanted = np.asarray(rope(x))
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                rope(x)
        worker = threading.Thread(target=busy)
        worker.start()
        codes = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(np.asarray(rope(x)), wanted) else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        worker.join()
        print(codes)
        """)
    assert found == str([0] * 10)


CHECKSUM = """
    import hashlib
    import ml_dtypes, numpy as np, rotary
    from rotary.backends import kernels
    digest = hashlib.sha256()
    for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for layout in ("half", "interleaved"):
            rope = rotary.RotaryEmbedding(64, layout=layout, rotary_dim=48)
            x = np.random.default_rng(0).standard_normal((2, 8, 300, 64)).astype(kind)
            for y in (rope(x, offset=1000), rope.inverse(x, positions=np.arange(300) * 0.37)):
                digest.update(y.tobytes())
    print(digest.hexdigest(), [name for name in kernels.KNOWN if kernels.off(name) is None])
    """


def test_kernels_that_are_off_leave_the_bits() -> None:
    found = {}
    for names in ("", "rotation", "rotation,blocks", "tables", "all"):
        digest, _, on = run(CHECKSUM, ROTARY_DISABLE_KERNELS=names).partition(" ")
        found[names] = digest
        assert not [name for name in names.split(",") if name and f"'{name}'" in on]
        assert names != "all" or on == "[]"
    assert len(set(found.values())) == 1


def test_an_unknown_kernel_is_refused() -> None:
    found = run(
        """
        import numpy as np, rotary
        try:
            rotary.RotaryEmbedding(8)(np.ones((5, 8), np.float32))
        except ValueError as error:
            print(error)
        """,
        ROTARY_DISABLE_KERNELS="rotation,tabels",
    )
    assert found.startswith("ROTARY_DISABLE_KERNELS: got tabels, expected all, or some of rotation")


@pytest.mark.parametrize("given", ["0", "two", "-1"])
def test_a_wrong_number_of_threads_in_the_environment_is_refused(given: str) -> None:
    found = run(
        """
        import rotary
        try:
            rotary.get_num_threads()
        except ValueError as error:
            print(error)
        """,
        ROTARY_NUM_THREADS=given,
    )
    assert found == f"ROTARY_NUM_THREADS: got '{given}', expected a number of threads, 1 or more"


def test_the_environment_gives_the_number_of_threads() -> None:
    found = run("import rotary; print(rotary.get_num_threads())", ROTARY_NUM_THREADS="5")
    assert found == "5"


def test_a_second_process_reads_what_the_first_compiled() -> None:
    if kernels.kernel("rotation") is None:
        pytest.skip(f"rotation: {kernels.off('rotation')}")
    code = """
        import numpy as np, rotary
        rotary.RotaryEmbedding(8)(np.ones((5, 8), np.float32))
        from rotary.backends.kernels import _cpu_rotation
        kernel = _cpu_rotation._kernel("half", np.dtype(np.float32), np.dtype(np.float32))
        print(sum(kernel.stats.cache_hits.values()))
        """
    run(code)
    assert run(code) == "1"


def test_subclasses_and_other_libraries_are_left_to_the_array_code() -> None:
    class Subclass(np.ndarray):
        pass

    x = np.ones((5, 8), np.float32).view(Subclass)
    cos, sin = tables((5, 4), "float32")
    turn = Turn("half", "leading", None, False)
    assert _numpy.rotate((x,), cos, sin, turn, None) is None
    whole = rotary.rotate(np.ones((5, 8), np.float32), cos, sin)
    np.testing.assert_array_equal(rotary.rotate(x, cos, sin), whole)
    strict = pytest.importorskip("array_api_strict")
    y = strict.asarray(np.ones((5, 8), np.float32))
    assert backends.owner_of(y).rotate((y,), cos, sin, turn, None) is None

"""What :func:`rotary.cos_sin` refuses, and what compiled programs make of impossible angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rotary import cos_sin

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        ([NAN], ValueError, "got NaN at index 0, expected finite numbers"),
        ([0, -INF], ValueError, "got -inf at index 1, expected finite numbers"),
        ([2.0**54], ValueError, "expected them within ±2^53"),
        ([2**53 + 1], ValueError, "expected them within ±2^53"),
        (np.array([2**53 + 1]), ValueError, "expected them within ±2^53"),
        ([2**64], ValueError, "got whole numbers of more than 64 bits"),
        (3, ValueError, "got shape (), expected (seq,) or (batch, seq)"),
        (np.zeros((1, 2, 3)), ValueError, "got shape (1, 2, 3), expected (seq,) or (batch, seq)"),
        ([True, False], TypeError, "got dtype bool, expected integers, float32 or float64"),
        (np.array([True]), TypeError, "got dtype bool, expected integers, float32 or float64"),
        ([1j], TypeError, "got dtype complex128"),
        (["1"], TypeError, "got dtype <U1"),
        (None, TypeError, "got dtype object"),
        ([[1], [1, 2]], TypeError, "got list, expected numbers"),
        (np.ones(2, np.float16), TypeError, "got dtype float16, which cannot tell"),
    ],
)
def test_wrong_positions_are_refused(
    library: Any, refused: Any, positions: Any, error: type[Exception], words: str
) -> None:
    w = library.array(np.ones(4, np.float32))
    with refused(error, "positions", words, unchanged=(w,)):
        cos_sin(positions, w)
    if isinstance(positions, np.ndarray) and positions.dtype != np.float16:
        with refused(error, "positions", words, unchanged=(w,)):
            cos_sin(library.array(positions), w)


def test_positions_of_another_library_are_refused(library: Any, other: Any, refused: Any) -> None:
    w = library.array(np.ones(4, np.float32))
    if other.name != "numpy":
        with refused(TypeError, "positions", f"got an array of {other.name}, expected numbers"):
            cos_sin(other.array(np.arange(3)), w)
    words = f"got an array of {library.name}, expected like's library {other.name}"
    with refused(TypeError, "inv_freq", words):
        cos_sin([1.0], w, like=other.array(np.ones(1, np.float32)))


@pytest.mark.parametrize(
    ("omega", "error", "words"),
    [
        (np.array([1, NAN], np.float32), ValueError, "got NaN or infinity, expected finite"),
        (np.array([1, -INF]), ValueError, "got NaN or infinity, expected finite"),
        (np.array([1.0, 2.0**53 + 2]), ValueError, "got angles up to 9007199254740994.0 radians"),
        (np.ones(2, np.int32), TypeError, "got dtype int32, expected float32 or float64"),
        (np.ones(2, bool), TypeError, "got dtype bool, expected float32 or float64"),
        (np.ones((2, 2, 2), np.float32), ValueError, "got shape (2, 2, 2), expected (pairs,) or"),
        (np.ones((), np.float32), ValueError, "got shape (), expected (pairs,) or (heads, pairs)"),
    ],
)
def test_wrong_frequencies_are_refused(
    library: Any, refused: Any, omega: Any, error: type[Exception], words: str
) -> None:
    with refused(error, "inv_freq", words):
        cos_sin([0.0, 1.0], library.array(omega))


def test_the_largest_angle_is_2_to_53(refused: Any) -> None:
    omega = np.array([1.0, 2.0])
    assert np.isfinite(cos_sin([2.0**52], omega)).all()
    with refused(ValueError, "inv_freq", "angles up to 9007199254740994.0 radians", "most 2^53"):
        cos_sin([2.0**52 + 1], omega)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_refused(library: Any, refused: Any, dtype: str) -> None:
    if dtype not in library.dtypes:
        pytest.skip(f"{library.name} has no {dtype}")
    short = library.array(np.ones(2), dtype)
    with refused(TypeError, "inv_freq", f"got dtype {dtype}, expected float32 or float64"):
        cos_sin([1.0], short)
    with refused(TypeError, "positions", f"got dtype {dtype}, which cannot tell"):
        cos_sin(short, library.array(np.ones(2, np.float32)))


@pytest.mark.parametrize("frequencies", [[1.0], 1.0, None, (1.0, 2.0)])
def test_frequencies_are_an_array(library: Any, refused: Any, frequencies: Any) -> None:
    for more in ({}, {"like": library.array(np.ones(1, np.float32))}):
        with refused(TypeError, "inv_freq", "expected an array"):
            cos_sin([1.0], frequencies, **more)


@pytest.mark.parametrize(
    ("axes", "where", "omega", "error", "name", "words"),
    [
        (2, (3, 5), (2, 4), ValueError, "positions", "got shape (3, 5), expected (axes, seq) or"),
        (2, (2, 5), (3, 4), ValueError, "inv_freq", "got shape (3, 4), expected (axes, pairs) or"),
        (2, (5,), (2, 4), ValueError, "positions", "got shape (5,), expected (axes, seq) or"),
        (2, (2, 5), (4,), ValueError, "inv_freq", "with axes = 2"),
        (2, (2,), (2,), ValueError, "positions", "got shape (2,), expected"),
        (2, (2, 1, 1, 5), (2, 4), ValueError, "positions", "got shape (2, 1, 1, 5), expected"),
        (0, (2, 5), (2, 4), ValueError, "axes", "got 0, expected a positive number"),
        (2.0, (2, 5), (2, 4), TypeError, "axes", "got 2.0, expected a whole number"),
        (True, (1, 5), (1, 4), TypeError, "axes", "got True, expected a whole number"),
    ],
)
def test_shapes_have_to_meet(
    library: Any,
    refused: Any,
    axes: Any,
    where: Any,
    omega: Any,
    error: type[Exception],
    name: str,
    words: str,
) -> None:
    w = library.array(np.ones(omega, np.float32))
    for p in (np.ones(where), library.array(np.ones(where))):
        with refused(error, name, words, unchanged=(w,)):
            cos_sin(p, w, axes=axes)


def test_like_is_an_array_that_rotates(library: Any, refused: Any) -> None:
    w = library.array(np.ones(2, np.float32))
    with refused(TypeError, "like", "got dtype int32, expected one of float16"):
        cos_sin([1.0], w, like=library.array(np.ones(2, np.int32)))
    with refused(TypeError, "like", "got builtins.float, expected an array"):
        cos_sin([1.0], w, like=1.0)


def test_traced_values_without_an_angle_are_nan() -> None:
    jax = pytest.importorskip("jax")
    omega = np.array([NAN, INF, -INF, 2.0**53, 1e30, 2.0**52, 1.0], np.float32)
    for table in jax.jit(lambda w: cos_sin([2.0], w))(omega):
        assert_array_equal(np.isnan(table[0]), [True] * 5 + [False] * 2)
    own = jax.numpy.ones(1)
    where = np.array([NAN, INF, -INF, 2.0**54, 2.0**53, 3.0], np.float32)
    for table in jax.jit(lambda p: cos_sin(p, own))(where):
        assert_array_equal(np.isnan(table[:, 0]), [True] * 4 + [False] * 2)


def test_traced_arrays_are_checked_as_far_as_they_are_known(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    w, p = np.ones(2, np.float32), np.ones(3, np.int32)
    with refused(TypeError, "inv_freq", "got dtype float16"):
        jax.jit(lambda w: cos_sin(p, w))(w.astype(np.float16))
    with refused(TypeError, "positions", "got dtype float16"):
        jax.jit(cos_sin)(p.astype(np.float16), w)
    with refused(ValueError, "positions", "got shape (3,), expected (axes, seq)"):
        jax.jit(lambda p, w: cos_sin(p, w, axes=2))(p, w)
    with refused(ValueError, "positions", "got NaN at index 0"):
        jax.jit(lambda w: cos_sin([NAN], w))(w)


def test_torch_programs_check_values_when_they_run() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    program = torch.compile(lambda p, w: cos_sin(p, w)[0], fullgraph=True, backend="eager")
    ones = torch.ones(2)
    for p, w, words in (
        (torch.tensor([NAN, 1.0]), ones, "^positions: got NaN at index 0"),
        (ones, torch.tensor([INF, 1.0]), "^inv_freq: got NaN or infinity"),
        (ones, torch.tensor([1e20, 1.0]), "^inv_freq: got angles up to"),
    ):
        with pytest.raises(ValueError, match=words):
            program(p, w)

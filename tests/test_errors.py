"""Bad input is refused by one clear sentence, and nothing is changed.

The sentence begins with the argument's name, says what came and what was expected, and is the same
in every library.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

import rotary
from rotary.positions import LIMIT

ROPE = rotary.RotaryEmbedding(8)
SHAPE = (2, 3, 5, 8)  # batch, heads, seq, head_dim
MET = "expected (5,) or (2, 5)"


def features(shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> Any:
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(dtype)


def tables(shape: tuple[int, ...] = (5, 4), dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype), np.zeros(shape, dtype)


# -- what describes an embedding -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"head_dim": 0}, ValueError, "head_dim", "got 0, expected a positive"),
        ({"head_dim": -8}, ValueError, "head_dim", "got -8, expected a positive"),
        ({"head_dim": 8.0}, TypeError, "head_dim", "got 8.0, expected a whole"),
        ({"head_dim": True}, TypeError, "head_dim", "got True, expected a whole"),
        ({"head_dim": None}, TypeError, "head_dim", "got None, expected a whole"),
        ({"head_dim": 7}, ValueError, "rotary_dim", "got 7, expected an even"),
        ({"rotary_dim": 3}, ValueError, "rotary_dim", "got 3, expected an even"),
        ({"rotary_dim": 10}, ValueError, "rotary_dim", "got 10, expected an even"),
        ({"rotary_dim": 10}, ValueError, "rotary_dim", "up to head_dim = 8"),
        ({"rotary_dim": 0}, ValueError, "rotary_dim", "got 0, expected a positive"),
        ({"rotary_dim": 4.0}, TypeError, "rotary_dim", "got 4.0, expected a whole"),
        ({"frequency_dim": 0}, ValueError, "frequency_dim", "got 0, expected a positive"),
        ({"frequency_dim": "8"}, TypeError, "frequency_dim", "got '8', expected a whole"),
        ({"base": 0}, ValueError, "base", "got 0.0, expected a positive, finite"),
        ({"base": -1}, ValueError, "base", "got -1.0, expected a positive, finite"),
        ({"base": float("nan")}, ValueError, "base", "got nan, expected a positive, finite"),
        ({"base": float("inf")}, ValueError, "base", "got inf, expected a positive, finite"),
        ({"base": 10**400}, ValueError, "base", "got inf, expected a positive, finite"),
        ({"base": "10000"}, TypeError, "base", "got '10000', expected a number"),
        ({"base": Decimal(3)}, TypeError, "base", "got Decimal('3'), expected a number"),
        ({"base": np.ones(2)}, TypeError, "base", "got array([1., 1.]), expected a number"),
        ({"layout": "neox"}, ValueError, "layout", "got 'neox', expected 'half' or 'interleaved'"),
        ({"layout": None}, ValueError, "layout", "got None, expected"),
        ({"layout": np.array(["half"] * 2)}, ValueError, "layout", "expected 'half'"),
        ({"rotary_side": "left"}, ValueError, "rotary_side", "expected 'leading' or 'trailing'"),
        ({"inv_freq": [1, 2]}, ValueError, "inv_freq", "got 2 frequencies, expected rotary_dim/2"),
        ({"inv_freq": [1, 2]}, ValueError, "inv_freq", "rotary_dim/2 = 4"),
        ({"inv_freq": [1, 2, 3, float("nan")]}, ValueError, "inv_freq", "expected finite numbers"),
        ({"inv_freq": [1, 2, 3, float("inf")]}, ValueError, "inv_freq", "expected finite numbers"),
        ({"inv_freq": 0.5}, TypeError, "inv_freq", "got float, expected rotary_dim/2 = 4 numbers"),
        ({"inv_freq": "1234"}, TypeError, "inv_freq", "got str, expected"),
        ({"inv_freq": [None] * 4}, TypeError, "inv_freq", "got list, expected"),
        ({"inv_freq": [1j] * 4}, TypeError, "inv_freq", "got list, expected"),
        ({"inv_freq": [10**400] * 4}, TypeError, "inv_freq", "got list, expected"),
        ({"inv_freq": np.ones((4, 2))}, TypeError, "inv_freq", "got ndarray, expected"),
        ({"inv_freq": [1, 2, 3, 4], "base": 5}, ValueError, "base", "got 5.0 beside inv_freq"),
        ({"inv_freq": [1, 2, 3, 4], "base": 8}, ValueError, "base", "got 8.0 beside inv_freq"),
        ({"inv_freq": [1, 2, 3, 4], "frequency_dim": 6}, ValueError, "frequency_dim", "got 6"),
        ({"scaling": {"factor": 2}}, TypeError, "scaling", "expected None or a rule"),
        ({"axes": 2}, TypeError, "axes", "got 2, expected rotary.axes.Sections(...) or Axial"),
        ({"xpos": 512}, TypeError, "xpos", "got 512, expected None or rotary.XPos"),
    ],
)
def test_a_wrong_description_is_refused(
    wrong: dict[str, Any], error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        rotary.RotaryEmbedding(**{"head_dim": 8, **wrong})


# -- x, q and k ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_only_floats_rotate(library: Any, refused: Any, dtype: str) -> None:
    x = library.array(features(dtype=dtype))
    cos, sin = map(library.array, tables())
    expected = f"got dtype {dtype}, expected one of float16, bfloat16, float32, float64"
    with refused(TypeError, "q", expected, unchanged=(x,)):
        ROPE(x)
    with refused(TypeError, "q", expected, unchanged=(x,)):
        ROPE.inverse(x)
    with refused(TypeError, "k", expected, unchanged=(x,)):
        ROPE.shift(x, 1)
    with refused(TypeError, "x", expected, unchanged=(x,)):
        rotary.rotate(x, cos, sin)


@pytest.mark.parametrize("x", [[1.0] * 8, None, 1.0, "q", ((1.0,) * 8,)])
def test_what_is_no_array_does_not_rotate(refused: Any, x: Any) -> None:
    came = f"got builtins.{type(x).__name__}, expected an array"
    with refused(TypeError, "q", came):
        ROPE(x)
    with refused(TypeError, "k", came):
        ROPE.shift(x, 1)
    with refused(TypeError, "x", came):
        rotary.rotate(x, *tables())


def test_k_is_an_array(refused: Any) -> None:
    for k in ([1.0] * 8, 1.0, "k"):
        with refused(TypeError, "k", f"got builtins.{type(k).__name__}, expected an array"):
            ROPE(features(), k)


def test_the_last_axis_is_head_dim(library: Any, refused: Any) -> None:
    x = library.array(features((2, 3, 5, 6)))
    with refused(ValueError, "q", "(2, 3, 5, 6)", "head_dim = 8", unchanged=(x,)):
        ROPE(x)


@pytest.mark.parametrize("seq_axis", [-1, 3, 4, -5])
def test_seq_axis_is_one_of_the_axes_in_front(library: Any, refused: Any, seq_axis: int) -> None:
    x = library.array(features())
    cos, sin = map(library.array, tables())
    words = f"got {seq_axis}", str(SHAPE), "expected an axis of it other than the last"
    with refused(ValueError, "seq_axis", *words, unchanged=(x,)):
        ROPE(x, seq_axis=seq_axis)
    with refused(ValueError, "seq_axis", *words, unchanged=(x,)):
        rotary.rotate(x, cos, sin, seq_axis=seq_axis)


@pytest.mark.parametrize("seq_axis", [1.5, "2", None, [1]])
def test_seq_axis_is_a_whole_number(refused: Any, seq_axis: Any) -> None:
    with refused(TypeError, "seq_axis", f"got {seq_axis!r}, expected a whole number"):
        ROPE(features(), seq_axis=seq_axis)


def test_a_vector_has_no_seq_axis(library: Any, refused: Any) -> None:
    with refused(ValueError, "seq_axis", "(8,)"):
        ROPE(library.array(features((8,))))


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (1, 3, 5, 8), (3, 5, 8), (2, 2, 3, 5, 8)])
def test_k_has_the_shape_of_q_but_for_its_heads(
    library: Any, refused: Any, shape: tuple[int, ...]
) -> None:
    q, k = library.array(features()), library.array(features(shape))
    with refused(ValueError, "k", f"got shape {shape}", f"shape {SHAPE}", unchanged=(q, k)):
        ROPE(q, k)


def test_k_has_the_head_dim_and_dtype_of_q(library: Any, refused: Any) -> None:
    q = library.array(features())
    with refused(ValueError, "k", "got shape (2, 3, 5, 6)", "head_dim = 8", unchanged=(q,)):
        ROPE(q, library.array(features((2, 3, 5, 6))))
    with refused(TypeError, "k", "got dtype float64, expected q's float32", unchanged=(q,)):
        ROPE(q, library.array(features(), "float64"))


def test_q_and_k_are_of_one_library(library: Any, other: Any, refused: Any) -> None:
    q, k = library.array(features()), other.array(features())
    words = f"got an array of {other.name}, expected q's library {library.name}"
    with refused(TypeError, "k", words, unchanged=(q, k)):
        ROPE(q, k)


def test_two_libraries_of_the_standard_are_two() -> None:
    strict = pytest.importorskip("array_api_strict")

    class Conforming:
        shape, dtype, ndim, device = SHAPE, "float32", 4, "cpu"

        def __array_namespace__(self, api_version: str | None = None) -> Any:
            return np

        def to_device(self, device: Any) -> Any:
            return self

    with pytest.raises(TypeError, match=r"^k: got an array of \w+, expected q's library array_api"):
        ROPE(strict.asarray(features()), Conforming())


def test_q_and_k_are_on_one_device_in_torch(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    q = torch.ones(SHAPE)
    with refused(ValueError, "k", "got device meta, expected q's device cpu", unchanged=(q,)):
        ROPE(q, torch.ones(SHAPE, device="meta"))
    with refused(ValueError, "out", "got device meta, expected x's device cpu", unchanged=(q,)):
        ROPE(q, out=torch.ones(SHAPE, device="meta"))


def test_q_and_k_are_on_one_device_in_array_api_strict(refused: Any) -> None:
    strict = pytest.importorskip("array_api_strict")
    q = strict.ones(SHAPE, dtype=strict.float32)
    k = strict.ones(SHAPE, dtype=strict.float32, device=strict.Device("device1"))
    with refused(ValueError, "k", "'device1'", "expected q's device", "'CPU_DEVICE'"):
        ROPE(q, k)
    with refused(ValueError, "cos", "'CPU_DEVICE'", "expected x's device", "'device1'"):
        rotary.rotate(k, q[0, 0, :, :4], q[0, 0, :, 4:])


def test_q_and_k_are_on_one_device_in_jax_if_they_are_bound_to_any(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    first, second = jax.devices("cpu")[:2]
    free = jax.numpy.asarray(features())
    q, k = jax.device_put(free, first), jax.device_put(free, second)
    with refused(ValueError, "k", f"got device {k.device}, expected q's device {q.device}"):
        ROPE(q, k)
    # JAX moves what nobody placed.
    for pair in ((q, free), (free, k), (k, free)):
        for rotated, given in zip(ROPE(*pair), pair, strict=True):
            assert rotated.shape == given.shape


# -- positions and offset ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        (np.arange(6), ValueError, ("got shape (6,)", MET)),
        (np.arange(1), ValueError, ("got shape (1,)", MET)),
        (np.zeros(()), ValueError, ("got shape ()", MET)),
        (np.zeros((3, 5)), ValueError, ("got shape (3, 5)", MET)),
        (np.zeros((2, 1)), ValueError, ("got shape (2, 1)", MET)),
        (np.zeros((1, 1, 5)), ValueError, ("got shape (1, 1, 5)", MET)),
        (np.array([0, 1, 2, 3, np.nan]), ValueError, ("got NaN at index 4, expected finite",)),
        (np.array([0, 1, -np.inf, 3, 4]), ValueError, ("got -inf at index 2, expected finite",)),
        (np.full((2, 5), np.nan), ValueError, ("got NaN at index (0, 0), expected finite",)),
        (np.arange(5) + 2.0**53, ValueError, ("to 9007199254740996.0, expected", str(LIMIT))),
        (np.arange(5) + 2**53, ValueError, ("to 9007199254740996, expected", str(LIMIT))),
        (np.arange(5) - 2**53 - 2, ValueError, ("from -9007199254740994 to", str(LIMIT))),
        (np.zeros(5, bool), TypeError, ("got dtype bool, expected integers, float32",)),
        (np.zeros(5, np.complex64), TypeError, ("got dtype complex64, expected integers",)),
    ],
)
def test_wrong_positions_are_refused(
    library: Any, refused: Any, positions: Any, error: type[Exception], words: tuple[str, ...]
) -> None:
    q = library.array(features())
    for given in (positions, library.array(positions)):
        with refused(error, "positions", *words, unchanged=(q, given)):
            ROPE(q, positions=given)
        with refused(error, "positions", *words, unchanged=(q, given)):
            ROPE.inverse(q, q, positions=given)


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        ([0, 1, 2, 3], ValueError, ("got shape (4,)", MET)),
        ([], ValueError, ("got shape (0,)", MET)),
        (3, ValueError, ("got shape ()", MET)),
        ([2**64] * 5, ValueError, ("got whole numbers of more than 64 bits", str(LIMIT))),
        ([-(10**30)] * 5, ValueError, ("got whole numbers of more than 64 bits", str(LIMIT))),
        ([2**53 + 1] * 5, ValueError, ("to 9007199254740993, expected", str(LIMIT))),
        ([0, 1, 2, 3, 4j], TypeError, ("got dtype complex128, expected integers",)),
        ([True] * 5, TypeError, ("got dtype bool, expected integers",)),
        ([None] * 5, TypeError, ("got dtype object, expected integers",)),
        (["0"] * 5, TypeError, ("got dtype <U1, expected integers",)),
        ([[0, 1], [2]], TypeError, ("got list, expected numbers",)),
        ({}, TypeError, ("got dtype object, expected integers",)),
    ],
)
def test_wrong_lists_of_positions_are_refused(
    library: Any, refused: Any, positions: Any, error: type[Exception], words: tuple[str, ...]
) -> None:
    q = library.array(features())
    with refused(error, "positions", *words, unchanged=(q,)):
        ROPE(q, positions=positions)


def test_positions_without_a_batch_have_one_axis(library: Any, refused: Any) -> None:
    q = library.array(features((5, 8)))
    with refused(ValueError, "positions", "got shape (2, 5), expected (5,) to"):
        ROPE(q, positions=np.zeros((2, 5)))
    packed = library.array(features((5, 3, 8)))
    with refused(ValueError, "positions", "got shape (3, 5), expected (5,) to"):
        ROPE(packed, positions=np.zeros((3, 5)), seq_axis=-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_positions_of_16_bits_are_refused(library: Any, refused: Any, dtype: str) -> None:
    if dtype not in library.dtypes:
        pytest.skip(f"{library.name} has no {dtype}")
    q = library.array(features())
    words = f"got dtype {dtype}, which cannot tell", "expected integers, float32 or float64"
    with refused(TypeError, "positions", *words, unchanged=(q,)):
        ROPE(q, positions=library.array(np.arange(5.0), dtype))
    with refused(TypeError, "offset", *words, unchanged=(q,)):
        ROPE(q, offset=library.array(np.arange(2.0), dtype))
    with refused(TypeError, "positions", *words):
        rotary.validate(library.array(np.arange(5.0), dtype))
    with refused(TypeError, "positions", *words):
        ROPE.tables(library.array(np.arange(5.0), dtype), like=q)


def test_numpy_positions_of_16_bits_are_refused_by_every_library(
    library: Any, refused: Any
) -> None:
    with refused(TypeError, "positions", "got dtype float16"):
        ROPE(library.array(features()), positions=np.arange(5, dtype=np.float16))


def test_positions_of_another_library_are_refused(library: Any, other: Any, refused: Any) -> None:
    if other.name == "numpy":
        pytest.skip("NumPy positions go with every library")
    q, positions = library.array(features()), other.array(np.arange(5))
    with refused(TypeError, "positions", f"got an array of {other.name}, expected numbers"):
        ROPE(q, positions=positions)
    with refused(TypeError, "offset", f"got an array of {other.name}, expected numbers"):
        ROPE(q, offset=positions[0])


def test_positions_and_offset_exclude_each_other(library: Any, refused: Any) -> None:
    q = library.array(features())
    words = "got offset too, expected positions or offset"
    for offset in (0, 1.5, [1, 2]):
        with refused(ValueError, "positions", words, unchanged=(q,)):
            ROPE(q, positions=[0, 1, 2, 3, 4], offset=offset)


@pytest.mark.parametrize(
    ("offset", "error", "words"),
    [
        (np.zeros(3), ValueError, ("got shape (3,), expected one number", "shape (2,)")),
        (np.zeros((2, 1)), ValueError, ("got shape (2, 1), expected one number", "shape (2,)")),
        (np.array([0, np.nan]), ValueError, ("got NaN at index 1, expected finite",)),
        (np.array(np.inf), ValueError, ("got inf, expected finite",)),
        (np.full(2, 2.0**53), ValueError, ("9007199254740996.0, expected", str(LIMIT))),
        (np.full(2, 2**53), ValueError, ("9007199254740996.0, expected", str(LIMIT))),
        (np.full(2, 2**54), ValueError, (f"{2**54}, expected", str(LIMIT))),
        (np.zeros(2, bool), TypeError, ("got dtype bool, expected integers",)),
        (np.zeros(2, np.complex64), TypeError, ("got dtype complex64, expected integers",)),
    ],
)
def test_wrong_offsets_are_refused(
    library: Any, refused: Any, offset: Any, error: type[Exception], words: tuple[str, ...]
) -> None:
    q = library.array(features())
    for given in (offset, library.array(offset), offset.tolist()):
        with refused(error, "offset", *words[1:], unchanged=(q,)):
            ROPE(q, offset=given)
    with refused(error, "offset", *words, unchanged=(q, offset)):
        ROPE(q, offset=offset)


@pytest.mark.parametrize("offset", [2**53, 2**53 - 3, -(2**53) - 1, 10**30])
def test_a_whole_offset_reaches_no_farther_than_2_to_the_53(refused: Any, offset: int) -> None:
    words = f"got positions from {offset} to {offset + 4}, expected", str(LIMIT)
    with refused(ValueError, "offset", *words):
        ROPE(features(), offset=offset)


def test_an_offset_a_batch_row_needs_a_batch(library: Any, refused: Any) -> None:
    q = library.array(features((5, 8)))
    with refused(ValueError, "offset", "got shape (5,), expected one number"):
        ROPE(q, offset=[0] * 5)


@pytest.mark.parametrize(
    ("by", "error", "words"),
    [
        (None, TypeError, "got None, expected a number"),
        ([1, 2], ValueError, "got shape (2,), expected one number"),
        (float("nan"), ValueError, "got NaN, expected finite"),
        (2**60, ValueError, f"{2**60}, expected them within ±2^53"),
        (1e300, ValueError, "1e+300, expected them within ±2^53"),
        (True, TypeError, "got dtype bool, expected integers"),
        (1j, TypeError, "got dtype complex128, expected integers"),
        ("1", TypeError, "got dtype <U1, expected integers"),
        (np.float16(1), TypeError, "got dtype float16, which cannot tell"),
    ],
)
def test_keys_are_shifted_by_one_number(
    library: Any, refused: Any, by: Any, error: type[Exception], words: str
) -> None:
    k = library.array(features())
    with refused(error, "by", words, unchanged=(k,)):
        ROPE.shift(k, by)


def test_positions_without_values_are_refused(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    q, nowhere = torch.ones(SHAPE), torch.arange(5, device="meta")
    words = "got a tensor on the meta device", "expected values that the host can read"
    with refused(TypeError, "positions", *words, unchanged=(q,)):
        ROPE(q, positions=nowhere)
    with refused(TypeError, "offset", *words, unchanged=(q,)):
        ROPE(q, offset=nowhere[0])
    with refused(TypeError, "by", *words, unchanged=(q,)):
        ROPE.shift(q, nowhere[0])
    with refused(TypeError, "positions", *words):
        rotary.validate(nowhere)


def test_positions_that_torch_maps_over_are_refused(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    q, positions = torch.from_numpy(features()), torch.arange(10).reshape(2, 5)
    with refused(TypeError, "positions", "torch.func maps over", unchanged=(q,)):
        torch.func.vmap(lambda p: ROPE(q, positions=p))(positions)


def test_positions_that_ask_for_a_gradient_are_refused(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    q, positions = torch.from_numpy(features()), torch.arange(5.0, requires_grad=True)
    with refused(TypeError, "positions", "requires a gradient", unchanged=(q,)):
        ROPE(q, positions=positions)


def test_positions_of_another_device_are_read() -> None:
    strict = pytest.importorskip("array_api_strict")
    q = strict.asarray(features())
    away = strict.arange(5, device=strict.Device("device1"))
    rotary.validate(away)
    assert strict.all(ROPE(q, positions=away) == ROPE(q))


@pytest.mark.parametrize(
    ("keywords", "error", "name", "words"),
    [
        ({"positions": (6,)}, ValueError, "positions", "got shape (6,)"),
        ({"positions": (1,)}, ValueError, "positions", "got shape (1,)"),
        ({"positions": (3, 5)}, ValueError, "positions", "got shape (3, 5)"),
        ({"positions": (5,), "offset": 1}, ValueError, "positions", "got offset too"),
        ({"positions": ("half", (5,))}, TypeError, "positions", "got dtype float16"),
        ({"positions": ("bfloat16", (5,))}, TypeError, "positions", "got dtype bfloat16"),
        ({"offset": (3,)}, ValueError, "offset", "got shape (3,)"),
        ({"offset": (2, 1)}, ValueError, "offset", "got shape (2, 1)"),
        ({"offset": ("half", (2,))}, TypeError, "offset", "got dtype float16"),
        ({"offset": True}, TypeError, "offset", "got dtype bool"),
        ({"offset": float("nan")}, ValueError, "offset", "got NaN"),
        ({"offset": 2**53}, ValueError, "offset", "9007199254740996"),
        ({"seq_axis": 3}, ValueError, "seq_axis", "got 3"),
    ],
)
def test_compiled_calls_refuse_the_same(
    refused: Any, keywords: dict[str, Any], error: type[Exception], name: str, words: str
) -> None:
    torch = pytest.importorskip("torch")

    def zeros(given: Any) -> Any:
        if not isinstance(given, tuple):
            return given
        kind, shape = given if isinstance(given[0], str) else ("float32", given)
        return torch.zeros(shape, dtype=getattr(torch, kind))

    q = torch.ones(SHAPE)
    given = {key: zeros(value) for key, value in keywords.items()}
    torch.compiler.reset()
    compiled = torch.compile(lambda x: ROPE(x, **given), backend="eager")
    with refused(error, name, words, unchanged=(q,)):
        compiled(q)


# -- out -----------------------------------------------------------------------------------------


def test_out_has_the_shape_dtype_and_library_of_x(library: Any, other: Any, refused: Any) -> None:
    if library.name == "jax":
        pytest.skip("JAX arrays are immutable")
    q = library.array(features())
    cos, sin = map(library.array, tables())
    for out, error, words in (
        (library.array(features((2, 3, 5, 6))), ValueError, ("(2, 3, 5, 6)", str(SHAPE))),
        (library.array(features((1, *SHAPE))), ValueError, ("(1, 2, 3, 5, 8)", str(SHAPE))),
        (library.array(features(), "float64"), TypeError, ("got dtype float64", "float32")),
        (other.array(features()), TypeError, (other.name, f"x's library {library.name}")),
    ):
        with refused(error, "out", *words, unchanged=(q, out)):
            ROPE(q, out=out)
        with refused(error, "out", *words, unchanged=(q, out)):
            rotary.rotate(q, cos, sin, out=out)
        good = library.array(features())
        with refused(error, "out", *words, unchanged=(q, out, good)):
            ROPE(q, q, out=(good, out))
    with refused(TypeError, "out", "got builtins.list, expected an array", unchanged=(q,)):
        ROPE(q, out=[1.0])


def test_out_is_a_pair_when_k_is_given(library: Any, refused: Any) -> None:
    q, out = library.array(features()), library.array(features())
    with refused(TypeError, "out", "expected a pair of arrays", unchanged=(q, out)):
        ROPE(q, q, out=out)
    with refused(TypeError, "out", "got tuple, expected a pair", unchanged=(q, out)):
        ROPE(q, q, out=(out,))
    with refused(TypeError, "out", "got builtins.tuple, expected an array", unchanged=(q, out)):
        ROPE(q, out=(out, out))


def test_out_is_two_arrays_not_one_twice(library: Any, refused: Any) -> None:
    if library.name == "jax":
        pytest.skip("JAX arrays are immutable")
    q, out = library.array(features()), library.array(features())
    with refused(ValueError, "out", "got one array twice", unchanged=(q, out)):
        ROPE(q, q, out=(out, out))
    with refused(TypeError, "out", "got builtins.NoneType, expected an array", unchanged=(q, out)):
        ROPE(q, q, out=(out, None))


def test_read_only_out_is_refused(refused: Any) -> None:
    q, out, good = features(), features(), features()
    out.flags.writeable = False
    words = "read-only", "leave it out"
    with refused(ValueError, "out", *words, unchanged=(q, out)):
        ROPE(q, out=out)
    with refused(ValueError, "out", *words, unchanged=(q, out)):
        rotary.rotate(q, *tables(), out=out)
    with refused(ValueError, "out", *words, unchanged=(q, out, good)):
        ROPE(q, q, out=(good, out))


def test_out_is_refused_in_jax(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    q = jax.numpy.asarray(features())
    cos, sin = map(jax.numpy.asarray, tables())
    with refused(ValueError, "out", "JAX arrays are immutable", "leave it out", unchanged=(q,)):
        ROPE(q, out=q)
    with refused(ValueError, "out", "JAX arrays are immutable", "leave it out", unchanged=(q,)):
        rotary.rotate(q, cos, sin, out=q)


def test_out_is_refused_where_torch_records_a_gradient(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    q, out = torch.ones(SHAPE, requires_grad=True), torch.zeros(SHAPE)
    cos, sin = map(torch.from_numpy, tables())
    words = "a gradient is recorded", "leave it out"
    with refused(ValueError, "out", *words, unchanged=(q, out)):
        ROPE(q, out=out)
    with refused(ValueError, "out", *words, unchanged=(q, out)):
        ROPE(out, out=q)
    with refused(ValueError, "out", *words, unchanged=(q, out)):
        ROPE(out, q, out=(out, torch.zeros(SHAPE)))
    with refused(ValueError, "out", *words, unchanged=(q, out)):
        rotary.rotate(out, cos.requires_grad_(), sin, out=out)
    with torch.no_grad():
        assert ROPE(q, out=out) is out


def test_out_is_refused_where_torch_could_not_write(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    q, out = torch.ones(SHAPE), torch.zeros(1, 3, 5, 8).expand(SHAPE)
    with refused(ValueError, "out", "the tensor is expanded", unchanged=(q, out)):
        ROPE(q, out=out)
    with torch.inference_mode():
        out = torch.zeros(SHAPE)
        assert ROPE(q, out=out) is out
    with refused(ValueError, "out", "made in inference mode", unchanged=(q, out)):
        ROPE(q, out=out)


# -- rotate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["cos", "sin"])
def test_tables_have_the_dtype_and_library_of_x(
    library: Any, other: Any, refused: Any, which: str
) -> None:
    x = library.array(features())
    good = dict(zip(("cos", "sin"), map(library.array, tables()), strict=True))
    wrong = library.array(np.ones((5, 4)), "float64")
    words = "got dtype float64, expected float32", "x of float32"
    with refused(TypeError, which, *words, unchanged=(x, wrong)):
        rotary.rotate(x, **{**good, which: wrong})
    with refused(TypeError, which, "got dtype int32, expected float32", unchanged=(x,)):
        rotary.rotate(x, **{**good, which: library.array(np.ones((5, 4), np.int32))})
    words = f"got an array of {other.name}, expected x's library {library.name}"
    with refused(TypeError, which, words, unchanged=(x,)):
        rotary.rotate(x, **{**good, which: other.array(np.ones((5, 4), np.float32))})
    with refused(TypeError, which, "got builtins.list, expected an array", unchanged=(x,)):
        rotary.rotate(x, **{**good, which: [1.0]})


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (4,),
        (6, 4),
        (1, 4),
        (5, 0),
        (5, 5),
        (3, 5, 4),
        (2, 1, 4),
        (2, 2, 5, 4),
        (2, 3, 1, 4),
        (1, 2, 3, 5, 4),
    ],
)
def test_tables_meet_the_shape_of_x(library: Any, refused: Any, shape: tuple[int, ...]) -> None:
    x, (cos, sin) = library.array(features()), map(library.array, tables(shape))
    with refused(ValueError, "cos", f"got shape {shape}", str(SHAPE), unchanged=(x, cos)):
        rotary.rotate(x, cos, sin)


def test_cos_and_sin_have_one_shape(library: Any, refused: Any) -> None:
    x = library.array(features())
    cos, sin = library.array(tables((5, 4))[0]), library.array(tables((1, 5, 4))[0])
    with refused(ValueError, "sin", "got shape (1, 5, 4), expected cos's (5, 4)", unchanged=(x,)):
        rotary.rotate(x, cos, sin)


def test_packed_sequences_have_no_table_a_batch_row(library: Any, refused: Any) -> None:
    x = library.array(features((5, 2, 3, 8)))
    cos, sin = map(library.array, tables((5, 5, 4)))
    with refused(ValueError, "cos", "got shape (5, 5, 4), expected (seq, pairs)", "(5, 2, 3, 8)"):
        rotary.rotate(x, cos, sin, seq_axis=0)


def test_layout_and_side_are_known(library: Any, refused: Any) -> None:
    x, (cos, sin) = library.array(features()), map(library.array, tables())
    expected = "got 'neox', expected 'half' or 'interleaved'"
    with refused(ValueError, "layout", expected, unchanged=(x,)):
        rotary.rotate(x, cos, sin, layout="neox")
    expected = "got 'left', expected 'leading' or 'trailing'"
    with refused(ValueError, "rotary_side", expected, unchanged=(x,)):
        rotary.rotate(x, cos, sin, rotary_side="left")


# -- tables and validate -------------------------------------------------------------------------


def test_tables_come_like_an_array(refused: Any) -> None:
    with refused(TypeError, "like", "got builtins.list, expected an array"):
        ROPE.tables([0, 1], like=[1.0])


def test_tables_are_exact_float32_or_float64(library: Any, refused: Any) -> None:
    like = library.array(features())
    for precision in ("fast", None, 32):
        with refused(ValueError, "precision", f"got {precision!r}, expected 'exact'"):
            ROPE.tables([0, 1], like=like, precision=precision)
    for dtype in ("float16", "bfloat16", "int64", "double", float, 32):
        with refused(ValueError, "dtype", f"got {dtype!r}, expected float32 or float64"):
            ROPE.tables([0, 1], like=like, dtype=dtype)
    like = library.array(np.ones(1, np.int32))
    with refused(TypeError, "like", "got dtype int32, expected one of float16"):
        ROPE.tables([0, 1], like=like)


def test_float64_tables_need_x64_in_jax(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    like = jax.numpy.ones(1)
    with jax.enable_x64(False), refused(TypeError, "dtype", "float64 is not available in JAX"):
        ROPE.tables([0, 1], like=like, dtype="float64")


def test_positions_times_frequency_stay_within_2_to_the_53_turns(refused: Any) -> None:
    fast = rotary.RotaryEmbedding(2, inv_freq=[1e6])
    farthest = int(2**53 * math.tau / 1e6)
    for positions in ([farthest], [farthest, farthest - 0.5]):
        assert fast.tables(positions)[0].shape == (len(positions), 1)
        beyond = [p + 100 for p in positions]
        with refused(ValueError, "positions", f"{farthest + 100}.0 at 159154", "more than 2^53"):
            fast.tables(beyond)


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        (np.array([0, np.nan]), ValueError, "got NaN at index 1, expected finite"),
        (np.array([[0, np.inf]]), ValueError, "got inf at index (0, 1), expected finite"),
        (np.array([-(2.0**53) - 2]), ValueError, "expected them within ±2^53"),
        (np.array([2**53 + 1]), ValueError, "got values from 9007199254740993 to"),
        (np.array([2**64 - 1], np.uint64), ValueError, "got values from 18446744073709551615 to"),
        (np.zeros(2, bool), TypeError, "got dtype bool, expected integers"),
        (np.zeros(2, np.complex128), TypeError, "got dtype complex128, expected integers"),
    ],
)
def test_validate_refuses_what_a_call_would(
    library: Any, refused: Any, positions: Any, error: type[Exception], words: str
) -> None:
    given = library.array(positions)
    with refused(error, "positions", words, unchanged=(given,)):
        rotary.validate(given)
    with refused(error, "positions", words):
        ROPE.tables(given, like=library.array(features()))


@pytest.mark.parametrize("positions", ["abc", None, object(), [None], [[1], [2, 3]], [2**70]])
def test_validate_refuses_what_is_no_number(refused: Any, positions: Any) -> None:
    error = ValueError if positions == [2**70] else TypeError
    with refused(error, "positions", "got ", "expected"):
        rotary.validate(positions)


def test_validate_accepts_the_whole_range(library: Any) -> None:
    rotary.validate(library.array(np.array([-(2**53), 0, 2**53])))
    rotary.validate(library.array(np.array([-(2.0**53), 0.25, 2.0**53])))
    rotary.validate([])
    rotary.validate(5)

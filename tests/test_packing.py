"""Packed and padded batches: each sequence is rotated as if it were alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import rotary
from rotary import offsets_from_mask, positions_from_cu_seqlens

ROPE = rotary.RotaryEmbedding(16)
ENDS = [0, 3, 3, 4, 9]
POSITIONS = [0, 1, 2, 0, 0, 1, 2, 3, 4]
NO_SEQUENCE = [0, 0]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# -- packed --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_positions_start_again_in_each_sequence(lengths: list[int]) -> None:
    ends = [0, *np.cumsum(lengths).tolist()]
    want = [p for length in lengths for p in range(length)]
    for given_ in (ends, tuple(ends), np.array(ends), np.array(ends, np.uint8)):
        got = positions_from_cu_seqlens(given_)
        assert got.dtype == np.int64
        assert got.tolist() == want
    assert positions_from_cu_seqlens(ends, total=len(want)).tolist() == want


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_positions_are_of_the_library_of_cu_seqlens(library: Any, dtype: str) -> None:
    ends = library.array(ENDS, dtype)
    for got in (positions_from_cu_seqlens(ends), positions_from_cu_seqlens(ends, total=9)):
        assert type(got) is type(ends)
        assert library.name == "numpy" or got.dtype == ends.dtype
        assert_array_equal(np.asarray(got), POSITIONS)
    assert positions_from_cu_seqlens(library.array(NO_SEQUENCE, dtype)).shape == (0,)


def test_positions_may_be_written_to(library: Any) -> None:
    if library.name == "jax":
        pytest.skip("JAX arrays are immutable")
    ends = library.array(ENDS)
    got = positions_from_cu_seqlens(ends)
    got[0] = 7
    assert_array_equal(np.asarray(ends), ENDS)
    assert int(positions_from_cu_seqlens(ends)[0]) == 0


def test_a_packed_batch_rotates_as_each_sequence_alone(library: Any) -> None:
    x = normal(9, 2, 16)  # total, heads, dim
    positions = positions_from_cu_seqlens(library.array(ENDS, "int32"))
    got = np.asarray(ROPE(library.array(x), positions=positions, seq_axis=-3))
    for start, end in pairwise(ENDS):
        assert_array_equal(got[start:end], ROPE(x[start:end], seq_axis=-3))


# The total of a program is static: what pads the batch is counted from the last boundary.
PADDED = [*POSITIONS, 0, 1, 2]


@pytest.mark.parametrize("x64", [False, True])
def test_traced_cu_seqlens_give_positions_under_jit(x64: bool) -> None:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(x64):
        program = jax.jit(positions_from_cu_seqlens, static_argnames="total")
        for dtype in ("int32", "uint16"):
            got = program(np.array(ENDS, dtype), total=12)
            assert got.dtype == dtype
            assert_array_equal(got, PADDED)
        assert_array_equal(program(np.array([0, 0, 2, 12, 12]), total=12), [0, 1, *range(10)])


def test_one_program_of_jax_rotates_every_packing() -> None:
    jax = pytest.importorskip("jax")
    x = normal(9, 2, 16)

    @jax.jit
    def program(x: Any, ends: Any) -> Any:
        return ROPE(x, positions=positions_from_cu_seqlens(ends, total=9), seq_axis=-3)

    for ends in (ENDS, [0, 0, 0, 0, 9], [0, 1, 2, 3, 9]):
        want = ROPE(x, positions=positions_from_cu_seqlens(ends), seq_axis=-3)
        assert_array_equal(program(x, np.array(ends, np.int32)), want)
    assert program._cache_size() == 1


def test_traced_cu_seqlens_give_positions_under_torch_compile() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    program = torch.compile(
        lambda ends, total: positions_from_cu_seqlens(ends, total=total),
        fullgraph=True,
        backend=backend,
    )
    ends = torch.tensor(ENDS, dtype=torch.int32)
    for total in (9, 10, 11, 12):
        got = program(ends, total)
        assert got.dtype == torch.int32
        assert_array_equal(got, PADDED[:total])
    # The first total is taken for a constant, all others for a variable.
    assert len(graphs) <= 2


def test_a_compiled_program_of_torch_rotates_a_packed_batch() -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    x = normal(9, 2, 16)

    @torch.compile(fullgraph=True)
    def program(x: Any, ends: Any) -> Any:
        return ROPE(x, positions=positions_from_cu_seqlens(ends, total=9), seq_axis=-3)

    want = ROPE(x, positions=POSITIONS, seq_axis=-3)
    assert_array_equal(program(torch.from_numpy(x), torch.tensor(ENDS)), want)


@pytest.mark.parametrize("name", ["dask.array", "ndonnx"])
def test_lazy_cu_seqlens_give_positions(name: str, refused: Any) -> None:
    xp = pytest.importorskip(name)
    ends = xp.asarray(np.array(ENDS))
    got = positions_from_cu_seqlens(ends, total=12)
    assert type(got) is type(ends)
    assert_array_equal(got.compute() if name == "dask.array" else got.unwrap_numpy(), PADDED)
    with refused(ValueError, "total", "got None, expected the number of tokens"):
        positions_from_cu_seqlens(ends)


@pytest.mark.parametrize(
    ("ends", "error", "words"),
    [
        ([1, 3], ValueError, "got 1 at index 0, expected a start at 0"),
        ([-1, 3], ValueError, "got -1 at index 0, expected a start at 0"),
        ([0, 5, 4, 2], ValueError, "got 4 at index 2 after 5, expected numbers that do not decr"),
        ([0], ValueError, "got shape (1,), expected (sequences + 1,), a length of 2 or more"),
        ([], ValueError, "got shape (0,), expected (sequences + 1,)"),
        (5, ValueError, "got shape (), expected (sequences + 1,)"),
        ([[0, 3]], ValueError, "got shape (1, 2), expected (sequences + 1,)"),
        ([0.0, 3.0], TypeError, "got dtype float64, expected integers"),
        ([False, True], TypeError, "got dtype bool"),
    ],
)
def test_wrong_cu_seqlens_are_refused(
    library: Any, refused: Any, ends: Any, error: type[Exception], words: str
) -> None:
    if ends:  # an empty array of the library would be one of floats
        with refused(error, "cu_seqlens", words):
            positions_from_cu_seqlens(library.array(ends))
    with refused(error, "cu_seqlens", words):
        positions_from_cu_seqlens(ends)


@pytest.mark.parametrize("ends", [None, "0 3", [[0], [0, 1]], [0, None]])
def test_what_is_no_cu_seqlens_is_refused(refused: Any, ends: Any) -> None:
    with refused(TypeError, "cu_seqlens", "got "):
        positions_from_cu_seqlens(ends)


@pytest.mark.parametrize(
    ("total", "error", "words"),
    [
        (8, ValueError, "got 8, expected the last of cu_seqlens, 9"),
        (12, ValueError, "got 12, expected the last of cu_seqlens, 9"),
        (-1, ValueError, "got -1, expected 0 or more"),
        (9.0, TypeError, "got 9.0, expected a whole number"),
        (True, TypeError, "got True, expected a whole number"),
    ],
)
def test_a_wrong_total_is_refused(
    library: Any, refused: Any, total: Any, error: type[Exception], words: str
) -> None:
    with refused(error, "total", words):
        positions_from_cu_seqlens(library.array(ENDS), total=total)


def test_what_is_known_of_traced_cu_seqlens_is_checked(refused: Any) -> None:
    jax = pytest.importorskip("jax")
    ends = np.array(ENDS)
    with refused(ValueError, "total", "got None, expected the number of tokens"):
        jax.jit(positions_from_cu_seqlens)(ends)
    program = jax.jit(positions_from_cu_seqlens, static_argnames="total")
    with refused(ValueError, "total", "got -1, expected 0 or more"):
        program(ends, total=-1)
    with refused(TypeError, "cu_seqlens", "got dtype float32, expected integers"):
        program(ends.astype(np.float32), total=9)
    for shape in ((1,), (1, 5), ()):
        with refused(ValueError, "cu_seqlens", f"got shape {shape}, expected (sequences + 1,)"):
            program(np.zeros(shape, np.int32), total=9)


# -- padded --------------------------------------------------------------------------------------

LENGTHS = np.array([4, 1, 7])
SEQ = 7
MASKS = {
    "left": np.arange(SEQ) >= SEQ - LENGTHS[:, None],
    "right": np.arange(SEQ) < LENGTHS[:, None],
}
OFFSETS = {"left": [-3, -6, 0], "right": [0, 0, 0]}


@pytest.mark.parametrize("side", MASKS)
def test_the_first_real_token_has_position_0(library: Any, side: str) -> None:
    for dtype in ("bool", "int32", "uint8"):
        mask = library.array(MASKS[side], dtype)
        got = offsets_from_mask(mask)
        assert type(got) is type(mask)
        assert str(got.dtype).rpartition(".")[2] == (
            "int64" if library.name == "numpy" else "int32"
        )
        assert_array_equal(np.asarray(got), OFFSETS[side])


def test_a_mask_may_be_a_list_and_padded_on_both_sides() -> None:
    got = offsets_from_mask([[0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert got.dtype == np.int64
    assert got.tolist() == [-2, 0, 0]
    assert offsets_from_mask([[False, True]]).tolist() == [-1]
    assert offsets_from_mask(np.zeros((0, 3), bool)).shape == (0,)


@pytest.mark.parametrize("side", MASKS)
def test_a_padded_batch_rotates_as_each_row_alone(library: Any, side: str) -> None:
    x, mask = normal(3, 2, SEQ, 16), MASKS[side]  # batch, heads, seq, dim
    got = np.asarray(ROPE(library.array(x), offset=offsets_from_mask(library.array(mask))))
    for row, real in enumerate(mask):
        assert_array_equal(got[row][:, real], ROPE(x[row][:, real]))


@pytest.mark.parametrize("side", MASKS)
def test_decoded_tokens_go_on_where_the_real_tokens_end(library: Any, side: str) -> None:
    x, offsets = normal(3, 2, 1, 16), np.asarray(offsets_from_mask(library.array(MASKS[side])))
    for n in range(3):
        got = np.asarray(ROPE(library.array(x), offset=library.array(LENGTHS + n)))
        for row, length in enumerate(LENGTHS):
            assert_array_equal(got[row], ROPE(x[row], offset=int(length) + n))
        if side == "left":
            assert_array_equal(offsets + SEQ + n, LENGTHS + n)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ([[1, 1], [0, 0]], ValueError, "got no real token in row 1, expected one run of real"),
        ([[1, 0, 1], [0, 0, 0]], ValueError, "got padding between real tokens in row 0, expected"),
        ([[0, 1, 1, 0, 0, 1]], ValueError, "got padding between real tokens in row 0"),
        ([0, 1], ValueError, "got shape (2,), expected (batch, seq), seq of 1 or more"),
        ([[[1]]], ValueError, "got shape (1, 1, 1), expected (batch, seq)"),
        ([[0, 2]], ValueError, "got 2, expected booleans, or 0 and 1"),
        ([[0, -1]], ValueError, "got -1, expected booleans, or 0 and 1"),
        ([[0.0, 1.0]], TypeError, "got dtype float64, expected integers"),
    ],
)
def test_a_wrong_mask_is_refused(
    library: Any, refused: Any, mask: Any, error: type[Exception], words: str
) -> None:
    given_ = library.array(mask)
    with refused(error, "mask", words, unchanged=(given_,)):
        offsets_from_mask(given_)
    with refused(error, "mask", words):
        offsets_from_mask(mask)
    if np.isin(mask, [0, 1]).all() and error is ValueError:
        with refused(error, "mask", words):
            offsets_from_mask(library.array(mask, "bool"))


@pytest.mark.parametrize("mask", [None, 1, "01", [[1], [1, 0]], [[None]]])
def test_what_is_no_mask_is_refused(refused: Any, mask: Any) -> None:
    with refused(ValueError if mask == 1 else TypeError, "mask", "got "):
        offsets_from_mask(mask)


def test_a_mask_without_tokens_is_refused(refused: Any) -> None:
    with refused(ValueError, "mask", "got shape (2, 0), expected (batch, seq), seq of 1"):
        offsets_from_mask(np.zeros((2, 0), bool))


@pytest.mark.parametrize("dtype", [bool, np.int32])
def test_a_mask_that_only_a_program_knows_is_refused(refused: Any, dtype: Any) -> None:
    jax = pytest.importorskip("jax")
    with refused(TypeError, "mask", "got a traced array of jax"):
        jax.jit(offsets_from_mask)(np.ones((2, 3), dtype))


def test_a_mask_on_a_device_without_values_is_refused(refused: Any) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.bool, torch.int64):
        with refused(TypeError, "mask", "meta device"):
            offsets_from_mask(torch.ones((2, 3), dtype=dtype, device="meta"))

"""Descriptions of several axes as values, grids of positions, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

import rotary
from rotary import axes as axes_module
from rotary import scaling
from rotary.axes import Axial, Sections, grid
from rotary.frequencies import Frequencies

SECTIONS = Sections([4, 3, 5])
AXIAL = Axial([4, 4])
X = np.random.default_rng(0).standard_normal((2, 3, 5, 24)).astype(np.float32)
DESCRIPTIONS = [
    SECTIONS,
    Sections([4, 4, 4], "cycled"),
    Sections([4, 4, 4], "first_axis_last"),
    Sections([4, 4, 4]),
    Sections([6, 6]),
    *(
        Axial([6, 6], order, axis_order, frequencies, split, turns)
        for order, axis_order, frequencies, split, turns in itertools.product(
            ("blocks", "cycled"), ((0, 1), (1, 0)), ("own", "dealt"), (False, True), (False, True)
        )
        if not (split and order == "cycled")
    ),
]


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", DESCRIPTIONS, ids=str)
def test_a_description_is_a_value(axes: Any) -> None:
    rope = rotary.RotaryEmbedding(24, axes=axes, base=500.0)
    for thing in (axes, rope):
        for again in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)):
            assert again == thing
            assert hash(again) == hash(thing)
    assert eval(repr(axes), vars(axes_module)) == axes
    assert dataclasses.replace(rope, layout="interleaved").axes == axes
    assert dataclasses.replace(rope, axes=None) != rope
    assert Frequencies.from_token(rope._frequencies.token) == rope._frequencies
    with pytest.raises(dataclasses.FrozenInstanceError):
        axes.order = "blocks"


def test_descriptions_that_differ_are_unequal() -> None:
    assert len(set(DESCRIPTIONS)) == len(DESCRIPTIONS)
    ropes = {rotary.RotaryEmbedding(24, axes=axes) for axes in [None, *DESCRIPTIONS]}
    assert len({rope._frequencies.token for rope in ropes}) == len(ropes) == len(DESCRIPTIONS) + 1


def test_lists_and_numpy_numbers_are_coerced() -> None:
    for sizes in ([4, 3, 5], (4, 3, 5), np.array([4, 3, 5]), iter([4, 3, 5]), map(int, "435")):
        assert Sections(sizes) == SECTIONS
    numbers = Axial(np.array([4, 4]), axis_order=np.array([1, 0]))
    assert numbers == Axial([4, 4], axis_order=[1, 0])
    assert {type(n) for n in (*numbers.sizes, *numbers.axis_order)} == {int}
    assert Axial([4, 4]) == Axial([4, 4], axis_order=(0, 1))


def test_a_replaced_description_is_checked_again(refused: Any) -> None:
    with refused(ValueError, "axes", "got sizes (4, 3, 5), 12 pairs", "rotary_dim/2 = 8"):
        dataclasses.replace(rotary.RotaryEmbedding(24, axes=SECTIONS), head_dim=16, rotary_dim=16)
    with refused(ValueError, "axis_order", "got (0, 1), expected each of 0 to 2"):
        dataclasses.replace(AXIAL, sizes=(2, 2, 2))


# -- grids ---------------------------------------------------------------------------------------


def looped(frames: int | None, height: int, width: int, merge: int, start: int) -> Any:
    """Return the same tokens, one after the other."""
    tokens = []
    for t in range(frames or 1):
        for top in range(0, height, merge):
            for left in range(0, width, merge):
                for y in range(top, top + merge):
                    for x in range(left, left + merge):
                        tokens.append([start + t, start + y, start + x])
    return [token if frames else token[1:] for token in tokens]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.none() | st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(-3, 3),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_a_grid_is_walked_row_by_row(
    frames: int | None, rows: int, columns: int, merge: int, start: int, before: int, after: int
) -> None:
    got = grid(
        rows * merge,
        columns * merge,
        frames=frames,
        merge=merge,
        start=start,
        before=before,
        after=after,
    )
    tokens = looped(frames, rows * merge, columns * merge, merge, start)
    none = [[0] * len(tokens[0])]
    assert got.T.tolist() == before * none + tokens + after * none
    assert got.dtype == np.float64
    assert got.flags.writeable


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.none() | st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 2))
def test_centres_lie_between_minus_one_and_one(
    frames: int | None, rows: int, columns: int, merge: int
) -> None:
    height, width = rows * merge, columns * merge
    got = grid(height, width, frames=frames, merge=merge, centered=True, before=1)
    sides = ([frames] if frames else []) + [height, width]
    want = [
        [(2 * i + 1 - n) / n for i, n in zip(token, sides, strict=True)]
        for token in looped(frames, height, width, merge, 0)
    ]
    assert got.T.tolist() == [[0.0] * len(sides), *want]
    assert np.abs(got).max() < 1


def test_a_class_token_does_not_rotate() -> None:
    rope = rotary.RotaryEmbedding(24, axes=Axial([6, 6], axis_order=(1, 0)))
    x = X[..., :1, :].repeat(7, axis=-2)
    rotated = rope(x, positions=grid(2, 3, start=1, after=1))
    assert_array_equal(rotated[..., -1, :], x[..., -1, :])
    assert np.all(np.any(rotated[..., :-1, :] != x[..., :-1, :], axis=-1))


def test_the_merged_order_is_a_permutation_of_the_plain_one() -> None:
    rope = rotary.RotaryEmbedding(24, axes=Axial([6, 6]))
    plain, merged = grid(4, 6), grid(4, 6, merge=2)
    order = [plain.T.tolist().index(token) for token in merged.T.tolist()]
    assert sorted(order) == list(range(24))
    for one, other in zip(rope.tables(merged), rope.tables(plain), strict=True):
        assert_array_equal(one, other[order])


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Sections, Axial])
@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ([], ValueError, "got (), expected at least two axes"),
        ([12], ValueError, "got (12,), expected at least two axes"),
        ([4, 0, 8], ValueError, "got 0, expected a positive number"),
        ([-4, 8], ValueError, "got -4, expected a positive number"),
        ([4.0, 8], TypeError, "got 4.0, expected a whole number"),
        ([True, 8], TypeError, "got True, expected a whole number"),
        ([None, 8], TypeError, "got None, expected a whole number"),
        (["4", 8], TypeError, "got '4', expected a whole number"),
        ("48", TypeError, "got '48', expected whole numbers, one for each axis"),
        (12, TypeError, "got 12, expected whole numbers, one for each axis"),
        (None, TypeError, "got None, expected whole numbers, one for each axis"),
        (np.ones((2, 2), int), TypeError, "expected a whole number"),
    ],
)
def test_wrong_sizes_are_refused(
    kind: Any, sizes: Any, error: type[Exception], words: str, refused: Any
) -> None:
    with refused(error, "sizes", words):
        kind(sizes)


@pytest.mark.parametrize(
    ("kind", "wrong", "error", "name", "words"),
    [
        (Sections, {"order": "chunks"}, ValueError, "order", "got 'chunks', expected 'blocks' or"),
        (Sections, {"order": None}, ValueError, "order", "got None, expected 'blocks' or"),
        (Sections, {"order": "cycled"}, ValueError, "sizes", "got (4, 3, 5), expected sizes that"),
        (Sections, {"order": "first_axis_last"}, ValueError, "sizes", "got (4, 3, 5), expected eq"),
        (Axial, {"order": "first_axis_last"}, ValueError, "order", "expected 'blocks' or 'cycled'"),
        (Axial, {"order": "cycled"}, ValueError, "sizes", "got (4, 3, 5), expected equal sizes"),
        (Axial, {"frequencies": "dealt"}, ValueError, "sizes", "got (4, 3, 5), expected equal"),
        (
            Axial,
            {"frequencies": "shared"},
            ValueError,
            "frequencies",
            "got 'shared', expected 'own",
        ),
        (Axial, {"axis_order": (0, 1)}, ValueError, "axis_order", "got (0, 1), expected each of 0"),
        (
            Axial,
            {"axis_order": (0, 1, 1)},
            ValueError,
            "axis_order",
            "got (0, 1, 1), expected each",
        ),
        (Axial, {"axis_order": (1, 2, 3)}, ValueError, "axis_order", "each of 0 to 2 once"),
        (Axial, {"axis_order": (0, 1, -1)}, ValueError, "axis_order", "got (0, 1, -1), expected"),
        (Axial, {"axis_order": "012"}, TypeError, "axis_order", "got '012', expected whole"),
        (Axial, {"axis_order": 1}, TypeError, "axis_order", "got 1, expected whole numbers"),
        (
            Axial,
            {"axis_order": (0, True, 2)},
            TypeError,
            "axis_order",
            "got True, expected a whole",
        ),
        (Axial, {"axis_order": (0.0, 1, 2)}, TypeError, "axis_order", "got 0.0, expected a whole"),
        (
            Axial,
            {"split_features": 1},
            TypeError,
            "split_features",
            "got 1, expected True or False",
        ),
        (Axial, {"in_turns": None}, TypeError, "in_turns", "got None, expected True or False"),
    ],
)
def test_wrong_descriptions_are_refused(
    kind: Any, wrong: Any, error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        kind([4, 3, 5], **wrong)


def test_axes_in_turns_have_no_blocks_of_features(refused: Any) -> None:
    with refused(ValueError, "split_features", "got True, expected False"):
        Axial([4, 4], "cycled", split_features=True)


def test_sections_in_turns_need_room(refused: Any) -> None:
    with refused(ValueError, "sizes", "got (3, 3, 1), expected", "here only for (4, 2, 1)"):
        Sections([3, 3, 1], "cycled")
    assert Sections([4, 2, 1], "cycled").sizes == (4, 2, 1)


@pytest.mark.parametrize(
    ("more", "error", "name", "words"),
    [
        ({"axes": [4, 3, 5]}, TypeError, "axes", "got [4, 3, 5], expected rotary.axes.Sections"),
        ({"axes": Sections}, TypeError, "axes", "expected rotary.axes.Sections(...) or Axial(...)"),
        (
            {"axes": AXIAL},
            ValueError,
            "axes",
            "got sizes (4, 4), 8 pairs together, expected rotary",
        ),
        ({"axes": SECTIONS, "rotary_dim": 16}, ValueError, "axes", "expected rotary_dim/2 = 8"),
        ({"axes": SECTIONS, "xpos": rotary.XPos()}, ValueError, "xpos", "expected one of them"),
        ({"axes": SECTIONS, "inv_freq": [1.0] * 5}, ValueError, "inv_freq", "got 5 frequencies"),
    ],
)
def test_wrong_embeddings_are_refused(
    more: Any, error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        rotary.RotaryEmbedding(24, **more)


@pytest.mark.parametrize("frequency_dim", [6, 8, 10, 12, 48])
@pytest.mark.parametrize("axes", [Axial([4, 3, 5]), Axial([4, 4, 4], "cycled")], ids=str)
def test_frequency_dim_means_nothing_to_frequencies_of_their_own(
    axes: Any, frequency_dim: int, refused: Any
) -> None:
    with refused(ValueError, "frequency_dim", f"got {frequency_dim} beside axes", "expected 24"):
        rotary.RotaryEmbedding(24, axes=axes, frequency_dim=frequency_dim)


@pytest.mark.parametrize("axes", [SECTIONS, Axial([4, 4, 4], frequencies="dealt")], ids=str)
def test_frequency_dim_is_that_of_the_one_series(axes: Any) -> None:
    rope = rotary.RotaryEmbedding(24, axes=axes, frequency_dim=48)
    one = rotary.RotaryEmbedding(24, frequency_dim=48)
    assert sorted(rope.frequencies()) == sorted(one.frequencies())


def test_ntk_refuses_axes_of_one_pair(refused: Any) -> None:
    with refused(ValueError, "scaling", "NTK needs more than 2 features, got 2"):
        rotary.RotaryEmbedding(24, axes=Axial([1, 11]), scaling=scaling.NTK(2.0))


@pytest.mark.parametrize(
    "shape",
    [(2, 5), (4, 5), (2, 2, 5), (2, 1, 5), (3, 3, 5), (3, 2, 4), (4,), (3, 1), (3, 2, 5, 1)],
)
def test_positions_have_a_row_for_each_axis(library: Any, refused: Any, shape: Any) -> None:
    rope, x = rotary.RotaryEmbedding(24, axes=SECTIONS), library.array(X)
    words = (
        f"got shape {shape}, expected (5,) or (3, 5)",
        "(seq,), (axes, seq) or (axes, batch, seq)",
    )
    for where in (np.zeros(shape), library.array(np.zeros(shape))):
        with refused(ValueError, "positions", *words, unchanged=(x,)):
            rope(x, positions=where)
        with refused(ValueError, "positions", *words, unchanged=(x,)):
            rope.inverse(x, x, positions=where)


def test_tables_need_positions_for_each_axis(library: Any, refused: Any) -> None:
    rope, like = rotary.RotaryEmbedding(24, axes=SECTIONS), library.array(X)
    for shape in ((2, 5), (4, 5), (2, 3, 5), (5, 3)):
        for precision in ("exact", "float32"):
            with refused(ValueError, "positions", f"got shape {shape}, expected a first axis of 3"):
                rope.tables(np.zeros(shape), like=like, precision=precision)


@pytest.mark.parametrize(
    ("by", "error", "words"),
    [
        ([1, 2], ValueError, "got shape (2,), expected one number"),
        ([1, 2, 3, 4], ValueError, "got shape (4,), expected one number"),
        ([], ValueError, "got shape (0,), expected one number"),
        (np.ones((3, 1)), ValueError, "got shape (3, 1), expected one number"),
        ([[1, 2]] * 3, ValueError, "got shape (3, 2), expected one number"),
        ([1, float("nan"), 3], ValueError, "got NaN at index 1, expected finite numbers"),
        ([1, 2, 2.0**54], ValueError, "expected them within ±2^53"),
        ([True, False, True], TypeError, "got dtype bool"),
        (["1", "2", "3"], TypeError, "got dtype <U1"),
        ("123", TypeError, "got dtype <U3"),
        ([[1], [1, 2], 3], TypeError, "got list, expected numbers or an array of them"),
        (np.ones(3, np.float16), TypeError, "got dtype float16"),
    ],
)
def test_a_shift_is_one_number_or_one_for_each_axis(
    library: Any, refused: Any, by: Any, error: type[Exception], words: str
) -> None:
    rope, x = rotary.RotaryEmbedding(24, axes=SECTIONS), library.array(X)
    with refused(error, "by", words, unchanged=(x,)):
        rope.shift(x, by)


@pytest.mark.parametrize(
    ("blocks", "error", "words"),
    [
        ((4, 4), ValueError, "got (4, 4), expected numbers of pairs with a sum of 12"),
        ((), ValueError, "got (), expected numbers of pairs with a sum of 12"),
        ((4, 8, 0), ValueError, "got 0, expected a positive number"),
        ((16, -4), ValueError, "got -4, expected a positive number"),
        ((6.0, 6.0), TypeError, "got 6.0, expected a whole number"),
        ("66", TypeError, "got '66', expected whole numbers"),
        (12, TypeError, "got 12, expected whole numbers"),
    ],
)
def test_wrong_blocks_are_refused(
    library: Any, refused: Any, blocks: Any, error: type[Exception], words: str
) -> None:
    x, table = library.array(X), library.array(np.ones((5, 12), np.float32))
    for layout in ("half", "interleaved"):
        with refused(error, "blocks", words, unchanged=(x,)):
            rotary.rotate(x, table, table, layout=layout, blocks=blocks)


@pytest.mark.parametrize(
    ("wrong", "error", "name", "words"),
    [
        ({"height": 0}, ValueError, "height", "got 0, expected a positive number"),
        ({"width": 0}, ValueError, "width", "got 0, expected a positive number"),
        ({"width": -2}, ValueError, "width", "got -2, expected a positive number"),
        ({"frames": 0}, ValueError, "frames", "got 0, expected a positive number"),
        ({"height": 2.0}, TypeError, "height", "got 2.0, expected a whole number"),
        ({"width": True}, TypeError, "width", "got True, expected a whole number"),
        ({"frames": "2"}, TypeError, "frames", "got '2', expected a whole number"),
        ({"merge": 0}, ValueError, "merge", "got 0, expected a positive number"),
        ({"merge": 2.0}, TypeError, "merge", "got 2.0, expected a whole number"),
        ({"merge": 3}, ValueError, "height", "got 4, expected a multiple of merge = 3"),
        ({"merge": 4}, ValueError, "width", "got 6, expected a multiple of merge = 4"),
        ({"start": 0.5}, TypeError, "start", "got 0.5, expected a whole number"),
        ({"start": 2**53 - 5}, ValueError, "start", "expected positions within ±2^53"),
        ({"start": 2**70}, ValueError, "start", "expected positions within ±2^53"),
        ({"start": 1, "centered": True}, ValueError, "start", "got 1 beside centered=True"),
        ({"start": "1", "centered": True}, TypeError, "start", "got '1', expected a whole number"),
        ({"centered": "no"}, TypeError, "centered", "got 'no', expected True or False"),
        ({"before": -1}, ValueError, "before", "got -1, expected 0 or more"),
        ({"after": -1}, ValueError, "after", "got -1, expected 0 or more"),
        ({"after": 1.0}, TypeError, "after", "got 1.0, expected a whole number"),
    ],
)
def test_wrong_grids_are_refused(
    wrong: Any, error: type[Exception], name: str, words: str, refused: Any
) -> None:
    with refused(error, name, words):
        grid(**{"height": 4, "width": 6, **wrong})

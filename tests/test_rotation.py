"""Rotation and RotaryEmbedding against complex numbers: z → z·exp(i·position·ω), pair by pair.

The reference knows nothing of the library but its words: it is NumPy's complex128, its frequencies
are θ^(−2i/F) as `**` gives them.  Bits are the conformance suite's matter; here the formula is.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import rotary
from rotary.conformance import libraries
from rotary.conformance.subject import numpy_dtype
from rotary.tables import cache

EPS = np.finfo(np.float64).eps
LAYOUTS = ("half", "interleaved")
# head_dim, then what of it rotates
PARTS = {
    "whole": {"head_dim": 16},
    "leading": {"head_dim": 16, "rotary_dim": 6},
    "trailing": {"head_dim": 16, "rotary_dim": 6, "rotary_side": "trailing"},
    "odd": {"head_dim": 13, "rotary_dim": 4, "rotary_side": "trailing"},
    "frequency_dim": {"head_dim": 16, "rotary_dim": 6, "frequency_dim": 5},
    "supplied": {"head_dim": 16, "rotary_dim": 6, "inv_freq": [2.5, -0.25, 0.0]},
}
# shape, then the arguments that name its rows; a float64 array counts as positions
SHAPES = {
    "2d": ((5, 16), {}),
    "3d": ((2, 5, 16), {}),
    "4d": ((2, 3, 5, 16), {}),
    "5d": ((2, 3, 2, 5, 16), {}),
    "seq first": ((5, 2, 3, 16), {"seq_axis": 0}),
    "batch, seq, heads": ((2, 5, 3, 16), {"seq_axis": -3}),
    "packed": ((5, 3, 16), {"seq_axis": -3}),
    "packed, positions": ((5, 3, 16), {"seq_axis": -3, "positions": [0, 1, 0, 1, 2]}),
    "seq in the middle": ((2, 3, 5, 2, 16), {"seq_axis": 2, "offset": 3}),
    "one row": ((2, 3, 1, 16), {"offset": 7}),
    "no rows": ((2, 3, 0, 16), {}),
    "no rows at an offset": ((2, 0, 3, 16), {"offset": 300, "seq_axis": -3}),
    "no batch": ((0, 3, 5, 16), {}),
    "no batch, positions": ((0, 3, 5, 16), {"positions": np.zeros((0, 5))}),
    "no heads": ((2, 0, 5, 16), {}),
    "offset": ((2, 3, 5, 16), {"offset": 11}),
    "negative offset": ((2, 3, 5, 16), {"offset": -2}),
    "fractional offset": ((2, 3, 5, 16), {"offset": -0.25}),
    "offset a row": ((2, 3, 5, 16), {"offset": [4, 0.5]}),
    "offset a row, 3d": ((2, 5, 16), {"offset": np.array([4, -9])}),
    "offset a row, seq_axis": ((2, 5, 3, 16), {"offset": [4, 9], "seq_axis": -3}),
    "positions": ((2, 3, 5, 16), {"positions": [3, 1, -4, 1.5, 9]}),
    "positions of one row": ((2, 3, 5, 16), {"positions": [[3, 1, -4, 1.5, 9]]}),
    "positions a row": ((2, 3, 4, 16), {"positions": [[3, 1, -4, 1.5], [0, 0, 2, 1]]}),
    "positions a row, 3d": ((2, 4, 16), {"positions": [[3, 1, -4, 1.5], [0, 0, 2, 1]]}),
    "positions a row, seq_axis": (
        (2, 4, 3, 16),
        {"positions": np.array([[3, 1, 4, 1], [5, 9, 2, 6]]), "seq_axis": -3},
    ),
}


def make(part: str, layout: str = "half", **changed) -> rotary.RotaryEmbedding:
    return rotary.RotaryEmbedding(**{**PARTS[part], "layout": layout, **changed})


def random(*shape: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def pairs_of(x: np.ndarray, rope: rotary.RotaryEmbedding) -> np.ndarray:
    """Return the rotating features as complex numbers, (..., rotary_dim/2)."""
    start = 0 if rope.rotary_side == "leading" else rope.head_dim - rope.rotary_dim
    part = x[..., start : start + rope.rotary_dim].astype(np.float64)
    first, second = (
        np.split(part, 2, axis=-1) if rope.layout == "half" else (part[..., ::2], part[..., 1::2])
    )
    return first + 1j * second


def passing(x: np.ndarray, rope: rotary.RotaryEmbedding) -> np.ndarray:
    """Return the features that do not rotate."""
    r = rope.rotary_dim
    return x[..., r:] if rope.rotary_side == "leading" else x[..., : rope.head_dim - r]


def frequencies(rope: rotary.RotaryEmbedding) -> np.ndarray:
    if rope.inv_freq is not None:
        return np.array(rope.inv_freq)
    return rope.base ** (-np.arange(0, rope.rotary_dim, 2) / rope.frequency_dim)


def angles(rope, shape, *, positions=None, offset=0, seq_axis=-2) -> np.ndarray:
    """Angles that broadcast with pairs_of(x), for x of that shape."""
    seq_axis %= len(shape)
    if positions is None:
        positions = np.asarray(offset)[..., None] + np.arange(shape[seq_axis])
    positions = np.asarray(positions, np.float64)
    grid = [1] * len(shape)
    grid[seq_axis] = shape[seq_axis]
    if positions.ndim == 2:
        grid[0] = positions.shape[0]
    return positions.reshape(grid) * frequencies(rope)


LIBRARIES = pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array-api-strict"])
MUTABLE = pytest.mark.parametrize("name", ["numpy", "torch", "array-api-strict"])


def array(name: str, x: np.ndarray):
    """Return a copy of x as an array of the library of that name."""
    if name == "jax":
        return pytest.importorskip("jax").numpy.array(x)
    pytest.importorskip(name.replace("-", "_"))
    return libraries.load(name).from_host(x)


def enable_x64():
    return pytest.importorskip("jax").enable_x64(True)


def assert_rotated(y, x, rope, *, inverse=False, **where) -> None:
    """y is x rotated: within 8 half ulps of each pair's length, and 4 of the reference's angle."""
    angle = angles(rope, x.shape, **where)
    z = pairs_of(x, rope)
    expected = z * np.exp((-1j if inverse else 1j) * angle)
    error = np.abs(pairs_of(y, rope) - expected)
    unit = float(ml_dtypes.finfo(x.dtype).eps) / 2
    assert np.all(error <= (8 * unit + 4 * EPS * np.abs(angle)) * np.abs(z))
    assert_array_equal(passing(y, rope), passing(x, rope))
    assert y.shape == x.shape
    assert y.dtype == x.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", PARTS)
def test_a_call_multiplies_pairs_by_unit_complex_numbers(part, layout):
    rope = make(part, layout)
    x = random(2, 3, 7, rope.head_dim)
    assert_rotated(rope(x), x, rope)
    assert_rotated(rope(x, offset=40), x, rope, offset=40)
    assert_rotated(rope.inverse(x, offset=40), x, rope, offset=40, inverse=True)


@pytest.mark.parametrize("part", ["whole", "trailing"])
@pytest.mark.parametrize("shape", SHAPES)
def test_positions_meet_the_rows_they_name(shape, part):
    size, where = SHAPES[shape]
    rope, x = make(part), random(*size)
    assert_rotated(rope(x, **where), x, rope, **where)
    assert_rotated(rope.inverse(x, **where), x, rope, inverse=True, **where)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@LIBRARIES
def test_library_shape_and_dtype_are_kept(name, dtype):
    suite = libraries.load(name)
    if dtype not in suite.dtypes:
        pytest.skip(f"{name} has no {dtype}")
    rope = make("leading")
    x = random(2, 3, 5, 16, dtype="float32").astype(numpy_dtype(dtype))
    with enable_x64() if name == "jax" else nullcontext():
        given = array(name, x)
        y = rope(given)
    assert type(y) is type(given)
    assert y.dtype == given.dtype
    assert y.device == given.device
    assert_rotated(suite.to_host(y), x, rope)


@pytest.mark.parametrize("shape", ["4d", "batch, seq, heads", "packed", "offset a row", "2d"])
def test_keys_rotate_like_queries_whatever_their_heads(shape):
    size, where = SHAPES[shape]
    rope, q = make("leading"), random(*size)
    heads = {"4d": 1, "offset a row": 1, "batch, seq, heads": 2, "packed": 1}.get(shape)
    k = q if heads is None else q.take([0], axis=heads)
    q_rotated, k_rotated = rope(q, k, **where)
    assert_array_equal(q_rotated, rope(q, **where))
    assert_array_equal(k_rotated, rope(k, **where))
    assert k_rotated.shape == k.shape
    q_back, k_back = rope.inverse(q, k, **where)
    assert_array_equal(q_back, rope.inverse(q, **where))
    assert_array_equal(k_back, rope.inverse(k, **where))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", ["leading", "trailing"])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate_takes_any_tables(layout, side, inverse):
    x, angle = random(2, 3, 5, 16), random(5, 3)
    rope = rotary.RotaryEmbedding(16, rotary_dim=6, rotary_side=side, layout=layout)
    y = rotary.rotate(
        x, np.cos(angle), np.sin(angle), layout=layout, rotary_side=side, inverse=inverse
    )
    expected = pairs_of(x, rope) * np.exp((-1j if inverse else 1j) * angle)
    np.testing.assert_allclose(pairs_of(y, rope), expected, rtol=0, atol=16 * EPS)
    assert_array_equal(passing(y, rope), passing(x, rope))


@pytest.mark.parametrize(
    ("x_shape", "table_shape", "broadcast", "seq_axis"),
    [
        ((5, 8), (5, 4), (5, 4), -2),
        ((2, 5, 8), (5, 4), (5, 4), -2),
        ((2, 3, 5, 8), (5, 3), (5, 3), -2),
        ((2, 5, 3, 8), (5, 4), (1, 5, 1, 4), -3),
        ((5, 3, 8), (5, 4), (5, 1, 4), -3),
        ((2, 3, 5, 8), (2, 5, 4), (2, 1, 5, 4), -2),
        ((2, 3, 5, 8), (1, 5, 4), (1, 1, 5, 4), -2),
        ((2, 5, 3, 8), (2, 5, 4), (2, 5, 1, 4), -3),
        ((2, 2, 3, 5, 8), (2, 5, 4), (2, 1, 1, 5, 4), -2),
        ((2, 5, 8), (2, 5, 4), (2, 5, 4), -2),
        ((2, 5, 8), (1, 5, 4), (1, 5, 4), -2),
        ((2, 3, 5, 8), (1, 3, 5, 4), (1, 3, 5, 4), -2),
        ((2, 3, 5, 8), (2, 3, 5, 4), (2, 3, 5, 4), -2),
        ((2, 5, 3, 8), (1, 5, 3, 4), (1, 5, 3, 4), -3),
        ((5, 3, 8), (5, 3, 4), (5, 3, 4), -3),
        ((5, 3, 8), (5, 1, 4), (5, 1, 4), 0),
        ((2, 0, 5, 8), (5, 4), (5, 4), -2),
        ((2, 3, 0, 8), (0, 4), (0, 4), -2),
    ],
)
@LIBRARIES
def test_tables_of_every_rank_line_up_with_x(name, x_shape, table_shape, broadcast, seq_axis):
    x = random(*x_shape, dtype="float32")
    angle = random(*table_shape, dtype="float32")
    cos, sin = np.cos(angle), np.sin(angle)
    y = rotary.rotate(*(array(name, a) for a in (x, cos, sin)), seq_axis=seq_axis)
    pairs, c, s = table_shape[-1], cos.reshape(broadcast), sin.reshape(broadcast)
    x1, x2, rest = np.split(x, [pairs, 2 * pairs], axis=-1)
    assert_array_equal(
        np.asarray(y), np.concatenate([x1 * c - x2 * s, x1 * s + x2 * c, rest], axis=-1)
    )


def _transposed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def _strided(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, 2, axis=-1)[..., ::2]


def _reversed(x: np.ndarray) -> np.ndarray:
    return x[..., ::-1].copy()[..., ::-1]


def _unaligned(x: np.ndarray) -> np.ndarray:
    y = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def _fortran(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("view", [_transposed, _strided, _reversed, _unaligned, _fortran])
def test_memory_order_does_not_matter(view, layout):
    rope, x = make("trailing", layout), random(2, 3, 5, 16)
    assert not view(x).flags.c_contiguous or not view(x).flags.aligned
    assert_array_equal(rope(view(x), offset=3), rope(x, offset=3))


def test_torch_views_and_expanded_tensors_rotate_like_copies():
    torch = pytest.importorskip("torch")
    rope, x = make("leading"), torch.from_numpy(random(2, 5, 3, 16))
    for view in (x.transpose(1, 2), x[:, :, :1].expand(2, 5, 3, 16).transpose(1, 2)):
        assert torch.equal(rope(view), rope(view.contiguous()))


@pytest.mark.parametrize(
    ("shape", "where"),
    [(s, w) for s, w in SHAPES.values() if isinstance(w.get("positions"), np.ndarray)]
    + [((2, 3, 5, 16), {"offset": np.array([4.0, 0.5])})],
)
def test_arguments_are_left_as_they_are(shape, where):
    rope, q = make("leading"), random(*shape)
    k = q.copy()
    before = copy.deepcopy((q, k, where))
    for call in (rope, rope.inverse):
        call(q, k, **where)
    rope.shift(k, 3)
    for x, then in zip((q, k), before, strict=False):
        assert_array_equal(x, then)
    for name, value in where.items():
        assert_array_equal(value, before[2][name])


def test_a_result_shares_no_memory_with_its_argument():
    x = random(2, 3, 5, 16)
    for part in PARTS:
        rope = make(part)
        x = random(1, rope.head_dim)
        assert not np.shares_memory(rope(x), x)


@MUTABLE
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["whole", "leading", "trailing"])
@pytest.mark.parametrize("inverse", [False, True])
def test_out_may_be_x_itself_or_anotherarray(name, part, layout, inverse):
    rope, host = make(part, layout), random(2, 3, 5, 16)
    expected = (rope.inverse if inverse else rope)(host, offset=2)
    x = array(name, host)
    call = rope.inverse if inverse else rope
    fresh = array(name, np.full_like(host, np.nan))
    assert call(x, offset=2, out=fresh) is fresh
    assert_array_equal(np.asarray(fresh), expected)
    assert_array_equal(np.asarray(x), host)
    assert call(x, offset=2, out=x) is x
    assert_array_equal(np.asarray(x), expected)


@MUTABLE
def test_rotate_writes_to_out(name):
    host, angle = random(2, 3, 5, 8), random(5, 4)
    tables = np.cos(angle), np.sin(angle)
    x, cos, sin = (array(name, a) for a in (host, *tables))
    assert rotary.rotate(x, cos, sin, out=x) is x
    assert_array_equal(np.asarray(x), rotary.rotate(host, *tables))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_out_may_be_a_strided_view(name):
    rope, host = make("leading"), random(2, 3, 5, 16)
    whole = array(name, np.full((2, 5, 6, 16), 7.0))
    view = whole[:, :, ::2].swapaxes(1, 2)  # (2, 3, 5, 16)
    assert rope(array(name, host), out=view) is view
    assert_array_equal(np.asarray(view), rope(host))
    assert np.all(np.asarray(whole[:, :, 1::2]) == 7)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_out_may_overlap_x(name):
    rope, host = make("trailing"), random(2, 3, 6, 16)
    x = array(name, host)
    expected = rope(host[:, :, :-1])
    rope(x[:, :, :-1], out=x[:, :, 1:])
    assert_array_equal(np.asarray(x[:, :, 1:]), expected)
    assert_array_equal(np.asarray(x[:, :, 0]), host[:, :, 0])


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_out_may_be_the_queries_and_keys_of_a_packed_projection(name):
    rope, host = make("leading"), random(2, 6, 5, 16)
    qkv = array(name, host)
    q, k = qkv[:, :3], qkv[:, 3:4]
    returned = rope(q, k, offset=9, out=(q, k))
    assert returned[0] is q
    assert returned[1] is k
    assert_array_equal(np.asarray(qkv)[:, :4], rope(host[:, :4], offset=9))
    assert_array_equal(np.asarray(qkv)[:, 4:], host[:, 4:])


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_keys_that_are_a_view_of_the_queries_rotate_once(name):
    rope, host = make("whole"), random(2, 4, 5, 16)
    q = array(name, host)
    k = q[:, :2]
    rope(q, k, out=[q, k])
    assert_array_equal(np.asarray(q), rope(host))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_keys_alone_may_be_written_into_their_queries(name):
    rope, host = make("whole"), random(2, 4, 5, 16)
    q = array(name, host)
    rotated = array(name, np.zeros_like(host))
    rope(q, q[:, 2:], out=(rotated, q[:, :2]))
    assert_array_equal(np.asarray(rotated), rope(host))
    assert_array_equal(np.asarray(q)[:, :2], rope(host[:, 2:]))
    assert_array_equal(np.asarray(q)[:, 2:], host[:, 2:])


# Properties.  A unit is half an ulp of 1.  Tables and products err by one unit of themselves, and
# |x1·cos| + |x2·sin| is at most the pair's length; so is either sum, which errs by one unit more.
# In both coordinates together that makes 2√2 + 1, less than 4 units of the pair's length.

UNIT = EPS / 2
EMBEDDINGS = st.builds(
    rotary.RotaryEmbedding,
    st.just(12),
    base=st.sampled_from([1.5, 10_000, 500_000.0]),
    layout=st.sampled_from(LAYOUTS),
    rotary_dim=st.sampled_from([2, 6, 12]),
    rotary_side=st.sampled_from(["leading", "trailing"]),
)
WHOLE = st.integers(-(2**52), 2**52)
SEEDS = st.integers(0, 2**32 - 1)
FRACTIONAL = st.floats(-(2.0**20), 2.0**20)


def property_test(test):
    return settings(max_examples=40, deadline=None)(test)


def vectors(seed: int, *shape: int) -> np.ndarray:
    """Return normal numbers over many magnitudes."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * 2.0 ** rng.integers(-30, 31, shape)


def assert_pairs_close(y, x, rope, units: float) -> None:
    a, b = pairs_of(y, rope), pairs_of(x, rope)
    assert np.all(np.abs(a - b) <= units * UNIT * np.abs(b))
    assert_array_equal(passing(y, rope), passing(x, rope))


def score_bound(x, y, rope, units: float) -> float:
    """Bound the difference of two dot products of x and y, rotated in two ways.

    Each errs by `units` of Σ‖x_pair‖‖y_pair‖, which also bounds Σ|terms|/√2, and by 12 units of
    Σ|terms| for 12 products and their sum.
    """
    scale = (np.abs(pairs_of(x, rope)) * np.abs(pairs_of(y, rope))).sum()
    scale += np.abs(passing(x, rope) * passing(y, rope)).sum()
    return float(2 * (units + 12 * np.sqrt(2)) * UNIT * scale)


@property_test
@given(EMBEDDINGS, SEEDS, st.one_of(WHOLE, FRACTIONAL))
def test_inverse_undoes_the_call(rope, seed, offset):
    x = vectors(seed, 2, 3, 12)
    assert_pairs_close(rope.inverse(rope(x, offset=offset), offset=offset), x, rope, 8)
    assert_pairs_close(rope(rope.inverse(x, offset=offset), offset=offset), x, rope, 8)


@property_test
@given(EMBEDDINGS, SEEDS, st.one_of(WHOLE, FRACTIONAL))
def test_inverse_is_the_adjoint(rope, seed, offset):
    """⟨Rx, y⟩ = ⟨x, Rᵀy⟩."""
    x, y = vectors(seed, 2, 1, 12)
    left, right = rope(x, offset=offset) * y, x * rope.inverse(y, offset=offset)
    assert abs(left.sum() - right.sum()) <= score_bound(x, y, rope, 4)


@property_test
@given(EMBEDDINGS, SEEDS, st.one_of(WHOLE, FRACTIONAL))
def test_pairs_keep_their_length(rope, seed, offset):
    x = vectors(seed, 3, 12)
    before, after = (np.abs(pairs_of(a, rope)) for a in (x, rope(x, offset=offset)))
    assert np.all(np.abs(after - before) <= 8 * UNIT * before)  # half of them for both hypots


@property_test
@given(EMBEDDINGS, SEEDS, WHOLE, st.integers(-1000, 1000), WHOLE)
def test_scores_depend_on_the_distance_alone(rope, seed, position, distance, moved):
    """q_m·k_{m+d}, at m and anywhere else within ±2^53: the angles are reduced exactly."""
    q, k = vectors(seed, 2, 1, 12)
    here, there = (
        (rope(q, offset=p) * rope(k, offset=p + distance)).sum() for p in (position, moved)
    )
    assert abs(here - there) <= score_bound(q, k, rope, 8)


@property_test
@given(EMBEDDINGS, SEEDS, WHOLE, st.integers(-(2**51), 2**51))
def test_shift_moves_rotated_keys_to_their_new_positions(rope, seed, offset, by):
    """Two rotations against one: within 12 units, 6 ulps of the pair's length."""
    k = vectors(seed, 2, 3, 12)
    moved = rope.shift(rope(k, offset=offset), by)
    assert_pairs_close(moved, rope(k, offset=offset + by), rope, 12)


@pytest.mark.parametrize("by", [-2.5, 0.125, np.float32(3.5), np.int64(-4)])
@pytest.mark.parametrize(
    ("shape", "seq_axis"), [((5, 16), -2), ((2, 3, 5, 16), -2), ((2, 5, 3, 16), -3)]
)
def test_shift_moves_all_rows_alike(shape, seq_axis, by):
    rope, k = make("trailing"), random(*shape)
    moved = rope.shift(rope(k, seq_axis=seq_axis), by, seq_axis=seq_axis)
    assert_pairs_close(moved, rope(k, offset=float(by), seq_axis=seq_axis), rope, 12)
    assert moved.dtype == k.dtype


def test_a_shift_by_nothing_changes_nothing():
    k = random(2, 3, 5, 16)
    assert_array_equal(make("leading").shift(k, 0), k)


@property_test
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(sorted(PARTS)),
    st.lists(st.integers(0, 3), min_size=0, max_size=3),
    st.integers(0, 4),
    st.data(),
)
def test_any_shape_and_any_sequence_axis_rotates(layout, part, leading, seq, data):
    rope = make(part, layout)
    axis = data.draw(st.integers(0, len(leading)))
    shape = (*leading[:axis], seq, *leading[axis:], rope.head_dim)
    seq_axis = data.draw(st.sampled_from([axis, axis - len(shape)]))
    numbers = st.lists(st.floats(-64, 64), min_size=seq, max_size=seq)
    where = data.draw(
        st.sampled_from([{}, {"offset": 2}, {"offset": -0.5}])
        | st.builds(lambda p: {"positions": p}, numbers)
    )
    x = random(*shape)
    assert_rotated(rope(x, seq_axis=seq_axis, **where), x, rope, seq_axis=seq_axis, **where)


# The description.


def test_equal_numbers_make_equal_embeddings():
    a = rotary.RotaryEmbedding(64)
    same = [
        rotary.RotaryEmbedding(64, base=10_000),
        rotary.RotaryEmbedding(np.int64(64), base=np.float32(10_000)),
        rotary.RotaryEmbedding(64, rotary_dim=64, frequency_dim=64, rotary_side="leading"),
    ]
    assert all(a == b and hash(a) == hash(b) for b in same)
    assert len({a, *same}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 66, "rotary_dim": 64},
        {"base": 10_001},
        {"layout": "interleaved"},
        {"rotary_dim": 32},
        {"rotary_side": "trailing"},
        {"frequency_dim": 65},
        {"inv_freq": [0.5] * 32},
    ],
)
def test_other_numbers_make_other_embeddings(change):
    assert rotary.RotaryEmbedding(64) != rotary.RotaryEmbedding(**{"head_dim": 64, **change})


def test_supplied_frequencies_become_a_tuple_of_floats():
    made = [
        rotary.RotaryEmbedding(6, inv_freq=given)
        for given in ([1, 0.5, 0.25], (1.0, 0.5, 0.25), np.array([1, 0.5, 0.25], np.float32))
    ]
    made.append(rotary.RotaryEmbedding(6, inv_freq=iter([1, 0.5, 0.25])))
    assert len(set(made)) == 1
    for rope in made:
        assert rope.inv_freq == (1.0, 0.5, 0.25)
        assert all(type(w) is float for w in rope.inv_freq)


@LIBRARIES
def test_frequencies_of_any_library_may_be_supplied(name):
    rope = rotary.RotaryEmbedding(4, inv_freq=array(name, np.array([1, 0.5], np.float32)))
    assert rope == rotary.RotaryEmbedding(4, inv_freq=[1, 0.5])


def test_numbers_are_kept_as_plain_python_numbers():
    rope = rotary.RotaryEmbedding(np.int32(8), base=5, rotary_dim=np.int64(4))
    assert [type(n) for n in (rope.head_dim, rope.rotary_dim, rope.frequency_dim)] == [int] * 3
    assert type(rope.base) is float
    assert repr(rope).startswith("RotaryEmbedding(head_dim=8, base=5.0, layout='half', rotary_dim=")


@pytest.mark.parametrize("part", PARTS)
def test_an_embedding_reads_back_from_its_repr(part):
    rope = make(part)
    assert eval(repr(rope), {"RotaryEmbedding": rotary.RotaryEmbedding}) == rope


@pytest.mark.parametrize("field", ["head_dim", "base", "layout", "anything"])
def test_an_embedding_is_frozen(field):
    rope = make("whole")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rope, field, 3)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda rope: pickle.loads(pickle.dumps(rope)), dataclasses.replace],
)
def test_copies_are_equal_and_rotate_alike(part, duplicate):
    rope = make(part)
    twin = duplicate(rope)
    x = random(3, rope.head_dim)
    assert twin == rope
    assert {rope: "value"}[twin] == "value"
    assert_array_equal(twin(x), rope(x))


def test_replace_changes_what_it_names():
    rope = dataclasses.replace(rotary.RotaryEmbedding(8), base=100, layout="interleaved")
    assert rope == rotary.RotaryEmbedding(8, base=100, layout="interleaved")
    x = random(3, 8)
    assert_array_equal(rope(x), rotary.RotaryEmbedding(8, base=100, layout="interleaved")(x))


def test_an_embedding_is_a_static_argument_of_jit():
    jax = pytest.importorskip("jax")
    traced = []

    def rotate(rope, x):
        traced.append(rope)
        return rope(x)

    compiled = jax.jit(rotate, static_argnums=0)
    x = random(2, 3, 8, dtype="float32")
    for layout in (*LAYOUTS, *LAYOUTS):
        rope = rotary.RotaryEmbedding(8, layout=layout)
        assert_array_equal(np.asarray(compiled(rope, x)), rope(x))
    assert len(traced) == 2  # equal embeddings share one program


@pytest.mark.parametrize("part", PARTS)
def test_frequencies_are_the_formula(part):
    rope = make(part)
    np.testing.assert_allclose(rope.frequencies(), frequencies(rope), rtol=4 * EPS, atol=0)
    assert rope.frequencies().dtype == np.float64
    assert rope.attention_factor() == 1.0


# No history.


def _some_calls(rope: rotary.RotaryEmbedding, x: np.ndarray) -> list[np.ndarray]:
    return [
        rope(x),
        rope(x, offset=255),
        rope(x, offset=-0.5),
        rope(x, positions=[3, 1, 2, 0, 9]),
        rope.shift(x, 4),
        *rope.tables(range(250, 260)),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_do_not_depend_on_what_was_called_before(dtype):
    rope, x = make("leading"), random(2, 3, 5, 16, dtype=dtype)
    cache.clear()
    first = _some_calls(rope, x)
    for part in PARTS:
        for base in {10_000.0, 50.0} if part != "supplied" else {10_000.0}:
            other = make(part, base=base)
            _some_calls(other, random(2, 3, 5, other.head_dim, dtype=dtype))
            _some_calls(other, random(2, 3, 5, other.head_dim, dtype="float32"))
    rope(random(2, 3, 700, 16, dtype=dtype))
    again = _some_calls(rope, x)
    cache.clear()
    fresh = _some_calls(rope, x)
    for results in zip(first, again, fresh, strict=True):
        for result in results[1:]:
            assert_array_equal(result, results[0])


def test_positions_are_read_at_every_call():
    rope, x = make("whole"), random(5, 16)
    positions = np.array([5.0, 3.0, 1.0, 2.0, 0.0])
    before = rope(x, positions=positions)
    positions += 1
    assert_rotated(rope(x, positions=positions), x, rope, positions=positions)
    assert_rotated(before, x, rope, positions=positions - 1)


@MUTABLE
def test_writing_to_a_returned_table_changes_no_later_result(name):
    rope, x = make("whole"), array(name, random(4, 16, dtype="float32"))
    expected = np.asarray(rope(x)).copy()
    for positions in (range(4), range(256), [3.5, 1]):
        for table in rope.tables(positions, like=x):
            table[...] = 9.0
    assert_array_equal(np.asarray(rope(x)), expected)

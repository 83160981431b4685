"""Several position axes: which turns which pair, text to the bit, grids, errors."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

import rotary
from rotary import scaling, tables
from rotary.axes import Axial, Sections, grid
from rotary.conformance import axes_oracle, oracle
from rotary.frequencies import Frequencies

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 5, 24)).astype(np.float32)  # batch, heads, seq, head_dim
# Each rounds tables, products and sums of a pair: 4 units of its length.
TWO_ROTATIONS = 2 * 4 * 2.0**-24 * 2**0.5 * float(np.abs(X).max())
ROWS = RNG.integers(0, 10**6, (3, 2, 5)).astype(float)  # axes, batch, seq
SECTIONS = [
    Sections([4, 3, 5]),
    Sections([4, 4, 4], order="cycled"),
    Sections([6, 3, 3], order="first_axis_last"),
]
AXIAL = [
    Axial([2, 6, 4]),
    Axial([2, 6, 4], axis_order=(2, 0, 1)),
    Axial([4, 4, 4], order="cycled"),
    Axial([4, 4, 4], order="cycled", axis_order=(1, 2, 0)),
    Axial([2, 6, 4], axis_order=(1, 0, 2), split_features=True),
]
DEALT = [
    Axial([4, 4, 4], frequencies="dealt"),
    Axial([4, 4, 4], frequencies="dealt", axis_order=(1, 2, 0), split_features=True),
    Axial([4, 4, 4], "cycled", (2, 1, 0), "dealt"),
]
IN_TURNS = Axial([4, 4, 4], in_turns=True)
EVERY = [*SECTIONS, *AXIAL, *DEALT, IN_TURNS]

every = pytest.mark.parametrize("axes", EVERY, ids=str)
sections = pytest.mark.parametrize("axes", SECTIONS, ids=lambda axes: axes.order)


def embedding(axes: Any, **more: Any) -> rotary.RotaryEmbedding:
    return rotary.RotaryEmbedding(24, axes=axes, **more)


def host(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def same(got: Any, want: Any) -> None:
    for one, other in zip(*(y if isinstance(y, tuple) else (y,) for y in (got, want)), strict=True):
        assert host(one).dtype == host(other).dtype
        assert_array_equal(host(one), host(other))


def by_pair(axes: Any, positions: np.ndarray) -> list[np.ndarray]:
    """Return for every pair the positions that turn it."""
    return [positions[axis] for axis in axes.axis_of_pair]


# -- which axis turns which pair -----------------------------------------------------------------


@st.composite
def described(draw: Any) -> Any:
    """Any description with sizes that have a place."""
    count, n = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    sizes = [draw(st.integers(1, 6)) for _ in range(count)]
    order = draw(st.sampled_from(["blocks", "cycled", "first_axis_last"]))
    if draw(st.booleans()):
        if order == "first_axis_last":
            sizes[1:] = [n] * (count - 1)
        if order == "cycled":  # the last turn of each axis has to come before the end
            last = max(axis + count * (size - 1) for axis, size in enumerate(sizes[1:], 1))
            sizes[0] += max(0, last + 1 - sum(sizes))
        return Sections(sizes, order)
    order = "blocks" if order == "first_axis_last" else order
    dealt = draw(st.booleans())
    return Axial(
        [n] * count if dealt or order == "cycled" else sizes,
        order,
        draw(st.permutations(range(count))),
        "dealt" if dealt else "own",
        order == "blocks" and draw(st.booleans()),
        draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(described(), st.sampled_from([10_000.0, 100.0, 5e5]))
def test_axes_and_frequencies_of_pairs_are_those_of_the_oracle(axes: Any, base: float) -> None:
    rope = rotary.RotaryEmbedding(2 * axes.pairs, base=base, axes=axes)
    pairs = axes_oracle.pairs(type(axes).__name__, vars(axes), 2 * axes.pairs)
    assert list(axes.axis_of_pair) == [axis for axis, _, _ in pairs]
    with mpmath.workprec(200):
        unit = 2 * mpmath.pi if getattr(axes, "in_turns", False) else 1
        omega = [unit * mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / n) for _, i, n in pairs]
        assert rope.frequencies().tolist() == [float(w) for w in omega]
    assert Frequencies.from_token(rope._frequencies.token) == rope._frequencies
    assert [axes.axis_of_pair.count(axis) for axis in range(axes.count)] == list(axes.sizes)
    blocks = axes_oracle.blocks(vars(axes))
    assert axes.blocks == (None if blocks is None else tuple(blocks))


def test_the_orders_are_those_of_the_models() -> None:
    assert Sections([1, 2, 3]).axis_of_pair == (0, 1, 1, 2, 2, 2)
    assert Sections([5, 2, 1], "cycled").axis_of_pair == (0, 1, 2, 0, 1, 0, 0, 0)
    assert Sections([3, 2, 2], "first_axis_last").axis_of_pair == (1, 2, 1, 2, 0, 0, 0)
    assert Axial([1, 3], axis_order=(1, 0)).axis_of_pair == (1, 1, 1, 0)
    assert Axial([2, 2], "cycled", (1, 0)).axis_of_pair == (1, 0, 1, 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=3))
def test_cycled_sections_are_those_of_qwen3_vl_or_refused(sizes: list[int]) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    theirs = module.Qwen3VLTextRotaryEmbedding.recomposition_frequencies
    pairs = sum(sizes)
    by_axis = torch.arange(3.0)[:, None].repeat(1, pairs)
    told = theirs(SimpleNamespace(mrope_section=sizes), by_axis)[:pairs].tolist()
    if [told.count(axis) for axis in range(3)] == sizes:
        assert list(Sections(sizes, "cycled").axis_of_pair) == told
    else:
        with pytest.raises(ValueError, match=r"^sizes: got .* expected sizes that leave room"):
            Sections(sizes, "cycled")


# -- text ----------------------------------------------------------------------------------------

TEXT: list[dict[str, Any]] = [
    {},
    {"offset": 7},
    {"offset": -2.5},
    {"offset": [5, 1000]},
    {"positions": [3, 1, 4, 1, 5]},
    {"positions": ROWS[0, :1]},
    {"positions": ROWS[:1]},
]


def as_one_axis(call: dict[str, Any]) -> dict[str, Any]:
    """Return the same call of an embedding without axes."""
    where = call.get("positions")
    return {"positions": where[0]} if np.ndim(where) > 1 else call


@sections
def test_text_equals_one_axis_to_the_bit(library: Any, axes: Any) -> None:
    x = library.array(X)
    several, one = embedding(axes), embedding(None)
    for call in TEXT:
        same(several(x, **call), one(x, **as_one_axis(call)))
    for where in (np.arange(5), ROWS[:1], np.broadcast_to(ROWS[0], (3, 2, 5)).copy()):
        own, text = library.array(where), library.array(where[0] if where.ndim == 3 else where)
        same(several.inverse(x, positions=own), one.inverse(x, positions=text))
    same(several.shift(x, -9), one.shift(x, -9))
    same(several.tables(np.arange(600) - 300, like=x), one.tables(np.arange(600) - 300, like=x))


# -- several axes are several small embeddings ---------------------------------------------------


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("rule", [None, scaling.YaRN(8.0, 4096), scaling.Linear(3.0)])
@pytest.mark.parametrize("axes", AXIAL, ids=str)
def test_axial_is_an_embedding_for_each_axis_to_the_bit(axes: Any, rule: Any, layout: str) -> None:
    got = embedding(axes, scaling=rule, layout=layout, base=500.0)(X, positions=ROWS)
    first, second = oracle.pair_indices(24, 24, layout, "leading", axes_oracle.blocks(vars(axes)))
    for axis, size in enumerate(axes.sizes):
        pairs = [i for i, a in enumerate(axes.axis_of_pair) if a == axis]
        features = [*first[pairs], *second[pairs]]
        own = rotary.RotaryEmbedding(2 * size, scaling=rule, base=500.0)
        same(got[..., features], own(X[..., features], positions=ROWS[axis]))


@pytest.mark.parametrize("axes", AXIAL[:2] + AXIAL[-1:], ids=str)
def test_split_features_are_blocks_that_rotate_apart(library: Any, axes: Any) -> None:
    split = dataclasses.replace(axes, split_features=True)
    x = library.array(X)
    got, start = host(embedding(split)(x, positions=ROWS)), 0
    for axis in axes.axis_order:
        features = slice(start, start + 2 * axes.sizes[axis])
        own = rotary.RotaryEmbedding(2 * axes.sizes[axis])
        same(got[..., features], own(X[..., features], positions=ROWS[axis]))
        start = features.stop
    cos, sin = embedding(axes).tables(ROWS, like=x)
    same(rotary.rotate(x, cos, sin, blocks=split.blocks), got)
    same(
        rotary.rotate(library.array(got), cos, sin, blocks=split.blocks, inverse=True),
        embedding(split).inverse(library.array(got), positions=ROWS),
    )


@pytest.mark.parametrize("axes", DEALT, ids=str)
def test_dealt_frequencies_are_those_of_the_one_series(axes: Any) -> None:
    got = embedding(axes).tables(ROWS)
    for rank, axis in enumerate(axes.axis_order):
        pairs = [i for i, a in enumerate(axes.axis_of_pair) if a == axis]
        full = embedding(None).tables(ROWS[axis])
        same(tuple(t[..., pairs] for t in got), tuple(t[..., rank::3] for t in full))


def test_pixtral_turns_rows_by_even_frequencies_and_columns_by_odd() -> None:
    rope = rotary.RotaryEmbedding(16, axes=Axial([4, 4], frequencies="dealt"))
    assert_array_equal(rope.frequencies()[:4], rotary.RotaryEmbedding(16).frequencies()[0::2])
    assert_array_equal(rope.frequencies()[4:], rotary.RotaryEmbedding(16).frequencies()[1::2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_quarter_of_a_turn_is_exact(dtype: str) -> None:
    for base in (100.0, 10_000.0, 3.0):
        where = np.array([0.25, 0.5, -0.25, 1.0, 10**6 + 0.75])
        cos, sin = embedding(IN_TURNS, base=base).tables(np.tile(where, (3, 1)), dtype=dtype)
        for axis in range(3):
            assert cos[:, 4 * axis].tolist() == [0, -1, 0, 1, 0]
            assert sin[:, 4 * axis].tolist() == [1, 0, -1, 0, -1]


def test_turns_are_exactly_two_pi_radians() -> None:
    where = RNG.uniform(-1, 1, (3, 40))
    cos, sin = embedding(IN_TURNS, base=100.0).tables(where)
    with mpmath.workprec(200):
        for n, pair in np.ndindex(40, 12):
            angle = (
                2 * mpmath.mpf(where[pair // 4, n]) * mpmath.mpf(100) ** (-mpmath.mpf(pair % 4) / 4)
            )
            assert cos[n, pair] == oracle.round_to_bits(mpmath.cospi(angle), 24)
            assert sin[n, pair] == oracle.round_to_bits(mpmath.sinpi(angle), 24)


RULES = [
    scaling.Linear(4.0),
    scaling.NTK(8.0),
    scaling.DynamicNTK(4.0, 2048),
    scaling.YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=0.707),
    scaling.LongRoPE([1.25] * 12, [1.0 + i for i in range(12)], 4096, factor=32.0),
    scaling.Llama3(8.0, 1.0, 4.0, 8192),
    scaling.Proportional(0.25, 2.0),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@sections
def test_sections_are_scaled_as_one_axis(axes: Any, rule: Any) -> None:
    several, one = embedding(axes, scaling=rule), embedding(None, scaling=rule)
    for seq_len in (1000, 10**6):
        got = several.tables(ROWS, seq_len=seq_len)
        for pair, where in enumerate(by_pair(axes, ROWS)):
            want = one.tables(where, seq_len=seq_len)
            same(tuple(t[..., pair] for t in got), tuple(t[..., pair] for t in want))


def test_without_a_length_the_largest_position_of_all_axes_decides() -> None:
    where = np.zeros((3, 5))
    where[1, 2] = 9000
    for axes in (SECTIONS[0], AXIAL[0]):
        rope = embedding(axes, scaling=scaling.DynamicNTK(4.0, 2048), base=100.0)
        same(rope(X, positions=where), rope(X, positions=where, seq_len=9001))
        assert np.any(rope(X, positions=where) != rope(X, positions=where, seq_len=9002))
        moved = rope(X, positions=where, seq_len=9001)
        same(
            rope.shift(X, [0, 0, 3], seq_len=9001),
            rope(X, positions=[[0] * 5, [0] * 5, [3] * 5], seq_len=9001),
        )
        assert np.any(moved != rope.shift(X, [0, 0, 3], seq_len=9001))


def test_longrope_has_a_factor_for_each_pair_of_a_series(refused: Any) -> None:
    def rule(n: int) -> scaling.LongRoPE:
        return scaling.LongRoPE([2.0] * n, [4.0] * n, 100)

    rope = embedding(Axial([4, 4, 4]), scaling=rule(4))
    assert_array_equal(rope.frequencies(101)[4:8], rotary.RotaryEmbedding(8).frequencies() / 4)
    for axes, n in ((Axial([4, 4, 4]), 12), (SECTIONS[0], 4), (DEALT[0], 4), (AXIAL[0], 2)):
        with refused(ValueError, "short_factor", f"got {n} numbers"):
            embedding(axes, scaling=rule(n))


# -- the call ------------------------------------------------------------------------------------


@every
def test_height_and_width_are_two(axes: Any) -> None:
    where = grid(2, 3, frames=2)
    x = np.ones((12, 24), np.float32)
    rotated = embedding(axes)(x, positions=where)
    for one, other in itertools.combinations(range(3), 2):
        swapped = where.copy()
        swapped[[one, other]] = where[[other, one]]
        assert np.any(embedding(axes)(x, positions=swapped) != rotated)
    # A row further down moves the pairs of height alone.
    moved = embedding(axes).tables(where + np.array([[0], [1], [0]]))[0]
    turned = np.any(moved != embedding(axes).tables(where)[0], axis=0)
    if not getattr(axes, "in_turns", False):  # where a whole turn leads back
        assert_array_equal(turned, np.array(axes.axis_of_pair) == 1)


@every
def test_a_shift_adds_to_each_axis(library: Any, axes: Any) -> None:
    rope, by = embedding(axes), [3, -200.5, 7]
    rows = np.broadcast_to(np.array(by)[:, None], (3, 5))
    x = library.array(X)
    for kind in (list, np.array, library.array):
        same(rope.shift(x, kind(by)), rope(x, positions=rows))
    where = ROWS % 1000
    moved = host(rope.shift(rope(x, positions=where), by))
    want = host(rope(x, positions=where + np.array(by)[:, None, None]))
    np.testing.assert_allclose(moved, want, rtol=0, atol=TWO_ROTATIONS)


@every
def test_the_inverse_takes_it_out(library: Any, axes: Any) -> None:
    rope = embedding(axes, scaling=scaling.YaRN(8.0, 4096))
    x = library.array(X)
    back = host(rope.inverse(rope(x, positions=ROWS), positions=ROWS))
    np.testing.assert_allclose(back, X, rtol=0, atol=TWO_ROTATIONS)


def test_queries_and_fewer_keys_rotate_as_each_alone(library: Any) -> None:
    rope, q, k = embedding(AXIAL[-1]), library.array(X), library.array(X[:, :1].copy())
    for where in (ROWS, ROWS[:, :1], ROWS[:, 0]):
        same(rope(q, k, positions=where), (rope(q, positions=where), rope(k, positions=where)))
        same(rope(q, positions=where), embedding(AXIAL[-1])(X, positions=where))


def test_the_seq_axis_may_stand_before_the_heads(library: Any) -> None:
    rope = embedding(SECTIONS[0])
    want = rope(X, positions=ROWS)
    turned = library.array(np.swapaxes(X, 1, 2).copy())
    same(np.swapaxes(host(rope(turned, positions=ROWS, seq_axis=-3)), 1, 2), want)
    packed, total = library.array(np.swapaxes(X, 1, 2).reshape(10, 3, 24)), ROWS.reshape(3, 10)
    got = rope(packed, packed[:, :1, :], positions=total, seq_axis=-3)
    same(host(got[0]), np.swapaxes(want, 1, 2).reshape(10, 3, 24))
    same(host(got[1]), np.swapaxes(want, 1, 2).reshape(10, 3, 24)[:, :1])


@every
def test_tables_take_every_shape(library: Any, axes: Any) -> None:
    rope, like = embedding(axes), library.array(X)
    for shape in [(), (7,), (3, 7), (1, 7), (3, 2, 7), (1, 2, 7), (3, 2, 2, 3), (3, 0), (3, 2, 0)]:
        where = RNG.uniform(-1e4, 1e4, shape)
        for got in (rope.tables(where, like=like), rope.tables(library.array(where), like=like)):
            for table in got:
                assert table.shape == (*(shape[1:] if len(shape) > 1 else shape), 12)
            same(got, rope.tables(where))
        if len(shape) > 0:
            equal = where if len(shape) > 1 else np.stack([where] * 3)
            same(rope.tables(np.broadcast_to(equal, (3, *equal.shape[1:]))), rope.tables(where))


def test_no_tokens_are_no_error(library: Any) -> None:
    rope = embedding(SECTIONS[0])
    for shape, where in (((2, 3, 0, 24), (3, 2, 0)), ((0, 24), (3, 0)), ((0, 3, 5, 24), (3, 0, 5))):
        x = library.array(np.ones(shape, np.float32))
        assert rope(x, positions=np.zeros(where)).shape == shape


@every
def test_the_float32_procedure_follows_each_axis(axes: Any) -> None:
    where = ROWS % 500
    got = embedding(axes).tables(where, precision="float32")
    if getattr(axes, "in_turns", False):
        where = (np.float32(2 * np.pi) * where.astype(np.float32)).astype(float)
    pairs = axes_oracle.pairs(type(axes).__name__, vars(axes), 24)
    for pair, (axis, numerator, denominator) in enumerate(pairs):
        one = rotary.RotaryEmbedding(denominator).tables(where[axis], precision="float32")
        same(tuple(t[..., pair] for t in got), tuple(t[..., numerator] for t in one))


def test_scaling_does_not_change_what_the_float32_procedure_calls_a_turn() -> None:
    where = RNG.uniform(-1, 1, (3, 9))
    for more in ({"scaling": scaling.Linear(1.0)}, {"inv_freq": [1.0] * 12}):
        got = embedding(IN_TURNS, **more).tables(where, precision="float32")
        want = embedding(IN_TURNS, **more).tables(where)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array_api_strict"])
def test_long_calls_in_pieces_give_the_bits_of_one(name: str, monkeypatch: Any) -> None:
    xp = pytest.importorskip({"jax": "jax.numpy"}.get(name, name))
    rope, q = embedding(AXIAL[-1]), np.repeat(X, 4, axis=2)
    rng = np.random.default_rng(1)
    given = [rng.uniform(0, 99, shape) for shape in ((3, 2, 20), (3, 1, 20), (3, 20), (1, 2, 20))]
    whole = [rope(q, q[:, :1], positions=where) for where in given]
    monkeypatch.setattr(tables, "PIECE_BYTES", 2 * 12 * 4 * 2 * 7)
    monkeypatch.setattr("rotary.embedding._prepared", {})  # which knows what is long
    made = []
    right = tables.evaluate
    monkeypatch.setattr(tables, "evaluate", lambda *a: made.append(a[1].shape) or right(*a))
    library_q, library_k = xp.asarray(q), xp.asarray(q[:, :1].copy())
    for where, want in zip(given, whole, strict=True):
        same(rope(library_q, library_k, positions=where), want)
    assert {(3, 2, 7), (3, 1, 14), (3, 14), (1, 2, 7)} <= set(made)


def test_descriptions_of_equal_sizes_do_not_share_tables() -> None:
    base = Sections([4, 4, 4])
    others = [dataclasses.replace(base, order=order) for order in ("cycled", "first_axis_last")]
    axial = [
        Axial([4, 4, 4], order, axis_order, frequencies, False, turns)
        for order in ("blocks", "cycled")
        for axis_order in ((0, 1, 2), (1, 0, 2))
        for frequencies in ("own", "dealt")
        for turns in (False, True)
    ]
    ropes = [embedding(axes) for axes in [None, base, *others, *axial]]
    calls = [{"positions": ROWS[:, 0] / 7}, {"positions": ROWS[0, 0] / 7}, {"offset": 3}]
    for call in calls:
        one_axis = "positions" not in call or call["positions"].ndim == 1
        used = [r for r in ropes if r.axes is not None or one_axis]
        together = [rope(X, **call) for rope in used]
        assert len({rope._frequencies.token for rope in ropes}) == len(set(ropes)) == len(ropes)
        for rope, y in zip(used, together, strict=True):
            tables.cache.clear()
            same(rope(X, **call), y)
        if not one_axis:  # sections in turns are the same as one series dealt out in turns
            assert len({y.tobytes() for y in together}) == len(used) - 1

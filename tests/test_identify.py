"""``rotary identify``: boxes that import nothing of rotary are named by their outputs alone."""

from __future__ import annotations

import ast
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxes import mistakes, rules, ways
from boxes.strangers import STRANGERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import rotary
from rotary import cli
from rotary.conformance import Diagnosis, identify
from rotary.conformance.identifying.model import sample_positions
from rotary.scaling import (
    NTK,
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    Proportional,
    YaRN,
)

DIM = 64
EVERY_WAY = {**ways.HALF, **ways.INTERLEAVED}
PLAIN = rules.plain(DIM, 10_000.0)
IN_FLOAT32 = {"angles_in": "float32"}


def half(rule: rules.InvFreq, **habits: Any) -> ways.Box:
    return ways.box(ways.rotate_half, rule, **habits)


def explained(box: Any, dim: int = DIM, **arguments: Any) -> Diagnosis:
    found = identify(box, head_dim=dim, **arguments)
    assert found.explained, found.finding
    # The expression is the embedding.
    assert eval(found.expression, {"rotary": rotary}) == found.rope
    return found


def agrees(found: Diagnosis, box: Any, *, within: float, last: int, dim: int = DIM) -> None:
    """Compare what the diagnosis computes with the box, for questions that were not asked."""
    rng = np.random.default_rng(99)
    x = rng.standard_normal((2, 3, 20, dim)).astype(np.float32)
    positions = rng.integers(0, last, 20)
    y = box(x.copy(), positions)
    assert np.abs(found.apply(x, positions) - y).max() <= within


def test_the_boxes_import_nothing_of_rotary(root: Path) -> None:
    for file in (root / "tests" / "boxes").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert all(a.name.partition(".")[0] != "rotary" for a in node.names)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] != "rotary"


# Ways, layouts, features


@pytest.mark.parametrize("way", EVERY_WAY)
def test_each_way_of_writing_it_is_named(way: str) -> None:
    box = ways.box(EVERY_WAY[way], rules.plain(DIM, 500_000.0))
    found = explained(box)
    layout = "half" if way in ways.HALF else "interleaved"
    assert found.rope == rotary.RotaryEmbedding(DIM, base=500_000.0, layout=layout)
    assert (found.direction, found.origin, found.history) == (1, 0.0, ())
    assert found.precision["angles"] == found.precision["inv_freq"] == "float64"
    agrees(found, box, within=2e-6, last=2**20)


@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("way", ["rotate_half", "complex_numbers"])
def test_the_part_and_the_side_that_turn_are_named(way: str, trailing: bool) -> None:
    box = ways.box(EVERY_WAY[way], rules.plain(32, 10_000.0), rotary_dim=32, trailing=trailing)
    found = explained(box)
    assert found.rope == rotary.RotaryEmbedding(
        DIM,
        rotary_dim=32,
        rotary_side="trailing" if trailing else "leading",
        layout="half" if way == "rotate_half" else "interleaved",
    )


def test_exponents_that_count_in_all_features_are_named() -> None:
    box = half(rules.plain(32, 10_000.0, frequency_dim=DIM), rotary_dim=32)
    found = explained(box)
    assert found.rope == rotary.RotaryEmbedding(DIM, rotary_dim=32, frequency_dim=DIM)


def test_reading_one_layout_and_writing_another_is_named() -> None:
    box = mistakes.pairs_to_halves(ways.rotate_half, PLAIN)
    found = explained(box)
    assert (found.reads_layout, found.writes_layout) == ("interleaved", "half")
    assert found.rope == rotary.RotaryEmbedding(DIM, layout="interleaved")
    assert found.writes is not None
    agrees(found, box, within=2e-6, last=2**20)


def test_a_fixed_order_of_features_is_named() -> None:
    order = np.random.default_rng(3).permutation(DIM)
    box = mistakes.shuffled(half(PLAIN), order)
    found = explained(box)
    assert found.reads_layout == "permuted"
    assert found.rope == rotary.RotaryEmbedding(DIM)
    agrees(found, box, within=2e-6, last=2**20)


@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_opposite_direction_is_named(way: str) -> None:
    box = ways.box(EVERY_WAY[way], PLAIN, direction=-1)
    found = explained(box)
    assert (found.direction, found.rope.base, found.rope.inv_freq) == (-1, 10_000.0, None)
    assert any("opposite" in note for note in found.notes)
    agrees(found, box, within=2e-6, last=2**20)


def test_a_head_dim_that_is_not_told_is_found() -> None:
    box = half(rules.plain(96, 10_000.0))
    assert identify(box).rope == rotary.RotaryEmbedding(96)


def test_a_single_pair_is_named() -> None:
    assert explained(half(rules.plain(2, 10_000.0)), 2).rope == rotary.RotaryEmbedding(2)


# Frequencies


SCALED: dict[str, tuple[rules.InvFreq, dict[str, Any]]] = {
    "linear": (rules.linear(DIM, 1e4, 4.0), {"scaling": Linear(4.0)}),
    "ntk": (rules.ntk(DIM, 1e4, 4.0), {"scaling": NTK(4.0)}),
    "dynamic": (rules.dynamic(DIM, 1e4, 2.0, 2048), {"scaling": DynamicNTK(2.0, 2048)}),
    "dynamic, other numbers": (
        rules.dynamic(DIM, 5e5, 3.7, 3000),
        {"base": 5e5, "scaling": DynamicNTK(3.7, 3000)},
    ),
    "yarn": (rules.yarn(DIM, 1e6, 4.0, 32768), {"base": 1e6, "scaling": YaRN(4.0, 32768)}),
    "yarn, not truncated": (
        rules.yarn(DIM, 5e5, 8.0, 2048, truncate=False),
        {"base": 5e5, "scaling": YaRN(8.0, 2048, truncate=False)},
    ),
    "yarn, DeepSeek's factor": (
        rules.yarn(DIM, 1e4, 40.0, 4096, attention=1.0),
        {"scaling": YaRN(40.0, 4096, attention_factor=1.0)},
    ),
    "yarn, other turns": (
        rules.yarn(DIM, 1e4, 16.0, 4096, fast=16.0, truncate=False),
        {"scaling": YaRN(16.0, 4096, beta_fast=16.0, truncate=False)},
    ),
    "yarn, no pair at the end of the ramp": (
        rules.yarn(DIM, 1e4, 8.0, 131072),
        {"scaling": YaRN(8.0, 131072)},
    ),
    "llama3": (
        rules.llama3(DIM, 5e5, 8.0, 1.0, 4.0, 8192),
        {"base": 5e5, "scaling": Llama3(8.0, 1.0, 4.0, 8192)},
    ),
    "llama3, another ramp": (
        rules.llama3(DIM, 5e5, 32.0, 1.0, 16.0, 8192),
        {"base": 5e5, "scaling": Llama3(32.0, 1.0, 16.0, 8192)},
    ),
    "proportional": (
        rules.proportional(DIM, 1e6, 8),
        {"base": 1e6, "scaling": Proportional(0.25)},
    ),
    "longrope": (
        rules.longrope(DIM, 1e4, [1.0] * 32, [1 + 0.5 * i for i in range(32)], 4096, 32.0),
        {"scaling": LongRoPE([1.0] * 32, [1 + 0.5 * i for i in range(32)], 4096, factor=32.0)},
    ),
}


@pytest.mark.parametrize("habit", [{}, IN_FLOAT32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SCALED)
def test_each_scaling_rule_is_named_with_its_numbers(name: str, habit: dict[str, Any]) -> None:
    rule, arguments = SCALED[name]
    found = explained(half(rule, **habit))
    assert found.rope == rotary.RotaryEmbedding(DIM, **arguments)
    assert found.precision["angles"] == ("float32" if habit else "float64")
    assert found.history == ()


@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 23_456.7, 160.0, 1e9])
@pytest.mark.parametrize("rule", [rules.plain_float32, rules.through_exp_float32, rules.plain])
def test_bases_are_named_however_the_frequencies_are_rounded(base: float, rule: Any) -> None:
    found = explained(half(rule(DIM, base), angles_in="float32"))
    assert found.rope == rotary.RotaryEmbedding(DIM, base=base)


def test_frequencies_of_no_formula_are_given() -> None:
    inv_freq = np.sort(np.random.default_rng(5).uniform(0.0, 20.0, 32))[::-1]
    box = half(rules.of_numbers(inv_freq))
    found = explained(box)
    assert found.rope.scaling is None
    np.testing.assert_allclose(found.rope.inv_freq, inv_freq, rtol=1e-10)
    agrees(found, box, within=2e-6, last=2**20)


def test_an_attention_factor_of_its_own_is_named() -> None:
    found = explained(half(lambda length: (PLAIN(0)[0], 1.25)))
    assert found.rope.attention_factor() == 1.25
    assert found.rope.base == 10_000.0


# Positions


@pytest.mark.parametrize("origin", [1, -1, 0.5, 17])
@pytest.mark.parametrize("habit", [{}, IN_FLOAT32], ids=["float64", "float32"])
def test_the_origin_of_positions_is_named(origin: float, habit: dict[str, Any]) -> None:
    box = half(PLAIN, origin=origin, **habit)
    found = explained(box)
    assert (found.rope, found.origin) == (rotary.RotaryEmbedding(DIM), origin)
    agrees(found, box, within=2e-6 if not habit else 1e-2, last=4096)


@pytest.mark.parametrize(
    ("box", "takes", "origin"),
    [
        (mistakes.counting_rows(half(PLAIN, **IN_FLOAT32)), "rows", 0),
        (mistakes.counting_rows(half(PLAIN), start=1), "rows", 1),
        (mistakes.from_first_position(half(PLAIN)), "first", 0),
    ],
    ids=["rows", "rows from 1", "first"],
)
def test_how_positions_are_taken_is_named(box: Any, takes: str, origin: int) -> None:
    found = explained(box)
    assert (found.takes, found.origin, found.rope) == (takes, origin, rotary.RotaryEmbedding(DIM))


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("raise", "refuses positions from 3000"),
        ("clamp", "from position 3000 on it repeats the last row"),
        ("leave", "from position 3000 on it leaves x as it is"),
        ("wrap", "from position 3000 on positions start again"),
        ("nan", "from position 3000 on its outputs are not finite"),
    ],
)
def test_the_end_of_a_table_is_named(end: str, words: str) -> None:
    found = explained(mistakes.with_table(half(PLAIN, **IN_FLOAT32), 3000, end))
    assert found.last_position == 2999
    assert any(words in note for note in found.notes), found.notes


@pytest.mark.parametrize("last", [0, 3, 1023, 2**20])
def test_no_position_is_asked_for_twice_at_once(last: int) -> None:
    """A box that counts rows has one row for each."""
    for seed in range(20):
        positions = sample_positions(last, 16, np.random.default_rng(seed))
        assert len(set(positions)) == len(positions) <= 16
        assert positions[-1] == max(positions) == last


def test_negative_positions_that_index_from_the_end_are_named() -> None:
    plain = half(PLAIN)
    found = explained(lambda x, positions: plain(x, positions % 2**21))
    assert "negative positions are not turned as positive ones are" in found.notes
    assert not any("negative" in note for note in explained(plain).notes)


# Precision


PRECISIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "float64": ({}, {}),
    "float64 tables": ({"tables_in": None}, {"tables": "float32"}),  # x is float32
    "float32 angles": (IN_FLOAT32, {"angles": "float32", "inv_freq": "float32"}),
    "float32 frequencies": ({"inv_freq_in": "float32"}, {"inv_freq": "float32"}),
    "bfloat16 frequencies": ({"inv_freq_in": "bfloat16"}, {"inv_freq": "bfloat16"}),
    "float16 frequencies": ({"inv_freq_in": "float16"}, {"inv_freq": "float16"}),
    "bfloat16 positions": (
        {"positions_in": "bfloat16", **IN_FLOAT32},
        {"positions": "bfloat16", "angles": "float32", "inv_freq": "float32"},
    ),
    "float16 positions": ({"positions_in": "float16"}, {"positions": "float16"}),
    "bfloat16 angles": ({"angles_in": "bfloat16"}, {"angles": "bfloat16"}),
    "all in bfloat16": (
        dict.fromkeys(("positions_in", "inv_freq_in", "angles_in", "tables_in"), "bfloat16"),
        dict.fromkeys(("positions", "inv_freq", "angles", "tables"), "bfloat16"),
    ),
    "float16 tables": ({"tables_in": "float16"}, {"tables": "float16"}),
    "bfloat16 tables": ({"tables_in": "bfloat16"}, {"tables": "bfloat16"}),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_precision_of_the_angles_is_named(name: str) -> None:
    habits, expected = PRECISIONS[name]
    found = explained(half(PLAIN, **habits))
    usual = dict.fromkeys(("positions", "inv_freq", "angles"), "float64") | {"tables": "float32"}
    assert found.precision == usual | expected
    assert found.rope == rotary.RotaryEmbedding(DIM)


# History


def test_a_box_that_writes_to_its_input_is_named() -> None:
    found = explained(mistakes.in_place(half(PLAIN)))
    assert found.changes_input
    assert "it writes to its input x" in found.notes
    assert not explained(half(PLAIN)).changes_input


def test_another_box_that_shares_nothing_is_not_blamed() -> None:
    found = explained(half(PLAIN), other=half(rules.plain(DIM, 5e5)))
    assert found.history == ()


# The defects of released libraries, as models of them


def test_float32_angles_of_transformers_are_named() -> None:
    found = explained(mistakes.Transformers(128, 10_000.0), 128)
    assert found.rope == rotary.RotaryEmbedding(128)
    assert (found.precision["angles"], found.precision["inv_freq"]) == ("float32", "float32")
    assert "float32 angles" in found.finding


def test_yarn_of_transformers_that_was_truncated_is_named() -> None:
    """Asked for ``truncate: false`` nested by layer type, it truncates."""
    rule = rules.yarn(128, 500_000.0, 8.0, 2048, truncate=True)
    found = explained(mistakes.Transformers(128, 500_000.0, rule), 128)
    assert found.rope == rotary.RotaryEmbedding(128, base=5e5, scaling=YaRN(8.0, 2048))


def test_dynamic_ntk_of_transformers_that_remembers_is_named() -> None:
    found = explained(mistakes.TransformersDynamic(DIM, 10_000.0, 2.0, 2048))
    assert found.rope == rotary.RotaryEmbedding(DIM, scaling=DynamicNTK(2.0, 2048))
    assert any("remembers" in line and "longer" not in line for line in found.history)
    assert "memory" in found.finding


def test_a_length_that_is_never_forgotten_is_named() -> None:
    class Growing(mistakes.TransformersDynamic):
        def update(self, length: int) -> None:
            if length > self.longest:
                super().update(length)

    found = explained(Growing(DIM, 10_000.0, 2.0, 2048))
    assert found.rope == rotary.RotaryEmbedding(DIM, scaling=DynamicNTK(2.0, 2048))
    assert "remembers" in found.history[0]


def test_the_cache_of_equinox_without_theta_is_named() -> None:
    mistakes.Equinox.cache.clear()
    first, second = mistakes.Equinox(DIM, 10_000.0), mistakes.Equinox(DIM, 500_000.0)
    found = explained(first, other=second)
    assert found.rope == rotary.RotaryEmbedding(DIM)
    assert any("share a memory" in line for line in found.history)
    # What was built with 500 000 gives what 10 000 gives.
    assert explained(second).rope == rotary.RotaryEmbedding(DIM)


def test_the_poisoned_cache_of_rotary_embedding_torch_is_named() -> None:
    found = explained(mistakes.RotaryEmbeddingTorch(DIM))
    assert found.rope == rotary.RotaryEmbedding(DIM, layout="interleaved")
    assert any("bfloat16 x: positions are rounded to bfloat16" in n for n in found.notes)
    assert any("after a bfloat16 call its float32 outputs are off" in h for h in found.history)


# What is no rotary embedding


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_rotary_embedding_stays_unexplained(name: str) -> None:
    found = identify(STRANGERS[name], head_dim=48 if "three" in name else 32)
    assert not found.explained, found.expression
    assert (found.rope, found.expression) == (None, "")
    assert found.finding.startswith("It could not be explained: ")
    with pytest.raises(ValueError, match="apply: "):
        found.apply(np.zeros((1, 32)), [0])


def test_there_are_at_least_thirty_of_them() -> None:
    assert len(STRANGERS) >= 30


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_positions", "it does not rotate"),
        ("sinusoidal_added", "adds something to x"),
        ("heads_of_different_base", "different heads"),
        ("batch_rows_of_different_offset", "different batch rows"),
        ("squashed_after", "not linear"),
        ("token_shift", "depends on other rows"),
        ("tables_of_halves_turned_by_neighbours", "tables arranged for one layout"),
        ("sign_forgotten", "a sign is missing"),
        ("noise", "two answers"),
        ("a_ramp_that_ends_nowhere", "from position 501 on"),
        ("query_scale_of_llama_4", "stretched"),
    ],
)
def test_what_was_seen_instead_is_said(name: str, words: str) -> None:
    assert words in identify(STRANGERS[name], head_dim=32).finding


# At random


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    dim = draw(st.sampled_from([32, 48, 64, 128]))
    part = draw(st.sampled_from([dim, dim, dim // 2 if dim > 32 else dim]))
    base = draw(st.integers(10, 99)) * 10.0 ** draw(st.integers(2, 5))
    precision = draw(
        st.sampled_from(
            [
                {},
                {"angles_in": "float32"},
                {"angles_in": "float32"},
                {"inv_freq_in": "float32"},
                {"positions_in": "bfloat16"},
                {"tables_in": "bfloat16"},
                {"tables_in": "float16"},
            ]
        )
    )
    kind = draw(
        st.sampled_from(
            ["plain", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope", "proportional"]
        )
    )
    factor = draw(st.sampled_from([1.5, 2.0, 3.0, 4.0, 8.0, 32.0]))
    length = draw(st.sampled_from([2048, 4096, 8192, 16384, 32768]))
    if kind in ("yarn", "llama3", "longrope"):
        base = draw(st.sampled_from([1e4, 5e5, 1e6, 1e5]))
    made: dict[str, tuple[rules.InvFreq, Any]] = {
        "plain": (rules.plain(part, base), None),
        "linear": (rules.linear(part, base, factor), Linear(factor)),
        "ntk": (rules.ntk(part, 1e4, factor), NTK(factor)),
        "dynamic": (rules.dynamic(part, base, factor, length), DynamicNTK(factor, length)),
        "yarn": (rules.yarn(part, base, factor, length), YaRN(factor, length)),
        "llama3": (
            rules.llama3(part, base, factor, 1.0, 4.0, length),
            Llama3(factor, 1.0, 4.0, length),
        ),
    }
    if kind == "longrope":
        numbers = st.integers(110, 900).map(lambda n: n / 100)
        long = draw(st.lists(numbers, min_size=part // 2, max_size=part // 2))
        ones = [1.0] * (part // 2)
        made[kind] = (
            rules.longrope(part, base, ones, long, length, 8.0),
            LongRoPE(ones, long, length, factor=8.0),
        )
    if kind == "proportional":
        count = draw(st.integers(4, part // 2 - 1))
        made[kind] = (
            rules.proportional(part, base, count),
            Proportional(2 * count / part),
        )
    return {
        "dim": dim,
        "part": part,
        "base": 1e4 if kind == "ntk" else base,
        "kind": kind,
        "rule": made[kind],
        # What turns in part and keeps neighbours apart may be told from fewer features, too.
        "way": draw(st.sampled_from(list(ways.HALF if kind == "proportional" else EVERY_WAY))),
        "trailing": part < dim and draw(st.booleans()),
        "direction": draw(st.sampled_from([1, 1, -1])),
        "origin": draw(st.sampled_from([0, 0, 1, 2])) if kind not in ("dynamic", "longrope") else 0,
        "precision": precision,
    }


def check_named_right(recipe: dict[str, Any]) -> None:
    dim, part, (rule, meant) = recipe["dim"], recipe["part"], recipe["rule"]
    box = ways.box(
        EVERY_WAY[recipe["way"]],
        rule,
        rotary_dim=part,
        trailing=recipe["trailing"],
        direction=recipe["direction"],
        origin=recipe["origin"],
        **recipe["precision"],
    )
    found = explained(box, dim)
    rope = found.rope
    assert found.reads_layout == ("half" if recipe["way"] in ways.HALF else "interleaved")
    assert found.reads is None
    assert found.writes is None
    assert (rope.rotary_dim, rope.rotary_side == "trailing") == (part, recipe["trailing"])
    assert (found.direction, found.origin) == (recipe["direction"], recipe["origin"])
    assert found.history == ()
    # 2^20 positions tell frequencies to 4 · 2^-8 / 2^20 from tables of 8 bits, and so no better.
    close = {"rtol": 2e-4, "atol": 3e-8 * ("tables_in" in recipe["precision"])}
    for length in (256, 100_000):
        inv_freq, factor = rule(length)
        np.testing.assert_allclose(rope.frequencies(length), inv_freq, **close)
        assert math.isclose(rope.attention_factor(length), factor, rel_tol=1e-3)
    if recipe["kind"] in ("plain", "linear", "dynamic", "llama3", "proportional"):
        # 1e6^(−2i/48) and 1e3^(−2i/24) are the same numbers.
        assert math.isclose(rope.base ** (part / rope.frequency_dim), recipe["base"])
        assert rope.scaling == meant or recipe["kind"] == "llama3"
    assert type(rope.scaling) is type(meant) or recipe["kind"] == "ntk"
    told = {f"{name}_in": kind for name, kind in found.precision.items()}
    for name, kind in recipe["precision"].items():
        assert told[name] == kind
    if not recipe["precision"]:
        assert found.precision["angles"] == found.precision["inv_freq"] == "float64"


AT_RANDOM = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@AT_RANDOM
@given(recipes())
def test_boxes_at_random_are_named_right(recipe: dict[str, Any]) -> None:
    check_named_right(recipe)


# The command


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["identify", *arguments])
    return status, *capsys.readouterr()


def complex_numbers(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return ways.box(ways.complex_numbers, rules.plain(DIM, 500_000.0))(x, positions)


def test_the_command_prints_the_finding_and_exits_0(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = run(capsys, f"{__name__}:complex_numbers")
    assert (status, err) == (0, "")
    assert out.startswith("A rotary embedding: interleaved layout; all 64 of 64 features")
    assert "rotary.RotaryEmbedding(64, base=500000.0, layout='interleaved')" in out
    assert "note angles are exact" in out


def test_the_command_exits_1_for_what_is_not_explained(capsys) -> None:
    status, out, _ = run(capsys, "boxes.strangers:sinusoidal_added", "--head-dim", "32")
    assert (status, out.startswith("It could not be explained: ")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.such:function"], "no.such cannot be imported"),
        (["boxes.ways:nothing"], "has no 'nothing'"),
        (["boxes.mistakes:Equinox", "--make", "{"], "no JSON"),
        (["boxes.mistakes:xpos_stretch", "--dtype", "int7"], "int7"),
    ],
)
def test_the_command_exits_2_for_what_cannot_be_asked(capsys, arguments, words) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("rotary identify: ")
    assert words in err


def test_the_command_asks_two_boxes_of_one_class(capsys) -> None:
    mistakes.Equinox.cache.clear()
    made = ['{"dim": 64, "theta": 10000.0}', '{"dim": 64, "theta": 500000.0}']
    status, out, _ = run(
        capsys, "boxes.mistakes:Equinox", "--make", made[0], "--other-make", made[1]
    )
    assert (status, "share a memory" in out) == (0, True)


def test_a_function_of_tables_and_one_of_x_alone_are_asked() -> None:
    from rotary.conformance.identifying import foreign

    def of_tables(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        return x * cos + np.concatenate([-x[..., 32:], x[..., :32]], axis=-1) * sin

    def of_x(x: np.ndarray) -> np.ndarray:
        return half(PLAIN)(x, np.arange(x.shape[-2]))

    for function, takes in ((of_tables, "positions"), (of_x, "rows")):
        box = foreign.box(function, embedding=rotary.RotaryEmbedding(DIM))
        found = explained(box)
        assert (found.rope, found.takes) == (rotary.RotaryEmbedding(DIM), takes)


def test_what_answers_nothing_is_refused_in_one_sentence() -> None:
    def broken(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of order")

    with pytest.raises(ValueError, match=r"^function: ") as caught:
        identify(broken, head_dim=DIM)
    assert "out of order" in str(caught.value)


def test_a_diagnosis_is_shown() -> None:
    console = Console(file=io.StringIO(), width=120)
    found = explained(half(PLAIN, **IN_FLOAT32))
    found.show(console)
    text = console.file.getvalue()
    for line in (found.finding, found.expression, *found.notes, *found.evidence):
        assert line in text

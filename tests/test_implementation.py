"""Foreign implementations: how they are called, and up to which position they are said to hold."""

from __future__ import annotations

import doctest
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import ml_dtypes
import numpy as np
import pytest

import rotary
from rotary import cli
from rotary.conformance import Held, check_implementation, implementation, reach
from rotary.conformance.reach import LEVELS, POSITIONS, Part, eps, spelled

ROPE = rotary.RotaryEmbedding(8, rotary_dim=6, base=500.0)
WHOLE = rotary.RotaryEmbedding(8)


def exactly(x: Any, positions: Any) -> Any:
    return ROPE(x, positions=positions)


def in_float32(x: Any, positions: Any) -> Any:
    """Rotate by angles in float32, the usual code."""
    frequencies = np.float32(10_000.0) ** np.float32([0.0, -0.25, -0.5, -0.75])
    angles = np.asarray(positions).astype(np.float32)[:, None] * frequencies
    return rotated(x, np.cos(angles), np.sin(angles))


def rotated(x: Any, cos: Any, sin: Any) -> Any:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def one(held: Held) -> Part:
    (part,) = held.parts
    return part


def reaches(part: Part) -> dict[float, tuple[int | None, int | None]]:
    return {reach.ulp: (reach.holds_to, reach.fails_at) for reach in part.reaches}


# What an error is.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rotary_holds_at_2_ulp_everywhere(library: Any, dtype: str) -> None:
    name = library.name.replace("_", "-")
    if dtype not in library.dtypes:
        pytest.skip(f"{name} has no {dtype}")
    held = check_implementation(exactly, ROPE, library=name, dtypes=[dtype], ulp=2)
    assert held.holds
    assert held.library == name
    assert 0.25 < one(held).worst[1] < 1.92
    assert reaches(one(held)) == dict.fromkeys(LEVELS, (POSITIONS, None))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_an_ulp_is_eps_of_the_dtype_times_the_length_of_the_pair(dtype: str) -> None:
    # In the dtype above: no rounding of its own below what is planted.
    wider = "float64" if dtype == "float32" else "float32"

    def off(x: Any, positions: Any) -> Any:
        right = ROPE(x.astype(wider), positions=positions)
        return right * (1 + 50 * eps(dtype))

    if dtype == "float64":

        def off(x: Any, positions: Any) -> Any:
            return ROPE(x, positions=positions) * (1 + 50 * eps(dtype))

    part = one(check_implementation(off, ROPE, dtypes=[dtype], positions=500))
    assert all(48 < error < 52 for error in part.errors)
    assert reaches(part) == {2.0: (None, 0), 10.0: (None, 0), 1000.0: (500, None)}
    assert part.output == ("float64" if dtype == "float64" else wider)


@pytest.mark.parametrize("pair", [0, 2])
def test_the_error_of_one_feature_of_one_position_is_found(pair: int) -> None:
    def off(x: Any, positions: Any) -> Any:
        y = exactly(x, positions)
        y[..., 1, positions == 77, pair] *= 1 + 2.0**-18
        return y

    part = one(check_implementation(off, ROPE, positions=300))
    assert [p for p, e in zip(part.positions, part.errors, strict=True) if e > 2] == [77]
    assert reaches(part)[2.0] == (76, 77)


def test_features_that_do_not_rotate_are_held_too() -> None:
    def off(x: Any, positions: Any) -> Any:
        y = exactly(x, positions)
        y[..., -1] *= 1 + 2.0**-19
        return y

    part = one(check_implementation(off, ROPE, positions=10))
    assert all(8 < error < 17 for error in part.errors)


def test_what_is_not_a_number_never_holds() -> None:
    def off(x: Any, positions: Any) -> Any:
        y = exactly(x, positions)
        y[..., positions > 5, 0] = np.nan
        return y

    held = check_implementation(off, ROPE, positions=20, rtol=1e9)
    assert not held.holds
    assert reaches(one(held))[1000.0] == (5, 6)
    assert json.loads(held.to_json(), parse_constant=pytest.fail)["parts"][0]["errors"][6] is None


# Up to which position.


@pytest.mark.parametrize("first", [1, 255, 256, 300, 4095, 70_001, POSITIONS - 1, POSITIONS])
def test_the_first_position_that_fails_is_found(first: int) -> None:
    def off(x: Any, positions: Any) -> Any:
        wrong = 1 + 2.0**-20 * (positions >= first)[:, None]
        return exactly(x, positions) * wrong.astype(x.dtype)

    part = one(check_implementation(off, ROPE))
    assert reaches(part) == {
        2.0: (first - 1, first),
        10.0: (POSITIONS, None),
        1000.0: (POSITIONS, None),
    }


def test_angles_in_float32_hold_as_far_as_a_look_at_every_position_says() -> None:
    held = check_implementation(in_float32, WHOLE, positions=4096)
    positions = np.arange(4097)
    tables = WHOLE.tables(positions, dtype="float64")
    angles = positions.astype(np.float32)[:, None] * np.float32(10_000.0) ** np.float32(
        [0.0, -0.25, -0.5, -0.75]
    )
    off = np.hypot(np.cos(angles) - tables[0], np.sin(angles) - tables[1]).max(axis=-1) * 2.0**23
    for ulp, (holds_to, fails_at) in reaches(one(held)).items():
        first = next((p for p in range(4097) if off[p] > ulp), None)
        assert (fails_at is None) == (first is None)
        if first is not None:
            # x rounds, too; and positions beyond 255 are searched, not all of them tested.
            assert 0.5 * first <= fails_at <= 1.25 * first
            assert holds_to < fails_at


def test_a_table_that_ends_is_as_far_as_it_holds() -> None:
    tables = np.stack(ROPE.tables(range(1500)))

    def off(x: Any, positions: Any) -> Any:
        return rotary.rotate(x, *tables[:, positions])

    held = check_implementation(off, ROPE)
    assert reaches(one(held)) == dict.fromkeys(LEVELS, (1499, 1500))
    assert one(held).raised is not None
    assert "IndexError" in one(held).raised
    assert one(held).positions[-1] < 10_000


def test_x_alone_holds_every_position_and_is_not_made_too_long() -> None:
    longest = []

    def ours(x: Any) -> Any:
        longest.append(x.shape[-2])
        return WHOLE(x)

    assert one(check_implementation(ours, WHOLE)).positions[-1] == 2**16
    assert max(longest) == 2**16 + 1


def test_lengths_are_those_of_the_call(refused: Any) -> None:
    rope = rotary.RotaryEmbedding(8, scaling=rotary.scaling.DynamicNTK(4.0, 1000))
    with refused(rotary.conformance.NotCallableError, "arguments", "offset", "DynamicNTK"):
        check_implementation(lambda x, offset: x, rope)
    held = check_implementation(lambda x, positions: rope(x, positions=positions), rope, ulp=2)
    assert held.holds


# How it is called.


def tables_of_width(width: int, *, repeat: bool = False) -> Callable[..., Any]:
    def tables(x: Any, position_ids: Any) -> Any:
        assert position_ids.ndim == 2
        cos_sin = (t.astype(x.dtype)[None] for t in WHOLE.tables(position_ids[0]))
        if width == 4:
            return tuple(cos_sin)
        return tuple(t.repeat(2, -1) if repeat else np.concatenate([t, t], -1) for t in cos_sin)

    return tables


def queries_and_keys(positions: Any, query: Any, key: Any, scale: float = 1.0) -> Any:
    """As vLLM calls it."""
    return WHOLE(query, positions=positions), WHOLE(key, positions=positions)


def by_given_tables(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    """As Hugging Face calls it: tables of (batch, seq, head_dim)."""
    assert cos.shape[0] == 1
    assert cos.ndim == 3
    cos, sin = (np.expand_dims(t[..., :4], unsqueeze_dim) for t in (cos, sin))
    return rotated(q, cos, sin), rotated(k, cos, sin)


def heads_last(x: Any, positions: Any) -> Any:
    return WHOLE(x, positions=positions, seq_axis=-3)


class Module:
    """As a torch module: a call that takes anything, and forward."""

    def __init__(self, base: float = 10_000.0) -> None:
        self.rope = rotary.RotaryEmbedding(8, base=base)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, x: Any, position_ids: Any) -> Any:
        return self.rope(x, positions=position_ids)


@pytest.mark.parametrize(
    ("function", "how", "parts"),
    [
        (lambda x, positions: WHOLE(x, positions=positions), {}, ["rotation"]),
        (lambda a, b: WHOLE(a, positions=b), {}, ["rotation"]),
        (lambda b, a: WHOLE(a, positions=b), {"arguments": "positions,x"}, ["rotation"]),
        (queries_and_keys, {}, ["rotation"]),
        (by_given_tables, {}, ["rotation"]),
        (
            by_given_tables,
            {"x_shape": "B,S,H,D", "keywords": {"unsqueeze_dim": 2}},
            ["rotation"],
        ),
        (rotated, {"tables_shape": "S,R/2"}, ["rotation"]),
        (rotated, {"tables_shape": "S,1,R/2", "x_shape": "S,H,D"}, ["rotation"]),
        (heads_last, {"x_shape": "B,S,H,D"}, ["rotation"]),
        (heads_last, {"x_shape": "S,H,D"}, ["rotation"]),
        (lambda x, positions: WHOLE(x, positions=positions), {"x_shape": "S,D"}, ["rotation"]),
        (lambda x: WHOLE(x), {}, ["rotation"]),
        (lambda x, offset: WHOLE(x, offset=offset), {}, ["rotation"]),
        (lambda x, start=0: WHOLE(x, offset=start), {"arguments": "x,offset"}, ["rotation"]),
        (lambda x: WHOLE.tables(range(x.shape[2]), like=x), {}, ["cos and sin"]),
        (Module, {}, ["rotation"]),
        (Module(), {}, ["rotation"]),
        (Module, {"make": {"base": 10_000.0}}, ["rotation"]),
        (lambda kind: kind(), {"make": {"kind": Module}}, ["rotation"]),
        (tables_of_width(8), {}, ["cos and sin"]),
        (tables_of_width(4), {}, ["cos and sin"]),
        (lambda positions: WHOLE.tables(positions), {}, ["cos and sin"]),
    ],
)
def test_it_is_called_as_it_is_written(function: Any, how: Any, parts: list[str]) -> None:
    held = check_implementation(function, WHOLE, positions=300, ulp=2, **how)
    assert held.holds
    assert [part.name for part in held.parts] == parts
    assert all(part.worst[1] > 0 for part in held.parts)


@pytest.mark.parametrize(("width", "layout"), [(8, "interleaved"), (4, "half")])
def test_tables_are_read_in_the_layout(width: int, layout: str) -> None:
    rope = rotary.RotaryEmbedding(8, layout=layout)
    tables = tables_of_width(width, repeat=True)
    assert check_implementation(tables, rope, positions=300, ulp=2).holds
    if width == 8:
        wrong = tables_of_width(width)
        assert reaches(one(check_implementation(wrong, rope, positions=300)))[1000.0] == (0, 1)


def test_tables_are_applied_by_the_function_of_their_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "apply_rotary_pos_emb", by_given_tables, False)
    held = check_implementation(tables_of_width(8), WHOLE, positions=300, ulp=2)
    assert held.holds
    assert [part.name for part in held.parts] == ["cos and sin", "rotation"]
    monkeypatch.setattr(
        sys.modules[__name__], "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k)
    )
    held = check_implementation(tables_of_width(8), WHOLE, positions=300)
    assert [reaches(part)[1000.0] for part in held.parts] == [(300, None), (0, 1)]


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_library_is_found_by_trying(name: str) -> None:
    module = pytest.importorskip(name)
    kind = module.Tensor if name == "torch" else module.Array

    def picky(x: Any, positions: Any) -> Any:
        if not isinstance(x, kind):
            raise TypeError(f"got {type(x)}")
        return WHOLE(x, positions=positions)

    assert check_implementation(picky, WHOLE, positions=20).library == name


def test_arrays_of_another_library_may_come_out() -> None:
    torch = pytest.importorskip("torch")

    def as_parameter(x: Any, positions: Any) -> Any:
        return torch.nn.Parameter(torch.from_numpy(WHOLE(x, positions=positions)))

    held = check_implementation(as_parameter, WHOLE, positions=20, ulp=2)
    assert (held.library, held.holds) == ("numpy", True)


@pytest.mark.parametrize(
    "other",
    [
        rotary.RotaryEmbedding(8, layout="interleaved"),
        rotary.RotaryEmbedding(8, base=500.0),
        rotary.RotaryEmbedding(8, rotary_dim=6),
        rotary.RotaryEmbedding(8, scaling=rotary.scaling.Linear(2.0)),
    ],
)
def test_another_rotation_is_told_from_rounding(other: Any, capsys: Any) -> None:
    from rich.console import Console

    held = check_implementation(in_float32, other, positions=300)
    assert reaches(one(held))[1000.0] == (0, 1)
    held.show(Console(width=200))
    assert "another rotation" in capsys.readouterr().out
    check_implementation(in_float32, WHOLE).show(Console(width=200))
    assert "another rotation" not in capsys.readouterr().out


# What cannot be asked.


def boom(x: Any, positions: Any) -> Any:
    raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    ("function", "how", "name", "words"),
    [
        ("json", {}, "implementation", ["'json'", "package.module:function"]),
        ("no_such_module:f", {}, "implementation", ["no_such_module cannot be imported"]),
        ("json:lods", {}, "implementation", ["json has no 'lods'", "loads"]),
        (3, {}, "implementation", ["got int"]),
        (boom, {}, "implementation", ["cannot be called", "with numpy: ", "RuntimeError: no luck"]),
        (boom, {"library": "numpy"}, "implementation", ["boom cannot be called with x, positions"]),
        (lambda x, positions: x[..., 1:], {}, "implementation", ["(1, 2, 5, 7)", "(1, 2, 5, 8)"]),
        (lambda x, positions: 3.0, {}, "implementation", ["expected an array"]),
        (lambda x, a, b: x, {}, "arguments", ["(x, a, b)", "x,positions"]),
        (exactly, {"arguments": "x"}, "implementation", ["cannot be called", "positions"]),
        (exactly, {"arguments": "offset"}, "arguments", ["got offset", "position_ids"]),
        (exactly, {"arguments": "x,cos"}, "arguments", ["got x,cos"]),
        (exactly, {"arguments": "x,where"}, "arguments", ["got x,where"]),
        (exactly, {"x_shape": "B,H,S"}, "x_shape", ["'B,H,S'", "B,S,H,D"]),
        (exactly, {"tables_shape": "R,S"}, "tables_shape", ["'R,S'", "S,R/2"]),
        (exactly, {"ulp": -1}, "ulp", ["-1"]),
        (exactly, {"rtol": float("nan")}, "rtol", ["nan"]),
        (exactly, {"positions": -1}, "positions", ["-1"]),
        (exactly, {"dtypes": ["int8"]}, "dtype", ["int8"]),
        (Module, {"make": {"bass": 1}}, "implementation", ["Module(bass) cannot be made"]),
    ],
)
def test_what_cannot_be_asked_is_refused(
    refused: Any, function: Any, how: Any, name: str, words: list[str]
) -> None:
    error = rotary.conformance.NotCallableError
    if name in ("x_shape", "tables_shape", "ulp", "rtol", "positions", "dtype"):
        error = ValueError
    with refused(error, name, *words):
        check_implementation(function, ROPE, **how)


def test_an_embedding_is_spelled_as_the_call_that_makes_it() -> None:
    for rope in (
        WHOLE,
        ROPE,
        rotary.RotaryEmbedding(8, layout="interleaved", scaling=rotary.scaling.NTK(2.0)),
        rotary.RotaryEmbedding(8, rotary_dim=6, frequency_dim=8),
        rotary.RotaryEmbedding(8, inv_freq=(1.0, 0.5, 0.25, 0.125)),
    ):
        names = {"RotaryEmbedding": rotary.RotaryEmbedding, "NTK": rotary.scaling.NTK}
        assert eval(spelled(rope), names) == rope
    assert spelled(ROPE) == "RotaryEmbedding(8, base=500.0, rotary_dim=6)"


# The command.

CODE = """
import numpy as np

def rope(x, positions):
    frequencies = np.float32(10_000.0) ** np.float32([0.0, -0.25, -0.5, -0.75])
    angles = positions.astype(np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :4], x[..., 4:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
"""


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run ``rotary check`` in a folder with code; return its status, output and errors."""
    (tmp_path / "somebody.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "somebody", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["check", "--embedding", '{"head_dim": 8}', *arguments])
        return status, *capsys.readouterr()

    return run


def test_the_command_reports_and_exits_0_where_no_level_is_asked(check: Any) -> None:
    status, out, err = check("--implementation", "somebody:rope")
    assert (status, err) == (0, "")
    assert "somebody:rope with numpy" in out
    assert "held to RotaryEmbedding(8)\n" in out
    for ulp in ("2", "10", "1000"):
        assert f"  {ulp} ulp: holds up to position " in out
    assert "\nholds\n" not in out


@pytest.mark.parametrize(
    ("level", "status"),
    [(("--ulp", "1e5"), 0), (("--ulp", "2"), 1), (("--rtol", "0.1"), 0), (("--rtol", "1e-6"), 1)],
)
def test_a_level_that_is_asked_for_decides_the_exit_status(
    check: Any, tmp_path: Path, level: tuple[str, str], status: int
) -> None:
    files = ("--json", "r.json", "--junit", "r.xml")
    got, out, _ = check("--implementation", "somebody:rope", "--positions", "2000", *level, *files)
    assert got == status
    assert out.endswith("fails\n" if status else "holds\n")
    report = json.loads((tmp_path / "r.json").read_bytes(), parse_constant=pytest.fail)
    assert report["holds"] is (status == 0)
    (part,) = report["parts"]
    assert len(part["positions"]) == len(part["errors"])
    assert (part["positions"][0], part["positions"][-1]) == (0, 2000)
    (case,) = ET.parse(tmp_path / "r.xml").iter("testcase")
    assert (case.find("failure") is not None) is (status == 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--implementation", "somebody"], ["package.module:function"]),
        (["--implementation", "somebody:rape"], ["somebody has no 'rape', but rope"]),
        (["--implementation", "somebody:rope", "--case", "x"], ["--case: not with"]),
        (["--implementation", "somebody:rope", "--backend", "numpy"], ["--backend: not with"]),
        (["--implementation", "somebody:rope", "--make", "{"], ["make: got", "no JSON"]),
        (
            ["--implementation", "somebody:rope", "--keywords", "3"],
            ["keywords: got", "JSON object"],
        ),
        (["--implementation", "somebody:rope", "--embedding", "{}"], ["embedding: ", "head_dim"]),
        (["--implementation", "somebody:rope", "--embedding", "nowhere"], ["nowhere"]),
        (["--implementation", "somebody:rope", "--library", "numpi"], ["backend 'numpi'"]),
        (["--implementation", "somebody:rope", "--json", "no/r.json"], ["--json", "no"]),
        ([], ["--embedding: only with --implementation"]),
    ],
)
def test_what_cannot_be_asked_exits_2(check: Any, arguments: list[str], words: list[str]) -> None:
    status, out, err = check(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("rotary check: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


# What is written about it.


@pytest.mark.parametrize("module", [implementation, reach])
def test_the_examples_in_docstrings_hold(module: Any) -> None:
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


# Hugging Face.


def test_llama_of_transformers_says_up_to_which_position_it_holds(check: Any) -> None:
    pytest.importorskip("transformers")
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2}
    module = "transformers.models.llama.modeling_llama"
    status, out, err = check(
        *("--implementation", f"{module}:LlamaRotaryEmbedding", "--json", "r.json"),
        *("--embedding", json.dumps(config)),
    )
    assert (status, err) == (0, "")
    assert "held to RotaryEmbedding(16)" in out
    report = json.loads(Path("r.json").read_bytes())
    assert report["versions"].keys() == {"torch"}
    assert [part["name"] for part in report["parts"]] == ["cos and sin", "rotation"]
    for part in report["parts"]:
        two, ten, thousand = (reach["holds_to"] for reach in part["reaches"])
        # Angles in float32: an error of about the position in ulps.
        assert 2 <= two < ten < thousand
        assert 10 <= ten <= 200
        assert 1000 <= thousand <= 20_000
        assert part["errors"][-1] > 1e4


def test_llama_rotates_by_given_tables_as_it_should() -> None:
    pytest.importorskip("transformers")
    held = check_implementation(
        "transformers.models.llama.modeling_llama:apply_rotary_pos_emb",
        rotary.RotaryEmbedding(16),
        dtypes=("float32", "bfloat16"),
        ulp=2,
        positions=2000,
    )
    assert held.library == "torch"
    assert held.parts[0].reaches[0].fails_at is None


def test_modules_are_taken_as_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somewhere")
    module.inner = types.SimpleNamespace(rope=lambda x, positions: WHOLE(x, positions=positions))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somewhere", module)
    held = check_implementation("somewhere:inner.rope", WHOLE, positions=20, ulp=2)
    assert (held.name, held.holds) == ("somewhere:inner.rope", True)


def test_bfloat16_is_bfloat16_in_numpy_too() -> None:
    seen = []

    def look(x: Any, positions: Any) -> Any:
        seen.append(x.dtype)
        return WHOLE(x, positions=positions)

    check_implementation(look, WHOLE, dtypes=["bfloat16"], positions=3)
    assert np.dtype(ml_dtypes.bfloat16) in seen


def test_what_changes_its_kind_of_answer_ends_there() -> None:
    def fickle(x: Any, positions: Any) -> Any:
        if positions.max() < 100:
            return WHOLE(x, positions=positions)
        return WHOLE.tables(positions)

    part = one(check_implementation(fickle, WHOLE))
    assert reaches(part)[1000.0] == (99, 100)
    assert "got cos and sin this time" in str(part.raised)

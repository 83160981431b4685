"""The golden vectors: files that nobody changes unseen, made from the oracle, held by everyone."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rotary
from rotary import cli, conformance
from rotary.backends import _numpy
from rotary.conformance import cases, golden, golden_generator, json_schema, libraries, oracle
from rotary.conformance.runner import prepared

FILES = (*(f"{kind}.json" for kind in golden.KINDS), golden.SCHEMA, golden.SUMS)
# The smallest.
KIND = "axes"
EXAMPLE = Path("docs", "examples", "read_vectors.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the shipped files."""
    return Path(shutil.copytree(golden.FOLDER, tmp_path / "vectors"))


def resum(folder: Path) -> None:
    """Write the checksums of what lies there."""
    names = sorted(path.name for path in folder.glob("*.json"))
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / golden.SUMS).write_text("".join(f"{s}  {n}\n" for n, s in sums.items()))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], kind: str = KIND) -> None:
    """Change a file as somebody would who brings its checksum along."""
    file = folder / f"{kind}.json"
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(golden.text(content), "utf-8")
    resum(folder)


def refusal(folder: Path, kinds: tuple[str, ...] = golden.KINDS) -> str:
    """Return what the reader says, which is one line."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        golden.read(folder, kinds=kinds)
    assert caught.type is ValueError
    return str(caught.value)


# What is there.


def test_all_kinds_are_there_and_all_ids_are_distinct() -> None:
    vectors = golden.read()
    assert {vector.id.partition("/")[0] for vector in vectors} == set(golden.KINDS)
    assert len({vector.id for vector in vectors}) == len(vectors)
    assert all(vector.comment and vector.flags and vector.outputs for vector in vectors)
    assert all(not x.flags.writeable for vector in vectors for x in vector.inputs.values())
    dtypes = {vector.dtype for vector in vectors if vector.id.startswith("rotation/")}
    assert dtypes == set(cases.DTYPES)
    rules = {v.arguments["scaling"]["rule"] for v in vectors if v.id.startswith("scaling/")}
    assert rules == set(rotary.scaling.__all__)


def test_numbers_are_bit_patterns() -> None:
    numbers = np.array([1.0, -2.0, 0.1, -0.0], np.float32)
    assert golden.encoded(numbers)["bits"] == ["3f800000", "c0000000", "3dcccccd", "80000000"]
    signed = np.array([0xFFC00001, 0x7F800001], np.uint32).view(np.float32)
    assert golden.encoded(signed)["bits"] == ["7fc00000"] * 2


def test_no_table_and_no_rotation_holds_a_subnormal_number() -> None:
    for vector in golden.read():
        for name, array in {
            **vector.inputs,
            **{name: output.value for name, output in vector.outputs.items()},
        }.items():
            size = np.abs(array.astype(np.float64))
            tiny = float(ml_dtypes.finfo(array.dtype).smallest_normal)
            assert not ((size > 0) & (size < tiny)).any(), f"{vector.id} {name}"


def test_the_files_are_small() -> None:
    assert sum((golden.FOLDER / name).stat().st_size for name in FILES) < 2e6


def test_the_files_are_those_that_the_oracle_gives(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["vectors", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {len(golden.read())} vectors, ")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES)
    for name in FILES:
        same = (tmp_path / "new" / name).read_bytes() == (golden.FOLDER / name).read_bytes()
        assert same, f"{name}: rotary vectors writes other bytes than are committed"


def test_only_linear_attention_is_made_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> Any:
        raise AssertionError("the library under test was asked")

    for owner, name in ((rotary, "RotaryEmbedding"), (rotary, "rotate"), (_numpy, "product")):
        monkeypatch.setattr(owner, name, no)
    for kind in golden.KINDS:
        if kind != "linear":
            made = golden.text(golden_generator.make(kind)).encode()
            assert made == (golden.FOLDER / f"{kind}.json").read_bytes()
    with pytest.raises(AssertionError, match="was asked"):
        golden_generator.make("linear")


def test_numpy_outside_the_oracles_bound_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    attend = golden_generator.golden_cases.attend

    def off(*given: Any, **named: Any) -> Any:
        got = attend(*given, **named)
        return {**got, "out": got["out"] * np.float32(1 + 2e-4)}

    monkeypatch.setattr(golden_generator.golden_cases, "attend", off)
    assert cli.main(["vectors", str(tmp_path / "new")]) == 2
    assert "bound" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_exits_2(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["vectors", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("rotary vectors: DIR: ")


# What the schema says.


def test_the_files_keep_to_their_json_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((golden.FOLDER / golden.SCHEMA).read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for kind in golden.KINDS:
        content = json.loads((golden.FOLDER / f"{kind}.json").read_text("utf-8"))
        assert list(validator.iter_errors(content)) == []


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


def _del(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


_FIRST = ("vectors", 0)
_X = (*_FIRST, "inputs", "x")
# What is changed in axes.json, and what the error has to say: where, and what was expected.
OUTSIDE_THE_SCHEMA = {
    "another version": (
        _set("schema_version", to=2),
        "schema_version: got 2, expected the value 1",
    ),
    "true for a version": (_set("schema_version", to=True), "schema_version: got True"),
    "no version": (_del("schema_version"), "got no schema_version"),
    "an unknown kind": (_set("kind", to="axis"), "kind: got 'axis', expected one of"),
    "an unknown name": (_set("checksum", to=""), "checksum: got this name"),
    "no vectors": (_set("vectors", to=[]), "vectors: got []"),
    "an id of another kind": (
        _set(*_FIRST, "id", to="table/a/float32"),
        "vectors[0].id: got 'table",
    ),
    "a dtype of its own": (_set(*_FIRST, "dtype", to="float8"), "vectors[0].dtype: got 'float8'"),
    "an unknown argument": (
        _set(*_FIRST, "arguments", "theta", to=1.0),
        "vectors[0].arguments.theta: got this name, expected one of head_dim, rotary_dim, base",
    ),
    "a missing argument": (_del(*_FIRST, "arguments", "base"), "vectors[0].arguments: got no base"),
    "text for a number": (_set(*_FIRST, "arguments", "base", to="1"), "arguments.base: got '1'"),
    "a base below zero": (_set(*_FIRST, "arguments", "base", to=-1), "arguments.base: got -1"),
    "an odd layout": (_set(*_FIRST, "arguments", "layout", to="neox"), "layout: got 'neox'"),
    "a missing input": (_del(*_X), "vectors[0].inputs: got no x"),
    "a missing output": (_del(*_FIRST, "outputs", "y"), "vectors[0].outputs: got no y"),
    "a number for bits": (_set(*_X, "bits", 3, to=1.5), "vectors[0].inputs.x.bits[3]: got 1.5"),
    "capital digits": (_set(*_X, "bits", 0, to="3F800000"), "x.bits[0]: got '3F800000'"),
    "too few digits": (_set(*_X, "bits", 0, to="3f80000"), "x.bits[0]: got '3f80000'"),
    "a dtype of other width": (_set(*_X, "dtype", to="float64"), "x.bits[0]: got"),
    "float32 positions": (
        _set(*_FIRST, "inputs", "positions", "dtype", to="float32"),
        "vectors[0].inputs.positions",
    ),
    "a shape below zero": (_set(*_X, "shape", 0, to=-1), "x.shape[0]: got -1, expected at least 0"),
    "an unknown level": (
        _set(*_FIRST, "outputs", "y", "level", to="close"),
        "vectors[0].outputs.y.level: got 'close'",
    ),
    "ulps without a number": (
        _set(*_FIRST, "outputs", "y", "level", to="ulp"),
        "got no low, at_most",
    ),
}
# The same, where a schema cannot say it.
OUTSIDE_THE_RULES = {
    "the same id twice": (
        _set("vectors", 1, "id", to="axes/sections/float32"),
        "vectors[1].id: got",
    ),
    "an unknown flag": (_set(*_FIRST, "flags", to=["oops"]), "vectors[0].flags: got 'oops'"),
    "a number too few": (_del(*_X, "bits", 0), "x.bits: got 191 numbers, expected 192 of shape"),
    "another shape": (
        _set(*_X, "shape", to=[3]),
        "x.bits: got 192 numbers, expected 3 of shape [3]",
    ),
    "another kind": (_set("kind", to="tables"), "vectors[0]"),
    "a bound of another shape": (
        _set(
            *(*_FIRST, "outputs", "y", "allowed"),
            to={"dtype": "float64", "shape": [1], "bits": ["0" * 16]},
        ),
        "vectors[0].outputs.y.allowed.shape: got (1,)",
    ),
}


@pytest.mark.parametrize("name", [*OUTSIDE_THE_SCHEMA, *OUTSIDE_THE_RULES])
def test_values_outside_the_schema_are_refused_with_their_place(folder: Path, name: str) -> None:
    change, words = {**OUTSIDE_THE_SCHEMA, **OUTSIDE_THE_RULES}[name]
    rewrite(folder, change)
    message = refusal(folder, (KIND,))
    assert message.startswith(f"{KIND}.json: ")
    assert words in message


@pytest.mark.parametrize("name", OUTSIDE_THE_SCHEMA)
def test_jsonschema_refuses_what_the_reader_refuses(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((golden.FOLDER / golden.SCHEMA).read_text("utf-8"))
    content = json.loads((golden.FOLDER / f"{KIND}.json").read_text("utf-8"))
    del content["vectors"][1:]
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(content)
    OUTSIDE_THE_SCHEMA[name][0](content)
    assert not validator.is_valid(content)


def test_a_schema_with_words_that_the_reader_does_not_know_is_an_error() -> None:
    with pytest.raises(KeyError, match="maxLength"):
        json_schema.check("text", {"type": "string", "maxLength": 3})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"base": 10000.0', '"base": NaN', "NaN, which JSON does not have"),
        ('"base": 10000.0', '"base": 1e999', "base: got inf"),
        ('"base": 10000.0', '"base": 1.0, "base": 2.0', "got 'base' twice"),
        ('"kind"', "'kind'", "line 3 column 2"),
        ("{\n", "[" * 100_000 + "{\n", "recursion"),
    ],
)
def test_what_is_no_strict_json_is_refused(folder: Path, old: str, new: str, words: str) -> None:
    file = folder / f"{KIND}.json"
    file.write_text(file.read_text("utf-8").replace(old, new, 1), "utf-8")
    resum(folder)
    message = refusal(folder, (KIND,))
    assert message.startswith(f"{KIND}.json: ")
    assert words in message


# What happened to the files.


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    places = [len(data) * i // 7 + i for i in range(7)]
    for n, place in enumerate(places):
        data[place] ^= 1 << n
        (folder / name).write_bytes(data)
        message = refusal(folder, golden.KINDS if name == golden.SUMS else _kinds(name))
        if name == golden.SUMS:
            assert golden.SUMS in message
        else:
            assert message.startswith(f"{name}: its sha256 is")
        data[place] ^= 1 << n
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_truncated_file_is_noticed(folder: Path, name: str, kept: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(kept * (len(data) - 1))])
    assert name in refusal(folder, _kinds(name))


def _kinds(name: str) -> tuple[str, ...]:
    """Return the kind to read so that a file is read."""
    kind = Path(name).stem
    return (kind,) if kind in golden.KINDS else (KIND,)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder, _kinds(name))


def test_a_file_that_no_checksum_covers_is_noticed(folder: Path) -> None:
    shutil.copy(folder / "axes.json", folder / "more.json")
    assert "more.json" in refusal(folder)
    resum(folder)
    assert "more.json" in refusal(folder)


def test_files_that_changed_places_are_noticed(folder: Path) -> None:
    shutil.copy(folder / "axes.json", folder / "tables.json")
    resum(folder)
    assert refusal(folder) == "tables.json: kind: got 'axes', expected 'tables'"


@pytest.mark.parametrize(
    ("vector_id", "words"),
    [
        (
            "rotation/hlaf/float32",
            "not in rotation.json, expected one such as rotation/half/float32",
        ),
        ("rotation/half", "rotation/half/float"),
        ("rotary/half/float32", "rotation/half/float32"),
        ("", "expected one such as"),
    ],
)
def test_an_unknown_id_is_refused_with_those_like_it(vector_id: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\Avector_id: got ") as caught:
        golden.find(vector_id)
    assert words in str(caught.value)
    assert golden.find("rotation/half/float32").dtype == "float32"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kinds: got 'rope', expected some of tables, rotation"):
        golden.read(kinds=("rope",))


@pytest.mark.parametrize("name", ["golden.py", "json_schema.py"])
def test_nothing_that_is_read_is_run(root: Path, name: str) -> None:
    tree = ast.parse((root / "conformance" / name).read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert not names & {"eval", "exec", "compile", "__import__", "getattr", "open"}
    assert not modules & {"pickle", "marshal", "shelve", "importlib", "yaml"}


# Who keeps to them.

# Library → kinds and dtypes that take little time; rotary check runs all of them.
QUICK = {
    "numpy": (golden.KINDS, cases.DTYPES),
    "torch": (("tables", "rotation", "scaling", "axes"), cases.DTYPES),
    "array-api-strict": (("tables", "rotation", "scaling", "axes"), ("float32", "float64")),
    "jax": (("tables", "scaling"), ("float32",)),
    "mlx": (golden.KINDS, ("float32", "bfloat16")),
    "dask": (("axes",), ("float32",)),
    "ndonnx": (("tables",), ("float32",)),
    "cupy": (golden.KINDS, cases.DTYPES),
}


@pytest.mark.parametrize("name", libraries.KNOWN)
def test_every_library_gives_the_bits_of_the_files(name: str) -> None:
    try:
        libraries.load(name)
    except libraries.NotInstalledError as reason:
        if name != "cupy":  # all others are installed with the tests
            raise
        pytest.skip(str(reason))
    kinds, dtypes = QUICK[name]
    ways = [way.name for way in libraries.load(name).ways if way.name in ("eager", "lazy")]
    report = conformance.run(
        [name], cases=[f"vectors/{kind}" for kind in kinds], dtypes=dtypes, ways=ways
    )
    assert report.failures == ()
    assert {cell.case for cell in report.run} == {f"vectors/{kind}" for kind in kinds}


@pytest.mark.large
@pytest.mark.parametrize("name", libraries.KNOWN)
def test_every_library_gives_the_bits_of_all_files_in_every_way(name: str) -> None:
    try:
        report = conformance.run([name], cases=["vectors/*"])
    except libraries.NotInstalledError as reason:
        pytest.skip(str(reason))
    assert report.holds
    assert report.differing == 0


def simd_levels() -> Iterator[str]:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = [feature for feature in __cpu_dispatch__ if __cpu_features__[feature]]
    for count in range(len(present)):
        yield " ".join(present[count:])


def check_without(features: str) -> None:
    command = ["-m", "rotary", "check", "--backend", "numpy", "--case", "vectors/*"]
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": features, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds: 0 of " in done.stdout
    assert "0 of 12 cells fail" in done.stdout


@pytest.mark.large
def test_without_simd_numpy_gives_the_bits_of_the_files() -> None:
    levels = list(simd_levels())
    if not levels:
        pytest.skip("this processor has none of the SIMD levels that NumPy can switch off")
    check_without(levels[0])


@pytest.mark.large
def test_at_every_simd_level_numpy_gives_the_bits_of_the_files() -> None:
    for features in ("", *simd_levels()):
        check_without(features)


@pytest.fixture
def nothing_remembered() -> Iterator[None]:
    yield
    prepared.cache_clear()
    golden._shipped.cache_clear()


@pytest.mark.usefixtures("nothing_remembered")
def test_a_product_off_by_a_rounding_fails_and_the_vector_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = lambda x, factor: np.nextafter(x * factor, x.dtype.type(0))  # noqa: E731
    monkeypatch.setattr(_numpy, "product", off)
    monkeypatch.setattr(_numpy, "rotate", lambda *_: None)  # no kernel
    report = conformance.run(["numpy"], cases=["vectors/rotation"], dtypes=["float32", "float64"])
    assert [cell.verdict for cell in report.cells] == ["fails", "fails"]
    assert all(cell.detail.startswith("rotation/") for cell in report.cells)
    assert all(" y: expected " in cell.detail for cell in report.cells)


@pytest.mark.usefixtures("nothing_remembered")
def test_a_float64_table_farther_off_than_half_a_rounding_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = rotary.RotaryEmbedding.tables

    def off(*given: Any, **named: Any) -> Any:
        cos, sin = tables(*given, **named)
        cos.reshape(-1)[11] = np.nextafter(cos.reshape(-1)[11], 2.0)
        return cos, sin

    monkeypatch.setattr(rotary.RotaryEmbedding, "tables", off)
    report = conformance.run(["numpy"], cases=["vectors/tables"], dtypes=["float64"])
    (cell,) = report.failures
    assert cell.level == "ulp <= 0.501"
    assert 0 < cell.differing <= len(golden.read(kinds=("tables",), dtype="float64"))


@pytest.mark.usefixtures("nothing_remembered")
def test_wrong_frequencies_fail_though_no_array_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary.RotaryEmbedding, "attention_factor", lambda *_: 1.0)
    report = conformance.run(["numpy"], cases=["vectors/scaling"], dtypes=["float32"])
    (cell,) = report.failures
    assert "scaling/yarn/float32 attention_factor: got 1.0" in cell.detail


@pytest.mark.usefixtures("nothing_remembered")
def test_a_damaged_installation_is_an_error_of_the_cell(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    prepared.cache_clear()
    golden._shipped.cache_clear()
    file = folder / "rotation.json"
    file.write_text(file.read_text("utf-8").replace('"3f800000"', '"3f800001"', 1), "utf-8")
    monkeypatch.setattr(golden, "FOLDER", folder)
    report = conformance.run(["numpy"], cases=["vectors/rotation"], dtypes=["float32"])
    (cell,) = report.failures
    assert cell.verdict == "error"
    assert "ValueError: rotation.json: its sha256 is " in cell.detail


# What they catch.


def _rotated(vector: golden.Vector, **mistake: Any) -> np.ndarray:
    """Rotate a float32 vector as the oracle does, but for one mistake."""
    a = {**vector.arguments, **mistake}
    pairs = oracle.pair_indices(
        *(a[name] for name in ("head_dim", "rotary_dim", "layout", "rotary_side"))
    )
    axis = -3 if a["seq_axis"] == -2 else -2
    cos, sin = (np.expand_dims(vector.inputs[name], axis) for name in ("cos", "sin"))
    x = vector.inputs["x"]
    if "fused" not in mistake:
        return oracle.rotate(x, cos, sin, pairs, inverse=a["inverse"])
    y = x.copy()
    x1, x2 = (x[..., index].astype(np.float64) for index in pairs)
    with np.errstate(invalid="ignore"):
        y[..., pairs[0]] = x1 * cos - (x2 * sin).astype(np.float32)
        y[..., pairs[1]] = x1 * sin + (x2 * cos).astype(np.float32)
    return y


@pytest.mark.parametrize(
    ("flag", "mistake"),
    [
        ("fma", {"fused": True}),
        ("layout", {"layout": None}),
        ("side", {"rotary_side": None}),
        ("direction", {"inverse": None}),
    ],
)
def test_a_vector_catches_the_mistakes_of_its_flags(flag: str, mistake: dict[str, Any]) -> None:
    other = {"half": "interleaved", "leading": "trailing", "interleaved": "half"}
    other |= {"trailing": "leading", True: False, False: True}
    flagged = [v for v in golden.read(kinds=("rotation",), dtype="float32") if flag in v.flags]
    assert flagged
    for vector in flagged:
        want = vector.outputs["y"].value
        assert np.array_equal(_rotated(vector), want)
        wrong = {n: other[vector.arguments[n]] if m is None else m for n, m in mistake.items()}
        assert not np.array_equal(_rotated(vector, **wrong), want)


def test_float32_angles_are_caught_by_every_table_flagged_for_it() -> None:
    flagged = [
        v for v in golden.read(kinds=("tables",), dtype="float32") if "float32-angles" in v.flags
    ]
    assert flagged
    for vector in flagged:
        pairs = np.arange(0, vector.arguments["rotary_dim"], 2, dtype=np.float32)
        base = np.float32(vector.arguments["base"])
        omega = base ** (-pairs / np.float32(vector.arguments["frequency_dim"]))
        angles = vector.inputs["positions"].astype(np.float32)[..., None] * omega
        assert not np.array_equal(np.cos(angles), vector.outputs["cos"].value)


# The example for other languages.


def example(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(root / EXAMPLE), str(folder)],  # -S: no NumPy in reach
        capture_output=True,
        text=True,
        check=False,
    )


def test_plain_python_in_under_100_lines_reads_and_rotates_them(root: Path) -> None:
    text = (root / EXAMPLE).read_text("utf-8")
    assert len(text.splitlines()) < 100
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {getattr(n, "module", None) or n.names[0].name for n in imports}
    assert modules <= sys.stdlib_module_names
    done = example(root, golden.FOLDER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n0 numbers differ\n")
    for vector in golden.read(kinds=("rotation",), dtype="float32"):
        assert f"  {vector.id}: 0 of {vector.outputs['y'].value.size} numbers differ" in done.stdout


def test_the_example_sees_a_changed_bit_and_a_wrong_result(root: Path, folder: Path) -> None:
    def wrong(content: dict[str, Any]) -> None:
        for vector in content["vectors"]:
            if vector["id"] == "rotation/half/float32":
                bits = vector["outputs"]["y"]["value"]["bits"]
                bits[5] = f"{int(bits[5], 16) ^ 1:08x}"

    rewrite(folder, wrong, "rotation")
    done = example(root, folder)
    assert done.returncode == 1
    assert "rotation/half/float32: 1 of 128 numbers differ" in done.stdout
    data = bytearray((folder / "tables.json").read_bytes())
    data[1000] ^= 4
    (folder / "tables.json").write_bytes(data)
    assert "tables.json: was changed" in example(root, folder).stderr

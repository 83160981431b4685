"""Every rotary embedding of transformers against from_config; the page is docs/census.md."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rotary
from rotary.axes import Axial, grid

FOLDER = Path(__file__).parent / "census"


def load(name: str) -> ModuleType:
    """Import a support file, and what it imports of its folder."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


census, comparing, defects, families, write = map(
    load, ("census", "comparing", "defects", "families", "write")
)


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """Return the census' rows; what transformers and its imports warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows: list[Any] = census.rows()
    return rows


def test_the_page_is_current(found: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{write.counts(found)}")
    page = write.TARGET.read_text(encoding="utf-8")
    assert page == write.text(found), "run: python tests/census/write.py"


def test_all_but_a_twentieth_match(found: list[Any]) -> None:
    single = [row for row in found if row.status in ("match", "differs", "their defect")]
    assert len(single) > 150
    assert sum(row.status == "match" for row in single) >= 0.95 * len(single)


def test_more_than_sixty_rotations_have_several_axes(found: list[Any]) -> None:
    assert sum(row.status == "match" and row.axes != "" for row in found) > 60


def test_a_mix_up_of_two_axes_shows() -> None:
    ours, positions = rotary.RotaryEmbedding(16, axes=Axial([4, 4])), grid(2, 3)
    pair = comparing.random_pair(16, 6)
    theirs = [ours(x, positions=positions) for x in pair]
    assert comparing.rotates_alike(theirs, ours, positions) == "as read"
    with pytest.raises(comparing.DiffersError, match="logits"):
        comparing.rotates_alike(theirs, ours, positions[::-1])
    diagonal = np.stack([np.arange(6.0)] * 2)
    theirs = [ours(x, positions=diagonal) for x in pair]
    with pytest.raises(comparing.DiffersError, match="mixed up unnoticed"):
        comparing.rotates_alike(theirs, ours, diagonal)


def test_every_other_line_has_its_reason(found: list[Any]) -> None:
    known = ("match", "their defect", "none: ", "learned frequencies: ")
    assert not [row.name for row in found if not row.status.startswith(known)]
    named = {note.rpartition(" ")[2] for row in found for note in row.notes}
    assert named <= defects.DEFECTS.keys()


def test_every_rotary_class_is_in_the_census(found: list[Any]) -> None:
    names = {row.name for row in found}
    for _, path, classes in census.modeling_files():
        assert set(classes or [path.stem]) <= names


@pytest.mark.parametrize("name", defects.DEFECTS)
def test_a_defect_shows(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(defects.DEFECTS[name][1], {})


def test_the_defaults_of_families_are_current() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert families.TARGET.read_text(encoding="utf-8") == families.text(), (
            "run: python tests/census/families.py"
        )


def described(values: dict[str, Any]) -> Any:
    try:
        return rotary.from_config(values)
    except ValueError as error:
        return str(error).partition(":")[0]


def test_a_silent_config_is_its_family_s_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cls in families.config_classes():
            if families.row(cls) is not None:
                name = families.model_type_of(cls)
                full = {**cls().to_dict(), "model_type": name}
                assert described({"model_type": name}) == described(full), name

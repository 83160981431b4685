"""A validator for the part of JSON Schema (draft 2020-12) that the golden vectors' schema uses.

It says what is wrong first and where.  A keyword that it does not know is an error, so that no part
of a schema is passed over in silence.  Stricter than the draft in one point: 1.0 is no integer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]

_OF_TYPE: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    # JSON writes no infinity, but 1e999 reads as one.
    "number": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
# Read together with another keyword, or by people.
_NOT_CHECKED = frozenset({"$schema", "$defs", "title", "description", "then"})


def check(value: Any, schema: Schema) -> None:
    """Raise a ValueError that names the place in `value` and what the schema expects there."""
    for violation in _violations(value, schema, schema, ""):
        raise ValueError(violation)


def _violations(value: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    for keyword, wanted in schema.items():
        if keyword in _NOT_CHECKED:
            continue
        if keyword == "if":
            if not any(_violations(value, wanted, root, place)):
                yield from _violations(value, schema["then"], root, place)
        elif keyword in _OF_SEVERAL:
            yield from _OF_SEVERAL[keyword](value, wanted, schema, root, place)
        elif not _CHECKS[keyword](value, wanted):
            shown = f"{value!r}"
            shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
            yield f"{place or 'the file'}: got {shown}, expected {_EXPECTED[keyword]} {wanted!r}"


def _of_type(value: Any, names: str | list[str]) -> bool:
    return any(_OF_TYPE[name](value) for name in ([names] if isinstance(names, str) else names))


def _same(a: Any, b: Any) -> bool:
    """Return whether they are one JSON value; to Python True is 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _matches(value: Any, pattern: str) -> bool:
    # Python's $ matches before a line's end too, ECMAScript's does not.
    assert pattern.startswith("^")
    assert pattern.endswith("$")
    return not isinstance(value, str) or re.fullmatch(pattern[1:-1], value) is not None


# Each holds of values of another type, as the draft has it: "type" sees to those.
_CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "type": _of_type,
    "const": _same,
    "enum": lambda value, wanted: any(_same(value, one) for one in wanted),
    "pattern": _matches,
    "minimum": lambda value, wanted: not _of_type(value, "number") or value >= wanted,
    "exclusiveMinimum": lambda value, wanted: not _of_type(value, "number") or value > wanted,
    "minItems": lambda value, wanted: not isinstance(value, list) or len(value) >= wanted,
}
_EXPECTED = {
    "type": "a value of type",
    "const": "the value",
    "enum": "one of",
    "pattern": "text that matches",
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "minItems": "so many values or more:",
}


def _required(value: Any, names: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        missing = [name for name in names if name not in value]
        if missing:
            yield f"{place or 'the file'}: got no {', '.join(missing)}, expected {', '.join(names)}"


def _properties(value: Any, wanted: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, of_name in wanted.items():
            if name in value:
                yield from _violations(value[name], of_name, root, _within(place, name))


def _others(value: Any, wanted: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    known = schema.get("properties", {})
    for name in (name for name in value if name not in known):
        if wanted is False:
            yield f"{_within(place, name)}: got this name, expected one of {', '.join(known)}"
        else:
            yield from _violations(value[name], wanted, root, _within(place, name))


def _items(value: Any, wanted: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _violations(item, wanted, root, f"{place}[{i}]")


def _all_of(value: Any, wanted: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    for one in wanted:
        yield from _violations(value, one, root, place)


def _reference(value: Any, wanted: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    yield from _violations(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, place)


_OF_SEVERAL: dict[str, Callable[[Any, Any, Schema, Schema, str], Iterator[str]]] = {
    "required": _required,
    "properties": _properties,
    "additionalProperties": _others,
    "items": _items,
    "allOf": _all_of,
    "$ref": _reference,
}


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name

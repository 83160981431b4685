"""Golden vectors: what goes in and what has to come out, as bit patterns in JSON, for any language.

``conformance/vectors`` holds one file a kind, a JSON schema and ``SHA256SUMS``, in the form that
``sha256sum --check`` reads.  Reading believes nothing: a changed bit, a file cut short, a name or a
value outside the schema is a ValueError that names the file and the place.  Nothing read is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rotary.conformance import json_schema

SCHEMA_VERSION = 1
KINDS = ("tables", "rotation", "scaling", "axes", "linear")
FOLDER = Path(__file__).parent / "vectors"
SCHEMA = "schema.json"
SUMS = "SHA256SUMS"

Array = npt.NDArray[Any]
Document = dict[str, Any]

_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# The quiet NaN without sign and payload: machines differ in which one comes out of inf − inf.
_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8 << 48}
_A_LINE = 8


@dataclass(frozen=True, eq=False)
class Output:
    """What has to come out.

    Attributes
    ----------
    value : array
    level : {"bitwise", "ulp"}
    low : array, optional
        For "ulp": value + low is the real number to twice float64.
    at_most : float, optional
        For "ulp": of the size of (y − value) − low, in units in the last place of value.
    allowed : array, optional
        How large y − value may be for arithmetic that is not exact.
    """

    value: Array
    level: str = "bitwise"
    low: Array | None = None
    at_most: float | None = None
    allowed: Array | None = None


@dataclass(frozen=True, eq=False)
class Vector:
    """One call and its outcome.

    Attributes
    ----------
    id : str
        ``kind/name/dtype``.
    comment : str
    flags : tuple of str
        Names of the mistakes that it catches; the file says what each is.
    dtype : str
        float16, bfloat16, float32 or float64.
    arguments : mapping
        Numbers and words, as the kind takes them (docs/vectors.md).
    inputs : mapping of str to array
    outputs : mapping of str to Output
    """

    id: str
    comment: str
    flags: tuple[str, ...]
    dtype: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Output]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of one of the four names."""
    return _NUMPY_DTYPES[name]


# Reading.


def read(
    folder: str | Path | None = None, *, kinds: Iterable[str] = KINDS, dtype: str | None = None
) -> tuple[Vector, ...]:
    """Return golden vectors.

    Parameters
    ----------
    folder : path, optional
        By default the one that is shipped.
    kinds : iterable of {"tables", "rotation", "scaling", "axes", "linear"}
    dtype : str, optional
        Only those of that dtype.

    Returns
    -------
    tuple of Vector
        Their arrays cannot be written.

    Raises
    ------
    ValueError
        Naming file and place, for whatever is not as it was written: a changed bit, a missing end,
        another schema version, names and values that the schema does not know.

    Examples
    --------
    >>> from rotary.conformance import golden
    >>> vector = golden.find("rotation/half/float32")
    >>> vector.arguments["layout"], vector.inputs["x"].shape
    ('half', (2, 2, 4, 8))
    """
    found: list[Vector] = []
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds: got {kind!r}, expected some of {', '.join(KINDS)}")
        found += _read_kind(FOLDER if folder is None else Path(folder), kind)
    return tuple(vector for vector in found if dtype in (None, vector.dtype))


def find(vector_id: str, folder: str | Path | None = None) -> Vector:
    """Return the vector of that id; a ValueError names ids like it if there is none."""
    kind = vector_id.partition("/")[0]
    vectors = {v.id: v for v in read(folder, kinds=(kind,) if kind in KINDS else KINDS)}
    if vector_id not in vectors:
        like = get_close_matches(vector_id, vectors, 3, 0.0)
        where = f"{kind}.json" if kind in KINDS else "the files"
        raise ValueError(
            f"vector_id: got {vector_id!r}, which is not in {where}, expected one such as "
            f"{', '.join(like)}"
        )
    return vectors[vector_id]


def _read_kind(folder: Path, kind: str) -> tuple[Vector, ...]:
    if folder == FOLDER:
        return _shipped(kind)
    return _vectors(f"{kind}.json", kind, document(folder, kind))


@lru_cache(maxsize=len(KINDS))
def _shipped(kind: str) -> tuple[Vector, ...]:
    return _vectors(f"{kind}.json", kind, document(FOLDER, kind))


def document(folder: Path, kind: str) -> Document:
    """Return one file as JSON has it, held to its checksum and to the schema."""
    name, sums = f"{kind}.json", _checksums(folder)
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error}") from error
    changed = ""
    if _digest(data) != sums[name]:
        changed = f"its sha256 is {_digest(data)[:12]}…, expected {sums[name][:12]}… of {SUMS}"
    try:
        content: Document = _parsed(data)
        json_schema.check(content, _schema())
        if content["kind"] != kind:
            raise ValueError(f"kind: got {content['kind']!r}, expected {kind!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(": ".join(filter(None, (name, changed, str(error))))) from error
    if changed:
        raise ValueError(f"{name}: {changed}: some value was changed")
    return content


def _checksums(folder: Path) -> dict[str, str]:
    """Return file → sha256 for all files, which are those of this schema version."""
    wanted = sorted([SCHEMA, *(f"{kind}.json" for kind in KINDS)])
    try:
        text = (folder / SUMS).read_bytes().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{SUMS}: cannot be read: {error}") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        digest, gap, name = line[:64], line[64:66], line[66:]
        whole = len(digest) == 64 and not set(digest) - set("0123456789abcdef")
        if not whole or gap != "  " or name[-1:] != "\n":
            raise ValueError(f"{SUMS}: line {number}: got {line!r}, expected sha256 and file name")
        sums[name[:-1]] = digest
    found = sorted({*sums, *(path.name for path in folder.glob("*.json"))})
    if list(sums) != wanted or found != wanted:
        raise ValueError(
            f"{SUMS}: got files {', '.join(sums)} in a folder with {', '.join(found)}, expected "
            f"{', '.join(wanted)} in both"
        )
    schema = folder / SCHEMA
    if not schema.is_file() or _digest(schema.read_bytes()) != sums[SCHEMA]:
        raise ValueError(f"{SCHEMA}: its sha256 is not that of {SUMS}: it was changed")
    return sums


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parsed(data: bytes) -> Any:
    """Read strict JSON: UTF-8, no name twice, no NaN and no infinity."""

    def pairs(given: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(given)
        if len(content) != len(given):
            twice = [name for i, (name, _) in enumerate(given) if name in dict(given[:i])]
            raise ValueError(f"got {twice[0]!r} twice in one object, expected it once")
        return content

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"got {name}, which JSON does not have, expected a number")

    return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=no_constant)


@lru_cache(maxsize=1)
def _schema() -> Document:
    schema: Document = _parsed((FOLDER / SCHEMA).read_bytes())
    return schema


def _vectors(file: str, kind: str, content: Document) -> tuple[Vector, ...]:
    """Return the vectors of a file that keeps to the schema, held to what a schema cannot say."""
    vectors: dict[str, Vector] = {}
    for i, given in enumerate(content["vectors"]):
        place = f"{file}: vectors[{i}]"
        if given["id"] in vectors:
            raise ValueError(f"{place}.id: got {given['id']!r} twice, expected it once")
        if given["id"].rpartition("/")[2] != given["dtype"]:
            raise ValueError(
                f"{place}.id: got {given['id']!r}, expected it to end in its dtype {given['dtype']}"
            )
        for flag in given["flags"]:
            if flag not in content["flags"]:
                raise ValueError(
                    f"{place}.flags: got {flag!r}, expected some of {', '.join(content['flags'])}"
                )
        vectors[given["id"]] = _vector(place, given)
    return tuple(vectors.values())


def _vector(place: str, given: Document) -> Vector:
    inputs = {
        name: _array(f"{place}.inputs.{name}", array) for name, array in given["inputs"].items()
    }
    outputs = {
        name: _output(f"{place}.outputs.{name}", output)
        for name, output in given["outputs"].items()
    }
    rest = (given["dtype"], given["arguments"], inputs, outputs)
    return Vector(given["id"], given["comment"], tuple(given["flags"]), *rest)


def _output(place: str, given: Document) -> Output:
    arrays = {
        name: _array(f"{place}.{name}", given[name])
        for name in ("value", "low", "allowed")
        if name in given
    }
    for name, array in arrays.items():
        if array.shape != arrays["value"].shape:
            raise ValueError(
                f"{place}.{name}.shape: got {array.shape}, expected the value's "
                f"{arrays['value'].shape}"
            )
    return Output(level=given["level"], at_most=given.get("at_most"), **arrays)


def _array(place: str, given: Document) -> Array:
    shape, dtype = given["shape"], numpy_dtype(given["dtype"])
    if len(given["bits"]) != prod(shape):
        raise ValueError(
            f"{place}.bits: got {len(given['bits'])} numbers, expected {prod(shape)} of shape "
            f"{shape}"
        )
    big_endian = np.frombuffer(bytes.fromhex("".join(given["bits"])), f">u{dtype.itemsize}")
    array = big_endian.astype(f"u{dtype.itemsize}").view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


# Writing.


def encoded(array: Array) -> Document:
    """Return an array as the files have it."""
    array = np.asarray(array)
    dtype = array.dtype.name
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    patterns = np.ascontiguousarray(array).reshape(-1).view(unsigned)
    patterns = np.where(np.isnan(array).reshape(-1), unsigned.type(_NAN[dtype]), patterns)
    digits = 2 * array.dtype.itemsize
    text = patterns.astype(unsigned.newbyteorder(">")).tobytes().hex()
    bits = [text[i : i + digits] for i in range(0, len(text), digits)]
    return {"dtype": dtype, "shape": list(array.shape), "bits": bits}


def write(folder: str | Path, documents: Iterable[Document]) -> tuple[Path, ...]:
    """Write one document of each kind, the schema and the checksums; return the files.

    Raises
    ------
    ValueError
        For documents that the reader would refuse.
    OSError
        Where the files cannot be written.
    """
    folder = Path(folder)
    files = {SCHEMA: (FOLDER / SCHEMA).read_bytes()}
    schema = _parsed(files[SCHEMA])
    for content in documents:
        file = f"{content['kind']}.json"
        json_schema.check(content, schema)
        _vectors(file, content["kind"], content)
        files[file] = text(content).encode()
    if len(files) != len(KINDS) + 1:
        raise ValueError(f"documents: got {', '.join(files)}, expected one of each kind")
    sums = "".join(f"{_digest(files[name])}  {name}\n" for name in sorted(files))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, SUMS: sums.encode()}.items():
        (folder / name).write_bytes(data)
    return tuple(folder / name for name in (*files, SUMS))


def text(content: Document) -> str:
    """Return a document as JSON, some numbers a line; the same bytes for the same document."""
    return "".join(_lines(content, "")) + "\n"


def _lines(value: Any, indent: str) -> Iterator[str]:
    deeper = f"{indent} "
    if isinstance(value, dict) and value:
        for i, (name, item) in enumerate(value.items()):
            yield f"{'{' if i == 0 else ','}\n{deeper}{_scalar(name)}: "
            yield from _lines(item, deeper)
        yield f"\n{indent}}}"
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield f"{'[' if i == 0 else ','}\n{deeper}"
            yield from _lines(item, deeper)
        yield f"\n{indent}]"
    elif isinstance(value, list) and len(value) > _A_LINE:
        for i in range(0, len(value), _A_LINE):
            yield f"{'[' if i == 0 else ','}\n{deeper}"
            yield ", ".join(map(_scalar, value[i : i + _A_LINE]))
        yield f"\n{indent}]"
    else:
        yield _scalar(value)


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

"""Every variant, once, as data: what is called, on which numbers, and what is held to what."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rotary import axes, scaling
from rotary.conformance import functions, oracle
from rotary.xpos import XPos

DTYPES = ("float16", "bfloat16", "float32", "float64")
# Names of ways, up to the comma: "eager" is "eager, x64" too.
EAGER = ("eager", "lazy")
EAGER_AND_COMPILED = (*EAGER, "compiled", "exported")
VALUES = (*EAGER_AND_COMPILED, "in place")
FAR = 10**5

Positions = Callable[[oracle.Angles], Any]


@dataclass(frozen=True)
class Case:
    """One variant.

    Attributes
    ----------
    id : str
        ``kind/name``; patterns on the command line match it.
    kind : {"tables", "rotation", "table gradient"}
        What is called.
    embedding : mapping
        Arguments of ``RotaryEmbedding``.
    comment : str
        The mistake that this case catches.
    call : {"call", "inverse", "shift", "query and key", "strided", "rotate by head", "converted"}
        How it is called.
    arguments : mapping
        Keywords of the call, as the library takes them.
    positions : callable
        The same positions as numbers: frequencies → (seq,) or (batch, seq); with several axes
        (axes, seq) or (axes, batch, seq).
    traced : mapping
        An argument that is an array of the library, traced wherever the way compiles.
    values : {"normal", "special", "subnormal", "cancelling", "none"}
        What x holds.
    seq, batch, heads : int or None
        Lengths; the number of heads grows with the elements asked for.
    head_first : bool
        Whether heads stand before seq; otherwise the call has ``seq_axis=-3``.
    ways : tuple of str, optional
        Ways of running, by their names up to the comma; all by default.  With a comma behind it, a
        name means the way without another word: ``"eager,"`` is not ``"eager, x64"``.
    dtypes : tuple of str
        Of x.
    """

    id: str
    kind: str
    comment: str
    embedding: Mapping[str, Any] = field(default_factory=dict)
    call: str = "call"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions = lambda angles: np.arange(64.0)
    traced: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    values: str = "normal"
    batch: int | None = 2
    head_first: bool = True
    ways: tuple[str, ...] | None = VALUES
    dtypes: tuple[str, ...] = DTYPES

    @property
    def angles(self) -> oracle.Angles:
        """The frequencies, as the oracle reads them."""
        e = self.embedding
        xpos = e.get("xpos")
        return oracle.Angles(
            e.get("rotary_dim", self.head_dim),
            e.get("base", 10_000.0),
            e.get("frequency_dim"),
            e.get("inv_freq"),
            None if xpos is None else xpos.scale_base,
            self._role,
            e.get("scaling"),
            self.arguments.get("seq_len", 0),
            e.get("axes"),
        )

    @property
    def _role(self) -> str | None:
        """Whose tables the oracle has to make."""
        role = self.arguments.get("role")
        if self.call == "inverse" and role is not None:
            return {"query": "key", "key": "query"}[role]  # the scale is taken out
        return role

    @property
    def head_dim(self) -> int:
        """D."""
        return int(self.embedding["head_dim"])

    @property
    def where(self) -> npt.NDArray[np.float64]:
        """The positions, float64."""
        return np.asarray(self.positions(self.angles), np.float64)

    @property
    def level(self) -> str:
        """How results are compared."""
        return "bound" if self.kind == "table gradient" else "bitwise"

    def shape(self, elements: int) -> tuple[int, ...]:
        """Return x's shape for about so many elements."""
        seq = self.where.shape[-1]
        per_head = (self.batch or 1) * seq * self.head_dim
        heads = max(2, -(-elements // per_head))
        heads += heads % 2  # divisible among two devices
        middle = (heads, seq) if self.head_first else (seq, heads)
        return (*(() if self.batch is None else (self.batch,)), *middle, self.head_dim)

    def random(self) -> np.random.Generator:
        """Return this case's own source of numbers."""
        return np.random.default_rng(zlib.crc32(self.id.encode()))


def _from(start: float) -> Positions:
    return lambda angles: start + np.arange(64.0)


def _these(*positions: Any) -> Positions:
    return lambda angles: positions


def _near_zeros(angles: oracle.Angles) -> list[float]:
    """64 of the positions at which a cosine or a sine is nearly zero, whole and fractional."""
    whole = oracle.worst_positions(angles, [0], 53)
    fractional = oracle.worst_positions(angles, [-40, -20, -3], 53)
    return [*whole[:: max(1, len(whole) // 40)][:40], *fractional[:: len(fractional) // 24][:24]]


def _all_near_zeros(angles: oracle.Angles) -> list[float]:
    whole = oracle.worst_positions(angles, [0], 53)
    return [*whole, *(-p for p in whole[::7])]


def _mixed(angles: oracle.Angles) -> npt.NDArray[np.float64]:
    """Small, long, negative and fractional positions."""
    rng = np.random.default_rng(7)
    return np.concatenate(
        [
            np.arange(-40.0, 40.0),
            rng.integers(0, 2**17, 40).astype(float),
            rng.integers(-(2**31), 2**31, 40).astype(float),
            rng.integers(-(2**53), 2**53, 40).astype(float),
            rng.uniform(-1e6, 1e6, 40),
            2.0 ** rng.uniform(-60, 53, 40),
        ]
    )


_SCATTERED = [float(p) for p in (*range(63, 31, -1), *range(-5, 25), 3, 3)]
_FRACTIONS = [i / 3 - 7.25 for i in range(64)]
_SUPPLIED = tuple(0.9**i for i in range(16))

_PLAIN = {"head_dim": 64}


def _tables() -> Iterable[Case]:
    def case(name: str, comment: str, positions: Positions, **embedding: Any) -> Case:
        return Case(
            f"tables/{name}",
            "tables",
            comment,
            {**_PLAIN, **embedding},
            positions=positions,
            values="none",
            ways=EAGER,
            dtypes=("float32", "float64"),
        )

    yield case("whole", "float32 angles", _from(0))
    yield case("other-base", "a cache key without base", _from(0), base=500_000.0)
    yield case("mixed", "range reduction; positions in float32", _mixed)
    yield case("near-zero", "relative accuracy next to every zero", _all_near_zeros)
    yield case("per-row", "row-wise positions", _these(_FRACTIONS, _SCATTERED))
    yield case("base-1e7", "long wavelengths", _mixed, head_dim=128, base=1e7)
    yield case(
        "supplied", "frequencies supplied as numbers", _mixed, rotary_dim=32, inv_freq=_SUPPLIED
    )


def _rotations() -> Iterable[Case]:
    def case(name: str, comment: str, embedding: Mapping[str, Any] = {}, **rest: Any) -> Case:
        return Case(f"rotation/{name}", "rotation", comment, {**_PLAIN, **embedding}, **rest)

    part = {"rotary_dim": 32}
    trailing = {**part, "rotary_side": "trailing"}
    interleaved = {"layout": "interleaved"}
    yield case("half", "a contracted FMA; the wrong layout", ways=None)
    yield case("interleaved", "the wrong layout; a half write", interleaved, ways=None)
    yield case("other-base", "a cache key without base", {"base": 500_000.0})
    yield case("half-leading", "rotated features that should pass", part)
    yield case("half-trailing", "the wrong side", trailing)
    yield case("interleaved-leading", "rotated features that should pass", {**interleaved, **part})
    yield case("interleaved-trailing", "the wrong side", {**interleaved, **trailing}, ways=None)
    yield case(
        "frequency-dim",
        "the denominator of an odd partial dimension",
        {"head_dim": 70, "rotary_dim": 22, "frequency_dim": 21},
    )
    yield case("supplied", "frequencies supplied as numbers", {**part, "inv_freq": _SUPPLIED})
    yield case("offset", "an offset off by one", arguments={"offset": 77}, positions=_from(77))
    yield case(
        "far", "bfloat16 or float32 positions", arguments={"offset": FAR}, positions=_from(FAR)
    )
    yield case(
        "offset-fraction",
        "a truncated offset",
        arguments={"offset": -2.5},
        positions=_from(-2.5),
    )
    yield case(
        "offset-per-row",
        "one offset for all rows",
        arguments={"offset": [5, 1000]},
        positions=_these(range(5, 69), range(1000, 1064)),
        ways=VALUES,
    )
    yield case(
        "positions",
        "positions taken for a range",
        arguments={"positions": _SCATTERED},
        positions=_these(*_SCATTERED),
    )
    yield case(
        "positions-per-row",
        "row-wise positions",
        arguments={"positions": [_FRACTIONS, _SCATTERED]},
        positions=_these(_FRACTIONS, _SCATTERED),
    )
    near_zeros = _near_zeros(oracle.Angles(64))
    yield case(
        "near-zero",
        "relative accuracy next to every zero",
        arguments={"positions": near_zeros},
        positions=_these(*near_zeros),
    )
    yield case("inverse", "the direction", call="inverse")
    yield case(
        "shift",
        "the direction of a shift",
        call="shift",
        arguments={"by": -9},
        positions=lambda angles: np.full(64, -9.0),
        ways=EAGER_AND_COMPILED,
    )
    yield case(
        "seq-axis",
        "positions along the heads",
        arguments={"seq_axis": -3},
        head_first=False,
    )
    yield case(
        "packed",
        "positions along the heads",
        arguments={"seq_axis": -3, "positions": _SCATTERED},
        positions=_these(*_SCATTERED),
        head_first=False,
        batch=None,
    )
    yield case(
        "query-and-key",
        "fewer key heads than query heads",
        call="query and key",
        ways=EAGER_AND_COMPILED,
    )
    yield case("strided", "input that is not contiguous", call="strided", ways=EAGER)
    yield case("by-head", "tables of x's rank", call="rotate by head", ways=EAGER_AND_COMPILED)
    yield case(
        "converted",
        "features permuted for the other layout, or for all heads as one",
        {**part, "rotary_side": "trailing"},
        call="converted",
        ways=EAGER_AND_COMPILED,
    )
    yield case("special-values", "infinities, NaN and signed zeros", values="special")
    yield case("subnormal", "flushed subnormal numbers", values="subnormal")
    yield case("cancelling", "a contracted FMA", values="cancelling", ways=None)


def _traced() -> Iterable[Case]:
    def tables(name: str, comment: str, positions: npt.NDArray[Any]) -> Case:
        return Case(
            f"traced/tables-{name}",
            "tables",
            comment,
            _PLAIN,
            positions=_these(*positions),
            traced={"positions": positions},
            values="none",
            ways=EAGER_AND_COMPILED,
            dtypes=("float32", "float64"),
        )

    def rotation(
        name: str,
        comment: str,
        where: Positions,
        ways: tuple[str, ...] | None = EAGER_AND_COMPILED,
        **traced: Any,
    ) -> Case:
        return Case(
            f"traced/{name}",
            "rotation",
            comment,
            _PLAIN,
            positions=where,
            traced={argument: np.asarray(value) for argument, value in traced.items()},
            ways=ways,
        )

    rng = np.random.default_rng(11)
    yield tables("whole", "float32 angles", rng.integers(0, 2**31, 256).astype(np.int32))
    yield tables(
        "fractional",
        "a contracted FMA; fused constants",
        np.concatenate([rng.uniform(-1e6, 1e6, 128), 2.0 ** rng.uniform(-60, 53, 128)]).astype(
            np.float32
        ),
    )
    near_zeros = oracle.worst_positions(oracle.Angles(64), [0, -20], 24)
    yield tables(
        "near-zero", "relative accuracy next to every zero", np.array(near_zeros, np.float32)
    )
    yield rotation(
        "offset", "an offset taken for a constant", _from(FAR), None, offset=np.int32(FAR)
    )
    yield rotation(
        "offset-per-row",
        "one offset for all rows",
        _these(range(5, 69), range(1000, 1064)),
        offset=np.array([5, 1000], np.int32),
    )
    yield rotation(
        "positions",
        "positions taken for a range",
        _these(*_SCATTERED),
        positions=np.array(_SCATTERED, np.float32),
    )
    per_row = np.array([_FRACTIONS, _SCATTERED], np.float32)
    yield rotation(
        "positions-per-row", "row-wise positions", _these(*per_row), None, positions=per_row
    )


def _xpos() -> Iterable[Case]:
    embedding = {**_PLAIN, "xpos": XPos(512.0)}

    def tables(name: str, comment: str, role: str, where: Any, **traced: Any) -> Case:
        return Case(
            f"xpos/{name}",
            "tables",
            comment,
            embedding,
            arguments={"role": role},
            positions=_these(*where),
            traced=traced,
            values="none",
            ways=EAGER_AND_COMPILED if traced else EAGER,
            dtypes=("float32", "float64"),
        )

    def rotation(name: str, comment: str, role: str, **rest: Any) -> Case:
        arguments = {"offset": 1000, "role": role}
        given = {"arguments": arguments, "positions": _from(1000), **rest}
        return Case(f"xpos/{name}", "rotation", comment, embedding, **given)

    # Here the scale is at least 2^-106, and no table value is subnormal in float32.
    most = 30_000
    rng = np.random.default_rng(13)
    near_zeros = oracle.worst_positions(oracle.Angles(64), [0, -20], 24)
    near_zeros = [p for p in near_zeros if p < most / 2]
    spread = [*rng.integers(-most, most, 60), *rng.uniform(-most, most, 60), *near_zeros]
    singles = np.array(spread, np.float32)
    for role in ("query", "key"):
        yield tables(f"tables-{role}", "a scale rounded before it meets cos", role, spread)
        yield tables(f"traced-tables-{role}", "fused constants", role, singles, positions=singles)
    yield rotation("query", "a scale rounded before it meets cos", "query", ways=None)
    yield rotation("key", "the scale of the query", "key")
    yield rotation("inverse", "the adjoint, which keeps the scale", "key", call="inverse")
    yield rotation(
        "shift",
        "the direction of a shift",
        "key",
        call="shift",
        arguments={"by": -300, "role": "key"},
        positions=lambda angles: np.full(64, -300.0),
        ways=EAGER_AND_COMPILED,
    )
    yield rotation(
        "traced-offset",
        "a scale taken for a constant",
        "key",
        arguments={"role": "key"},
        traced={"offset": np.asarray(np.int32(1000))},
        ways=None,
    )


_RULES = {
    "linear": scaling.Linear(4.0),
    "ntk": scaling.NTK(8.0),
    "dynamic-ntk": scaling.DynamicNTK(4.0, 2048),
    "yarn": scaling.YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=0.707),
    "yarn-untruncated": scaling.YaRN(16.0, 4096, truncate=False),
    "longrope-short": scaling.LongRoPE([1.25] * 32, [9.0] * 32, 10**6, factor=32.0),
    "longrope-long": scaling.LongRoPE([1.25] * 32, [1.0 + i for i in range(32)], 4096, factor=32.0),
    "llama3": scaling.Llama3(8.0, 1.0, 4.0, 8192),
    "proportional": scaling.Proportional(0.25, 2.0),
}


def _scalings() -> Iterable[Case]:
    for name, rule in _RULES.items():
        embedding = {**_PLAIN, "base": 500_000.0, "scaling": rule}
        yield Case(
            f"scaling/tables-{name}",
            "tables",
            "frequencies or an attention factor in float32",
            embedding,
            arguments={"seq_len": FAR + 64},
            positions=_mixed,
            values="none",
            ways=EAGER,
            dtypes=("float32", "float64"),
        )
        yield Case(
            f"scaling/{name}",
            "rotation",
            "a rule left out of a cache key; the attention factor applied twice",
            embedding,
            arguments={"offset": FAR, "seq_len": FAR + 64},
            positions=_from(FAR),
            ways=None if name == "yarn" else EAGER_AND_COMPILED,
        )


def _axes() -> Iterable[Case]:
    def case(name: str, comment: str, described: Any, **rest: Any) -> Case:
        embedding = {**_PLAIN, "axes": described, **rest.pop("embedding", {})}
        # Which pair turns by what is the same for all dtypes: one case runs in every way.
        usual = {"ways": EAGER_AND_COMPILED, "dtypes": ("float32",)}
        return Case(f"axes/{name}", "rotation", comment, embedding, **{**usual, **rest})

    def at(where: npt.NDArray[np.float64]) -> dict[str, Any]:
        return {"arguments": {"positions": where.tolist()}, "positions": lambda angles: where}

    # Never square: a mix-up of height and width has to show.
    image, video = axes.grid(4, 12), np.add(axes.grid(4, 6, frames=2), [[5.0], [2.0], [3.0]])
    sections, interleaved = axes.Sections((8, 12, 12)), {"layout": "interleaved"}
    full = {"ways": None, "dtypes": DTYPES}
    yield case("sections", "height for width", sections, **full, **at(video))
    yield case("sections-text", "text turned by sections", sections)
    yield case(
        "sections-offset-per-row",
        "rows taken for axes",
        sections,
        arguments={"offset": [5, 1000]},
        positions=lambda angles: np.stack([[*range(5, 69)], [*range(1000, 1064)]])[None],
    )
    cycled = axes.Sections((12, 10, 10), "cycled")
    yield case("sections-cycled", "sections in blocks", cycled, **at(video))
    ernie = axes.Sections((10, 11, 11), "first_axis_last")
    yield case("first-axis-last", "time before space", ernie, embedding=interleaved, **at(video))
    yield case("axial", "height for width", axes.Axial((16, 16)), **at(image))
    yield case(
        "axial-width-first",
        "the order of the axes",
        axes.Axial((16, 16), axis_order=(1, 0)),
        embedding=interleaved,
        **at(axes.grid(4, 12, start=1, after=1)),
    )
    yield case("axial-cycled", "axes in blocks", axes.Axial((16, 16), "cycled"), **at(image))
    dealt = axes.Axial((16, 16), frequencies="dealt")
    yield case("axial-dealt", "a series for each axis", dealt, **at(image))
    split = axes.Axial((16, 16), split_features=True)
    yield case("axial-split", "one block of features", split, **full, **at(image))
    turns = axes.Axial((16, 16), in_turns=True)
    yield case(
        "axial-in-turns",
        "2π rounded; coordinates in float32",
        turns,
        embedding={"base": 100.0},
        **at(axes.grid(4, 12, centered=True, before=5)),
    )
    yield case(
        "axial-video",
        "blocks of one size",
        axes.Axial((4, 14, 14), split_features=True),
        embedding={"head_dim": 80, "rotary_dim": 64},
        **at(video),
    )
    rng = np.random.default_rng(17)
    per_row = rng.integers(0, 10**6, (3, 2, 40)).astype(np.int32)
    yield case(
        "traced",
        "axes taken for rows",
        sections,
        traced={"positions": per_row},
        positions=lambda angles: per_row,
        ways=None,
    )
    fractional = rng.uniform(-1.0, 1.0, (2, 40)).astype(np.float32)
    yield case(
        "traced-fractional",
        "fused constants",
        turns,
        traced={"positions": fractional},
        positions=lambda angles: fractional,
    )
    for name, described in (("sections", sections), ("axial", axes.Axial((8, 12, 12)))):
        yield Case(
            f"axes/tables-{name}",
            "tables",
            "float32 angles; a wrong denominator",
            {"head_dim": 64, "axes": described},
            positions=lambda angles: _by_axis(3),
            values="none",
            ways=EAGER,
            dtypes=("float32", "float64"),
        )


def _by_axis(count: int) -> npt.NDArray[np.float64]:
    """Mixed positions for so many axes, which differ."""
    mixed = _mixed(oracle.Angles(2))
    return np.stack([np.roll(mixed, 7 * axis) for axis in range(count)])


def _gradients() -> Iterable[Case]:
    for layout in ("half", "interleaved"):
        yield Case(
            f"gradient/tables-{layout}",
            "table gradient",
            "learned frequencies: a lost or doubled term",
            {**_PLAIN, "layout": layout},
            ways=("table gradient",),
            dtypes=("float32", "float64"),
        )


AnyCase = Case | functions.FunctionCase


@lru_cache(maxsize=1)
def every() -> tuple[AnyCase, ...]:
    """Return all cases."""
    return (
        *_tables(),
        *_rotations(),
        *_traced(),
        *_xpos(),
        *_scalings(),
        *_axes(),
        *_gradients(),
        *functions.every(),
    )


def select(patterns: Iterable[str]) -> tuple[AnyCase, ...]:
    """Return the cases whose id is one of the patterns or matches it (``*``, ``rotation/*``)."""
    cases = every()
    chosen: list[AnyCase] = []
    for pattern in patterns:
        matching = [case for case in cases if fnmatchcase(case.id, pattern)]
        if not matching:
            raise ValueError(
                f"case: {pattern!r} matches none of {', '.join(case.id for case in cases)}"
            )
        chosen += [case for case in matching if case not in chosen]
    return tuple(chosen)

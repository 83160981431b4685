"""Makes the golden vectors from the oracle alone, the same bytes each time.

cos and sin come from mpmath, rotations are single operations rounded from float64, scaling rules
and axes are those of ``scaling_oracle`` and ``axes_oracle``.  For exact linear attention the oracle
gives bounds, no bits: these come from NumPy, and are written only if they keep to the bound.
Inputs are patterns cut from SHAKE-256, which no random generator's version changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

from rotary import axes, scaling
from rotary.conformance import axes_oracle, golden, golden_cases, oracle
from rotary.conformance import linear_oracle as linear
from rotary.conformance.golden import Array, Document
from rotary.conformance.linear_oracle import Variant

FLOAT64_ULPS = 0.501
WIDE = ("float32", "float64")
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Bits of the fraction, bias of the exponent.
_FORMATS = {"float16": (10, 15), "bfloat16": (7, 127), "float32": (23, 127), "float64": (52, 1023)}


def write(folder: str | Path) -> str:
    """Write all files there and return a sentence about them."""
    files = golden.write(folder, documents())
    vectors = len(golden.read(folder))
    size = sum(file.stat().st_size for file in files)
    return f"wrote {vectors} vectors, {len(files)} files, {size / 1e6:.2f} MB to {folder}"


def documents() -> Iterator[Document]:
    """Yield one document a kind."""
    for kind in golden.KINDS:
        yield make(kind)


def make(kind: str) -> Document:
    """Return the document of a kind."""
    comment, flags, vectors = {
        "tables": (_TABLES_COMMENT, _TABLES_FLAGS, _tables),
        "rotation": (_ROTATION_COMMENT, _ROTATION_FLAGS, _rotations),
        "scaling": (_SCALING_COMMENT, _SCALING_FLAGS, _scalings),
        "axes": (_AXES_COMMENT, _AXES_FLAGS, _several_axes),
        "linear": (_LINEAR_COMMENT, _LINEAR_FLAGS, _linear),
    }[kind]
    made = list(vectors())
    used = [flag for flag in flags if any(flag in vector["flags"] for vector in made)]
    return {
        "schema_version": golden.SCHEMA_VERSION,
        "kind": kind,
        "comment": comment,
        "flags": {flag: flags[flag] for flag in used},
        "vectors": made,
    }


def patterns(name: str, shape: tuple[int, ...], dtype: str, low: int = -4, high: int = 4) -> Array:
    """Return numbers of both signs and sizes from 2^low to 2^(high + 1), made from the name."""
    fraction, bias = _FORMATS[dtype]
    kind = golden.numpy_dtype(dtype)
    digest = hashlib.shake_256(name.encode()).digest(8 * prod(shape))
    words = np.frombuffer(digest, "<u8").astype(np.uint64)
    exponents = ((words >> np.uint64(53)) & np.uint64(1023)) % np.uint64(high - low + 1)
    exponents = exponents + np.uint64(bias + low)
    signs = (words >> np.uint64(63)) << np.uint64(8 * kind.itemsize - 1)
    bits = signs | exponents << np.uint64(fraction) | words & np.uint64((1 << fraction) - 1)
    numbers: Array = bits.astype(f"u{kind.itemsize}").view(kind).reshape(shape)
    return numbers


def _vector(
    vector_id: str,
    comment: str,
    flags: str,
    arguments: dict[str, Any],
    inputs: dict[str, Array],
    outputs: dict[str, Document],
) -> Document:
    return {
        "id": vector_id,
        "comment": comment,
        "flags": flags.split(),
        "dtype": vector_id.rpartition("/")[2],
        "arguments": arguments,
        "inputs": {name: golden.encoded(array) for name, array in inputs.items()},
        "outputs": outputs,
    }


def _bitwise(array: Array) -> Document:
    return {"level": "bitwise", "value": golden.encoded(array)}


def _cos_sin(angles: oracle.Angles, positions: Any, dtype: str) -> dict[str, Document]:
    """Return both tables, float32 to the bit and float64 within its bound."""
    tables = oracle.tables(angles, np.asarray(positions, np.float64))
    if dtype != "float64":
        return {name: _bitwise(tables.float32[i]) for i, name in enumerate(("cos", "sin"))}
    return {
        name: {
            "level": "ulp",
            "value": golden.encoded(tables.high[i]),
            "low": golden.encoded(tables.low[i]),
            "at_most": FLOAT64_ULPS,
        }
        for i, name in enumerate(("cos", "sin"))
    }


def _near_zeros(angles: oracle.Angles, exponents: list[int], bits: int, most: int) -> list[float]:
    """Return about so many positions at which some cosine or sine is nearly zero."""
    found = oracle.worst_positions(angles, exponents, bits)
    return found[:: max(1, len(found) // most)]


# Tables.

_TABLES_COMMENT = (
    "cos and sin of p·ω_i for positions p and ω_i = base^(-2i/frequency_dim), i = 0 … "
    "rotary_dim/2 - 1, or of the frequencies inv_freq in radians per position, which count as "
    "exact; shape (positions…, rotary_dim/2). The angle is the product of real numbers: float32 "
    "tables are correctly rounded, float64 tables within 0.501 units in the last place. With "
    "xpos_scale_base b both are multiplied by ((2i/rotary_dim + 0.4)/1.4)^(p/b) for the role query "
    "and by its inverse for the role key."
)
_TABLES_FLAGS = {
    "float32-angles": "the angle, the frequency or the position is rounded to float32 on the way",
    "position-dtype": "positions beyond the whole numbers of bfloat16, float32 or int32",
    "range-reduction": "the angle is reduced by too few digits of π",
    "sign": "a negative position taken for its absolute value or refused",
    "truncation": "a fractional position cut to a whole number",
    "near-zero": "absolute instead of relative accuracy next to a zero of cos or sin",
    "base": "another base, or a cache key without the base",
    "denominator": "frequency_dim taken for rotary_dim",
    "inv-freq": "supplied frequencies that are ignored or rounded",
    "per-row": "one row of positions taken for all batch rows",
    "double-rounding": "a table rounded to float64 first and to float32 then",
    "xpos": "the scale left out, inverted, or rounded before it meets cos",
}
_CLASSES: dict[str, tuple[str, str, list[float]]] = {
    "small": ("positions of a short text", "float32-angles", [*range(9), 100, 255, 1000, 4095]),
    "far": (
        "positions of long contexts, to 2^24 + 1",
        "float32-angles position-dtype",
        [4097, 32_767, 65_537, 100_000, 2**17 - 1, 2**17, 1_000_001, 2**24 + 1],
    ),
    "huge": (
        "positions up to 2^53",
        "position-dtype range-reduction",
        [2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**40 + 1, 2**53 - 1, 2**53],
    ),
    "negative": ("negative positions", "sign", [-1, -2, -100, -(2**17), -(2**31) - 1, -2.75]),
    "fractional": (
        "fractional positions",
        "truncation",
        [0.5, 1 / 3, 2.75, 1e-3, 1000.1, 131_071.5, 2.0**-20, 2.0**-60],
    ),
}
_SUPPLIED = (1.0, 0.5, 1 / 3, 0.1, 6.283185307179586, 1e-3, 1e-6, 0.9)


def _tables() -> Iterator[Document]:
    usual = {"rotary_dim": 16, "base": 10_000.0, "frequency_dim": 16}
    for dtype in WIDE:
        for name, (comment, flags, positions) in _CLASSES.items():
            yield _table(name, comment, flags, usual, positions, dtype)
        near = _near_zeros(oracle.Angles(16), [0], 53, 24) + _near_zeros(
            oracle.Angles(16), [-20], 53, 8
        )
        comment = "positions next to zeros of cos and sin, from continued fractions"
        yield _table("near-zero", comment, "near-zero range-reduction", usual, near, dtype)
        rows = [[0, 1, 2, 3], [1000, 5, 5, 2**17]]
        yield _table(
            "per-row", "a row of positions for each batch row", "per-row", usual, rows, dtype
        )
        llama = {"rotary_dim": 128, "base": 500_000.0, "frequency_dim": 128}
        comment = "the frequencies of Llama 3: base 500 000, 64 pairs"
        yield _table("llama", comment, "base float32-angles", llama, [1, 4095, 2**17 - 1], dtype)
        odd = {"rotary_dim": 22, "base": 10_000.0, "frequency_dim": 21}
        comment = "0.3 of 70 features: 11 frequencies with the denominator 21"
        yield _table("frequency-dim", comment, "denominator", odd, [1, 100, 2**17], dtype)
        comment = "frequencies supplied as float64"
        given = {"inv_freq": _SUPPLIED}
        where = [1, -3, 1000, 2**31 + 1, 0.1]
        yield _table("inv-freq", comment, "inv-freq", {"rotary_dim": 16}, where, dtype, **given)
        for role in ("query", "key"):
            xpos = {**usual, "xpos_scale_base": 512.0, "role": role}
            where = [0, 1, -7, 1000, 4095.5, 20_000]
            yield _table(
                f"xpos-{role}", f"tables of xPos for the {role}", "xpos", xpos, where, dtype
            )


def _table(
    name: str,
    comment: str,
    flags: str,
    arguments: dict[str, Any],
    positions: Any,
    dtype: str,
    inv_freq: tuple[float, ...] | None = None,
) -> Document:
    angles = oracle.Angles(
        arguments["rotary_dim"],
        arguments.get("base", 10_000.0),
        arguments.get("frequency_dim"),
        inv_freq,
        arguments.get("xpos_scale_base"),
        arguments.get("role"),
    )
    inputs = {"positions": np.asarray(positions, np.float64)}
    if inv_freq is not None:
        inputs["inv_freq"] = np.asarray(inv_freq)
    flags = f"{flags} double-rounding" if dtype == "float32" and name == "near-zero" else flags
    outputs = _cos_sin(angles, positions, dtype)
    return _vector(f"tables/{name}/{dtype}", comment, flags, arguments, inputs, outputs)


# Rotation.

_ROTATION_COMMENT = (
    "y = x with pairs of features rotated: (x1, x2) → (x1·cos - x2·sin, x1·sin + x2·cos), every "
    "product rounded, then the sum, in float32 (float64 for float64), then once to the dtype of x; "
    "no fused multiply-add. cos and sin are given, shape (seq, rotary_dim/2) or (batch, seq, "
    "rotary_dim/2); those of float32 and of the 16-bit dtypes are the correctly rounded tables of "
    "positions and base, so that x, positions and base can be given instead. Layout half pairs "
    "features (i, i + rotary_dim/2), interleaved (2i, 2i + 1), within the leading or the trailing "
    "rotary_dim features; the others pass. x is (batch, heads, seq, head_dim), or with seq_axis -3 "
    "(batch, seq, heads, head_dim). inverse rotates by the opposite angle: the adjoint, and the "
    "gradient by x. Where offset is given, positions are offset … offset + seq - 1, for each batch "
    "row if there are several."
)
_ROTATION_FLAGS = {
    "fma": "a contracted multiply-add: the product is not rounded before the sum",
    "layout": "the other layout, or one layout read and the other written",
    "partial": "features rotate that should pass, or the reverse",
    "side": "the leading features rotate instead of the trailing ones",
    "direction": "the opposite angle",
    "offset": "an offset left out, off by one, cut to a whole number or taken for all rows",
    "positions": "positions taken for a range",
    "position-dtype": "positions rounded to bfloat16 or float32",
    "per-row": "one row of positions taken for all batch rows",
    "seq-axis": "positions along the heads",
    "16-bit": "products or sums rounded to 16 bits instead of float32",
    "special": "infinities, NaN or zeros that do not pass through the formula",
    "tail": "features left over by a vector loop",
}


@dataclass(frozen=True)
class _Rotation:
    """One rotation, for all dtypes."""

    name: str
    comment: str
    flags: str
    positions: Any = tuple(range(4))
    layout: str = "half"
    rotary_dim: int = 8
    rotary_side: str = "leading"
    inverse: bool = False
    seq_axis: int = -2
    offset: Any = None
    head_dim: int = 8
    batch: int = 2
    heads: int = 2
    values: str = "normal"

    @property
    def arguments(self) -> dict[str, Any]:
        """As the file has them."""
        names = ("head_dim", "rotary_dim", "layout", "rotary_side", "inverse", "seq_axis")
        given = {"base": 10_000.0, **{name: getattr(self, name) for name in names}}
        return given if self.offset is None else {**given, "offset": self.offset}


def _all_rotations() -> Iterator[_Rotation]:
    far = (131_071.0, 5.0, 77_777.0, 2.0**24 + 1)
    yield _Rotation("half", "layout half", "layout fma")
    comment = "layout interleaved"
    yield _Rotation("interleaved", comment, "layout fma", layout="interleaved")
    for layout in ("half", "interleaved"):
        for side in ("leading", "trailing"):
            yield _Rotation(
                f"{layout}-{side}",
                f"4 of 8 features rotate, the {side} ones, layout {layout}",
                "partial side layout",
                layout=layout,
                rotary_dim=4,
                rotary_side=side,
            )
        yield _Rotation(
            f"{layout}-adjoint",
            f"the opposite angle, layout {layout}",
            "direction layout",
            layout=layout,
            inverse=True,
        )
    where = tuple(77.0 + i for i in range(4))
    yield _Rotation("offset", "decoding from position 77", "offset", where, offset=77)
    where = tuple(131_071.0 + i for i in range(4))
    comment = "decoding from position 131 071"
    yield _Rotation("offset-far", comment, "offset position-dtype", where, offset=131_071)
    where = (-2.5, -1.5, -0.5, 0.5)
    yield _Rotation("offset-fraction", "an offset of -2.5", "offset", where, offset=-2.5)
    rows = ((5.0, 6.0, 7.0, 8.0), (1000.0, 1001.0, 1002.0, 1003.0))
    comment = "an offset for each batch row"
    yield _Rotation("offset-per-row", comment, "offset per-row", rows, offset=[5, 1000])
    comment = "positions that are no range"
    yield _Rotation("positions", comment, "positions position-dtype", far, "interleaved")
    rows = (far, (0.0, -3.0, 1 / 3, 3.0))
    yield _Rotation("positions-per-row", "positions for each batch row", "per-row", rows)
    comment = "(batch, seq, heads, head_dim)"
    yield _Rotation("seq-axis", comment, "seq-axis", far, seq_axis=-3, heads=4)
    near = tuple(_near_zeros(oracle.Angles(8), [0], 53, 8))
    yield _Rotation("near-zero", "positions next to zeros of cos and sin", "position-dtype", near)
    comment = "x1·cos - x2·sin nearly zero: what is left is the rounding of the products"
    yield _Rotation("cancelling", comment, "fma 16-bit", far, values="cancelling")
    yield _Rotation("special", "infinities, NaN and signed zeros", "special", values="special")
    yield _Rotation(
        "tail",
        "33 pairs of 70 features",
        "tail partial",
        (1.0, 4095.0),
        rotary_dim=66,
        head_dim=70,
        batch=1,
        heads=1,
    )


def _rotations() -> Iterator[Document]:
    for dtype in DTYPES:
        for rotation in _all_rotations():
            yield _rotation(rotation, dtype)


def _rotation(r: _Rotation, dtype: str) -> Document:
    where = np.asarray(r.positions, np.float64)
    tables = oracle.tables(oracle.Angles(r.rotary_dim), where)
    cos, sin = tables.high if dtype == "float64" else tables.float32
    pairs = oracle.pair_indices(r.head_dim, r.rotary_dim, r.layout, r.rotary_side)
    seq = where.shape[-1]
    middle = (r.heads, seq) if r.seq_axis == -2 else (seq, r.heads)
    # So large that what cancellation leaves is no subnormal number: libraries flush those.
    sizes = (6, 10) if r.values == "cancelling" else (-4, 4)
    x = patterns(f"{r.name}/{dtype}", (r.batch, *middle, r.head_dim), dtype, *sizes)
    heads_axis = -3 if r.seq_axis == -2 else -2
    cos_along, sin_along = (np.expand_dims(table, heads_axis) for table in (cos, sin))
    if r.values == "cancelling":
        scale = x[..., pairs[0]].astype(np.float64)
        x[..., pairs[0]], x[..., pairs[1]] = scale * sin_along, scale * cos_along
    elif r.values == "special":
        specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
        x.reshape(-1)[::3] = np.resize(specials, x.reshape(-1)[::3].shape)
    y = oracle.rotate(x, cos_along, sin_along, pairs, inverse=r.inverse)
    inputs = {"x": x, "positions": where, "cos": cos, "sin": sin}
    flags = f"{r.flags} 16-bit" if dtype in DTYPES[:2] and "16-bit" not in r.flags else r.flags
    outputs = {"y": _bitwise(y)}
    return _vector(f"rotation/{r.name}/{dtype}", r.comment, flags, r.arguments, inputs, outputs)


# Scaling rules.

_SCALING_COMMENT = (
    "Frequencies changed by a scaling rule, for a sequence of seq_len tokens: inv_freq in radians "
    "per position and the attention factor, each the float64 nearest to the real number, and the "
    "tables, which are attention factor times cos and sin of the real angle, float32 correctly "
    "rounded and float64 within 0.501 units in the last place. The numbers of a rule have the "
    "names of Hugging Face's rope_parameters. No result depends on an earlier call."
)
_SCALING_FLAGS = {
    "rule": "the rule left out, or another one",
    "attention-factor": "the attention factor left out, applied twice, or put on one table",
    "float32-frequencies": "frequencies rounded to float32",
    "length": "seq_len ignored, or the largest length seen so far kept",
    "switch": "the switch from short to long factors off by one",
    "truncate": "YaRN's truncate ignored",
    "scaling-of-one": "a rule applied where it changes nothing",
    "unrotated": "pairs that should stand still rotate, or the denominator of the rotating part",
}
_SHORT = tuple(1.0 + i / 16 for i in range(16))
_LONG = tuple(1.0 + i for i in range(16))


def _rules() -> Iterator[tuple[str, str, str, scaling.Scaling, int]]:
    """Yield name, comment, flags, rule and the length of the sequence."""
    factor = "attention-factor rule"
    yield "linear", "position interpolation", "rule", scaling.Linear(4.0), 0
    yield "ntk", "NTK-aware scaling, static", "rule", scaling.NTK(8.0), 0
    dynamic = scaling.DynamicNTK(4.0, 2048)
    comment = "dynamic NTK for a sequence as short as in training"
    yield "dynamic-ntk-short", comment, "length scaling-of-one", dynamic, 100
    yield "dynamic-ntk", "dynamic NTK at 8192 tokens", "length rule", dynamic, 8192
    yield "yarn", "YaRN", factor, scaling.YaRN(16.0, 4096), 0
    mscale = scaling.YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=0.707)
    yield "yarn-mscale", "YaRN as DeepSeek has it", factor, mscale, 0
    untruncated = scaling.YaRN(16.0, 4096, truncate=False)
    yield "yarn-untruncated", "YaRN without truncate", "truncate rule", untruncated, 0
    explicit = scaling.YaRN(16.0, 4096, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5)
    yield "yarn-explicit", "YaRN with every number given", factor, explicit, 0
    longrope = scaling.LongRoPE(_SHORT, _LONG, 4096, factor=32.0)
    comment = "LongRoPE at the length of training, the last of the short factors"
    yield "longrope-short", comment, "switch attention-factor", longrope, 4096
    comment = "LongRoPE one token longer, the first of the long factors"
    yield "longrope-long", comment, "switch attention-factor", longrope, 4097
    mscales = scaling.LongRoPE(_SHORT, _LONG, 4096, short_mscale=1.1, long_mscale=1.3)
    for length, word in ((4096, "short"), (4097, "long")):
        comment = f"LongRoPE with a factor for {word} sequences, as PhiMoE has it"
        yield f"longrope-mscale-{word}", comment, "attention-factor switch", mscales, length
    yield "llama3", "Llama 3", "rule", scaling.Llama3(8.0, 1.0, 4.0, 8192), 0
    comment = "a quarter of the pairs rotates"
    yield "proportional", comment, "unrotated", scaling.Proportional(0.25, 2.0), 0


def _scalings() -> Iterator[Document]:
    where = np.array([0.0, 1.0, 100.0, 4095.0, 131_071.0, -3.0, 0.5])
    for dtype in WIDE:
        for name, comment, flags, rule, length in _rules():
            base = 500_000.0 if name in ("llama3", "proportional") else 10_000.0
            angles = oracle.Angles(32, base, scaling=rule, seq_len=length)
            numbers = {k: v for k, v in vars(rule).items() if v is not None and k[0] != "_"}
            numbers = {k: list(v) if isinstance(v, tuple) else v for k, v in numbers.items()}
            arguments = {
                "rotary_dim": 32,
                "base": base,
                "seq_len": length,
                "scaling": {"rule": type(rule).__name__, **numbers},
            }
            outputs = {
                **_frequencies(angles),
                **_cos_sin(angles, where, dtype),
            }
            yield _vector(
                f"scaling/{name}/{dtype}",
                comment,
                f"{flags} float32-frequencies",
                arguments,
                {"positions": where},
                outputs,
            )


def _frequencies(angles: oracle.Angles) -> dict[str, Document]:
    with mpmath.workprec(400):
        radians = [float(2 * mpmath.mp.pi * turns) for turns in angles.turns()]
        factor = angles.factor()
    return {
        "inv_freq": _bitwise(np.array(radians)),
        "attention_factor": _bitwise(np.array(factor)),
    }


# Several axes.

_AXES_COMMENT = (
    "Several position axes: positions (axes, seq) or (axes, batch, seq), each pair turned by one "
    "of them; cos and sin, shape (…, seq, rotary_dim/2), and y, x rotated by them as the "
    "rotations of this collection are. Sections: one series of frequencies, sizes pairs an axis, "
    "in blocks, cycled (T H W T H W …, each axis but the first up to its size) or first_axis_last "
    "(H W H W … T). Axial: a series for each axis (own, denominator 2·size) or one dealt out in "
    "turns (dealt); blocks or cycled in the order axis_order; split_features lays the features of "
    "each axis out as a small head of its own; in_turns means angle 2π·p·base^(…)."
)
_AXES_FLAGS = {
    "axis-order": "height taken for width, or time for space",
    "section-order": "sections in blocks instead of in turns, or the reverse",
    "denominator": "the denominator of the frequencies of one axis",
    "feature-blocks": "one block of features instead of one an axis, or the reverse",
    "rows-for-axes": "batch rows taken for axes",
    "turns": "2π left out, or rounded; coordinates rounded",
    "layout": "the other layout",
}


def _described() -> Iterator[tuple[str, str, str, Any, Array, dict[str, Any]]]:
    """Yield name, comment, flags, the axes, positions and arguments beside the usual ones."""
    image = np.array([[0.0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])
    video = np.array([[5.0, 5, 5, 6, 6, 70], [2, 2, 3, 2, 3, 1000], [3, 4, 3, 3, 4, 131_071]])
    rows = np.stack([video, video[:, ::-1] + 1], axis=1)
    centred = np.array([[-0.75, -0.25, 0.25, 0.75, 0, 1 / 3], [-0.5, 0.5, 0.0, 1, -1, 0.1]])
    interleaved, base = {"layout": "interleaved"}, {"base": 100.0}
    sections, axial = axes.Sections, axes.Axial
    comment = "M-RoPE as Qwen2-VL has it"
    yield "sections", comment, "axis-order section-order", sections((2, 3, 3)), video, {}
    comment = "M-RoPE with positions for each batch row"
    yield "sections-per-row", comment, "rows-for-axes", sections((2, 3, 3)), rows, {}
    comment = "M-RoPE in turns, as Qwen3-VL has it"
    yield "sections-cycled", comment, "section-order", sections((4, 2, 2), "cycled"), video, {}
    ernie = sections((2, 3, 3), "first_axis_last")
    comment = "M-RoPE as Ernie 4.5 VL has it"
    yield "first-axis-last", comment, "section-order layout", ernie, video, interleaved
    comment = "height, then width"
    yield "axial", comment, "axis-order denominator", axial((4, 4)), image, {}
    swapped = axial((4, 4), axis_order=(1, 0))
    yield "axial-width-first", "width, then height", "axis-order", swapped, image, interleaved
    yield "axial-cycled", "axes in turns", "section-order", axial((4, 4), "cycled"), image, {}
    comment = "one series dealt out, as Pixtral has it"
    yield "axial-dealt", comment, "denominator", axial((4, 4), frequencies="dealt"), image, {}
    split = axial((4, 4), split_features=True)
    comment = "a block of features an axis, as Gemma 4 has it"
    yield "axial-split", comment, "feature-blocks", split, image, {}
    comment = "coordinates from -1 to 1 in turns, as DINOv3 has them"
    yield "axial-in-turns", comment, "turns", axial((4, 4), in_turns=True), centred, base
    unequal = axial((2, 3, 3), split_features=True)
    comment = "blocks of unequal sizes, and features that pass"
    yield "axial-video", comment, "feature-blocks denominator", unequal, video, {"head_dim": 20}


def _several_axes() -> Iterator[Document]:
    for name, comment, flags, described, where, more in _described():
        numbers = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(described).items()}
        usual = {"head_dim": 16, "rotary_dim": 16, "base": 10_000.0, "layout": "half"}
        arguments = {**usual, **more}
        angles = oracle.Angles(16, arguments["base"], axes=described)
        tables = oracle.tables(angles, where)
        blocks = axes_oracle.blocks(vars(described))
        geometry = (arguments["head_dim"], 16, arguments["layout"], "leading", blocks)
        batch = where.shape[1] if where.ndim == 3 else 1
        x = patterns(f"axes/{name}", (batch, 2, where.shape[-1], arguments["head_dim"]), "float32")
        cos, sin = (np.expand_dims(table, -3) for table in tables.float32)
        y = oracle.rotate(x, cos, sin, oracle.pair_indices(*geometry))
        yield _vector(
            f"axes/{name}/float32",
            comment,
            flags,
            {**arguments, "axes": {"rule": type(described).__name__, **numbers}},
            {"x": x, "positions": where},
            {**_cos_sin(angles, where, "float32"), "y": _bitwise(y)},
        )


# Linear attention.

_LINEAR_COMMENT = (
    "Linear attention in rotary's exact arithmetic (docs/numbers.md), o_i = Σ_j e^(c_i - c_j) "
    "(R_i φ(q_i))·(R_j φ(k_j)) v_j / (Σ_j e^(c_i - c_j) φ(q_i)·φ(k_j) + eps), c the running sum "
    "of the gates, for each feature if they have a last axis; under update delta instead S_t = "
    "a_t S_(t-1) + beta_t k_t (v_t - (a_t S_(t-1))ᵀ k_t)ᵀ with k_t mapped and rotated, o_t = S_tᵀ "
    "q_t; q (batch, heads, seq, features), k and v with fewer heads, gate and beta (batch, "
    "kv_heads, seq). The oracle evaluates these sums in extended precision and gives bounds, no "
    "bits: the bits are those of NumPy, and each output was within 64·u·(sum of the "
    "sizes)/denominator of the oracle when this file was made. allowed says how far an output may "
    "be from value for arithmetic that is not exact: the bound and the distance of value from the "
    "oracle. Bits depend on chunk_size and on parts, the numbers of tokens of the calls that hand "
    "a state on; out is all parts, the numerator (batch, kv_heads, features, value_dim) and the "
    "normaliser with their low words are the state at the end."
)
_LINEAR_FLAGS = {
    "feature-map": "an exponential that cancels with 1, or another feature map",
    "rotation": "the rotation left out, before instead of after the map, or in the normaliser",
    "layout": "the other layout or side",
    "xpos": "queries scaled like keys",
    "scale": "a scale that the epsilon does not see",
    "decay": "a decay of another head, off by a token, or differences of gates after exp",
    "channels": "a gate for each feature taken for one",
    "delta": "the delta rule without the prediction, its beta or its gate in another place",
    "16-bit": "sums in 16 bits",
    "causal": "later tokens seen, or earlier ones not",
    "state": "a state that lacks a token, its position or its low words, or is changed in place",
    "chunks": "chunks that do not divide the sequence",
}
_CHUNK, _KEYS, _VALUES, _SEQ = 8, 8, 4, 20


_DELTA = Variant("l2norm", update="delta", normalize=False)
# Name, comment, flags and what the oracle computes.
_VARIANTS: tuple[tuple[str, str, str, Variant], ...] = (
    ("plain", "elu + 1 without rotation", "feature-map chunks", Variant()),
    (
        "rope",
        "rotated after the map, in the numerator alone",
        "rotation chunks",
        Variant(rotary_dim=_KEYS),
    ),
    (
        "partial",
        "the trailing 4 of 8 features rotate, interleaved",
        "layout",
        Variant(rotary_dim=4, layout="interleaved", rotary_side="trailing"),
    ),
    ("xpos", "with the scale of xPos", "xpos", Variant(rotary_dim=_KEYS, scale_base=512.0)),
    (
        "both",
        "rotated in numerator and denominator, without the latter",
        "rotation",
        Variant("relu", rotary_dim=_KEYS, placement="both", normalize=False),
    ),
    (
        "before-map",
        "rotated before the map",
        "rotation",
        Variant(rotary_dim=_KEYS, placement="before_map"),
    ),
    (
        "relu2",
        "the square of relu, scaled by a quarter",
        "scale",
        Variant("relu2", rotary_dim=_KEYS, scale=0.25),
    ),
    (
        "retnet",
        "the decay of RetNet",
        "decay",
        Variant("identity", rotary_dim=_KEYS, decay="retnet", normalize=False),
    ),
    ("gate", "a gate for each token", "decay", Variant(rotary_dim=_KEYS, decay="gate")),
    (
        "channel-gate",
        "a gate for each token and feature, as GLA has it",
        "decay channels",
        Variant("identity", decay="gate", normalize=False),
    ),
    ("delta", "the delta rule over keys of length 1", "delta", _DELTA),
    (
        "gated-delta",
        "the gated delta rule, as Qwen3-Next has it",
        "delta decay",
        replace(_DELTA, decay="gate"),
    ),
    ("taylor", "1 + s + s²/2, as Based has it", "feature-map", Variant("taylor")),
)


def _linear() -> Iterator[Document]:
    for name, comment, flags, variant in _VARIANTS:
        yield _attention(name, comment, flags, variant)
    rope, gated = Variant(rotary_dim=_KEYS), Variant(rotary_dim=_KEYS, decay="gate")
    for dtype in ("float16", "bfloat16"):
        comment = "16-bit inputs, sums in float32"
        yield _attention("rope", comment, "16-bit", rope, dtype=dtype)
    both_ways = replace(rope, causal=False)
    yield _attention("bidirectional", "every token sees every token", "causal", both_ways)
    yield _attention("state", "the state after a sequence", "state", rope, parts=(_SEQ,))
    comment = "the state handed on, token by token at the end"
    yield _attention("resumed", comment, "state chunks", rope, parts=(16, 1, 1, 1, 1))
    comment = "the state handed on under gates"
    yield _attention("resumed-gate", comment, "state decay", gated, parts=(16, 4))


def _attention(
    name: str,
    comment: str,
    flags: str,
    v: Variant,
    *,
    dtype: str = "float32",
    parts: tuple[int, ...] = (),
) -> Document:
    rope = None
    if v.rotary_dim:
        rope = {
            "rotary_dim": v.rotary_dim,
            "base": v.base,
            "layout": v.layout,
            "rotary_side": v.rotary_side,
            "xpos_scale_base": v.scale_base,
        }
    arguments = {
        "feature_map": v.feature_map,
        "placement": v.placement,
        "decay": v.decay,
        "update": v.update,
        "normalize": v.normalize,
        "eps": v.eps if v.normalize else None,
        "scale": v.scale,
        "chunk_size": _CHUNK,
        "causal": v.causal,
        **({"parts": list(parts)} if parts else {}),
        "rope": rope,
    }
    inputs = {
        "q": patterns(f"{name}/q", (1, 2, _SEQ, _KEYS), dtype, -3, 0),
        "k": patterns(f"{name}/k", (1, 1, _SEQ, _KEYS), dtype, -3, 0),
        "v": patterns(f"{name}/v", (1, 1, _SEQ, _VALUES), dtype, -3, 1),
    }
    if v.decay == "gate":
        shape = (1, 1, _SEQ, _KEYS) if name == "channel-gate" else (1, 1, _SEQ)
        inputs["gate"] = -np.abs(patterns(f"{name}/gate", shape, "float32", -6, -2))
    if v.update == "delta":
        inputs["beta"] = np.abs(patterns(f"{name}/beta", (1, 1, _SEQ), "float32", -3, -1))
    got = golden_cases.attend(arguments, **inputs)
    outputs = {word: _bitwise(array) for word, array in got.items()}
    outputs["out"]["allowed"] = golden.encoded(_allowed(v, got["out"], inputs))
    if parts:
        _judge_state(v, got, inputs)
    return _vector(f"linear/{name}/{dtype}", comment, flags, arguments, inputs, outputs)


def _allowed(variant: Variant, out: Array, inputs: dict[str, Any]) -> Array:
    """Hold NumPy's outputs to the oracle's bound; return the bound around them."""
    result = linear.quadratic(variant, **inputs)
    bound = linear.allowed(result, out.dtype.name)
    error = np.abs(out.astype(np.longdouble) - result.out)
    if not (error <= bound).all():
        raise ValueError("NumPy's outputs leave the oracle's bound")
    return _rounded_up(bound + error)


def _judge_state(variant: Variant, got: dict[str, Array], inputs: dict[str, Array]) -> None:
    p = linear.prepare(variant, **inputs)
    _, sums = linear.recurrent(variant, **inputs)
    sizes = np.abs(np.swapaxes(p.k, -1, -2)) @ np.abs(p.v)
    pairs = [("numerator", sums.numerator, sizes)]
    if "normaliser" in got:
        pairs.append(("normaliser", sums.normaliser, np.abs(p.k_plain).sum(axis=2)))
    group = inputs["q"].shape[1] // inputs["k"].shape[1]
    for name, want, size in pairs:
        ours = got[name].astype(np.longdouble) + got[f"{name}_low"]
        bound = linear.BOUND * linear.unit_roundoff("float32") * size[:, ::group]
        if not (np.abs(ours - want[:, ::group]) <= bound).all():
            raise ValueError(f"NumPy's {name} leaves the oracle's bound")


def _rounded_up(x: Array) -> Array:
    """Return x with 8 significant bits: what extended precision adds differs by machine."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return np.asarray(np.ldexp(np.ceil(fraction * 256) / 256, exponent))

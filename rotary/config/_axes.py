"""From a config to its position axes: which axis turns which pair, by family.

Models of text with images deal one series of frequencies out in sections (M-RoPE, Qwen2-VL,
arXiv 2409.12191); image models have a series for each axis.  Files say little of it: the order of
the axes stands in the code of transformers 5.23.0 and, as data, here.  Positions are given time or
height first for every family, whatever its own code expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rotary.axes import Axes, Axial, Sections
from rotary.config._families import names
from rotary.embedding import RotaryEmbedding

AXES_TYPES = ("axial", "mrope", "xdrope")
SECTION_KEYS = ("mrope_section", "xdrope_section")
CYCLED_KEYS = ("mrope_interleaved", "interleaved")


class Dealt(NamedTuple):
    """How a family deals its series out to the axes."""

    order: str
    sizes: tuple[int, ...] | None = None
    """Where the file is silent; None for a file that has to say it."""
    listed: tuple[int, ...] | None = None
    """The axes in the order in which the file lists their sections, if it is another."""


# Two axes that share the pairs out evenly, whatever their number.
_EVENLY = (1, 1)
MROPE: dict[str, Dealt] = {
    **dict.fromkeys(
        names(
            """paddleocr_vl_text qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl_text
            qwen2_vl_text"""
        ),
        Dealt("blocks", (16, 24, 24)),
    ),
    **dict.fromkeys(
        names("glm4v_moe_text glm4v_text glm_image_text glm_ocr_text"), Dealt("blocks", (8, 12, 12))
    ),
    **dict.fromkeys(
        names(
            """cohere_compass_text cosmos3_edge_text qwen3_omni_moe_talker_text qwen3_omni_moe_text
            qwen3_vl_moe_text qwen3_vl_text"""
        ),
        Dealt("cycled", (24, 20, 20)),
    ),
    **dict.fromkeys(
        names("qwen3_5_moe_text qwen3_5_text qwen4_exp_text"), Dealt("cycled", (11, 11, 10))
    ),
    # Listed height, width, time.
    "ernie4_5_vl_moe_text": Dealt("first_axis_last", (22, 22, 20), (1, 2, 0)),
    # Width, height and number of the image, and in front of them the place in the text.
    "hunyuan_vl_text": Dealt("blocks"),
    "neomme": Dealt("cycled", _EVENLY),
}


class Tower(NamedTuple):
    """How an image model's axes stand; the sizes follow from the size of its heads."""

    order: str = "blocks"
    axis_order: tuple[int, ...] = (0, 1)
    frequencies: str = "own"
    split_features: bool = False
    in_turns: bool = False
    share_of_axis: bool = False
    """Whether partial_rotary_factor gives the features of one axis."""


_WIDTH_FIRST = Tower(axis_order=(1, 0))
_COORDINATES = Tower(in_turns=True)
AXIAL: dict[str, Tower] = {
    **dict.fromkeys(
        names(
            """cohere_compass_vision dots3_note_vision_encoder ernie4_5_vl_moe_vision
            exaone4_5_vision glm4v_moe_vision glm4v_vision glm5_next_vision glm_ocr_vision
            lfm3_vl_vision mlcd_vision_model paddleocr_vl_vision qwen2_5_omni_vision_encoder
            qwen2_5_vl_vision qwen2_vl_vision qwen3_5_moe_vision qwen3_5_vision
            qwen3_omni_moe_vision_encoder qwen3_vl_moe_vision qwen3_vl_vision qwen4_exp_vision
            video_llama_3_vision"""
        ),
        Tower(),
    ),
    **dict.fromkeys(
        names(
            """edgetam_video inkling2_vision llama4_vision_model muse_glimmer_vision
            muse_spark_vision sam2_video sam3_tracker_video sam3_vit_model step3p5_vision"""
        ),
        _WIDTH_FIRST,
    ),
    **dict.fromkeys(names("dinov3_vit eomt_dinov3 sapiens2"), _COORDINATES),
    "efficientloftr": Tower(order="cycled", share_of_axis=True),
    "gemma4_vision": Tower(axis_order=(1, 0), split_features=True),
    "kimi_k25_vision": Tower(order="cycled", axis_order=(1, 0)),
    "minimax_m3_vl_vision": Tower(axis_order=(0, 1, 2)),
    # Window of the sound, place in the window: both times the seconds, see docs/census.md.
    "musicflamingo": Tower(share_of_axis=True),
    "pixtral": Tower(frequencies="dealt"),
}
# Families of which one rope_type is known; the others in AXIAL scale.
_UNSCALED = AXIAL.keys() - {"efficientloftr", "musicflamingo"}
# The same model in one flat config, as older files have it.
FLAT = {
    "hunyuan_vl": "hunyuan_vl_text",
    "paddleocr_vl": "paddleocr_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
}
# EsmFold2's atoms: x, y, z, and the number of the residue, which has a base of its own.
ATOMS = "esmfold2_atom_encoder"
ATOM_KEYS = (
    "num_spatial_rope_pairs_per_axis",
    "spatial_rope_base_frequency",
    "num_uid_rope_pairs",
    "uid_rope_base_frequency",
)


def axes_of(
    model_type: str, rope: Mapping[str, Any], head_dim: int, rotated: int, share: float
) -> Axes | None:
    """Return a config's axes, or None for one axis.

    `rotated` is the number of features that partial_rotary_factor, `share`, leaves of `head_dim`.
    """
    kinds = {rope.get("rope_type"), rope.get("type")} - {None}
    tower = AXIAL.get(model_type)
    sections = _sections(rope)
    if tower is None and "axial" in kinds:
        raise ValueError(
            f"rope_type: got 'axial' with model_type {model_type!r}, expected a model_type whose "
            f"order of axes is known"
        )
    if tower is None:
        return _dealt(model_type, rope, sections, rotated // 2 + rotated % 2)
    if sections is not None:
        raise ValueError(
            f"mrope_section: got {sections}, expected None: model_type {model_type!r} has "
            f"frequencies for each axis"
        )
    scaled = kinds - {"axial", "default"}
    if model_type in _UNSCALED and scaled:
        raise ValueError(
            f"rope_type: got {scaled.pop()!r}, expected 'axial': model_type {model_type!r} does "
            f"not scale"
        )
    return _axial(tower, head_dim, rotated, share)


def atoms_of(numbers: list[Any], head_dim: int) -> tuple[Sections, tuple[float, ...]]:
    """Return the axes and the frequencies of EsmFold2's atoms, from the values of ATOM_KEYS."""
    in_space, space_base, of_residue, residue_base = numbers
    rest = head_dim // 2 - 3 * in_space - of_residue
    if rest < 0:
        raise ValueError(
            f"{ATOM_KEYS[0]}: got {in_space} and {ATOM_KEYS[2]} {of_residue}, expected at most "
            f"{head_dim // 2} pairs together, counting the first three times"
        )
    space = RotaryEmbedding(2 * in_space, base=space_base).frequencies().tolist()
    residue = RotaryEmbedding(2 * of_residue, base=residue_base).frequencies().tolist()
    # What is left over stands still.
    sizes = (in_space, in_space, in_space, of_residue + rest)
    return Sections(sizes), (*space * 3, *residue, *[0.0] * rest)


def _sections(rope: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the pairs of each axis as the file lists them."""
    found = {key: rope[key] for key in SECTION_KEYS if rope.get(key) is not None}
    listed = list(found.values())
    if len(listed) == 2 and list(listed[0]) != list(listed[1]):
        raise ValueError(
            f"mrope_section: got {listed[0]} and xdrope_section {listed[1]}, expected one of them"
        )
    if not listed:
        return None
    # Some files write them as 16.0.
    given = listed[0] if isinstance(listed[0], list | tuple) else (listed[0],)
    whole = (int(n) if isinstance(n, float) and n.is_integer() else n for n in given)
    return _made(tuple(whole), "blocks", next(iter(found))).sizes


def _made(sizes: tuple[int, ...], order: str, key: str) -> Sections:
    """Return the axes; errors name the key that the sizes come from."""
    try:
        return Sections(sizes, order)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key}: {str(error).partition(': ')[2]}") from None


def _dealt(
    model_type: str, rope: Mapping[str, Any], sections: tuple[int, ...] | None, pairs: int
) -> Axes | None:
    family = MROPE.get(model_type)
    if sections is None and family is None:
        kind = next((rope[k] for k in ("rope_type", "type") if rope.get(k) in AXES_TYPES), None)
        if kind is not None:
            raise ValueError(f"mrope_section: missing, expected with rope_type {kind!r}")
        return None
    order = _order(model_type, rope, family)
    if sections is None:
        assert family is not None
        return _silent(model_type, family, pairs)
    if family is not None:
        sections = _put(sections, family)
    if sum(sections) != pairs:
        raise ValueError(
            f"mrope_section: got {list(sections)}, {sum(sections)} pairs together, expected the "
            f"{pairs} that rotate"
        )
    if family is not None and family.sizes == _EVENLY and sections != _even(pairs):
        raise ValueError(
            f"mrope_section: got {list(sections)}, expected {list(_even(pairs))} or None: "
            f"model_type {model_type!r} deals evenly"
        )
    return _made(sections, order, "mrope_section")


def _even(pairs: int) -> tuple[int, ...]:
    return pairs - pairs // 2, pairs // 2


def _order(model_type: str, rope: Mapping[str, Any], family: Dealt | None) -> str:
    """Return the order of the sections; the key that tells it has to agree with the family."""
    told = next((rope[key] for key in CYCLED_KEYS if rope.get(key) is not None), None)
    if family is None and told is None:
        raise ValueError(
            f"mrope_interleaved: missing, expected True or False beside mrope_section: the order "
            f"of model_type {model_type!r} is not known"
        )
    if family is None:
        return "cycled" if told else "blocks"
    cycled = family.order == "cycled"
    if told is not None and bool(told) != cycled:
        raise ValueError(
            f"mrope_interleaved: got {told!r}, expected {cycled} with model_type {model_type!r}"
        )
    return family.order


def _silent(model_type: str, family: Dealt, pairs: int) -> Axes:
    if family.sizes is None:
        raise ValueError(f"mrope_section: missing, expected with model_type {model_type!r}")
    if family.sizes == _EVENLY:
        return Sections(_even(pairs), "cycled")
    if sum(family.sizes) == pairs:
        return Sections(_put(family.sizes, family), family.order)
    if family.order != "cycled":
        raise ValueError(
            f"mrope_section: missing, expected sizes with a sum of {pairs}: those of model_type "
            f"{model_type!r}, {list(family.sizes)}, do not fit"
        )
    # Its code turns the pairs of each axis that there are, and leaves the rest to the first.
    count = len(family.sizes)
    others = [
        len(range(axis, min(count * size, pairs), count))
        for axis, size in enumerate(family.sizes[1:], 1)
    ]
    return Sections((pairs - sum(others), *others), "cycled")


def _put(sizes: tuple[int, ...], family: Dealt) -> tuple[int, ...]:
    """Return sizes in the order of the axes, from the order in which a file lists them."""
    if family.listed is None:
        return sizes
    if len(sizes) != len(family.listed):
        raise ValueError(f"mrope_section: got {list(sizes)}, expected {len(family.listed)} numbers")
    return tuple(sizes[family.listed.index(axis)] for axis in range(len(sizes)))


def _axial(tower: Tower, head_dim: int, rotated: int, share: float) -> Axial:
    count = len(tower.axis_order)
    size = rotated // 2 if tower.share_of_axis else head_dim // count // 2
    if not tower.share_of_axis and share != 1:
        raise ValueError(
            f"partial_rotary_factor: got {share}, expected none: the axes share the head evenly"
        )
    if count == 2 and not tower.share_of_axis and head_dim % 4:
        raise ValueError(f"head_dim: got {head_dim}, expected a multiple of 4 for two axes")
    return Axial(
        (size,) * count,
        tower.order,
        tower.axis_order,
        tower.frequencies,
        tower.split_features,
        tower.in_turns,
    )

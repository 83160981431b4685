"""Hugging Face configs in and out, held to transformers' own frequencies."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Olmo3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import rotary
from rotary.axes import Axial, Sections
from rotary.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, Proportional, YaRN
from rotary.xpos import XPos

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "default": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 2.0}, Linear(2.0)),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, DynamicNTK(2.0, 8192)),
    "alpha": ({"rope_type": "dynamic", "alpha": 1000.0}, NTK(1000.0)),
    "yarn": (YARN, YaRN(4.0, 2048)),
    "longrope": (LONG, LongRoPE([1.0] * 8, [4.0] * 8, 2048, factor=4.0)),
    "llama3": (LLAMA3, Llama3(8.0, 1.0, 4.0, 2048)),
    "proportional": (
        {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
        Proportional(0.5, 2.0),
    ),
}


def config(rope: Mapping[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """Return a small Llama's config with this rope dictionary."""
    return {**LLAMA, **({} if rope is None else {"rope_parameters": dict(rope)}), **others}


def qwen(section: Any, model_type: str = "qwen2_vl_text", **others: Any) -> dict[str, Any]:
    """Return a small config with sections, of eight pairs together."""
    rope = {"rope_type": "default", "mrope_section": section, **others}
    return config(rope, model_type=model_type, head_dim=16)


# Spellings


@pytest.mark.parametrize("name", RULES)
def test_flat_legacy_and_nested_spellings_say_the_same(name: str) -> None:
    values, rule = RULES[name]
    expected = rotary.RotaryEmbedding(16, base=5e5, scaling=rule)
    new = {**values, "rope_theta": 5e5}
    old = {"type" if key == "rope_type" else key: value for key, value in values.items()}
    nested = {"full_attention": new, "sliding_attention": {"rope_theta": 1e4}}
    types = ["sliding_attention", "full_attention"]
    assert rotary.from_config(config(new)) == expected
    assert rotary.from_config({**LLAMA, "rope_scaling": old, "rope_theta": 5e5}) == expected
    both = config(nested, layer_types=types, num_hidden_layers=2)
    assert rotary.from_config(both, layer_type="full_attention") == expected
    assert rotary.layers_from_config(both) == [rotary.RotaryEmbedding(16), expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 500.0},
            rotary.RotaryEmbedding(16, base=500.0, rotary_dim=4),
        ),
        ({"model_type": "gptj", "rotary_dim": 8}, {"rotary_dim": 8, "layout": "interleaved"}),
        ({"model_type": "custom", "max_wavelength": 500.0}, {"base": 500.0}),
        ({"model_type": "roformer"}, {"layout": "interleaved"}),
        ({"model_type": "cohere", "rope_theta": 8e6}, {"layout": "interleaved", "base": 8e6}),
        ({"model_type": "glm"}, {"head_dim": 128, "rotary_dim": 64, "layout": "interleaved"}),
        ({"model_type": "llama4_text"}, {"head_dim": 128, "layout": "interleaved", "base": 5e5}),
        ({"model_type": "bitnet", "rope_theta": None}, {"base": 500_000.0}),
        ({"head_dim": 70, "partial_rotary_factor": 0.3}, {"rotary_dim": 22, "frequency_dim": 21}),
        ({"model_type": "custom", "rope_theta": 100, "rope_interleave": True}, {"base": 100.0}),
    ],
    ids=str,
)
def test_keys_of_the_wild_are_read(values: dict[str, Any], expected: Any) -> None:
    rope = rotary.from_config({**LLAMA, **values})
    if isinstance(expected, rotary.RotaryEmbedding):
        assert rope == expected
    else:
        assert {name: getattr(rope, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("interleave", "layout"), [(True, "interleaved"), (False, "half"), (None, "interleaved")]
)
def test_latent_attention_rotates_the_trailing_features(
    interleave: bool | None, layout: str
) -> None:
    values = {"model_type": "deepseek_v3", "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    rope = rotary.from_config({**values, "rope_interleave": interleave})
    assert rope == rotary.RotaryEmbedding(192, layout=layout, rotary_dim=64, rotary_side="trailing")


def test_null_factor_is_the_ratio_of_lengths() -> None:
    assert rotary.from_config(config({**YARN, "factor": None})).scaling == YaRN(4.0, 2048)
    silent = {key: value for key, value in LONG.items() if key != "factor"}
    assert rotary.from_config(config(silent)).scaling == RULES["longrope"][1]


def test_the_top_level_original_length_wins() -> None:
    rope = rotary.from_config(config(YARN, original_max_position_embeddings=1024))
    assert rope.scaling == YaRN(4.0, 1024)
    without = {key: value for key, value in YARN.items() if "original" not in key}
    assert rotary.from_config(config(without)).scaling == YaRN(4.0, 8192)


def test_phi3_reads_su_and_yarn_as_longrope() -> None:
    phi = {"model_type": "phi3", "original_max_position_embeddings": 2048}
    for kind in ("su", "yarn", "longrope"):
        values = {k: v for k, v in LONG.items() if "original" not in k} | {"rope_type": kind}
        assert rotary.from_config(config(values, **phi)).scaling == RULES["longrope"][1]


def test_beta_fast_zero_means_the_default() -> None:
    rope = rotary.from_config(config({**YARN, "beta_fast": 0, "beta_slow": None}))
    assert rope.scaling == YaRN(4.0, 2048)


def test_attn_factor_multiplies_the_formula() -> None:
    rope = rotary.from_config(config({**YARN, "attn_factor": 2.0}))
    assert rope.attention_factor() == pytest.approx(2 * (0.1 * np.log(4) + 1), rel=1e-15)


@pytest.mark.parametrize("power", [None, 1.0, 0.625])
def test_the_type_ntk_is_su_s(power: float | None) -> None:
    # vLLM's NTKScalingRotaryEmbedding, and the code of Alibaba's GTE models.
    s, d, i = 8.0, 16, np.arange(8)
    rope = rotary.from_config(config({"rope_type": "ntk", "factor": s, "mixed_b": power}))
    if power is None:
        expected = (1e4 * s) ** (-2 * i / d) / s ** (2 / d)
    else:
        a = np.log(s) / (d / 2) ** power
        expected = 1e4 ** (-2 * i / d) / np.exp(a * (i + 1) ** power)
    np.testing.assert_allclose(rope.frequencies(), expected, rtol=1e-14)


def test_nanochat_turns_backwards() -> None:
    q = np.random.default_rng(1).standard_normal((5, 16))
    rope = rotary.from_config(config(model_type="nanochat"))
    np.testing.assert_allclose(rope(q), rotary.RotaryEmbedding(16).inverse(q), rtol=0, atol=1e-14)


# Several axes

THW, HW = (2, 3, 3), (4, 4)


@pytest.mark.parametrize(
    ("values", "axes"),
    [
        (qwen([2, 3, 3]), Sections(THW)),
        (qwen([2.0, 3.0, 3.0]), Sections(THW)),
        (qwen([2, 3, 3], mrope_interleaved=False), Sections(THW)),
        (qwen([2, 3, 3], rope_type="mrope"), Sections(THW)),
        (qwen([2, 3, 3], type="mrope"), Sections(THW)),
        (qwen([4, 2, 2], "qwen3_vl_text"), Sections((4, 2, 2), "cycled")),
        (qwen([4, 2, 2], "qwen3_vl_text", interleaved=True), Sections((4, 2, 2), "cycled")),
        (qwen(None, "qwen3_vl_text"), Sections((3, 3, 2), "cycled")),
        (qwen([3, 3, 2], "ernie4_5_vl_moe_text"), Sections((2, 3, 3), "first_axis_last")),
        (qwen([4, 4], "neomme"), Sections(HW, "cycled")),
        (qwen(None, "neomme"), Sections(HW, "cycled")),
        (qwen([2, 3, 3], "own", mrope_interleaved=False), Sections(THW)),
        (qwen([4, 2, 2], "own", mrope_interleaved=True), Sections((4, 2, 2), "cycled")),
        (qwen([2, 2, 2, 2], "hunyuan_vl"), Sections((2, 2, 2, 2))),
        (config({"rope_type": "axial"}, model_type="qwen2_5_vl_vision"), Axial(HW)),
        (config(model_type="pixtral"), Axial(HW, frequencies="dealt")),
        (
            config(model_type="gemma4_vision"),
            Axial((16, 16), axis_order=(1, 0), split_features=True),
        ),
        (config(model_type="kimi_k25_vision"), Axial(HW, "cycled", (1, 0))),
        (config(model_type="dinov3_vit"), Axial(HW, in_turns=True)),
        (config(model_type="minimax_m3_vl_vision"), Axial((2, 2, 2))),
    ],
    ids=str,
)
def test_axes_are_those_of_the_family(values: dict[str, Any], axes: Any) -> None:
    rope = rotary.from_config(values)
    assert rope.axes == axes
    assert rope.rotary_dim == 2 * axes.pairs


def test_sections_are_scaled_like_text() -> None:
    values = qwen([2, 3, 3], **YARN)
    expected = rotary.RotaryEmbedding(16, base=1e6, scaling=YaRN(4.0, 2048), axes=Sections(THW))
    assert rotary.from_config(values) == expected


def test_hunyuan_s_alpha_is_read_beside_its_sections() -> None:
    # As its checkpoint's config has it, keys without effect and all.
    rope = {
        "alpha": 1000.0,
        "beta_fast": 32,
        "factor": 1.0,
        "mscale": 1.0,
        "type": "xdrope",
        "xdrope_section": [2, 2, 2, 2],
    }
    values = {**LLAMA, "model_type": "hunyuan_vl", "rope_scaling": rope}
    with pytest.warns(UserWarning, match="has no effect"):
        made = rotary.from_config(values)
    assert made == rotary.RotaryEmbedding(16, scaling=NTK(1000.0), axes=Sections((2, 2, 2, 2)))


def test_a_flat_qwen2_vl_has_the_rotation_of_its_text_and_of_its_vision() -> None:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584}
    flat = {
        **LLAMA,
        "model_type": "qwen2_vl",
        "num_hidden_layers": 2,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {**vision, "model_type": "qwen2_vl"},
    }
    text = rotary.RotaryEmbedding(16, base=1e6, axes=Sections(THW))
    assert rotary.from_config(flat) == text
    assert rotary.layers_from_config(flat) == [text, text]
    tower = rotary.from_config(flat, part="vision_config")
    assert tower == rotary.RotaryEmbedding(80, axes=Axial((20, 20)))
    nested = {"model_type": "qwen2_vl", "text_config": {}, "vision_config": vision}
    with pytest.raises(ValueError, match="expected one of 'text_config', 'vision_config'"):
        rotary.from_config(nested)
    assert rotary.from_config(nested, part="text_config").axes == Sections((16, 24, 24))


def test_layers_of_neomme_share_their_pairs_out_by_layer_type() -> None:
    layers = rotary.layers_from_config(
        {"model_type": "neomme", "layer_types": ["sliding_attention", "full_attention"],
         "num_hidden_layers": 2}
    )  # fmt: skip
    assert [rope.axes for rope in layers] == [
        Sections((16, 16), "cycled"),
        Sections((4, 4), "cycled"),
    ]


def test_efficientloftr_rotates_its_heads_as_one() -> None:
    rope = rotary.from_config({"model_type": "efficientloftr"})
    axes = Axial((64, 64), "cycled")
    assert rope == rotary.RotaryEmbedding(256, layout="interleaved", axes=axes)


def test_atoms_have_frequencies_of_two_bases() -> None:
    fold = {"model_type": "esmfold2", "atom_encoder": {"head_dim": 36}}
    rope = rotary.from_config(fold)
    space, residue = 20.0 ** (-np.arange(2) / 2), 1e4 ** (-np.arange(10) / 10)
    expected = np.concatenate([space, space, space, residue, [0, 0]])
    np.testing.assert_allclose(rope.frequencies(), expected, rtol=1e-15)
    assert rope.axes == Sections((2, 2, 2, 12))
    inner = {"model_type": "esmfold2", "structure_head": {"diffusion_module": fold}}
    assert rotary.from_config(inner) == rope


# Where it comes from


def test_paths_folders_and_objects_are_read(tmp_path: Path) -> None:
    values = config(YARN)
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    expected = rotary.from_config(values)
    assert rotary.from_config(tmp_path) == expected
    assert rotary.from_config(str(tmp_path / "config.json")) == expected
    theirs = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=dict(YARN))
    assert rotary.from_config(theirs).scaling == YaRN(4.0, 2048)


def test_parts_are_found_and_chosen() -> None:
    clip = {"model_type": "clip_vision_model", "hidden_size": 1024, "num_attention_heads": 16}
    llava = {"model_type": "llava", "text_config": LLAMA, "vision_config": clip}
    assert rotary.from_config(llava) == rotary.RotaryEmbedding(16)
    assert rotary.from_config(llava, part="text_config") == rotary.RotaryEmbedding(16)
    silent = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": clip}
    assert rotary.from_config(silent) == rotary.RotaryEmbedding(128)
    two = {"model_type": "two", "text_config": LLAMA, "audio_config": {**LLAMA, "head_dim": 32}}
    with pytest.raises(ValueError, match=r"part: got None, .*'text_config', 'audio_config'"):
        rotary.from_config(two)
    assert rotary.from_config(two, part="audio_config").head_dim == 32
    with pytest.raises(ValueError, match=r"vision_config: describes no rotation.*'text_config'"):
        rotary.from_config(llava, part="vision_config")
    with pytest.raises(ValueError, match=r"part: got 'text', expected one of 'text_config'"):
        rotary.from_config(llava, part="text")
    deep = {"model_type": "omni", "thinker_config": {"model_type": "t", "text_config": LLAMA}}
    assert rotary.from_config(deep, part="thinker_config.text_config").head_dim == 16


# Layers


def bases(values: dict[str, Any]) -> list[float | None]:
    return [None if rope is None else rope.base for rope in rotary.layers_from_config(values)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "smollm3"}, [2e6, 2e6, 2e6, None, 2e6]),
        ({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 1, 0]}, [None, 2e6, 2e6, 2e6, None]),
        ({"model_type": "llama4_text", "no_rope_layer_interval": 2}, [5e5, None, 5e5, None, 5e5]),
        ({"model_type": "cohere2"}, [1e4, 1e4, 1e4, None, 1e4]),
        ({"model_type": "exaone4", "sliding_window": None}, [1e4] * 5),
        ({"model_type": "exaone4"}, [1e4, 1e4, 1e4, None, 1e4]),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, [1e4, 1e4, 1e6, 1e4, 1e4]),
        (
            {"model_type": "modernbert", "global_rope_theta": 8e4, "local_rope_theta": 5e3},
            [8e4, 5e3, 5e3, 8e4, 5e3],
        ),
        (
            {"model_type": "granite_swa", "layer_rope_theta": [1e4, 0, 5e5, None, 1e4]},
            [1e4, None, 5e5, None, 1e4],
        ),
        ({"model_type": "qwen3_next"}, [None, None, None, 1e4, None]),
        (
            {"model_type": "deepseek_v4", "layer_types": [
                "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
                "sliding_attention", "sliding_attention",
            ]},
            [1e4, 16e4, 16e4, 1e4, 1e4],
        ),
        (
            {"model_type": "beam", "layer_types": ["full_attention", "sliding_attention"] * 3},
            [None, 1e4, None, 1e4, None],
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)  # fmt: skip
def test_layers_have_their_own_theta_or_none(values: dict[str, Any], expected: list[Any]) -> None:
    assert bases({"num_hidden_layers": 5, **values}) == expected


def test_gemma3_scales_its_global_layers_alone() -> None:
    old = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "rope_theta": 2e6,
        "rope_local_base_freq": 5e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    layers = rotary.layers_from_config(old)
    assert layers[4] == rotary.RotaryEmbedding(256, base=5e3)
    assert layers[5] == rotary.RotaryEmbedding(256, base=2e6, scaling=Linear(8.0))
    assert rotary.from_config(old, layer_type="full_attention") == layers[5]


def test_gemma4_has_larger_heads_in_its_global_layers() -> None:
    layers = rotary.layers_from_config({"model_type": "gemma4_text", "num_hidden_layers": 6})
    assert layers[0] == rotary.RotaryEmbedding(256)
    assert layers[5] == rotary.RotaryEmbedding(512, base=1e6, scaling=Proportional(0.25))


def test_deepseek_v4_scales_its_compressed_layers() -> None:
    values = {"model_type": "deepseek_v4", "rope_scaling": {"type": "yarn", "factor": 16.0}}
    rope = rotary.from_config(values, layer_type="compress")
    assert rope.scaling == YaRN(16.0, 1048576, attention_factor=1.0)
    assert (rope.head_dim, rope.rotary_dim, rope.rotary_side) == (512, 64, "trailing")
    assert rotary.from_config(values, layer_type="sliding_attention").scaling is None


# Held to transformers


def theirs(values: dict[str, Any], seq_len: int | None = None) -> tuple[Any, float]:
    """Return frequencies and attention factor of transformers' own functions."""
    made = LlamaConfig(**{key: value for key, value in values.items() if key != "model_type"})
    made.rope_parameters = dict(values["rope_parameters"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = values["rope_parameters"]["rope_type"]
        inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](made, seq_len=seq_len)
    return inv_freq.numpy(), factor


numbers = st.floats(1.5, 64.0, allow_nan=False)
lengths = st.integers(256, 65536)


@st.composite
def parameter_sets(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Draw a config of this rope_type."""
    half = draw(st.integers(4, 64))
    share = draw(st.sampled_from([0.5, 1.0]))
    pairs = int(2 * half * share) // 2
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.floats(1e3, 1e7))}
    if int(2 * half * share) % 2 == 0:  # YaRN of odd numbers raises there
        rope["partial_rotary_factor"] = share
    else:
        pairs = half
    if kind != "longrope" or draw(st.booleans()):
        rope["factor"] = draw(numbers)
    if kind in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = draw(lengths)
    if kind == "llama3":
        rope["low_freq_factor"] = draw(st.floats(0.5, 2.0))
        rope["high_freq_factor"] = draw(st.floats(2.5, 8.0))
    if kind == "longrope":
        factors = st.lists(st.floats(1.0, 50.0), min_size=pairs, max_size=pairs)
        rope |= {"short_factor": draw(factors), "long_factor": draw(factors)}
    if kind == "yarn":
        optional = {
            "truncate": st.booleans(),
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.5, 4.0),
            "mscale": st.floats(0.5, 2.0),
            "mscale_all_dim": st.floats(0.5, 2.0),
            "attention_factor": st.floats(0.5, 2.0),
        }
        rope |= {key: draw(value) for key, value in optional.items() if draw(st.booleans())}
    longest = draw(lengths)
    return config(rope, head_dim=2 * half, max_position_embeddings=longest)


@pytest.mark.parametrize("kind", sorted(ROPE_INIT_FUNCTIONS))
def test_frequencies_and_factors_are_those_of_transformers(kind: str) -> None:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(parameter_sets(kind), st.integers(1, 131072))
    def holds(values: dict[str, Any], seq_len: int) -> None:
        rope = rotary.from_config(values)
        inv_freq, factor = theirs(values, seq_len)
        np.testing.assert_allclose(rope.frequencies(seq_len), inv_freq, rtol=rtol(rope, values))
        assert rope.attention_factor(seq_len) == pytest.approx(factor, rel=1e-12)

    holds()


def rtol(rope: rotary.RotaryEmbedding, values: dict[str, Any]) -> float:
    """Return 2e-6, times what float32 loses where a rule amplifies it."""
    if isinstance(rope.scaling, Llama3):  # 1/(high − low) multiplies the error of a wavelength
        gap = rope.scaling.high_freq_factor - rope.scaling.low_freq_factor
        return 2e-6 * max(1.0, rope.scaling.factor * rope.scaling.high_freq_factor / gap)
    return 2e-6


def test_yarn_by_layer_type_reads_truncate_inside() -> None:
    # transformers looks for it beside the nested dictionaries (the census' defect D1).
    rule = {**YARN, "rope_theta": 5e5, "truncate": False}
    made = Olmo3Config(hidden_size=64, num_attention_heads=4)
    made.rope_parameters = {"full_attention": rule, "sliding_attention": {"rope_theta": 5e5}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inv_freq = ROPE_INIT_FUNCTIONS["yarn"](made, layer_type="full_attention")[0].numpy()
    ours = rotary.from_config(config(rule))
    with_truncate = rotary.from_config(config({**rule, "truncate": True}))
    np.testing.assert_allclose(with_truncate.frequencies(), inv_freq, rtol=2e-6)
    assert np.max(np.abs(ours.frequencies() / inv_freq - 1)) > 0.01


def test_what_a_call_returns_depends_on_no_earlier_call() -> None:
    rope = rotary.from_config(config({"rope_type": "dynamic", "factor": 2.0}))
    q = np.random.default_rng(1).standard_normal((10, 16))
    before = rope(q, offset=9000)
    rope(q, offset=100_000)
    assert np.array_equal(rope(q, offset=9000), before)


# Out again


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"layout": "interleaved", "rotary_dim": 16, "rotary_side": "trailing"},
        {"rotary_dim": 16, "frequency_dim": 15},
        {"inv_freq": tuple(float(i) for i in range(8, 0, -1)), "rotary_dim": 16},
    ],
    ids=["plain", "trailing", "odd", "supplied"],
)
def test_to_config_and_back_is_the_same(name: str, others: dict[str, Any]) -> None:
    base = {} if "inv_freq" in others else {"base": 5e5}
    dim = 24 if others else 16
    rope = rotary.RotaryEmbedding(dim, **base, **others, scaling=RULES[name][1])
    written = json.loads(json.dumps(rope.to_config()))
    assert rotary.from_config(written) == rope


@pytest.mark.parametrize(
    "axes",
    [
        Sections(THW),
        Sections((4, 2, 2), "cycled"),
        Sections(THW, "first_axis_last"),
        Axial(HW),
        Axial(HW, "cycled", (1, 0), "dealt"),
        Axial((2, 6), axis_order=(1, 0), split_features=True),
        Axial(HW, in_turns=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("scaling", [None, Linear(2.0)], ids=str)
def test_axes_survive(axes: Any, scaling: Any) -> None:
    rope = rotary.RotaryEmbedding(16, base=5e5, axes=axes, scaling=scaling)
    written = json.loads(json.dumps(rope.to_config()))
    assert rotary.from_config(written) == rope
    assert rotary.layers_from_config({**written, "num_hidden_layers": 2}) == [rope, rope]


def test_xpos_survives() -> None:
    rope = rotary.RotaryEmbedding(16, xpos=XPos(64.0))
    assert rotary.from_config(json.loads(json.dumps(rope.to_config()))) == rope


@pytest.mark.parametrize(
    "rule",
    [
        YaRN(8.0, 4096, 16.0, 2.0, False, None, 0.7, 1.1, 0.1),
        YaRN(8.0, 4096, attention_factor=1.5),
        LongRoPE([1.0] * 8, [2.0] * 8, 4096, short_mscale=1.1, long_mscale=1.2),
        LongRoPE([1.0] * 8, [2.0] * 8, 4096, attention_factor=1.2),
    ],
    ids=str,
)
def test_every_number_of_a_rule_survives(rule: Any) -> None:
    rope = rotary.RotaryEmbedding(16, scaling=rule)
    assert rotary.from_config(rope.to_config()) == rope


# What is wrong


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (config({"rope_type": "linear", "factor": 0.0}), ValueError, "factor: got 0.0"),
        (config({"rope_type": "linear", "factor": "2"}), TypeError, "factor: got '2'"),
        (config({"rope_type": "linear"}), ValueError, "factor: missing"),
        (config({"rope_theta": 0}), ValueError, "rope_theta: got 0, expected a positive"),
        (config({"rope_theta": -1e4}), ValueError, "rope_theta: got -10000.0"),
        (config({"rope_theta": "1e4"}), TypeError, "rope_theta: got '1e4'"),
        (config({"rope_type": "lineal"}), ValueError, "rope_type: got 'lineal', expected one of"),
        (config({"factr": 2.0}), ValueError, "factr: got 2.0 in the rope dictionary"),
        (config({**LONG, "long_factor": [1.0]}), ValueError, "long_factor: got 1 numbers"),
        (config({"rope_type": "yarn"}), ValueError, "factor: missing"),
        (config({**LLAMA3, "low_freq_factor": None}), ValueError, "low_freq_factor: missing"),
        (
            config({"rope_type": "linear", "type": "dynamic", "factor": 2.0}),
            ValueError,
            "rope_type: got 'linear' and type 'dynamic'",
        ),
        (
            config({"rope_theta": 1e4}, rope_theta=1e6),
            ValueError,
            "rope_theta: got the rope dictionary's rope_theta 10000.0 and rope_theta 1000000.0",
        ),
        (
            config({"factor": 2.0, "rope_type": "linear"}, rope_scaling={"factor": 4.0}),
            ValueError,
            "factor: got 2.0 in rope_parameters and 4.0 in rope_scaling",
        ),
        (
            config(partial_rotary_factor=0.5, rotary_dim=4),
            ValueError,
            "rotary_dim: got 4 and partial_rotary_factor 0.5",
        ),
        (config(partial_rotary_factor=1.5), ValueError, "partial_rotary_factor: got 1.5"),
        (
            config({"full_attention": {"rope_theta": 1e4}, "sliding_attention": {}}),
            ValueError,
            "layer_type: got None, expected one of 'full_attention', 'sliding_attention'",
        ),
        (config({**YARN, "attn_factor": 1.0, "attention_factor": 1.0}), ValueError, "attn_factor"),
        (
            config({"rope_type": "linear", "factor": 2.0, "llama_4_scaling_beta": 0.1}),
            ValueError,
            "llama_4_scaling_beta: got 0.1 with rope_type 'linear'",
        ),
        (
            {"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12},
            ValueError,
            "describes no rotation: model_type 'bert'",
        ),
        ({"model_type": "esm"}, ValueError, "position_embedding_type: got 'absolute'"),
        ({"model_type": "falcon", "alibi": True}, ValueError, "alibi: got True"),
        ({"model_type": "x", "rope_theta": 1e4}, ValueError, "hidden_size: missing"),
        (config(head_dim=0), ValueError, "head_dim: got 0"),
        (config(hidden_size="64"), TypeError, "hidden_size: got '64'"),
        ({**LLAMA, "rope_scaling": 2.0}, TypeError, "rope_scaling: got 2.0"),
        (
            config({"rope_type": "default", "mrope_section": [2, 3, 3]}),
            ValueError,
            "mrope_interleaved: missing, expected True or False beside mrope_section",
        ),
        (config({"rope_type": "axial"}), ValueError, "rope_type: got 'axial' with model_type 'll"),
        (config({"type": "xdrope", "xdrope_section": [2]}), ValueError, "xdrope_section: got"),
        (config({"type": "mrope"}), ValueError, "mrope_section: missing, expected with rope_type"),
        (
            config({"mrope_section": [2, 3, 3], "xdrope_section": [3, 3, 2]}),
            ValueError,
            r"mrope_section: got \[2, 3, 3\] and xdrope_section",
        ),
        (
            qwen([2, 3, 4]),
            ValueError,
            r"mrope_section: got \[2, 3, 4\], 9 pairs .* the 8 that rotate",
        ),
        (qwen([2, 3, 3.5]), TypeError, "mrope_section: got 3.5"),
        (qwen([8, 0, 0]), ValueError, "mrope_section: got 0"),
        (qwen("283"), TypeError, "mrope_section: got '283'"),
        (qwen([2, 3, 3], mrope_interleaved=True), ValueError, "mrope_interleaved: got True"),
        (
            qwen([2, 3, 3], model_type="qwen3_vl_text"),
            ValueError,
            "mrope_section: got .* room for turns",
        ),
        (qwen(None), ValueError, "mrope_section: missing, expected sizes with a sum of 8"),
        (qwen([2, 6], model_type="neomme"), ValueError, r"expected \[4, 4\] or None"),
        (qwen([4, 4], model_type="ernie4_5_vl_moe_text"), ValueError, "expected 3 numbers"),
        (qwen([2, 3, 3], model_type="pixtral"), ValueError, "mrope_section: got .* expected None"),
        (
            {"model_type": "hunyuan_vl_text"},
            ValueError,
            "mrope_section: missing, expected with model",
        ),
        ({"model_type": "glm4v_text"}, ValueError, "mrope_section: missing, .* sum of 64"),
        (
            {"model_type": "pixtral", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            ValueError,
            "rope_type: got 'linear', expected 'axial': model_type 'pixtral' does not scale",
        ),
        (
            {"model_type": "pixtral", "head_dim": 70},
            ValueError,
            "head_dim: got 70, expected a mult",
        ),
        (
            {"model_type": "pixtral", "partial_rotary_factor": 0.5},
            ValueError,
            "partial_rotary_factor: got 0.5, expected none",
        ),
        ({"model_type": "vjepa2"}, ValueError, "describes no rotation: model_type 'vjepa2'"),
        ({"model_type": "lightglue"}, ValueError, "learned weights, which rotary.cos_sin takes"),
        (
            {"model_type": "esmfold2", "atom_encoder": {"num_uid_rope_pairs": 11}},
            ValueError,
            "num_spatial_rope_pairs_per_axis: got 2 and num_uid_rope_pairs 11, expected at most 16",
        ),
        ({"model_type": "rotary"}, ValueError, "head_dim: missing"),
        (
            {**rotary.RotaryEmbedding(16).to_config(), "axes": {"kind": "spiral"}},
            ValueError,
            "axes: got kind 'spiral', expected 'sections' or 'axial'",
        ),
        (3, TypeError, "config: got int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_key(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rotary.from_config(values)


def test_a_layer_type_that_is_not_there_is_an_error() -> None:
    nested = config({"full_attention": {"rope_theta": 1e4}, "sliding_attention": None})
    with pytest.raises(ValueError, match="'sliding_attention', expected one of 'full_attention'"):
        rotary.from_config(nested, layer_type="sliding_attention")
    with pytest.raises(ValueError, match="layer_type: got 'full', expected None"):
        rotary.from_config(LLAMA, layer_type="full")
    with pytest.raises(ValueError, match="layer_types: missing"):
        rotary.layers_from_config({**nested, "num_hidden_layers": 2})
    with pytest.raises(ValueError, match="num_hidden_layers: got None"):
        rotary.layers_from_config({"rope_theta": 1e4, "head_dim": 16})


@pytest.mark.parametrize(
    ("rope", "key"),
    [
        ({"rope_type": "default", "factor": 2.0}, "factor"),
        ({"rope_type": "dynamic", "alpha": 1000.0, "beta_fast": 32}, "beta_fast"),
        ({"rope_type": "dynamic", "alpha": 1000.0, "mscale": 1.0}, "mscale"),
        ({**YARN, "finetuned": True}, "finetuned"),
        ({**LLAMA3, "short_factor": [1.0]}, "short_factor"),
        ({"full_attention": {"rope_theta": 1e4}, "rope_type": "default"}, "rope_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_known_keys_without_effect_are_told(rope: dict[str, Any], key: str) -> None:
    layer_type = "full_attention" if "full_attention" in rope else None
    with pytest.warns(UserWarning, match=f"^{key}: has no effect"):
        rotary.from_config(config(rope), layer_type=layer_type)


def test_keys_elsewhere_are_not_judged() -> None:
    assert rotary.from_config({**LLAMA, "factor": -1, "no_such_key": {}}).head_dim == 16

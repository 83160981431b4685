"""Images and video: scores q·kᵀ on grids that are not square, held to transformers' own classes.

Each case builds a class of theirs from its config and gives it positions that the model itself
makes; ours comes from the same config's dictionary, with positions from ``rotary.axes.grid``.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import rotary
from rotary.axes import Axial, Sections, grid

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

HEIGHT, WIDTH = 4, 6
# An angle of theirs is a float32 product of float32 numbers: off by a few 2^-24 of 1 + |angle|.
ANGLE = 8 * 2.0**-24


class Case(NamedTuple):
    """A model's rotation and its positions, theirs and ours."""

    config: Any
    positions: Any
    """Ours, (axes, tokens)."""
    theirs: Any
    """What the model makes, in our order of axes."""
    rotate: Callable[[Any], Any]
    """Theirs, of float64 (tokens, head_dim)."""


def model(folder: str) -> Any:
    """Return the modeling file of a model folder, with the names of its configs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        configs = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    for name, value in vars(configs).items():
        if name.endswith("Config"):
            setattr(module, name, value)
    return module


def in_patches(height: int, width: int, merge: int, frames: int | None = None) -> Any:
    """Return the positions that most vision towers share, shape (tokens, axes)."""
    from transformers.vision_utils import get_vision_position_ids

    size = torch.tensor([[frames or 1, height, width]])
    return get_vision_position_ids(size, merge, include_temporal=frames is not None)


class Seen(Exception):  # noqa: N818  (no error: it ends a forward pass)
    """What a module was called with."""


def given_to(part: Any, run: Callable[[], Any]) -> Any:
    """Return what a part of a model is called with after its first argument."""

    def stop(module: Any, arguments: Any) -> None:
        raise Seen(arguments[1])

    part.register_forward_pre_hook(stop)
    with pytest.raises(Seen) as seen, torch.no_grad():
        run()
    return seen.value.args[0]


def tokens_first(function: Any, tables: Any) -> Callable[[Any], Any]:
    """Return a vision tower's function of (tokens, heads, dim) as one of (tokens, dim)."""
    return lambda x: function(x[:, None], x[:, None], *tables)[0][:, 0]


def heads_first(function: Any, tables: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a function of (batch, heads, tokens, dim) as one of (tokens, dim)."""
    return lambda x: function(x[None, None], x[None, None], *tables, **options)[0][0, 0]


# The cases


def qwen2_vl_vision() -> Case:
    m = model("qwen2_vl")
    config, ids = m.Qwen2VLVisionConfig(), in_patches(HEIGHT, WIDTH, 2)
    tables = m.Qwen2VLVisionRotaryEmbedding(config)(torch.zeros(1), ids)
    rotate = tokens_first(m.apply_rotary_pos_emb_vision, tables)
    return Case(config, grid(HEIGHT, WIDTH, merge=2), ids.T, rotate)


def _text(folder: str, prefix: str, embedding: str, **options: Any) -> Case:
    """Return three words, a video of two frames, its patches merged by twos, and two words."""
    m = model(folder)
    config = getattr(m, f"{prefix}TextConfig")(**options)
    builder = getattr(m, f"{prefix}Model").get_vision_position_ids
    size = torch.tensor([2, HEIGHT, WIDTH])
    video = builder(None, 3, size, spatial_merge_size=2).double().numpy()
    words = np.stack([np.arange(3.0)] * 3), np.stack([video.max() + np.array([1.0, 2.0])] * 3)
    theirs = np.concatenate([words[0], video, words[1]], axis=1)
    image = grid(HEIGHT // 2, WIDTH // 2, frames=2, start=3)
    ours = np.concatenate([words[0], image, words[1]], axis=1)
    made = getattr(m, f"{prefix}{embedding}")(config)
    tables = made(torch.zeros(1), torch.as_tensor(theirs).long()[:, None])
    return Case(config, ours, theirs, heads_first(m.apply_rotary_pos_emb, tables))


def qwen2_vl_text() -> Case:
    return _text("qwen2_vl", "Qwen2VL", "RotaryEmbedding")


def qwen3_vl_text() -> Case:
    return _text("qwen3_vl", "Qwen3VL", "TextRotaryEmbedding")


def ernie_text() -> Case:
    return _text("ernie4_5_vl_moe", "Ernie4_5_VLMoe", "TextRotaryEmbedding")


def gemma4_vision() -> Case:
    m = model("gemma4")
    config = m.Gemma4VisionConfig()
    # Its image processor's order, x before y: test_gemma4_s_processor_puts_the_width_first.
    across = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).reshape(-1, 2)
    ids = torch.as_tensor(across)[None]
    tables = m.Gemma4VisionRotaryEmbedding(config)(torch.zeros(1), ids)

    def rotate(x: Any) -> Any:
        return m.apply_multidimensional_rope(x[None, :, None], *tables, ids)[0, :, 0]

    return Case(config, grid(HEIGHT, WIDTH), across.T[::-1], rotate)


def pixtral() -> Case:
    m = model("pixtral")
    small = m.PixtralVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=64, patch_size=4,
    )  # fmt: skip
    tower, pixels = m.PixtralVisionModel(small), torch.zeros(1, 3, 4 * HEIGHT, 4 * WIDTH)
    ids = given_to(tower.patch_positional_embedding, lambda: tower(pixels))
    config = m.PixtralVisionConfig()
    tables = m.PixtralVisionRotaryEmbedding(config)(torch.zeros(1), ids)
    rotate = heads_first(m.apply_rotary_pos_emb, tables, unsqueeze_dim=0)
    return Case(config, grid(HEIGHT, WIDTH), ids.T, rotate)


def dinov3() -> Case:
    # A class token and four registers in front of the patches.
    m = model("dinov3_vit")
    config = m.DINOv3ViTConfig(num_register_tokens=4)
    side = config.patch_size
    made = m.DINOv3ViTRopePositionEmbedding(config).eval()
    tables = made(torch.zeros(1, 3, HEIGHT * side, WIDTH * side))
    kind = {"dtype": torch.float64, "device": torch.device("cpu")}
    centres = m.get_patches_center_coordinates(HEIGHT, WIDTH, **kind).T.numpy()
    theirs = np.pad(centres, ((0, 0), (5, 0)))
    rotate = heads_first(m.apply_rotary_pos_emb, tables)
    return Case(config, grid(HEIGHT, WIDTH, centered=True, before=5), theirs, rotate)


def kimi_vision() -> Case:
    m = model("kimi_k25")
    config, ids = m.Kimi_K25VisionConfig(), in_patches(HEIGHT, WIDTH, 1)
    tables = m.Kimi_K25VisionRotaryEmbedding(config)(torch.zeros(1), ids)
    rotate = tokens_first(m.apply_rotary_pos_emb_vision, tables)
    return Case(config, grid(HEIGHT, WIDTH), ids.T, rotate)


def sam2_video() -> Case:
    m = model("sam2_video")
    config = m.Sam2VideoConfig(memory_attention_rope_feat_sizes=[WIDTH, HEIGHT])
    ids = m.Sam2VideoMemoryAttention.precompute_positions(config)
    tables = m.Sam2VideoVisionRotaryEmbedding(config)(torch.zeros(1), ids)
    rotate = heads_first(m.apply_rotary_pos_emb_2d, tables)
    return Case(config, grid(HEIGHT, WIDTH), ids.T.flip(0), rotate)


def minimax_video() -> Case:
    m = model("minimax_m3_vl")
    config, ids = m.MiniMaxM3VLVisionConfig(), in_patches(HEIGHT, WIDTH, 2, frames=3)
    tables = m.MiniMaxM3VLVisionRotaryEmbedding(config)(torch.zeros(1), ids)
    rotate = tokens_first(m.apply_rotary_pos_emb_vision, tables)
    return Case(config, grid(HEIGHT, WIDTH, frames=3, merge=2), ids.T, rotate)


def muse_vision() -> Case:
    m = model("muse_spark")
    small = m.MuseSparkVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        patch_size=2, pos_emb_height=8, pos_emb_width=8,
    )  # fmt: skip
    tower, size = m.MuseSparkVisionModel(small), torch.tensor([[1, HEIGHT, WIDTH]])
    pixels = torch.zeros(HEIGHT * WIDTH, small.patch_temporal * 3 * 4)
    ids = given_to(tower.rotary_emb, lambda: tower(pixels, size))
    config = m.MuseSparkVisionConfig()
    tables = m.MuseSparkVisionRotaryEmbedding(config)(torch.zeros(1), ids)
    rotate = tokens_first(m.apply_rotary_pos_emb_vision, tables)
    return Case(config, grid(HEIGHT, WIDTH, start=1), ids.T.flip(0), rotate)


def efficientloftr() -> Case:
    m = model("efficientloftr")
    config = m.EfficientLoFTRConfig()
    stride = config.q_aggregation_stride
    features = torch.zeros(1, 1, HEIGHT * stride, WIDTH * stride)
    tables = [t.flatten(1, 2) for t in m.EfficientLoFTRRotaryEmbedding(config)(features)]
    rows, columns = np.indices((HEIGHT, WIDTH)).reshape(2, -1) + 1

    def rotate(x: Any) -> Any:
        four = x[None, :, None]
        return m.apply_rotary_pos_emb(four, four, *tables, unsqueeze_dim=2)[0][0, :, 0]

    return Case(config, grid(HEIGHT, WIDTH, start=1), np.stack([rows, columns]), rotate)


CASES = (
    qwen2_vl_vision, qwen2_vl_text, qwen3_vl_text, ernie_text, gemma4_vision, pixtral, dinov3,
    kimi_vision, sam2_video, minimax_video, muse_vision, efficientloftr,
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Each model in turn."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield request.param()


# The statements


def from_config(config: Any) -> rotary.RotaryEmbedding:
    return rotary.from_config({**config.to_dict(), "model_type": config.model_type})


def apart(rope: rotary.RotaryEmbedding, positions: Any, rotate: Any, true: Any = None) -> float:
    """Return how far the scores are apart, in units of what float32 angles explain."""
    true = positions if true is None else true
    q, k = np.random.default_rng(1).standard_normal((2, positions.shape[-1], rope.head_dim))
    mine = [rope(x, positions=positions) for x in (q, k)]
    theirs = [rotate(torch.as_tensor(x)).double().numpy() for x in (q, k)]
    turn = 2 * np.pi if rope.axes is not None and rope.axes.in_turns else 1
    error = ANGLE * (1 + turn * np.max(np.abs(true), axis=0))
    lengths = [np.linalg.norm(x, axis=-1) for x in (q, k)]
    bound = lengths[0][:, None] * lengths[1] * (error[:, None] + error)
    return float(np.max(np.abs(mine[0] @ mine[1].T - theirs[0] @ theirs[1].T) / bound))


def exchanged(positions: Any) -> Any:
    """Return positions with height and width in each other's place."""
    swapped = np.array(positions)
    swapped[[-1, -2]] = swapped[[-2, -1]]
    return swapped


def test_grid_makes_the_model_s_own_positions(case: Case) -> None:
    # DINOv3's centres are rounded three times, ours once.
    np.testing.assert_allclose(case.positions, np.asarray(case.theirs), rtol=0, atol=2.0**-52)


def test_scores_are_those_of_transformers(case: Case) -> None:
    assert apart(from_config(case.config), case.positions, case.rotate) <= 1


def test_height_and_width_in_each_other_s_place_fail(case: Case) -> None:
    rope = from_config(case.config)
    assert apart(rope, exchanged(case.positions), case.rotate, case.positions) > 1000


def test_llama4_rotates_its_patches_and_not_its_class_token() -> None:
    # Its class makes square grids alone; the class token comes last, and does not turn.
    m = model("llama4")
    config = m.Llama4VisionConfig(image_size=4 * 14)
    table = m.Llama4VisionRotaryEmbedding(config)(torch.zeros(1))

    def rotate(x: Any) -> Any:
        return m.vision_apply_rotary_emb(x[None, :, None], x[None, :, None], table)[0][0, :, 0]

    rope, positions = from_config(config), grid(4, 4, start=1, after=1)
    assert apart(rope, positions, rotate) <= 1
    assert apart(rope, exchanged(positions), rotate, positions) > 1000
    q = np.random.default_rng(1).standard_normal((17, rope.head_dim))
    assert np.array_equal(rope(q, positions=positions)[-1], q[-1])


def test_gemma4_s_processor_puts_the_width_first() -> None:
    pytest.importorskip("PIL", reason="transformers reads images with Pillow")
    name = "transformers.models.gemma4.image_processing_pil_gemma4"
    processor = importlib.import_module(name).Gemma4ImageProcessorPil(do_resize=False)
    side = processor.patch_size
    image = np.zeros((3, HEIGHT * side, WIDTH * side), np.uint8)
    ids = processor(image, input_data_format="channels_first")["image_position_ids"][0]
    made = np.asarray(ids)[: HEIGHT * WIDTH].T
    np.testing.assert_array_equal(made[::-1], grid(HEIGHT, WIDTH))


@pytest.mark.parametrize("folder", ["sam3_tracker_video", "edgetam_video"])
def test_sam_s_kin_put_the_width_first(folder: str) -> None:
    m = model(folder)
    name = "Sam3TrackerVideo" if folder.startswith("sam3") else "EdgeTamVideo"
    config = getattr(m, f"{name}Config")()
    config.memory_attention_rope_feat_sizes = [WIDTH, HEIGHT]
    ids = getattr(m, f"{name}MemoryAttention").precompute_positions(config)
    np.testing.assert_array_equal(ids.T.flip(0), grid(HEIGHT, WIDTH))
    assert from_config(config).axes == Axial((64, 64), axis_order=(1, 0))


def test_sam3_scales_its_positions_to_its_window() -> None:
    m = model("sam3")
    config = m.Sam3ViTConfig(image_size=[14 * WIDTH, 14 * HEIGHT], window_size=24)
    ids = m.Sam3ViTLayer.precompute_positions(config, window_size=0)
    np.testing.assert_array_equal(ids.T.flip(0), grid(HEIGHT, WIDTH) * (24 / WIDTH))
    assert from_config(config).axes == Axial((16, 16), axis_order=(1, 0))


@pytest.mark.parametrize(
    ("model_type", "order"),
    [("qwen2_vl_text", "blocks"), ("qwen3_vl_text", "cycled")],
)
def test_text_alone_rotates_as_without_axes_to_the_bit(model_type: str, order: str) -> None:
    values = {"model_type": model_type, "head_dim": 128}
    rope = rotary.from_config(values)
    assert isinstance(rope.axes, Sections)
    assert rope.axes.order == order
    plain = rotary.RotaryEmbedding(128, base=rope.base)
    q = np.random.default_rng(1).standard_normal((9, 128)).astype(np.float32)
    assert np.array_equal(rope(q, positions=np.stack([np.arange(9)] * 3)), plain(q))
    assert np.array_equal(rope(q), plain(q))

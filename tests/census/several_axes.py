"""The census' rows with several position axes.

Each class runs on a grid that is not square and on tokens far away whose axes all differ, so that a
mix-up of height and width shows.  Positions are ours, time or height first, until they are given
to a class of theirs.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from comparing import DiffersError, Row, random_pair, rotates_alike

import rotary
from rotary.axes import Axial, Sections, grid

HEIGHT, WIDTH = 2, 3
FAR = np.array([[17, 60, 33, 5], [4095, 23, 7, 900], [5, 4095, 900, 11]], np.float64).T
# Models that hand their class positions with the width first.
WIDTH_FIRST = {
    "edgetam_video",
    "gemma4_vision",
    "muse_glimmer_vision",
    "muse_spark_vision",
    "sam2_video",
    "sam3_tracker_video",
    "sam3_vit_model",
}


# Whose partial_rotary_factor is a share of one axis: proportional means nothing there.
SHARES_OF_AXES = {"efficientloftr", "musicflamingo"}
# A class without a model_type of its own.
NAMELESS = {"EsmFold2AtomEncoderConfig": "esmfold2_atom_encoder"}


def model_type_of(config: Any) -> str:
    """Return the name by which from_config knows a config of theirs, "" if there is none."""
    return config.model_type or NAMELESS.get(type(config).__name__, "")


def told(ours: rotary.RotaryEmbedding) -> str:
    """Return one cell of the table on the axes."""
    axes = ours.axes
    if axes is None:
        return ""
    if isinstance(axes, Sections):
        return f"sections {'-'.join(map(str, axes.sizes))}, {axes.order.replace('_', ' ')}"
    words = [f"{axes.count} axial", axes.order]
    words += ["width first"] if axes.axis_order == (1, 0) else []
    words += ["dealt"] if axes.frequencies == "dealt" else []
    words += ["split features"] if axes.split_features else []
    words += ["in turns"] if axes.in_turns else []
    return ", ".join(words)


def wider(ours: rotary.RotaryEmbedding) -> dict[str, Any]:
    """Return the sections that proportional needs, which has frequencies for the whole head."""
    if not isinstance(ours.axes, Sections) or ours.axes.order != "blocks":
        return {}
    return {"mrope_section": [n * ours.head_dim // ours.rotary_dim for n in ours.axes.sizes]}


def pairs_scaled(ours: rotary.RotaryEmbedding) -> int:
    """Return the number of frequencies that a rule scales together."""
    if isinstance(ours.axes, Axial):
        return ours.axes.sizes[0]
    return math.ceil(ours.frequency_dim / 2)


class Halved:
    """HunYuan-VL's mistake: sections cut from the doubled angles, so that pairs fall apart.

    The first members of the pairs are turned by the axes of the first sections, the second members
    by those of the last.
    """

    def __init__(self, ours: rotary.RotaryEmbedding) -> None:
        self._ours = ours
        owner = np.repeat(np.arange(ours.axes.count), [2 * n for n in ours.axes.sizes])
        self._owners = owner.reshape(2, -1)  # of first, of second members

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ours, name)

    def __call__(self, x: Any, *, positions: Any) -> Any:
        by_axis = np.stack([self._ours.tables(axis, dtype="float64") for axis in positions])
        columns = np.arange(x.shape[-1] // 2)
        # (pairs, 2, tokens): indices on both sides of a slice go first.
        (c1, s1), (c2, s2) = [
            by_axis[owner, :, :, columns].T.swapaxes(0, 1) for owner in self._owners
        ]
        x1, x2 = np.split(x, 2, axis=-1)
        return np.concatenate([x1 * c1 - x2 * s1, x2 * c2 + x1 * s2], axis=-1)


def cut_in_halves(model_type: str, ours: rotary.RotaryEmbedding) -> Halved | None:
    """Return ours with HunYuan-VL's mistake."""
    return Halved(ours) if model_type == "hunyuan_vl_text" else None


# Theirs, by how a class comes to its positions: each returns positions of ours, tables of theirs


def _positions(count: int) -> Any:
    frames = {3: 2}.get(count)
    tokens = grid(HEIGHT, WIDTH, frames=frames)
    if count > 3:
        tokens = np.concatenate([grid(HEIGHT, WIDTH, frames=2), np.arange(12.0)[None] % 5])
    return np.concatenate([tokens, FAR[:count]], axis=1)


def _of_text(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    positions = _positions(ours.axes.count)
    extra = {} if layer_type is None else {"layer_type": layer_type}
    x = torch.zeros(1, positions.shape[-1], 8)
    return positions, made(x, torch.as_tensor(positions).long()[:, None], **extra)


def _of_tower(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    positions = _positions(ours.axes.count)
    model_type = made.config.model_type
    theirs = positions[::-1] if model_type in WIDTH_FIRST else positions
    tokens = torch.as_tensor(theirs.T.copy()).long()  # (tokens, axes)
    tables = made(torch.zeros(1), tokens[None] if model_type == "gemma4_vision" else tokens)
    return positions, tables


def _of_pixels(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    made.eval()
    patch = made.config.patch_size
    pixels = torch.zeros(1, 3, HEIGHT * patch, WIDTH * patch)
    return grid(HEIGHT, WIDTH, centered=True), made(pixels)


def _of_coarse_features(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    stride = made.config.q_aggregation_stride
    tables = made(torch.zeros(1, 1, HEIGHT * stride, WIDTH * stride))
    return grid(HEIGHT, WIDTH, start=1), tuple(t.flatten(1, 2) for t in tables)


def _of_square(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    """Take patches of the only grid that the class has, no square, and its class token."""
    side = made.config.image_size // made.config.patch_size
    rows, columns = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [31, 4], [3, 30]]).T
    index = np.append(rows * side + columns, side**2)
    positions = np.pad(np.stack([rows, columns]) + 1.0, ((0, 0), (0, 1)))
    return positions, made(torch.zeros(1))[index]


def _of_atoms(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    positions = _positions(4)
    positions[:3] /= 4  # places in space, not whole
    places, residues = torch.as_tensor(positions[:3].T.copy()), torch.as_tensor(positions[3]).long()
    return positions, made(places[None].float(), residues[None], torch.float32)


def _of_seconds(made: Any, ours: Any, layer_type: str | None) -> tuple[Any, Any]:
    """Angles are products: of the seconds with the window, and with the place in the window."""
    length, step = 6, 0.25
    starts = torch.tensor([24.0, 48.0])  # windows 100 and 200 of 0.24 seconds
    seconds = starts[:, None] + step * torch.arange(length)
    tables = made(seconds, seq_len=length)
    window = np.array([[100.0], [200.0]]) / made.max_seq_len_cached
    place = np.arange(length) / made.max_seq_len_cached * 2 * math.pi
    turned = -2 * math.pi * seconds.numpy().astype(np.float64)
    positions = np.stack([turned * window, turned * place]).reshape(2, -1)
    return positions, tuple(table.flatten(0, 1)[None] for table in tables)


TABLES: dict[str, Callable[[Any, Any, str | None], tuple[Any, Any]]] = {
    "dinov3_vit": _of_pixels,
    "efficientloftr": _of_coarse_features,
    "eomt_dinov3": _of_pixels,
    "llama4_vision_model": _of_square,
    "musicflamingo": _of_seconds,
    "sapiens2": _of_pixels,
}


# Applying them

Apply = Callable[[torch.Tensor, Any, Any], torch.Tensor]


def _tokens_first(function: Any) -> Apply:
    def apply(x: torch.Tensor, tables: Any, positions: Any) -> torch.Tensor:
        return function(x[:, None], x[:, None], *tables)[0][:, 0]  # (tokens, heads, dim)

    return apply


def _heads_first(function: Any) -> Apply:
    def apply(x: torch.Tensor, tables: Any, positions: Any) -> torch.Tensor:
        return function(x[None, None], x[None, None], *tables)[0][0, 0]

    return apply


def _by_axis(function: Any) -> Apply:
    def apply(x: torch.Tensor, tables: Any, positions: Any) -> torch.Tensor:
        ids = torch.as_tensor(positions.T.copy())[None]
        return function(x[None, :, None], *tables, ids)[0, :, 0]

    return apply


def _complex(function: Any) -> Apply:
    def apply(x: torch.Tensor, table: Any, positions: Any) -> torch.Tensor:
        four = x[None, :, None]
        return function(four, four, table)[0][0, :, 0]

    return apply


def _hidden_states(function: Any) -> Apply:
    def apply(x: torch.Tensor, tables: Any, positions: Any) -> torch.Tensor:
        return function(x[None], *tables)[0]

    return apply


def _text(function: Any) -> Apply:
    # Some cut the features that rotate off themselves.
    cuts = re.search(r"rotary_dim|rot_dim", inspect.getsource(function)) is not None

    def apply(x: torch.Tensor, tables: Any, positions: Any) -> torch.Tensor:
        if tables[0].ndim == 2:  # (tokens, dim)
            tables = [table[None] for table in tables]
        rotated = x.shape[-1] if cuts else tables[0].shape[-1]
        part = x[None, None, :, :rotated]
        out = function(part, part, *tables)[0][0, 0]
        return torch.cat([out, x[:, rotated:]], dim=-1)

    return apply


# The functions of image models; all others are called as those of text.
APPLIED = {
    "apply_rotary_pos_emb_vision": _tokens_first,
    "apply_rotary_pos_emb_2d": _heads_first,
    "apply_rotary_pos_emb_2d_self_attn": _heads_first,
    "apply_multidimensional_rope": _by_axis,
    "vision_apply_rotary_emb": _complex,
    "apply_rotary_time_emb": _hidden_states,
}


def apply_of(module: ModuleType, axes: Any) -> Apply:
    """Return the module's own rotation as a function of x, tables and positions."""
    if isinstance(axes, Axial):
        for name, adapt in APPLIED.items():
            if hasattr(module, name):
                return adapt(getattr(module, name))
    return _text(module.apply_rotary_pos_emb)


class Theirs:
    """What a class of theirs gives: frequencies in ascending order, factor, rotated q and k."""

    def __init__(
        self,
        module: ModuleType,
        cls: Any,
        config: Any,
        layer_type: str | None,
        ours: rotary.RotaryEmbedding,
    ) -> None:
        made = cls(config)
        prefix = "" if layer_type is None else f"{layer_type}_"
        self.inv_freq = _all_of(getattr(made, f"{prefix}inv_freq", None), ours)
        self.factor = getattr(made, f"{prefix}attention_scaling", 1.0)
        text = isinstance(ours.axes, Sections)
        make = _of_atoms if ours.inv_freq else _of_text if text else _of_tower
        make = TABLES.get(config.model_type, make)
        self.positions, tables = make(made, ours, layer_type)
        apply = apply_of(module, ours.axes)
        pair = random_pair(ours.head_dim, self.positions.shape[-1])
        self.rotated = [
            apply(torch.as_tensor(x), tables, self.positions).double().numpy() for x in pair
        ]


def _all_of(inv_freq: Any, ours: rotary.RotaryEmbedding) -> Any:
    """Return the frequencies of all pairs in ascending order; theirs may hold those of one axis."""
    if inv_freq is None:
        return None
    values = inv_freq.double().numpy() * (2 * math.pi if ours.axes.in_turns else 1)
    return np.sort(np.tile(values, ours.rotary_dim // 2 // len(values)))


# Attention modules: what their attention function gets to see


def check_attention(row: Row, module: ModuleType, cls: Any, config: Any) -> None:
    """Check the queries and keys that an attention module rotates itself."""
    ours = rotary.from_config(config.to_dict())
    row.model_type, row.axes, row.scalings = config.model_type, told(ours), ["default"]
    row.layout, row.side = ours.layout, ours.rotary_side
    width = getattr(config, "memory_attention_hidden_size", None) or config.hidden_size
    heads = width // ours.head_dim
    if "kv_in_dim" in inspect.signature(cls).parameters:
        made = cls(config, kv_in_dim=ours.head_dim)
    else:
        made = cls(config)
    with torch.no_grad():
        for part in (made.q_proj, made.k_proj, made.v_proj):
            part.weight.copy_(torch.eye(len(part.weight)))
            part.bias.zero_()
    embedding = next(
        value
        for name, value in vars(module).items()
        if name.endswith("RotaryEmbedding") and name.startswith(cls.__name__.partition("RoPE")[0])
    )
    positions, tables = _of_tower(embedding(config), ours, None)
    try:
        q, k = _seen(module, made, tables, random_pair(ours.head_dim, positions.shape[-1]), heads)
        row.order = rotates_alike([q, k], ours, positions)
    except DiffersError as error:
        row.status, row.notes = "differs", [str(error)]


def _seen(module: ModuleType, made: Any, tables: Any, pair: Any, heads: int) -> Any:
    """Return q and k of the first head as the attention function gets them."""
    seen: list[Any] = []

    def capture(attention: Any, q: Any, k: Any, v: Any, **options: Any) -> tuple[Any, None]:
        seen.append((q[0, 0], k[0, 0]))
        return torch.zeros_like(q).transpose(1, 2), None

    kept, module.eager_attention_forward = module.eager_attention_forward, capture
    made.config = copy.copy(made.config)
    made.config._attn_implementation = "eager"
    wide = [torch.as_tensor(np.tile(x, heads)).float() for x in pair]
    names = inspect.signature(made.forward).parameters
    try:
        if "hidden_states" in names:  # one for both: twice, to see q of the first, k of the second
            for x in wide:
                made(x[None, :, None], tables)
        else:
            options = {"position_embeddings_k": tables, "rope_k_repeat": 1}
            extra = {k: v for k, v in options.items() if k in names}
            q, k = (x[None, None] for x in wide)
            made(q, k, k, tables, **extra)
    finally:
        module.eager_attention_forward = kept
    return [seen[0][0].detach().double().numpy(), seen[-1][1].detach().double().numpy()]


# Files that rotate without a class


def check_lightglue(row: Row, module: ModuleType) -> None:
    """Learned frequencies of both axes, mixed: no config tells them, cos_sin takes them."""
    config = module.LightGlueConfig()
    row.model_type, row.layout, row.side = config.model_type, "interleaved", "leading"
    row.axes = "2, mixed"
    made = module.LightGluePositionalEncoder(config)
    positions = _positions(2) / 64
    tokens = torch.as_tensor(positions.T.copy()).float()
    with torch.no_grad():
        tables = made(tokens)[0]
        weights = made.projector.weight.T.numpy()  # (axes, pairs)
    cos, sin = rotary.cos_sin(positions, weights.astype(np.float64), axes=2)
    apply = _heads_first(module.apply_rotary_pos_emb)
    error = 0.0
    for x in random_pair(2 * weights.shape[1], len(tokens)):
        theirs = apply(torch.as_tensor(x), [t[None] for t in tables], None).double().numpy()
        mine = rotary.rotate(x, cos, sin, layout="interleaved")
        error = max(error, float(np.max(np.abs(mine - theirs))))
    row.status = "learned frequencies: rotary.cos_sin and rotary.rotate match"
    if error > 1e-4:
        row.status, row.notes = "differs", [f"rotated features: {error:.1e} apart"]


def check_vjepa2(row: Row, module: ModuleType) -> None:
    """No rotation: members of a pair turn by different angles."""
    row.model_type, row.axes = "vjepa2", "3 axial, blocks, split features"
    row.status = "their defect"
    positions = _positions(3)
    rope = rotary.RotaryEmbedding(20)
    apart = 0.0
    for axis in positions:
        x = random_pair(20, len(axis))[0]
        ids = torch.as_tensor(axis)
        theirs = module.rotate_queries_or_keys(torch.as_tensor(x)[None, None], ids)[0, 0].numpy()
        cos, sin = (np.tile(t, 2) for t in rope.tables(axis, dtype="float64"))
        turned = np.stack([-x[:, 1::2], x[:, 0::2]], axis=-1).reshape(x.shape)
        apart = max(apart, float(np.max(np.abs(x * cos + turned * sin - theirs))))
    row.notes = ["defect D10"] if apart < 1e-9 else [f"not the known mistake: {apart:.1e} apart"]


FILES: dict[str, Callable[[Row, ModuleType], None]] = {
    "lightglue": check_lightglue,
    "vjepa2": check_vjepa2,
}

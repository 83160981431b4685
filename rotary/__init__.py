"""Positional encodings and linear attention, written once: the same bits on every array library."""

from rotary import absolute, axes, exact, linear, relative, scaling
from rotary.angles import cos_sin
from rotary.backends.kernels import get_num_threads, set_num_threads
from rotary.config import from_config, layers_from_config
from rotary.embedding import RotaryEmbedding
from rotary.linear import LinearAttention
from rotary.packing import offsets_from_mask, positions_from_cu_seqlens
from rotary.positions import validate
from rotary.rotation import rotate
from rotary.softmax import softmax_attention
from rotary.weights import convert_layout
from rotary.xpos import XPos

__all__ = [
    "LinearAttention",
    "RotaryEmbedding",
    "XPos",
    "absolute",
    "axes",
    "convert_layout",
    "cos_sin",
    "exact",
    "from_config",
    "get_num_threads",
    "layers_from_config",
    "linear",
    "offsets_from_mask",
    "positions_from_cu_seqlens",
    "relative",
    "rotate",
    "scaling",
    "set_num_threads",
    "softmax_attention",
    "validate",
]
__version__ = "0.1.0.dev0"

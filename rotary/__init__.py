"""Positional encodings and linear attention, written once: the same bits on every array library."""

from rotary import scaling
from rotary.config import from_config, layers_from_config
from rotary.embedding import RotaryEmbedding
from rotary.positions import validate
from rotary.rotation import rotate
from rotary.weights import convert_layout
from rotary.xpos import XPos

__all__ = [
    "RotaryEmbedding",
    "XPos",
    "convert_layout",
    "from_config",
    "layers_from_config",
    "rotate",
    "scaling",
    "validate",
]
__version__ = "0.1.0.dev0"

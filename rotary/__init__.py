"""Positional encodings and linear attention, written once: the same bits on every array library."""

from rotary import scaling
from rotary.embedding import RotaryEmbedding
from rotary.positions import validate
from rotary.rotation import rotate
from rotary.weights import convert_layout

__all__ = ["RotaryEmbedding", "convert_layout", "rotate", "scaling", "validate"]
__version__ = "0.1.0.dev0"

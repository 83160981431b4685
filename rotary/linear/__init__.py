"""Linear attention, written once: parallel, in chunks, token by token, and in segments."""

from rotary.linear.attention import LinearAttention
from rotary.linear.decays import RetNet
from rotary.linear.feature_maps import CosFormer
from rotary.linear.random_features import FavorPlus
from rotary.linear.state import State, combine

__all__ = ["CosFormer", "FavorPlus", "LinearAttention", "RetNet", "State", "combine"]

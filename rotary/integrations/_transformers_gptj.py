"""GPT-J of transformers, which has no rotary module.

Its attention keeps tables of its own and rounds them to the model's dtype before it applies them,
so that its forward is written again: the same steps, with tables that stay in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

import rotary
from rotary.integrations._transformers_tables import ANGLE, Refused, described


def embedding_of(module: torch.nn.Module) -> rotary.RotaryEmbedding:
    """Return what an attention's config describes; raise Refused where it computes another."""
    made: Any = module
    rope = described(made.config)
    positions = torch.tensor([0, 1, 17, 255])
    theirs = sys.modules[type(module).__module__]
    table = theirs.create_sinusoidal_positions(256, made.pos_embd_dim)[positions]
    cos, sin = rope.tables(positions, like=table)
    mine = torch.cat([sin, cos], dim=-1)
    if mine.shape != table.shape or (mine - table).abs().max() > ANGLE * 256:
        raise Refused(f"makes other tables than its config describes ({rope})")
    return rope


def forward_with(rope: rotary.RotaryEmbedding) -> Callable[..., Any]:
    """Return GPTJAttention.forward with this embedding."""

    def forward(
        self: Any,
        hidden_states: Any,
        layer_past: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        heads, head_dim = self.num_attention_heads, self.head_dim
        query = self._split_heads(self.q_proj(hidden_states), heads, head_dim, True)
        key = self._split_heads(self.k_proj(hidden_states), heads, head_dim, True)
        value = self._split_heads(self.v_proj(hidden_states), heads, head_dim, False)
        with torch.no_grad():
            cos, sin = rope.tables(position_ids, like=query)
        query, key = (
            rotary.rotate(x, cos, sin, layout="interleaved", seq_axis=-3).permute(0, 2, 1, 3)
            for x in (query, key)
        )
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        output, weights = self._attn(query, key, value, attention_mask)
        output = self.out_proj(self._merge_heads(output, heads, head_dim))
        return self.resid_dropout(output), weights

    return forward

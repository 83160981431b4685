"""Released libraries as ``rotary check`` and ``rotary identify`` call them; see docs/defects.md.

They only hand arguments over: each is made as it is by default, or with the config that
``--embedding`` names, and called with x and, where it takes them, positions.
"""

from __future__ import annotations

from typing import Any


class YaRNByLayer:
    """transformers' YaRN where ``rope_parameters`` are nested by layer type, in OLMo 3's class.

    Parameters
    ----------
    config : transformers config
        Its ``head_dim`` and its flat ``rope_parameters`` become those of the full attention.
    """

    def __init__(self, config: Any) -> None:
        from transformers import Olmo3Config
        from transformers.models.olmo3 import modeling_olmo3

        full = config.rope_parameters
        plain = {"rope_type": "default", "rope_theta": full["rope_theta"]}
        nested = Olmo3Config(
            hidden_size=32 * config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"full_attention": full, "sliding_attention": plain},
        )
        self.tables = modeling_olmo3.Olmo3RotaryEmbedding(nested)
        self.apply = modeling_olmo3.apply_rotary_pos_emb

    def __call__(self, x: Any, position_ids: Any) -> Any:
        """Return x (batch, heads, seq, head_dim) rotated to position_ids (batch, seq)."""
        cos, sin = self.tables(x, position_ids, "full_attention")
        return self.apply(x, x, cos, sin)[0]


class RotaryEmbeddingTorch:
    """rotary-embedding-torch's class as it is by default, which counts the rows of x from 0."""

    def __init__(self, dim: int = 64) -> None:
        from rotary_embedding_torch import RotaryEmbedding

        self.rope = RotaryEmbedding(dim)

    def __call__(self, x: Any) -> Any:
        """Return x (batch, heads, seq, dim) rotated."""
        return self.rope.rotate_queries_or_keys(x)

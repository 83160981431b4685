"""Modules of Flax NNX: a static description that sits in a model, without variables.

``nnx.split`` gives them an empty state.  The description is part of the graph definition, so that
two modules with equal descriptions share one compiled program.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

import rotary
from rotary.integrations._described import check_array, described
from rotary.linear import State

__all__ = ["LinearAttention", "RotaryEmbedding"]


class RotaryEmbedding(nnx.Module):
    """Rotary position embedding of queries and keys, as a module.

    Parameters
    ----------
    *args, **arguments
        Those of :class:`rotary.RotaryEmbedding`, or one such description alone.

    Attributes
    ----------
    description : rotary.RotaryEmbedding
        With all its methods: ``tables``, ``inverse``, ``shift``, ``softmax_scale``.

    Raises
    ------
    TypeError, ValueError
        As the description; for a description and arguments together.

    Examples
    --------
    >>> import jax
    >>> from flax import nnx
    >>> from rotary.integrations.flax import RotaryEmbedding
    >>> rope = RotaryEmbedding(64, base=500_000.0)
    >>> q = jax.numpy.ones((1, 5, 8, 64))  # batch, seq, heads, dim, as in Flax
    >>> q_rotated, k_rotated = rope(q, q[:, :, :2], seq_axis=-3)
    >>> k_next = rope(q[:, :1, :2], offset=5, seq_axis=-3)  # a decoding step at position 5
    >>> jax.tree.leaves(nnx.state(rope))
    []
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        self.description = described(rotary.RotaryEmbedding, args, arguments, nnx.Module)

    @classmethod
    def from_config(
        cls, config: Any, *, part: str | None = None, layer_type: str | None = None
    ) -> RotaryEmbedding:
        """Return the module of a Hugging Face config; arguments as :func:`rotary.from_config`."""
        return cls(rotary.from_config(config, part=part, layer_type=layer_type))

    def __call__(self, q: jax.Array, k: jax.Array | None = None, **options: Any) -> Any:
        """Rotate q, or q and k, to their positions.

        Parameters
        ----------
        q, k : array, shape (..., seq, head_dim)
        **options
            As for the description's call: positions, offset, seq_len, seq_axis, role.

        Returns
        -------
        array, or a pair with k
        """
        check_array("q", q, jax.Array, "jax.Array")
        return self.description(q, k, **options)


class LinearAttention(nnx.Module):
    """Linear attention, as a module: whole sequences, and a state that does not grow.

    Parameters
    ----------
    *args, **arguments
        Those of :class:`rotary.LinearAttention`, or one such description alone.

    Attributes
    ----------
    description : rotary.LinearAttention

    Raises
    ------
    TypeError, ValueError
        As the description; for a description and arguments together; for a feature map that is a
        module.

    Examples
    --------
    >>> import jax, rotary
    >>> from rotary.integrations.flax import LinearAttention
    >>> attn = LinearAttention(rope=rotary.RotaryEmbedding(64))
    >>> x = jax.numpy.ones((1, 8, 100, 64))  # batch, heads, seq, dim
    >>> out, state = attn.prefill(x, x, x)  # the state is a pytree
    >>> out.shape, state.position
    ((1, 8, 100, 64), Array([100], dtype=int32))
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        self.description = described(rotary.LinearAttention, args, arguments, nnx.Module)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
        """Attend; options as for the description's call (causal, key_mask, gate, beta, …)."""
        check_array("q", q, jax.Array, "jax.Array")
        out: jax.Array = self.description(q, k, v, **options)
        return out

    def prefill(
        self, q: jax.Array, k: jax.Array, v: jax.Array, state: Any = None, **options: Any
    ) -> tuple[jax.Array, State]:
        """Attend causally from a state on, and hand the state over; as the description's."""
        check_array("q", q, jax.Array, "jax.Array")
        return self.description.prefill(q, k, v, state, **options)

    def step(
        self, q: jax.Array, k: jax.Array, v: jax.Array, state: Any, **options: Any
    ) -> tuple[jax.Array, State]:
        """Attend with one token more, and return the next state, too; as the description's."""
        check_array("q", q, jax.Array, "jax.Array")
        return self.description.step(q, k, v, state, **options)

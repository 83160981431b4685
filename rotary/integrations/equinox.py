"""Modules of Equinox: a description as a static field, without leaves.

As pytrees they are empty: ``eqx.filter_jit``, ``eqx.filter_grad`` and ``eqx.filter_vmap`` find no
array in them.  :class:`RotaryPositionalEmbedding` is called as ``eqx.nn``'s own of that name.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

import rotary
from rotary.checks import positive, whole
from rotary.integrations._described import check_array, described
from rotary.linear import State

__all__ = ["LinearAttention", "RotaryEmbedding", "RotaryPositionalEmbedding"]


class RotaryEmbedding(eqx.Module):
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
    >>> from rotary.integrations.equinox import RotaryEmbedding
    >>> rope = RotaryEmbedding(64, base=500_000.0)
    >>> q = jax.numpy.ones((8, 5, 64))  # heads, seq, dim
    >>> q_rotated, k_rotated = rope(q, q[:2])
    >>> k_next = rope(q[:2, :1], offset=5)  # a decoding step at position 5
    >>> jax.tree.leaves(rope)
    []
    """

    description: rotary.RotaryEmbedding = eqx.field(static=True)

    def __init__(self, *args: Any, **arguments: Any) -> None:
        self.description = described(rotary.RotaryEmbedding, args, arguments, eqx.Module)

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

    def process_heads(
        self, query_heads: jax.Array, key_heads: jax.Array, value_heads: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotate what ``eqx.nn.MultiheadAttention(...)(..., process_heads=...)`` hands over.

        Parameters
        ----------
        query_heads, key_heads : array, shape (seq, heads, head_dim)
            Of one sequence, both from position 0 on.
        value_heads : array
            Returned as it is.
        """
        return (*self(query_heads, key_heads, seq_axis=-3), value_heads)


class RotaryPositionalEmbedding(eqx.Module):
    """The rotation of ``eqx.nn.RotaryPositionalEmbedding``, called in the same way.

    Its layout is ``"half"``.  Tables are exact, and none is kept by size alone, as Equinox 0.13.8
    does, where of two embeddings of one size the second gets the first one's theta.

    Parameters
    ----------
    embedding_size : int
        Size of the last axis of x, even.
    theta : float
        The base.
    dtype : optional
        Taken for the sake of existing calls and not used: tables come in the dtype in which x
        rotates, float32 or float64.

    Raises
    ------
    TypeError, ValueError
        For values outside these ranges, naming the argument.

    Examples
    --------
    >>> import jax
    >>> from rotary.integrations.equinox import RotaryPositionalEmbedding
    >>> rope = RotaryPositionalEmbedding(64, theta=500_000.0)
    >>> rope(jax.numpy.ones((5, 64))).shape  # seq, embedding_size
    (5, 64)
    """

    embedding_size: int = eqx.field(static=True)
    theta: float = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    description: rotary.RotaryEmbedding = eqx.field(static=True)

    def __init__(self, embedding_size: int, theta: float = 10_000.0, dtype: Any = None) -> None:
        self.embedding_size = whole("embedding_size", embedding_size)
        if self.embedding_size % 2:
            raise ValueError(f"embedding_size: got {embedding_size}, expected an even number")
        self.theta = positive("theta", theta)
        self.dtype = dtype
        self.description = rotary.RotaryEmbedding(self.embedding_size, base=self.theta)

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        """Rotate x of shape (seq, embedding_size) from position 0 on; key is not used."""
        check_array("x", x, jax.Array, "jax.Array")
        if x.ndim != 2 or x.shape[-1] != self.embedding_size:
            raise ValueError(
                f"x: got shape {x.shape}, expected (seq, {self.embedding_size}); jax.vmap adds axes"
            )
        rotated: jax.Array = self.description(x)
        return rotated


class LinearAttention(eqx.Module):
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
    >>> from rotary.integrations.equinox import LinearAttention
    >>> attn = LinearAttention(rope=rotary.RotaryEmbedding(64))
    >>> x = jax.numpy.ones((1, 8, 100, 64))  # batch, heads, seq, dim
    >>> out, state = attn.prefill(x, x, x)  # the state is a pytree
    >>> out.shape, state.position
    ((1, 8, 100, 64), Array([100], dtype=int32))
    """

    description: rotary.LinearAttention = eqx.field(static=True)

    def __init__(self, *args: Any, **arguments: Any) -> None:
        self.description = described(rotary.LinearAttention, args, arguments, eqx.Module)

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

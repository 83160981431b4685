"""Modules of torch: a description that sits in a model, without parameters and without buffers.

Tables are made where they are needed, so ``model.half()``, ``model.to(torch.bfloat16)`` and
``model.cuda()`` find nothing to round or to move, and ``state_dict()`` has no entry that an older
checkpoint lacks.  The usual modules keep 1/θ^(2i/R) as a buffer, which a cast rounds to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

import rotary
from rotary.checks import check_choice
from rotary.integrations._described import check_array, described
from rotary.linear import State
from rotary.rotation import LAYOUTS

__all__ = ["LinearAttention", "MixedRotaryEmbedding", "RotaryEmbedding"]

# Exported programs name its operators, and may be loaded before any tensor was seen.
import_module("rotary.backends._torch")


class RotaryEmbedding(torch.nn.Module):
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
    >>> import torch
    >>> from rotary.integrations.torch import RotaryEmbedding
    >>> rope = RotaryEmbedding(64, base=500_000.0)
    >>> q, k = torch.ones(1, 8, 5, 64), torch.ones(1, 2, 5, 64)  # batch, heads, seq, dim
    >>> q_rotated, k_rotated = rope(q, k)
    >>> k_next = rope(k[:, :, :1], offset=5)  # a decoding step at position 5
    >>> len(rope.state_dict())
    0
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__()
        self.description = described(rotary.RotaryEmbedding, args, arguments, torch.nn.Module)

    @classmethod
    def from_config(
        cls, config: Any, *, part: str | None = None, layer_type: str | None = None
    ) -> RotaryEmbedding:
        """Return the module of a Hugging Face config; arguments as :func:`rotary.from_config`."""
        return cls(rotary.from_config(config, part=part, layer_type=layer_type))

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None = None,
        *,
        positions: Any = None,
        offset: Any = None,
        seq_len: Any = None,
        seq_axis: int = -2,
        role: str | None = None,
        out: Any = None,
    ) -> Any:
        """Rotate q, or q and k, to their positions; arguments as for the description's call.

        They are spelled out here since ``torch.export`` names dynamic shapes after them.
        """
        check_array("q", q, torch.Tensor, "torch.Tensor")
        return self.description(
            q,
            k,
            positions=positions,
            offset=offset,
            seq_len=seq_len,
            seq_axis=seq_axis,
            role=role,
            out=out,
        )

    def extra_repr(self) -> str:
        return _arguments(self.description)


class MixedRotaryEmbedding(torch.nn.Module):
    """Rotary position embedding whose frequencies are learned, by head and axis.

        angle_i = Σ_a p_a·ω_{a,i}         (RoPE-ViT "mixed", Heo et al., arXiv 2403.13298)

    The frequencies are a parameter.  A cast of the model to 16 bits leaves their dtype: those of 8
    bits give angles that are off by radians a few thousand positions on.

    Parameters
    ----------
    inv_freq : tensor, shape (axes, pairs) or (axes, heads, pairs)
        Where training begins, float32 or float64; copied.
    axes : int or None
        Number of position axes; None for one, without an axis for it in the arrays.
    layout : {"half", "interleaved"}
        Interleaved by default, as in RoPE-ViT.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shapes that do not meet, an unknown layout.

    Examples
    --------
    >>> import rotary, torch
    >>> from rotary.integrations.torch import MixedRotaryEmbedding
    >>> rope = MixedRotaryEmbedding(torch.ones(2, 4, 8))  # 2 axes, 4 heads, 8 pairs
    >>> q = torch.ones(1, 4, 6, 16)
    >>> rope(q, positions=rotary.axes.grid(2, 3)).sum().backward()
    >>> rope.inv_freq.grad.shape
    torch.Size([2, 4, 8])
    """

    def __init__(
        self, inv_freq: torch.Tensor, *, axes: int | None = 2, layout: str = "interleaved"
    ) -> None:
        super().__init__()
        check_array("inv_freq", inv_freq, torch.Tensor, "torch.Tensor")
        check_choice("layout", layout, LAYOUTS)
        # All checks of shape and dtype are those of the tables.
        with torch.no_grad():
            rotary.cos_sin([0] if axes is None else [[0]] * axes, inv_freq, axes=axes)
        self.axes, self.layout = axes, layout
        self.inv_freq = torch.nn.Parameter(inv_freq.detach().clone())

    def forward(
        self, q: torch.Tensor, k: torch.Tensor | None = None, *, positions: Any
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Rotate q, or q and k, of shape (batch, heads, seq, dim).

        Parameters
        ----------
        q, k : tensor
        positions : array or list, shape (axes, seq) or (axes, batch, seq)
            Without the first axis where axes is None.

        Returns
        -------
        tensor, or a pair with k
        """
        check_array("q", q, torch.Tensor, "torch.Tensor")
        cos, sin = rotary.cos_sin(positions, self.inv_freq, axes=self.axes, like=q)
        rotated = rotary.rotate(q, cos, sin, layout=self.layout)
        return rotated if k is None else (rotated, rotary.rotate(k, cos, sin, layout=self.layout))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def moved(x: torch.Tensor) -> torch.Tensor:
            y = fn(x)
            return x.to(y.device) if y.dtype in (torch.float16, torch.bfloat16) else y

        # torch leaves it untyped.
        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"inv_freq={tuple(self.inv_freq.shape)}, axes={self.axes}, layout={self.layout!r}"


class LinearAttention(torch.nn.Module):
    """Linear attention, as a module: whole sequences, and a state that does not grow.

    Under ``torch.autocast`` it computes in the dtypes that it says, float32 sums at least: autocast
    would round the operands of every product to 16 bits.

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
    >>> import rotary, torch
    >>> from rotary.integrations.torch import LinearAttention
    >>> attn = LinearAttention(rope=rotary.RotaryEmbedding(64))
    >>> x = torch.ones(1, 8, 100, 64)  # batch, heads, seq, dim
    >>> attn(x, x, x, causal=True).shape
    torch.Size([1, 8, 100, 64])
    >>> out, state = attn.prefill(x, x, x)
    >>> out, state = attn.step(x[:, :, :1], x[:, :, :1], x[:, :, :1], state)
    >>> state.position
    tensor([101], dtype=torch.int32)
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__()
        self.description = described(rotary.LinearAttention, args, arguments, torch.nn.Module)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Attend; options as for the description's call (causal, key_mask, gate, beta, …)."""
        check_array("q", q, torch.Tensor, "torch.Tensor")
        out: torch.Tensor = self.description(q, k, v, **options)
        return out

    def prefill(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any = None, **options: Any
    ) -> tuple[torch.Tensor, State]:
        """Attend causally from a state on, and hand the state over; as the description's."""
        check_array("q", q, torch.Tensor, "torch.Tensor")
        return self.description.prefill(q, k, v, state, **options)

    def step(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any, **options: Any
    ) -> tuple[torch.Tensor, State]:
        """Attend with one token more, and return the next state, too; as the description's."""
        check_array("q", q, torch.Tensor, "torch.Tensor")
        return self.description.step(q, k, v, state, **options)

    def extra_repr(self) -> str:
        return _arguments(self.description)


def _arguments(description: Any) -> str:
    """Return a description's repr without the name, which the module's own is."""
    return repr(description).partition("(")[2][:-1]

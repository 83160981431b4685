"""Several sequences in one row: each is attended to by itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from rotary import positions as _positions
from rotary.linear.inputs import Call, Sizes, check_mask, check_tokens
from rotary.linear.state import State, check_state


def read_bounds(cu_seqlens: Any, sizes: Sizes) -> list[int]:
    """Return where each sequence begins, and the total, or raise."""
    if sizes.batch != 1:
        raise ValueError(f"cu_seqlens: got it with a batch of {sizes.batch}, expected a batch of 1")
    bounds = _as_bounds(cu_seqlens, sizes)
    if bounds != sorted(bounds):
        raise ValueError(f"cu_seqlens: got {bounds}, expected whole numbers that never fall")
    if bounds[0] != 0 or bounds[-1] != sizes.seq:
        raise ValueError(
            f"cu_seqlens: got {bounds[0]} … {bounds[-1]}, expected 0 … seq = {sizes.seq}: all "
            f"tokens belong to a sequence"
        )
    return bounds


def _as_bounds(cu_seqlens: Any, sizes: Sizes) -> list[int]:
    # Without NumPy where it can be: torch.compile does not follow its arrays.
    plain = isinstance(cu_seqlens, list | tuple) and all(type(n) is int for n in cu_seqlens)
    if plain and len(cu_seqlens) > 1:
        return list(cu_seqlens)
    host = _positions.read(cu_seqlens, sizes.backend, "cu_seqlens")
    if host.ndim != 1 or host.size < 2:
        raise ValueError(
            f"cu_seqlens: got shape {host.shape}, expected (sequences + 1,), from 0 to seq"
        )
    bounds = [int(n) for n in host]
    if bounds != host.tolist():
        raise ValueError(f"cu_seqlens: got {host.tolist()}, expected whole numbers that never fall")
    return bounds


def attend(
    attention: Any, call: Call, cu_seqlens: Any, causal: bool, sizes: Sizes, keep: bool
) -> tuple[Any, State | None]:
    """Return the outputs of all sequences, joined, and a state whose batch axis is theirs."""
    bounds = read_bounds(cu_seqlens, sizes)
    count = len(bounds) - 1
    if call.key_mask is not None:
        check_mask(call.key_mask, call.k, sizes)
    for name, x in (("gate", call.gate), ("beta", call.beta)):
        if x is not None:
            check_tokens(name, x, call.k, sizes)
    if call.state is not None:
        check_state("state", call.state)
        if call.state.numerator.shape[0] != count:
            raise ValueError(
                f"state: got {call.state.numerator.shape[0]} batch rows, expected one for each of "
                f"{count} sequences"
            )
    if call.positions is not None and not hasattr(call.positions, "shape"):
        call = call._replace(positions=np.asarray(call.positions))
    if call.positions is not None and tuple(call.positions.shape[-1:]) != (sizes.seq,):
        raise ValueError(
            f"positions: got shape {tuple(call.positions.shape)}, expected ({sizes.seq},) or "
            f"(1, {sizes.seq})"
        )
    outputs, states = [], []
    for n, (start, stop) in enumerate(pairwise(bounds)):
        part = call.sequence(n, slice(start, stop))
        out, after = attention._attend_checked(part, causal, sizes._replace(seq=stop - start), keep)
        outputs.append(out)
        states.append(after)
    xp = sizes.backend.namespace(call.k)
    joined = outputs[0] if count == 1 else xp.concat(outputs, axis=-2)
    if not keep:
        return joined, None
    fields = zip(*states, strict=True)
    return joined, State(
        *(None if parts[0] is None else xp.concat(parts, axis=0) for parts in fields)
    )

"""Several sequences in one row: each is attended to by itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from rotary import positions as _positions
from rotary.linear.inputs import Sizes, check_mask
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
    attention: Any,
    q: Any,
    k: Any,
    v: Any,
    state: State | None,
    causal: bool,
    key_mask: Any,
    gate: Any,
    beta: Any,
    positions: Any,
    cu_seqlens: Any,
    sizes: Sizes,
    keep: bool,
) -> tuple[Any, State | None]:
    """Return the outputs of all sequences, joined, and a state whose batch axis is theirs."""
    bounds = read_bounds(cu_seqlens, sizes)
    count = len(bounds) - 1
    if key_mask is not None:
        check_mask(key_mask, k, sizes)
    if state is not None:
        check_state("state", state)
        if state.numerator.shape[0] != count:
            raise ValueError(
                f"state: got {state.numerator.shape[0]} batch rows, expected one for each of "
                f"{count} sequences"
            )
    if positions is not None and not hasattr(positions, "shape"):
        positions = np.asarray(positions)
    outputs, states = [], []
    for n, (start, stop) in enumerate(pairwise(bounds)):

        def tokens(x: Any, axis: int = -2, start: int = start, stop: int = stop) -> Any:
            if x is None:
                return None
            return x[..., start:stop, :] if axis == -2 else x[..., start:stop]

        row = (
            None if state is None else State(*(None if x is None else x[n : n + 1] for x in state))
        )
        out, after = attention._attend_checked(
            tokens(q),
            tokens(k),
            tokens(v),
            row,
            causal,
            tokens(key_mask, -1),
            tokens(gate, -1 if gate is None or gate.ndim == 3 else -2),
            tokens(beta, -1),
            tokens(positions, -1),
            sizes._replace(seq=stop - start),
            keep,
        )
        outputs.append(out)
        states.append(after)
    xp = sizes.backend.namespace(k)
    joined = outputs[0] if count == 1 else xp.concat(outputs, axis=-2)
    if not keep:
        return joined, None
    fields = zip(*states, strict=True)
    return joined, State(
        *(None if parts[0] is None else xp.concat(parts, axis=0) for parts in fields)
    )

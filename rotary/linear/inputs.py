"""What a call of linear attention hands over, checked: errors name the argument and its shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rotary import backends, rotation
from rotary.backends import Backend
from rotary.dtypes import COMPUTE_DTYPE, dtype_name


class Call(NamedTuple):
    """What a call hands over, as the caller gave it."""

    q: Any
    k: Any
    v: Any
    state: Any = None
    key_mask: Any = None
    gate: Any = None
    beta: Any = None
    positions: Any = None

    def sequence(self, number: int, tokens: slice) -> Call:
        """Return one of several sequences in a row: its tokens, and its own state."""

        def of_tokens(x: Any, rank: int) -> Any:
            """Cut x, whose token axis is the last one up to that rank."""
            if x is None:
                return None
            return x[..., tokens] if len(x.shape) <= rank else x[..., tokens, :]

        state = self.state
        if state is not None:
            state = type(state)(*(None if x is None else x[number : number + 1] for x in state))
        return Call(
            of_tokens(self.q, 3),
            of_tokens(self.k, 3),
            of_tokens(self.v, 3),
            state,
            of_tokens(self.key_mask, 2),
            of_tokens(self.gate, 3),
            of_tokens(self.beta, 3),
            of_tokens(self.positions, 3),
        )


class Sizes(NamedTuple):
    """The sizes of a call."""

    backend: Backend
    dtype: str
    """Compute dtype."""
    batch: int
    heads: int
    """Of the queries; kv_heads where there are none."""
    kv_heads: int
    seq: int
    key_dim: int
    value_dim: int


def read_sizes(q: Any, k: Any, v: Any, arithmetic: str) -> Sizes:
    """Return the sizes of q (or None), k and v, or raise."""
    backend = backends.owner_of(k if q is None else q, "k" if q is None else "q")
    first, name = (k, "k") if q is None else (q, "q")
    for each, x in (("q", q), ("k", k), ("v", v)):
        if x is None and each == "q":
            continue
        if x is not first:
            rotation.check_same_place(each, x, name, first, backend)
        if len(x.shape) != 4:
            dim, heads = ("value_dim" if each == "v" else "key_dim"), "kv_heads"
            raise ValueError(
                f"{each}: got shape {tuple(x.shape)}, expected (batch, "
                f"{'heads' if each == 'q' else heads}, seq, {dim})"
            )
        if dtype_name(x) not in COMPUTE_DTYPE:
            raise TypeError(
                f"{each}: got dtype {dtype_name(x)}, expected one of {', '.join(COMPUTE_DTYPE)}"
            )
        if x.dtype != first.dtype:
            raise TypeError(
                f"{each}: got dtype {dtype_name(x)}, expected {name}'s {dtype_name(first)}"
            )
        if any(n is None or n != n for n in x.shape):
            raise ValueError(f"{each}: got shape {tuple(x.shape)}, expected known lengths")
    batch, kv_heads, seq, key_dim = k.shape
    if q is not None:
        heads = q.shape[1]
        if (q.shape[0], q.shape[2], q.shape[3]) != (batch, seq, key_dim):
            raise ValueError(
                f"k: got shape {tuple(k.shape)}, expected q's shape {tuple(q.shape)} except for "
                f"the number of heads"
            )
    else:
        heads = kv_heads
    if not kv_heads or heads % kv_heads:
        raise ValueError(
            f"k: got {kv_heads} heads, shape {tuple(k.shape)}, expected a number that divides "
            f"q's {heads}"
        )
    if not key_dim or not v.shape[3]:
        which, x = ("k", k) if not key_dim else ("v", v)
        raise ValueError(f"{which}: got shape {tuple(x.shape)}, expected features")
    if tuple(v.shape[:3]) != (batch, kv_heads, seq):
        raise ValueError(
            f"v: got shape {tuple(v.shape)}, expected ({batch}, {kv_heads}, {seq}, value_dim) as "
            f"k of shape {tuple(k.shape)}"
        )
    dtype = COMPUTE_DTYPE[dtype_name(k)]
    if arithmetic == "exact" and dtype != "float32":
        raise TypeError(
            f"{name}: got dtype {dtype_name(first)} with arithmetic='exact', expected float16, "
            f"bfloat16 or float32"
        )
    return Sizes(backend, dtype, batch, heads, kv_heads, seq, key_dim, v.shape[3])


def check_mask(key_mask: Any, like: Any, sizes: Sizes) -> None:
    """Raise unless key_mask says of each token whether it takes part."""
    rotation.check_same_place("key_mask", key_mask, "k", like, sizes.backend)
    if dtype_name(key_mask) != "bool":
        raise TypeError(
            f"key_mask: got dtype {dtype_name(key_mask)}, expected bool, True for tokens that "
            f"take part"
        )
    if tuple(key_mask.shape) != (sizes.batch, sizes.seq):
        raise ValueError(
            f"key_mask: got shape {tuple(key_mask.shape)}, expected (batch, seq) = "
            f"({sizes.batch}, {sizes.seq})"
        )


def check_tokens(name: str, x: Any, like: Any, sizes: Sizes) -> None:
    """Raise unless there is an x for each token of k: a cut of x would not show it."""
    rotation.check_same_place(name, x, "k", like, sizes.backend)
    shape = (sizes.batch, sizes.kv_heads, sizes.seq)
    if tuple(x.shape[:3]) != shape:
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected (batch, kv_heads, seq) = {shape}"
        )


def read_gate(gate: Any, like: Any, sizes: Sizes, features: int) -> Any:
    """Return log gates in the compute dtype, (batch, kv_heads, seq, 1 or features), or raise.

    Gates above 0 that only a compiled program sees become NaN.
    """
    shape = (sizes.batch, sizes.kv_heads, sizes.seq)
    by_channel = (*shape, features)
    gate = _read("gate", gate, like, sizes)
    if tuple(gate.shape) not in (shape, by_channel):
        raise ValueError(
            f"gate: got shape {tuple(gate.shape)}, expected (batch, kv_heads, seq) = {shape}, or "
            f"(batch, kv_heads, seq, features) = {by_channel}"
        )
    backend = sizes.backend
    xp = backend.namespace(gate)
    host = readable(gate, backend)
    if host is not None and host.size and float(host.max()) > 0:
        raise ValueError(
            f"gate: got {float(host.max())}, expected log gates of at most 0: the state is "
            f"multiplied by their exponential"
        )
    if host is None:
        gate = xp.where(gate > 0, xp.zeros_like(gate) + float("nan"), gate)
    return gate if gate.ndim == 4 else xp.reshape(gate, (*shape, 1))


def read_beta(beta: Any, like: Any, sizes: Sizes) -> Any:
    """Return what the delta rule multiplies by, (batch, kv_heads, seq, 1), or raise."""
    shape = (sizes.batch, sizes.kv_heads, sizes.seq)
    beta = _read("beta", beta, like, sizes)
    if tuple(beta.shape) != shape:
        raise ValueError(
            f"beta: got shape {tuple(beta.shape)}, expected (batch, kv_heads, seq) = {shape}"
        )
    return sizes.backend.namespace(beta).reshape(beta, (*shape, 1))


def _read(name: str, x: Any, like: Any, sizes: Sizes) -> Any:
    """Return numbers that go with the keys in the compute dtype, or raise."""
    backend = sizes.backend
    rotation.check_same_place(name, x, "k", like, backend)
    kind = dtype_name(x)
    if kind not in COMPUTE_DTYPE or (kind == "float64" and sizes.dtype != "float64"):
        expected = "float16, bfloat16, float32" + (", float64" * (sizes.dtype == "float64"))
        raise TypeError(f"{name}: got dtype {kind}, expected one of {expected}")
    return x if kind == sizes.dtype else backend.widen(x, sizes.dtype)


def readable(x: Any, backend: Backend) -> Any:
    """Return x's values where the host can read them without waiting for a device, or None."""
    if backend.is_traced(x):
        return None
    if not isinstance(x, np.ndarray) and "cpu" not in str(getattr(x, "device", "")).lower():
        return None
    try:
        return backend.to_host(x.detach() if hasattr(x, "detach") else x)
    except TypeError:
        return None

"""The cases of linear attention: exact to the bit, fast within its bound, states and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np

import rotary
from rotary import linear
from rotary.conformance import linear_oracle
from rotary.conformance.functions import Array, Expected, FunctionCase
from rotary.conformance.linear_oracle import Variant

# Of each way the one without another word: XLA takes seconds for such a program.
ONCE = ("eager,", "lazy,", "compiled,", "exported,")
# Lazy libraries make a graph of every operation of every chunk.
UNROLLED = {
    "dask/*": "dask takes minutes for the tasks of a loop over chunks",
    "ndonnx/*": "ndonnx takes minutes for the graph of a loop over chunks",
}
_BATCH, _HEADS, _KV_HEADS, _KEYS, _VALUES, _CHUNK = 2, 4, 2, 32, 24, 64
# Tokens up to which the oracle, quadratic in them, looks.
_LOOKED_AT = 200

# Variant, and the mistake that it catches.
VARIANTS = {
    "plain": (Variant(), "an exponential that cancels with 1"),
    "rope": (Variant(rotary_dim=_KEYS), "a normaliser over rotated keys"),
    "partial": (
        Variant(rotary_dim=16, layout="interleaved", rotary_side="trailing"),
        "the wrong layout or side",
    ),
    "xpos": (Variant(rotary_dim=_KEYS, scale_base=512.0), "queries scaled like keys"),
    "both": (
        Variant("relu", rotary_dim=_KEYS, placement="both", normalize=False),
        "a rotation left out",
    ),
    "before-map": (Variant(rotary_dim=_KEYS, placement="before_map"), "a rotation after the map"),
    "relu2": (Variant("relu2", rotary_dim=_KEYS, scale=0.25), "a scale that the epsilon sees"),
    "retnet": (
        Variant("identity", rotary_dim=_KEYS, decay="retnet", normalize=False),
        "a decay of another head, or off by a token",
    ),
    "gate": (Variant(rotary_dim=_KEYS, decay="gate"), "differences of gates after exp"),
}


def attention(
    variant: Variant, arithmetic: str, *, key_dim: int = _KEYS, **options: Any
) -> linear.LinearAttention:
    """Return the library's description of a variant of the oracle."""
    rope = None
    if variant.rotary_dim:
        rope = rotary.RotaryEmbedding(
            key_dim,
            base=variant.base,
            rotary_dim=variant.rotary_dim,
            layout=variant.layout,
            rotary_side=variant.rotary_side,
            xpos=None if variant.scale_base is None else rotary.XPos(variant.scale_base),
        )
    return linear.LinearAttention(
        variant.feature_map if variant.maps is None else variant.maps,
        rope=rope,
        placement=variant.placement,
        decay={None: None, "retnet": linear.RetNet(), "gate": "gate"}[variant.decay],
        normalize=variant.normalize,
        eps=variant.eps if variant.normalize else None,
        scale=variant.scale,
        arithmetic=arithmetic,
        **{"chunk_size": _CHUNK, **options},
    )


def _inputs(gated: bool) -> Callable[..., tuple[Array, ...]]:
    def inputs(rng: np.random.Generator, dtype: np.dtype[Any], elements: int) -> tuple[Array, ...]:
        # Whole chunks: what is left over would be a program of its own.
        seq = _CHUNK * max(2, elements // (_BATCH * _HEADS * _VALUES * _CHUNK))
        q = rng.standard_normal((_BATCH, _HEADS, seq, _KEYS))
        k = rng.standard_normal((_BATCH, _KV_HEADS, seq, _KEYS))
        v = rng.standard_normal((_BATCH, _KV_HEADS, seq, _VALUES))
        arrays = tuple(x.astype(dtype) for x in (q, k, v))
        if not gated:
            return arrays
        wide = np.float64 if dtype == np.float64 else np.float32
        gates = -np.exp(rng.standard_normal((_BATCH, _KV_HEADS, seq))) * 0.3
        return (*arrays, gates.astype(wide))

    return inputs


def _call(attn: Any, causal: bool = True) -> Callable[..., Any]:
    """Return attention as a function of q, k, v and, where there is one, the gate."""
    return lambda q, k, v, *gate: attn(
        q, k, v, causal=causal, **({"gate": gate[0]} if gate else {})
    )


def _right(variant: Variant, q: Array, k: Array, v: Array, *gate: Array) -> Expected:
    """Return what the oracle says of the first tokens, and how far off the rest may be."""
    seen = slice(0, _LOOKED_AT) if variant.causal else slice(None)
    q, k, v, *gate_seen = (x[:, :, seen] for x in (q, k, v, *gate))
    more = {"gate": gate_seen[0]} if gate_seen else {}
    result = linear_oracle.quadratic(variant, q, k, v, **more)
    allowed = linear_oracle.allowed(result, q.dtype.name)
    return Expected(np.asarray(result.out, np.float64), np.asarray(allowed, np.float64))


def _fast() -> Iterable[FunctionCase]:
    for name in ("rope", "relu2", "gate"):
        variant, comment = VARIANTS[name]
        call = _call(attention(variant, "fast"))

        def first(*arrays: Any, call: Any = call) -> Any:
            return call(*arrays)[:, :, : min(_LOOKED_AT, arrays[0].shape[2]), ...]

        yield FunctionCase(
            f"linear/fast-{name}",
            comment,
            first,
            _inputs(variant.decay == "gate"),
            lambda *arrays, variant=variant: (_right(variant, *arrays),),
            ways=ONCE,
            dtypes=("bfloat16", "float32", "float64") if name == "rope" else ("float32",),
            level="bound",
            refused={**UNROLLED, "mlx/*/float64": "mlx has no exponential of float64"},
        )


def _exact() -> Iterable[FunctionCase]:
    for name, (variant, comment) in VARIANTS.items():
        yield _exact_case(name, variant, comment, ("float32",))
    yield _exact_case("16-bit", *VARIANTS["rope"], ("float16", "bfloat16"))


def _exact_case(name: str, variant: Variant, comment: str, dtypes: tuple[str, ...]) -> FunctionCase:
    call = _call(attention(variant, "exact"))

    def expected(*arrays: Array) -> tuple[Expected, ...]:
        ours, right = call(*arrays), _right(variant, *arrays)
        assert right.allowed is not None
        error = np.abs(ours[:, :, :_LOOKED_AT].astype(np.float64) - right.value)
        if not (error <= right.allowed).all():
            raise ValueError("NumPy's numbers leave the bound")
        return (Expected(ours),)

    ways = ONCE if name == "16-bit" else (*ONCE, "compiled, x64,")
    return FunctionCase(
        f"linear/exact-{name}",
        comment,
        call,
        _inputs(variant.decay == "gate"),
        expected,
        _numpy_gradient(call),
        ways=(*ways, "gradient,", "compiled gradient, x64,") if name == "rope" else ways,
        dtypes=dtypes,
        refused={**UNROLLED, "mlx/*gradient/*": "mlx has no gradient of bit patterns"},
    )


def _numpy_gradient(call: Callable[..., Any]) -> Callable[..., Expected]:
    """Return the gradient by q from the operation's own rule, run on NumPy.

    That it is the gradient is a matter of the tests; here its bits are held to be the same.
    """

    def gradient(direction: Array, q: Array, *more: Array) -> Expected:
        seen: list[Any] = []

        def recording(operation: Any, static: str, inputs: Any) -> Any:
            outputs = operation.forward(static, *inputs)
            seen.append((operation, static, inputs, outputs))
            return outputs

        with mock.patch("rotary.backends._numpy.apply", recording):
            call(q, *more)
        ((operation, static, inputs, outputs),) = seen
        cotangents = [np.zeros_like(y) for y in outputs]
        cotangents[0] = direction.reshape(outputs[0].shape)
        by_q = operation.backward(static, inputs, outputs, tuple(cotangents))[0]
        return Expected(by_q.reshape(q.shape))

    return gradient


def _states() -> Iterable[FunctionCase]:
    """Hand states over; and what must not depend on the company that a token keeps."""
    variant = VARIANTS["rope"][0]
    attn = attention(variant, "exact", chunk_size=16)

    def prefill(q: Any, k: Any, v: Any) -> Any:
        out, state = attn.prefill(q, k, v)
        return (out, *(x for x in state if x is not None))

    def resumed(q: Any, k: Any, v: Any) -> Any:
        """In two parts, cut at a multiple of the chunk size, and two steps."""
        cuts = (slice(0, 32), slice(32, 64), slice(64, 65), slice(65, 66))
        state, outputs = None, []
        for part in cuts:
            here = [x[:, :, part, ...] for x in (q, k, v)]
            out, state = attn.prefill(here[0], here[1], here[2], state)
            outputs.append(out)
        return tuple(outputs)

    def in_numpy(function: Callable[..., Any]) -> Callable[..., tuple[Expected, ...]]:
        return lambda *arrays: tuple(Expected(y) for y in function(*arrays))

    def split(*arrays: Array) -> tuple[Expected, ...]:
        """Return whole outputs cut; single tokens are steps of their own, as on NumPy."""
        whole = attn(*(x[:, :, :64] for x in arrays), causal=True)
        return (Expected(whole[:, :, :32]), Expected(whole[:, :, 32:]), *_steps(arrays))

    def _steps(arrays: Any) -> Any:
        return tuple(Expected(y) for y in resumed(*arrays)[2:])

    usual: dict[str, Any] = {"ways": ONCE, "dtypes": ("float32",), "refused": UNROLLED}
    comment = "a state whose sums, normaliser or position differ"
    yield FunctionCase("linear/state", comment, prefill, _inputs(False), in_numpy(prefill), **usual)
    yield FunctionCase(
        "linear/resumed", "a state changed in place", resumed, _inputs(False), split, **usual
    )
    mask = np.arange(80) >= np.array([[13], [0]])

    def padded(rng: np.random.Generator, dtype: np.dtype[Any], _: int) -> tuple[Array, ...]:
        q, k, v = (x[:, :, :80] for x in _inputs(False)(rng, dtype, 0))
        k[0, :, :13], v[0, :, :13] = np.inf, np.nan  # masked: they must not show
        return q, k, v, mask

    def alone(q: Array, k: Array, v: Array, mask: Array) -> tuple[Expected, ...]:
        k, v = (np.where(np.isfinite(x), x, 0).astype(x.dtype) for x in (k, v))
        return (Expected(attn(q, k, v, causal=True, key_mask=mask)),)

    yield FunctionCase(
        "linear/padded",
        "masked values times zero",
        lambda q, k, v, mask: attn(q, k, v, causal=True, key_mask=mask),
        padded,
        alone,
        **usual,
    )
    ends = (0, 16, 48, 70)

    def packed(rng: np.random.Generator, dtype: np.dtype[Any], _: int) -> tuple[Array, ...]:
        shapes = ((1, _HEADS, 70, _KEYS), (1, _KV_HEADS, 70, _KEYS), (1, _KV_HEADS, 70, _VALUES))
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)

    def one_by_one(*arrays: Array) -> tuple[Expected, ...]:
        parts = [attn(*(x[:, :, a:b] for x in arrays), causal=True) for a, b in pairwise(ends)]
        return (Expected(np.concatenate(parts, axis=2)),)

    yield FunctionCase(
        "linear/packed",
        "a sequence that sees another",
        lambda q, k, v: attn(q, k, v, causal=True, cu_seqlens=list(ends)),
        packed,
        one_by_one,
        **usual,
    )
    both_ways = attention(variant, "exact")
    yield FunctionCase(
        "linear/bidirectional",
        "sums in another order",
        _call(both_ways, causal=False),
        _inputs(False),
        lambda *arrays: (Expected(both_ways(*arrays)),),
        **usual,
    )


def every() -> Iterable[FunctionCase]:
    """Return all cases of linear attention."""
    yield from _fast()
    yield from _exact()
    yield from _states()

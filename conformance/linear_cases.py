"""The cases of linear attention: exact to the bit, fast within its bound, states and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple
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
# JAX compiles the loop over chunks in either case, for up to ten seconds.
_ONE_PROGRAM = {"jax/eager/*": "its loop is the one that the compiled way runs"}
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


_RANDOM_FEATURES, _LENGTH = 24, 8192


class Family(NamedTuple):
    """A variant, and how it is called."""

    variant: Variant
    comment: str
    by_channel: bool = False
    key_dim: int = _KEYS
    chunk_size: int = _CHUNK


def _families() -> dict[str, Family]:
    """Return gates of channels, the delta rule and maps that widen."""
    omega = linear.FavorPlus(_RANDOM_FEATURES).projection(_KEYS)
    gated = Variant("l2norm", rotary_dim=_KEYS, decay="gate", update="delta", normalize=False)
    return {
        # Each halving of a chunk is a part of the program, and compiled.
        "gla": Family(
            Variant("identity", decay="gate", normalize=False, scale=0.3),
            "a gate of one channel for another, or a scale that a compiler moves",
            by_channel=True,
            chunk_size=16,
        ),
        "delta": Family(
            Variant("l2norm", update="delta", normalize=False),
            "a value added to what the state holds already",
            chunk_size=32,
        ),
        "gated-delta": Family(gated, "a state corrected before it decays", chunk_size=16),
        # 153 features: exact products are of at most 256.
        "taylor": Family(Variant("taylor"), "pairs of features in another order", key_dim=16),
        "favor": Family(Variant("favor", projection=omega), "a maximum that looks ahead"),
        "cosformer": Family(
            Variant("cosformer", length=_LENGTH), "weights that depend on the tokens' number"
        ),
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
    feature_map: Any = variant.feature_map if variant.maps is None else variant.maps
    if variant.feature_map == "favor":
        feature_map = linear.FavorPlus(len(variant.projection))
    elif variant.feature_map == "cosformer":
        assert variant.length is not None
        feature_map = linear.CosFormer(variant.length)
    return linear.LinearAttention(
        feature_map,
        rope=rope,
        placement=variant.placement,
        decay={None: None, "retnet": linear.RetNet(), "gate": "gate"}[variant.decay],
        update=variant.update,
        normalize=variant.normalize,
        eps=variant.eps if variant.normalize else None,
        scale=variant.scale,
        arithmetic=arithmetic,
        **{"chunk_size": _CHUNK, **options},
    )


def _inputs(family: Family) -> Callable[..., tuple[Array, ...]]:
    variant = family.variant

    def inputs(rng: np.random.Generator, dtype: np.dtype[Any], elements: int) -> tuple[Array, ...]:
        # Whole chunks: what is left over would be a program of its own.
        seq = _CHUNK * max(2, elements // (_BATCH * _HEADS * _VALUES * _CHUNK))
        seq = min(seq, variant.length or seq)
        shape = (_BATCH, _KV_HEADS, seq)
        q = rng.standard_normal((_BATCH, _HEADS, seq, family.key_dim))
        k = rng.standard_normal((*shape, family.key_dim))
        v = rng.standard_normal((*shape, _VALUES))
        arrays = [x.astype(dtype) for x in (q, k, v)]
        wide = np.float64 if dtype == np.float64 else np.float32
        if variant.decay == "gate":
            channels = (family.key_dim,) * family.by_channel
            gates = -np.exp(rng.standard_normal((*shape, *channels))) * 0.3
            arrays.append(gates.astype(wide))
        if variant.update == "delta":
            arrays.append(rng.random(shape).astype(wide))
        return tuple(arrays)

    return inputs


def _by_name(variant: Variant, more: Iterable[Any]) -> dict[str, Any]:
    """Return the inputs after q, k and v as keywords."""
    names = ["gate"] * (variant.decay == "gate") + ["beta"] * (variant.update == "delta")
    return dict(zip(names, more, strict=True))


def _call(family: Family, arithmetic: str) -> Callable[..., Any]:
    """Return attention as a function of q, k, v and what else the variant takes."""
    variant = family.variant
    attn = attention(variant, arithmetic, key_dim=family.key_dim, chunk_size=family.chunk_size)
    return lambda q, k, v, *more: attn(q, k, v, causal=variant.causal, **_by_name(variant, more))


def _right(variant: Variant, exact: bool, *arrays: Array) -> Expected:
    """Return what the oracle says of the first tokens, and how far off the rest may be."""
    seen = slice(0, _LOOKED_AT) if variant.causal else slice(None)
    q, k, v, *more = (x[:, :, seen] for x in arrays)
    by_name = _by_name(variant, more)
    result = linear_oracle.quadratic(variant, q, k, v, exact=exact, **by_name)
    allowed = linear_oracle.allowed(result, q.dtype.name)
    return Expected(np.asarray(result.out, np.float64), np.asarray(allowed, np.float64))


def _fast() -> Iterable[FunctionCase]:
    chosen = {name: Family(*VARIANTS[name]) for name in ("rope", "relu2", "gate")}
    wider = {name: x for name, x in _families().items() if name in ("gated-delta", "favor")}
    for name, family in (chosen | wider).items():
        variant = family.variant
        call = _call(family, "fast")

        def first(*arrays: Any, call: Any = call) -> Any:
            return call(*arrays)[:, :, : min(_LOOKED_AT, arrays[0].shape[2]), ...]

        yield FunctionCase(
            f"linear/fast-{name}",
            family.comment,
            first,
            _inputs(family),
            lambda *arrays, variant=variant: (_right(variant, False, *arrays),),
            ways=("eager,",) if name in wider else ONCE,
            dtypes=("bfloat16", "float32", "float64") if name == "rope" else ("float32",),
            level="bound",
            refused={**UNROLLED, "mlx/*/float64": "mlx has no exponential of float64"},
        )


def _exact() -> Iterable[FunctionCase]:
    more = (*ONCE, "compiled, x64,")
    gradients = (*more, "gradient,", "compiled gradient, x64,")
    for name, of_token in VARIANTS.items():
        yield _exact_case(name, Family(*of_token), gradients if name == "rope" else more)
    yield _exact_case("16-bit", Family(*VARIANTS["rope"]), ONCE, dtypes=("float16", "bfloat16"))
    for name, family in _families().items():
        yield _exact_case(name, family, ONCE, refused=_ONE_PROGRAM)


def _exact_case(
    name: str,
    family: Family,
    ways: tuple[str, ...],
    *,
    dtypes: tuple[str, ...] = ("float32",),
    refused: Mapping[str, str] = MappingProxyType({}),
) -> FunctionCase:
    call = _call(family, "exact")

    def expected(*arrays: Array) -> tuple[Expected, ...]:
        ours, right = call(*arrays), _right(family.variant, True, *arrays)
        assert right.allowed is not None
        error = np.abs(ours[:, :, :_LOOKED_AT].astype(np.float64) - right.value)
        if not (error <= right.allowed).all():
            raise ValueError("NumPy's numbers leave the bound")
        return (Expected(ours),)

    return FunctionCase(
        f"linear/exact-{name}",
        family.comment,
        call,
        _inputs(family),
        expected,
        _numpy_gradient(call),
        ways=ways,
        dtypes=dtypes,
        refused={**UNROLLED, "mlx/*gradient/*": "mlx has no gradient of bit patterns", **refused},
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
    family = Family(*VARIANTS["rope"])
    variant, inputs = family.variant, _inputs(family)
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
    yield FunctionCase("linear/state", comment, prefill, inputs, in_numpy(prefill), **usual)
    yield FunctionCase(
        "linear/resumed", "a state changed in place", resumed, inputs, split, **usual
    )
    mask = np.arange(80) >= np.array([[13], [0]])

    def padded(rng: np.random.Generator, dtype: np.dtype[Any], _: int) -> tuple[Array, ...]:
        q, k, v = (x[:, :, :80] for x in inputs(rng, dtype, 0))
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
        both_ways,
        inputs,
        lambda *arrays: (Expected(both_ways(*arrays)),),
        **usual,
    )


def every() -> Iterable[FunctionCase]:
    """Return all cases of linear attention."""
    yield from _fast()
    yield from _exact()
    yield from _states()

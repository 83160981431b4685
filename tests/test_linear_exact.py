"""Exact linear attention: the same bits everywhere, at equal chunk alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from linear_samples import (
    BATCH,
    CHUNK,
    HEADS,
    KEY_DIM,
    SEQ,
    VALUE_DIM,
    VARIANTS,
    Sample,
    arrays,
    attention,
    host,
    sample,
)

from rotary.conformance import linear_oracle as oracle
from rotary.linear import LinearAttention, combine


def exact(name: str, **options: Any) -> LinearAttention:
    return attention(VARIANTS[name], arithmetic="exact", **options)


def assert_same(got: Any, want: Any) -> None:
    """Hold all outputs to the same bits; −0 is +0, and any NaN is any NaN."""
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(host(x), host(y))


def prefill(name: str, given: Sample, call: Any = None) -> list[Any]:
    """Return outputs and state."""
    function = exact(name).prefill
    out, state = (function if call is None else call(function))(*given[:3], **given.more)
    return [out, *state]


@pytest.mark.parametrize("name", ["rope", "xpos", "relu2", "exp", "retnet", "gate, normalised"])
def test_the_error_is_that_of_float32(name: str) -> None:
    variant, given = VARIANTS[name], sample(VARIANTS[name])
    out = exact(name)(*given[:3], causal=True, **given.more)
    want = oracle.quadratic(variant, *given[:3], gate=given.gate)
    assert np.all(np.abs(out - want.out) <= oracle.allowed(want, "float32"))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_torch_has_numpys_bits(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    given = sample(VARIANTS[name], dtype=dtype)
    tensors = Sample(*(None if x is None else torch.from_numpy(x) for x in given))
    assert_same(prefill(name, tensors), prefill(name, given))


def test_torch_has_numpys_bits_in_bfloat16_and_both_ways() -> None:
    import ml_dtypes

    torch = pytest.importorskip("torch")
    given = sample(VARIANTS["rope"], dtype=ml_dtypes.bfloat16)
    tensors = [torch.tensor(x.astype(np.float32)).bfloat16() for x in given[:3]]
    for causal in (True, False):
        want = exact("rope")(*given[:3], causal=causal)
        assert_same([exact("rope")(*tensors, causal=causal)], [want])


def test_compiled_torch_has_numpys_bits() -> None:
    torch = pytest.importorskip("torch")
    for name in ("rope", "retnet", "gate"):
        given = sample(VARIANTS[name])
        tensors = Sample(*(None if x is None else torch.from_numpy(x) for x in given))

        def compiled(function: Any) -> Any:
            torch.compiler.reset()
            return torch.compile(function, fullgraph=True)

        assert_same(prefill(name, tensors, compiled), prefill(name, given))


@pytest.mark.parametrize(
    ("name", "way", "x64"),
    [("rope", "eager", False), ("gate, normalised", "jit", False), ("retnet", "jit", True)],
)
def test_jax_has_numpys_bits(name: str, way: str, x64: bool) -> None:
    jax = pytest.importorskip("jax")
    given = sample(VARIANTS[name], 3 * CHUNK)
    on_device = Sample(*(None if x is None else jax.numpy.asarray(x) for x in given))
    with jax.enable_x64(x64):
        got = prefill(name, on_device, jax.jit if way == "jit" else None)
    assert_same(got, prefill(name, given))


def test_a_library_without_a_shim_has_numpys_bits() -> None:
    strict = pytest.importorskip("array_api_strict")
    given = sample(VARIANTS["rope"])
    arrays_ = Sample(*(None if x is None else strict.asarray(x) for x in given))
    assert_same(prefill("rope", arrays_), prefill("rope", given))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_split_at_a_multiple_of_the_chunk_changes_no_bit(name: str) -> None:
    given = sample(VARIANTS[name])
    want = prefill(name, given)
    attn, outputs, state = exact(name), [], None
    for start, stop in ((0, CHUNK), (CHUNK, 3 * CHUNK), (3 * CHUNK, SEQ)):
        part = given.tokens(slice(start, stop))
        out, state = attn.prefill(*part[:3], state, **part.more)
        outputs.append(out)
    assert state is not None
    assert_same([np.concatenate(outputs, axis=2), *state], want)


@pytest.mark.parametrize("name", ["rope", "retnet"])
def test_rows_and_packed_sequences_have_the_bits_of_each_alone(name: str) -> None:
    given = sample(VARIANTS[name])
    attn = exact(name)
    want = attn(*given[:3], causal=True)
    for row in range(BATCH):
        alone = given.rows(slice(row, row + 1))
        assert_same([want[row : row + 1]], [attn(*alone[:3], causal=True)])
    packed = Sample(*(np.concatenate([x[:1], x[1:]], axis=2) for x in given[:3]), None)
    out = attn(*packed[:3], causal=True, cu_seqlens=[0, SEQ, 2 * SEQ])
    assert_same([out[:, :, :SEQ], out[:, :, SEQ:]], [want[:1], want[1:]])


def test_a_row_padded_by_whole_chunks_has_the_bits_of_the_row() -> None:
    for name in ("rope", "gate"):
        given = sample(VARIANTS[name], batch=1)
        alone = given.tokens(slice(CHUNK, SEQ))
        padded = Sample(*(None if x is None else x.copy() for x in given))
        padded.k[:, :, :CHUNK], padded.v[:, :, :CHUNK] = np.nan, np.inf
        mask = np.arange(SEQ)[None] >= CHUNK
        out = exact(name)(*padded[:3], causal=True, key_mask=mask, **given.more)
        want = exact(name)(*alone[:3], causal=True, **alone.more)
        assert_same([out[:, :, CHUNK:]], [want])


@pytest.mark.parametrize("name", ["rope", "relu2", "retnet", "gate, normalised"])
@pytest.mark.parametrize("value", [1e6, np.inf, -np.inf, np.nan])
def test_a_token_leaves_outputs_before_it_as_they_were(name: str, value: float) -> None:
    given = sample(VARIANTS[name])
    attn = exact(name)
    want = attn(*given[:3], causal=True, **given.more)
    for t in (1, CHUNK - 1, CHUNK, 41, SEQ - 1):
        for which in range(3):
            changed = [x.copy() for x in given[:3]]
            changed[which][:, :, t] = value
            out = attn(*changed, causal=True, **given.more)
            assert np.array_equal(out[:, :, :t], want[:, :, :t])
            assert not np.array_equal(out[:, :, t:], want[:, :, t:])


def test_longer_sequences_begin_with_the_bits_of_shorter_ones() -> None:
    given = sample(VARIANTS["gate"])
    attn = exact("gate")
    want = attn(*given[:3], causal=True, **given.more)
    for seq in (1, 5, CHUNK, 33):
        part = given.tokens(slice(0, seq))
        out = attn(*part[:3], causal=True, **part.more)
        assert np.array_equal(out, want[:, :, :seq])


def test_segments_combine_to_the_same_bits_on_every_library(library: Any) -> None:
    if library.name == "jax":
        pytest.skip("held to NumPy's bits by prefill; compiling three segments takes long")
    name = "gate, normalised"
    given = sample(VARIANTS[name], 30)

    def joined(given: Sample) -> Any:
        attn, states = exact(name), []
        for start, stop in ((0, 11), (11, 30)):
            part = Sample(
                *(x[:, :, start:stop, ...] for x in given[:3]), given.gate[:, :, start:stop]
            )
            where = range(start, stop)
            states.append(attn.segment(part.k, part.v, positions=where, **part.more))
        return combine(*states)

    assert_same(joined(arrays(library, given)), joined(given))


def test_subnormal_inputs_count_as_zero() -> None:
    given = sample(VARIANTS["identity"], 20)
    tiny = Sample(given.q, given.k, given.v * np.float32(1e-40), None)
    assert not exact("identity")(*tiny[:3], causal=True).any()


def test_shapes() -> None:
    given = sample(VARIANTS["rope"])
    assert exact("rope")(*given[:3], causal=True).shape == (BATCH, HEADS, SEQ, VALUE_DIM)
    state = exact("rope").prefill(*given[:3])[1]
    assert state.numerator.shape[-2:] == (KEY_DIM, VALUE_DIM)

"""Linear attention inside compiled programs and transformations."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from linear_samples import BATCH, CHUNK, SEQ, VARIANTS, Sample, attention, sample

from rotary.linear import LinearAttention

NAME = "gate, normalised"


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), want, rtol=2e-4, atol=1e-5)


def test_a_description_is_a_static_argument_and_a_state_a_pytree_under_jit() -> None:
    jax = pytest.importorskip("jax")
    attn, given = attention(VARIANTS[NAME]), sample(VARIANTS[NAME], 3 * CHUNK)
    want = attn(*given[:3], causal=True, **given.more)

    @partial(jax.jit, static_argnums=0)
    def prefill(attn: LinearAttention, q: Any, k: Any, v: Any, gate: Any) -> Any:
        return attn.prefill(q, k, v, gate=gate)

    def decode(state: Any, token: Any) -> Any:
        q, k, v, gate = (x[:, :, None, ...] for x in token)
        out, state = attn.step(q, k, v, state, gate=gate)
        return state, out[:, :, 0]

    first, rest = given.tokens(slice(0, 2 * CHUNK)), given.tokens(slice(2 * CHUNK, None))
    out, state = prefill(attn, *map(jax.numpy.asarray, first))
    tokens = tuple(jax.numpy.moveaxis(jax.numpy.asarray(x), 2, 0) for x in rest)
    state, outs = jax.jit(lambda s, t: jax.lax.scan(decode, s, t))(state, tokens)
    close(out, want[:, :, : 2 * CHUNK])
    close(np.moveaxis(np.asarray(outs), 0, 2), want[:, :, 2 * CHUNK :])
    assert state.position.tolist() == [3 * CHUNK] * BATCH


def test_masks_that_only_a_program_knows_shift_the_positions() -> None:
    jax = pytest.importorskip("jax")
    attn, given = attention(VARIANTS["rope"]), sample(VARIANTS["rope"], CHUNK)
    mask = np.ones((BATCH, CHUNK), bool)
    mask[1, :5] = False
    arrays = [jax.numpy.asarray(x) for x in given[:3]]
    out = jax.jit(lambda m: attn(*arrays, causal=True, key_mask=m))(mask)
    close(out, attn(*given[:3], causal=True, key_mask=mask))


def test_vmap_adds_an_axis() -> None:
    jax = pytest.importorskip("jax")
    attn, given = attention(VARIANTS["rope"]), sample(VARIANTS["rope"], 2 * CHUNK)
    stacked = [np.stack([x, 2 * x]) for x in given[:3]]
    out = jax.vmap(lambda q, k, v: attn(q, k, v, causal=True))(*stacked)
    for got, scale in zip(out, (1, 2), strict=True):
        close(got, attn(*(scale * x for x in given[:3]), causal=True))


def test_torch_compiles_all_of_it_into_one_graph_with_its_gradient() -> None:
    torch = pytest.importorskip("torch")
    attn, given = attention(VARIANTS[NAME]), sample(VARIANTS[NAME])
    tensors = [torch.from_numpy(x) for x in given]

    def both(q: Any, k: Any, v: Any, gate: Any) -> Any:
        parts = Sample(q, k, v, gate)
        first, rest = parts.tokens(slice(0, 40)), parts.tokens(slice(40, SEQ))
        out, state = attn.prefill(*first[:3], gate=first.gate)
        last, _ = attn.prefill(*rest[:3], state, gate=rest.gate)
        return torch.concat([out, last], dim=2)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True)
    results = []
    for function in (both, compiled):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = function(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    close(results[0][0], attn(*given[:3], causal=True, **given.more))
    for got, want in zip(results[1], results[0], strict=True):
        close(got, want)


def test_torch_compiles_masks_and_both_directions() -> None:
    torch = pytest.importorskip("torch")
    attn, given = attention(VARIANTS["rope"]), sample(VARIANTS["rope"], CHUNK)
    mask = np.ones((BATCH, CHUNK), bool)
    mask[1, :5] = False
    tensors = [torch.from_numpy(x) for x in (*given[:3], mask)]
    torch.compiler.reset()
    for causal in (True, False):

        def call(q: Any, k: Any, v: Any, mask: Any, causal: bool = causal) -> Any:
            return attn(q, k, v, causal=causal, key_mask=mask)

        close(torch.compile(call, fullgraph=True)(*tensors), call(*given[:3], mask))

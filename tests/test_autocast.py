"""torch.autocast, which takes products in 16 bits, reaches nothing that rotary computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import rotary

torch = pytest.importorskip("torch")

ROPE = rotary.RotaryEmbedding(16)


def attend(arithmetic: str, *, causal: bool) -> Callable[..., object]:
    attn = rotary.LinearAttention(rope=ROPE, arithmetic=arithmetic)
    return lambda x: attn(x, x, x[..., :8], causal=causal)


CALLS = {
    "rotation": ROPE,
    "exact, causal": attend("exact", causal=True),
    "exact, bidirectional": attend("exact", causal=False),
    "fast, causal": attend("fast", causal=True),
    "fast, bidirectional": attend("fast", causal=False),
    "exact.matmul": lambda x: rotary.exact.matmul(x, x.mT),
}


@pytest.mark.parametrize("kernels_are_off", [False, True], ids=["kernels", "array code"])
@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_no_bit_forward_or_backward(
    name: str, kernels_are_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels_are_off:
        monkeypatch.setattr("rotary.backends._torch_linear.kernel", lambda name: None)
        monkeypatch.setattr("rotary.backends._torch_rotation._KERNELS", {})
    call = CALLS[name]
    x = torch.randn(1, 2, 80, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = call(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(x)
        (inside,) = torch.autograd.grad(got.sum(), x, retain_graph=True)
    (outside,) = torch.autograd.grad(got.sum(), x)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    assert torch.equal(inside, gradient)
    assert torch.equal(outside, gradient)


def test_compiled_under_autocast_it_has_the_same_bits() -> None:
    call = CALLS["exact, causal"]
    x = torch.randn(1, 1, 20, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(got, call(x))

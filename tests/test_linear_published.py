"""Linear attention against what others publish: Qwen3-Next's gated delta rule, Mamba-2's scan.

The functions are those that transformers runs where no kernel is installed, called with tensors of
float32 and compared with the fast arithmetic of every library.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

import numpy as np
import pytest

from rotary.linear import LinearAttention

torch = pytest.importorskip("torch")
mamba2 = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")

BATCH, GROUPS, HEADS, KEY_DIM, VALUE_DIM = 2, 2, 4, 32, 24
LENGTHS = [1, 5, 63, 64, 65, 130, 256]
# Without what an installed kernel package, or the hub, would put in their place.
CHUNKED, RECURRENT, SCAN, UPDATE = map(
    inspect.unwrap,
    (
        qwen.torch_chunk_gated_delta_rule,
        qwen.torch_recurrent_gated_delta_rule,
        mamba2.mamba2_chunk_scan,
        mamba2.mamba2_selective_state_update,
    ),
)
GATED_DELTA = LinearAttention(
    "l2norm", update="delta", decay="gate", normalize=False, scale=KEY_DIM**-0.5
)
SHORT = dataclasses.replace(GATED_DELTA, chunk_size=16)
SSD = LinearAttention("identity", decay="gate", normalize=False)


def assert_agree(got: Any, want: Any) -> None:
    """Hold two arrays to 2·10⁻⁵ of the largest number."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


class Given(NamedTuple):
    """What both are called with, (batch, seq, heads, …) as the models have it."""

    q: Any
    k: Any
    v: Any
    gate: Any
    beta: Any

    def tokens(self, start: int, stop: int | None = None) -> Given:
        return Given(*(x[:, start:stop] for x in self))

    @property
    def tensors(self) -> list[Any]:
        return [torch.from_numpy(np.array(x)) for x in self]

    def ours(self, array: Any) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
        """As we take it: heads before tokens, and a key a value head."""
        q, k, *rest = self
        each = HEADS // q.shape[2]
        q, k = (np.repeat(x, each, axis=2) for x in (q, k))
        q, k, v, gate, beta = (array(np.swapaxes(x, 1, 2), "float32") for x in (q, k, *rest))
        return (q, k, v), {"gate": gate, "beta": beta}


def given(seq: int, seed: int = 0) -> Given:
    """Return inputs such as a layer of Qwen3-Next makes at its initial values."""
    rng = np.random.default_rng([seed, seq])
    q, k = rng.standard_normal((2, BATCH, seq, GROUPS, KEY_DIM))
    v = rng.standard_normal((BATCH, seq, HEADS, VALUE_DIM))
    rates = rng.uniform(0, 16, HEADS)
    steps = np.log1p(np.exp(rng.standard_normal((BATCH, seq, HEADS)) + 1))
    beta = 1 / (1 + np.exp(-rng.standard_normal((BATCH, seq, HEADS))))
    # Some tokens forget everything, some nothing.  More of the former, and the chunked reference
    # itself, whose sums of gates are single words, is 10⁻⁵ away from the recurrence.
    parts = rng.choice([0.0, 0.01, 0.1, 1.0], (BATCH, seq, HEADS), p=[0.3, 0.3, 0.3, 0.1])
    gate = -rates * steps * parts
    return Given(*(x.astype(np.float32) for x in (q, k, v, gate, beta)))


def plain(values: Any, dtype: str | None = None) -> Any:
    return np.array(values, dtype)


def heads_last(out: Any) -> Any:
    return np.swapaxes(np.asarray(out), 1, 2)


def published(function: Any, at: Given, state: Any = None) -> tuple[Any, Any]:
    return function(
        *at.tensors, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )


# -- Qwen3-Next ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [CHUNKED, RECURRENT], ids=["chunked", "recurrent"])
@pytest.mark.parametrize("seq", LENGTHS)
def test_the_gated_delta_rule_is_qwen3_nexts(seq: int, function: Any) -> None:
    at = given(seq)
    want, last = published(function, at)
    args, more = at.ours(plain)
    out, state = GATED_DELTA.prefill(*args, **more)
    assert_agree(heads_last(out), want)
    assert_agree(state.numerator, last)
    assert_agree(heads_last(GATED_DELTA(*args, causal=True, **more)), want)


def test_the_gated_delta_rule_is_qwen3_nexts_on_every_library(library: Any) -> None:
    at = given(48, 1)
    # Short chunks: JAX compiles each operation for each shape.
    args, more = at.ours(library.array)
    out, state = SHORT.prefill(*args, **more)
    for function in (CHUNKED, RECURRENT):
        want, last = published(function, at)
        assert_agree(heads_last(out), want)
        assert_agree(state.numerator, last)


def test_a_state_of_qwen3_next_is_taken_over_and_handed_back() -> None:
    at = given(131, 2)
    want, last = published(RECURRENT, at)
    first, rest = at.tokens(0, 77), at.tokens(77)
    _, theirs = published(CHUNKED, first)
    args, more = first.ours(plain)
    _, ours = GATED_DELTA.prefill(*args, **more)

    args, more = rest.ours(plain)
    taken = ours._replace(numerator=theirs.numpy(), numerator_low=np.zeros_like(theirs.numpy()))
    out, state = GATED_DELTA.prefill(*args, state=taken, **more)
    assert_agree(heads_last(out), want[:, 77:])
    assert_agree(state.numerator, last)

    for function in (CHUNKED, RECURRENT):
        out, state = published(function, rest, torch.from_numpy(np.array(ours.numerator)))
        assert_agree(out, want[:, 77:])
        assert_agree(state, last)


def test_steps_of_the_gated_delta_rule_are_qwen3_nexts() -> None:
    at = given(70, 3)
    theirs, ours = None, None
    for t in range(70):
        token = at.tokens(t, t + 1)
        want, theirs = published(RECURRENT, token, theirs)
        args, more = token.ours(plain)
        if ours is None:
            out, ours = GATED_DELTA.prefill(*args, **more)
        else:
            out, ours = GATED_DELTA.step(*args, ours, **more)
        assert_agree(heads_last(out), want)
    assert_agree(ours.numerator, theirs)


# -- Mamba-2 ------------------------------------------------------------------------------------


class Scan(NamedTuple):
    """What Mamba-2's scan is called with: tensors, dt without its bias and softplus."""

    x: Any
    dt: Any
    a: Any
    b: Any
    c: Any
    d: Any
    dt_bias: Any

    def tokens(self, start: int, stop: int | None = None) -> Scan:
        parts = (each[:, start:stop] for each in (self.x, self.dt, self.b, self.c))
        return self._replace(**dict(zip(("x", "dt", "b", "c"), parts, strict=True)))

    def ours(self, array: Any) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
        """As we take it: q = C, k = B, v = dt·x and the log gate dt·A; a key a head."""
        steps = torch.nn.functional.softplus(self.dt + self.dt_bias)
        q, k = (x.repeat_interleave(HEADS // GROUPS, dim=2) for x in (self.c, self.b))
        given = (q, k, self.x * steps[..., None], steps * self.a)
        q, k, v, gate = (array(x.transpose(1, 2).numpy(), "float32") for x in given)
        return (q, k, v), {"gate": gate}

    def skipped(self, out: Any) -> Any:
        """Return our outputs with D·x, as the scan's."""
        return heads_last(out) + (self.d[:, None] * self.x).numpy()


def mixer() -> Any:
    """Return a small layer of Mamba-2 with its own initial values."""
    config = mamba2.Mamba2Config(
        hidden_size=HEADS * VALUE_DIM // 2,
        num_heads=HEADS,
        head_dim=VALUE_DIM,
        state_size=KEY_DIM,
        n_groups=GROUPS,
        num_hidden_layers=1,
        chunk_size=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mamba2.Mamba2Mixer(config, 0).eval().requires_grad_(False)


def scanned(seq: int, seed: int = 0) -> Scan:
    """Return random inputs of the layer's scan; steps of 0.001 to 5."""
    layer, draw = mixer(), torch.Generator().manual_seed(1000 * seed + seq)
    sizes = (HEADS, VALUE_DIM), (HEADS,), (GROUPS, KEY_DIM), (GROUPS, KEY_DIM)
    x, dt, b, c = (torch.randn(BATCH, seq, *size, generator=draw) for size in sizes)
    return Scan(x, 3 * dt, -torch.exp(layer.A_log), b, c, layer.D, layer.dt_bias)


def scan(at: Scan, *, chunk_size: int = 64, state: Any = None) -> tuple[Any, Any]:
    """Return Mamba-2's own outputs and its state, (batch, heads, value_dim, key_dim)."""
    return SCAN(
        *at[:5],
        chunk_size,
        D=at.d,
        dt_bias=at.dt_bias,
        initial_states=state,
        dt_softplus=True,
        return_final_states=True,
    )


@pytest.mark.parametrize("chunk_size", [32, 256])
@pytest.mark.parametrize("seq", LENGTHS)
def test_gated_attention_is_mamba_2s_scan(seq: int, chunk_size: int) -> None:
    at = scanned(seq)
    want, last = scan(at, chunk_size=chunk_size)
    args, more = at.ours(plain)
    out, state = SSD.prefill(*args, **more)
    assert_agree(at.skipped(out), want)
    assert_agree(np.swapaxes(state.numerator, 2, 3), last)
    assert_agree(at.skipped(SSD(*args, causal=True, **more)), want)


def test_gated_attention_is_mamba_2s_scan_on_every_library(library: Any) -> None:
    at = scanned(64, 1)
    want, last = scan(at)
    args, more = at.ours(library.array)
    out, state = SSD.prefill(*args, **more)
    assert_agree(at.skipped(out), want)
    assert_agree(np.swapaxes(np.asarray(state.numerator), 2, 3), last)


def test_a_state_of_mamba_2_is_taken_over_and_handed_back() -> None:
    at = scanned(131, 2)
    want, last = scan(at)
    first, rest = at.tokens(0, 77), at.tokens(77)
    _, theirs = scan(first)
    args, more = first.ours(plain)
    _, ours = SSD.prefill(*args, **more)

    args, more = rest.ours(plain)
    numerator = np.swapaxes(theirs.numpy(), 2, 3)
    taken = ours._replace(numerator=numerator, numerator_low=np.zeros_like(numerator))
    out, state = SSD.prefill(*args, state=taken, **more)
    assert_agree(rest.skipped(out), want[:, 77:])
    assert_agree(np.swapaxes(state.numerator, 2, 3), last)

    turned = torch.from_numpy(np.swapaxes(ours.numerator, 2, 3).copy())
    out, state = scan(rest, state=turned)
    assert_agree(out, want[:, 77:])
    assert_agree(state, last)


def test_steps_of_gated_attention_are_mamba_2s() -> None:
    at = scanned(40, 3)
    first = at.tokens(0, 1)
    _, theirs = scan(first)
    args, more = first.ours(plain)
    _, ours = SSD.prefill(*args, **more)
    for t in range(1, 40):
        token = at.tokens(t, t + 1)
        want = UPDATE(  # changes its state
            theirs,
            token.x[:, 0],
            token.dt[:, 0, :, None].expand(-1, -1, VALUE_DIM),
            token.a[:, None, None].expand(-1, VALUE_DIM, KEY_DIM),
            token.b[:, 0],
            token.c[:, 0],
            token.d[:, None].expand(-1, VALUE_DIM),
            dt_bias=token.dt_bias[:, None].expand(-1, VALUE_DIM),
            dt_softplus=True,
        )
        args, more = token.ours(plain)
        out, ours = SSD.step(*args, ours, **more)
        assert_agree(token.skipped(out)[:, 0], want)
    assert_agree(np.swapaxes(ours.numerator, 2, 3), theirs)


def test_a_layer_of_mamba_2_runs_on_our_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = mixer()
    x = torch.randn(BATCH, 100, layer.hidden_size, generator=torch.Generator().manual_seed(4))
    want = layer(x)
    calls = []

    def ours(x: Any, dt: Any, a: Any, b: Any, c: Any, chunk_size: int, **options: Any) -> Any:
        calls.append(options)
        at = Scan(x, dt, a, b, c, options["D"], options["dt_bias"])
        args, more = at.ours(lambda values, _: torch.tensor(values))
        return torch.from_numpy(at.skipped(SSD(*args, causal=True, **more)))

    monkeypatch.setattr(mamba2, "mamba2_chunk_scan", ours)
    assert_agree(layer(x), want)
    assert len(calls) == 1

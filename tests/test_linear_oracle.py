"""The oracle of linear attention, held to itself: two forms of each variant, in wide numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rotary.conformance import linear_delta_oracle as delta
from rotary.conformance import linear_features_oracle as maps
from rotary.conformance import linear_oracle as oracle
from rotary.conformance.linear_oracle import WIDE, Variant

BATCH, HEADS, KV_HEADS, SEQ, KEY_DIM, VALUE_DIM = 2, 4, 2, 24, 6, 5
# Its rounding is at least that of float64.
NEAR = 2.0**-44

OMEGA = np.random.default_rng(9).standard_normal((10, KEY_DIM))
VARIANTS = {
    "plain": Variant(),
    "rope": Variant(rotary_dim=KEY_DIM),
    "scalar gate": Variant(rotary_dim=KEY_DIM, decay="gate"),
    "channel gate": Variant("identity", decay="gate", normalize=False),
    "channel gate, rope": Variant(rotary_dim=4, decay="gate"),
    "delta": Variant("l2norm", update="delta", normalize=False),
    "delta, rope": Variant("l2norm", rotary_dim=KEY_DIM, update="delta", normalize=False),
    "delta, retnet": Variant("l2norm", update="delta", decay="retnet", normalize=False),
    "delta, scalar gate": Variant("l2norm", update="delta", decay="gate", normalize=False),
    "delta, channel gate": Variant("l2norm", update="delta", decay="gate", normalize=False),
    "l2norm": Variant("l2norm", rotary_dim=KEY_DIM, normalize=False),
    "taylor": Variant("taylor"),
    "favor": Variant("favor", projection=OMEGA),
    "favor, rope": Variant(
        "favor", projection=OMEGA, rotary_dim=KEY_DIM, placement="before_map", scale=0.5
    ),
    "cosformer": Variant("cosformer", length=SEQ),
}


def sample(name: str, seq: int = SEQ) -> tuple[list[Any], dict[str, Any]]:
    """Return q, k, v and what else the variant takes."""
    rng = np.random.default_rng(4)
    q = rng.standard_normal((BATCH, HEADS, seq, KEY_DIM))
    k = rng.standard_normal((BATCH, KV_HEADS, seq, KEY_DIM))
    v = rng.standard_normal((BATCH, KV_HEADS, seq, VALUE_DIM))
    more = {}
    shape: tuple[int, ...] = (BATCH, KV_HEADS, seq)
    if "gate" in name:
        shape_of_gate = (*shape, KEY_DIM) if "channel" in name else shape
        more["gate"] = -np.exp(2 * rng.standard_normal(shape_of_gate))
    if "delta" in name:
        more["beta"] = rng.random(shape)
    return [q, k, v], more


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_pairs_and_steps_agree(name: str, masked: bool) -> None:
    given, more = sample(name)
    if masked:
        mask = np.random.default_rng(1).random((BATCH, SEQ)) > 0.3
        mask[0, :4] = False
        more["mask"] = mask
    of_pairs = oracle.quadratic(VARIANTS[name], *given, **more)
    of_steps, _ = oracle.recurrent(VARIANTS[name], *given, **more)
    assert np.all(np.abs(of_steps - of_pairs.out) <= NEAR * (of_pairs.magnitude + 1e-9))
    # The magnitude is no less than the output, and not beyond all measure.
    assert np.all(np.abs(of_pairs.out) <= of_pairs.magnitude * (1 + NEAR))
    assert np.median(of_pairs.magnitude) <= 1000


@pytest.mark.parametrize("name", VARIANTS)
def test_no_tokens_have_no_outputs(name: str) -> None:
    given, more = sample(name, 0)
    out, sums = oracle.recurrent(VARIANTS[name], *given[:3], **more)
    assert out.shape == (BATCH, HEADS, 0, VALUE_DIM)
    assert not sums.numerator.any()


def test_gates_of_channels_that_are_equal_are_those_of_a_head() -> None:
    for one, other in (("scalar gate", "channel gate, rope"), ("delta, scalar gate",) * 2):
        given, more = sample(one)
        variant = VARIANTS[other]
        wide = {**more, "gate": np.repeat(more["gate"][..., None], KEY_DIM, axis=-1)}
        want = oracle.quadratic(variant, *given, **more).out
        assert np.abs(oracle.quadratic(variant, *given, **wide).out - want).max() <= NEAR


def test_taylor_features_multiply_to_the_polynomial() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 50, KEY_DIM)).astype(WIDE)
    s = (q * k).sum(-1) / np.sqrt(WIDE(KEY_DIM))
    product = (maps.taylor(q) * maps.taylor(k)).sum(-1)
    assert np.abs(product - (1 + s + s * s / 2)).max() <= NEAR


def test_cosformer_weights_are_cosines_of_the_distance() -> None:
    rng = np.random.default_rng(0)
    q, k = np.abs(rng.standard_normal((2, 1, 1, SEQ, KEY_DIM))).astype(WIDE)
    at = np.arange(SEQ)
    mapped = (maps.cosformer(x, at[None], 40) for x in (q, k))
    scores = np.einsum("bhid,bhjd->ij", *mapped)
    distance = (at[:, None] - at[None, :]).astype(WIDE)
    want = (q @ np.swapaxes(k, -1, -2))[0, 0] * np.cos(distance * np.arctan(WIDE(1)) * 2 / 40)
    assert np.abs(scores - want).max() <= NEAR * np.abs(want).max()


@pytest.mark.parametrize("causal", [True, False])
def test_the_maximum_of_favor_does_not_show_without_epsilon(causal: bool) -> None:
    given, _ = sample("favor")
    variant = Variant("favor", projection=OMEGA, eps=0.0, causal=causal)
    q, k, v = (np.repeat(x, HEADS // x.shape[1], axis=1).astype(WIDE) for x in given)

    def exponentials(x: Any) -> Any:
        x = x / WIDE(KEY_DIM) ** (WIDE(1) / 4)
        return np.exp(x @ OMEGA.T - (x * x).sum(-1, keepdims=True) / 2)

    weights = exponentials(q) @ np.swapaxes(exponentials(k), -1, -2)
    weights = np.tril(weights) if causal else weights
    want = weights @ v / weights.sum(-1, keepdims=True)
    assert np.abs(oracle.quadratic(variant, *given).out - want).max() <= NEAR
    _, state = oracle.recurrent(Variant("favor", projection=OMEGA), *given)
    assert np.abs(state.maximum - np.log(exponentials(k)).max((2, 3))).max() <= NEAR


def test_a_unit_key_with_beta_1_is_remembered() -> None:
    given, _ = sample("delta")
    k = given[1].astype(WIDE)
    k = k / np.sqrt((k * k).sum(-1, keepdims=True))
    v, ones = given[2].astype(WIDE), np.ones((BATCH, KV_HEADS, SEQ), WIDE)
    states, u = delta.recurrent(k, v, ones, np.zeros((BATCH, KV_HEADS, SEQ, 1), WIDE))
    assert np.abs(np.einsum("bhtd,bhtde->bhte", k, states) - v).max() <= NEAR
    scores = np.tril(k @ np.swapaxes(k, -1, -2))
    assert np.abs(delta.added(scores, v, ones) - u).max() <= NEAR * np.abs(u).max()


def test_gates_of_minus_infinity_forget_all() -> None:
    for name in ("scalar gate", "channel gate", "delta, scalar gate", "delta, channel gate"):
        given, more = sample(name)
        more["gate"][:, :, 10] = -np.inf
        out, _ = oracle.recurrent(VARIANTS[name], *given, **more)
        later = [x[:, :, 10:] for x in given]
        rest = {key: x[:, :, 10:] for key, x in more.items()}
        where = np.arange(10, SEQ)
        want, _ = oracle.recurrent(VARIANTS[name], *later, positions=where, **rest)
        assert np.abs(out[:, :, 10:] - want).max() <= NEAR
        whole = oracle.quadratic(VARIANTS[name], *given, **more)
        assert np.all(np.abs(whole.out - out) <= NEAR * (whole.magnitude + 1e-9))

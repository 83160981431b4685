"""The modules of torch: the bits of the description they hold, whatever is done to the model."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rotary

torch = pytest.importorskip("torch")

from rotary.integrations import torch as modules  # noqa: E402  # which needs torch

DTYPES = ("float16", "bfloat16", "float32", "float64")
ROPE = rotary.RotaryEmbedding(16, base=500_000.0, scaling=rotary.scaling.YaRN(16.0, 4096))
CALLS: dict[str, dict[str, Any]] = {
    "from 0": {},
    "far out": {"offset": 100_000},
    "by batch row": {"positions": [[0, 1, 2, 3, 4], [70_000, 3, 3, -2, 9]]},
    "fractional": {"positions": np.array([0.5, 1.25, 7, 1e5, -3])},
}


def sample(dtype: str, *shape: int, seed: int = 0) -> tuple[Any, Any]:
    """Return one array twice: NumPy's and torch's."""
    values = np.random.default_rng(seed).standard_normal(shape)
    host = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return host, torch.from_numpy(host.astype(np.float64)).to(getattr(torch, dtype))


def same(got: Any, expected: Any) -> bool:
    """Whether a tensor holds the numbers of an array: none differs by a bit."""
    assert str(got.dtype) == f"torch.{expected.dtype}"
    return bool(np.array_equal(got.detach().double().numpy(), expected.astype(np.float64)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_the_module_gives_the_bits_of_numpy(dtype: str, call: str) -> None:
    q_host, q = sample(dtype, 2, 4, 5, 16)
    k_host, k = sample(dtype, 2, 2, 5, 16, seed=1)
    got = modules.RotaryEmbedding(ROPE)(q, k, **CALLS[call])
    expected = ROPE(q_host, k_host, **CALLS[call])
    assert all(map(same, got, expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_adjoint_to_the_bit(dtype: str) -> None:
    _, q = sample(dtype, 2, 4, 5, 16)
    g_host, g = sample(dtype, 2, 4, 5, 16, seed=1)
    q.requires_grad_()
    modules.RotaryEmbedding(ROPE)(q, offset=100_000).backward(g)
    cos, sin = ROPE.tables(np.arange(100_000, 100_005), like=g_host)
    assert same(q.grad, rotary.rotate(g_host, cos, sin, inverse=True))


def test_other_calls_of_the_description_pass_through() -> None:
    q_host, q = sample("float32", 2, 5, 4, 16)
    rope = modules.RotaryEmbedding(16, xpos=rotary.XPos())
    assert same(rope(q, seq_axis=-3, role="key"), rope.description(q_host, seq_axis=-3, role="key"))
    ntk = rotary.RotaryEmbedding(16, scaling=rotary.scaling.DynamicNTK(4.0, 4))
    assert same(modules.RotaryEmbedding(ntk)(q, seq_len=9), ntk(q_host, seq_len=9))
    out = torch.empty_like(q)
    assert modules.RotaryEmbedding(ROPE)(q, out=out) is out
    assert same(out, ROPE(q_host))


class Block(torch.nn.Module):
    """What a model holds: projections with parameters, and the modules without."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 16)
        self.rope = modules.RotaryEmbedding(ROPE)
        self.attend = modules.LinearAttention(rope=rotary.RotaryEmbedding(16))

    def forward(self, x: Any, offset: Any = None) -> Any:
        x = self.project(x)
        return self.attend(self.rope(x, offset=offset), x, x, causal=True)


def test_the_modules_have_nothing_that_a_checkpoint_could_miss() -> None:
    block = Block()
    assert set(block.state_dict()) == {"project.weight", "project.bias"}
    for module in (block.rope, block.attend):
        assert not [*module.parameters(), *module.buffers(), *module.children()]
    assert block.load_state_dict(torch.nn.ModuleDict({"project": block.project}).state_dict())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_of_the_model_spoils_the_usual_module_and_not_ours(dtype: str) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_theta=10_000.0)
    usual = LlamaRotaryEmbedding(config)
    ours = modules.RotaryEmbedding.from_config(config.to_dict())
    model = torch.nn.ModuleDict({"usual": usual, "ours": ours})
    positions = np.arange(100_000, 100_005)
    exact, _ = ours.description.tables(positions)

    def error() -> float:
        cos, _ = usual(torch.zeros(1), torch.from_numpy(positions)[None])
        return float(np.abs(cos[0, :, :8].numpy() - exact).max())

    assert error() < 0.01
    model.to(getattr(torch, dtype)).float()
    assert error() > 0.5
    for kind in (dtype, "float32"):
        x_host, x = sample(kind, 1, 4, 5, 16)
        assert same(ours(x, positions=positions), ours.description(x_host, positions=positions))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "replicate"])
def test_modules_are_copied_with_their_description(how: str) -> None:
    def saved(module: Any) -> Any:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    make: dict[str, Callable[[Any], Any]] = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "torch.save": saved,
        "replicate": lambda module: module._replicate_for_data_parallel(),
    }
    x_host, x = sample("float32", 1, 2, 5, 16)
    block = Block()
    for module in (block.rope, block.attend):
        other = make[how](module)
        assert type(other) is type(module)
        assert other is not module
        assert other.description == module.description
    assert same(make[how](block.rope)(x), ROPE(x_host))


def test_one_graph_serves_all_offsets_under_torch_compile() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    block = Block()
    program = torch.compile(block, fullgraph=True, backend="aot_eager")
    _, x = sample("float32", 1, 2, 5, 16)
    with torch.no_grad():
        y = block.project(x)
        for offset in (3, 100_000, 7, 20_000):
            expected = block.attend.description(ROPE(y, offset=offset), y, y, causal=True)
            assert torch.equal(program(x, torch.tensor(offset)), expected)
    # A type of array or a dtype that is met for the first time may have it compiled again.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 4


def test_an_exported_program_serves_all_lengths() -> None:
    seq = torch.export.Dim("seq", max=131_072)
    _, x = sample("float32", 1, 2, 5, 16)
    exported = torch.export.export(
        modules.RotaryEmbedding(ROPE),
        (x,),
        {"positions": torch.arange(5)},
        dynamic_shapes={"q": {2: seq}, "positions": {0: seq}},
    )
    host, y = sample("float32", 1, 2, 7, 16)
    where = torch.arange(100_000, 100_007)
    assert same(exported.module()(y, positions=where), ROPE(host, offset=100_000))


def test_what_an_exported_program_names_is_there_once_the_modules_are_imported() -> None:
    program = "import torch, rotary.integrations.torch; torch.ops.rotary.tables.default"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arithmetic", ["fast", "exact"])
def test_linear_attention_is_that_of_its_description(arithmetic: str) -> None:
    attn = modules.LinearAttention(rope=rotary.RotaryEmbedding(8), arithmetic=arithmetic)
    _, q = sample("float32", 1, 4, 9, 8)
    _, k = sample("float32", 1, 2, 9, 8, seed=1)
    _, v = sample("float32", 1, 2, 9, 6, seed=2)
    about = attn.description
    assert torch.equal(attn(q, k, v, causal=True), about(q, k, v, causal=True))
    first = [x[:, :, :8] for x in (q, k, v)]
    last = [x[:, :, 8:] for x in (q, k, v)]
    out, state = attn.prefill(*first)
    out_expected, state_expected = about.prefill(*first)
    assert torch.equal(out, out_expected)
    out, state = attn.step(*last, state)
    out_expected, state_expected = about.step(*last, state_expected)
    assert torch.equal(out, out_expected)
    assert torch.equal(state.numerator, state_expected.numerator)


def test_what_a_variant_needs_passes_through() -> None:
    attn = modules.LinearAttention("identity", decay="gate", update="delta")
    _, x = sample("float32", 1, 2, 5, 4)
    gate, beta = -torch.ones(1, 2, 5), torch.full((1, 2, 5), 0.5)
    expected = attn.description(x, x, x, causal=True, gate=gate, beta=beta)
    assert torch.equal(attn(x, x, x, causal=True, gate=gate, beta=beta), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_autocast_does_not_reach_into_linear_attention(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the kernel, which autocast knows nothing about.
    monkeypatch.setattr("rotary.backends._torch_linear.kernel", lambda name: None)
    attn = modules.LinearAttention(rope=rotary.RotaryEmbedding(8))
    _, x = sample("float32", 1, 2, 20, 8)
    x.requires_grad_()
    expected = attn(x, x, x, causal=causal)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attn(x, x, x, causal=causal)
    assert torch.equal(got, expected)
    assert torch.equal(torch.autograd.grad(got.sum(), x)[0], gradient)


def test_shapes_are_found_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = Block()
        assert block(torch.empty(1, 2, 5, 16)).shape == (1, 2, 5, 16)


def test_learned_frequencies_rotate_by_head_and_get_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 4, 8, generator=generator)
    rope = modules.MixedRotaryEmbedding(start, layout="half")
    grid = rotary.axes.grid(2, 3)
    q_host, q = sample("float32", 1, 4, 6, 16)
    cos, sin = rotary.cos_sin(grid, start.numpy(), axes=2)
    rotated, again = rope(q, q, positions=grid)
    assert same(rotated, rotary.rotate(q_host, cos, sin))
    assert torch.equal(rotated, again)
    rotated[..., :8].sum().backward()
    assert rope.inv_freq.grad.abs().min() > 0
    assert list(rope.state_dict()) == ["inv_freq"]
    assert rope.inv_freq.data_ptr() != start.data_ptr()


def test_learned_frequencies_keep_their_dtype_when_the_model_is_cast() -> None:
    start = torch.linspace(0.001, 1, 8)
    rope = modules.MixedRotaryEmbedding(start, axes=None)
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16()):
        assert torch.equal(cast(rope).inv_freq, start)
    q_host, q = sample("bfloat16", 1, 4, 6, 16)
    cos, sin = rotary.cos_sin(range(6), start.numpy())
    expected = rotary.rotate(q_host, cos, sin, layout="interleaved")
    assert same(rope(q, positions=range(6)), expected)
    assert rope.double().inv_freq.dtype == torch.float64


def test_a_module_is_printed_as_its_arguments() -> None:
    assert repr(modules.RotaryEmbedding(ROPE)) == repr(ROPE)
    attn = modules.LinearAttention("relu", rope=rotary.RotaryEmbedding(8))
    assert repr(attn) == repr(attn.description)
    mixed = modules.MixedRotaryEmbedding(torch.ones(2, 4, 8))
    assert repr(mixed) == ("MixedRotaryEmbedding(inv_freq=(2, 4, 8), axes=2, layout='interleaved')")


def test_a_description_and_arguments_together_are_refused(refused: Any) -> None:
    with refused(ValueError, "description", "base"):
        modules.RotaryEmbedding(ROPE, base=1e6)
    with refused(ValueError, "description", "more"):
        modules.LinearAttention(rotary.LinearAttention(), None)
    with refused(TypeError, "description", "RotaryEmbedding(...)", "LinearAttention(...)"):
        modules.LinearAttention(ROPE)
    with refused(TypeError, "description", "LinearAttention(...)"):
        modules.RotaryEmbedding(rotary.LinearAttention())
    with refused(TypeError, "feature_map", "Linear"):
        modules.LinearAttention(torch.nn.Linear(4, 4), normalize=True)
    with refused(ValueError, "layout", "'whole'"):
        modules.RotaryEmbedding(16, layout="whole")


def test_arrays_of_another_library_are_refused(refused: Any) -> None:
    host, x = sample("float32", 1, 2, 5, 16)
    rope, attn = modules.RotaryEmbedding(ROPE), modules.LinearAttention()
    with refused(TypeError, "q", "numpy.ndarray", "torch.Tensor"):
        rope(host)
    with refused(TypeError, "q", "list", "torch.Tensor"):
        rope([1.0])
    with refused(TypeError, "k", "numpy", "torch"):
        rope(x, host)
    with refused(TypeError, "q", "numpy.ndarray"):
        attn(host, host, host)
    with refused(TypeError, "k", "numpy"):
        attn.prefill(x, host, x)
    with refused(TypeError, "q", "numpy.ndarray"):
        attn.step(host, host, host, None)


def test_learned_frequencies_that_do_not_fit_are_refused(refused: Any) -> None:
    with refused(TypeError, "inv_freq", "numpy.ndarray"):
        modules.MixedRotaryEmbedding(np.ones((2, 4, 8), np.float32))
    with refused(TypeError, "inv_freq", "float16"):
        modules.MixedRotaryEmbedding(torch.ones(2, 4, 8, dtype=torch.float16))
    with refused(ValueError, "inv_freq", "(3, 4, 8)", "axes = 2"):
        modules.MixedRotaryEmbedding(torch.ones(3, 4, 8))
    with refused(ValueError, "layout", "'whole'"):
        modules.MixedRotaryEmbedding(torch.ones(2, 4, 8), layout="whole")
    with refused(TypeError, "q", "numpy.ndarray"):
        modules.MixedRotaryEmbedding(torch.ones(2, 4, 8))(np.ones((1, 4, 6, 16)), positions=[0])


def test_the_examples_hold() -> None:
    assert doctest.testmod(modules).failed == 0

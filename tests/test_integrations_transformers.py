"""replace_rotary on models of transformers: their logits, our bits, and the way back."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.gptj import modeling_gptj  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402
from transformers.models.phi3 import modeling_phi3  # noqa: E402

import rotary  # noqa: E402
from rotary.integrations.transformers import replace_rotary, restore_rotary  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "models.md"


def _example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ten = _example("ten_models")
IDS = torch.arange(24)[None] * 5 % 128


def logits(model: Any, ids: Any = IDS, **options: Any) -> Any:
    with torch.no_grad():
        return model(ids, **options).logits


def small_llama(**options: Any) -> Any:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**ten.SIZES, **options})
    return transformers.LlamaForCausalLM(config).eval()


@contextmanager
def forbidden(module: Any, name: str = "apply_rotary_pos_emb") -> Iterator[None]:
    """Let the modeling file's own function raise."""

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"{name} of {module.__name__} was called")

    kept = getattr(module, name)
    setattr(module, name, called)
    try:
        yield
    finally:
        setattr(module, name, kept)


# Ten models, as docs/models.md has them


def page_rows() -> dict[str, list[str]]:
    lines = PAGE.read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0]: row for row in rows if len(row) == 9 and row[0] in ten.MODELS}


# The others take as long again.
ALWAYS = ("Llama", "Qwen2-VL", "DeepSeek-V3", "GPT-J")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.large) for name in ten.MODELS],
)
def test_the_page_shows_what_a_model_gives(name: str) -> None:
    row, told = ten.run(name), page_rows()[name]
    assert row.round_trip
    assert row.short < 1e-4
    assert row.our_wrong == 0
    assert row.our_logits < 1e-4
    cells = row.cells()
    exact = [0, 1, 2, 3, 6]  # name, parameters, layers, rotation, entries of ours that are wrong
    assert [cells[i] for i in exact] == [told[i] for i in exact]
    assert row.their_tables == pytest.approx(float(told[5]), rel=0.1)
    for shown, printed in ((row.short, told[4]), (row.our_logits, told[8])):
        assert shown < 10 * float(printed)  # sums of floats in another order
    assert row.their_logits == pytest.approx(float(told[7]), rel=0.5)


def test_all_ten_are_on_the_page() -> None:
    assert list(page_rows()) == list(ten.MODELS)


@pytest.mark.large
def test_the_page_lists_the_classes_that_are_refused() -> None:
    every, text = _example("all_models"), PAGE.read_text("utf-8")
    found = list(every.rows(()))
    refused = [row for row in found if row[2]]
    assert f"{len(found) - len(refused)} of {len(found)} rotary classes" in text
    for folder, name, reason in refused:
        assert f"| {name} | {folder} | {reason} |" in text


# The bits


def _bits(x: Any) -> Any:
    """Return a torch tensor as NumPy's, bfloat16 included."""
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _heads(name: str) -> Callable[[Any, Any], Any]:
    def split(model: Any, y: Any) -> Any:
        return y.unflatten(-1, (-1, 32)).transpose(1, 2)

    return split


def _neox(model: Any, y: Any) -> Any:
    return y.unflatten(-1, (2, 96)).transpose(1, 2)[..., 32:64]


def _phi3(model: Any, y: Any) -> Any:
    return y[..., 64:96].unflatten(-1, (1, 32)).transpose(1, 2)


def _latent(model: Any, y: Any) -> Any:
    return y[:, None, :, 16:]


def to_halves(x: Any) -> Any:
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


# The projection that gives a first layer's keys, and how they lie in what it gives.
KEYS: dict[str, tuple[str, Any]] = {
    "Llama": ("model.layers.0.self_attn.k_proj", _heads("Llama")),
    "Qwen2-VL": ("model.language_model.layers.0.self_attn.k_proj", _heads("Qwen2-VL")),
    "GPT-NeoX": ("gpt_neox.layers.0.attention.query_key_value", _neox),
    "Phi-3": ("model.layers.0.self_attn.qkv_proj", _phi3),
    "DeepSeek-V3": ("model.layers.0.self_attn.kv_a_proj_with_mqa", _latent),
    "GPT-J": ("transformer.h.0.attn.k_proj", _heads("GPT-J")),
    "Cohere": ("model.layers.0.self_attn.k_proj", _heads("Cohere")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(KEYS))
def test_keys_in_the_cache_have_the_bits_that_numpy_gives(name: str, dtype: Any) -> None:
    model = ten.made(name).to(dtype)
    module, read = KEYS[name]
    seen: list[Any] = []
    model.get_submodule(module).register_forward_hook(lambda m, args, out: seen.append(out))
    replacement = replace_rotary(model)
    given = ten.inputs(model, shift=99_000)
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        cache = model(**given, use_cache=True).past_key_values
    embedding = next(e for n, e in replacement.embeddings.items() if "visual" not in n)[None]
    before, positions = _bits(read(model, seen[0])), given["position_ids"].numpy()
    layer = cache.layers[0]
    if name == "DeepSeek-V3":  # its cache holds the rotated part alone, in halves
        tables = embedding.tables(positions)
        expected = to_halves(rotary.rotate(before, *tables, layout="interleaved"))
        after = _bits(layer.values)
    else:
        expected, after = embedding(before, positions=positions), _bits(layer.keys)
    assert after.dtype == expected.dtype
    assert after.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen3-VL"])
def test_tables_are_correctly_rounded_whatever_the_model_is_moved_to(name: str) -> None:
    model = ten.made(name)
    replacement = replace_rotary(model)
    model.to(torch.bfloat16)  # spoils inv_freq, which nobody reads
    positions = torch.arange(100_000, 100_016)[None]
    for path, by_type in replacement.embeddings.items():
        for kind, embedding in by_type.items():
            module = model.get_submodule(path)
            where = torch.stack([positions[0], positions[0] % 97], -1) if "visual" in path else None
            extra = {} if kind is None else {"layer_type": kind}
            x = torch.zeros(1, dtype=torch.bfloat16)
            cos, sin = module(x, positions if where is None else where, **extra)
            ours = positions.numpy() if where is None else where.T.numpy()
            expected = embedding.tables(ours)
            pairs = embedding.rotary_dim // 2
            for table, truth in zip((cos, sin), expected, strict=True):
                assert table.dtype == torch.float32
                twice = table.numpy().reshape(-1, 2, pairs)
                assert np.array_equal(twice[:, 0], truth.reshape(-1, pairs))
                assert np.array_equal(twice[:, 1], twice[:, 0])


def test_a_float64_model_gets_float64_tables() -> None:
    model = small_llama().double()
    with replace_rotary(model) as replacement:
        positions = torch.arange(5)[None]
        cos, _ = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), positions)
    truth, _ = replacement.embeddings["model.rotary_emb"][None].tables(range(5), dtype="float64")
    assert cos.dtype == torch.float64
    assert np.array_equal(cos[0, :, :16].numpy(), truth)


# Only this model, and back again


def test_other_models_notice_nothing() -> None:
    ours, other = small_llama(), small_llama()
    before, function = logits(other), modeling_llama.apply_rotary_pos_emb
    with replace_rotary(ours), forbidden(modeling_llama):
        logits(ours)
        with pytest.raises(AssertionError, match="was called"):
            logits(other)
    assert modeling_llama.apply_rotary_pos_emb is function
    assert type(other.model.layers[0].self_attn) is modeling_llama.LlamaAttention
    assert torch.equal(logits(other), before)


def test_restoring_gives_every_class_and_bit_back() -> None:
    model = small_llama()
    before, classes = logits(model), [type(m) for m in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    replacement = replace_rotary(model)
    assert replacement.rotating == ("model.layers.0.self_attn", "model.layers.1.self_attn")
    replacement.restore()
    replacement.restore()
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert torch.equal(logits(model), before)


def test_leaving_the_context_by_an_exception_restores() -> None:
    model = small_llama()
    with pytest.raises(KeyError), replace_rotary(model):
        raise KeyError
    assert type(model.model.rotary_emb) is modeling_llama.LlamaRotaryEmbedding


def test_parameters_and_state_dict_stay(tmp_path: Path) -> None:
    model = small_llama()
    before = model.state_dict()
    with replace_rotary(model):
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded.model.rotary_emb) is modeling_llama.LlamaRotaryEmbedding
    assert torch.equal(logits(loaded), logits(model))


def test_a_deep_copy_is_replaced_and_restored_by_itself() -> None:
    model = small_llama()
    before = logits(model)
    replacement = replace_rotary(model)
    ours, twin = logits(model), copy.deepcopy(model)
    replacement.restore()
    assert twin.model.layers[0].self_attn.q_proj is not model.model.layers[0].self_attn.q_proj
    with forbidden(modeling_llama):
        assert torch.equal(logits(twin), ours)
    restore_rotary(twin)
    assert torch.equal(logits(twin), before)
    assert torch.equal(logits(model), before)


def test_pickling_a_replaced_model_is_refused() -> None:
    model = small_llama()
    with replace_rotary(model), pytest.raises(TypeError, match=r"^model: got a Llama\w+ that"):
        pickle.dumps(model)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))


# What people do with models


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation_with_a_cache_and_padding_on_the_left_gives_their_tokens(attention: str) -> None:
    model = small_llama(attn_implementation=attention)
    ids = IDS.repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    theirs = model.generate(ids, **options)
    with replace_rotary(model), forbidden(modeling_llama):
        assert torch.equal(model.generate(ids, **options), theirs)


def test_gradients_are_those_of_their_code() -> None:
    model = small_llama().train()

    def gradients() -> list[Any]:
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    theirs = gradients()
    with replace_rotary(model):
        ours = gradients()
        model.activation_checkpointing_enable()
        again = gradients()
    for a, b, c in zip(theirs, ours, again, strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()
        assert torch.equal(b, c)


@pytest.mark.parametrize("name", ["Llama", "Phi-3"])
def test_a_compiled_model_calls_our_rotation_and_gives_the_same_bits(name: str) -> None:
    model = ten.made(name)
    own = modeling_llama if name == "Llama" else modeling_phi3
    with torch.no_grad(), replace_rotary(model), forbidden(own):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        given = ten.inputs(model, shift=100_000)  # LongRoPE's long side
        assert torch.equal(compiled(**given).logits, model(**given).logits)


def test_a_dynamic_rule_leaves_the_compiled_graph() -> None:
    rule = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = small_llama(num_hidden_layers=1, max_position_embeddings=16, rope_parameters=rule)
    with replace_rotary(model):
        compiled = torch.compile(model, backend="aot_eager")
        assert torch.equal(logits(compiled), logits(model))


def test_a_dynamic_rule_has_no_memory() -> None:
    rule = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = small_llama(max_position_embeddings=16, rope_parameters=rule)
    positions = torch.arange(24)[None]

    def twice() -> bool:
        before = logits(model, position_ids=positions)
        logits(model, position_ids=positions + 500)
        return torch.equal(before, logits(model, position_ids=positions))

    with replace_rotary(model):
        assert twice()
    assert not twice()


def test_longrope_takes_the_long_factors_where_theirs_does() -> None:
    model = ten.made("Phi-3")
    embedding = replace_rotary(model).embeddings["model.rotary_emb"][None]
    for last, length in ((4095, 4096), (4096, 4097)):
        cos, _ = model.model.rotary_emb(torch.zeros(1), torch.tensor([[7, last]]))
        expected, _ = embedding.tables([7, last], seq_len=length)
        assert np.array_equal(cos[0, :, :12].numpy(), expected)
    assert not np.array_equal(embedding.frequencies(4096), embedding.frequencies(4097))


def test_a_model_without_numbers_is_replaced_too() -> None:
    with torch.device("meta"):
        model = small_llama()
    assert replace_rotary(model).embeddings["model.rotary_emb"][None].head_dim == 32


# What cannot be


def unchanged(model: Any) -> bool:
    return not any("_rotary_replaces" in vars(type(m)) for m in model.modules())


@pytest.mark.parametrize("value", [None, 3, torch.nn.Linear(2, 2)], ids=repr)
def test_what_is_no_model_of_transformers_is_refused(refused: Any, value: Any) -> None:
    with refused(TypeError, "model", type(value).__name__, "PreTrainedModel"):
        replace_rotary(value)


def test_restoring_what_is_no_module_is_refused(refused: Any) -> None:
    with refused(TypeError, "model", "int", "torch.nn.Module"):
        restore_rotary(3)  # type: ignore[arg-type]


def test_models_without_rotary_are_refused(refused: Any) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32))
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2))
    for model in (bert, gpt2):
        words = (type(model).__name__, "RopePosition", "apply_rotary_pos_emb", "neither")
        with refused(ValueError, "model", *words):
            replace_rotary(model)


def test_a_model_is_replaced_once(refused: Any) -> None:
    model = small_llama()
    with replace_rotary(model):
        ours = logits(model)
        with refused(ValueError, "model", "LlamaForCausalLM", "replaced already"):
            replace_rotary(model)
        assert torch.equal(logits(model), ours)


def _minimax_m3() -> Any:
    from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import (
        MiniMaxM3VLTextConfig,
    )
    from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLTextModel

    return MiniMaxM3VLTextModel(MiniMaxM3VLTextConfig(num_hidden_layers=1, rotary_dim=64))


def _vjepa2() -> Any:
    return transformers.VJEPA2Model(transformers.VJEPA2Config(num_hidden_layers=1))


def _learned() -> Any:
    from transformers.models.mistral_large4.configuration_mistral_large4 import (
        MistralLarge4TextConfig,
    )
    from transformers.models.mistral_large4.modeling_mistral_large4 import MistralLarge4TextModel

    return MistralLarge4TextModel(MistralLarge4TextConfig(num_hidden_layers=1))


def _roformer() -> Any:
    return transformers.RoFormerModel(transformers.RoFormerConfig(num_hidden_layers=1))


BEYOND: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "MiniMax-M3": (_minimax_m3, ("MiniMaxM3VLRotaryEmbedding", "than its config describes")),
    "V-JEPA 2": (_vjepa2, ("VJEPA2RopeAttention", "rotate_queries_or_keys")),
    "Mistral Large 4": (_learned, ("MistralLarge4TextRotaryEmbedding", "learned alpha")),
    "RoFormer": (_roformer, ("RoFormerModel", "neither")),
}


@pytest.mark.parametrize("name", list(BEYOND))
def test_rotations_that_rotary_has_no_description_for_are_refused(refused: Any, name: str) -> None:
    make, words = BEYOND[name]
    with torch.device("meta"):
        model = make()
    with refused(ValueError, "model", *words):
        replace_rotary(model)
    assert unchanged(model)


def test_nothing_is_half_replaced(refused: Any) -> None:
    model = small_llama()
    last = model.model.layers[1].self_attn
    last.forward = last.forward  # as a hook leaves it
    with refused(ValueError, "model", "model.layers.1.self_attn", "LlamaAttention", "forward"):
        replace_rotary(model)
    assert unchanged(model)


def test_restoring_under_a_hook_is_refused(refused: Any) -> None:
    model = small_llama()
    replacement, last = replace_rotary(model), model.model.layers[1].self_attn
    ours, last.forward = logits(model), last.forward
    with refused(ValueError, "model", "model.layers.1.self_attn", "forward", "remove it first"):
        replacement.restore()
    assert torch.equal(logits(model), ours)
    del last.forward
    replacement.restore()
    assert unchanged(model)


def test_frequencies_that_the_config_does_not_tell_are_refused(refused: Any) -> None:
    model = small_llama()
    model.model.rotary_emb.original_inv_freq *= 1.01
    with refused(ValueError, "model", "LlamaRotaryEmbedding", "original_inv_freq"):
        replace_rotary(model)
    assert unchanged(model)


def test_a_config_changed_afterwards_is_refused(refused: Any) -> None:
    model = small_llama()
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 123.0}
    with refused(ValueError, "model", "LlamaRotaryEmbedding", "inv_freq"):
        replace_rotary(model)


def test_gptj_with_another_table_is_refused(refused: Any, monkeypatch: Any) -> None:
    config = transformers.GPTJConfig(n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=64)
    model = transformers.GPTJModel(config)
    usual = modeling_gptj.create_sinusoidal_positions
    changed = lambda count, dim: usual(count, dim).flip(-1)  # noqa: E731
    monkeypatch.setattr(modeling_gptj, "create_sinusoidal_positions", changed)
    with refused(ValueError, "model", "GPTJAttention", "than its config describes"):
        replace_rotary(model)


def test_the_page_of_the_recipe_names_what_is_public() -> None:
    text = (DOCS / "use" / "transformers.md").read_text("utf-8")
    assert re.search(r"replace_rotary\(model\)", text)
    assert "restore_rotary" in text

"""The Llama example gives the logits of transformers on every array library.

Text of this repository goes through small seeded models of transformers, saved and read again by
both.  The bound is relative to the largest logit; the argmax has to be the same at every position.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from safetensors.numpy import load_file, save_file

import rotary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
jax = pytest.importorskip("jax")

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "llama_anywhere.py"
LIBRARIES = ("numpy", "torch", "jax", "array_api_strict")
BOUND = 1e-4

TEXT = (ROOT / "LICENSE").read_bytes()
IDS = np.frombuffer(TEXT[:512], np.uint8).reshape(2, 256).tolist()  # two passages: a batch

SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
BASE = {"rope_theta": 10_000.0}
MODELS = {
    "grouped queries": {},
    "ungrouped queries": {"num_key_value_heads": 4},
    "tied embeddings": {"tie_word_embeddings": True},
    "attention biases": {"attention_bias": True},
    "wide heads": {"head_dim": 32},
    "Llama 3's base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "linear scaling": {"rope_parameters": {**BASE, "rope_type": "linear", "factor": 4.0}},
    "dynamic scaling": {
        "rope_parameters": {**BASE, "rope_type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 100,
    },
    "YaRN": {
        "rope_parameters": {
            **BASE,
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        }
    },
    "LongRoPE": {
        "rope_parameters": {
            **BASE,
            "rope_type": "longrope",
            "factor": 8.0,
            "short_factor": [1.0] * 8,
            "long_factor": [1.0 + i for i in range(8)],
            "original_max_position_embeddings": 64,
        }
    },
    "Llama 3's scaling": {
        "rope_parameters": {
            **BASE,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "Mistral": {"model_type": "mistral", "sliding_window": None},
    "layers without positions": {
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1],
        "pad_token_id": None,
    },
    "a large epsilon": {"rms_norm_eps": 0.1},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}


def _load_example():
    spec = importlib.util.spec_from_file_location("llama_anywhere", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CONVERTERS["array_api_strict"] = array_api_strict.asarray
    return module


llama = _load_example()


@pytest.fixture(scope="module", autouse=True)
def _jax_precision_is_put_back():
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


def save_model(folder, *, model_type="llama", max_shard_size="1GB", dtype="float32", **changes):
    # With this seed the two largest logits are nowhere closer than 2.5e-5 of the largest: ten times
    # what the libraries differ by, so that the argmax is a fair demand.
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SMALL | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # New models have norms of 1, biases of 0 and attention too even to show a mistake.
            parameter += 0.2 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load_reference(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def reference_logits(folder):
    with torch.no_grad():
        return load_reference(folder)(torch.tensor(IDS)).logits.numpy()


def example_logits(folder, library, **changes):
    config, weights = llama.load(folder, library)
    config = dataclasses.replace(config, **changes)
    cache = llama.empty_cache(config, weights, *np.shape(IDS))
    return run(config, weights, IDS, cache, 0)[0]


def run(config, weights, ids, cache, offset):
    ids = array_namespace(cache[0][0]).asarray(ids)
    x, cache = llama.forward(config, weights, ids, cache, offset)
    return np.asarray(llama.linear(weights, "lm_head", x)), cache


def error(logits, reference):
    assert logits.shape == reference.shape
    assert logits.dtype == np.float32
    return np.abs(logits - reference).max() / np.abs(reference).max()


@pytest.fixture(scope="module", params=MODELS)
def any_model(request, tmp_path_factory):
    """Save a checkpoint of each kind; return it with the logits of transformers."""
    folder = save_model(tmp_path_factory.mktemp("model"), **MODELS[request.param])
    return folder, reference_logits(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Save a checkpoint; return it with the logits of transformers."""
    folder = save_model(tmp_path_factory.mktemp("model"))
    return folder, reference_logits(folder)


@pytest.fixture
def checkpoint(tmp_path):
    """Save a checkpoint that a test may spoil."""
    return save_model(tmp_path, num_hidden_layers=1)


def edit_config(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    raw = {key: value for key, value in raw.items() if value is not ...}
    path.write_text(json.dumps(raw))


def edit_tensors(folder, **changes):
    path = folder / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()} | changes
    save_file({name: array for name, array in tensors.items() if array is not None}, path)


@pytest.mark.parametrize("library", LIBRARIES)
def test_logits_are_those_of_transformers(any_model, library):
    folder, reference = any_model
    logits = example_logits(folder, library)
    assert error(logits, reference) <= BOUND
    assert np.array_equal(logits.argmax(-1), reference.argmax(-1))


def test_the_bound_notices_another_rope_theta(model):
    folder, reference = model
    ropes = (rotary.RotaryEmbedding(16, base=10_100.0),) * 3
    assert error(example_logits(folder, "numpy", ropes=ropes), reference) > 10 * BOUND


@pytest.mark.parametrize("library", LIBRARIES)
def test_decoding_with_the_cache_agrees_with_the_full_forward_pass(model, library):
    folder, reference = model
    config, weights = llama.load(folder, library)
    cache = llama.empty_cache(config, weights, len(IDS), 256)
    offset, parts = 0, []
    for seq in (120, 120, *[1] * 16):  # the prompt in two parts, then token by token
        ids = [row[offset : offset + seq] for row in IDS]
        logits, cache = run(config, weights, ids, cache, offset)
        parts.append(logits)
        offset += seq
    decoded = np.concatenate(parts, axis=1)
    for full in (reference, example_logits(folder, library)):
        assert error(decoded, full[:, :offset]) <= BOUND
        assert np.array_equal(decoded.argmax(-1), full[:, :offset].argmax(-1))


def test_a_sharded_checkpoint_gives_the_same_bits(model, tmp_path):
    folder, _ = model
    save_model(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert np.array_equal(example_logits(tmp_path, "numpy"), example_logits(folder, "numpy"))


def test_a_config_of_an_older_release_reads_the_same(checkpoint):
    expected = llama.read_config(checkpoint / "config.json")
    edit_config(checkpoint, rope_parameters=..., rope_theta=10_000.0, rope_scaling=None)
    edit_config(checkpoint, head_dim=..., attention_bias=..., tie_word_embeddings=...)
    assert llama.read_config(checkpoint / "config.json") == expected


def test_a_config_without_key_value_heads_has_one_for_each_head(checkpoint):
    edit_config(checkpoint, num_key_value_heads=...)
    assert llama.read_config(checkpoint / "config.json").num_key_value_heads == 4


def test_inv_freq_buffers_of_older_checkpoints_are_passed_over(checkpoint):
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(checkpoint, **{buffer: np.ones(8, np.float32)})
    assert buffer not in llama.load(checkpoint, "numpy")[1]


@pytest.fixture(scope="module")
def generated(model):
    """Return the 8 tokens that transformers generates after 256 bytes of text."""
    prompt = torch.tensor(IDS[:1])
    tokens = load_reference(model[0]).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
    )
    return tokens[0, 256:].tolist()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_command_line_prints_the_tokens_that_transformers_generates(
    model, generated, library, tmp_path, capsys
):
    (tmp_path / "prompt").write_bytes(TEXT[:256])
    arguments = [str(model[0]), "--backend", library, "--tokens", "8"]
    for prompt in (
        f"--text-file={tmp_path / 'prompt'}",
        f"--prompt-ids={','.join(map(str, TEXT[:256]))}",
    ):
        llama.main([*arguments, prompt])
        assert list(map(int, capsys.readouterr().out.split())) == generated


def test_running_with_numpy_imports_neither_torch_nor_jax(model, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        "assert not {'torch', 'jax'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-W", "error", program, model[0], "--prompt-ids=1,2", "--tokens=3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 3


def test_the_model_names_no_library():
    model = (llama.forward, llama.attention, llama.write, llama.swiglu, llama.rms_norm)
    for function in (*model, llama.linear, llama.empty_cache, llama.generate):
        assert not {"np", "torch", "jax", "import_module"} & set(function.__code__.co_names)


def test_the_example_is_shorter_than_200_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type: got 'gemma', expected one of"),
        ({"sliding_window": 64}, "sliding_window: got 64, expected"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected one of"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            "high_freq_factor: missing",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "spiral", "factor": 2.0}},
            "spiral",
        ),
        ({"hidden_size": ...}, "config.json: hidden_size missing"),
    ],
)
def test_a_config_that_the_example_cannot_run_is_refused(checkpoint, changes, message):
    edit_config(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        llama.load(checkpoint, "numpy")


def test_a_rope_type_of_null_is_the_default(checkpoint):
    expected = llama.read_config(checkpoint / "config.json")
    edit_config(checkpoint, rope_parameters={"rope_type": None, "rope_theta": 10_000.0})
    assert llama.read_config(checkpoint / "config.json") == expected


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: there is no such file"):
        llama.load(checkpoint, "numpy")


def test_a_missing_shard_is_named(tmp_path):
    save_model(tmp_path, max_shard_size="100KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: there is no such file"):
        llama.load(tmp_path, "numpy")


def test_a_missing_tensor_is_named(checkpoint):
    edit_tensors(checkpoint, **{"model.norm.weight": None})
    with pytest.raises(ValueError, match=r"model\.norm\.weight: missing from"):
        llama.load(checkpoint, "numpy")


def test_a_tensor_without_use_is_named(checkpoint):
    edit_tensors(checkpoint, **{"model.layers.0.mlp.up_proj.bias": np.ones(160, np.float32)})
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.bias: of no use in"):
        llama.load(checkpoint, "numpy")


@pytest.mark.parametrize(
    ("ids", "message"),
    [("3,256,4", r"got \[256\], expected 0 to 255"), ("-1", r"got \[-1\], expected 0 to 255")],
)
def test_token_ids_outside_the_vocabulary_are_refused(checkpoint, ids, message):
    with pytest.raises(ValueError, match=f"token ids: {message}"):
        llama.main([str(checkpoint), f"--prompt-ids={ids}"])


def test_more_tokens_than_the_cache_has_room_for_are_refused(checkpoint):
    config, weights = llama.load(checkpoint, "numpy")
    cache = llama.empty_cache(config, weights, 1, 8)
    with pytest.raises(ValueError, match="cache: got 9 positions, expected up to 8"):
        run(config, weights, [[1, 2]], cache, 7)


def test_an_empty_prompt_is_refused(checkpoint, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="token ids: got none"):
        llama.main([str(checkpoint), "--text-file", str(tmp_path / "empty")])

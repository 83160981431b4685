"""The language model of the examples learns, and says the same on every array library.

A narrower model of one layer is trained for a few steps.  Exact logits are held to each other by
their bits; bounds of all others are relative to the largest logit.
"""

import importlib.util
import itertools
import math
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "linear_lm.py"
LIBRARIES = ("numpy", "torch", "jax", "array_api_strict")
PROMPT = b"The for statement"
STEPS = 150


def _load_example():
    spec = importlib.util.spec_from_file_location("linear_lm", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["linear_lm"] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


lm = _load_example()
STRICT = (array_api_strict.asarray, lambda function: function)
SMALL = lm.Config(layers=1, heads=2, width=32, hidden=64)


@pytest.fixture(scope="module", autouse=True)
def _settings_are_put_back():
    before = jax.config.jax_default_matmul_precision, torch.get_num_threads()
    yield
    jax.config.update("jax_default_matmul_precision", before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a small model; return its folder, the losses and the loss of unseen text."""
    folder = tmp_path_factory.mktemp("models") / "new" / "folder"
    return folder, *lm.train(folder, SMALL, STEPS, batch=8, seq=64)


@pytest.fixture(scope="module")
def model(trained):
    """Return the model of each library and arithmetic, loaded when asked for, and once."""

    @cache
    def load(library, arithmetic):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(lm.LIBRARIES, "array_api_strict", STRICT)
            return lm.load(trained[0], library, arithmetic)

    return load


@pytest.fixture(scope="module")
def continued(model):
    """Return the tokens and logits of each library and arithmetic, computed once."""
    return cache(lambda *which: lm.measure(model(*which), PROMPT, 20, 0))


@pytest.fixture
def saved(trained, tmp_path):
    """Save a model that a test may spoil."""
    (tmp_path / lm.FILE).write_bytes((trained[0] / lm.FILE).read_bytes())
    return tmp_path


def edit(folder, described=None, **changes):
    config, found = lm.read(folder / lm.FILE)
    tensors = {name: x for name, x in (found | changes).items() if x is not None}
    default = {name: str(number) for name, number in vars(config).items()}
    save_file(tensors, folder / lm.FILE, default if described is None else default | described)


@cache
def held_out_text():
    text = "\n".join(text for _, text in sorted(lm.pydoc_data.topics.topics.items())).encode()
    return np.frombuffer(text, np.uint8).astype(np.int32)[len(text) * 9 // 10 :]


def test_training_lowers_the_loss_from_8_bits_by_3(trained):
    _, losses, _ = trained
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(8.0, abs=1e-4)
    assert np.mean(losses[-10:]) < 5.0


def test_a_trained_model_knows_more_than_how_frequent_bytes_are(trained):
    frequencies = np.unique_counts(held_out_text()).counts / len(held_out_text())
    entropy = -np.sum(frequencies * np.log2(frequencies))  # 4.5 bits
    assert trained[2] < entropy - 0.5


def test_what_is_saved_is_what_was_trained(trained):
    folder, _, held_out = trained
    config, weights = lm.read(folder / lm.FILE)
    assert config == SMALL
    assert {name: x.shape for name, x in weights.items()} == lm.shapes(SMALL)
    text = held_out_text()
    ids = text[: len(text) // lm.LONG * lm.LONG].reshape(-1, lm.LONG)
    logits, _ = lm.forward(config, lm.ARITHMETICS["fast"], weights, ids[:, :-1], [None])
    logits = logits.astype(np.float64)
    chosen = np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    bits = (np.log(np.exp(logits).sum(-1)) - chosen).mean() / math.log(2)
    assert bits == pytest.approx(held_out, rel=1e-5)


def test_the_curve_is_drawn(trained):
    pytest.importorskip("matplotlib", reason="the example draws only where it is installed")
    assert (trained[0] / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_does_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lm, "find_spec", lambda name: None)
    lm.draw(tmp_path / "loss.png", [8.0, 5.0], 5.0)
    assert capsys.readouterr().out == "matplotlib is not installed: the curve is not drawn\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", LIBRARIES)
def test_exact_logits_have_the_same_bits_on_every_library(continued, library):
    ids, logits, _ = continued(library, "exact")
    expected_ids, expected, _ = continued("numpy", "exact")
    assert logits.dtype == np.float32
    assert logits.shape == (20, 256)
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(logits.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("library", LIBRARIES)
def test_fast_logits_are_the_exact_ones_but_for_rounding(continued, library):
    ids, logits, _ = continued(library, "fast")
    expected_ids, expected, _ = continued("numpy", "exact")
    assert np.array_equal(ids, expected_ids)
    assert 0 < np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_prefill_and_steps_give_the_logits_of_the_whole(trained, arithmetic):
    config, weights = lm.read(trained[0] / lm.FILE)
    ids = np.frombuffer(EXAMPLE.read_bytes()[:160], np.uint8).astype(np.int32).reshape(2, 80)
    run = partial(lm.forward, config, lm.ARITHMETICS[arithmetic], weights)
    whole, _ = run(ids, [None])
    first, states = run(ids[:, :64], [None])
    rest, _ = run(ids[:, 64:], states)
    if arithmetic == "exact":  # split at the end of a chunk
        assert np.array_equal(np.concatenate([first, rest], axis=1), whole)
    parts = [first]
    for n in range(64, 80):
        part, states = run(ids[:, n : n + 1], states)
        parts.append(part)
    assert np.abs(np.concatenate(parts, axis=1) - whole).max() <= 1e-5 * np.abs(whole).max()


def test_logits_do_not_depend_on_what_follows(trained):
    config, weights = lm.read(trained[0] / lm.FILE)
    run = partial(lm.forward, config, lm.ARITHMETICS["exact"], weights)
    ids = np.frombuffer(PROMPT, np.uint8).astype(np.int32)[None]
    other = ids.copy()
    other[0, -1] += 1
    states = [None]
    assert np.array_equal(run(ids, states)[0][:, :-1], run(other, states)[0][:, :-1])


def test_random_numbers_are_those_of_knuths_generator():
    seed, expected = 1, []
    for _ in range(3):
        seed = (6364136223846793005 * seed + 1442695040888963407) & (1 << 64) - 1
        expected.append(seed >> 32)
    assert list(itertools.islice(lm.random_numbers(1), 3)) == expected


def test_samples_follow_the_probabilities():
    logits = np.full(256, -200.0, np.float32)
    logits[[3, 5, 9]] = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    numbers = itertools.islice(lm.random_numbers(0), 4000)
    counts = np.bincount([lm.sample(logits, n) for n in numbers], minlength=256) / 4000
    assert counts[[3, 5, 9]] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert counts.sum() == counts[[3, 5, 9]].sum()
    assert lm.sample(logits, 0) == 3
    assert lm.sample(logits, 2**32 - 1) == 9


def test_compare_finds_no_exact_logit_that_differs(trained, model, monkeypatch, capsys):
    monkeypatch.setattr(lm, "load", lambda _, *which: model(*which))  # JAX has compiled it already
    lm.main(["compare", str(trained[0]), "--tokens", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [arithmetic, library]
        for arithmetic in ("exact", "fast")
        for library in ("numpy", "torch", "jax")
    ]
    for line in lines[2:4]:
        assert line.endswith("0 of 768 logits differ, by 0.0e+00; first other token: none")


def test_compare_fails_where_a_library_is_off_by_one_place(trained, monkeypatch, capsys):
    def spoiled(array):
        if array.shape == (256, 32):
            array = np.nextafter(array, np.float32(1))
        return torch.from_numpy(array)

    monkeypatch.setattr(
        lm, "LIBRARIES", {"numpy": lm.LIBRARIES["numpy"], "torch": (spoiled, lambda f: f)}
    )
    with pytest.raises(SystemExit, match=r"exact arithmetic: got \d+ logits that differ"):
        lm.main(["compare", str(trained[0]), "--tokens", "2"])


def test_compare_names_the_first_other_token(trained, model, monkeypatch, capsys):
    right = model("numpy", "exact")
    made = iter([right, lambda ids, states: (right(ids, states)[0][::-1], states)])
    monkeypatch.setattr(lm, "load", lambda *_: next(made))
    monkeypatch.setattr(lm, "ARITHMETICS", {"exact": None})
    monkeypatch.setattr(lm, "LIBRARIES", {"numpy": None, "torch": None})
    assert lm.compare(trained[0], PROMPT, 4, 0) > 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("first other token: 1")


def test_the_command_line_prints_the_bytes(trained, continued, capfdbinary):
    arguments = ["generate", str(trained[0]), "--backend", "torch", "--tokens", "20"]
    lm.main([*arguments, "--prompt", PROMPT.decode()])
    assert capfdbinary.readouterr().out == bytes(continued("numpy", "exact")[0].tolist())


def test_another_seed_gives_another_text(model):
    fast = model("numpy", "fast")
    texts = {bytes(t for t, _ in lm.generate(fast, PROMPT, 12, seed)) for seed in range(4)}
    assert len(texts) == 4


def test_generating_with_numpy_imports_neither_torch_nor_jax(trained, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        "assert not {'torch', 'jax'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-W", "error", program, "generate", trained[0], "--tokens=3"]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) == 3


def test_the_model_names_no_library():
    for function in (lm.forward, lm.attention, lm.rms_norm, lm.generate):
        assert not {"np", "torch", "jax", "import_module"} & set(function.__code__.co_names)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.safetensors: there is no such file"):
        lm.load(tmp_path, "numpy", "fast")


def test_a_file_of_another_kind_is_refused(saved):
    (saved / lm.FILE).write_bytes(EXAMPLE.read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors: .*header"):
        lm.load(saved, "numpy", "fast")


def test_a_file_that_was_cut_off_is_refused(saved):
    (saved / lm.FILE).write_bytes((saved / lm.FILE).read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors: .*incomplete"):
        lm.load(saved, "numpy", "fast")


def test_a_file_without_the_config_is_refused(saved):
    save_file(load_file(saved / lm.FILE), saved / lm.FILE)
    with pytest.raises(ValueError, match=r"layers: got nothing in .*, expected a number of at"):
        lm.load(saved, "numpy", "fast")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"heads": "0"}, "heads: got 0 in .*, expected a number of at least 1"),
        ({"heads": "two"}, "heads: got two in .*, expected a number of at least 1"),
        ({"heads": "3"}, "width: got 32, expected a multiple of 3 heads"),
        ({"layers": "2"}, r"1\.down: missing from"),
        ({"hidden": "128"}, r"got float32 of shape \(64, 32\), expected float32 of \(128, 32\)"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(saved, described, message):
    edit(saved, described)
    with pytest.raises(ValueError, match=message):
        lm.load(saved, "numpy", "fast")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": None}, "head: missing from"),
        ({"norm": np.ones(3, np.float32)}, "norm: of no use in"),
        ({"head": np.ones((32, 256), np.float16)}, "head: got float16 of shape"),
        ({"head": np.ones((32, 255), np.float32)}, r"head: got float32 of shape \(32, 255\), exp"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=message):
        lm.load(saved, "numpy", "fast")


def test_an_empty_prompt_is_refused(trained):
    with pytest.raises(ValueError, match="prompt: got none, expected a byte or more"):
        lm.main(["generate", str(trained[0]), "--prompt", ""])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "x", "--steps", "0"], "--steps: got 0, expected at least 1"),
        (["generate", "x", "--tokens", "-1"], "--tokens: got -1, expected at least 1"),
        (["generate", "x", "--backend", "cupy"], "invalid choice: 'cupy'"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        lm.main(arguments)
    assert message in capsys.readouterr().err

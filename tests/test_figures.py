"""Figures: what they show is the library's, everything on them can be read, and ``rotary plot``."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import rotary
from rotary import axes as position_axes
from rotary import cli, figures
from rotary.figures import (
    attention,
    command,
    cost,
    decay,
    encodings,
    error,
    grid,
    models,
    rotation,
    scaling,
    signs,
    theme,
)

LLAMA3 = rotary.RotaryEmbedding(
    128, base=500_000.0, scaling=rotary.scaling.Llama3(8.0, 1.0, 4.0, 8192)
)
MODELS = {
    "llama3": (LLAMA3, 131_072),
    "plain": (rotary.RotaryEmbedding(64, layout="interleaved", rotary_dim=32), None),
    "dynamic": (
        rotary.RotaryEmbedding(64, scaling=rotary.scaling.DynamicNTK(2.0, 2048)),
        None,
    ),
    "longrope": (scaling.example(scaling.RULES["LongRoPE"]), None),
    "proportional": (
        rotary.RotaryEmbedding(64, scaling=rotary.scaling.Proportional(0.25)),
        4096,
    ),
    "sections": (
        rotary.RotaryEmbedding(128, base=1e6, axes=position_axes.Sections((16, 24, 24))),
        32_768,
    ),
    "xpos": (rotary.RotaryEmbedding(64, xpos=rotary.XPos()), 4096),
    "coordinates": (grid.MODELS["DINOv3"], None),
    "one frequency": (rotary.RotaryEmbedding(2, inv_freq=(0.5,)), 100),
}
OF_MODEL = [name for name, figure in figures.FIGURES.items() if figure.of_model]


@pytest.fixture(scope="module", autouse=True)
def _short_timing():
    """Time the figure of costs once, and on short sequences."""
    costs = cost.measure((128, 256, 512))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "measure", lambda: costs)
        yield


@cache
def drawn(name: str, dark: bool = False, model: str | None = None) -> Figure:
    """Return a figure as it stands on paper."""
    embedding, context = MODELS[model] if model else (None, None)
    if name == "sheet":
        return figures.sheet(embedding, context=context, dark=dark)
    return figures.draw(name, embedding, context=context, dark=dark)


def lines(figure: Figure, number: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the named lines of one of a figure's axes."""
    found = (line for line in figure.axes[number].get_lines() if line.get_label()[0] != "_")
    return {line.get_label(): line.get_data() for line in found}


def texts(figure: Figure) -> list[Text]:
    """Return all text that can be seen: not the labels of ticks that are out of view."""
    out_of_view = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-9 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - room <= tick.get_loc() <= high + room:
                    out_of_view |= {tick.label1, tick.label2}
    found = figure.findobj(lambda a: isinstance(a, Text) and a.get_visible() and a.get_text())
    return [text for text in dict.fromkeys(found) if text not in out_of_view]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, by the Web Content Accessibility Guidelines."""

    def luminance(colour: str) -> float:
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# What can be read.


def check_text(figure: Figure, least: float) -> None:
    """Text is no smaller than `least` points of a figure 7 inches wide, inside it, and free."""
    found = texts(figure)
    assert min(text.get_fontsize() * 7 / figure.get_figwidth() for text in found) >= least
    boxes = [(text.get_text(), *text.get_window_extent().extents) for text in found]
    width, height = figure.bbox.size
    assert [
        text
        for text, left, low, right, high in boxes
        if left < 0 or low < 0 or right > width or high > height
    ] == []
    assert [
        (text, other)
        for (text, *a), (other, *b) in combinations(boxes, 2)
        # By more than a pixel.
        if a[0] + 1 < b[2] and b[0] + 1 < a[2] and a[1] + 1 < b[3] and b[1] + 1 < a[3]
    ] == []


def check_legends(figure: Figure) -> None:
    """Legends lie outside all axes and what is written beside them."""
    parts = [figure, *(part for one in figure.subfigs for part in (one, *one.subfigs))]
    legends = [legend.get_window_extent() for part in parts for legend in part.legends]
    for axes in figure.axes:
        around = axes.get_tightbbox()
        assert not [legend for legend in legends if legend.overlaps(around)]


def check_axes(figure: Figure) -> None:
    """Every axis, or one that it shares its numbers with, has a name and in brackets a unit."""
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            labels = [axes.get_xlabel() + axes.get_ylabel()]
        else:
            across = axes.get_shared_x_axes().get_siblings(axes)
            up = axes.get_shared_y_axes().get_siblings(axes)
            labels = [
                max((one.get_xlabel() for one in across), key=len),
                max((one.get_ylabel() for one in up), key=len),
            ]
        for label in labels:
            assert re.search(r"\w.* ?\(.*\w.*\)", label, re.DOTALL), label


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_can_be_read_on_light_and_dark(name):
    light, dark = drawn(name), drawn(name, True)
    for figure in (light, dark):
        check_text(figure, 9)
        check_legends(figure)
        check_axes(figure)
    assert light.get_facecolor() != dark.get_facecolor()
    assert [t.get_text() for t in texts(light)] == [t.get_text() for t in texts(dark)]
    assert light.get_suptitle() == figures.FIGURES[name].title


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *(("sheet", model) for model in ("llama3", "longrope", "sections")),
        *(("rotation", model) for model in ("llama3", "plain")),
        *(("wavelengths", model) for model in ("dynamic", "plain", "proportional")),
        *(("scaling", model) for model in ("dynamic", "proportional", "one frequency")),
        *(("decay", model) for model in ("coordinates", "one frequency")),
        *(("error", model) for model in ("coordinates", "xpos")),
        ("grid", "sections"),
    ],
)
def test_a_figure_of_a_model_can_be_read(name, model):
    figure = drawn(name, False, model)
    check_text(figure, 5 if name == "sheet" else 9)
    check_legends(figure)
    check_axes(figure)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_background(colours):
    assert contrast(colours.text, colours.background) >= 7
    for line in (*colours.lines, colours.quiet):
        assert contrast(line, colours.background) >= 3
    assert len(set(colours.lines)) == len(colours.lines) == len(theme.DASHES)


def test_every_figure_is_described_in_sentences():
    for figure in figures.FIGURES.values():
        assert figure.description.endswith(".")
        assert len(figure.description) > 80
        assert "\n" not in figure.description


# What is shown.


def test_wavelengths_are_one_turn_over_the_frequencies():
    found = lines(drawn("wavelengths"))
    assert list(found) == ["unscaled", *scaling.RULES]
    for name, (pairs, values) in found.items():
        rope = scaling.example(scaling.RULES.get(name))
        length = 131_072 if name == "LongRoPE" else None
        np.testing.assert_array_equal(pairs, np.arange(48))
        np.testing.assert_array_equal(values, math.tau / rope.frequencies(length))


def test_wavelengths_of_a_model_are_those_of_its_axes():
    found = lines(drawn("wavelengths", model="sections"))
    assert {name: len(pairs) for name, (pairs, _) in found.items()} == {
        "time axis": 16,
        "height axis": 24,
        "width axis": 24,
    }
    _, values = lines(drawn("wavelengths", model="sections"))["width axis"]
    np.testing.assert_array_equal(values, math.tau / MODELS["sections"][0].frequencies()[40:])


def test_pairs_that_never_turn_have_no_wavelength():
    figure = drawn("wavelengths", model="proportional")
    found = lines(figure)
    assert (len(found["scaled"][0]), len(found["unscaled"][0])) == (8, 32)


def test_contexts_are_marked():
    said = {text.get_text() for text in texts(drawn("wavelengths"))}
    assert {"trained on 4096", "context 131 072"} <= said
    said = {text.get_text() for text in texts(drawn("wavelengths", model="llama3"))}
    assert {"trained on 8192", "context 131 072"} <= said
    assert not [t for t in texts(drawn("wavelengths", model="plain")) if "context" in t.get_text()]


def test_rules_keep_or_divide_frequencies_as_they_say():
    found = lines(drawn("scaling"))
    np.testing.assert_allclose(found["PI"][1], 1 / 32, rtol=1e-15)
    before, ratios = found["Llama 3"]
    assert set(ratios[before < 4096 / 4]) == {1.0}
    np.testing.assert_allclose(ratios[before > 4096], 1 / 32, rtol=1e-15)
    _, ratios = found["NTK"]
    assert ratios[0] == 1
    np.testing.assert_allclose(ratios[-1], 1 / 32, rtol=1e-13)
    np.testing.assert_allclose(1 / found["LongRoPE"][1][[0, -1]], [1.08, 64.84], rtol=1e-13)


def test_scaling_of_a_model_is_its_own():
    ((before, ratios),) = lines(drawn("scaling", model="llama3")).values()
    assert set(ratios[before < 8192 / 4]) == {1.0}
    np.testing.assert_array_equal(ratios[before > 8192], 1 / 8)
    found = lines(drawn("scaling", model="dynamic"))
    assert list(found) == ["length 2048", "length 4096"]
    assert set(found["length 2048"][1]) == {1.0}
    np.testing.assert_allclose(found["length 4096"][1][-1], 1 / 3, rtol=1e-13)


def test_decay_starts_at_1_and_is_roformers_bound():
    for number in (0, 1):
        for name, (where, values) in lines(drawn("decay"), number).items():
            assert (where[0], values[0]) == (0, 1)
            assert values[-1] < 0.3, name
    omega = 10_000.0 ** (-np.arange(64) / 64)
    angles = 7 * omega
    sums = [abs(sum(np.exp(1j * angles[:count]))) for count in range(1, 65)]
    where, bounds = lines(drawn("decay"), 1)["base 10 000"]
    assert where[7] == 7
    np.testing.assert_allclose(bounds[7], np.mean(sums) / np.mean(np.arange(1, 65)), rtol=1e-13)
    _, scores = lines(drawn("decay"), 0)["base 10 000"]
    np.testing.assert_allclose(scores[7], np.cos(angles).mean(), rtol=1e-13)


def test_a_point_of_the_decay_beyond_the_first_is_a_mean_in_its_band():
    for curve in decay.curves(None, None):
        for band in (curve.scores, curve.bounds):
            assert np.all(band.low <= band.mean + 1e-15)
            assert np.all(band.mean <= band.high + 1e-15)
            assert band.low[-1] < band.mean[-1] < band.high[-1]


def test_the_tables_of_rotary_stay_at_half_an_ulp_and_usual_practice_does_not():
    found = lines(drawn("error"))
    assert list(found) == [
        "positions in bfloat16",
        "angles in float32",
        "angles in float64",
        "rotary, float32",
        "rotary, float64",
    ]
    assert found["rotary, float32"][1].max() <= 2.0**-25
    assert found["rotary, float64"][1].max() <= 2.0**-54 * 1.002
    assert error.half_ulp(error.EXAMPLE, None) == 2.0**-25
    where, errors = found["angles in float32"]
    assert errors[where > 100_000].min() > 1e-3
    assert found["positions in bfloat16"][1][where < 256].max() <= 2.0**-25
    assert found["positions in bfloat16"][1][where > 256].min() > 0.1
    assert found["angles in float64"][1][-1] > 1e-12


def test_errors_of_a_model_reach_up_to_its_context_with_its_attention_factor():
    rope, _ = MODELS["longrope"]
    found = lines(drawn("error", model="longrope"))
    where, errors = found["rotary, float32"]
    assert 65_536 < where[-1] < 131_072
    assert 1 < rope.attention_factor(131_072) < 2
    assert error.half_ulp(rope, None) == 2.0**-24
    assert 2.0**-25 < errors.max() <= 2.0**-24


def test_positions_that_are_coordinates_are_drawn_as_such():
    for where, _ in lines(drawn("error", model="coordinates")).values():
        assert 0.8 < where[-1] <= 1
    where, scores = lines(drawn("decay", model="coordinates"))["along width"]
    assert 1.8 < where[-1] <= 2
    assert scores[0] == 1


def test_with_xpos_there_is_no_usual_practice_to_compare_with():
    assert list(lines(drawn("error", model="xpos"))) == ["rotary, float32", "rotary, float64"]


def test_arrows_are_the_tables():
    cos, sin = rotation.EXAMPLES[0].tables(range(7))
    axes = drawn("rotation").axes[:4]
    for pair, one in enumerate(axes):
        ends = [text.xy for text in one.texts]
        np.testing.assert_array_equal(ends, np.stack([cos[:, pair], sin[:, pair]], -1))


def test_cells_of_one_number_make_a_pair():
    cells = [text.get_text() for text in drawn("rotation").axes[-1].texts]
    assert "".join(cells) == "0123012300112233"


def test_a_models_pairs_are_shown_from_fast_to_slow():
    assert rotation.shown_pairs(LLAMA3) == [0, 21, 42, 63]
    assert rotation.shown_pairs(MODELS["one frequency"][0]) == [0]


def test_attention_weights_are_those_of_the_formulas():
    found = attention.maps()
    q, k = attention.sample()
    later = np.triu(np.ones((32, 32), bool), 1)
    for name, weights in found.items():
        assert not weights[later].any()
        if name != "RoPE, linear":
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
            assert weights.min() >= 0
    assert found["RoPE, linear"].min() < 0

    def turned(x: np.ndarray) -> np.ndarray:
        omega = 100.0 ** (-np.arange(16) / 16)
        return (x[0, :, :16] + 1j * x[0, :, 16:]) * np.exp(1j * np.arange(32)[:, None] * omega)

    scores = (turned(q) @ turned(k).conj().T).real / math.sqrt(32)
    scores[later] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found["RoPE"], weights, rtol=1e-10, atol=1e-300)
    shown = drawn("attention").axes[4].images[0].get_array()
    np.testing.assert_allclose(shown[31], 32 * weights[31], rtol=1e-10)


def test_scores_of_patches_are_means_of_cosines():
    found = grid.patches(grid.MODELS["Qwen2-VL, vision"])
    assert found.scores[15, 15] == 1
    omega = 10_000.0 ** (-np.arange(20) / 20)
    expected = (np.cos(3 * omega).sum() + np.cos(5 * omega).sum()) / 40
    np.testing.assert_allclose(found.scores[18, 10], expected, rtol=1e-12)
    # Taken as they come, and not as mirrored: rows are height.
    rope = rotary.RotaryEmbedding(8, axes=position_axes.Axial((3, 1)))
    tall = grid.patches(rope).scores
    assert tall[16, 15] < tall[15, 15]
    expected = (np.cos(10_000.0 ** (-np.arange(3) / 3)).sum() + 1) / 4
    np.testing.assert_allclose(tall[16, 15], expected, rtol=1e-12)


def test_costs_are_those_of_a_cache_and_of_a_state():
    costs = cost.measure()
    assert costs.cache == {n: 2 * n * 64 * 4 for n in (128, 256, 512)}
    assert set(costs.state.values()) == {4 * 2 * (64 * 64 + 64) + 4}
    assert all(seconds > 0 for seconds in (*costs.softmax.values(), *costs.linear.values()))
    assert list(lines(drawn("cost"))["linear attention"][0]) == [128, 256, 512]


def test_terms_above_the_line_are_negative_in_places_and_below_it_never():
    above, below = signs.terms()
    assert below.min() > 0
    assert 0.1 < (above < 0).mean() < 0.2
    shown = drawn("signs").axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown == 1, above > 0)
    assert "14% negative" in drawn("signs").axes[0].get_title()
    # Without its rotation, the diagonal is the same: the angle is none.
    np.testing.assert_allclose(np.diag(above), np.diag(below), rtol=1e-5)


def test_codes_are_those_of_the_library():
    integer, binary, sines = encodings.codes().values()
    np.testing.assert_array_equal(integer[:, 0] * 64, np.arange(64))
    np.testing.assert_array_equal(binary @ 2 ** np.arange(6), np.arange(64))
    np.testing.assert_array_equal(sines[0], [0] * 16 + [1] * 16)
    images = [axes.images[0].get_array() for axes in drawn("encodings").axes[:3]]
    for image, code in zip(images, (integer, binary, sines), strict=True):
        np.testing.assert_array_equal(image, code)


def test_the_heading_of_a_sheet_says_what_the_model_is():
    assert drawn("sheet", model="llama3").get_suptitle() == (
        "head_dim 128, 64 pairs (half), base 500 000, context 131 072\n"
        "scaling Llama3, factor 8, trained on 8192"
    )
    assert models.facts(MODELS["sections"][0]).endswith(
        "Sections of 16, 24, 24 pairs: time, height, width"
    )
    assert models.facts(MODELS["plain"][0]) == (
        "head_dim 64, 16 pairs (interleaved, leading), base 10 000"
    )
    assert "XPos, scale base 512" in models.facts(MODELS["xpos"][0])


# How it is drawn.


def svg(name: str, to: Path) -> bytes:
    figures.write(figures.draw(name), to)
    return to.read_bytes()


def test_the_same_bytes_each_time_from_threads_too(tmp_path):
    names = ["error", "signs", "scaling", "error"]
    with ThreadPoolExecutor(3) as pool:
        files = [tmp_path / f"{number}.svg" for number in range(len(names))]
        threaded = list(pool.map(svg, names, files))
    alone = {name: svg(name, tmp_path / "alone.svg") for name in set(names)}
    assert [alone[name] for name in names] == threaded
    assert not [content for content in threaded if b"<dc:date>" in content]


def test_matplotlib_is_imported_late_and_pyplot_never():
    code = (
        "import sys, rotary.figures as f\n"
        "assert not [m for m in sys.modules if m.startswith(('matplotlib', 'mpmath'))]\n"
        "f.draw('encodings')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None if name == "matplotlib" else 1)
    with pytest.raises(
        ImportError, match=r"^figures need matplotlib: pip install 'rotary\[check]'$"
    ):
        figures.draw("decay")


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_files_are_of_the_kind_that_their_suffix_says(tmp_path, suffix):
    file = tmp_path / f"figure{suffix}"
    figures.write(drawn("encodings"), file)
    head = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
    assert file.read_bytes().startswith(head)
    first = file.read_bytes()
    figures.write(drawn("encodings"), file)
    assert file.read_bytes() == first


# What is refused.


def test_bad_arguments_are_refused(refused, tmp_path):
    with refused(ValueError, "name", "'decai'", "decay"):
        figures.draw("decai")
    for name in set(figures.FIGURES) - set(OF_MODEL):
        with refused(ValueError, "model", repr(name), "decay"):
            figures.draw(name, LLAMA3)
    with refused(TypeError, "model", "dict"):
        figures.draw("decay", {"head_dim": 64})
    with refused(TypeError, "model", "None"):
        figures.sheet(None)
    with refused(ValueError, "context", "4096"):
        figures.draw("decay", context=4096)
    with refused(ValueError, "context", "0"):
        figures.sheet(LLAMA3, context=0)
    with refused(ValueError, "model", "1 position axis", "height and width"):
        figures.draw("grid", LLAMA3)
    with refused(ValueError, "file", ".jpg", ".svg, .png or .pdf"):
        figures.write(drawn("encodings"), tmp_path / "figure.jpg")


# The command.

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "max_position_embeddings": 131_072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
GEMMA = {
    "model_type": "gemma3_text",
    "head_dim": 256,
    "num_hidden_layers": 6,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


@pytest.fixture
def plot(capsys):
    """Run ``rotary plot``; return its status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["plot", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def config(tmp_path):
    """Return the path of a config."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    return file


@pytest.fixture
def asked(monkeypatch):
    """Collect what is drawn instead of drawing it."""
    calls = []

    def collect(*arguments, **keywords):
        calls.append((arguments, keywords))
        return drawn("encodings")

    monkeypatch.setattr(command, "draw", collect)
    monkeypatch.setattr(command, "sheet", collect)
    return calls


@pytest.mark.parametrize("arguments", [(), ("--list",), ("decay", "--list")])
def test_the_figures_are_listed(plot, arguments):
    status, out, err = plot(*arguments)
    assert (status, err) == (0, "")
    for name, figure in figures.FIGURES.items():
        assert f"{name}: {figure.title}" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_figure_is_written(plot, tmp_path):
    file = tmp_path / "encodings.svg"
    assert plot("encodings", "-o", file) == (0, f"wrote {file}\n", "")
    assert file.read_bytes() == svg("encodings", tmp_path / "again.svg")
    light = file.read_bytes()
    assert plot("encodings", "-o", file, "--dark")[0] == 0
    assert file.read_bytes() != light


def test_several_figures_have_a_file_each(plot, asked, tmp_path):
    status, out, _ = plot("decay", "signs", "decay", "-o", tmp_path / "out.svg")
    assert status == 0
    assert [a for a, _ in asked] == [("decay",), ("signs",)]
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["out_decay.svg", "out_signs.svg"]
    assert out.count("wrote ") == 2


def test_a_config_gives_its_sheet(plot, asked, config, tmp_path):
    for given in (config, config.parent):
        assert plot(given, "-o", tmp_path / "model.svg")[0] == 0
    rope = rotary.from_config(CONFIG)
    assert asked == [((rope,), {"context": 131_072, "dark": False})] * 2


def test_a_name_and_a_config_give_the_figure_of_that_model(plot, asked, config, tmp_path):
    status, _, _ = plot("wavelengths", config, "-o", tmp_path / "w.png", "--context", 9000)
    assert status == 0
    rope = rotary.from_config(CONFIG)
    assert asked == [(("wavelengths", rope), {"context": 9000, "dark": False})]


def test_a_figure_of_a_config_is_that_of_its_embedding(plot, config, tmp_path):
    file, same = tmp_path / "model.svg", tmp_path / "same.svg"
    assert plot("scaling", config, "-o", file)[0] == 0
    figures.write(figures.draw("scaling", rotary.from_config(CONFIG), context=131_072), same)
    assert file.read_bytes() == same.read_bytes()


def test_layer_types_and_parts_are_chosen(plot, asked, tmp_path):
    file = tmp_path / "gemma.json"
    file.write_text(json.dumps({"model_type": "gemma3", "text_config": GEMMA}))
    status, _, err = plot(file, "-o", tmp_path / "x.svg")
    assert status == 2
    assert "layer_type" in err
    assert "--layer-type" in err
    assert "sliding_attention" in err
    arguments = ("--layer-type", "sliding_attention", "--part", "text_config")
    assert plot(file, "-o", tmp_path / "x.svg", *arguments)[0] == 0
    assert asked[0][0][0].base == 10_000.0
    assert asked[0][1]["context"] == 32_768


def test_what_a_config_holds_without_effect_is_said(plot, asked, tmp_path):
    file = tmp_path / "c.json"
    rope = {"rope_type": "linear", "factor": 2.0, "beta_fast": 32.0}
    file.write_text(json.dumps({**CONFIG, "rope_parameters": rope}))
    status, _, err = plot(file, "-o", tmp_path / "x.svg")
    assert status == 0
    assert len(asked) == 1
    assert err.startswith(f"rotary plot: {file}: ")
    assert "beta_fast" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("decai", "-o", "x.svg"), ("NAME: got decai", "did you mean decay?", "wavelengths")),
        (("nothing-like-it", "-o", "x.svg"), ("NAME: got nothing-like-it, expected", "cost")),
        (("signs", "config.json", "-o", "x.svg"), ("NAME: got signs with a config", "decay")),
        (("decay",), ("-o: got nothing", ".svg, .png or .pdf")),
        (("decay", "-o", "x.jpg"), ("-o: got x.jpg", ".svg, .png or .pdf")),
        (("decay", "-o", "x"), ("-o: got x,", ".svg, .png or .pdf")),
        (("decay", "-o", "none/x.svg"), ("-o: there is no folder none",)),
        (("none.json", "-o", "x.svg"), ("CONFIG: cannot read none.json", "No such file")),
        (("empty", "-o", "x.svg"), ("CONFIG: cannot read empty/config.json",)),
        (("broken.json", "-o", "x.svg"), ("CONFIG: broken.json: ",)),
        (("list.json", "-o", "x.svg"), ("CONFIG: list.json: ", "expected an object")),
        (("bert.json", "-o", "x.svg"), ("CONFIG: bert.json: ", "bert")),
        (("config.json", "list.json", "-o", "x.svg"), ("CONFIG: got 2",)),
        (("config.json", "-o", "x.svg", "--part", "text"), ("CONFIG: config.json: part",)),
        (("config.json", "-o", "x.svg", "--context", "0"), ("--context: got 0",)),
        (("grid", "config.json", "-o", "x.svg"), ("model: got 1 position axis",)),
        (("decay", "-o", "x.svg", "--part", "text_config"), ("--part: ", "without a config")),
        (("decay", "-o", "x.svg", "--context", "9"), ("--context: ", "without a config")),
    ],
    ids=lambda value: " ".join(value) if value[-1:] == ("x.svg",) else None,
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    plot, config, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bert.json").write_text('{"model_type": "bert", "hidden_size": 768}')
    before = sorted(os.listdir(tmp_path))
    status, out, err = plot(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("rotary plot: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert sorted(os.listdir(tmp_path)) == before


def test_the_command_says_when_matplotlib_is_missing(plot, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "matplotlib" else 1)
    status, _, err = plot("decay", "-o", tmp_path / "x.svg")
    assert (status, err) == (2, "rotary plot: needs matplotlib: pip install 'rotary[check]'\n")
    assert plot("--list")[0] == 0

"""The site: ``pip install '.[docs]' && sphinx-build -W docs site``, from any folder."""

from __future__ import annotations

import sys
from pathlib import Path

import rotary

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "rotary"
author = "The rotary developers"
copyright = "The rotary developers, Apache-2.0"
version = release = rotary.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "conformance_table",
    "docstrings",
    "mathml",
    "rotary_figure",
]
exclude_patterns = ["_extensions", "examples", "gallery", "**/sg_execution_times.rst"]

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# Blocks whose lexer would mark what is no mistake, such as "…", are shown as they are.
suppress_warnings = ["misc.highlighting_failure"]
html_math_renderer = "mathml"

# What is public, from its docstrings; their types stand in words beside the parameters.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autosummary_generate = False
default_role = "code"
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"
add_module_names = False
python_maximum_signature_line_length = 80
nitpicky = True
# Classes of other libraries, which bases and properties name.
nitpick_ignore_regex = [
    (r"py:.*", r"(?:collections|dask|equinox|flax|jax|matplotlib|numpy|onnx|torch|typing)\..*"),
    (r"py:class", r"(?:object|tuple|Protocol|NamedTuple|Exception|ImportError|ValueError)"),
    (r"py:class", r"(?:TypeError|RuntimeError|Module|Any)"),
    # Rooms that are not public, which those who extend rotary find in its source.
    (r"py:.*", r"rotary\.(?:angles|linear\.chunks|rotation|tables)(?:\..*)?"),
]

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["auto_gallery"],
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "within_subsection_order": "FileNameSortKey",
}

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "rotary"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7fb4e8", "color-brand-content": "#7fb4e8"},
}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

"""Docstrings as they are read in a terminal, made into what Sphinx reads.

There ``|x|`` is a length and an indented paragraph is a formula; in reStructuredText the first is a
substitution and the second a quotation, whose lines flow together.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

LITERAL = re.compile(r"(``.+?``)")


def formulas(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make literal blocks of indented paragraphs behind text; before numpydoc reads sections."""
    made: list[str] = []
    before = ""
    for line in lines:
        begins = line.startswith("    ") and made and not made[-1].strip()
        if begins and re.match(r"[^\s\-*=.]", before) and not before.endswith("::"):
            made += [".. code-block:: text", ""]
        made.append(line)
        before = line if line.strip() else before
    lines[:] = made


def lengths(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep bars as they are, outside of what is literal already; numpydoc has read the sections."""
    literal = None  # indentation below which a literal block ends
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None and not line.lstrip().startswith((">>>", "...")):
            parts = LITERAL.split(line)
            parts[::2] = (part.replace("|", r"\|") for part in parts[::2])
            lines[i] = "".join(parts)
        if re.search(r"(?<!\.\. note)::$|^ *\.\. code-block::", line):
            literal = indent


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", formulas, priority=400)
    app.connect("autodoc-process-docstring", lengths, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

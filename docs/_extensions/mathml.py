"""Equations as MathML, which browsers draw themselves: no script, no font, nothing to load."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
# What docutils knows by another name alone.
SYNONYMS = ((r"\\dots(?![A-Za-z])", r"\\ldots"), (r"\\([bB]igg?)(?![A-Za-z])", r"\\\1l"))


def visit_inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_written(node, block=False))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    ids = "".join(f' id="{name}"' for name in node["ids"][:1])
    writer.body.append(f'<div class="math"{ids}>{number}{_written(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _written(node: nodes.Element, *, block: bool) -> str:
    formula = node.astext()
    for pattern, known in SYNONYMS:
        formula = re.sub(pattern, known, formula)
    try:
        return tex2mathml(formula, as_block=block)
    except MathError as error:
        logger.warning("an equation cannot be read: %s\n%s", error, node.astext(), location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

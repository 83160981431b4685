"""Figures that the library draws while the site is built: ``{rotary-figure} NAME``, and a caption.

One picture is drawn for a light page and one for a dark page; the theme shows the one that fits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import rotary.figures

THEMES = {"only-light": False, "only-dark": True}
_drawn: set[Path] = set()


class RotaryFigure(SphinxDirective):
    """A figure of ``rotary.figures`` by its name; the content is its caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in rotary.figures.FIGURES:
            known = ", ".join(rotary.figures.FIGURES)
            raise self.error(f"rotary-figure: got {name!r}, expected one of {known}")
        figure = nodes.figure("", classes=["rotary-figure"])
        self.set_source_info(figure)
        for theme, dark in THEMES.items():
            file = self._draw(name, dark)
            image = nodes.image(
                "",
                uri=f"/{file.relative_to(self.env.srcdir).as_posix()}",
                alt=rotary.figures.FIGURES[name].description,
                classes=[theme],
            )
            figure += image
        if self.content:
            caption = nodes.caption("", "")
            for child in self.parse_content_to_nodes():
                caption += child.children if isinstance(child, nodes.paragraph) else child
            figure += caption
        return [figure]

    def _draw(self, name: str, dark: bool) -> Path:
        """Draw a figure once a build, whatever number of pages shows it."""
        folder = Path(self.env.srcdir) / "_static" / "figures"
        file = folder / f"{name}-{'dark' if dark else 'light'}.svg"
        if file not in _drawn:
            folder.mkdir(parents=True, exist_ok=True)
            # Whole at once, as another process may draw the same one for another page.
            part = file.with_suffix(f".{os.getpid()}.svg")
            rotary.figures.write(rotary.figures.draw(name, dark=dark), part)
            part.replace(file)
            _drawn.add(file)
        return file


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("rotary-figure", RotaryFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

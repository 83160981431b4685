"""What depends on a model, on one page: four figures under its facts."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from rotary.embedding import RotaryEmbedding
from rotary.figures import decay, error, scaling, wavelengths
from rotary.figures.models import facts
from rotary.figures.theme import Theme

SIZE = (12.8, 10.4)
_PARTS: dict[str, Any] = {
    "wavelengths": wavelengths,
    "scaling": scaling,
    "decay": decay,
    "error": error,
}
_TITLES = {
    "wavelengths": "How long one turn of each pair takes",
    "scaling": "What scaling does to each frequency",
    "decay": "Scores fall with distance",
    "error": "Error of cos by position",
}


def draw(theme: Theme, model: RotaryEmbedding, context: int | None) -> Figure:
    """Draw them, two by two."""
    figure = theme.figure(SIZE, facts(model, context))
    parts: Any = figure.subfigures(2, 2, wspace=0.02, hspace=0.02)
    for part, (name, drawing) in zip(parts.flat, _PARTS.items(), strict=True):
        part.set_facecolor(theme.background)
        theme.title(part, _TITLES[name])
        drawing.draw(part, theme, model, context)
    return figure

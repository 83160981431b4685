"""How figures look: colours for a light and for a dark background, axes, legends.

Colours of lines are Okabe and Ito's, which colour-blind people tell apart, darkened or lightened
for the background; lines differ in their dashes too.  All is set on the objects themselves, since
Matplotlib's settings are global and not safe between threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure, FigureBase

SMALL, USUAL, LARGE = 10.5, 11.5, 13.0
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    "-",
    (0, (3, 2)),
)


@dataclass(frozen=True)
class Theme:
    """Colours.

    Attributes
    ----------
    background, text, grid : str
    quiet : str
        Of lines to compare with.
    lines : tuple of str
        Of what is compared, in the order in which it is used.
    ramp : tuple of str
        From nothing to much.
    negative : str
        Below nothing, beside the ramp.
    around : tuple of str
        From −1 over 0 to 1.
    """

    background: str
    text: str
    grid: str
    quiet: str
    lines: tuple[str, ...]
    ramp: tuple[str, ...]
    negative: str
    around: tuple[str, ...]

    def figure(self, size: tuple[float, float], title: str) -> Figure:
        """Return an empty figure."""
        figure = Figure(figsize=size, layout="constrained", facecolor=self.background)
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
        self.title(figure, title)
        return figure

    def title(self, figure: FigureBase, title: str) -> None:
        """Write a title above a figure or a part of one."""
        figure.suptitle(title, fontsize=LARGE, color=self.text)

    def panel(
        self, axes: Axes, *, x: str, y: str, title: str = "", grid: bool = True, frame: bool = False
    ) -> Axes:
        """Give axes their names, units and colours."""
        axes.set_facecolor(self.background)
        axes.set_xlabel(x, fontsize=USUAL, color=self.text)
        axes.set_ylabel(y, fontsize=USUAL, color=self.text)
        axes.set_title(title, fontsize=USUAL, color=self.text)
        axes.tick_params(which="both", labelsize=SMALL, labelcolor=self.text, color=self.quiet)
        for side, spine in axes.spines.items():
            spine.set_color(self.quiet)
            spine.set_visible(frame or side in ("left", "bottom"))
        axes.set_axisbelow(True)
        if grid:
            axes.grid(color=self.grid, linewidth=0.7)
        return axes

    def line(self, number: int) -> dict[str, Any]:
        """Return colour and dashes of the line of that number; the last is for a reference."""
        return {
            "color": self.lines[number % len(self.lines)],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 2.0,
        }

    def styles(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the style of each line; what is unscaled is the reference."""
        numbers = iter(range(len(self.lines)))
        return [self.line(-1 if name == "unscaled" else next(numbers)) for name in names]

    def legend(self, figure: FigureBase, panels: Iterable[Axes], columns: int = 3) -> None:
        """Say below the figure what the lines of its axes are."""
        found = [axes.get_legend_handles_labels() for axes in panels]
        handles = [handle for one, _ in found for handle in one]
        labels = [label for _, one in found for label in one]
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=SMALL,
            labelcolor=self.text,
            handlelength=2.6,
            columnspacing=1.4,
        )

    def colour_bar(self, figure: FigureBase, image: Any, axes: Any, label: str, **how: Any) -> Any:
        """Say beside axes what the colours of an image are."""
        bar: Any = figure.colorbar(image, ax=axes, **how)
        bar.set_label(label, fontsize=USUAL, color=self.text)
        bar.ax.tick_params(labelsize=SMALL, labelcolor=self.text, color=self.quiet)
        bar.outline.set_edgecolor(self.quiet)
        return bar

    def ramp_map(self) -> Colormap:
        """Return the colours from nothing to much; below nothing is another colour."""
        colours = LinearSegmentedColormap.from_list("ramp", self.ramp)
        return colours.with_extremes(under=self.negative, bad=self.background)

    def around_map(self) -> Colormap:
        """Return the colours from −1 to 1."""
        return LinearSegmentedColormap.from_list("around", self.around)


LIGHT = Theme(
    background="#ffffff",
    text="#1f2328",
    grid="#e3e6ea",
    quiet="#7a828c",
    lines=("#0072b2", "#d55e00", "#00805e", "#b0478f", "#8a6d00", "#3b3f46"),
    ramp=("#e8eff6", "#86b8dc", "#1f6fb0", "#06254a"),
    negative="#e07b39",
    around=("#b3470a", "#f0b48a", "#f7f7f7", "#86b8dc", "#0b4f8a"),
)
DARK = Theme(
    background="#131416",
    text="#e6e8eb",
    grid="#2b2f35",
    quiet="#8b949e",
    lines=("#56b4e9", "#f5894a", "#2fcf9f", "#e79ac8", "#e8d44d", "#c9ced6"),
    ramp=("#1d2733", "#2a629b", "#6db9ee", "#f0f8ff"),
    negative="#d9692a",
    around=("#ff9d5c", "#8a4a20", "#22262c", "#2a629b", "#7cc8fa"),
)


def number(value: float) -> str:
    """Return a number as text, thousands apart from five digits on: 4096, 131 072."""
    if value != int(value):
        return f"{value:g}"
    text = f"{int(value):,}".replace(",", " ")
    return text if abs(value) >= 10_000 else text.replace(" ", "")

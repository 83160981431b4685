"""Pictures of a run: time by size and the share of the limit, or a dot for each contender.

Colours are Okabe and Ito's, which colour-blind people tell apart; marks and lines differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rotary.benchmarks import timing
from rotary.benchmarks.report import Measured, Report, by_size, duration, shown, size, titled
from rotary.benchmarks.timing import Spread, Timed

# Colour, mark, line.
_STYLES = (
    ("#D55E00", "s", "--"),
    ("#0072B2", "o", "-"),
    ("#009E73", "^", "-"),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-."),
    ("#56B4E9", "P", "--"),
    ("#000000", "X", ":"),
    ("#B8A000", "d", "-."),
)
_LIBRARIES = {"memory": 6, "numpy": 1, "torch": 0, "jax": 2, "cupy": 3}
_OF_TEXT: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "rotary bench",
    "axes.titlesize": 10.5,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
}
_REFERENCE = {"rotation": "copy, *", "linear": "torch, SDPA"}


def write(report: Report, file: Path) -> list[Path]:
    """Draw each group of a report into a file of its own, and return the files.

    ``out.svg`` becomes ``out_rotation.svg`` and so on; a group whose cases differ in more than size
    has several, which are numbered.
    """
    written = []
    with mpl.rc_context(_OF_TEXT):
        for group in dict.fromkeys(found.case.group for found in report.measured):
            pictures = _pictures([f for f in report.measured if f.case.group == group])
            for number, picture in enumerate(pictures, 1):
                end = f"_{number}" if len(pictures) > 1 else ""
                to = file.with_name(f"{file.stem}_{group}{end}{file.suffix}")
                metadata = {"Date": None} if file.suffix == ".svg" else {}
                picture.savefig(to, metadata=metadata, dpi=150)
                written.append(to)
    return written


def _pictures(cases: list[Measured]) -> list[Picture]:
    cases = [found for found in cases if found.timed]
    alike = by_size(cases)
    if alike:
        return [_by_size(one) for one in alike]
    if cases and cases[0].case.group in ("tables", "decode"):
        return [_dots(cases)]
    return [_dots([found]) for found in cases]


def _by_size(cases: Sequence[Measured]) -> Picture:
    """Draw time, and the share of the limit, by tokens: a column for each library."""
    group = cases[0].case.group
    libraries = [
        name
        for name in dict.fromkeys(t.contender.library for found in cases for t in found.timed)
        if name != "memory"
    ]
    picture = Picture(figsize=(3.6 * len(libraries) + 0.6, 7.2), layout="constrained")
    axes = picture.subplots(2, len(libraries), sharex=True, sharey="row", squeeze=False)
    kinds = list(
        dict.fromkeys(
            _kind(t.contender.title)
            for found in cases
            for t in found.timed
            if t.contender.library != "memory" and t.contender.title != "matrix product"
        )
    )
    for column, library in enumerate(libraries):
        above, below = axes[0][column], axes[1][column]
        _lines(above, cases, library, kinds, _seconds)
        _lines(below, cases, library, kinds, _share)
        if not _REFERENCE[group].startswith(library):
            _reference(above, cases, group)
        above.set(xscale="log", yscale="log", title=library)
        above.yaxis.set_major_formatter(FuncFormatter(_tick))
        above.yaxis.set_minor_formatter(NullFormatter())
        below.set(ylim=(0, 1.1 if group == "rotation" else None), xlabel="tokens")
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        if group == "rotation":
            below.axhline(1.0, color="#888888", lw=1, ls=(0, (4, 2)))
    axes[0][0].set_ylabel("time of a call (log scale)")
    limit = "share of the limit (copy's time ÷ time)"
    if group == "linear":
        limit = "share of the fastest matrix product's FLOP/s"
    axes[1][0].set_ylabel(limit)
    marks = {
        label: handle
        for one in axes[0]
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    picture.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=4)
    threads = cases[0].case.parameters["threads"]
    heads = cases[0].case.parameters["heads"]
    what = {
        "rotation": f"Rotation of (1, {heads}, tokens, 128)",
        "linear": f"Causal linear attention, {heads} heads of 64",
    }[group]
    given = cases[0].case.parameters
    form = f", {given['form']}" if "form" in given else ""
    counted = f"{threads} thread{'s' * (threads > 1)}"
    picture.suptitle(f"{what}, {given['dtype']}{form}, {counted}", fontsize=11)
    return picture


def _kind(title: str) -> str:
    """Return what has one style in every library; JAX has most of it under jit alone."""
    return title if title == "ours, jit" else title.removesuffix(", jit")


def _seconds(found: Measured, timed: Timed) -> float | None:
    return timing.spread(timed.times).median


def _share(found: Measured, timed: Timed) -> float | None:
    """Return the share of the limit: of a copy's speed, or of the peak."""
    for figure in timed.contender.figures:
        if figure.heading in ("× copy", "share of peak"):
            value = found.value(timed, figure)
            if value is not None:
                return 1 / value.median if figure.kind == "times" else value.median
    return None


def _lines(
    axes: Axes,
    cases: Iterable[Measured],
    library: str,
    kinds: Sequence[str],
    value: Callable[[Measured, Timed], float | None],
) -> None:
    titles = dict.fromkeys(
        t.contender.title for found in cases for t in found.timed if t.contender.library == library
    )
    for title in titles:
        if _kind(title) not in kinds:
            continue
        points = [
            (size(found.case), at)
            for found in cases
            if (timed := found.find(f"{library}, {title}")) is not None
            and (at := value(found, timed)) is not None
        ]
        if points:
            colour, mark, line = _STYLES[kinds.index(_kind(title)) % len(_STYLES)]
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=mark,
                ls=line,
                ms=4.5,
                lw=1.4,
                label=_kind(title),
            )


def _reference(axes: Axes, cases: Sequence[Measured], group: str) -> None:
    pattern = _REFERENCE[group]
    found = [(size(one.case), t) for one in cases if (t := one.find(pattern)) is not None]
    if found:
        points = [(at, timing.spread(t.times).median) for at, t in found]
        axes.plot(
            *zip(*points, strict=True),
            color="#888888",
            ls=(0, (4, 2)),
            lw=1.2,
            label=found[0][1].name,
        )


def _dots(cases: Sequence[Measured]) -> Picture:
    """Draw a panel for each case, in it a dot with its quartiles for each contender."""
    rows = [len(found.timed) for found in cases]
    height = 0.24 * sum(rows) + 1.0 * len(rows)
    picture = Picture(figsize=(8.4, height), layout="constrained")
    panels = picture.subplots(len(rows), squeeze=False, height_ratios=rows)
    for axes, found in zip(panels[:, 0], cases, strict=True):
        _panel(axes, found)
    return picture


def _panel(axes: Axes, found: Measured) -> None:
    copies = found.case.group == "rotation"
    timed = [one for one in found.timed if one.contender.title != "matrix product"]
    for row, one in enumerate(timed):
        spread = timing.spread(one.times)
        label, ratio = duration(spread.median), _ratio(found, one)
        if ratio is not None:
            label = f"{ratio[0]}   {label}"
            spread = ratio[1] if copies else spread
        colour, mark, _ = _STYLES[_LIBRARIES.get(one.contender.library, 4)]
        axes.plot([spread.low, spread.high], [row, row], color=colour, lw=2.2, alpha=0.45)
        axes.plot([spread.median], [row], color=colour, marker=mark, ms=6, ls="none")
        bounds = [g.bound for g in one.contender.goals if g.figure.kind == "seconds"]
        for bound in bounds:
            axes.plot([bound, bound], [row - 0.4, row + 0.4], color="#000000", lw=1.6)
        axes.annotate(
            label,
            (max(spread.high, *bounds, spread.median), row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    title = f"{found.case.group}: {titled(found.case)}"
    axes.set(xscale="log", yticks=range(len(timed)), title=title)
    axes.set_yticklabels([one.name for one in timed])
    axes.set_ylim(len(timed) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    if copies:
        axes.axvline(1.0, color="#888888", lw=1, ls=(0, (4, 2)))
        axes.set_xlabel("time as a multiple of a copy into existing memory (log scale)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        aimed = any(g.figure.kind == "seconds" for one in timed for g in one.contender.goals)
        bars = "; black bar: goal" if aimed else ""
        axes.set_xlabel(f"time of a call (log scale{bars})")
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    low, high = axes.get_xlim()
    high *= (high / low) ** 0.25  # room for the last labels
    axes.set_xlim(low, high)
    between = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=between))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ratio(found: Measured, timed: Timed) -> tuple[str, Spread] | None:
    """Return the figure that a contender's time is told with."""
    for figure in timed.contender.figures:
        if figure.heading in ("× copy", "share of peak"):
            value = found.value(timed, figure)
            if value is not None:
                share = figure.kind == "share"
                return f"{shown(figure, value.median)}{' of peak' * share}", value
    return None


def _tick(value: float, place: int | None = None) -> str:
    """Return a time on an axis."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if value >= 0.999 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:g} s"

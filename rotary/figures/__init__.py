"""Pictures that explain rotary embeddings, computed by this library when they are drawn.

Each file beside this one draws one figure.  They are drawn with Matplotlib, which comes with
``pip install 'rotary[check]'`` and is imported when a figure is; no state of ``pyplot`` is touched,
so that threads may draw at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rotary.checks import whole
from rotary.embedding import RotaryEmbedding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "SUFFIXES", "Description", "draw", "sheet", "write"]

NEEDS = ("matplotlib", "ml_dtypes", "mpmath")
SUFFIXES = (".svg", ".png", ".pdf")
"""What :func:`write` writes."""
_PNG_DOTS_PER_INCH = 160
# Matplotlib renders with global settings and fonts.
_rendering = threading.Lock()


@dataclass(frozen=True)
class Description:
    """What a figure is.

    Attributes
    ----------
    title : str
        As it stands above the figure.
    description : str
        What can be seen, for those who cannot see it: alternative text.
    of_model : bool
        Whether :func:`draw` takes a model for it.
    """

    title: str
    description: str
    of_model: bool = False


FIGURES: Mapping[str, Description] = MappingProxyType(
    {
        "rotation": Description(
            "Each pair of features turns at a speed of its own",
            "Four circles, from the fastest pair of features to the slowest, with an arrow for "
            "each of the first seven positions: the first pair goes all the way round, the last "
            "hardly moves. Below, which features make up a pair: far apart in the half layout, "
            "neighbours in the interleaved one.",
            of_model=True,
        ),
        "wavelengths": Description(
            "How many tokens one turn of each pair takes",
            "Wavelength by pair on a logarithmic scale, one line a scaling rule: from about six "
            "tokens for the first pair to tens of thousands for the last, and up to 65 times "
            "more after scaling. Horizontal lines mark the context of training and the extended "
            "one.",
            of_model=True,
        ),
        "scaling": Description(
            "What each scaling rule does to each frequency",
            "New frequency divided by the old one, by wavelength: Position Interpolation divides "
            "all by 32, NTK more the longer the wavelength, YaRN and Llama 3 keep short "
            "wavelengths, divide long ones by 32 and pass from one to the other between, LongRoPE "
            "has a searched factor for each.",
            of_model=True,
        ),
        "decay": Description(
            "Scores fall with distance, the slower the larger the base",
            "Two panels over distance on a logarithmic scale, a line for each base from 100 to "
            "1 000 000. Above, the score of two equal vectors; below, RoFormer's bound on all "
            "scores. Both start at 1 and fall, with larger bases later.",
            of_model=True,
        ),
        "attention": Description(
            "The same queries and keys under six encodings",
            "Six causal attention maps on one colour scale. Without positions, weights do not "
            "depend on the distance. Sinusoidal codes, T5's bias, ALiBi and rotation favour near "
            "tokens; rotated linear attention does so faintly, and some of its weights far from "
            "the query are negative.",
        ),
        "error": Description(
            "Error of cos by position: usual practice rises, rotary stays flat",
            "Largest error of cos over all pairs against position, both logarithmic. Positions in "
            "bfloat16 are wholly wrong from a few hundred on, angles in float32 by percents at a "
            "million, and angles in float64 rise as well; the tables of rotary stay at half a "
            "unit in the last place, in float32 and in float64.",
            of_model=True,
        ),
        "grid": Description(
            "Images: which patches are near, which axis turns which pair",
            "Above, the score of the centre patch with every patch of a 31 by 31 image, for the "
            "vision tower of Qwen2-VL, for Pixtral and for DINOv3: high in the middle and along "
            "its row and column. Below, the frequency of each pair, coloured by the axis that "
            "turns it, height or width.",
            of_model=True,
        ),
        "cost": Description(
            "Cost by length, timed on the machine that drew this",
            "Left, time of causal attention over a whole sequence: softmax grows with the square "
            "of the length, linear attention in proportion to it. Right, memory that decoding "
            "keeps: a cache of keys and values grows with every token, the state of linear "
            "attention does not.",
        ),
        "signs": Description(
            "RoFormer's linear attention: where terms are negative",
            "Left, a map of query and key positions with the sign of each term of RoFormer's "
            "numerator: one in seven is negative. Right, their mean for each query, which the "
            "rotation makes smaller, beside that of the denominator, whose terms stay positive.",
        ),
        "encodings": Description(
            "A position as an integer, as binary digits and as sines",
            "Three heat maps over 64 positions: one column that grows, six columns of digits that "
            "alternate twice as slowly from one to the next, and sinusoidal columns that do the "
            "same without steps.",
        ),
    }
)
"""The figures by name."""


def draw(
    name: str,
    model: RotaryEmbedding | None = None,
    *,
    context: int | None = None,
    dark: bool = False,
) -> Figure:
    """Draw a figure.

    Parameters
    ----------
    name : str
        A key of :data:`FIGURES`.
    model : RotaryEmbedding, optional
        Draw this one instead of the examples, where the figure has ``of_model``.
    context : int, optional
        The longest sequence of that model, in tokens; by default what its scaling rule says.  For
        rules whose frequencies depend on the length it is the length.
    dark : bool
        Light text and lines on a dark background.

    Returns
    -------
    matplotlib.figure.Figure
        The same each time, but for ``"cost"``, which is timed.

    Raises
    ------
    ImportError
        Without Matplotlib, mpmath and ml_dtypes.
    TypeError, ValueError
        For an unknown name, a model for a figure that takes none, a context without a model.

    Examples
    --------
    >>> import rotary
    >>> from rotary import figures
    >>> rope = rotary.RotaryEmbedding(64, scaling=rotary.scaling.YaRN(4.0, 4096))
    >>> figures.draw("scaling", rope).axes[0].get_ylabel()
    'new frequency ÷ old (ratio)'
    """
    if name not in FIGURES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(FIGURES)}")
    of_model = FIGURES[name].of_model
    if model is not None and not of_model:
        able = ", ".join(other for other, figure in FIGURES.items() if figure.of_model)
        raise ValueError(f"model: got one for {name!r}, which draws none, expected one of {able}")
    _check(model, context)
    drawing, theme = _imported(name), _theme(dark)
    figure: Figure = theme.figure(drawing.SIZE, FIGURES[name].title)
    drawing.draw(figure, theme, *((model, context) if of_model else ()))
    return _laid_out(figure)


def sheet(model: RotaryEmbedding, *, context: int | None = None, dark: bool = False) -> Figure:
    """Draw what depends on a model on one page: wavelengths, scaling, decay and error.

    Parameters
    ----------
    model, context, dark
        As for :func:`draw`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As :func:`draw`.

    Examples
    --------
    >>> import rotary
    >>> from rotary import figures
    >>> page = figures.sheet(rotary.RotaryEmbedding(32), context=2048)
    >>> page.get_suptitle().splitlines()[0]
    'head_dim 32, 16 pairs (half), base 10 000, context 2048'
    """
    if model is None:
        raise TypeError("model: got None, expected a RotaryEmbedding")
    _check(model, context)
    figure: Figure = _imported("page").draw(_theme(dark), model, context)
    return _laid_out(figure)


def write(figure: Figure, file: str | Path) -> None:
    """Write a figure as SVG, PNG or PDF, by the file's suffix: the same bytes for the same figure.

    Raises
    ------
    OSError
        Where the file cannot be written.
    ValueError
        For another suffix.

    Examples
    --------
    >>> from rotary import figures
    >>> figures.write(figures.draw("encodings"), "encodings.bmp")
    Traceback (most recent call last):
    ...
    ValueError: file: got encodings.bmp, expected a name that ends in .svg, .png or .pdf
    """
    import matplotlib as mpl

    suffix = Path(file).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"file: got {file}, expected a name that ends in .svg, .png or .pdf")
    dates = {".svg": {"Date": None}, ".png": {}, ".pdf": {"CreationDate": None}}
    with _rendering, mpl.rc_context({"svg.hashsalt": "rotary"}):
        figure.savefig(file, metadata=dates[suffix], dpi=_PNG_DOTS_PER_INCH)


def _check(model: Any, context: Any) -> None:
    if model is not None and not isinstance(model, RotaryEmbedding):
        raise TypeError(f"model: got {type(model).__name__}, expected a RotaryEmbedding")
    if context is not None:
        if model is None:
            raise ValueError(f"context: got {context} without a model, expected None")
        whole("context", context)


def _laid_out(figure: Figure) -> Figure:
    """Fix where everything stands: a second layout, of a second file, would move it a little."""
    with _rendering:
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _imported(name: str) -> Any:
    missing = [module for module in NEEDS if find_spec(module) is None]
    if missing:
        raise ImportError(f"figures need {', '.join(missing)}: pip install 'rotary[check]'")
    return import_module(f"rotary.figures.{name}")


def _theme(dark: bool) -> Any:
    themes = _imported("theme")
    return themes.DARK if dark else themes.LIGHT

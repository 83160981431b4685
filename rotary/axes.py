"""Several position axes: which axis turns which pair, and with which frequency.

    angle_i = p[axis_i]·ω_i,        ω_i = θ^(−2e_i/F_i)

Text has one axis, images have two (height, width), video has three (time, height, width).  Models
differ in how they deal the pairs out: sections of one series of frequencies (M-RoPE, Qwen2-VL,
arXiv 2409.12191), or a series for each axis (axial; Pixtral, Llama 4, DINOv3 and others).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rotary.checks import check_bool, check_choice, count, whole

__all__ = ["Axial", "Sections", "grid"]

_SECTION_ORDERS = ("blocks", "cycled", "first_axis_last")
_AXIAL_ORDERS = ("blocks", "cycled")
_FREQUENCIES = ("own", "dealt")
# Neighbouring whole numbers are apart in float64 up to here.
_LIMIT = 2**53


class Series(NamedTuple):
    """Pairs whose frequencies are θ^(−2j/dim), j = 0, 1, … in the order of `pairs`."""

    pairs: tuple[int, ...]
    dim: int


class Axes(Protocol):
    """What a description of several axes answers."""

    @property
    def count(self) -> int:
        """Number of axes."""
        ...

    @property
    def pairs(self) -> int:
        """R/2."""
        ...

    @property
    def axis_of_pair(self) -> tuple[int, ...]:
        """The axis that turns each pair."""
        ...

    @property
    def in_turns(self) -> bool:
        """Whether frequencies are turns instead of radians per position."""
        ...

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Pairs in each block of features that is laid out on its own; None for one block."""
        ...

    def series(self, frequency_dim: int) -> tuple[Series, ...]:
        """Return the series that the frequencies come from; each is scaled on its own."""
        ...


@dataclass(frozen=True)
class Sections:
    """Sections of one series of frequencies, a section an axis: M-RoPE.

    Pair i has the frequency that it has with one axis, so that positions whose axes are equal, as
    text has them, rotate to the same bits as without axes.

    Parameters
    ----------
    sizes : sequence of int
        Pairs of each axis, R/2 together; the axes are those of `positions`, for models of text and
        images time, height and width.
    order : {"blocks", "cycled", "first_axis_last"}
        ``"blocks"``: one axis after the other (Qwen2-VL, ``mrope_section``).  ``"cycled"``: in
        turns T H W T H W …, each axis but the first up to its size (Qwen3-VL,
        ``mrope_interleaved``).  ``"first_axis_last"``: the other axes in turns H W H W …, then the
        first (Ernie 4.5 VL).

    Raises
    ------
    TypeError, ValueError
        For sizes that are no whole numbers above 0 or have no place in that order.

    Examples
    --------
    >>> import rotary
    >>> rotary.axes.Sections([2, 3, 3]).axis_of_pair
    (0, 0, 1, 1, 1, 2, 2, 2)
    >>> rotary.axes.Sections([4, 2, 2], order="cycled").axis_of_pair
    (0, 1, 2, 0, 1, 2, 0, 0)
    >>> rotary.axes.Sections([2, 3, 3], order="first_axis_last").axis_of_pair
    (1, 2, 1, 2, 1, 2, 0, 0)
    >>> sections = rotary.axes.Sections([16, 24, 24])
    >>> rope = rotary.RotaryEmbedding(128, base=1e6, axes=sections)
    """

    sizes: tuple[int, ...]
    order: str = "blocks"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", _sizes(self.sizes))
        check_choice("order", self.order, _SECTION_ORDERS)
        if self.order == "first_axis_last":
            _check_equal(self.sizes[1:], self.sizes, "for all axes but the first, which take turns")
        placed = tuple(map(self.axis_of_pair.count, range(self.count)))
        if placed != self.sizes:
            raise ValueError(
                f"sizes: got {self.sizes}, expected sizes that leave room for turns T H W T H W …: "
                f"here only for {placed}"
            )

    @property
    def count(self) -> int:
        """Number of axes."""
        return len(self.sizes)

    @property
    def pairs(self) -> int:
        """R/2."""
        return sum(self.sizes)

    @property
    def axis_of_pair(self) -> tuple[int, ...]:
        """The axis that turns each pair."""
        if self.order == "blocks":
            return tuple(axis for axis, size in enumerate(self.sizes) for _ in range(size))
        if self.order == "first_axis_last":
            others = tuple(range(1, self.count)) * self.sizes[-1]
            return others + (0,) * self.sizes[0]
        axes = [0] * self.pairs
        for axis, size in enumerate(self.sizes[1:], 1):
            for pair in range(axis, min(self.count * size, self.pairs), self.count):
                axes[pair] = axis
        return tuple(axes)

    @property
    def in_turns(self) -> bool:
        """False: frequencies are radians per position."""
        return False

    @property
    def blocks(self) -> None:
        """None: the features are laid out as with one axis."""
        return

    def series(self, frequency_dim: int) -> tuple[Series, ...]:
        """Return the one series."""
        return (Series(tuple(range(self.pairs)), frequency_dim),)


@dataclass(frozen=True)
class Axial:
    """A series of frequencies for each axis: images and video.

    Parameters
    ----------
    sizes : sequence of int
        Pairs of each axis, R/2 together; the axes are those of `positions`: height and width, or
        time, height and width.
    order : {"blocks", "cycled"}
        ``"blocks"``: one axis after the other (Qwen2-VL's vision tower).  ``"cycled"``: in turns
        (Kimi-VL, EfficientLoFTR).
    axis_order : sequence of int, optional
        Which axis comes first: ``(1, 0)`` where width stands before height (Llama 4, Kimi-VL).
    frequencies : {"own", "dealt"}
        ``"own"``: every axis has θ^(−2j/(2·size)), j = 0, 1, ….  ``"dealt"``: one series
        θ^(−2i/R), dealt out to the axes in turns: even i for height, odd i for width (Pixtral).
    split_features : bool
        Whether each axis rotates a block of features of its own, laid out like a small head
        (W·W·H·H, Gemma 4), instead of all first members standing before all second members
        (H·W·H·W).  Means nothing to the interleaved layout.
    in_turns : bool
        Whether frequencies are turns instead of radians per position: angle 2π·p·θ^(…), as DINOv3
        has it for coordinates between −1 and 1.

    Raises
    ------
    TypeError, ValueError
        For sizes that are no whole numbers above 0, an `axis_order` that is none, sizes that differ
        where axes take turns.

    Examples
    --------
    >>> import rotary
    >>> vision = rotary.RotaryEmbedding(8, axes=rotary.axes.Axial([2, 2]))
    >>> vision.frequencies()
    array([1.  , 0.01, 1.  , 0.01])
    >>> pixtral = rotary.RotaryEmbedding(8, axes=rotary.axes.Axial([2, 2], frequencies="dealt"))
    >>> pixtral.frequencies()
    array([1.   , 0.01 , 0.1  , 0.001])
    >>> video = rotary.axes.Axial([8, 28, 28])
    >>> video.axis_of_pair.count(0), video.axis_of_pair.count(1)
    (8, 28)
    """

    sizes: tuple[int, ...]
    order: str = "blocks"
    axis_order: tuple[int, ...] = None  # type: ignore[assignment]  # filled in: as they come
    frequencies: str = "own"
    split_features: bool = False
    in_turns: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("sizes", _sizes(self.sizes))
        check_choice("order", self.order, _AXIAL_ORDERS)
        check_choice("frequencies", self.frequencies, _FREQUENCIES)
        given = range(self.count) if self.axis_order is None else self.axis_order
        put("axis_order", _permutation(given, self.count))
        for name in ("split_features", "in_turns"):
            check_bool(name, getattr(self, name))
        if self.order == "cycled":
            _check_equal(self.sizes, self.sizes, "for axes that take turns")
        if self.frequencies == "dealt":
            _check_equal(self.sizes, self.sizes, "where one series is dealt out")
        if self.split_features and self.order == "cycled":
            raise ValueError(
                "split_features: got True, expected False: with order='cycled' no axis has a block"
            )

    @property
    def count(self) -> int:
        """Number of axes."""
        return len(self.sizes)

    @property
    def pairs(self) -> int:
        """R/2."""
        return sum(self.sizes)

    @property
    def axis_of_pair(self) -> tuple[int, ...]:
        """The axis that turns each pair."""
        if self.order == "cycled":
            return self.axis_order * self.sizes[0]
        return tuple(axis for axis in self.axis_order for _ in range(self.sizes[axis]))

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Pairs in each block of features, where every axis has one."""
        return tuple(self.sizes[axis] for axis in self.axis_order) if self.split_features else None

    def series(self, frequency_dim: int) -> tuple[Series, ...]:
        """Return one series for each axis, or the one that is dealt out."""
        axes = self.axis_of_pair
        of_axis = [tuple(i for i, a in enumerate(axes) if a == axis) for axis in self.axis_order]
        if self.frequencies == "own":
            return tuple(Series(pairs, 2 * len(pairs)) for pairs in of_axis)
        dealt = tuple(pair for turn in zip(*of_axis, strict=True) for pair in turn)
        return (Series(dealt, frequency_dim),)


def grid(
    height: int,
    width: int,
    *,
    frames: int | None = None,
    merge: int = 1,
    start: int = 0,
    centered: bool = False,
    before: int = 0,
    after: int = 0,
) -> npt.NDArray[np.float64]:
    """Return the positions of an image's or a video's tokens, row by row.

    Parameters
    ----------
    height, width : int
        Patches along each side.
    frames : int, optional
        Images in a video; the axes are then time, height and width.
    merge : int
        Side of the squares of patches that follow one another, as models have them that merge such
        squares into one token (2 in Qwen2-VL's vision tower).
    start : int
        The first position of every axis: 1 in Llama 4 and EfficientLoFTR.
    centered : bool
        Centres of patches between −1 and 1 instead of whole numbers, (2i + 1)/n − 1: DINOv3.
    before, after : int
        Tokens in front of or behind the patches that are no patches, a class token or registers:
        they stand at position 0, where nothing rotates.

    Returns
    -------
    array, shape (axes, tokens)
        float64: rows height and width, or time, height and width.

    Raises
    ------
    TypeError, ValueError
        For a grid without patches, sides that `merge` does not divide, centres beside a start.

    Notes
    -----
    What families take beside the sides, as read from transformers 5.23.0:

    =================================================  ===========================================
    Pixtral, Kimi-K2.5, Step 3.7, Gemma 4, SAM 2       nothing
    Vision of Qwen2-VL to Qwen3.5, GLM-4V, Ernie 4.5   ``merge=2``; for a video the last two axes
                                                       of ``frames=n, merge=2``
    Text of these, for an image at position p          ``frames=n, start=p``, sides after merging
    MiniMax-M3-VL                                      ``frames=n, merge=2``
    Llama 4                                            ``start=1, after=1``
    Inkling 2                                          ``merge=n, start=1, before=1``
    Muse, EfficientLoFTR                               ``start=1``
    DINOv3, EoMT-DINOv3, Sapiens 2                     ``centered=True, before=1 + registers``
    =================================================  ===========================================

    Rows are height before width for all of them; where a model's own positions have the width
    first, as Gemma 4's, Muse's and those of SAM, ``axis_order=(1, 0)`` says so.

    Examples
    --------
    >>> import rotary
    >>> rotary.axes.grid(2, 3)
    array([[0., 0., 0., 1., 1., 1.],
           [0., 1., 2., 0., 1., 2.]])
    >>> rotary.axes.grid(2, 2, start=1, after=1)  # a class token behind the patches
    array([[1., 1., 2., 2., 0.],
           [1., 2., 1., 2., 0.]])
    >>> rope = rotary.RotaryEmbedding(64, axes=rotary.axes.Axial([16, 16]))
    >>> cos, sin = rope.tables(rotary.axes.grid(4, 6, merge=2))
    >>> cos.shape
    (24, 32)
    """
    sides = [whole("height", height), whole("width", width)]
    if frames is not None:
        sides.insert(0, whole("frames", frames))
    merge = whole("merge", merge)
    for name, side in zip(("height", "width"), sides[-2:], strict=True):
        if side % merge:
            raise ValueError(f"{name}: got {side}, expected a multiple of merge = {merge}")
    check_bool("centered", centered)
    start = _number("start", start)
    if centered and start != 0:
        raise ValueError(f"start: got {start} beside centered=True, expected 0")
    if abs(start) + max(sides) > _LIMIT:
        raise ValueError(f"start: got {start}, expected positions within ±2^53 = ±{_LIMIT}")
    along = [(2.0 * np.arange(n) + 1 - n) / n if centered else np.arange(n) + start for n in sides]
    cells = np.stack(np.meshgrid(*along, indexing="ij")).astype(np.float64)
    # (axes, …, height/merge, merge, width/merge, merge): the squares' own axes go last.
    squares = cells.reshape(*cells.shape[:-2], sides[-2] // merge, merge, sides[-1] // merge, merge)
    patches = np.swapaxes(squares, -3, -2).reshape(len(sides), -1)
    return np.pad(patches, ((0, 0), (count("before", before), count("after", after))))


def check_axes(axes: Any, rotary_dim: int) -> None:
    """Raise unless `axes` describes the axes of R/2 pairs."""
    if not isinstance(axes, Sections | Axial):
        raise TypeError(f"axes: got {axes!r}, expected rotary.axes.Sections(...) or Axial(...)")
    if 2 * axes.pairs != rotary_dim:
        raise ValueError(
            f"axes: got sizes {axes.sizes}, {axes.pairs} pairs together, expected rotary_dim/2 = "
            f"{rotary_dim // 2}"
        )


def _sizes(given: Any) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"sizes: got {given!r}, expected whole numbers, one for each axis")
    sizes = tuple(whole("sizes", size) for size in given)
    if len(sizes) < 2:
        raise ValueError(f"sizes: got {sizes}, expected at least two axes")
    return sizes


def _permutation(given: Any, count: int) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"axis_order: got {given!r}, expected whole numbers")
    order = tuple(_number("axis_order", axis) for axis in given)
    if sorted(order) != list(range(count)):
        raise ValueError(f"axis_order: got {order}, expected each of 0 to {count - 1} once")
    return order


def _check_equal(sizes: tuple[int, ...], shown: tuple[int, ...], reason: str) -> None:
    if len(set(sizes)) > 1:
        raise ValueError(f"sizes: got {shown}, expected equal sizes {reason}")


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    return int(value)

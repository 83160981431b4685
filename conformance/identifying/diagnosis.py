"""What was found, as an answer: a sentence, an embedding, what it leaves out, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape

import rotary
from rotary.conformance.identifying import words
from rotary.conformance.identifying.model import Model


@dataclass(frozen=True)
class Diagnosis:
    """What a box computes.

    Attributes
    ----------
    explained : bool
        Whether the embedding below, with the notes, gives the outputs of the box.
    finding : str
        One sentence.
    evidence : tuple of str
        What was asked and seen.
    rope : RotaryEmbedding or None
        The embedding, None where nothing explains the outputs.
    notes : tuple of str
        What the embedding does not express: direction, origin, order of features, precision,
        memory.
    direction : int
        1, or −1 where it turns by the opposite angle.
    origin : float
        The position that it gives to position 0.
    reads, writes : tuple of int or None
        Orders of features: the box gives ``rope(x[..., reads])[..., writes]``.
    reads_layout, writes_layout : str
        "half", "interleaved" or "permuted".
    precision : dict
        What positions, inv_freq, angles and tables are rounded to: names of dtypes, "float64" for
        float64 or better.
    history : tuple of str
        How outputs depend on what was asked before; empty where they do not.
    changes_input : bool
        Whether it wrote to its x.
    takes : str
        "positions" by value, "rows" counted from 0, or the "first" position.
    last_position : int
        The last position at which it was seen to hold.
    """

    explained: bool
    finding: str
    evidence: tuple[str, ...]
    rope: rotary.RotaryEmbedding | None = None
    notes: tuple[str, ...] = ()
    direction: int = 1
    origin: float = 0.0
    reads: tuple[int, ...] | None = None
    writes: tuple[int, ...] | None = None
    reads_layout: str = ""
    writes_layout: str = ""
    precision: dict[str, str] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    changes_input: bool = False
    takes: str = "positions"
    last_position: int = 0

    @property
    def expression(self) -> str:
        """The embedding as Python writes it, to be evaluated after ``import rotary``."""
        return "" if self.rope is None else words.expression(self.rope)

    def apply(self, x: npt.ArrayLike, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return what the box should give for x (..., seq, dim) at positions (seq,), in float64.

        Raises
        ------
        ValueError
            If the box could not be explained.
        """
        if self.rope is None:
            raise ValueError("apply: the box could not be explained")
        model = Model(self.rope, self.direction, self.origin, self.reads, self.writes)
        return model.apply(np.asarray(x, np.float64), np.asarray(positions, np.float64))

    def show(self, console: Console) -> None:
        """Print the finding, the embedding, the notes and the evidence."""
        style = "bold green" if self.explained else "bold red"
        console.print(f"[{style}]{escape(self.finding)}[/]", soft_wrap=True)
        if self.explained:
            console.print(f"\n  {escape(self.expression)}\n", soft_wrap=True, highlight=False)
        for note in self.notes:
            console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
        for line in self.evidence:
            console.print(f"· {escape(line)}", style="dim", soft_wrap=True)

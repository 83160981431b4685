"""What a foreign implementation of rotary embeddings computes, told from its outputs alone.

x is free, so unit vectors show which features turn together, positions that double give each
frequency to many digits, other positions show how angles are rounded, and longer sequences show
what depends on the length.  A finding counts only if a ``RotaryEmbedding`` with it gives the box's
outputs for random x, within what the precision that was found explains.
"""

from __future__ import annotations

from dataclasses import replace

from rotary.conformance.identifying.asking import Function, RefusedError, open_box
from rotary.conformance.identifying.diagnosis import Diagnosis
from rotary.conformance.identifying.examination import Examination
from rotary.conformance.identifying.structure import UnexplainedError

__all__ = ["Diagnosis", "RefusedError", "identify"]


def identify(
    function: Function,
    *,
    head_dim: int | None = None,
    dtype: str | None = None,
    other: Function | None = None,
    longest: int = 2**20,
) -> Diagnosis:
    """Tell from its outputs what a function computes that rotates x to positions.

    Parameters
    ----------
    function : callable
        (x, positions) → rotated x; x is a NumPy array (batch, heads, seq, dim), positions a NumPy
        array (seq,) of int64, or float64 where they are fractions.  It may ignore the positions
        and count rows.
    head_dim : int, optional
        dim; by default the first of the usual sizes that the function takes.
    dtype : str, optional
        Of x; by default the first of float32, float64, bfloat16, float16 that it takes.
    other : callable, optional
        The same implementation built with other numbers, such as another base: it is asked in
        between, to see if the two share a memory.
    longest : int
        The longest sequence to ask for; positions are sparse, so that this costs little where
        they are taken by value.

    Returns
    -------
    Diagnosis

    Raises
    ------
    RefusedError
        A ValueError, if the function answers nothing at all.

    Examples
    --------
    >>> import numpy as np
    >>> from rotary.conformance import identify
    >>> def turned(x, positions):  # Meta's way, in complex numbers
    ...     angle = positions[:, None] / 500_000.0 ** (np.arange(0, 64, 2) / 64)
    ...     pairs = x.astype(np.float64).reshape(*x.shape[:-1], 32, 2)
    ...     z = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
    ...     return np.stack([z.real, z.imag], axis=-1).reshape(x.shape).astype(x.dtype)
    >>> identify(turned, head_dim=64).expression
    "rotary.RotaryEmbedding(64, base=500000.0, layout='interleaved')"
    """
    box = open_box(function, head_dim, dtype)
    evidence = [f"asked with head_dim {box.head_dim} in {box.dtype}"]
    examination = Examination(box, other, longest, evidence)
    try:
        diagnosis = examination.diagnosis()
    except (UnexplainedError, RefusedError) as reason:
        finding = f"It could not be explained: {reason}."
        remembered = tuple(examination.remembered)
        diagnosis = Diagnosis(
            False, finding, tuple(evidence), notes=remembered, history=remembered, takes=box.takes
        )
    if box.changes_input:
        note = "it writes to its input x"
        diagnosis = replace(diagnosis, changes_input=True, notes=(*diagnosis.notes, note))
    return replace(diagnosis, evidence=(*diagnosis.evidence, f"asked {box.calls} times"))

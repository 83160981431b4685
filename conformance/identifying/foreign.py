"""A foreign function, class or object as a box: its arguments, its library, its shapes.

It is called as ``rotary check --implementation`` calls it.  Batch rows are handed over one by one,
so that it may take a batch of one, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import rotary
from rotary.conformance import implementation as foreign
from rotary.conformance.identifying.asking import Function
from rotary.conformance.implementation import Implementation, NotCallableError, Shapes


def box(
    given: Any,
    *,
    embedding: rotary.RotaryEmbedding,
    config: Mapping[str, Any] | None = None,
    make: Mapping[str, Any] | None = None,
    arguments: str | None = None,
    keywords: Mapping[str, Any] | None = None,
    x_shape: str | None = None,
    tables_shape: str | None = None,
    library: str | None = None,
) -> Function:
    """Return a foreign implementation as a function of NumPy's x and positions.

    Parameters
    ----------
    given : str, callable or class
        ``package.module:name``, or what it names.
    embedding : RotaryEmbedding
        Its head_dim; and the tables for a function that takes cos and sin.
    config, make, arguments, keywords, x_shape, tables_shape, library
        As for :func:`rotary.conformance.check_implementation`.

    Raises
    ------
    NotCallableError
        Where it cannot be found, made or called.
    """
    function = foreign.load(given) if isinstance(given, str) else given
    function = foreign.made(function, make, config)
    usual = Shapes()
    one = foreign.adapted(
        function,
        arguments=arguments,
        keywords=keywords,
        shapes=Shapes(x_shape or usual.x, tables_shape or usual.tables),
        library=library,
        embedding=embedding,
    )
    return lambda x, positions: _rows_of_batch(one, embedding, x, positions)


def _rows_of_batch(
    one: Implementation,
    embedding: rotary.RotaryEmbedding,
    x: npt.NDArray[Any],
    positions: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    if one.implies_positions:
        # It counts rows: that is for the questions to find out.
        positions = np.arange(len(positions))
    pairs = foreign.pairs_of(embedding)
    tables = (np.zeros((len(positions), embedding.rotary_dim // 2), np.float32),) * 2
    if one.takes_tables:
        tables = embedding.tables(positions)
    at_once = x.shape[1] if "H" in one.shapes.x else 1
    rows = [
        _rotated(one(x[b : b + 1, h : h + at_once], positions, tables, pairs))
        for b in range(x.shape[0])
        for h in range(0, x.shape[1], at_once)
    ]
    return np.concatenate(rows).reshape(x.shape)


def _rotated(outputs: foreign.Outputs) -> npt.NDArray[Any]:
    if not outputs.rotated:
        raise NotCallableError("implementation: it returns cos and sin, and no rotated x")
    return outputs.rotated[0]

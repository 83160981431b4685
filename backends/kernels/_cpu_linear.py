"""Causal linear attention on the CPU: a library's arrays in, arrays of it out.

The numbers come from :mod:`rotary.backends.kernels._cpu_chunks`; here inputs are seen as memory,
16-bit ones are widened block by block, and rows are dealt to threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rotary.backends._protocol import Chunked, Memory
from rotary.backends.kernels import _threads
from rotary.backends.kernels._cpu_chunks import (
    CHUNK,
    MAPS,
    PLACEMENTS,
    Kind,
    Sizes,
    buffers_at,
    kernel,
)
from rotary.backends.kernels._cpu_tiles import LINE, REGISTER, ROWS
from rotary.dtypes import dtype_name

# Tokens that 16-bit inputs are widened for at a time; whole chunks.
_BLOCK = 32 * CHUNK
# Below this a second thread costs more than it saves.
_THREADED_BYTES = 2**18
# Bytes that features fill up: of whole registers, and of numbers for the rows of tiles.
_WIDEST = max(REGISTER, 8 * ROWS)


def attend_in(
    memory: Memory, chunked: Chunked, inputs: tuple[Any, ...], sums: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]] | None:
    """Return outputs (None without queries), and the sums after the tokens, for a library.

    inputs and sums are those of :mod:`rotary.linear.chunks`; None for a map that is not known here.
    """
    if chunked.feature_map not in MAPS:
        return None
    q, k, v = inputs[:3]
    high, low, z, log = carried = _carried(memory, sums)
    rest = [None if x is None else memory.seen(x) for x in inputs[3:]]
    dtype, tokens = high.dtype, k.shape[-2]
    out = None if q is None else memory.empty((*q.shape[:-1], v.shape[-1]), q)
    wide = all(dtype_name(x) == dtype.name for x in (q, k, v) if x is not None)
    step = tokens if wide else _BLOCK
    for t in range(0, tokens, step):
        here = slice(t, t + step)
        block = [_widened(memory, x, here, dtype.name) for x in (q, k, v)]
        block += [None if x is None else x[..., here, :] for x in rest]
        if out is None or wide:
            _attend(chunked, block, carried, None if out is None else memory.seen(out))
            continue
        result = memory.empty((*q.shape[:-2], block[0].shape[-2], v.shape[-1]), sums[0])
        _attend(chunked, block, carried, memory.seen(result))
        out[..., here, :] = result if q.dtype == result.dtype else memory.narrow(result, q.dtype)
    after: list[Any] = [high, low]
    after += [None, None] if z is None else [z[0], z[1]]
    after += [None, None] if log is None else [log[..., n, None, None].copy() for n in (0, 1)]
    return out, (*(None if x is None else memory.owned(x) for x in after), None)


def _carried(memory: Memory, sums: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return new memory with the sums: S, its low words, z and the log gates in two words each."""
    words: list[Any] = [None if x is None else memory.seen(x) for x in sums]
    high, low, z, z_low, log, log_low, _ = words
    return (
        np.array(high, order="C"),
        np.array(low, order="C"),
        None if z is None else np.stack((z, z_low)),
        None if log is None else np.stack((log[..., 0, 0], log_low[..., 0, 0]), axis=-1),
    )


def _widened(memory: Memory, x: Any, here: slice, dtype: str) -> Any:
    if x is None:
        return None
    x = x[..., here, :]
    return memory.seen(x if dtype_name(x) == dtype else memory.widen(x, dtype))


def _attend(chunked: Chunked, inputs: list[Any], sums: tuple[Any, ...], out: Any) -> None:
    """Write the outputs to out, and the sums after the tokens to sums."""
    high, low, z, log = sums
    q, k, v, gate, gate_low, _, mask, *tables = inputs
    batch, heads, _, tokens, dim = k.shape
    none = [np.empty((0,) * rank, high.dtype) for rank in range(6)]
    if q is None:
        q = out = none[5]
    cos, sin, key_cos, key_sin = (none[4] if x is None else _lines(x[:, :, 0]) for x in tables)
    if not key_cos.size:
        key_cos, key_sin = cos, sin
    pairs = cos.shape[-1]
    kind = Kind(
        MAPS[chunked.feature_map],
        PLACEMENTS[chunked.rotate],
        int(chunked.layout == "interleaved"),
        0 if chunked.side == "leading" else dim - 2 * pairs,
        pairs,
        int(chunked.eps is not None),
        int(gate is not None),
    )
    given = (
        *(_lines(q), _lines(k[:, :, 0]), _lines(v), out, cos, sin, key_cos, key_sin),
        none[3].view(np.uint8) if mask is None else mask[:, :, 0, :, 0].view(np.uint8),
        *(none[3] if x is None else x[..., 0] for x in (gate, gate_low)),
        *(high, low, none[4] if z is None else z[..., 0]),
        np.empty((batch, heads, 0), high.dtype) if log is None else log,
    )
    each = high.itemsize
    features = -(-dim * each // _WIDEST) * _WIDEST // each
    sizes = Sizes(tokens, q.shape[2], dim, features, v.shape[-1])
    room = buffers_at(0, sizes, kind, each)[1] // each + LINE
    numbers = high.dtype.type(chunked.scale), high.dtype.type(chunked.eps or 0.0)
    rows = batch * heads
    threads = _threads.get_num_threads()
    if k.nbytes + v.nbytes + high.nbytes < _THREADED_BYTES:
        threads = 1
    step, parts = max(1, -(-rows // threads)), []
    for first in range(0, rows, step):
        last = min(first + step, rows)
        work = np.empty(room, high.dtype)
        parts.append((*given, work, first, last, sizes, kind, *numbers))
    if parts:
        _threads.run(kernel(high.dtype), parts)


def _lines(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return x, or a copy where a row's numbers do not lie side by side."""
    return x if x.strides[-1] == x.itemsize or not x.size else np.ascontiguousarray(x)

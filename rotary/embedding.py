"""The rotary embedding: frequencies, tables and rotation joined.

q_m → R_m q_m,   (R_m q)·(R_n k) = q·R_{n−m} k        (RoFormer, arXiv 2104.09864, section 3.2)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rotary import backends, rotation
from rotary import tables as _tables
from rotary.axes import Axes, check_axes
from rotary.backends import Backend
from rotary.checks import check_choice, even_dim, positive, whole
from rotary.dtypes import dtype_name
from rotary.frequencies import (
    Frequencies,
    at_length,
    attention_factor,
    query_scale,
    radians,
    softmax_scale,
)
from rotary.host import copied, delivered, known_now, wanted
from rotary.positions import Rows, after_last, check_dtype, check_shape, read, read_rows
from rotary.scaling import Scaling, check_rule
from rotary.xpos import ROLES, XPos


class _Request(NamedTuple):
    """Which tables a call needs, and for what."""

    rows: Rows
    seq_len: Any
    wanted: backends.Wanted
    """For whatever length."""
    like: Any
    backend: Backend


class _Prepared(NamedTuple):
    """What the checks of q and k find, which depends on their kinds and shapes alone."""

    backend: Backend
    axis: int
    wanted: tuple[backends.Wanted, ...]
    """One for both, or one each."""
    turn: backends.Turn
    long: bool
    """Whether the tables might not fit."""


# By kinds and shapes; a dictionary's own operations are safe between threads.
_prepared: dict[Any, _Prepared] = {}
_PREPARED = 256


@dataclass(frozen=True)
class RotaryEmbedding:
    """Rotary position embedding of queries and keys.

    A description made of numbers: hashable, comparable, safe between threads, a static argument
    under ``jax.jit``.  It holds no arrays and no history: what a call returns depends on its
    arguments alone.

    Parameters
    ----------
    head_dim : int
        D, the size of the last axis of q and k.
    base : float
        θ in ω_i = θ^(−2i/F).
    layout : {"half", "interleaved"}
        Which features make a pair: (i, i + R/2) as in GPT-NeoX and Hugging Face's Llama, or
        (2i, 2i + 1) as in RoFormer, GPT-J and Meta's Llama.
    rotary_dim : int, optional
        R ≤ D, even: how many features rotate; all by default.  The rest pass through untouched.
    rotary_side : {"leading", "trailing"}
        Which features rotate when R < D.
    frequency_dim : int, optional
        F, R by default.
    inv_freq : sequence of float, optional
        R/2 frequencies in radians per position instead of the formula, taken as exact float64.
    scaling : dataclass of :mod:`rotary.scaling`, optional
        How the frequencies change to reach beyond the context of training.
    axes : Sections or Axial of :mod:`rotary.axes`, optional
        Which of several position axes turns which pair, for images, video and models of text with
        images.  Positions are then (axes, seq) or (axes, batch, seq); text, whose axes are equal,
        may leave them out: (seq,), or (1, batch, seq) with a row for each batch row.
    xpos : XPos, optional
        The scale of XPos beside the rotation: queries and keys then differ, and calls with one
        array need its ``role``.

    Raises
    ------
    TypeError, ValueError
        For values outside these ranges, naming the argument.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> rope = rotary.RotaryEmbedding(64, base=500_000.0)
    >>> q = np.ones((1, 8, 5, 64), np.float32)  # batch, heads, seq, dim
    >>> k = np.ones((1, 2, 5, 64), np.float32)
    >>> q_rotated, k_rotated = rope(q, k)
    >>> k_next = rope(k[:, :, :1], offset=5)  # a decoding step at position 5
    >>> rope == rotary.RotaryEmbedding(64, base=500_000.0)
    True
    """

    head_dim: int
    _: KW_ONLY
    base: float = 10_000.0
    layout: str = "half"
    rotary_dim: int = None  # type: ignore[assignment]  # filled in: head_dim
    rotary_side: str = "leading"
    frequency_dim: int = None  # type: ignore[assignment]  # filled in: rotary_dim
    inv_freq: tuple[float, ...] | None = None
    scaling: Scaling | None = None
    axes: Axes | None = None
    xpos: XPos | None = None
    _frequencies: Frequencies = field(init=False, repr=False, compare=False)
    _name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.xpos is not None and not isinstance(self.xpos, XPos):
            raise TypeError(f"xpos: got {self.xpos!r}, expected None or rotary.XPos(...)")
        check_choice("layout", self.layout, rotation.LAYOUTS)
        check_choice("rotary_side", self.rotary_side, rotation.SIDES)
        put("head_dim", whole("head_dim", self.head_dim))
        rotary_dim = _default(self.rotary_dim, self.head_dim)
        put("rotary_dim", even_dim("rotary_dim", rotary_dim, self.head_dim, "head_dim"))
        put("base", positive("base", self.base))
        put("frequency_dim", whole("frequency_dim", _default(self.frequency_dim, self.rotary_dim)))
        if self.axes is not None:
            self._check_axes()
        if self.inv_freq is not None:
            put("inv_freq", self._supplied_frequencies(self.inv_freq))
        frequencies = Frequencies(
            self.rotary_dim,
            self.base,
            self.frequency_dim,
            self.inv_freq,
            xpos=self.xpos,
            axes=self.axes,
        )
        if self.scaling is not None:
            for pairs, dim in frequencies.series:
                check_rule(self.scaling, len(pairs), dim)
        put("_frequencies", replace(frequencies, scaling=self.scaling))
        # All of it by value, in a word that keeps its hash.
        put("_name", f"{self.head_dim} {self.layout} {self.rotary_side} {self._frequencies.token}")

    def _check_axes(self) -> None:
        check_axes(self.axes, self.rotary_dim)
        assert self.axes is not None
        if self.xpos is not None:
            raise ValueError(f"xpos: got {self.xpos!r} beside axes, expected one of them")
        own = self.axes.series(self.frequency_dim) == self.axes.series(self.rotary_dim)
        if own and self.frequency_dim != self.rotary_dim:
            raise ValueError(
                f"frequency_dim: got {self.frequency_dim} beside axes with frequencies of their "
                f"own, expected {self.rotary_dim}"
            )

    def _supplied_frequencies(self, given: Iterable[Any]) -> tuple[float, ...]:
        for name, usual in (("base", 10_000.0), ("frequency_dim", self.rotary_dim)):
            if getattr(self, name) != usual:
                raise ValueError(
                    f"{name}: got {getattr(self, name)} beside inv_freq, which replaces it; "
                    f"expected one of them"
                )
        expected = f"rotary_dim/2 = {self.rotary_dim // 2}"
        try:
            values = tuple(float(+w) for w in given)  # float alone would read strings
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"inv_freq: got {type(given).__name__}, expected {expected} numbers: {error}"
            ) from error
        if len(values) != self.rotary_dim // 2:
            raise ValueError(f"inv_freq: got {len(values)} frequencies, expected {expected}")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"inv_freq: got {values}, expected finite numbers")
        return values

    def __call__(
        self,
        q: Any,
        k: Any = None,
        *,
        positions: Any = None,
        offset: Any = None,
        seq_len: int | None = None,
        seq_axis: int = -2,
        role: str | None = None,
        out: Any = None,
    ) -> Any:
        """Rotate queries, or queries and keys, to their positions.

        Parameters
        ----------
        q, k : array, shape (..., seq, head_dim)
            By default (batch, heads, seq, head_dim); k may have fewer heads.  float16, bfloat16,
            float32 or float64, of any array library.
        positions : array or list, shape (seq,) or (batch, seq), optional
            Whole or fractional numbers in a list, a NumPy array or an array of q's library.  With
            several axes (axes, seq) or (axes, batch, seq); without the first axis, or with one of
            length 1 before a batch axis, all axes are equal.
        offset : number, or one per batch row, optional
            Positions are offset … offset + seq − 1; 0 by default.  Not together with positions.
        seq_len : int, optional
            Length of the whole sequence, for the rules that depend on it (DynamicNTK, LongRoPE);
            by default the largest position + 1.  Where only a compiled program knows the
            positions, it has to be given; LongRoPE's may be known to the program alone, too.
        seq_axis : int
            −3 for (batch, seq, heads, head_dim) or packed (total, heads, head_dim).
        role : {"query", "key"}, optional
            What q is, with xpos and without k; with k, they are query and key.
        out : array, or a pair with k, optional
            Written in place and returned; may be q (and k) itself.

        Returns
        -------
        array, or a pair with k
            Of q's (and k's) shape, dtype, library and device.

        Raises
        ------
        TypeError
            For arrays of another kind, dtypes that do not rotate, 16-bit float positions.
        ValueError
            For shapes that do not meet, NaN or positions beyond ±2^53, `out` where it cannot be
            written, a `role` that is missing or means nothing.
        """
        return self._rotate(q, k, positions, offset, seq_len, seq_axis, role, out, inverse=False)

    def inverse(
        self,
        q: Any,
        k: Any = None,
        *,
        positions: Any = None,
        offset: Any = None,
        seq_len: int | None = None,
        seq_axis: int = -2,
        role: str | None = None,
        out: Any = None,
    ) -> Any:
        """Take the rotation, the attention factor and XPos's scale out; arguments as for the call.

        Examples
        --------
        >>> import numpy as np
        >>> import rotary
        >>> rope = rotary.RotaryEmbedding(8)
        >>> q = np.ones((3, 8), np.float64)
        >>> bool(np.allclose(rope.inverse(rope(q, offset=7), offset=7), q, rtol=1e-15))
        True
        """
        return self._rotate(q, k, positions, offset, seq_len, seq_axis, role, out, inverse=True)

    def shift(
        self,
        k: Any,
        by: Any,
        *,
        seq_len: int | None = None,
        seq_axis: int = -2,
        role: str | None = None,
    ) -> Any:
        """Move keys that were rotated already by a constant number of positions.

        Parameters
        ----------
        k : array, shape (..., seq, head_dim)
            Rotated keys, as a cache holds them.
        by : number, or one for each axis
            Positions to add to all of them, whole or fractional, negative to move back.
        seq_len : int, optional
            The length for which k was rotated; needed where the scaling rule depends on it.
        seq_axis : int
            As for the call; all positions move alike.
        role : {"query", "key"}, optional
            With xpos, what k is; "key" by default.

        Returns
        -------
        array
            What rotating to position + by would give, within the rounding of a second rotation.

        Examples
        --------
        >>> import numpy as np
        >>> import rotary
        >>> rope = rotary.RotaryEmbedding(8)
        >>> k = np.ones((3, 8), np.float64)
        >>> bool(np.allclose(rope.shift(rope(k), -2), rope(k, offset=-2), rtol=1e-14))
        True
        """
        backend, axis, compute = self._check("k", k, seq_axis)
        if by is None:
            raise TypeError("by: got None, expected a number")
        if seq_len is None and self.scaling is not None and self.scaling.needs_length:
            raise ValueError(
                f"seq_len: got None, expected the length for which k was rotated: "
                f"{type(self.scaling).__name__} depends on it"
            )
        sign = self._sign("key" if role is None and self.xpos is not None else role)
        wanted = self._wanted(0, sign, compute)
        request = _Request(self._rows_by(by, backend), seq_len, wanted, k, backend)
        return self._rotate_all((k,), request, self._look_up(request), axis, self._turn(False))[0]

    def tables(
        self,
        positions: Any,
        *,
        like: Any = None,
        dtype: Any = None,
        seq_len: int | None = None,
        role: str | None = None,
        precision: str = "exact",
    ) -> tuple[Any, Any]:
        """Return the tables cos and sin of these positions.

        Parameters
        ----------
        positions : array or list, shape (...)
            Whole or fractional numbers up to ±2^53.  With several axes of shape (axes, ...), or
            (1, ...) and (seq,) where all axes are equal.
        like : array, optional
            The tables come in its library and on its device; NumPy by default.
        dtype : dtype or str, optional
            float32 or float64; by default that in which `like` rotates, else float32.
        seq_len : int, optional
            As for the call.
        role : {"query", "key"}, optional
            With xpos, and needed there: whose tables.
        precision : {"exact", "float32"}
            Exact: float32 tables are correctly rounded, float64 tables within 0.501 ulp.
            "float32" rounds frequencies, positions and angles to float32 on the way, as the usual
            implementations do, for models that must see the numbers of their training: within
            2 ulp of transformers' tables, and as far from the truth (4e-3 at position 131 071).

        Returns
        -------
        cos, sin : array, shape (..., rotary_dim/2)

        Examples
        --------
        >>> import rotary
        >>> cos, sin = rotary.RotaryEmbedding(4).tables([0, 1])
        >>> cos
        array([[1.       , 1.       ],
               [0.5403023, 0.99995  ]], dtype=float32)
        """
        check_choice("precision", precision, ("exact", "float32"))
        sign = self._sign(role)
        like, backend, kind = wanted(like, dtype)
        if precision == "float32":
            if kind != "float32":
                raise ValueError(f"dtype: got {kind} with precision='float32', expected float32")
            if sign:
                raise ValueError("precision: got 'float32' with xpos, expected 'exact'")
            where = read(positions, backend, "positions")
            rows = self._rows(where, None, None, None)
            check_shape(rows, where.shape)
            request = _Request(rows, seq_len, self._wanted(1, 0, kind), like, backend)
            frequencies = self._at(self._effective_length(request))
            host = _tables.evaluate_as_trained(frequencies, where)
            cos, sin = (backend.to_device(table, like) for table in host)
        else:
            rows = self._rows(positions, None, None, None)
            needed = self._wanted(1, sign, kind)
            cos, sin = self._look_up(_Request(rows, seq_len, needed, like, backend))
        # Copies: what is kept must stay as it is.
        return copied(cos, kind, like, backend), copied(sin, kind, like, backend)

    def frequencies(self, seq_len: int | None = None) -> npt.NDArray[np.float64]:
        """Return ω_i in radians per position, shape (rotary_dim/2,): the float64 nearest to each.

        Parameters
        ----------
        seq_len : int, optional
            Length of the sequence, for the rules that depend on it; 0 by default.

        Examples
        --------
        >>> import rotary
        >>> rotary.RotaryEmbedding(4).frequencies()
        array([1.  , 0.01])
        """
        return radians(self._at(self._length_given(seq_len)))

    def attention_factor(self, seq_len: int | None = None) -> float:
        """Return the number that multiplies cos and sin, 1 for most rules.

        Logits are multiplied by its square.

        Examples
        --------
        >>> import rotary
        >>> rope = rotary.RotaryEmbedding(64, scaling=rotary.scaling.YaRN(16.0, 4096))
        >>> rope.attention_factor()
        1.2772588722239782
        """
        return attention_factor(self._at(self._length_given(seq_len)))

    @property
    def softmax_scale(self) -> float:
        """What the softmax scale D^(−1/2) is multiplied by: DeepSeek's g(s, mscale_all_dim)², or 1.

        Examples
        --------
        >>> import rotary
        >>> rotary.RotaryEmbedding(64).softmax_scale
        1.0
        """
        return softmax_scale(self._frequencies)

    def query_scale(self, positions: Any, *, like: Any = None) -> Any:
        """Return what rotated queries are multiplied by, position by position.

        1 + β·ln(1 + ⌊p/L0⌋), with the rule's ``llama_4_scaling_beta`` β; 1 without one.

        Parameters
        ----------
        positions : array or list, shape (...)
            Positions that the host can read.
        like : array, optional
            The scale comes in its library, on its device, in the dtype in which it rotates; NumPy
            float32 by default.

        Returns
        -------
        array, shape (...)

        Examples
        --------
        >>> import rotary
        >>> rule = rotary.scaling.YaRN(16.0, 8192, llama_4_scaling_beta=0.1)
        >>> rotary.RotaryEmbedding(128, scaling=rule).query_scale([0, 8191, 8192])
        array([1.       , 1.       , 1.0693147], dtype=float32)
        """
        like, backend, kind = wanted(like, None)
        where = read(positions, backend, "positions")
        host = np.asarray(query_scale(self._frequencies, where))
        return delivered(host, kind, like, backend)

    def to_config(self) -> dict[str, Any]:
        """Return a dictionary that ``json`` writes and :func:`rotary.from_config` reads back.

        Examples
        --------
        >>> import rotary
        >>> rope = rotary.RotaryEmbedding(64, scaling=rotary.scaling.Linear(2.0))
        >>> rotary.from_config(rope.to_config()) == rope
        True
        """
        from rotary.config import to_config  # which makes embeddings

        return to_config(self)

    def _rotate(
        self,
        q: Any,
        k: Any,
        positions: Any,
        offset: Any,
        seq_len: int | None,
        seq_axis: int,
        role: str | None,
        out: Any,
        *,
        inverse: bool,
    ) -> Any:
        backend, axis, tables, turn, long = self._prepare(q, k, seq_axis, role, inverse)
        if seq_len is not None and not _is_array(seq_len):
            whole("seq_len", seq_len)
        if out is not None:
            _check_outs(out, q, k, backend)
        batch = q.shape[0] if axis > 0 else None
        rows = self._rows(positions, offset, batch, q.shape[axis])
        arrays = (q,) if k is None else (q, k)
        # What shares its tables rotates together.
        alike = [arrays] if self.xpos is None else [(x,) for x in arrays]
        outs = None if out is None else ((out,) if k is None else tuple(out))
        # Where q rotates first, what is written must not reach k.
        at_once = outs if len(alike) == 1 else None
        results: list[Any] = []
        for group, needed in zip(alike, tables, strict=True):
            request = _Request(rows, seq_len, needed, q, backend)
            results += self._rotate_alike(group, request, axis, turn, at_once, long)
        if outs is not None and at_once is None:
            results = [rotation.write(to, x) for to, x in zip(outs, results, strict=True)]
        return results[0] if k is None else tuple(results)

    def _prepare(self, q: Any, k: Any, seq_axis: int, role: str | None, inverse: bool) -> _Prepared:
        """Check q and k, or find what was found of their like: a decoding step is one of many."""
        backend = backends.owner_of(q, "q")
        kind = type(q)
        unlike = k is not None and type(k) is not kind
        usual = type(seq_axis) is int and (role is None or type(role) is str)
        if unlike or not usual or backend.is_traced(q):
            return self._checked(q, k, seq_axis, role, inverse)
        key: Any = (self._name, inverse, kind, q.dtype, q.shape, seq_axis, role)
        if k is not None:
            key = (key, k.dtype, k.shape, backend.same_device(k, q))
        found = _prepared.get(key)
        if found is None:
            found = self._checked(q, k, seq_axis, role, inverse)
            if len(_prepared) >= _PREPARED:
                _prepared.clear()
            _prepared[key] = found
        return found

    def _checked(self, q: Any, k: Any, seq_axis: int, role: str | None, inverse: bool) -> _Prepared:
        backend, axis, compute = self._check("q", q, seq_axis)
        signs = self._signs(role, k)
        if k is not None:
            self._check_key(k, q, axis, backend, seq_axis)
        power = -1 if inverse else 1
        wanted = tuple(self._wanted(power, power * sign, compute) for sign in signs)
        rows = self._rows(None, None, q.shape[0] if axis > 0 else None, q.shape[axis])
        long = _tables.may_be_long(self._frequencies, rows, compute)
        return _Prepared(backend, axis, wanted, self._turn(inverse), long)

    def _turn(self, inverse: bool) -> backends.Turn:
        blocks = None if self.axes is None else self.axes.blocks
        return backends.Turn(self.layout, self.rotary_side, blocks, inverse)

    def _wanted(self, power: int, sign: int, dtype: str) -> backends.Wanted:
        """Return the tables to a power of the attention factor, of XPos's exponent with a sign."""
        frequencies = self._frequencies
        return backends.Wanted(
            frequencies.token, 0, power, frequencies.pairs, dtype, sign, frequencies.axis_count
        )

    def _rotate_alike(
        self,
        arrays: tuple[Any, ...],
        request: _Request,
        axis: int,
        turn: backends.Turn,
        outs: tuple[Any, ...] | None,
        may_be_long: bool,
    ) -> Sequence[Any]:
        """Rotate arrays by the same tables, piece by piece where those are long."""
        long = self._if_long(request) if may_be_long else None
        if long is None:
            return self._rotate_all(arrays, request, self._look_up(request), axis, turn, outs)
        frequencies = self._at(self._effective_length(request))
        _, _, wanted, like, backend = request
        # A piece may be written before the next is read only where it comes from.
        in_place = outs is not None and all(map(operator.is_, outs, arrays))
        results: list[Any] = [[] for _ in arrays]
        for index, where in _tables.pieces(frequencies, long, wanted.dtype):
            of_piece = tuple(x[(slice(None),) * axis + (index, ...)] for x in arrays)
            pair = _tables.look_up(
                frequencies,
                where,
                wanted.dtype,
                wanted.power,
                like,
                backend,
                role=wanted.role,
                keep=False,
            )
            into = of_piece if in_place else None
            rotated = self._rotate_all(of_piece, request, pair, axis, turn, into)
            for pieces, piece in zip(results, rotated, strict=True):
                pieces.append(piece)
        if in_place:
            return arrays
        xp = backend.namespace(like)
        whole = [xp.concat(pieces, axis=axis) for pieces in results]
        if outs is None:
            return whole
        return [rotation.write(to, x) for to, x in zip(outs, whole, strict=True)]

    def _rows(self, positions: Any, offset: Any, batch: int | None, seq: int | None) -> Rows:
        return Rows(positions, offset, batch, seq, axes=self._frequencies.axis_count)

    def _rows_by(self, by: Any, backend: Backend) -> Rows:
        """Return the one row by which a shift turns."""
        count = self._frequencies.axis_count
        if count == 1 or not _length(by):
            return Rows(None, by, None, 1, "by")
        if known_now(by, backend):
            along = read(by, backend, "by")
        elif _is_array(by):
            along = by
            check_dtype("by", dtype_name(by))
        else:
            along = np.asarray(by)
        if tuple(along.shape) != (count,):
            raise ValueError(
                f"by: got shape {tuple(along.shape)}, expected one number, or one for each axis, "
                f"shape ({count},)"
            )
        return Rows(along[:, None], None, None, 1, "by", count)

    def _signs(self, role: str | None, k: Any) -> tuple[int, ...]:
        """Return the sign of XPos's exponent for each table that a call needs."""
        if k is None or self.xpos is None:
            return (self._sign(role),)
        if role is not None:
            raise ValueError(f"role: got {role!r} beside k, expected None: q is query, k is key")
        return ROLES["query"], ROLES["key"]

    def _sign(self, role: str | None) -> int:
        if self.xpos is None:
            if role is None:
                return 0
            raise ValueError(
                f"role: got {role!r}, expected None: without xpos queries and keys rotate alike"
            )
        check_choice("role", role, tuple(ROLES))
        assert role is not None
        return ROLES[role]

    def _rotate_all(
        self,
        arrays: tuple[Any, ...],
        request: _Request,
        tables: tuple[Any, Any],
        axis: int,
        turn: backends.Turn,
        outs: tuple[Any, ...] | None = None,
    ) -> tuple[Any, ...]:
        q, k, backend = request.like, arrays[-1], request.backend
        if tables[0].ndim == 3 and k.shape[0] != q.shape[0]:
            raise ValueError(
                f"k: got shape {tuple(k.shape)}, expected {q.shape[0]} batch rows as q of shape "
                f"{tuple(q.shape)}, with positions for each"
            )
        cos, sin = tables
        cos, sin = rotation.align(cos, q, axis, backend), rotation.align(sin, q, axis, backend)
        return rotation.rotate_all(arrays, cos, sin, turn, backend, outs)

    def _if_long(self, request: _Request) -> Any:
        """Return positions whose tables are too many for one, or None."""
        rows, backend, dtype = request.rows, request.backend, request.wanted.dtype
        if backend.is_traced(request.like) or backend.is_traced(rows.given):
            return None
        where = read_rows(rows, backend)
        return None if _tables.fits(self._frequencies, where, dtype) else where

    def _look_up(self, request: _Request) -> tuple[Any, Any]:
        """Return cos and sin, times the attention factor to that power and XPos's scale."""
        rows, seq_len, wanted, like, backend = request
        switch = None if self.scaling is None else self.scaling.switch_length
        if switch is not None and _is_array(seq_len) and backend.is_traced(seq_len):
            short, long = (
                self._look_up(request._replace(seq_len=length)) for length in (switch, switch + 1)
            )
            xp = backend.namespace(seq_len)
            cos, sin = (xp.where(seq_len > switch, b, a) for a, b in zip(short, long, strict=True))
            return cos, sin
        length = self._effective_length(request)
        if length:
            wanted = wanted._replace(length=length)
        deferred = backend.deferred_tables(wanted, rows, like)
        if deferred is not None:
            return deferred
        frequencies, where = self._at(length), read_rows(rows, backend)
        _, _, power, _, dtype, role, _ = wanted
        return _tables.look_up(frequencies, where, dtype, power, like, backend, role=role)

    def _effective_length(self, request: _Request) -> int:
        """Return the length of sequence that decides the frequencies, 0 where none does."""
        if self.scaling is None or not self.scaling.needs_length:
            return 0
        rows, seq_len, backend = request.rows, request.seq_len, request.backend
        if seq_len is None:
            if rows.seq is not None and (rows.given is None or type(rows.given) is int):
                seq_len = (rows.given or 0) + rows.seq
            elif backend.is_traced(rows.given):
                raise ValueError(
                    f"seq_len: got None, expected a number: {type(self.scaling).__name__} depends "
                    f"on it, and only the compiled program knows the positions"
                )
            else:
                seq_len = after_last(read_rows(rows, backend))
        elif _is_array(seq_len) and backend.is_traced(seq_len):
            raise TypeError(
                f"seq_len: got a traced array, expected a number: {type(self.scaling).__name__} "
                f"has other frequencies for every length"
            )
        return self.scaling.effective_length(int(seq_len))

    def _length_given(self, seq_len: int | None) -> int:
        if seq_len is not None:
            whole("seq_len", seq_len)
        return 0 if self.scaling is None else self.scaling.effective_length(seq_len or 0)

    def _at(self, length: int) -> Frequencies:
        return at_length(self._frequencies, length) if length else self._frequencies

    def _check(self, name: str, x: Any, seq_axis: int) -> tuple[Backend, int, str]:
        backend = backends.owner_of(x, name)
        compute = rotation.compute_dtype(name, x)
        axis = rotation.sequence_axis(name, x, seq_axis)
        if x.shape[-1] != self.head_dim:
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}, expected a last axis of head_dim = "
                f"{self.head_dim}"
            )
        return backend, axis, compute

    def _check_key(self, k: Any, q: Any, axis: int, backend: Backend, seq_axis: int) -> None:
        rotation.check_same_place("k", k, "q", q, backend)
        self._check("k", k, seq_axis)
        if k.dtype != q.dtype:
            raise TypeError(f"k: got dtype {dtype_name(k)}, expected q's {dtype_name(q)}")
        rank = len(q.shape)
        if len(k.shape) != rank or any(
            # Of rank 3 the first axis may be heads.
            k.shape[i] != q.shape[i]
            for i in ({axis} if rank == 3 else {0, axis})
        ):
            raise ValueError(
                f"k: got shape {tuple(k.shape)}, expected q's shape {tuple(q.shape)} except for "
                f"the number of heads"
            )


def _check_outs(out: Any, q: Any, k: Any, backend: Backend) -> None:
    if k is None:
        rotation.check_out("out", out, q, backend, (q,))
        return
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise TypeError(f"out: got {type(out).__name__}, expected a pair of arrays, for q and k")
    rotation.check_out("out[0]", out[0], q, backend, (q, k))
    rotation.check_out("out[1]", out[1], k, backend, (q, k))
    if out[0] is out[1]:
        raise ValueError("out: got one array twice, expected a pair of arrays, for q and k")


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype")


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _length(values: Any) -> int:
    """Return the length of the first axis, 0 for a number."""
    if _is_array(values):
        return int(values.shape[0]) if len(values.shape) else 0
    return len(values) if isinstance(values, Sequence) and not isinstance(values, str) else 0

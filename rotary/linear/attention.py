"""Linear attention: a description, and the calls that compute it.

    o_m = Σ_n (R_m φ(q_m))·(R_n φ(k_n)) v_n / (Σ_n φ(q_m)·φ(k_n) + ε)

Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236; with rotation, RoFormer, arXiv
2104.09864, equation 19.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from rotary.checks import check_choice, whole
from rotary.dtypes import dtype_name
from rotary.embedding import RotaryEmbedding
from rotary.exact.products import LONGEST
from rotary.linear import arithmetic as _arithmetic
from rotary.linear import feature_maps, operation, packing, segments
from rotary.linear.chunks import LOWEST, Inputs, Sums
from rotary.linear.decays import RetNet, log_factors, of_heads
from rotary.linear.feature_maps import CosFormer
from rotary.linear.inputs import Call, Sizes, check_mask, read_beta, read_gate, read_sizes
from rotary.linear.operation import Settings
from rotary.linear.placement import Placed, Tables, check_below, look_up, place
from rotary.linear.random_features import FavorPlus
from rotary.linear.state import State, check_given, check_place, check_state
from rotary.rotation import rotate_aligned

PLACEMENTS = ("numerator", "both", "before_map")
UPDATES = ("additive", "delta")
EPS = 1e-6


@dataclass(frozen=True)
class LinearAttention:
    """Attention whose cost is linear in the tokens, and whose decoding state does not grow.

    A description made of numbers: hashable, comparable, a static argument under ``jax.jit``.  It
    holds no arrays, and no call changes it or an argument.

    Parameters
    ----------
    feature_map : str, FavorPlus(...), CosFormer(...) or callable
        φ of queries and keys; see the table of maps below.  A callable is given (batch, heads, seq,
        key_dim) in the compute dtype and returns (batch, heads, seq, features); two descriptions
        are equal if theirs is the same object.
    rope : RotaryEmbedding, optional
        Rotation of queries and keys, of any kind, XPos included; but none whose frequencies depend
        on the length, since a state holds rotated keys.  Its head_dim is the number of features,
        or key_dim with ``placement="before_map"``.
    placement : {"numerator", "both", "before_map"}
        Where the rotation goes; see the table below.
    decay : None, RetNet() or "gate"
        What multiplies the state before a token is added: nothing, RetNet's fixed factor of a head,
        or e^g with log gates g that every call is given: one a head (Mamba-2) or one for each
        channel of the keys (GLA).
    update : {"additive", "delta"}
        How a token changes the state.  The delta rule (DeltaNet, arXiv 2406.06484; gated, arXiv
        2412.06464) takes out what the state holds for a key before it adds:
        S ← e^g S,  S ← S + β k (v − Sᵀ k)ᵀ, with β that every call is given.  With ‖k‖ = 1, as
        ``"l2norm"`` makes keys, and 0 ≤ β ≤ 1 it replaces a share β of it; larger βk·k can grow.
    normalize : bool, optional
        Whether to divide by Σ φ(q)·φ(k) + ε.  By default, yes for the additive update without
        decay, no otherwise; the delta rule has none.  Where that sum can be negative or vanish,
        because the map has a sign or the rotation is in it ("identity", "l2norm", a callable,
        ``placement="both"``), the default refuses and the choice has to be made: in float32, a
        signed map gave outputs of 608.
        ``"softmax"`` is normalised already.
    eps : float, optional
        ε ≥ 0, added to the sum in the compute dtype; 1e-6 by default, as in fast-transformers, the
        paper's own implementation.  It makes rows without any key 0 rather than NaN.
    scale : float, optional
        Multiplies φ(q); 1 by default.  The normaliser takes it out again, but for ε.  RetNet and
        GLA use key_dim**−0.5.
    chunk_size : int
        C, tokens a chunk.  Results are the same up to rounding; with exact arithmetic the bits
        depend on it, and on where chunks begin.
    arithmetic : {"fast", "exact"}
        The library's matmul and exp, with sums in float32 at least; or the same bits on every
        library and machine, for float16, bfloat16 and float32.

    Notes
    -----
    ==============  ============================================================================
    feature_map     φ(x)
    ==============  ============================================================================
    "elu+1"         max(x, 0) + exp(min(x, 0)) (Katharopoulos et al.)
    "relu"          relu(x)
    "relu2"         relu(x)²
    "identity"      x
    "exp"           e^x; e^32 from x = 32 on, where products and sums would leave float32
    "l2norm"        x (Σx² + 10^−6)^(−1/2), as in Qwen3-Next
    "taylor"        [1, x/D^(1/4), x_i²/√2D, x_i x_j/√D for i < j]: φ(q)·φ(k) = 1 + s + s²/2,
                    s = q·k/√D (Based, arXiv 2402.18668, with each product of two features once)
    FavorPlus(m)    random features of exp(q·k/√D); sums are relative to a running maximum of
                    theirs, and so is ε (Performer, arXiv 2009.14794)
    CosFormer(M)    relu(x)·cos(πp/2M), relu(x)·sin(πp/2M) at position p < M
    "softmax"       over the features of a query and over the tokens of a key, bidirectional
                    only (Efficient Attention, arXiv 1812.01243)
    ==============  ============================================================================

    ============  ===========================  =====================================================
    placement     rotates                      what it costs
    ============  ===========================  =====================================================
    "numerator"   φ(q), φ(k), above the line   weights may be negative and do not sum to 1 (with
                                               elu+1 and 32 features 10% of them, and a constant v
                                               comes back at a third); the numerator depends on
                                               distances only
    "both"        φ(q), φ(k), above and below  weights sum to 1, but the divisor may be negative or
                                               vanish (relu: 7 of 1024)
    "before_map"  q and k                      weights stay positive, but depend on the positions,
                                               not only on distances: a shift by 500 changed scores
                                               of about 20 by 17 to 26
    ============  ===========================  =====================================================

    The additive update takes all three, with and without decay.  Without the normaliser,
    "numerator" and "both" are the same.  With ``rope=None`` the placement has no meaning and has to
    be left at its default.

    Bound for each output: |error| ≤ 64·u·Σ ‖φ(q)_pair‖ ‖φ(k)_pair‖ |v|, over the divisor, with
    u = 2^−24 (2^−53 for float64); half a last place more for 16-bit outputs.  With gates, under the
    delta rule (for ‖k‖ ≤ 1 and 0 ≤ β ≤ 1) and for FavorPlus the sum is another: docs/numbers.md.
    Non-finite values reach their own chunk, earlier tokens of it included; with exact arithmetic
    they reach none before.

    Raises
    ------
    TypeError, ValueError
        For values outside these ranges, naming the argument.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> attn = rotary.LinearAttention(rope=rotary.RotaryEmbedding(64))
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((1, 8, 100, 64), np.float32)  # batch, heads, seq, key_dim
    >>> k = rng.standard_normal((1, 2, 100, 64), np.float32)  # fewer heads
    >>> v = rng.standard_normal((1, 2, 100, 32), np.float32)  # value_dim
    >>> out = attn(q, k, v, causal=True)
    >>> out.shape
    (1, 8, 100, 32)

    A prompt, and then token by token:

    >>> first, state = attn.prefill(q[:, :, :99], k[:, :, :99], v[:, :, :99])
    >>> last, state = attn.step(q[:, :, 99:], k[:, :, 99:], v[:, :, 99:], state)
    >>> bool(np.allclose(last, out[:, :, 99:], rtol=1e-4, atol=1e-6))
    True
    """

    feature_map: str | FavorPlus | CosFormer | Callable[[Any], Any] = "elu+1"
    _: KW_ONLY
    rope: RotaryEmbedding | None = None
    placement: str = "numerator"
    decay: RetNet | str | None = None
    update: str = "additive"
    normalize: bool = None  # type: ignore[assignment]  # filled in
    eps: float | None = None
    scale: float = None  # type: ignore[assignment]  # filled in
    chunk_size: int = 64
    arithmetic: str = "fast"
    # Kept here since compilers that read the call do not follow decimal arithmetic.
    _log_factors: tuple[Any, ...] = field(init=False, repr=False, compare=False, default=())
    _turns: RotaryEmbedding | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if not callable(self.feature_map) and not isinstance(
            self.feature_map, FavorPlus | CosFormer
        ):
            check_choice("feature_map", self.feature_map, feature_maps.NAMES)
        if self.feature_map in (FavorPlus, CosFormer):
            raise ValueError(
                f"feature_map: got {self.feature_map}, expected an object of that class"
            )
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("update", self.update, UPDATES)
        check_choice("arithmetic", self.arithmetic, _arithmetic.NAMES)
        self._check_rope()
        self._check_decay()
        self._check_update()
        put("chunk_size", whole("chunk_size", self.chunk_size))
        if self.arithmetic == "exact" and self.chunk_size > LONGEST:
            raise ValueError(
                f"chunk_size: got {self.chunk_size} with arithmetic='exact', expected at most "
                f"{LONGEST}"
            )
        put("normalize", self._normalized())
        put("eps", self._eps())
        if isinstance(self.decay, RetNet):
            put("_log_factors", (log_factors(24), log_factors(53)))
        if isinstance(self.feature_map, CosFormer):
            put("_turns", RotaryEmbedding(2, inv_freq=(self.feature_map.inv_freq,)))
        else:
            put("_turns", self.rope)
        put("scale", 1.0 if self.scale is None else _finite("scale", self.scale))

    def _check_rope(self) -> None:
        if self.rope is None:
            if self.placement != "numerator":
                raise ValueError(
                    f"placement: got {self.placement!r} without rope, expected 'numerator', its "
                    f"default: nothing rotates"
                )
            return
        if not isinstance(self.rope, RotaryEmbedding):
            raise TypeError(
                f"rope: got {self.rope!r}, expected None or rotary.RotaryEmbedding(...)"
            )
        if isinstance(self.feature_map, CosFormer):
            raise ValueError(
                f"rope: got one with feature_map={self.feature_map!r}, expected None: that map is "
                f"a rotation itself"
            )
        if self.rope.scaling is not None and self.rope.scaling.needs_length:
            raise ValueError(
                f"rope: got the scaling {type(self.rope.scaling).__name__}, expected one that does "
                f"not depend on the length: the state is a sum of keys that were rotated before"
            )

    def _check_decay(self) -> None:
        if self.decay is None:
            return
        if not isinstance(self.decay, RetNet) and self.decay != "gate":
            raise ValueError(
                f"decay: got {self.decay!r}, expected None, rotary.linear.RetNet() or 'gate'"
            )
        if self.feature_map == "softmax":
            raise ValueError(
                f"decay: got {self.decay!r} with feature_map='softmax', expected None: it is "
                f"bidirectional"
            )
        if isinstance(self.feature_map, FavorPlus):
            raise ValueError(
                f"decay: got {self.decay!r} with feature_map={self.feature_map!r}, expected None: "
                f"what is relative to a maximum of all tokens does not decay"
            )

    def _check_update(self) -> None:
        if self.update == "delta" and (
            self.feature_map == "softmax" or isinstance(self.feature_map, FavorPlus)
        ):
            raise ValueError(
                f"update: got 'delta' with feature_map={self.feature_map!r}, expected 'additive'"
            )

    def _normalized(self) -> bool:
        chosen: Any = self.normalize
        if chosen is not None:
            if not isinstance(chosen, bool):
                raise TypeError(f"normalize: got {chosen!r}, expected None, True or False")
            if chosen and self.update == "delta":
                raise ValueError("normalize: got True with update='delta', expected False")
            if not chosen and isinstance(self.feature_map, FavorPlus):
                raise ValueError(
                    f"normalize: got False with feature_map={self.feature_map!r}, expected True: "
                    f"the sums are relative to a maximum, which the division takes out again"
                )
            return chosen
        if self.decay is not None or self.update != "additive" or self.feature_map == "softmax":
            return False
        outside = callable(self.feature_map)
        if outside or not feature_maps.named(feature_maps.token(self.feature_map)).positive:
            raise ValueError(
                f"normalize: got None with feature_map={self.feature_map!r}, expected True or "
                f"False: the features may be negative, so that the divisor may vanish"
            )
        if self.placement == "both":
            raise ValueError(
                "normalize: got None with placement='both', expected True or False: the rotation "
                "gives the features a sign, so that the divisor may vanish"
            )
        return True

    def _eps(self) -> float | None:
        if self.normalize:
            value = EPS if self.eps is None else _finite("eps", self.eps)
            if value < 0:
                raise ValueError(f"eps: got {value}, expected a number of at least 0")
            return value
        if self.eps is not None:
            raise ValueError(f"eps: got {self.eps!r} without the normaliser, expected None")
        return None

    def __call__(
        self,
        q: Any,
        k: Any,
        v: Any,
        *,
        causal: bool = False,
        key_mask: Any = None,
        gate: Any = None,
        beta: Any = None,
        positions: Any = None,
        cu_seqlens: Any = None,
    ) -> Any:
        """Attend, and return the outputs.

        Parameters
        ----------
        q : array, shape (batch, heads, seq, key_dim)
            float16, bfloat16, float32 or float64, of any array library.
        k : array, shape (batch, kv_heads, seq, key_dim)
            kv_heads divides heads: query head h attends with key head h // (heads // kv_heads).
        v : array, shape (batch, kv_heads, seq, value_dim)
        causal : bool
            Whether a token sees itself and the tokens before it, or all tokens.
        key_mask : array of bool, shape (batch, seq), optional
            False for tokens that take no part, padding for one: their keys and values are
            selected away, whatever they hold, they do not decay the state and are not counted in
            the positions, so that the other rows are what they are without them.
        gate : array, shape (batch, kv_heads, seq) or (batch, kv_heads, seq, features), optional
            Log gates ≤ 0, with ``decay="gate"``; in traced programs, those above 0 become NaN.
        beta : array, shape (batch, kv_heads, seq), optional
            What the delta rule multiplies by, with ``update="delta"``.
        positions : array or list, shape (seq,) or (batch, seq), optional
            Of the tokens, as :class:`rotary.RotaryEmbedding` takes them; 0, 1, … by default.
        cu_seqlens : array or list, shape (sequences + 1,), optional
            For a batch of 1 that holds several sequences one after the other: where each begins,
            and the total.  Positions restart, and nothing passes from one to the next.

        Returns
        -------
        array, shape (batch, heads, seq, value_dim)
            Of q's dtype, library and device.

        Raises
        ------
        TypeError
            For arrays of another kind, library or dtype.
        ValueError
            For shapes that do not meet, gates above 0, cu_seqlens that do not cover the tokens.
        """
        if not causal and self.decay is not None:
            raise ValueError(f"causal: got False with decay={self.decay!r}, expected True")
        if not causal and self.update != "additive":
            raise ValueError(f"causal: got False with update={self.update!r}, expected True")
        call = Call(q, k, v, None, key_mask, gate, beta, positions)
        return self._attend(call, cu_seqlens, causal=causal, keep=False)[0]

    def prefill(
        self,
        q: Any,
        k: Any,
        v: Any,
        state: State | None = None,
        *,
        key_mask: Any = None,
        gate: Any = None,
        beta: Any = None,
        positions: Any = None,
        cu_seqlens: Any = None,
    ) -> tuple[Any, State]:
        """Attend causally from a state on, and hand the state over; arguments as for the call.

        Parameters
        ----------
        state : State, optional
            Of the tokens before; None for none.  With cu_seqlens, a batch row for each sequence.
            Positions continue where it ends.

        Returns
        -------
        out : array, shape (batch, heads, seq, value_dim)
        state : State
            A new one.  With cu_seqlens, its batch axis is that of the sequences.

        Raises
        ------
        TypeError, ValueError
            As the call; for a state of another variant, shape, dtype or library; with
            ``feature_map="softmax"``, which has no state.

        Examples
        --------
        >>> import numpy as np
        >>> import rotary
        >>> attn = rotary.LinearAttention()
        >>> x = np.ones((1, 1, 6, 4), np.float32)
        >>> _, state = attn.prefill(x[:, :, :4], x[:, :, :4], x[:, :, :4])
        >>> out, state = attn.prefill(x[:, :, 4:], x[:, :, 4:], x[:, :, 4:], state)
        >>> state.normaliser, state.position
        (array([[[12., 12., 12., 12.]]], dtype=float32), array([6], dtype=int32))
        """
        call = Call(q, k, v, state, key_mask, gate, beta, positions)
        out, after = self._attend(call, cu_seqlens, causal=True, keep=True)
        assert after is not None
        return out, after

    def step(
        self,
        q: Any,
        k: Any,
        v: Any,
        state: State | None,
        *,
        gate: Any = None,
        beta: Any = None,
        positions: Any = None,
    ) -> tuple[Any, State]:
        """Attend with one token more, and return the output and the next state.

        Parameters
        ----------
        q, k, v : array, shape (batch, heads or kv_heads, 1, key_dim or value_dim)
        state : State, or None at the beginning
        gate, beta, positions : optional
            As for the call, of the one token.

        Returns
        -------
        out : array, shape (batch, heads, 1, value_dim)
        state : State
            A new one; the one passed in stays as it is.

        Examples
        --------
        >>> import numpy as np
        >>> import rotary
        >>> attn = rotary.LinearAttention()
        >>> x = np.ones((1, 1, 1, 4), np.float32)
        >>> out, state = attn.step(x, x, x, None)
        >>> out, state = attn.step(x, x, x, state)
        >>> int(state.position[0])
        2
        """
        if getattr(q, "ndim", 4) == 4 and hasattr(q, "shape") and q.shape[2] != 1:
            raise ValueError(f"q: got shape {tuple(q.shape)}, expected one token, seq = 1")
        return self.prefill(q, k, v, state, gate=gate, beta=beta, positions=positions)

    def segment(
        self,
        k: Any,
        v: Any,
        *,
        key_mask: Any = None,
        gate: Any = None,
        beta: Any = None,
        positions: Any = None,
    ) -> State:
        """Return the state of a part of a sequence by itself, to be joined by `combine`.

        Parameters
        ----------
        k, v, key_mask, gate, beta : array
            As for the call.
        positions : array or list, shape (seq,) or (batch, seq)
            Those of the tokens in the whole sequence; needed with rope, which a segment's keys
            are rotated by.  Without rope 0, 1, … by default.

        Returns
        -------
        State

        Examples
        --------
        >>> import numpy as np
        >>> import rotary
        >>> attn = rotary.LinearAttention("identity", normalize=False)
        >>> x = np.ones((1, 1, 5, 2), np.float32)
        >>> attn.segment(x, x).numerator
        array([[[[5., 5.],
                 [5., 5.]]]], dtype=float32)
        """
        rotates = self.rope is not None or isinstance(self.feature_map, CosFormer)
        if rotates and positions is None:
            raise ValueError(
                "positions: got None, expected those of the tokens in the whole sequence: a "
                "segment does not know where it begins"
            )
        call = Call(None, k, v, None, key_mask, gate, beta, positions)
        state = self._attend(call, None, causal=True, keep=True)[1]
        assert state is not None
        return state

    def _attend(
        self, call: Call, cu_seqlens: Any, *, causal: bool, keep: bool
    ) -> tuple[Any, State | None]:
        """Return the outputs (None without q), and the state after them if it is to be kept."""
        if (call.beta is None) != (self.update != "delta"):
            came = "None" if call.beta is None else "an array"
            wanted = "what the rule multiplies by" if call.beta is None else "None"
            raise ValueError(f"beta: got {came} with update={self.update!r}, expected {wanted}")
        if (call.gate is None) != (self.decay != "gate"):
            came = "None" if call.gate is None else "an array"
            wanted = "log gates" if call.gate is None else "None"
            raise ValueError(f"gate: got {came} with decay={self.decay!r}, expected {wanted}")
        if causal and self.feature_map == "softmax":
            raise ValueError(
                "feature_map: got 'softmax', whose keys depend on all tokens; expected another map "
                "for causal attention, states and segments"
            )
        sizes = read_sizes(call.q, call.k, call.v, self.arithmetic)
        if cu_seqlens is not None:
            return packing.attend(self, call, cu_seqlens, causal, sizes, keep)
        if call.key_mask is not None:
            check_mask(call.key_mask, call.k, sizes)
        return self._attend_checked(call, causal, sizes, keep)

    def _attend_checked(
        self, call: Call, causal: bool, sizes: Sizes, keep: bool
    ) -> tuple[Any, State | None]:
        q, k, v, state, key_mask, gate, beta, positions = call
        backend = sizes.backend
        xp = backend.namespace(k)
        if state is not None:
            check_state("state", state)
            check_place(state, k)
        placed, tables = self._place(positions, key_mask, state, sizes, k, keep)
        mask = None if key_mask is None else xp.reshape(key_mask, (sizes.batch, 1, 1, sizes.seq, 1))
        q, k = self._mapped(q, k, mask, tables, sizes)
        settings = self._settings(causal, sizes, dtype_name(k if q is None else q))
        features = self._features(settings, k, sizes)
        high, low = self._gates(gate, mask, sizes, k, features)
        if beta is not None:
            beta = read_beta(beta, k, sizes)
            beta = beta if mask is None else xp.where(mask[:, :, 0, ...], beta, xp.zeros_like(beta))
        sums = self._sums(state, features, high is not None and high.shape[-1] != 1, sizes, k, keep)
        segment = q is None and self.update == "delta"
        if segment:
            v, sums = segments.with_transition(v, sums, backend)
        if q is not None:
            group = sizes.heads // sizes.kv_heads
            q = xp.reshape(q, (sizes.batch, sizes.kv_heads, group, sizes.seq, q.shape[-1]))
        tables = Tables() if settings.rotate is None else tables
        inputs = Inputs(q, k[:, :, None, ...], v, high, low, beta, mask, *tables)
        shape = (sizes.batch, sizes.heads, sizes.seq, sizes.value_dim)
        if sizes.seq:
            out, after = operation.run(settings, inputs, sums)
            if out is not None:
                out = xp.reshape(out, shape)
                # A map that was taken before gives wide queries.
                out = out if out.dtype == v.dtype else backend.narrow(out, v.dtype)
        else:
            out, after = None if q is None else xp.broadcast_to(v[:, :1, ...], shape), sums
        if placed is None or not keep:
            return out, None
        return out, self._state(after, placed.after, sizes.value_dim if segment else None)

    def _features(self, settings: Settings, k: Any, sizes: Sizes) -> int:
        """Return the number of features of keys k, or raise if rope or arithmetic refuse it."""
        features = feature_maps.named(settings.feature_map).width(k.shape[-1])
        rotated = sizes.key_dim if self.placement == "before_map" else features
        if self.rope is not None and self.rope.head_dim != rotated:
            raise ValueError(
                f"rope: got head_dim = {self.rope.head_dim}, expected the number of features that "
                f"it rotates, {rotated}"
            )
        if self.arithmetic == "exact" and features > LONGEST:
            raise ValueError(
                f"k: got {features} features with arithmetic='exact', expected at most {LONGEST}"
            )
        return features

    def _place(
        self,
        positions: Any,
        key_mask: Any,
        state: State | None,
        sizes: Sizes,
        like: Any,
        keep: bool,
    ) -> tuple[Placed | None, Tables]:
        rope = self._turns
        if rope is None and not keep:
            return None, Tables()
        start = None if state is None else state.position
        placed = place(rope, positions, key_mask, start, sizes, like)
        if rope is None:
            return placed, Tables()
        pairs = None
        if isinstance(self.feature_map, CosFormer):
            counted = positions is None and key_mask is None
            check_below(placed, self.feature_map.length, counted, sizes, like)
            pairs = sizes.key_dim
        return placed, look_up(rope, placed, sizes, like, pairs)

    def _gates(
        self, gate: Any, mask: Any, sizes: Sizes, like: Any, features: int
    ) -> tuple[Any, Any]:
        """Return log gates in two words, (1 or batch, kv_heads, seq, 1 or features)."""
        if self.decay is None:
            return None, None
        backend = sizes.backend
        xp = backend.namespace(like)
        if self.decay == "gate":
            words = [read_gate(gate, like, sizes, features)]
        else:
            assert isinstance(self.decay, RetNet)
            pairs = self._log_factors[0 if sizes.dtype == "float32" else 1]
            both = np.array(of_heads(pairs, sizes.kv_heads), sizes.dtype)
            table = xp.asarray(backend.to_device(both, like))[:, None, :, None, None]
            table = xp.broadcast_to(table, (2, 1, sizes.kv_heads, sizes.seq, 1))
            words = [table[0, ...], table[1, ...]]
        if mask is not None:
            words = [xp.where(mask[:, :, 0, ...], word, xp.zeros_like(word)) for word in words]
        return words[0], (words[1] if len(words) == 2 else None)

    def _mapped(self, q: Any, k: Any, mask: Any, tables: Tables, sizes: Sizes) -> tuple[Any, Any]:
        """Take the maps that are not of one token at a time, or are the caller's own."""
        if not callable(self.feature_map) and self.feature_map != "softmax":
            return q, k
        a = _arithmetic.arithmetic(self.arithmetic, sizes.backend)
        xp = sizes.backend.namespace(k)
        key_tables = tables[:2] if tables.key_cos is None else tables[2:]
        mapped: list[Any] = []
        mask = None if mask is None else mask[:, :, 0, ...]
        for name, x, (cos, sin) in (("q", q, tables[:2]), ("k", k, key_tables)):
            if x is None:
                mapped.append(None)
                continue
            x = x if dtype_name(x) == sizes.dtype else sizes.backend.widen(x, sizes.dtype)
            if name == "k" and mask is not None:
                x = xp.where(mask, x, xp.zeros_like(x))
            if self.placement == "before_map" and self.rope is not None:
                x = rotate_aligned(
                    x,
                    cos[:, :, 0, ...],
                    sin[:, :, 0, ...],
                    layout=self.rope.layout,
                    rotary_side=self.rope.rotary_side,
                    inverse=False,
                    backend=sizes.backend,
                )
            if callable(self.feature_map):
                y = self.feature_map(x)
                _check_features(name, y, x)
            elif name == "q":
                y = feature_maps.softmax(a, x, -1)
            else:
                y = feature_maps.softmax(a, x, -2, mask)
            mapped.append(y)
        q, k = mapped
        if q is not None and q.shape[-1] != k.shape[-1]:
            raise ValueError(
                f"feature_map: got {q.shape[-1]} features of q and {k.shape[-1]} of k, expected as "
                f"many"
            )
        return q, k

    def _settings(self, causal: bool, sizes: Sizes, input_dtype: str) -> Settings:
        rope = self._turns
        outside = callable(self.feature_map) or self.feature_map == "softmax"
        rotate = None if rope is None else self.placement
        if isinstance(self.feature_map, CosFormer):
            rotate = "both"
        return Settings(
            self.arithmetic,
            input_dtype,
            sizes.dtype,
            self.chunk_size,
            causal,
            "identity" if outside else feature_maps.token(self.feature_map),
            # Before a map that was taken already it was rotated already.
            None if outside and rotate == "before_map" else rotate,
            "half" if rope is None else rope.layout,
            "leading" if rope is None else rope.rotary_side,
            self.scale,
            self.eps,
            self.decay == "gate",
            self.update == "delta",
        )

    def _sums(
        self,
        state: State | None,
        features: int,
        by_channel: bool,
        sizes: Sizes,
        like: Any,
        keep: bool,
    ) -> Sums:
        """Return the sums to begin with: those of a checked state, or of no token."""
        shape = (sizes.batch, sizes.kv_heads, features, sizes.value_dim)
        delta = self.update == "delta"
        logs = None if self.decay is None or delta else shape[: 3 if by_channel else 2]
        expected = State(
            numerator=shape,
            numerator_low=shape,
            normaliser=shape[:3] if self.normalize else None,
            normaliser_low=shape[:3] if self.normalize else None,
            log_decay=logs,
            log_decay_low=logs,
            transition=(*shape[:2], 0, 0) if delta else None,
            maximum=shape[:2] if isinstance(self.feature_map, FavorPlus) else None,
            position=shape[:1],
        )
        if state is None:
            start = expected._replace(transition=None, position=None)
            fields: list[Any] = [
                None if each is None else _filled(each, LOWEST * (name == "maximum"), sizes, like)
                for name, each in zip(State._fields, start, strict=True)
            ]
        else:
            if delta and state.transition is not None:  # what came before is no matter any more
                state = state._replace(transition=state.transition[..., :0, :0])
            check_given(state, expected, sizes.dtype, like)
            fields = list(state)
        high, low, z, z_low, log, log_low, _, maximum, _ = fields
        if z is not None:
            z, z_low = z[..., None], z_low[..., None]
        if maximum is not None:
            maximum = maximum[..., None, None]
        if not keep:
            log = log_low = None
        elif log is not None:
            if not by_channel:
                log, log_low = log[..., None], log_low[..., None]
            log, log_low = log[..., None, :], log_low[..., None, :]
        return Sums(high, low, z, z_low, log, log_low, maximum)

    def _state(self, sums: Sums, position: Any, segment: int | None) -> State:
        """Return the state of the sums after a call, for a segment by its value_dim."""
        high, low, z, z_low, log, log_low, maximum = sums
        transition = high[..., :0, :0] if self.update == "delta" else None
        if segment is not None:
            high, low, transition = segments.split(high, low, segment)
        if z is not None:
            z, z_low = z[..., 0], z_low[..., 0]
        if maximum is not None:
            maximum = maximum[..., 0, 0]
        if log is not None:
            log, log_low = log[..., 0, :], log_low[..., 0, :]
            if log.shape[-1] == 1:
                log, log_low = log[..., 0], log_low[..., 0]
        return State(high, low, z, z_low, log, log_low, transition, maximum, position)


def _filled(shape: tuple[int, ...], value: float, sizes: Sizes, like: Any) -> Any:
    host = np.full(shape, value, sizes.dtype)
    return sizes.backend.namespace(like).asarray(sizes.backend.to_device(host, like))


def _check_features(name: str, features: Any, x: Any) -> None:
    shape = tuple(getattr(features, "shape", ()))
    if shape[:-1] != tuple(x.shape[:-1]) or len(shape) != 4 or not shape[-1]:
        came = shape if hasattr(features, "shape") else type(features).__name__
        raise ValueError(
            f"feature_map: got {came} for {name} of shape {tuple(x.shape)}, expected "
            f"{(*tuple(x.shape[:-1]), 'features')}"
        )
    if features.dtype != x.dtype:
        raise TypeError(
            f"feature_map: got dtype {dtype_name(features)} for {name}, expected {dtype_name(x)}"
        )


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {number}, expected a finite number")
    return number

"""The delta rule for the oracle of linear attention, token by token and as one triangular system.

    S_t = a_t ⊙ S_{t−1} + k_t u_tᵀ,   u_t = β_t (v_t − (a_t ⊙ S_{t−1})ᵀ k_t)

(Yang et al., arXiv 2406.06484, section 2.2, and gated, arXiv 2412.06464, equation 10.)  Wide
numbers; arrays are (batch, heads, seq, dim), log decays (batch, heads, seq, 1 or features).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def added(scores: Array, v: Array, beta: Array) -> Array:
    """Return the values u that the rule adds, by forward substitution over all tokens.

    `scores` are (a_i … a_{j+1} k_j)·k_i, (batch, heads, seq, seq).
    """
    u = np.zeros_like(v)
    for t in range(v.shape[2]):
        predicted = np.einsum("bhj,bhje->bhe", scores[:, :, t, :t], u[:, :, :t])
        u[:, :, t] = beta[:, :, t, None] * (v[:, :, t] - predicted)
    return u


def recurrent(k: Array, v: Array, beta: Array, log_decay: Array) -> tuple[Array, Array]:
    """Return the states after each token, (batch, heads, seq, features, value_dim), and all u."""
    state = np.zeros((*k.shape[:2], k.shape[3], v.shape[3]), v.dtype)
    states, u = np.zeros((*k.shape[:3], *state.shape[2:]), v.dtype), np.zeros_like(v)
    for t in range(k.shape[2]):
        state = state * np.exp(log_decay[:, :, t])[..., None]
        predicted = np.einsum("bhd,bhde->bhe", k[:, :, t], state)
        u[:, :, t] = beta[:, :, t, None] * (v[:, :, t] - predicted)
        state = state + k[:, :, t, :, None] * u[:, :, t, None, :]
        states[:, :, t] = state
    return states, u


def magnitude(q: Array, k: Array, v: Array, beta: Array, log_decay: Array, least: float) -> Array:
    """Return ‖q_i‖ Σ_j d_ij ‖k_j‖ β_j (|v_j| + ‖k_j‖ ‖a_j ⊙ S_{j−1}‖): what may be lost.

    Norms are over features, and d_ij is the largest decay of a channel between j and i, plus
    `least`.  What is rounded off at token j is a few u of what is subtracted there; from then on it
    is multiplied by (I − β k kᵀ) a, of norm at most max a while ‖k‖ ≤ 1 and 0 ≤ β ≤ 1: it does not
    grow, but it turns into other channels, so that no bound channel by channel holds.
    """
    states, _ = recurrent(k, v, beta, log_decay)
    k_norm, q_norm = (np.sqrt((x * x).sum(-1)) for x in (k, q))
    lost = ever = np.zeros((*v.shape[:2], v.shape[3]), v.dtype)
    sizes = np.zeros_like(v)
    for t in range(k.shape[2]):
        before = states[:, :, t - 1] if t else np.zeros_like(states[:, :, 0])
        decayed = before * np.exp(log_decay[:, :, t])[..., None]
        size = np.sqrt((decayed * decayed).sum(-2))
        norm = k_norm[:, :, t, None]
        taken = np.abs(v[:, :, t]) + norm * size
        new = norm * beta[:, :, t, None] * taken
        lost = lost * np.exp(log_decay[:, :, t].max(-1, keepdims=True)) + new
        ever = ever + new
        sizes[:, :, t] = q_norm[:, :, t, None] * (lost + least * ever)
    return sizes

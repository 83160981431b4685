"""The scaling rules once more, in mpmath, written from their papers and configs alone.

Each function takes the rule's numbers by their config names, mpmath frequencies ω, the base, the
number d of rotated features and the length of the sequence, and returns ω'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpmath import mp

Numbers = Mapping[str, Any]


def linear(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Divide every frequency by the factor (arXiv 2306.15595)."""
    return [w / mp.mpf(n["factor"]) for w in omega]


def ntk(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Raise the base."""
    return _powers(base * mp.mpf(n["factor"]) ** (mp.mpf(d) / (d - 2)), omega, d)


def dynamic_ntk(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Raise the base by the length."""
    s, trained = mp.mpf(n["factor"]), n["original_max_position_embeddings"]
    growth = s * max(length, trained) / trained - (s - 1)
    return _powers(base * growth ** (mp.mpf(d) / (d - 2)), omega, d)


def yarn(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Interpolate the pairs that turn seldom (arXiv 2309.00071, section 3.2)."""
    trained = n["original_max_position_embeddings"]

    def pair_that_turns(times: float) -> Any:
        return d * mp.log(trained / (2 * mp.pi * mp.mpf(times))) / (2 * mp.log(base))

    first = pair_that_turns(n.get("beta_fast", 32.0))
    last = pair_that_turns(n.get("beta_slow", 1.0))
    if n.get("truncate", True):
        first, last = mp.floor(first), mp.ceil(last)
    first, last = max(first, 0), min(last, d - 1)
    if first == last:
        last += mp.mpf("0.001")
    out = []
    for i, w in enumerate(omega):
        ramp = min(max((i - first) / (last - first), 0), 1)
        out.append(w / mp.mpf(n["factor"]) * ramp + w * (1 - ramp))
    return out


def longrope(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Divide pair by pair (arXiv 2402.13753)."""
    long = length > n["original_max_position_embeddings"]
    return [
        w / mp.mpf(f)
        for w, f in zip(omega, n["long_factor" if long else "short_factor"], strict=True)
    ]


def llama3(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Divide long wavelengths, keep short ones, mix between."""
    trained, s = n["original_max_position_embeddings"], mp.mpf(n["factor"])
    low, high = mp.mpf(n["low_freq_factor"]), mp.mpf(n["high_freq_factor"])
    out = []
    for w in omega:
        wavelength = 2 * mp.pi / w
        if wavelength > trained / low:
            out.append(w / s)
        elif wavelength < trained / high:
            out.append(w)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            out.append((1 - smooth) * w / s + smooth * w)
    return out


def proportional(n: Numbers, omega: list[Any], base: Any, d: int, length: int) -> list[Any]:
    """Rotate the first share of the pairs."""
    rotating = int(n["partial_rotary_factor"] * d // 2)
    s = mp.mpf(n.get("factor", 1.0))
    return [w / s if i < rotating else mp.mpf(0) for i, w in enumerate(omega)]


RULES = {
    "Linear": linear,
    "NTK": ntk,
    "DynamicNTK": dynamic_ntk,
    "YaRN": yarn,
    "LongRoPE": longrope,
    "Llama3": llama3,
    "Proportional": proportional,
}


def attention_factor(rule: str, n: Numbers, length: int) -> Any:
    """Return the number that multiplies cos and sin."""
    if rule == "LongRoPE" and n.get("short_mscale") is not None:
        long = length > n["original_max_position_embeddings"]
        return mp.mpf(n["long_mscale" if long else "short_mscale"])
    if n.get("attention_factor") is not None:
        return mp.mpf(n["attention_factor"])
    s = mp.mpf(n.get("factor") or 1)
    if rule == "LongRoPE" and s > 1:
        return mp.sqrt(1 + mp.log(s) / mp.log(n["original_max_position_embeddings"]))
    if rule != "YaRN":
        return mp.mpf(1)
    if n.get("mscale") and n.get("mscale_all_dim"):
        return _magnitude(s, n["mscale"]) / _magnitude(s, n["mscale_all_dim"])
    return _magnitude(s, 1.0)


def _magnitude(s: Any, m: float) -> Any:
    return 1 + mp.mpf(m) * mp.log(s) / 10 if s > 1 else mp.mpf(1)


def _powers(base: Any, omega: list[Any], d: int) -> list[Any]:
    return [base ** (-mp.mpf(2 * i) / d) for i in range(len(omega))]

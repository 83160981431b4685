"""Positive orthogonal random features (FAVOR+), whose projection is the same on every machine.

    exp(q·k/√D) = E[exp(ω·q' − |q'|²/2)·exp(ω·k' − |k'|²/2)],   x' = D^(−1/4)·x,   ω ~ N(0, I)

Choromanski et al., "Rethinking Attention with Performers", arXiv 2009.14794, section 2.4 and lemma
1.  The rows ω come from an integer generator, logarithms in decimal and + − × ÷ √ of float64 one
element at a time: no bit depends on a library's random numbers, logarithm, sum or decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rotary.checks import count, whole
from rotary.exact.words import CONTEXT

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_MOST_SEED = 2**64 - 1
# Beyond the 17 digits that tell float64 numbers apart; the 100 of CONTEXT take five times as long.
_DIGITS = 25


@dataclass(frozen=True)
class FavorPlus:
    """FAVOR+: m positive features whose products estimate exp(q·k/√D) without bias.

        φ(x) = m^(−1/2)·exp(ω_r·x' − |x'|²/2 − c),   r = 1 … m,   x' = D^(−1/4)·x

    with a stabiliser c that the normaliser takes out again.  The error of the estimate falls as
    1/√m; orthogonal rows ω make it smaller than independent ones.  A description made of numbers:
    hashable, comparable; the projection is made from it where it is needed.

    Choromanski et al., "Rethinking Attention with Performers", arXiv 2009.14794, section 2.4.

    Parameters
    ----------
    num_features : int
        m, the number of rows ω.
    seed : int
        From 0 to 2^64 − 1.  Layers that shall not share their errors take different seeds.

    Raises
    ------
    TypeError, ValueError
        For values outside these ranges, naming the argument.

    Examples
    --------
    >>> import numpy as np
    >>> import rotary
    >>> rows = rotary.linear.FavorPlus(num_features=6, seed=1).projection(4)
    >>> rows.shape
    (6, 4)
    >>> products = rows[:4] @ rows[:4].T  # a block of four orthogonal rows
    >>> bool(np.allclose(products, np.diag(np.diag(products))))
    True
    >>> more = rotary.linear.FavorPlus(num_features=9, seed=1).projection(4)
    >>> bool(np.array_equal(more[:6], rows))
    True
    """

    num_features: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_features", whole("num_features", self.num_features))
        object.__setattr__(self, "seed", count("seed", self.seed))
        if self.seed > _MOST_SEED:
            raise ValueError(f"seed: got {self.seed}, expected less than 2^64")

    def projection(self, key_dim: int) -> Floats:
        """Return the rows ω, in blocks of key_dim orthogonal rows of which the last may be cut.

        Each row is by itself a vector of independent standard Gaussians: its direction is
        uniform, its length that of a Gaussian vector, independent of all directions and of the
        other lengths.  Rows do not depend on how many follow: a larger num_features adds rows.

        Parameters
        ----------
        key_dim : int
            D, the number of entries a row.

        Returns
        -------
        ndarray, shape (num_features, key_dim)
            float64, read-only, with the same bits on every machine; the cosine of two rows of a
            block is below 10⁻¹⁵.  Made once: 0.1 s for 256 rows of 64 entries.

        Raises
        ------
        TypeError, ValueError
            Unless key_dim is a positive whole number.

        Examples
        --------
        >>> import rotary
        >>> rotary.linear.FavorPlus(num_features=2).projection(3).round(3).tolist()
        [[0.985, -0.176, -0.712], [0.069, -0.813, 0.296]]
        """
        return _projection(self, whole("key_dim", key_dim))


@lru_cache(maxsize=64)
def _projection(favor: FavorPlus, dim: int) -> Floats:
    gaussian = gaussians(favor.seed, favor.num_features * dim).reshape(-1, dim)
    # A Gaussian vector's length is independent of its direction, and the orthonormal rows depend
    # on directions alone: no second draw is needed for the lengths.
    lengths = _length(gaussian)
    blocks = [_orthonormal(gaussian[i : i + dim]) for i in range(0, len(gaussian), dim)]
    rows: Floats = lengths * np.concatenate(blocks)
    rows.flags.writeable = False
    return rows


def split_mix(seed: int, start: int, stop: int) -> Words:
    """Return the words number start … stop − 1 of SplitMix64 from that seed, uint64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
    constants of java.util.SplittableRandom.
    """
    # Arrays of uint64 wrap around modulo 2^64 in silence; NumPy's scalars warn.
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def gaussians(seed: int, count: int) -> Floats:
    """Return the first independent standard Gaussians of a seed, (count,).

    The polar method (Marsaglia and Bray 1964): of a point (x, y) in the unit disc with s = x² + y²,
    x and y times √(−2 ln(s)/s) are two of them.
    """
    points = np.empty((0, 2))
    missing, drawn = (count + 1) // 2, 0
    while missing:  # each round leaves about a fifth
        words = split_mix(seed, drawn, drawn + 2 * missing)
        drawn += 2 * missing
        # Multiples of 2^−52 from −1 on: 53 bits, exactly.
        x = (words >> np.uint64(11)).astype(np.float64).reshape(-1, 2) * 2.0**-52 - 1.0
        s = _squares(x)
        points = np.concatenate([points, x[(s > 0) & (s < 1)]])
        missing = (count + 1) // 2 - len(points)
    s = _squares(points)
    with localcontext(CONTEXT) as context:
        context.prec = _DIGITS
        logs = np.array([float(Decimal(x).ln()) for x in s.tolist()])
    return (points * np.sqrt(-2.0 * logs / s)[:, None]).reshape(-1)[:count]


def _squares(points: Floats) -> Floats:
    x, y = points[:, 0], points[:, 1]
    return x * x + y * y


def _orthonormal(rows: Floats) -> Floats:
    """Return rows orthonormalised in turn: Gram and Schmidt's, modified, twice.

    Once leaves cosines of up to 3·10⁻¹³ (128 rows), the larger the closer rows are to dependent.
    """
    rows = rows.copy()
    for _ in range(2):
        for i in range(len(rows)):
            rows[i] /= _length(rows[i])
            rest = rows[i + 1 :]
            rest -= _sum(rest * rows[i]) * rows[i]
    return rows


def _length(rows: Floats) -> Floats:
    return np.sqrt(_sum(rows * rows))


def _sum(x: Floats) -> Floats:
    """Return the sum along the last axis, which stays: halves are added to halves.

    NumPy's own order depends on the processor.  :func:`rotary.exact.sums.tree` is for float32.
    """
    while (length := x.shape[-1]) > 1:
        half = (length + 1) // 2
        x = np.concatenate(
            [x[..., : length - half] + x[..., half:], x[..., length - half : half]], -1
        )
    return x

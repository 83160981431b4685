"""Matrix products whose bits depend on neither the library, nor its BLAS, nor its threads.

    a = 2^e·(a₀ + a₁ + a₂ + a₃) row by row,   b likewise column by column
    a·b = 2^e·Σ_{i+j<4} a_i·b_j·2^f, the smallest products first

Each operand is cut along the contracted axis into four slices of few bits, relative to a power of
two of its row (Ozaki, Ogita, Oishi and Rump, 2012, section 2): so few that every partial sum of a
product of slices is exact in float32, in any order, with or without fused multiply-adds.  What is
rounded is the sum of the products, element by element and in one order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rotary.backends import Backend

SLICES = 4
LONGEST = 256
"""The contracted length up to which one cut will do."""
# Below this a result becomes zero.  Twice the least normal number: where results below that are
# flushed, some libraries decide before rounding and some after.
LEAST = 2.0**-125

# Bit patterns.
SIZE = 0x7FFFFFFF
_EXPONENT = 0x7F800000
_ONE = 0x3F800000


class Block(NamedTuple):
    """At most 256 places of the contracted axis of a matrix, cut for a product."""

    slices: Any
    """Four slices side by side along the contracted axis, in a right operand the last first."""
    first: Any = None
    """Half of the power of two that its rows or columns are multiplied by; None for one."""
    second: Any = None


Operand = tuple[Block, ...]


def bits_of_slice(length: int) -> int:
    """Return w, the bits from one slice to the next, for a contracted length up to 256.

    A slice holds at most 2^(w−1) units of its last place and four products are summed at once:
    4·length·2^(2w−2) ≤ 2^24.
    """
    return 9 if length <= 64 else 8


@dataclass(frozen=True)
class Products:
    """Exact products of float32 arrays of one library.

    Operands are cut by one of four methods and multiplied by :meth:`multiply`.  A row of a left
    operand or a column of a right operand with an infinity or a NaN makes NaN of its row or column
    of the result, and of nothing else.  Subnormal numbers count as zero.
    """

    backend: Backend

    def rows(self, x: Any) -> Operand:
        """Cut x (…, M, K) as a left operand."""
        return tuple(self._block(part, -1, last_first=False) for part in _parts(x, -1))

    def columns(self, x: Any) -> Operand:
        """Cut x (…, K, N) as a right operand."""
        return tuple(self._block(part, -2, last_first=True) for part in _parts(x, -2))

    def rows_transposed(self, x: Any) -> Operand:
        """Cut xᵀ as a right operand, x (…, N, K)."""
        turn = self.backend.namespace(x).matrix_transpose
        blocks = (self._block(part, -1, last_first=True) for part in _parts(x, -1))
        return tuple(Block(*map(turn, block)) for block in blocks)

    def tokens(self, v: Any) -> tuple[Operand, Any]:
        """Cut v (…, K, N) as a right operand whose rows share no scale, and return their scales.

        The scales, powers of two of shape (…, 1, K), belong to the left operand, which has to be
        multiplied by them before it is cut.  A power of two a column would depend on every token,
        and the rounding of earlier results on later tokens.  A token with an infinity or a NaN is
        cut to zeros, and its scale is NaN: see :meth:`weigh`.
        """
        backend = self.backend
        top, pattern = self._largest(v, -1)
        scales = backend.from_bits(pattern - 2**23) + (top - top)  # or NaN
        v = backend.from_bits(backend.bits(v) & below(pattern, _EXPONENT))
        v *= backend.from_bits(_EXPONENT - pattern)
        one = self._one(pattern)
        operand = tuple(
            Block(self._slices(part, one, -2, last_first=True)) for part in _parts(v, -2)
        )
        return operand, backend.namespace(v).matrix_transpose(scales)

    def weigh(self, x: Any, weights: Any) -> Any:
        """Return x·weights, and zero where the weights are zero, whatever x is."""
        backend = self.backend
        zero = below(backend.bits(weights) & SIZE, 1)
        return backend.from_bits(backend.bits(x * weights) & ~zero)

    def multiply(self, left: Operand, right: Operand) -> Any:
        """Return the product of a left and a right operand, (…, M, N)."""
        if len(left) == 1:
            return self._multiply(left[0], right[0])
        # A tree, as of a sum, with zeros at the end.
        half = 1 << (len(left) - 1).bit_length() - 1
        total = self.multiply(left[:half], right[:half])
        total += self.multiply(left[half:], right[half:])
        return self.settle(total)

    def settle(self, x: Any) -> Any:
        """Return x, and zero where |x| < 2^−125: XLA's code flushes subnormal numbers on CPUs."""
        return settle(self.backend, x)

    def _multiply(self, left: Block, right: Block) -> Any:
        length = right.slices.shape[-2] // SLICES
        # a₀·b₃ + a₁·b₂ + a₂·b₁ + a₃·b₀, then a₀·b₂ + a₁·b₁ + a₂·b₀, …: each sum is exact.
        total = left.slices @ right.slices
        for n in range(SLICES - 1, 0, -1):
            total += left.slices[..., : n * length] @ right.slices[..., (SLICES - n) * length :, :]
        # In halves, so that nothing leaves float32's range unless the result does.
        second = left.second
        total *= left.first
        if right.first is not None:
            total *= right.first
            second = second * right.second
        total *= second
        return self.settle(total)

    def _block(self, x: Any, contracted: int, *, last_first: bool) -> Block:
        """Cut x along an axis, relative to the largest number along it."""
        backend = self.backend
        _, pattern = self._largest(x, contracted)
        y = x * backend.from_bits(_EXPONENT - pattern)
        exponent = pattern >> 23
        first = backend.from_bits(((exponent >> 1) + 63) << 23)
        second = backend.from_bits((((exponent + 1) >> 1) + 63) << 23)
        return Block(self._slices(y, self._one(pattern), contracted, last_first), first, second)

    def _largest(self, x: Any, axis: int) -> tuple[Any, Any]:
        """Return max |x| along an axis, and the bits of 2^e, the power of two up to it.

        e ≥ −90: the last place of what is kept stays above all subnormal numbers, so that they
        vanish alike where they are flushed and where they are not.
        """
        backend = self.backend
        xp = backend.namespace(x)
        top = xp.max(xp.abs(x), axis=axis, keepdims=True)
        return top, backend.bits(top + 2.0**-90) & _EXPONENT

    def _one(self, pattern: Any) -> Any:
        """Return ones that depend on the data: XLA folds (x + s) − s where s is a constant."""
        return self.backend.from_bits(below(pattern[..., :1, :1], 0) + _ONE)

    def _slices(self, y: Any, one: Any, contracted: int, last_first: bool) -> Any:
        """Return four slices of y, |y| < 4, side by side; 2^(2 − 4w) at most stays in y."""
        width = bits_of_slice(y.shape[contracted])
        slices = []
        for n in range(SLICES):
            # Rounds to multiples of 2^(3 − w − w·n).
            shift = one * (1.5 * 2.0 ** (26 - width - width * n))
            part = y + shift
            part -= shift
            slices.append(part)
            y -= part
        if last_first:
            slices.reverse()
        return self.backend.namespace(y).concat(slices, axis=contracted)


def _parts(x: Any, axis: int) -> list[Any]:
    """Cut x into parts of at most 256 places along one of the last two axes."""
    length = x.shape[axis]
    if length <= LONGEST:
        return [x]
    parts = [slice(n, min(n + LONGEST, length)) for n in range(0, length, LONGEST)]
    return [x[..., part] if axis == -1 else x[..., part, :] for part in parts]


def settle(backend: Backend, x: Any) -> Any:
    """Return x, and zero where |x| < 2^−125."""
    return cut(backend, x, LEAST)


def cut(backend: Backend, x: Any, least: float) -> Any:
    """Return x, and zero where |x| < least, a float32; NaN stays."""
    pattern = backend.bits(x)
    smallest = int(np.float32(least).view(np.int32))
    return backend.from_bits(pattern & ~below(pattern & SIZE, smallest))


def below(size: Any, pattern: int) -> Any:
    """Return −1, all bits set, where a bit pattern without its sign is below another, else 0.

    Masks of bits replace comparisons and selections throughout: these cost NumPy and torch five
    to twenty times as much, and a product with zero keeps NaN.
    """
    # Twice, for libraries that divide by a power of two: 2^31 is no int32.
    return (size - pattern) >> 15 >> 16

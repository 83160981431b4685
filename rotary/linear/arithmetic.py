"""The two arithmetics of linear attention, as records with the same methods.

The chunk step is written once and given one of them: ``Fast`` is the library's own matmul and exp;
the exact one, of :mod:`rotary.exact`, cuts operands into slices whose products are exact in any
order.  What a method returns is handed to ``multiply`` and to nothing else where its type is Any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rotary.backends import Backend
from rotary.exact import elementary, sums
from rotary.exact.products import Products, cut

LEAST_NORMAL = 2.0**-126
LEAST_FEATURE = 2.0**-64
NAMES = ("fast", "exact")


class Arithmetic(Protocol):
    """What a chunk step asks of numbers."""

    @property
    def backend(self) -> Backend:
        """The library of the arrays."""
        ...

    def enter(self, x: Any, /) -> Any:
        """Return an input as this arithmetic takes it."""
        ...

    def rows(self, x: Any, /) -> Any:
        """Prepare x as a left operand, contracted along its last axis."""
        ...

    def columns(self, x: Any, /) -> Any:
        """Prepare x as a right operand, contracted along its last axis but one."""
        ...

    def rows_transposed(self, x: Any, /) -> Any:
        """Prepare xᵀ as a right operand, contracted along x's last axis."""
        ...

    def tokens(self, v: Any, /) -> tuple[Any, Any]:
        """Prepare v as a right operand whose rows are tokens, and return each token's scale.

        The scale, a row (…, 1, tokens) or None for one, belongs to the left operand: a scale for
        each column of v would look ahead.
        """
        ...

    def multiply(self, left: Any, right: Any, /) -> Any:
        """Return the product of two prepared operands."""
        ...

    def weigh(self, scores: Any, weights: Any, /) -> Any:
        """Return scores times weights, where the weights are zero whatever the scores are."""
        ...

    def settle(self, x: Any, /) -> Any:
        """Return a sum as this arithmetic keeps it."""
        ...

    def product(self, x: Any, y: Any, /) -> Any:
        """Return x·y, rounded before anything is added to it."""
        ...

    def sum(self, x: Any, axis: int, /) -> Any:
        """Return the sum along an axis, which stays with length 1."""
        ...

    def prefix(self, x: Any, low: Any, /) -> tuple[Any, Any]:
        """Return the inclusive sums along the last axis but one of x + low, in two words."""
        ...

    def exp(self, x: Any, /) -> Any:
        """Return e^x."""
        ...

    def reciprocal(self, x: Any, /) -> Any:
        """Return 1/x."""
        ...

    def rsqrt(self, x: Any, /) -> Any:
        """Return 1/√x."""
        ...


@dataclass(frozen=True)
class Fast:
    """The library's own operations, in the dtype that comes in."""

    backend: Backend

    def enter(self, x: Any) -> Any:
        """Return x."""
        return x

    rows = columns = settle = enter

    def rows_transposed(self, x: Any) -> Any:
        """Return xᵀ."""
        return self.backend.namespace(x).matrix_transpose(x)

    def tokens(self, v: Any) -> tuple[Any, Any]:
        """Return v, and no scale."""
        return v, None

    def multiply(self, left: Any, right: Any) -> Any:
        """Return left @ right."""
        return left @ right

    def weigh(self, scores: Any, weights: Any) -> Any:
        """Return scores·weights: a selection costs NumPy ten times a product."""
        return scores * weights

    product = weigh

    def sum(self, x: Any, axis: int) -> Any:
        """Return the library's sum."""
        return self.backend.namespace(x).sum(x, axis=axis, keepdims=True)

    def prefix(self, x: Any, low: Any) -> tuple[Any, Any]:
        """Return the sums of multiples of 2^−8, exact up to 2^16, and the sums of the rest."""
        xp = self.backend.namespace(x)
        coarse = xp.round(x * 256.0) * (1 / 256)
        rest = x - coarse if low is None else (x - coarse) + low
        return running_sum(xp, coarse, -2), running_sum(xp, rest, -2)

    def exp(self, x: Any) -> Any:
        """Return the library's exp."""
        return self.backend.namespace(x).exp(x)

    def reciprocal(self, x: Any) -> Any:
        """Return 1/x: XLA makes a product with it of any division."""
        return 1.0 / x

    def rsqrt(self, x: Any) -> Any:
        """Return 1/√x."""
        return 1.0 / self.backend.namespace(x).sqrt(x)


@dataclass(frozen=True)
class Exact(Products):
    """float32 whose bits depend on neither library nor machine; see :mod:`rotary.exact`."""

    def enter(self, x: Any) -> Any:
        """Return x without subnormal numbers, which some libraries flush and some do not."""
        return cut(self.backend, x, LEAST_NORMAL)

    def product(self, x: Any, y: Any) -> Any:
        """Return x·y, rounded before anything is added to it."""
        return self.backend.finite_product(x, y)

    def sum(self, x: Any, axis: int) -> Any:
        """Return the sum by a tree of additions."""
        return sums.tree(self.backend, x, axis)

    def prefix(self, x: Any, low: Any) -> tuple[Any, Any]:
        """Return the sums by doubling."""
        return sums.prefix(self.backend, x, low)

    def exp(self, x: Any) -> Any:
        """Return e^x, 0 below 2^−64 so that products of two are no subnormal numbers."""
        return cut(self.backend, elementary.exp(self.backend, x), LEAST_FEATURE)

    def reciprocal(self, x: Any) -> Any:
        """Return 1/x by Newton's iteration."""
        return elementary.reciprocal(self.backend, x)

    def rsqrt(self, x: Any) -> Any:
        """Return 1/√x by Newton's iteration."""
        return elementary.rsqrt(self.backend, x)


def dot(a: Arithmetic, x: Any, y: Any) -> Any:
    """Return the sums of x·y over the last axis, which stays with length 1."""
    return a.sum(a.settle(a.product(x, y)), -1)


def decay(a: Arithmetic, x: Any) -> Any:
    """Return e^x for log decays x: rounding may not make a decay a growth."""
    xp = a.backend.namespace(x)
    return a.exp(xp.minimum(x, xp.zeros_like(x)))


def running_sum(xp: Any, x: Any, axis: int) -> Any:
    """Return the library's inclusive sums."""
    # By the old name where there is one: NumPy has the standard's from 2.1 on, and torch's, which
    # array-api-compat wraps, is not followed by torch.compile.
    cumsum = getattr(xp, "cumsum", None)
    return xp.cumulative_sum(x, axis=axis) if cumsum is None else cumsum(x, axis)


def arithmetic(name: str, backend: Backend) -> Arithmetic:
    """Return the arithmetic of that name for a library."""
    return Fast(backend) if name == "fast" else Exact(backend)

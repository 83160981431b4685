"""exp, 1/x and 1/√x of float32, for any array library, with bits that depend on nothing else.

    exp(x) = 2^n·exp(x − n·ln 2),   1/x and 1/√x by Newton's iteration on x's significand

Only + − × rint, selection and the bits of numbers are used, each product that is followed by a sum
through the backend's `finite_product`.  No division: XLA's is off by up to 2 ulp on GPUs.  Results
below 2^−125 are zero, and zeros have no sign.
"""

from __future__ import annotations

from typing import Any

from rotary.backends import Backend
from rotary.exact import errorfree
from rotary.exact.products import SIZE, below

_LOG2_E = float.fromhex("0x1.715476p+0")
# 16 bits, so that its products with whole numbers below 2^8 are exact, and the next 24.
_LN2_HIGH = float.fromhex("0x1.62e4p-1")
_LN2_LOW = float.fromhex("0x1.7f7d1cp-20")
# (e^r − 1 − r)/r² for |r| ≤ ln(2)/2, lowest power last: minimax, off by 2^−28 of e^r.
_REST = tuple(
    map(
        float.fromhex,
        ("0x1.6a4d5ap-10", "0x1.12398ep-7", "0x1.5558b0p-5", "0x1.555492p-3", "0x1.fffffcp-2"),
    )
)
# Adding it to a whole number below 2^22 leaves that in the lowest bits.
_WHOLE = 1.5 * 2.0**23
_WHOLE_BITS = 0x4B400000

# Bit patterns.
_SIGNIFICAND = 0x007FFFFF
_LEAST_NORMAL = 0x00800000
_ONE = 0x3F800000
_INFINITY = 0x7F800000
_NAN = 0x7FC00000


def exp(backend: Backend, x: Any) -> Any:
    """e^x: 0 below −86.98, where it is less than 2^−125.5, and ∞ where it exceeds float32."""
    xp, product = backend.namespace(x), backend.finite_product
    # Not clip: for CuPy it is a dozen kernels, of which some wait.
    zero = xp.zeros_like(x)
    x = xp.maximum(xp.minimum(x, zero + 89.0), zero - 87.0)
    n = xp.round(product(x, _LOG2_E))
    high, low = x - n * _LN2_HIGH, product(n, _LN2_LOW)
    r = high - low
    p = product(r, _REST[0]) + _REST[1]
    for coefficient in _REST[2:]:
        p = product(r, p)
        p += coefficient
    y = product(product(r, r), p)
    y += (high - r) - low  # what r has lost
    y += r
    y += 1.0
    # 2y·2^(n − 1): 2^128 is no float32, and 2^−126·y might be subnormal.
    power = backend.from_bits((backend.bits(n + _WHOLE) - (_WHOLE_BITS - 126)) << 23)
    return (y + y) * power


def reciprocal(backend: Backend, x: Any) -> Any:
    """1/x: ∞ where |x| < 2^−126, which counts as zero, and 0 where |x| ≥ 2^126."""
    product = backend.finite_product
    pattern = backend.bits(x)
    size = pattern & SIZE
    f = backend.from_bits((pattern & _SIGNIFICAND) | _ONE)
    # |1 − f·r| ≤ 1/17; squared by each step.
    r = 24 / 17 - product(f, 8 / 17)
    for _ in range(2):
        r = r + product(r, 1.0 - product(f, r))
    split, _, two_product, _ = _error_free(backend)
    high, low = split(f)
    p, error = two_product(f, high, low, r)
    r = r + product((1.0 - p) - error, r)
    # 2r·2^(−e − 1): what is normal is not made from what is not.
    y = (r + r) * backend.from_bits((253 << 23) - (size & _INFINITY))
    tiny = below(size, _LEAST_NORMAL)
    y = (backend.bits(y) | (pattern & ~SIZE)) & ~tiny & below(size, 253 << 23)
    nan = ~below(size, _INFINITY + 1)
    return backend.from_bits(y | (tiny & _INFINITY) | (nan & _NAN))


def rsqrt(backend: Backend, x: Any) -> Any:
    """1/√x: ∞ where |x| < 2^−126, which counts as zero, and NaN where x ≤ −2^−126."""
    product = backend.finite_product
    pattern = backend.bits(x)
    size = pattern & SIZE
    # x = f·4^half with f in [1, 4): the lowest bit of the exponent stays with f.
    exponent = size >> 23
    odd = (exponent + 1) & 1
    half = (exponent - 127 - odd) >> 1
    f = backend.from_bits((pattern & _SIGNIFICAND) | (_ONE + (odd << 23)))
    # Lomont 2003: within 3.5%; each step takes 3/2 of the square.
    y = backend.from_bits(0x5F375A86 - (backend.bits(f) >> 1))
    h = f * 0.5
    for _ in range(2):
        y = y + product(y, 0.5 - product(product(h, y), y))
    split, _, two_product, _ = _error_free(backend)
    high, low = split(f)
    root, root_error = two_product(f, high, low, y)
    high, low = split(root)
    p, error = two_product(root, high, low, y)
    rest = ((1.0 - p) - error) - product(root_error, y)
    y = y + product(rest, y * 0.5)
    y = y * backend.from_bits((127 - half) << 23)
    tiny = below(size, _LEAST_NORMAL)
    y = backend.bits(y) & ~tiny & below(size, _INFINITY)
    nan = (below(pattern, 0) & ~tiny) | ~below(size, _INFINITY + 1)
    return backend.from_bits(y | (tiny & _INFINITY) | (nan & _NAN))


def _error_free(backend: Backend) -> errorfree.ErrorFree:
    return errorfree.bind(product=backend.finite_product, splitter=errorfree.SPLITTER_FLOAT32)

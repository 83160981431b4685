"""Arithmetic whose bits do not depend on the machine or on the array library."""

from rotary.exact.functions import exp, matmul, reciprocal, rsqrt, sum

__all__ = ["exp", "matmul", "reciprocal", "rsqrt", "sum"]

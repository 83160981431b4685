"""Where array-api-compat looks for the class."""

from cupy.cuda import Device

__all__ = ["Device"]

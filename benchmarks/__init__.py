"""Timings of rotary beside what else there is, all in one run: ``rotary bench``.

It needs the extra ``check`` (matplotlib for pictures, rich, ml_dtypes) and times what is installed.
"""

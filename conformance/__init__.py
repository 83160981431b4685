"""The suite that proves it: oracle, cases, comparison, runner, report.

It needs the extra ``check`` (mpmath, ml_dtypes, rich).
"""

from rotary.conformance.libraries import NotInstalledError
from rotary.conformance.report import Report
from rotary.conformance.runner import Cell, run

__all__ = ["Cell", "NotInstalledError", "Report", "run"]

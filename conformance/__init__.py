"""The suite that proves it: oracle, cases, comparison, runner, report; and for foreign code, too.

It needs the extra ``check`` (jinja2, mpmath, ml_dtypes, rich).
"""

from rotary.conformance.identify import Diagnosis, identify
from rotary.conformance.implementation import NotCallableError, described
from rotary.conformance.libraries import NotInstalledError
from rotary.conformance.reach import Held, check_implementation
from rotary.conformance.report import Report
from rotary.conformance.runner import Cell, run

__all__ = [
    "Cell",
    "Diagnosis",
    "Held",
    "NotCallableError",
    "NotInstalledError",
    "Report",
    "check_implementation",
    "described",
    "identify",
    "run",
]

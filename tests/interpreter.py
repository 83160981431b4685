"""Fresh interpreters, for what one process can find out only once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run(code: str, *path: Path, before: Path | None = None, **environment: str) -> str:
    """Return what a fresh interpreter prints.

    Packages in `path` are found after those that are installed, packages in `before` in their
    stead; `environment` is set beside what there is.
    """
    preamble = f"import sys; sys.path += {list(map(str, path))!r}\n"
    found = filter(None, [before and str(before), *sys.path])
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", preamble + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(found)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

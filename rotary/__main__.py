"""``python -m rotary`` is the command ``rotary``."""

import sys

from rotary.cli import main

sys.exit(main())

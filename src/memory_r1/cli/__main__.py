"""The command line as a module, `python -m memory_r1.cli`, which is how launchers of several processes start it."""

from __future__ import annotations

import sys

from memory_r1.cli import main

sys.exit(main())

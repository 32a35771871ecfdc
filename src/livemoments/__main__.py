"""``python -m livemoments``: the same as the command ``livemoments``."""

from __future__ import annotations

import sys

from livemoments.cli import main

if __name__ == "__main__":
    sys.exit(main())

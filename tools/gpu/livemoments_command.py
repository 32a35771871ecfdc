"""The command line ``livemoments`` from a bare checkout."""

import sys

from bench_path import make_importable

make_importable()

from livemoments.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

"""Where the tests find what lies beside them."""

from pathlib import Path

SUPPORT = Path(__file__).parent
"""On the path of every test; a process that a test starts needs it on its own."""
TESTS = SUPPORT.parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden" / "tiny"
"""A small recording that the verified reference made (``tools/record_golden.py``)."""
UPSTREAM_GOLDEN = ROOT.parent / "shared" / "golden" / "official_tiny_a"
"""What upstream's own code produced; only in the team's own workplaces."""

"""The operation that marks the end of an iteration while tracing; no graph that is written contains it."""

from __future__ import annotations

MARK_DOMAIN = "livemoments"
MARK_OP = "IterationEnd"
MARK = f"{MARK_DOMAIN}::{MARK_OP}"

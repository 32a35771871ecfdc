"""HEIC through pillow-heif, where it is installed: no dependency, since HEVC's codecs carry patents."""

from __future__ import annotations

import importlib


def register() -> bool:
    """Let Pillow open and save HEIC; ``False`` where pillow-heif is not installed."""
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    plugin.register_heif_opener()
    return True


def can_write() -> bool:
    """Whether there is an HEVC encoder: distributions build libheif without one."""
    return register() and bool(importlib.import_module("pillow_heif").libheif_info().get("HEIF"))

"""Importing onnxruntime: late, because it is slow, and quietly."""

from __future__ import annotations

import importlib
import os
from typing import Any

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module, with its telemetry off: official builds report to Microsoft from the import on unless told not to.

    Only this variable stops it before it starts (onnxruntime's Privacy.md); one that is set already is left alone.
    """
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    return importlib.import_module("onnxruntime")

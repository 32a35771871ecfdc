"""What the driver says of the GPU, and how results are written. Needs Python alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
NAME = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu", "memory.total")


def read_clocks() -> dict[str, str] | None:
    """The GPU's clocks, power and temperature now, with their units; ``None`` where nobody can tell."""
    line = first_line("nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader")
    return None if line is None else dict(zip(_CLOCKS, (part.strip() for part in line.split(",")), strict=False))


def first_line(program: str, *arguments: str) -> str | None:
    """A program's first line of output; ``None`` where it is missing, hangs or fails."""
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write results in one step: who is stopped meanwhile leaves the earlier ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    os.replace(partial, path)  # noqa: PTH105  (replace, also where it exists)

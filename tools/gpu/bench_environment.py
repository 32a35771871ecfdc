"""What the numbers were taken on: date, chip, driver, versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

import torch
from bench_path import ROOT

from livemoments.version import __version__

_PACKAGES = ("numpy", "safetensors", "triton", "diffusers")


_CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu", "memory.total")


def describe_environment(device: torch.device, package_from: str, commit: str | None = None) -> dict[str, Any]:
    """A record to go with the results.

    Args:
        device: what is measured.
        package_from: where ``livemoments`` comes from.
        commit: of the sources, where they were copied without their history; by default git is asked.
    """
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()) if torch.backends.cudnn.is_available() else None,
        "livemoments": __version__,
    }
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "device": _device(device),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": versions,
        "package_from": package_from,
        "commit": commit or _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "clocks": read_clocks(),
    }


def read_clocks() -> dict[str, str] | None:
    """The GPU's clocks, power and temperature now, with their units; ``None`` where nobody can tell."""
    line = _output("nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader")
    return None if line is None else dict(zip(_CLOCKS, (part.strip() for part in line.split(",")), strict=False))


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
    }


def _output(program: str, *arguments: str) -> str | None:
    """A program's first line of output; ``None`` where it is missing or fails."""
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None

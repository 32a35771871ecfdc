"""What the numbers were taken on: date, chip, driver, versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

import torch
from bench_path import ROOT
from gpu_state import DRIVER, first_line, read_clocks

from livemoments.version import __version__

_PACKAGES = ("numpy", "safetensors", "triton", "diffusers")


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
        "driver": first_line(*DRIVER),
        "versions": versions,
        "package_from": package_from,
        "commit": commit or first_line("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "clocks": read_clocks(),
    }


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

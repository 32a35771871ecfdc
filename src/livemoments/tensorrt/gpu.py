"""The GPU that CUDA would take first, through NVIDIA's management library; none is an answer, too."""

from __future__ import annotations

import os
from dataclasses import dataclass

CUDA_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""In the environment of what builds: its first GPU is then the management library's."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """Name, compute capability (``"9.0"``) and driver version."""

    name: str
    sm: str
    driver: str


def find_gpu() -> Gpu | None:
    """The first visible GPU; ``None`` without one, without a driver or without ``nvidia-ml-py``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1"):
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        if visible.isdecimal():
            device = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        else:
            device = pynvml.nvmlDeviceGetHandleByUUID(visible)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
        name, driver = pynvml.nvmlDeviceGetName(device), pynvml.nvmlSystemGetDriverVersion()
        return Gpu(_text(name), f"{major}.{minor}", _text(driver))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _text(found: str | bytes) -> str:
    return found.decode() if isinstance(found, bytes) else found

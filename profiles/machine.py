"""What this machine is, and which profile it takes when none is named."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from typing import Literal

from livemoments.profiles.read import NAMES, load_profile
from livemoments.profiles.schema import Profile
from livemoments.validate.cost.machine import describe_machine, memory_limit_bytes
from livemoments.validate.cost.nvml import open_gpu

AUTO = "auto"
"""What ``--profile`` calls the profile of this machine."""
_SAME_MEMORY = 0.9  # a driver reports a little less than the card is sold with
_SYSCTL = "/usr/sbin/sysctl"


@dataclass(frozen=True, slots=True)
class Device:
    """One thing that can compute.

    Attributes:
        kind: see :class:`livemoments.profiles.schema.Profile`.
        name: as the driver or the system gives it.
        memory_bytes: that it can use; ``None``: unknown.
        instructions: of a CPU.
        provider: onnxruntime's provider for it.
        usable: whether the installed onnxruntime has that provider.
        profile: the shipped profile that fits it; ``None``: none does.
    """

    kind: Literal["cpu", "cuda", "coreml"]
    name: str
    memory_bytes: int | None
    instructions: tuple[str, ...]
    provider: str
    usable: bool
    profile: str | None


def find_devices() -> tuple[Device, ...]:
    """The devices of this machine, the one to be used by default first.

    That is a usable accelerator with a profile, else the CPU. A GPU whose provider the installed onnxruntime lacks is
    listed all the same.
    """
    available = _providers()
    machine = describe_machine()
    found = [_cpu(machine)]
    if (gpu := _nvidia(available)) is not None:
        found.insert(0, gpu)
    elif platform.system() == "Darwin" and platform.machine() == "arm64":
        found.insert(0, _apple(int(machine["memory_bytes"]), available))
    return tuple(sorted(found, key=lambda device: not (device.usable and device.profile is not None)))


def default_profile() -> Profile:
    """The profile of this machine: that of its first device, see :func:`find_devices`; else ``cpu-avx2``'s."""
    name = find_devices()[0].profile
    return load_profile(name if name is not None else "cpu-avx2")


def match_profile(
    kind: str, name: str, memory_bytes: int | None = None, instructions: tuple[str, ...] = ()
) -> str | None:
    """The shipped profile for a device: the one whose list of names, or of instructions, fits it most closely.

    A profile for more memory than the device has does not fit: an RTX 3060 Ti with 8 GB is not the card with 12.
    """
    best: tuple[int, str] | None = None
    for candidate in map(load_profile, NAMES):
        if candidate.kind != kind:
            continue
        capacity_gb = candidate.memory.capacity_gb
        if memory_bytes is not None and capacity_gb is not None and memory_bytes < capacity_gb * 1e9 * _SAME_MEMORY:
            continue
        if kind == "cpu":
            score = len(candidate.instructions) if set(candidate.instructions) <= set(instructions) else -1
        else:
            score = max((len(start) for start in candidate.devices if name.startswith(start)), default=-1)
        if score >= 0 and (best is None or score > best[0]):
            best = (score, candidate.name)
    return None if best is None else best[1]


def usable_memory_bytes() -> int:
    """The machine's memory, or the container's limit where that is less."""
    total = int(describe_machine()["memory_bytes"])
    limit = memory_limit_bytes()
    return total if limit is None else min(total, limit)


def usable_cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu(machine: dict[str, str | int]) -> Device:
    instructions = tuple(str(machine["instructions"]).split(", "))
    memory = usable_memory_bytes()
    profile = match_profile("cpu", str(machine["processor"]), memory, instructions)
    return Device("cpu", str(machine["processor"]), memory, instructions, "cpu", usable=True, profile=profile)


def _nvidia(available: frozenset[str]) -> Device | None:
    gpu, _ = open_gpu()
    if gpu is None:
        return None
    try:
        facts = gpu.describe()
    finally:
        gpu.close()
    name = str(facts.get("gpu", "NVIDIA GPU"))
    memory = int(facts["gpu_memory_bytes"]) if "gpu_memory_bytes" in facts else None
    profile = match_profile("cuda", name, memory)
    return Device("cuda", name, memory, (), "cuda", usable="CUDAExecutionProvider" in available, profile=profile)


def _apple(memory_bytes: int, available: frozenset[str]) -> Device:
    try:
        asked = [_SYSCTL, "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        name = "Apple silicon"
    usable = "CoreMLExecutionProvider" in available
    profile = match_profile("coreml", name, memory_bytes)
    return Device("coreml", name, memory_bytes, (), "coreml", usable=usable, profile=profile)


def _providers() -> frozenset[str]:
    from livemoments.ort import import_onnxruntime

    return frozenset(import_onnxruntime().get_available_providers())

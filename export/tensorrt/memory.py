"""Will a build fit into memory? Asked before it begins: the system would kill it after minutes, without a word."""

from __future__ import annotations

from pathlib import Path

from livemoments.errors import ResourceError
from livemoments.manifest import EngineVia

_COSTS: dict[EngineVia, tuple[int, float]] = {"onnx": (1 << 30, 3.2), "torch-tensorrt": (2 << 30, 5.2)}
"""A base, and what building takes beside it per byte of weights. From a graph: full-size RestorationNet in fp16 has
2.70 GB of weights and took 8.5 GB, and 13.3 GB with the 4.2 GB that it has unfolded (TensorRT for RTX 1.7.1, for one or
three GPUs). By torch-tensorrt, PyTorch, the module's weights and their folded copies come on top: an estimate, for
nothing larger than tiny's stages (0.6 to 0.8 GB) was measured."""
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
_STAT = "memory.stat"


def needed_bytes(weight_bytes: int, via: EngineVia = "onnx") -> int:
    """An upper estimate of the host memory that building an engine of so many bytes of weights takes."""
    base, per_byte = _COSTS[via]
    return base + int(per_byte * weight_bytes)


def available_bytes() -> int | None:
    """Memory that can be had now: the system's, or what its control group leaves; ``None`` where nothing says."""
    found = [value for value in (_system(), *(_left(limit, used) for limit, used in _CGROUPS)) if value is not None]
    return min(found, default=None)


def check_memory(what: str, weight_bytes: int, available: int | None, via: EngineVia = "onnx") -> None:
    """Refuse a build that will not fit.

    Raises:
        ResourceError: with both numbers.
    """
    need = needed_bytes(weight_bytes, via)
    if available is not None and need > available:
        raise ResourceError(
            f"building {what} takes about {need / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free",
            fix="close other programs, build on a larger machine, or say --no-memory-check to try all the same",
        )


def _system() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _left(limit: Path, used: Path) -> int | None:
    try:
        most, now = limit.read_text().strip(), int(used.read_text())
        cache = _inactive_file(limit.parent / _STAT)
    except (OSError, ValueError):
        return None
    return max(0, int(most) - now + cache) if most.isdecimal() else None


def _inactive_file(stat: Path) -> int:
    """Page cache that counts as used and is given back under pressure."""
    for line in stat.read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0

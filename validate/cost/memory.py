"""Peak memory of a restoration, each with how it was measured, or why it was not."""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.cost.fresh_process import ProcessCost, measure_process
from livemoments.validate.cost.nvml import GPU_PROVIDERS, Gpu
from livemoments.validate.report_data import Memory

SAMPLE_S = 0.02
_TIME = "/usr/bin/time"
_FOOTPRINT = re.compile(r"^\s*(\d+)\s+peak memory footprint\s*$", re.MULTILINE)
_POSIX = ("Linux", "Darwin")


@dataclass(frozen=True, slots=True)
class FreshRun:
    """One photo restored by ``livemoments restore`` in a process of its own.

    Attributes:
        memory: every peak.
        seconds: the command's own wall time: checking the bundle's hashes, loading, restoring, writing.
        width, height: of the photo, in pixels.
        tile_s: seconds of every tile: its share of its batch's time, in which the first batch's engines were loaded.
        load_s: seconds in which engines were loaded.
        fallbacks: what the command changed because memory ran out, in words.
    """

    memory: tuple[Memory, ...]
    seconds: float | None
    width: int
    height: int
    tile_s: tuple[float, ...] = ()
    load_s: float = 0.0
    fallbacks: tuple[str, ...] = ()


class VramWatch:
    """Samples GPU memory in a thread while a ``with`` block runs: a process and its children, else the whole GPU.

    Args:
        gpu: to look at.
        pid: of the process; its descendants count, too.
        sample_s: between two samples; what comes and goes faster is missed.
    """

    def __init__(self, gpu: Gpu, pid: int, sample_s: float = SAMPLE_S) -> None:
        self._gpu, self._pid, self._sample_s = gpu, pid, sample_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vram", daemon=True)
        self._before = gpu.used_bytes()
        self._own: int | None = None
        self._whole: int | None = None

    def __enter__(self) -> VramWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def memory(self) -> Memory:
        """What was seen."""
        every = f"sampled every {self._sample_s * 1000:.0f} ms"
        if self._own is not None:
            return Memory(kind="vram", bytes=self._own, method=f"NVML, of the process, {every}")
        if self._whole is not None and self._before is not None:
            method = f"NVML, growth of the whole GPU's (the driver lists no process of ours; others' counts), {every}"
            return Memory(kind="vram", bytes=max(0, self._whole - self._before), method=method)
        return Memory(kind="vram", bytes=None, method="NVML: the driver gives no memory reading")

    def _watch(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(self._sample_s):
                return

    def _sample(self) -> None:
        own = self._gpu.used_by(family(self._pid))
        whole = self._gpu.used_bytes()
        self._own = own if self._own is None else max(self._own, own or 0)
        self._whole = whole if self._whole is None else max(self._whole, whole or 0)


def family(pid: int) -> set[int]:
    """A process and all of its descendants (Linux; elsewhere only the process itself)."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name in parentheses may hold anything; the parent is the second field behind it
            parent = int(path.read_text("utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    relatives, left = set(), [pid]
    while left:
        one = left.pop()
        relatives.add(one)
        left += [child for child in children.get(one, []) if child not in relatives]
    return relatives


def restore_afresh(
    bundle: Bundle,
    photo: LivePhoto[Path],
    settings: RestoreOptions,
    *,
    output: Path | None = None,
    gpu: Gpu | None = None,
    no_gpu: str = "",
    show_progress: bool = False,
) -> FreshRun:
    """Restore a photo with ``livemoments restore`` in a fresh process, and read its peaks.

    Args:
        bundle: opened.
        photo: the images.
        settings: how it is restored.
        output: where the result stays; ``None``: nowhere.
        gpu: whose memory is sampled.
        no_gpu: why there is none.
        show_progress: let the command draw its bars on this process' stderr.

    Raises:
        EngineError: the command failed.
        ResourceError: memory ran out, or the system killed the process.
    """
    uses_gpu = settings.provider.lower() in GPU_PROVIDERS
    vram = Memory(kind="vram", bytes=None, method=no_gpu or "NVML was not asked")
    if not uses_gpu:
        vram = Memory(kind="vram", bytes=None, method=f"the provider '{settings.provider}' uses no NVIDIA GPU")
    if platform.system() not in _POSIX:
        method = f"peaks of a fresh process are read on Linux and macOS, not on {platform.system()}"
        return FreshRun((Memory(kind="peak_rss", bytes=None, method=method), vram, _footprint(None)), None, 0, 0)
    watched: list[VramWatch] = []

    def watch(pid: int) -> VramWatch:
        assert gpu is not None
        watched.append(VramWatch(gpu, pid))
        return watched[0]

    with tempfile.TemporaryDirectory(prefix="livemoments-cost-") as folder:
        command = _command(bundle, photo, settings, output or Path(folder) / "restored.png")
        watched_by = watch if uses_gpu and gpu is not None else None
        cost = measure_process(command, watch=watched_by, show_progress=show_progress)
    _check(cost)
    if watched:
        vram = watched[0].memory()
    document = json.loads(cost.stdout)
    rss = Memory(kind="peak_rss", bytes=cost.peak_rss_bytes, method="getrusage of a fresh 'livemoments restore'")
    timings = document["timings"]
    return FreshRun(
        (rss, vram, _footprint(cost)),
        document["seconds"],
        document["width"],
        document["height"],
        tile_s=tuple(timings["tile_seconds"]),
        load_s=sum(entry["seconds"] for name, entry in timings["stages"].items() if name.startswith("load:")),
        fallbacks=tuple(document["metadata"].get("memory_fallbacks", ())),
    )


def runtime_memory(backend: Backend) -> Memory:
    """The runtime's own count of device memory, see :attr:`Backend.peak_device_bytes`."""
    peak_bytes = backend.peak_device_bytes
    if peak_bytes is None:
        method = f"{backend.name} has no counter of its own in Python"
        return Memory(kind="runtime_vram", bytes=None, method=method)
    return Memory(kind="runtime_vram", bytes=peak_bytes, method=f"{backend.name}'s own counter")


def read_footprint(stderr: str) -> int | None:
    """The peak memory footprint in bytes that macOS' ``/usr/bin/time -l`` printed."""
    footprints = _FOOTPRINT.findall(stderr)
    return int(footprints[-1]) if footprints else None


def _command(bundle: Bundle, photo: LivePhoto[Path], settings: RestoreOptions, output: Path) -> list[str]:
    # Apple's footprint counts what the GPU and the Neural Engine hold for a process; the resident set does not
    timed = [_TIME, "-l"] if platform.system() == "Darwin" else []
    command = [*timed, sys.executable, "-m", "livemoments", "restore", str(bundle.path)]
    command += ["--frame", str(photo.frame), "--photo", str(photo.photo), "-o", str(output), "--json"]
    if photo.photo_frame is not None:
        command += ["--photo-frame", str(photo.photo_frame)]
    return [*command, *settings.arguments()]


def _footprint(cost: ProcessCost | None) -> Memory:
    if platform.system() != "Darwin":
        return Memory(kind="footprint", bytes=None, method="Apple's footprint exists on macOS only")
    peak_bytes = None if cost is None else read_footprint(cost.stderr)
    method = f"{_TIME} -l, peak memory footprint" if peak_bytes is not None else f"{_TIME} -l printed no footprint"
    return Memory(kind="footprint", bytes=peak_bytes, method=method)


def _check(cost: ProcessCost) -> None:
    if cost.returncode == 0:
        return
    if cost.returncode < 0:
        raise ResourceError(
            f"'livemoments restore' was ended by signal {-cost.returncode} after {cost.wall_s:.0f} s",
            fix="if memory ran out, use smaller tiles or a machine with more",
        )
    lines = [line for line in cost.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (*errors, *lines[-1:], "")[0]
    raise EngineError(f"'livemoments restore' failed in a process of its own: {reason}")

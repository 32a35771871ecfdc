"""Whether an engine of a bundle may be opened: what it was built from, by what, and for what.

A vendor's engine fits one version of one library and the GPUs that it was built for. What does not fit is refused with
the cause and the command that builds it again; the vendor's own library would say "serialization error", or nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.errors import EngineError
from livemoments.manifest import EngineFile, EngineLibrary, EngineVia, Graph
from livemoments.types import Size, Stage

TITLES: dict[EngineLibrary, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
"""How the libraries are called in messages."""
VIAS: tuple[EngineVia, ...] = ("onnx", "torch-tensorrt")
"""The roads to an engine: the one that is taken first of two that fit comes first."""
HARDWARE_COMPATIBLE = "hardware-compatible"
"""Flag of a TensorRT engine that runs on every GPU from SM 8.0 on."""
VERSION_COMPATIBLE = "version-compatible"
"""Flag of an engine that later versions of the same major version open."""
_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class EngineHost:
    """What is to run an engine.

    Attributes:
        library: ``tensorrt`` or ``rtx``.
        version: of the library that is installed there.
        sm: compute capabilities, e.g. ``("8.9",)``, all of which the engine must serve.
        driver: version of the GPU's driver, ``None`` where it does not matter or is not known.
    """

    library: EngineLibrary
    version: str
    sm: tuple[str, ...]
    driver: str | None = None


def refusal(bundle: Bundle, graph: Graph, engine: EngineFile, host: EngineHost) -> str | None:
    """Why an engine must not be opened there, ``None`` if it may."""
    title = TITLES[engine.library]
    if engine.library != host.library:
        return f"it is an engine of {title}, not of {TITLES[host.library]}"
    if engine.graph_sha256 != bundle.graph_digest(graph):
        return f"{graph.path} or its weights changed since it was built"
    if not _is_version_served(engine, host.version):
        return f"it was built by {title} {engine.version}, and {host.version} is installed"
    if missing := [sm for sm in host.sm if not _is_gpu_served(engine, sm)]:
        return f"it was built for SM {', '.join(engine.sm)}, not for SM {', '.join(missing)}"
    if engine.library == "tensorrt" and None not in (engine.driver, host.driver) and engine.driver != host.driver:
        return f"it was built with driver {engine.driver}, and this is {host.driver}"
    return None


def find_engine(
    bundle: Bundle, stage: Stage, size: Size, batch: int, host: EngineHost, *, via: EngineVia | None = None
) -> Path:
    """The engine of a stage for tiles of one size.

    Args:
        bundle: opened with its engines' sizes or hashes checked.
        stage: which.
        size: of the tiles, pixels.
        batch: tiles at a time.
        host: what is to run it.
        via: the road that it was built by; ``None``: any, the parser's before torch-tensorrt's.

    Raises:
        BundleError: the bundle has no such stage or size.
        EngineError: there is no such engine, or it must not be opened there; says why and how to build it.
    """
    graph = bundle.graph(stage, size)
    ours = [e for e in graph.engines if (e.library, e.size, e.batch) == (host.library, str(size), batch)]
    found = sorted((e for e in ours if via in (None, e.via)), key=lambda engine: VIAS.index(engine.via))
    what = f"{bundle.path}: stage '{stage}' has no {TITLES[host.library]} engine for {size} tiles in batches of {batch}"
    frames = () if size in bundle.tile_sizes else (size,)
    if not found:
        command = build_command(bundle, host, stages=(stage,), flow_sizes=frames, batch=batch, via=via or "onnx")
        raise EngineError(what, fix=f"build it: {command}")
    reasons = {engine.path: refusal(bundle, graph, engine, host) for engine in found}
    fitting = [path for path, reason in reasons.items() if reason is None]
    if not fitting:
        flags, road = found[0].flags, found[0].via
        command = build_command(
            bundle, host, stages=(stage,), flow_sizes=frames, batch=batch, flags=flags, via=road, rebuild=True
        )
        raise EngineError(f"{bundle.path / found[0].path}: {reasons[found[0].path]}", fix=f"build it again: {command}")
    return bundle.path / fitting[0]


def build_command(
    bundle: Bundle,
    host: EngineHost,
    *,
    stages: Sequence[Stage] = (),
    tiles: Sequence[Size] = (),
    flow_sizes: Sequence[Size] = (),
    batch: int = 1,
    flags: Sequence[str] = (),
    via: EngineVia = "onnx",
    checkpoint: Path | None = None,
    rebuild: bool = False,
) -> str:
    """The command line that builds engines for a host, as a shell takes it.

    No manifest knows where the checkpoint lies that torch-tensorrt builds from: without it, a place is left for it.
    """
    words = ["livemoments", "build", str(bundle.path), "--engine", host.library]
    if host.library == "rtx":
        words += ["--sm", ",".join(host.sm)]
    if stages:
        words += ["--stages", ",".join(stages)]
    for option, sizes in (("--tile", tiles), ("--flow-size", flow_sizes)):
        words += [word for size in sizes for word in (option, str(size))]
    if batch != 1:
        words += ["--batch", str(batch)]
    words += [f"--{flag}" for flag in flags]
    if via != "onnx":
        words += ["--via", via, "--checkpoint", "CHECKPOINT" if checkpoint is None else str(checkpoint)]
    return shlex.join([*words, *(["--rebuild"] if rebuild else [])])


def parse_sm(text: str) -> tuple[int, int]:
    """``"8.9"`` as a pair that can be compared."""
    major, minor = text.split(".")
    return int(major), int(minor)


def _is_version_served(engine: EngineFile, version: str) -> bool:
    if engine.version == version:
        return True
    built, found = _numbers(engine.version), _numbers(version)
    return VERSION_COMPATIBLE in engine.flags and built[0] == found[0] and built <= found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _is_gpu_served(engine: EngineFile, sm: str) -> bool:
    if HARDWARE_COMPATIBLE in engine.flags and engine.library == "tensorrt":
        return parse_sm(sm) >= _AMPERE
    return sm in engine.sm

"""What engines are asked for, and what an installed library can give of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from livemoments.engine_files import HARDWARE_COMPATIBLE, TITLES, VERSION_COMPATIBLE, EngineHost
from livemoments.errors import EngineError, UsageError
from livemoments.manifest import EngineLibrary, EngineVia
from livemoments.tensorrt.gpu import Gpu
from livemoments.tensorrt.library import Library
from livemoments.types import Size, Stage

DEFAULT_SM = ("8.6", "8.9", "12.0")
"""Ampere's, Ada's and Blackwell's consumer GPUs: what an RTX engine serves unless told otherwise."""
BUILDER_FLAGS = {
    "weight-streaming": "WEIGHT_STREAMING",
    "refit": "REFIT",
    "strip-weights": "STRIP_PLAN",
    VERSION_COMPATIBLE: "VERSION_COMPATIBLE",
}
"""Options of the command line and the builder flags behind them."""
_NEEDS_GPU = ("refit", "strip-weights")
"""What TensorRT for RTX builds on machines with a GPU only (tried with 1.7.1: its code generator asks the driver)."""
_NEEDS_NAMES = ("refit", "strip-weights")
"""What puts weights back by the graph's names for them, which torch-tensorrt's networks do not have."""
_LEVELS = range(6)
_FLOW_MULTIPLE_PX = 8
"""RAFT computes at an eighth of the resolution; the runtime pads images so."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build.

    Attributes:
        library: ``tensorrt`` or ``rtx``.
        sm: compute capabilities to build for, with TensorRT for RTX only; empty: :data:`DEFAULT_SM`.
        batch: tiles at a time, fixed in the engine.
        stages: only these; ``None``: all that the bundle has.
        tiles: only these of the bundle's sizes; ``None``: all.
        flow_sizes: more sizes for the flow network, which runs on whole video frames too; sides are rounded up to
            multiples of 8 px.
        flags: names of :data:`BUILDER_FLAGS`, ``hardware-compatible``.
        optimization_level: 0 to 5, how much time the builder takes; ``None``: the library's own.
        timing_cache: a file of measured kernels that is read and written; ``None``: one in the bundle's folder.
        rebuild: replace engines that do not fit any more.
        check_memory: refuse to begin what will not fit into memory.
        via: the road to the library: its parser reads the graphs, or torch-tensorrt converts the checkpoint's modules.
        checkpoint: that the bundle was exported from, for torch-tensorrt.
    """

    library: EngineLibrary
    sm: tuple[str, ...] = ()
    batch: int = 1
    stages: tuple[Stage, ...] | None = None
    tiles: tuple[Size, ...] | None = None
    flow_sizes: tuple[Size, ...] = ()
    flags: tuple[str, ...] = ()
    optimization_level: int | None = None
    timing_cache: Path | None = None
    rebuild: bool = False
    check_memory: bool = True
    via: EngineVia = "onnx"
    checkpoint: Path | None = None

    @property
    def recorded_flags(self) -> tuple[str, ...]:
        """What the manifest holds: options that change the engine, as the command line takes them."""
        level = () if self.optimization_level is None else (f"optimization-level={self.optimization_level}",)
        return (*sorted(set(self.flags)), *level)


def host_of(library: Library, options: BuildOptions, gpu: Gpu | None) -> EngineHost:
    """What the engines are built for.

    Raises:
        UsageError: compute capabilities for a library that builds for the GPU at hand, or that it does not know.
        EngineError: a GPU is needed and none is here.
    """
    if library.name == "tensorrt":
        if options.sm:
            raise UsageError(
                "TensorRT builds for the GPU of this machine, so --sm has no place",
                fix="leave --sm out, or say --engine rtx, which builds for other GPUs",
            )
        if gpu is None:
            raise EngineError(
                "TensorRT builds engines where the GPU is, and no NVIDIA GPU was found here",
                fix="run the same command on the machine with the GPU; --engine rtx builds for consumer GPUs anywhere",
            )
        return EngineHost("tensorrt", library.version, (gpu.sm,), gpu.driver)
    known = library.compute_capabilities
    wanted = tuple(dict.fromkeys(options.sm or DEFAULT_SM))
    if unknown := [sm for sm in wanted if sm not in known]:
        raise UsageError(
            f"{library.title} does not build for SM {', '.join(unknown)}; it builds for {', '.join(known)}",
            fix="leave these out; a GPU of the data centre (SM 9.0, 10.0) takes --engine tensorrt",
        )
    return EngineHost("rtx", library.version, wanted, None if gpu is None else gpu.driver)


def check_options(library: Library, options: BuildOptions, gpu: Gpu | None) -> None:
    """Refuse what the installed library or the road to it does not have.

    Raises:
        UsageError: names the option.
    """
    if options.via == "onnx" and options.checkpoint is not None:
        raise UsageError("a checkpoint is what torch-tensorrt builds from", fix="add --via torch-tensorrt")
    if options.via == "torch-tensorrt" and options.checkpoint is None:
        raise UsageError(
            "torch-tensorrt builds from the checkpoint, not from the bundle's graphs",
            fix="name it: --checkpoint CHECKPOINT",
        )
    for flag in options.flags:
        if options.via == "torch-tensorrt" and flag in _NEEDS_NAMES:
            raise UsageError(
                f"--{flag}: torch-tensorrt names weights otherwise than the graphs, so none could be put back",
                fix=f"leave --{flag} out, or build by the graphs, without --via",
            )
        if reason := _refused(flag, library, gpu):
            raise UsageError(f"--{flag}: {reason}", fix=f"leave --{flag} out")
    if options.optimization_level is not None and options.optimization_level not in _LEVELS:
        raise UsageError(f"there is no optimization level {options.optimization_level}", fix="use 0 to 5")
    if options.timing_cache is not None and library.name == "rtx":
        raise UsageError(
            "--timing-cache: TensorRT for RTX chooses its kernels on the user's machine and keeps no timing cache",
            fix="leave --timing-cache out",
        )


def _refused(flag: str, library: Library, gpu: Gpu | None) -> str | None:
    title = TITLES[library.name]
    if flag == HARDWARE_COMPATIBLE:
        if library.name == "rtx":
            return f"{title} builds for the compute capabilities of --sm instead"
        levels = getattr(library.module, "HardwareCompatibilityLevel", None)
        return None if hasattr(levels, "AMPERE_PLUS") else f"{library.title} does not have it"
    if flag not in BUILDER_FLAGS:
        return f"unknown; there are {', '.join([*BUILDER_FLAGS, HARDWARE_COMPATIBLE])}"
    if library.builder_flag(BUILDER_FLAGS[flag]) is None:
        return f"{library.title} does not have it"
    if library.name == "rtx" and flag == VERSION_COMPATIBLE:
        return f"{title} is shipped without the lean runtime that goes into such engines"
    if library.name == "rtx" and flag in _NEEDS_GPU and gpu is None:
        return f"{title} does this on a machine with a GPU only, and none was found here"
    return None


def sizes_for(options: BuildOptions, stage: Stage, tiles: Sequence[Size]) -> tuple[Size, ...]:
    """The sizes in which a stage is built: the tiles', and for the flow network those of whole frames, padded."""
    frames = [_padded(size) for size in options.flow_sizes] if stage is Stage.FLOW else []
    return tuple(dict.fromkeys([*tiles, *frames]))


def _padded(size: Size) -> Size:
    height, width = (side + -side % _FLOW_MULTIPLE_PX for side in (size.height, size.width))
    return Size(height, width)

"""Options and sentences that the commands about engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from livemoments.cli.options import BadValue
from livemoments.cli.output import human_bytes, human_seconds, plural
from livemoments.engine_files import VIAS

if TYPE_CHECKING:
    from livemoments.bundle import Bundle
    from livemoments.export.tensorrt.build import BuiltEngine

Function = TypeVar("Function", bound=Callable[..., Any])

LIBRARIES = ("tensorrt", "rtx")


class ComputeCapabilitiesType(click.ParamType):
    """Compute capabilities with commas between them."""

    name = "SM,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Read ``8.6,8.9``."""
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
        for part in found:
            major, dot, minor = part.partition(".")
            if not (dot and major.isdecimal() and minor.isdecimal() and len(major) <= 2 and len(minor) == 1):
                fix = "write e.g. 8.6,8.9,12.0"
                raise BadValue(f"'{part}' is not a compute capability", fix=fix, param=param, ctx=ctx)
        return found


SM = ComputeCapabilitiesType()


def sm_option(function: Function) -> Function:
    """``--sm``."""
    text = (
        "Compute capabilities that an engine of TensorRT for RTX serves: 8.6 Ampere, 8.9 Ada, 12.0 Blackwell; one "
        "engine may serve several.  [default: 8.6,8.9,12.0]"
    )
    return click.option("--sm", type=SM, default=(), help=text)(function)


def by_module(refusals: Sequence[Any]) -> dict[tuple[str, str], list[str]]:
    """Refusals as a person reads them: the modules of each operator and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in refusals:
        modules = found.setdefault((one.operator, one.reason), [])
        if one.module not in modules:
            modules.append(one.module)
    return found


def via_option(function: Function) -> Function:
    """``--via``."""
    text = (
        "The road to the library. onnx: its own parser reads the bundle's graphs. torch-tensorrt: that package "
        "converts the checkpoint's modules; on machines with an NVIDIA GPU only."
    )
    return click.option("--via", type=click.Choice(VIAS), default=VIAS[0], show_default=True, help=text)(function)


def check_engine(engine: str, sm: tuple[str, ...], via: str) -> None:
    """Before long work: can engines be built here at all?

    Raises:
        MissingExtraError: the library, or torch-tensorrt, is not installed.
        UsageError, EngineError: it does not build for these GPUs, or not here.
    """
    from livemoments.export.tensorrt.options import BuildOptions, host_of
    from livemoments.export.tensorrt.torch_road import check_road
    from livemoments.tensorrt.gpu import find_gpu
    from livemoments.tensorrt.library import load_library

    options = BuildOptions(engine, sm)  # type: ignore[arg-type]  # click has checked it
    host_of(load_library(options.library), options, find_gpu())
    if via == "torch-tensorrt":
        check_road(options.library)


def engine_document(built: BuiltEngine) -> dict[str, Any]:
    """One engine as ``--json`` prints it."""
    engine = built.engine
    return {
        "stage": built.stage.value,
        "path": engine.path,
        "size": engine.size,
        "batch": engine.batch,
        "library": engine.library,
        "version": engine.version,
        "sm": engine.sm,
        "flags": engine.flags,
        "via": engine.via,
        "bytes": built.bytes,
        "built": built.is_new,
        "layers": engine.layers,
        "seconds": round(built.seconds, 3),
        "peak_rss_bytes": built.peak_rss_bytes,
    }


def engines_summary(bundle: Bundle, built: list[BuiltEngine]) -> str:
    """What a person reads of a finished build."""
    new = [one for one in built if one.is_new]
    lines = [f"{bundle.path}: {plural(len(new), 'engine')} built, {len(built) - len(new)} kept"]
    for one in built:
        how = f"{human_seconds(one.seconds)}, {human_bytes(one.peak_rss_bytes)} of memory" if one.is_new else "kept"
        lines.append(
            f"  {one.stage:12} {one.engine.size:>10}  {human_bytes(one.bytes):>8}  {one.engine.layers:6,} layers  {how}"
        )
    return "\n".join([*lines, *_other_roads(bundle, built)])


def _other_roads(bundle: Bundle, built: list[BuiltEngine]) -> Iterator[str]:
    """The layers of engines that are there by the other road, to hold the new ones' beside."""
    for one in built:
        own, label = one.engine, f"  {one.stage:12} {one.engine.size:>10}"
        for graph in bundle.stage(one.stage).graphs:
            for other in graph.engines:
                if other.place[:3] == own.place[:3] and other.via != own.via and other.layers:
                    yield f"{label}  {own.layers:,} layers via {own.via}, {other.layers:,} via {other.via}"

"""``livemoments build``: the engines of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from livemoments.cli.engines import LIBRARIES, engine_document, engines_summary, sm_option, via_option
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import FILE, PATH, SIZE, STAGES, result_options
from livemoments.cli.output import stdout_is_ours, write_json
from livemoments.progress import Progress
from livemoments.types import Size, Stage

_FLAGS = ("weight-streaming", "refit", "strip-weights", "version-compatible", "hardware-compatible")


@click.command("build", short_help="Build a bundle's TensorRT engines.")
@click.argument("bundle", type=PATH)
@click.option(
    "--engine",
    type=click.Choice(LIBRARIES),
    required=True,
    help="tensorrt: for the GPU of this machine. rtx: TensorRT for RTX, for consumer GPUs, on any machine.",
)
@sm_option
@via_option
@click.option("--checkpoint", type=PATH, help="With --via torch-tensorrt: what BUNDLE was exported from.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Tiles at a time.")
@click.option("--stages", type=STAGES, help="Build only these stages.  [default: all]")
@click.option(
    "--tile", "tiles", type=SIZE, multiple=True, help="Build only for these of the bundle's tile sizes.  [default: all]"
)
@click.option(
    "--flow-size",
    "flow_sizes",
    type=SIZE,
    multiple=True,
    help="Build the flow network for whole video frames of this size, too (sides rounded up to multiples of 8).",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    metavar="0-5",
    help="How long to search.  [default: the library's]",
)
@click.option(
    "--timing-cache",
    type=FILE,
    help="Keep measured kernels in this file; TensorRT only.  [default: a hidden file in the bundle]",
)
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory and be streamed.")
@click.option("--refit", is_flag=True, help="Weights can be replaced without building again.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out; they are put back from the graph's.")
@click.option("--version-compatible", is_flag=True, help="Later versions of the library open the engine, too.")
@click.option("--hardware-compatible", is_flag=True, help="Every GPU from SM 8.0 on runs the engine; TensorRT only.")
@click.option("--rebuild", is_flag=True, help="Replace engines that do not fit any more; without it they are an error.")
@click.option("--no-memory-check", is_flag=True, help="Begin even where memory seems not to suffice.")
@result_options
def command(
    bundle: Path,
    engine: str,
    sm: tuple[str, ...],
    stages: tuple[Stage, ...] | None,
    tiles: tuple[Size, ...],
    no_memory_check: bool,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> None:
    """Build engines from BUNDLE's graphs; they are put beside the graphs, and the manifest says what each one fits.

    Any bundle will do, also one in int8-tensorrt, int8-rotated or fp8; 'livemoments check' says what cannot be taken.
    Shapes are fixed: one engine for each stage and tile size. Each is built in a process of its own and entered in the
    manifest at once; a command that was interrupted goes on where it was. Engines that are there and fit are kept. One
    whose graph, library, GPU, driver or options are not what they were is an error that says so, unless --rebuild.

    With --via torch-tensorrt the engines are made of the checkpoint's modules, and lie beside those of the other road;
    the summary compares their layers. A quantized bundle is not for it, and neither are --refit and --strip-weights.

    What this cannot do: --engine tensorrt and --via torch-tensorrt build on a machine with an NVIDIA GPU only;
    --engine rtx builds for no GPU of SM 9.0 or 10.0 (H20, H200, B200). The command opens no engine, so it says
    nothing of an engine's numbers or speed.

    Needs the extra 'rtx' or 'tensorrt', with --via torch-tensorrt 'torch-tensorrt-rtx' or 'torch-tensorrt'. With
    --json: {"bundle", "engines": [{"stage", "path", "size", "via", "layers", "built", …}]}.

    \b
    Examples:
      livemoments build bundle --engine rtx --sm 8.9,12.0
      livemoments build bundle --engine tensorrt --rebuild
      livemoments build bundle --engine tensorrt --via torch-tensorrt --checkpoint checkpoint
    """
    flags = tuple(flag for flag in _FLAGS if options.pop(flag.replace("-", "_")))
    with stdout_is_ours(), needs_extra("building engines", engine):
        from livemoments.export.tensorrt.build import build_engines
        from livemoments.export.tensorrt.options import BuildOptions

        wanted = BuildOptions(
            library=engine,  # type: ignore[arg-type]  # click has checked it
            sm=sm,
            stages=stages,
            tiles=tuple(dict.fromkeys(tiles)) or None,
            flags=flags,
            check_memory=not no_memory_check,
            **options,
        )
        opened, built = build_engines(bundle, wanted, progress=progress)
    if as_json:
        write_json({"bundle": opened.path, "engines": [engine_document(one) for one in built]})
    else:
        click.echo(engines_summary(opened, built))

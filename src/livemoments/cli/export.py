"""``livemoments export``: a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.bundle import Bundle
from livemoments.cli.bundles import DIS_BY_DESIGN, bundle_bytes, bundle_document, stages_of, worst_parity
from livemoments.cli.engines import LIBRARIES, check_engine, engines_summary, sm_option, via_option
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import COUNTS, PATH, POLICY, SIZE, STAGES, overwrite_option, result_options
from livemoments.cli.output import human_bytes, stdout_is_ours, write_json
from livemoments.cli.profile_option import profile_option
from livemoments.engine_files import VIAS
from livemoments.types import ReferencePolicy, Size, Stage

if TYPE_CHECKING:
    from livemoments.export.tensorrt.build import BuiltEngine


@click.command("export", short_help="Turn a checkpoint into a bundle of engines.")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", metavar="BUNDLE", type=PATH, required=True, help="The bundle's folder.")
@click.option(
    "--target",
    type=click.Choice(["onnx", "tensorrt", "coreml", "coreai", "torch"]),
    default="onnx",
    show_default=True,
    help="What to write. onnx: graphs with onnxruntime's operators. tensorrt: graphs of standard ones only, with "
    "--engine also the engines. coreml: Core ML packages for iOS 18 and macOS 15. coreai: Core AI packages for iOS 27 "
    "and macOS 27 (beta, as Apple's tools for them are). torch: the networks for PyTorch.",
)
@click.option(
    "--engine",
    type=click.Choice(LIBRARIES),
    help="Build engines as well, as 'livemoments build' does: tensorrt for the GPU of this machine, rtx for consumer "
    "GPUs on any machine.",
)
@sm_option
@via_option
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8-weights", "int4-weights"]),
    default="fp32",
    show_default=True,
    help="Precision of weights and activations; flow is always fp32. fp16 halves the files; on a CPU it is no faster. "
    "int8-weights and int4-weights, with --target coreai: fp16, the transformers' weights in 8 or 4 bits.",
)
@click.option(
    "--tile",
    "tiles",
    type=SIZE,
    multiple=True,
    help="A tile size, in pixels, multiples of a token (16 with the published networks); give it several times for "
    "several sizes, which share their weights.  [default: the checkpoint's training size, 1024x1024 with the "
    "published networks]",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    metavar="PX",
    help="Pixels by which neighbouring tiles overlap at least.  [default: a sixteenth of the smallest tile, 64 with "
    "the published networks]",
)
@click.option(
    "--steps",
    type=COUNTS,
    default="1,2,3,4,6",
    show_default=True,
    help="Step counts whose timesteps are folded into the graphs exactly; restore can pick among them.",
)
@click.option(
    "--reference",
    "policy",
    type=POLICY,
    default="per-step",
    show_default=True,
    help="The policy that restore uses unless told otherwise: per-step, phase-split, every-K, frozen.",
)
@click.option(
    "--kv-layout",
    type=click.Choice(["per-block", "stacked"]),
    default="per-block",
    show_default=True,
    help="How keys and values pass from ReferenceNet to RestorationNet; per-block was measured to be faster.",
)
@click.option("--stages", type=STAGES, help="Export only these stages, for experiments.  [default: all]")
@click.option(
    "--verify",
    type=click.Choice(["full", "sampled", "finite", "none"]),
    default="full",
    show_default=True,
    help="full: every graph against the PyTorch reference, at every point of the schedule. sampled: at the first and "
    "the last. finite: every graph only runs once. none: nothing. The manifest records what was measured.",
)
@click.option(
    "--vae-tile",
    "vae_tiles",
    type=SIZE,
    multiple=True,
    help="A size for which the VAE alone gets graphs, for restore --vae-tile: smaller than the tiles.",
)
@click.option(
    "--flow-size",
    "flow_sizes",
    type=SIZE,
    multiple=True,
    help="With --target coreml and coreai: a size for which the flow stage gets a package, besides the tiles': that of "
    "the video frames, each side rounded up to a multiple of 8 px. Other targets' flow takes any size.",
)
@click.option(
    "--blocks-per-package",
    type=click.IntRange(min=1),
    default=6,
    metavar="N",
    help="With --target coreml: transformer blocks in a package at most.  [default: 6]",
)
@overwrite_option
@profile_option
@result_options
def command(
    checkpoint: Path,
    output: Path,
    policy: ReferencePolicy,
    engine: str | None,
    sm: tuple[str, ...],
    via: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Export CHECKPOINT to a bundle that runs without PyTorch.

    CHECKPOINT is a folder in upstream's layout, or upstream's own inference_config.yml. One whose inference_config.yml
    says 'flow: dis' needs no RAFT and gives no stage 'flow'. BUNDLE becomes a folder with
    one graph per stage and tile size, the weights, and manifest.json, which records sources, hashes, the schedule and
    the parity that was measured. The prompt and the timesteps are constants, so about a third of each transformer
    folds into small tables.

    Every stage is compared with the PyTorch reference before the bundle is put in place; one that is past its limit
    ends the export with exit code 1 and leaves nothing. An interrupted export leaves nothing either; with
    --target coreml and coreai it leaves its finished packages in a hidden folder beside BUNDLE, from which the next one
    goes on.
    Engines are built once the bundle is in place; if that is interrupted, 'livemoments build' goes on.

    Needs the extra 'export', and 'coreml', 'coreai', 'rtx', 'tensorrt', 'torch-tensorrt-rtx' or 'torch-tensorrt' for
    these. With --json: the document of 'livemoments inspect --json'.

    \b
    Examples:
      livemoments export checkpoint -o bundle --precision fp16
      livemoments export inference_config.yml -o bundle --tile 1024x1024 --tile 768x1024
      livemoments export checkpoint -o bundle --precision fp16 --target tensorrt --engine rtx --sm 8.9
      livemoments export checkpoint -o bundle --target tensorrt --engine tensorrt --via torch-tensorrt
      livemoments export checkpoint -o bundle --target coreml --precision fp16 --flow-size 1440x1080
      livemoments export checkpoint -o bundle --target coreai --precision int8-weights --flow-size 1440x1080
      livemoments export checkpoint -o bundle --target torch --precision fp16
    """
    if engine is not None and options["target"] != "tensorrt":
        raise click.UsageError("--engine needs --target tensorrt")
    if sm and engine is None:
        raise click.UsageError("--sm needs --engine rtx")
    if via != VIAS[0] and engine is None:
        raise click.UsageError(f"--via {via} needs --engine")
    options["vae_tiles"] = tuple(dict.fromkeys(options["vae_tiles"]))
    options["flow_sizes"] = tuple(dict.fromkeys(options["flow_sizes"]))
    tiles: tuple[Size, ...] | None = tuple(dict.fromkeys(options.pop("tiles"))) or None
    with stdout_is_ours(), needs_extra("exporting", "export"):
        from livemoments.export.pipeline import export_bundle

        if engine is not None:
            check_engine(engine, sm, via)  # before the hours of an export
        bundle = export_bundle(checkpoint, output, tiles=tiles, reference_policy=str(policy), **options)
    built: list[BuiltEngine] = []
    if engine is not None:
        with stdout_is_ours(), needs_extra("building engines", engine):
            from livemoments.export.tensorrt.build import build_engines
            from livemoments.export.tensorrt.options import BuildOptions

            source = None if via == VIAS[0] else checkpoint
            wanted = BuildOptions(engine, sm, via=via, checkpoint=source)  # type: ignore[arg-type]  # click has checked
            bundle, built = build_engines(bundle.path, wanted, progress=options["progress"])
    if as_json:
        write_json(bundle_document(bundle))
    else:
        click.echo(_summary(bundle))
        if built:
            click.echo(engines_summary(bundle, built))


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    lines = [
        f"wrote {bundle.path}: {manifest.target} {manifest.precision}, tiles {', '.join(manifest.tiles)}, "
        f"{human_bytes(bundle_bytes(bundle))}"
    ]
    if manifest.model.flow == "dis":
        lines.append(f"  {Stage.FLOW:12} none: {DIS_BY_DESIGN}")
    for name, entry in stages_of(bundle).items():
        worst = worst_parity(entry)
        measured = "not compared" if worst is None else f"relative L2 error {worst.rel_l2:.1e}, limit {worst.limit:.0e}"
        lines.append(f"  {name:12} {entry.precision}  {measured}")
    return "\n".join(lines)

"""``livemoments quantize``: a bundle to a smaller and faster one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.bundles import bundle_bytes, bundle_document, open_checked, worst_parity
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, overwrite_option, result_options
from livemoments.cli.output import human_bytes, stdout_is_ours, write_json
from livemoments.cli.profile_option import profile_option
from livemoments.progress import Progress

if TYPE_CHECKING:
    from livemoments.bundle import Bundle
    from livemoments.quantize.pipeline import Quantized


@click.command("quantize", short_help="Make a bundle smaller and faster, with the loss measured.")
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", metavar="BUNDLE", type=PATH, required=True, help="The new bundle's folder.")
@click.option(
    "--recipe",
    metavar="NAME",
    required=True,
    help="fp16, int8, int8-dynamic, int8-weights, int4-weights; for TensorRT int8-tensorrt, int8-rotated, fp8, and "
    "with the worst layers in half precision int8-tensorrt-mixed, fp8-mixed; of a bundle of Core ML packages "
    "int8-weights-coreml, int4-weights-coreml, palette8-coreml, palette6-coreml, palette4-coreml, "
    "int8-coreml; or a recipe of your own (a .toml file).",
)
@click.option(
    "--calibration",
    metavar="DIR",
    type=PATH,
    help="Photos like those to be restored: frames in DIR/lr, photos of the same names in DIR/ref, and perhaps frames "
    "at the photos' instants in DIR/ref_lr; or the file of a saved calibration. int8, int8-coreml and those for "
    "TensorRT need it.",
)
@click.option(
    "--via",
    type=click.Choice(["modelopt"]),
    help="Let nvidia-modelopt choose the activations' ranges, by the observer that the recipe names: for "
    "int8-tensorrt, int8-rotated, fp8 and recipes like them. Needs the extra 'modelopt'.",
)
@click.option(
    "--autotune",
    is_flag=True,
    help="Quantize only the layers that TensorRT runs faster so, as nvidia-modelopt's Autotune measures on this "
    "machine's GPU: for int8-tensorrt and fp8, of a bundle for TensorRT. Needs the extra 'modelopt'.",
)
@click.option(
    "--budget",
    metavar="DB",
    help="Quantize only as many layers as this leaves room for: 42dB is the least PSNR of the photos against BUNDLE's "
    "own, 0.1dB-of-quality what they may lose against the truth. Measures every layer on the calibration photos first.",
)
@click.option(
    "--goal",
    type=click.Choice(["size", "speed"]),
    default="size",
    show_default=True,
    help="What a budget is spent on.",
)
@click.option(
    "--work",
    metavar="DIR",
    type=PATH,
    help="Keep finished photos and layers here: the same command, started again, goes on from there.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the calibration's noise.",
)
@click.option(
    "--allow-slower", is_flag=True, help="Accept engines slower than the source's, for the sake of their memory."
)
@click.option(
    "--verify",
    type=click.Choice(["sampled", "none"]),
    default="sampled",
    show_default=True,
    help="sampled: the new engines beside the source's at the first and the last timestep, and their speed. none: "
    "nothing; for networks that this machine can write but not run.",
)
@overwrite_option
@profile_option
@result_options
def command(
    bundle: Path,
    output: Path,
    verify: str,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> None:
    """Quantize the transformers of BUNDLE to a new bundle.

    Both transformers' matrix products are quantized; everything else stays as it is, and fp16 converts all stages but
    the flow network. int8, int8-tensorrt, int8-rotated, fp8 and int8-coreml restore the calibration photos with BUNDLE
    first, at every timestep, to see what the activations' ranges are. TensorRT takes fp16, int8-tensorrt, int8-rotated
    and fp8. Weights are read and written one at a time; packages are compressed by coremltools, each in a process of
    its own, and run by the interpreter.

    The new engines are run beside BUNDLE's: outputs that are dead, saturated or too far off end the command, and so do
    engines that are slower here (exit code 1); then nothing is left behind. The manifest records recipe, calibration
    set, seed and the error that was measured.

    Needs the extra 'export', for packages 'coreml', for --via and --autotune 'modelopt'. With --json: the document of
    'livemoments inspect --json', and `quantized` with the number of layers per action and the seconds a stage takes
    before and after.

    \b
    Examples:
      livemoments quantize bundle -o bundle-int8 --recipe int8 --calibration photos
      livemoments quantize bundle -o bundle-int4 --recipe int4-weights --allow-slower
      livemoments quantize packages -o packages-int4 --recipe int4-weights-coreml
    """
    with stdout_is_ours(), needs_extra("quantizing", "export"):
        from livemoments.quantize.options import QuantizeOptions
        from livemoments.quantize.pipeline import quantize as run

        chosen = QuantizeOptions(verify=verify != "none", **options)
        source = open_checked(bundle, progress)
        result = run(source, output, chosen, progress=progress)
    if as_json:
        speeds = [
            {"stage": s.stage, "size": s.size, "source_s": s.source_s, "quantized_s": s.quantized_s}
            for s in result.speeds
        ]
        quantized: dict[str, Any] = {"layers": dict(result.layers), "speeds": speeds}
        if result.search is not None:
            quantized["search"] = result.search.to_json()
        write_json(bundle_document(result.bundle) | {"quantized": quantized})
    else:
        if result.search is not None:
            click.echo(result.search.to_text())
        click.echo(_summary(source, result))


def _summary(source: Bundle, result: Quantized) -> str:
    bundle = result.bundle
    old, new = bundle_bytes(source), bundle_bytes(bundle)
    layers = ", ".join(f"{count} {action}" for action, count in result.layers.items())
    lines = [
        f"wrote {bundle.path}: {bundle.manifest.recipe}, {human_bytes(new)}, {new / old:.2f} of the source",
        f"  layers: {layers or 'all in half precision'}",
    ]
    for name, entry in bundle.manifest.stages.items():
        worst = worst_parity(entry)
        if worst is not None and entry != source.manifest.stages[name]:
            lines.append(f"  {name:12} {worst.rel_l2:.1e} from the source (relative L2), limit {worst.limit:.0e}")
    for speed in result.speeds:
        lines.append(
            f"  {speed.stage:12} {speed.quantized_s * 1e3:.0f} ms a tile instead of {speed.source_s * 1e3:.0f} "
            f"({speed.ratio:.2f} times as fast)"
        )
    return "\n".join(lines)

"""The options that become ``RestoreOptions``: one definition for every command that restores photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.options import BYTES, POLICY, SIZE, Function, provider_option, threads_option

if TYPE_CHECKING:
    from livemoments.runtime.options import RestoreOptions

_COUNT, _FROM_ZERO = click.IntRange(min=1), click.IntRange(min=0)


def restore_options(*, default_seed: str) -> Callable[[Function], Function]:
    """``--seed``, ``--steps``, ``--reference``, ``--flow``, ``--tile``, ``--vae-tile``, ``--batch``, ``--pad-small``,
    ``--no-pcr``, ``--pcr-grid``, ``--provider``, ``--gpu-memory``, ``--cuda-graphs`` and ``--threads``;
    :func:`read_restore_options` makes them into ``RestoreOptions``.

    Args:
        default_seed: what the help says about the seed that is used where none is named.
    """
    options = (
        click.option("--steps", type=_COUNT, metavar="N", help="Sampling steps.  [default: the bundle's]"),
        click.option("--seed", type=_FROM_ZERO, metavar="N", help=f"Seed of the noise.  [default: {default_seed}]"),
        click.option(
            "--reference",
            type=POLICY,
            help="When ReferenceNet runs. per-step, phase-split: exact; phase-split never holds both big networks. "
            "every-K, frozen, frozen@STEP: approximate, less work.  [default: the bundle's]",
        ),
        click.option(
            "--flow",
            type=click.Choice(["engine", "dis"]),
            help="engine: RAFT, as upstream. dis: OpenCV's DIS, less memory, another result.  "
            "[default: the bundle's: engine, unless its checkpoint has no RAFT]",
        ),
        click.option(
            "--tile", type=SIZE, help="Use this tile size of the bundle.  [default: the best of those it has]"
        ),
        click.option(
            "--vae-tile",
            type=SIZE,
            help="What the VAE sees at once where tiles are larger: a size of the bundle (export --vae-tile). Less "
            "memory, another picture.  [default: whole tiles]",
        ),
        click.option(
            "--batch", type=_COUNT, default=1, show_default=True, metavar="TILES", help="Tiles computed at once."
        ),
        click.option(
            "--pad-small", is_flag=True, help="Extend a photo that is smaller than a tile, instead of refusing it."
        ),
        click.option(
            "--no-pcr",
            is_flag=True,
            help="Cut every reference tile at its tile's own place, without patch correspondence "
            "retrieval: an ablation.",
        ),
        click.option(
            "--pcr-grid",
            type=_COUNT,
            default=1,
            show_default=True,
            metavar="PX",
            help="Move reference tiles to multiples of PX, so that the moments of a Live Photo share them and "
            "--kv-cache finds their keys and values; 1 leaves them where the flow says.",
        ),
        provider_option,
        click.option(
            "--gpu-memory",
            "gpu_memory_bytes",
            type=BYTES,
            help="The most that an engine may take of an NVIDIA GPU's memory, e.g. 6GiB: onnxruntime's arena, "
            "TensorRT's workspace.  [default: no limit]",
        ),
        click.option(
            "--cuda-graphs",
            is_flag=True,
            help="Record the kernels of a run once and replay them, on NVIDIA's GPUs; a stage that cannot says so.",
        ),
        threads_option,
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def read_restore_options(given: Mapping[str, Any], **otherwise: Any) -> RestoreOptions:
    """Those of a command's parameters that are attributes of ``RestoreOptions``.

    Args:
        given: the parameters by name; ``None`` is one that was not named on the command line.
        otherwise: attributes for those that were not.
    """
    from livemoments.runtime.options import RestoreOptions

    names = {option.name for option in fields(RestoreOptions)}
    named = {name: value for name, value in given.items() if name in names and value is not None}
    return RestoreOptions(**{name: value for name, value in otherwise.items() if value is not None} | named)

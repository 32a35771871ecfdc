"""Running the reference, or an exported bundle, on a recording's images and noise."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from livemoments.bundle import Bundle, hash_file
from livemoments.errors import BundleError, FileError
from livemoments.limits import load_limits
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import load_reference
from livemoments.reference.layout import locate
from livemoments.reference.pipeline import Observer, PipelineSettings, recorded_noise, restore_photo
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.noise import RecordedNoise, TileNoise
from livemoments.runtime.restore import restore
from livemoments.types import Size
from livemoments.validate.golden import Comparison, Recording, Row

REFERENCE_LIMIT = 1e-4
"""Largest relative L2 error of the PyTorch reference in float32, every stage."""


@contextlib.contextmanager
def checkpoint_of(recording: Recording) -> Iterator[Path]:
    """The recording's checkpoint: its own folder, or one made afresh from ``meta.json``'s ``make_checkpoint``."""
    arguments = recording.meta.get("make_checkpoint")
    if arguments is None:
        yield recording.folder
        return
    if not isinstance(arguments, dict):
        raise FileError(recording.folder / "meta.json", "make_checkpoint is not a mapping of arguments")
    with tempfile.TemporaryDirectory(prefix="livemoments-golden-") as folder:
        yield make_checkpoint(Path(folder) / "checkpoint", **arguments)


def load_inputs(recording: Recording) -> LivePhoto[torch.Tensor]:
    """The recording's images as the reference takes them."""

    def tensor(kind: str) -> torch.Tensor:
        pixels = read_photo(recording.image_paths[kind]).unit()
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]

    return LivePhoto(frame=tensor("lr"), photo=tensor("ref"), photo_frame=tensor("ref_lr"))


def check_reference(recording: Recording, *, progress: Progress = SILENT) -> list[Row]:
    """Run the PyTorch reference on a recording and compare every recorded stage."""
    inputs = load_inputs(recording)
    comparison = Comparison(recording, REFERENCE_LIMIT)
    with checkpoint_of(recording) as checkpoint:
        restore_photo(
            load_reference(checkpoint),
            inputs,
            recording.upscaled(Size(*inputs.frame.shape[-2:])),
            recorded_noise(recording.arrays),
            PipelineSettings(tile=recording.tile, overlap=recording.overlap, steps=recording.steps),
            only_tiles=lambda tile: recording.has_noise(tile.index),
            observe=comparison,
            progress=progress,
        )
    return list(comparison.rows("never computed by the reference: is the name right?"))


def check_engine(recording: Recording, bundle: Bundle, *, provider: str = "cpu") -> list[Row]:
    """Run an exported bundle on a recording, as upstream would, and compare what it shows of its stages.

    Raises:
        BundleError: the bundle was made from another checkpoint, or for another tile size or overlap.
    """
    limits = load_limits(bundle.manifest.precision)
    _check_fits(recording, bundle)
    exact_levels = bundle.manifest.precision == "fp32"
    comparison = Comparison(
        recording, max(limits.stage_rel_l2.values()), None if exact_levels else limits.photo_psnr_db
    )
    observe = _by_recorded_names(comparison, bundle.manifest.model.text_tokens)
    frame = read_photo(recording.image_paths["lr"])
    restore(
        bundle,
        frame,
        read_photo(recording.image_paths["ref"]),
        read_photo(recording.image_paths["ref_lr"]),
        steps=recording.steps,
        compat="upstream",
        reference="per-step",
        tile=recording.tile,
        noise=_runtime_noise(recording),
        upscaled_size=recording.upscaled(frame.size),
        observer=observe,
        provider=provider,
    )
    return list(comparison.rows("not compared: an input of the run, or inside a graph of the bundle"))


def _check_fits(recording: Recording, bundle: Bundle) -> None:
    manifest = bundle.manifest
    if str(recording.tile) not in manifest.tiles or manifest.overlap != recording.overlap:
        raise BundleError(
            bundle.path,
            f"has tiles {', '.join(manifest.tiles)} with overlap {manifest.overlap}, "
            f"the recording {recording.tile} with {recording.overlap}",
            fix=f"export with --tile {recording.tile} --overlap {recording.overlap} --steps {recording.steps}",
        )
    with checkpoint_of(recording) as checkpoint:
        files = {name: hash_file(path) for name, path in locate(checkpoint).walk()}
    if differing := sorted(name for name in files if manifest.source.files.get(name) != files[name]):
        raise BundleError(
            bundle.path,
            f"was not exported from the recording's checkpoint: {', '.join(differing)} differ",
            fix=f"export {recording.folder}",
        )


def _by_recorded_names(compare: Observer, text_tokens: int) -> Observer:
    """Pass intermediates on; keys and values of either layout by the names of the projections that made them."""

    def observe(name: str, value: np.ndarray) -> None:
        tile_step, _, tensor = name.rpartition(".reference_")
        if not tile_step:
            compare(name, value)
            return
        kind, _, block = tensor.partition(".")
        if kind == "kv":  # stacked, batch first: (1, L, 2, S, D)
            parts = {(part, str(i)): value[:, i, j] for i in range(value.shape[1]) for j, part in enumerate("kv")}
        else:
            parts = {(kind, block): value}
        for (part, index), tokens in parts.items():
            prefix = f"{tile_step}.kv.transformer_blocks.{index}.attn"
            compare(f"{prefix}.to_{part}", tokens[:, :-text_tokens])
            compare(f"{prefix}.add_{part}_proj", tokens[:, -text_tokens:])

    return observe


def _runtime_noise(recording: Recording) -> RecordedNoise:
    arrays = recording.arrays
    names = ("lq.posterior_noise", "ref.posterior_noise", "noise")
    tiles = len(arrays["ref_patch_coords"])
    return RecordedNoise(
        {
            index: TileNoise(*(arrays[f"tile{index}.{name}"][0] for name in names))
            for index in range(tiles)
            if recording.has_noise(index)
        }
    )

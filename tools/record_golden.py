"""Record what the PyTorch reference computes, in the golden format that tools/check_golden.py reads.

    python tools/record_golden.py RECORDING --lr F --ref P --ref-lr V [--tile 128] [--overlap 16] [--steps 6]

The checkpoint is made afresh from its arguments whenever the recording is checked, so a recording stays small.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import torch

from livemoments.errors import LiveMomentsError, OutputError
from livemoments.live_photo import LivePhoto
from livemoments.reference.checkpoint import load_reference
from livemoments.reference.pipeline import PipelineSettings, TileNoise, restore_photo
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.runtime.image_files.photo import read_photo
from livemoments.types import Size, Tile
from livemoments.validate.reference_photo import image_tensor

_KEPT = re.compile(
    r"photo\.(flow_lr|lq_up|ref_lq_up|stitched|before_color_fix|result)|ref_patch_coords|tile_indices|lq_padded_shape"
    r"|tile\d+\.(flow|motion\.(0|last)|noise|z_\w+|decoded|(lq|ref)\.posterior_\w+|step\d+\.velocity)"
    r"|tile0\.step0\.kv\.transformer_blocks\.0\.attn\.to_k|tile0\.step\d+\.kv\.transformer_blocks\.1\.attn\.add_k_proj"
)


@click.command(help=__doc__)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--lr", type=click.Path(path_type=Path, exists=True), required=True, help="The reselected frame.")
@click.option("--ref", type=click.Path(path_type=Path, exists=True), required=True, help="The key photo.")
@click.option("--ref-lr", type=click.Path(path_type=Path, exists=True), required=True, help="The photo's frame.")
@click.option("--size", default="tiny", show_default=True, help="Size of the random checkpoint.")
@click.option("--checkpoint-seed", default=0, show_default=True, help="Its seed.")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise.")
@click.option("--tile", default=128, show_default=True, help="Tile side in pixels.")
@click.option("--overlap", default=16, show_default=True, help="Overlap in pixels.")
@click.option("--steps", default=6, show_default=True, help="Sampling steps.")
def main(
    recording: Path, lr: Path, ref: Path, ref_lr: Path, size: str, checkpoint_seed: int, seed: int, **sizes: int
) -> None:
    try:
        if recording.exists():
            raise OutputError(recording, "exists already", fix="name a new folder")
        _record(recording, LivePhoto(lr, ref, ref_lr), {"size": size, "seed": checkpoint_seed}, seed, sizes)
    except LiveMomentsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _record(
    folder: Path, images: LivePhoto[Path], checkpoint: dict[str, Any], seed: int, sizes: dict[str, int]
) -> None:
    for kind, path in zip(("lr", "ref", "ref_lr"), images.parts().values(), strict=True):
        (folder / "images" / kind).mkdir(parents=True)
        shutil.copy(path, folder / "images" / kind / f"photo{path.suffix}")
    meta = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "make_checkpoint": checkpoint,
        "seed": seed,
        "tile_size": sizes["tile"],
        "tile_overlap": sizes["overlap"],
        "steps": sizes["steps"],
    }
    photos = images.map(read_photo)
    frame, photo = photos.frame.size, photos.photo.size
    meta |= {"lr_res": float(frame.height), "ref_res": float(photo.height)}
    rng = np.random.Generator(np.random.Philox(seed))

    def noise(_: Tile, shape: tuple[int, ...]) -> TileNoise:
        return TileNoise(*(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for _ in range(3)))

    arrays: dict[str, np.ndarray] = {}

    def keep(name: str, value: np.ndarray) -> None:
        if _KEPT.fullmatch(name):
            arrays[name] = value.copy()

    with tempfile.TemporaryDirectory() as place:
        reference = load_reference(make_checkpoint(Path(place) / "checkpoint", **checkpoint))
        settings = PipelineSettings(Size(sizes["tile"], sizes["tile"]), sizes["overlap"], sizes["steps"])
        restore_photo(reference, photos.map(image_tensor), photo, noise, settings, observe=keep)
    meta["keys"] = {name: list(value.shape) for name, value in sorted(arrays.items())}
    np.savez_compressed(folder / "expected.npz", **dict(sorted(arrays.items())))
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"{folder}: {len(arrays)} stages, {(folder / 'expected.npz').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

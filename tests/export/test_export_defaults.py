"""What an export does when it is told nothing: tile and overlap from the checkpoint; the batches of a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_support import make_nano

from livemoments.checkpoints import copy_trained_checkpoint
from livemoments.errors import CheckpointError, UsageError
from livemoments.export.options import ExportOptions
from livemoments.export.pipeline import export_bundle
from livemoments.export.program import traced_batches
from livemoments.reference.checkpoint import read_configs
from livemoments.reference.checkpoint_sizes import SIZES
from livemoments.reference.layout import locate
from livemoments.reference.own_tiles import default_overlap, default_tile
from livemoments.types import Size, Stage


def test_the_shortest_form_takes_tile_and_overlap_from_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = make_nano(tmp_path / "checkpoint")
    configs = read_configs(locate(checkpoint))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", verify="none", stages=(Stage.MOTION,))
    tile = default_tile(configs)
    assert bundle.tile_sizes == (tile,)
    assert tile.height == max(64, configs.vae.scale * configs.transformer.sample_size)
    assert bundle.manifest.overlap == default_overlap(configs, [tile])
    assert 0 < bundle.manifest.overlap < tile.height


@pytest.mark.parametrize(("name", "side", "overlap"), [("sd3-medium", 1024, 64), ("mid", 512, 32), ("tiny", 256, 16)])
def test_each_sizes_own_tile(name: str, side: int, overlap: int) -> None:
    sizes = SIZES[name]
    cell = sizes.patch_size * 2 ** (len(sizes.vae_channels) - 1)
    assert sizes.sample_size * cell // sizes.patch_size == side
    assert max(1, round(side / 16 / cell)) * cell == overlap


def test_an_overlap_of_a_whole_tile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit tiles"):
        export_bundle(make_nano(tmp_path / "checkpoint"), tmp_path / "bundle", tiles=[Size(64, 64)], overlap=64)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("tile", "batches"),
    [
        ("any", (1, 32)),
        ("64x64", (1, 32)),
        ("1024x1024", (1, 16)),
        ("1072x1072", (1, 14)),
        ("2048x2048", (1, 4)),
        ("3072x3072", (2, 3)),
    ],
)
def test_the_batches_a_trace_stands_for(tile: str, batches: tuple[int, int]) -> None:
    assert traced_batches(tile) == batches


def test_a_checkpoint_may_say_its_own_tile(tmp_path: Path) -> None:
    checkpoint = tmp_path / "small"
    copy_trained_checkpoint(checkpoint)
    files = locate(checkpoint)
    assert (files.tile, files.overlap) == (64, 16)
    assert locate(checkpoint / "inference_config.yml") == files
    bundle = export_bundle(checkpoint, tmp_path / "bundle", verify="none", stages=(Stage.MOTION,))
    assert (bundle.tile_sizes, bundle.manifest.overlap) == ((Size(64, 64),), 16)
    wider = export_bundle(checkpoint, tmp_path / "w", verify="none", stages=(Stage.MOTION,), tiles=[Size(128, 128)])
    assert wider.manifest.overlap == 8


@pytest.mark.parametrize("text", ["tile: 0", "tile: yes", "overlap: -4", "tile: 64.5", "overlap: big"])
def test_a_tile_that_is_no_number_of_pixels(text: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "small"
    copy_trained_checkpoint(checkpoint)
    file = checkpoint / "inference_config.yml"
    file.write_text(file.read_text().replace("tile: 64", "").replace("overlap: 16", text))
    with pytest.raises(CheckpointError, match="is not a number of pixels"):
        locate(checkpoint)


def test_options_and_their_keywords_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="either"):
        export_bundle(tmp_path, tmp_path / "bundle", ExportOptions(), precision="fp16")
    with pytest.raises(TypeError, match="presicion"):
        export_bundle(tmp_path, tmp_path / "bundle", presicion="fp16")
    assert not (tmp_path / "bundle").exists()

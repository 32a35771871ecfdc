"""The trained checkpoint that comes with the package: its files, copies of it, and what it restores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import run

from livemoments.bundle import Bundle
from livemoments.checkpoints import CARD_NAME, copy_trained_checkpoint, trained_bundle, trained_checkpoint
from livemoments.errors import CheckpointError, OutputError
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.restore import restore
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.quality.fidelity import measure_fidelity, psnr_y

pytestmark = pytest.mark.threads

MOST_BYTES = 25_000_000
TILE = Size(64, 64)
LEAST_GAIN_DB = 1.0
LEAST_LOSS_DB = 0.3
"""With the key photo of another scene."""
INT8_LOSS_DB, FP16_LOSS_DB = 0.2, 0.02


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- files


def test_the_weights_fit_the_repository_and_have_a_card() -> None:
    folder = trained_checkpoint("small")
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= MOST_BYTES
    card = (folder / CARD_NAME).read_text("utf-8")
    for heading in ("## Architecture", "## Data", "## Training", "## Quality", "## Limits"):
        assert heading in card


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no such trained checkpoint"):
        trained_checkpoint("large")


def test_copies_are_whole_and_only_copies_are_replaced(tmp_path: Path) -> None:
    made = copy_trained_checkpoint(tmp_path / "small")
    assert contents(made) == contents(trained_checkpoint())
    with pytest.raises(OutputError, match="exists already"):
        copy_trained_checkpoint(made)
    (made / "livemoments" / "transformer" / "config.json").unlink()
    copy_trained_checkpoint(made, overwrite=True)
    assert contents(made) == contents(trained_checkpoint())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / CARD_NAME).write_text("# Years of work\n")
    with pytest.raises(OutputError, match="not a copy"):
        copy_trained_checkpoint(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / CARD_NAME).read_text() == "# Years of work\n"


def test_make_checkpoint_copies_the_small_one(tmp_path: Path) -> None:
    result = run("make-checkpoint", tmp_path / "small", "--size", "small", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["size"], said["seed"], said["dtype"]) == ("small", None, "float16")
    assert said["bytes"] == sum(len(data) for data in contents(tmp_path / "small").values())
    assert "small, trained, float16" in run("make-checkpoint", tmp_path / "again", "--size", "small").stdout


@pytest.mark.parametrize("option", [("--seed", 1), ("--dtype", "float32")])
def test_what_only_random_weights_have_is_refused(tmp_path: Path, option: tuple[str, object]) -> None:
    result = run("make-checkpoint", tmp_path / "small", "--size", "small", *option)
    assert result.exit_code == 2
    assert "small is trained" in result.stderr
    assert not (tmp_path / "small").exists()


# --- quality, on photographs that were not trained on


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(trained_bundle())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedded_set(tmp_path_factory.mktemp("photos"), size=Size(160, 160), count=4, seed=5)


def names(photos: Path) -> list[str]:
    return sorted(path.name for path in (photos / TRUTHS).iterdir())


def inputs_of(photos: Path, name: str, key: str | None = None) -> Iterator[Path]:
    """Frame, photo and photo frame; the latter two of another scene if one is named."""
    yield photos / FRAMES / name
    yield from (photos / part / (key or name) for part in (PHOTOS, PHOTO_FRAMES))


def quality_db(bundle: Bundle, photos: Path, name: str, key: str | None = None, **options: Any) -> float:
    image = restore(bundle, *inputs_of(photos, name, key), threads=1, **options).image
    return float(psnr_y(image, read_photo(photos / TRUTHS / name).pixels))


def upscaled(photos: Path, name: str) -> np.ndarray:
    inputs = load_inputs(*inputs_of(photos, name))
    whole = inputs.frame_view.window(0, 0, inputs.size.height, inputs.size.width)
    return np.asarray((whole.clip(0, 1) * 255).round().astype(np.uint8))


def test_a_photograph_gains_and_needs_its_own_reference(bundle: Bundle, tmp_path: Path) -> None:
    photos = write_embedded_set(tmp_path, size=Size(128, 128), count=2, seed=5)
    name, other = names(photos)
    truth = read_photo(photos / TRUTHS / name).pixels
    before_db = psnr_y(upscaled(photos, name), truth)
    own_db = quality_db(bundle, photos, name)
    assert own_db >= before_db + LEAST_GAIN_DB
    assert own_db >= quality_db(bundle, photos, name, other) + LEAST_LOSS_DB
    assert quality_db(bundle, photos, name, steps=1) > before_db


@pytest.mark.slow
def test_photographs_gain_a_decibel_and_structure(bundle: Bundle, photos: Path) -> None:
    gains_db, ssims = [], []
    for name in names(photos):
        truth, before = read_photo(photos / TRUTHS / name).pixels, upscaled(photos, name)
        image = restore(bundle, *inputs_of(photos, name), threads=1).image
        gains_db.append(psnr_y(image, truth) - psnr_y(before, truth))
        after, unrestored = (measure_fidelity(pixels, truth, ["ssim_y"])["ssim_y"] or 0 for pixels in (image, before))
        ssims.append(after - unrestored)
    assert np.mean(gains_db) >= LEAST_GAIN_DB
    assert np.mean(ssims) > 0


@pytest.mark.slow
def test_the_reference_and_its_place_matter(bundle: Bundle, photos: Path) -> None:
    every = names(photos)
    own_db = np.mean([quality_db(bundle, photos, name) for name in every])
    others = zip(every, [*every[1:], every[0]], strict=True)
    assert own_db - np.mean([quality_db(bundle, photos, name, other) for name, other in others]) >= LEAST_LOSS_DB
    assert own_db - np.mean([quality_db(bundle, photos, name, no_pcr=True) for name in every]) > 0.1


@pytest.mark.slow
def test_fp16_and_int8_lose_little(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    own_db = np.mean([quality_db(bundle, photos, name) for name in names(photos)])
    calibration = write_embedded_set(tmp_path / "calibration", size=Size(160, 160), count=4, seed=77)
    quiet: dict[str, Any] = {"allow_slower": True, "verify": False}
    quantize_bundle(bundle.path, tmp_path / "int8", recipe="int8", calibration=calibration, **quiet)
    quantize_bundle(bundle.path, tmp_path / "fp16", recipe="fp16", **quiet)
    for recipe, limit_db in (("int8", INT8_LOSS_DB), ("fp16", FP16_LOSS_DB)):
        quantized = Bundle.open(tmp_path / recipe)
        assert abs(np.mean([quality_db(quantized, photos, name) for name in names(photos)]) - own_db) <= limit_db

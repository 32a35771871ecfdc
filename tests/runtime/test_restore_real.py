"""Restoring with the graphs of a real export: what must not change the result, what must, and what is written.

The same statements about invented graphs, many more of them, are in ``test_restore.py``: this file shows that they hold
for the exported networks, whose sums onnxruntime orders differently for other batch sizes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from real_runs import FRAME_SHIFT_PX, FRAME_SIZE, PHOTO_SIZE
from restore_images import difference, shrunk, textured

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime import restoration
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.runtime.image_files.tiff_tags import user_comment
from livemoments.runtime.restore import RestoreResult
from livemoments.types import Size

pytestmark = pytest.mark.threads

ROUNDING_LEVELS = 1
"""Of 255: sums in another order, rounded to integers."""
SAME_PSNR_DB = 60.0
LOSSY_MEAN_LEVELS = 6.0
"""Of 255, the mean over channels: quality 95 on the random networks' grainy picture, WebP's colours at half size."""
CORNER_LIMIT_PX = 8
"""DIS is off by pixels where a frame shows what the other does not."""
PHOTO = Photo(textured(PHOTO_SIZE, 1))
KEY_FRAME = Photo(shrunk(PHOTO.pixels, FRAME_SIZE))
FRAME = Photo(shrunk(PHOTO.pixels, FRAME_SIZE, FRAME_SHIFT_PX))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def restored(bundle: Bundle, **options: Any) -> RestoreResult:
    """By DIS unless told otherwise: RAFT is most of the time of so small a restoration."""
    return restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, **{"flow": "dis", **options})


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> RestoreResult:
    return restored(bundle)


def psnr_db(found: np.ndarray, wanted: np.ndarray) -> float:
    error = float(np.mean((found.astype(float) - wanted) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def assert_same(found: RestoreResult, wanted: RestoreResult) -> None:
    assert difference(found.image, wanted.image) <= ROUNDING_LEVELS
    assert psnr_db(found.image, wanted.image) >= SAME_PSNR_DB


def test_the_result_and_its_description(bundle: Bundle, expected: RestoreResult) -> None:
    assert expected.image.shape == PHOTO.pixels.shape
    assert expected.image.dtype == np.uint8
    assert expected.image.std() > 10
    facts = expected.metadata
    assert json.loads(json.dumps(facts)) == facts
    assert {name: facts[name] for name in ("seed", "provider", "compat", "steps", "reference_policy", "flow")} == {
        "seed": 0, "provider": "onnxruntime:cpu", "compat": None, "steps": 6, "reference_policy": "per-step",
        "flow": "dis",
    }  # fmt: skip
    assert (facts["tile_plan"], facts["tile"], facts["tiles"], facts["batch"]) == ("balanced", "128x128", 2, 1)
    assert (facts["photo_frame"], facts["frame_profile"], facts["photo_profile"]) == ("given", "same", "none: sRGB")
    assert 0 <= facts["pcr_clamp_rate"] <= 1
    assert len(expected.timings.tile_seconds) == 2


# --- what must not change the result


def test_the_same_seed_gives_the_same_picture(bundle: Bundle, expected: RestoreResult) -> None:
    assert np.array_equal(restored(bundle).image, expected.image)


@pytest.mark.parametrize("batch", [2, 3])
def test_the_batch_size_changes_nothing(batch: int, bundle: Bundle, expected: RestoreResult) -> None:
    assert_same(restored(bundle, batch=batch), expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_order_of_tiles_changes_nothing(
    batch: int, bundle: Bundle, expected: RestoreResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = restoration.plan_balanced

    def backwards(*arguments: Any, **options: Any) -> Any:
        plan = planner(*arguments, **options)
        return dataclasses.replace(plan, tiles=plan.tiles[::-1])

    monkeypatch.setattr(restoration, "plan_balanced", backwards)
    assert_same(restored(bundle, batch=batch), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"reference": "phase-split"},
        {"reference": "phase-split", "batch": 2},
        {"reference": "phase-split", "kv_store": "disk"},
        {"reference": "every-1"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_exact_policies_agree(options: dict[str, Any], bundle: Bundle, expected: RestoreResult) -> None:
    found = restored(bundle, **options)
    assert_same(found, expected)
    assert found.metadata["reference_policy"] == options["reference"]


def test_half_precision_keys_and_values_come_close(bundle: Bundle, expected: RestoreResult) -> None:
    found = restored(bundle, reference="phase-split", kv_dtype="float16")
    assert psnr_db(found.image, expected.image) > 45
    assert found.metadata["kv_dtype"] == "float16"


def test_a_second_run_with_a_cache_runs_no_reference(bundle: Bundle, expected: RestoreResult, tmp_path: Path) -> None:
    first, second = (restored(bundle, kv_cache=tmp_path) for _ in range(2))
    assert first.timings.stages["reference"].count == 12
    assert "reference" not in second.timings.stages
    assert_same(first, expected)
    assert_same(second, expected)


# --- what must change it


@pytest.mark.parametrize(
    "options",
    [{"reference": "frozen"}, {"reference": "every-3"}, {"steps": 3}, {"seed": 1}, {"compat": "upstream"}],
    ids=lambda options: str(next(iter(options.values()))),
)
def test_these_change_the_result(options: dict[str, Any], bundle: Bundle, expected: RestoreResult) -> None:
    found = restored(bundle, **options)
    assert difference(found.image, expected.image) > ROUNDING_LEVELS
    name = "reference_policy" if "reference" in options else next(iter(options))
    assert found.metadata[name] == next(iter(options.values()))


def test_fewer_steps_run_the_networks_less(bundle: Bundle) -> None:
    counts = {name: timing.count for name, timing in restored(bundle, steps=3).timings.stages.items()}
    assert (counts["reference"], counts["restoration"]) == (6, 6)
    frozen = {name: timing.count for name, timing in restored(bundle, reference="frozen").timings.stages.items()}
    assert (frozen["reference"], frozen["restoration"]) == (2, 12)
    with pytest.raises(UsageError, match="export with --steps 30"):
        restored(bundle, steps=30)


@pytest.mark.slow
def test_flow_by_the_engine_is_another_result(bundle: Bundle, expected: RestoreResult) -> None:
    found = restored(bundle, flow="engine")
    assert found.metadata["flow"] == "engine"
    assert found.timings.stages["flow"].count == 3
    assert "load:flow" not in expected.timings.stages
    assert difference(found.image, expected.image) > ROUNDING_LEVELS


# --- where the reference tiles are cut


@pytest.mark.parametrize(("shift_px", "wanted_x"), [(0, (0, 64)), (24, (24, 64)), (-24, (0, 40))])
def test_reference_corners_follow_the_flow_and_stay_inside(
    bundle: Bundle, shift_px: int, wanted_x: tuple[int, int]
) -> None:
    """A frame taken ``shift_px`` photo pixels further right finds its reference there, as far as the photo reaches."""
    margin_px = 160
    coarse = textured(Size(height=64, width=176), 3)
    scene = cv2.resize(coarse, (PHOTO_SIZE.width + 2 * margin_px, PHOTO_SIZE.height), interpolation=cv2.INTER_CUBIC)
    photo, moved = (scene[:, x : x + PHOTO_SIZE.width].copy() for x in (margin_px, margin_px + shift_px))
    key_frame, frame = Photo(shrunk(photo, FRAME_SIZE)), Photo(shrunk(moved, FRAME_SIZE))
    seen: dict[str, np.ndarray] = {}
    result = restore_photo(
        bundle, frame, Photo(photo), key_frame, flow="dis", threads=2, steps=3,
        observer=lambda name, value: seen.update({name: value}),
    )  # fmt: skip
    corners = seen["ref_patch_coords"]
    assert corners[:, 0].tolist() == [0, 0]
    assert np.abs(corners[:, 1] - np.array(wanted_x)).max() <= CORNER_LIMIT_PX, corners
    assert corners.min() >= 0
    assert corners[:, 1].max() <= PHOTO_SIZE.width - 128
    if shift_px:
        assert result.metadata["pcr_clamp_rate"] >= 0.5
        assert result.metadata["pcr_mean_shift_px"] == pytest.approx(abs(shift_px), rel=0.25)
        assert result.metadata["pcr"] is True
        restore_photo(
            bundle, frame, Photo(photo), key_frame, flow="dis", threads=2, steps=3, no_pcr=True,
            observer=lambda name, value: seen.update({name: value}),
        )  # fmt: skip
        assert seen["ref_patch_coords"][:, 1].tolist() == [0, 64], "without PCR, tiles' own places"


# --- files


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp", "out.tif"])
def test_every_format_holds_the_picture_and_how_it_was_made(
    name: str, bundle: Bundle, expected: RestoreResult, tmp_path: Path
) -> None:
    found = restored(bundle, output=tmp_path / name)
    written = read_photo(tmp_path / name)
    error = np.abs(written.pixels.mean(axis=2) - expected.image.mean(axis=2))
    if name in ("out.png", "out.tif"):
        assert np.array_equal(written.pixels, found.image)
    assert error.mean() <= LOSSY_MEAN_LEVELS
    if name == "out.png":
        with Image.open(tmp_path / name) as image:
            text: str = image.text["livemoments"]  # type: ignore[attr-defined]
    else:
        assert written.exif is not None
        text = json.loads(user_comment(written.exif))["livemoments"]
    assert json.loads(text) == {key: value for key, value in found.metadata.items() if key != "not_carried_over"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_16_bit_photos_give_16_bit_results(bundle: Bundle, expected: RestoreResult, tmp_path: Path) -> None:
    deep = Photo(PHOTO.pixels.astype(np.uint16) * 257)
    found = restore_photo(bundle, FRAME, deep, KEY_FRAME, tmp_path / "out.png", flow="dis", threads=2)
    assert found.image.dtype == np.uint16
    assert np.array_equal(read_photo(tmp_path / "out.png").pixels, found.image)
    assert np.abs(found.image / 257 - expected.image).max() <= ROUNDING_LEVELS
    assert len(np.unique(found.image % 257)) > 200, "the low bits are used"

"""Restoring a photo end to end, with bundles of tiny graphs: what the result is, and what must not change it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from restore_images import FRAME, KEY_FRAME, PHOTO, difference, shrunk

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime import restoration
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.noise import SeededNoise, TileNoise
from livemoments.runtime.restore import RestoreResult
from livemoments.types import ReferencePolicy, Size, Stage, Tile


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("restore") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> RestoreResult:
    return restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1)


def test_the_result_has_the_photos_size_and_depth_and_a_full_description(expected: RestoreResult) -> None:
    assert expected.image.shape == (*PHOTO.pixels.shape,)
    assert expected.image.dtype == np.uint8
    assert expected.image.std() > 10
    assert expected.output is None
    facts = expected.metadata
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["seed"], facts["steps"], facts["reference_policy"], facts["flow"]) == (0, 6, "per-step", "engine")
    assert (facts["tile_plan"], facts["tile"], facts["tiles"], facts["photo_frame"]) == (
        "balanced",
        "64x64",
        12,
        "given",
    )
    assert 0 <= facts["pcr_clamp_rate"] <= 1
    assert facts["pcr_mean_shift_px"] > 0
    assert len(facts["bundle_sha256"]) == 64


def test_timings_count_every_run_and_tile(expected: RestoreResult) -> None:
    counts = {name: entry.count for name, entry in expected.timings.stages.items()}
    assert counts["reference"] == counts["restoration"] == 12 * 6
    assert (counts["vae_encoder"], counts["vae_decoder"], counts["motion"]) == (24, 12, 12)
    assert all(counts[f"load:{stage}"] == 1 for stage in Stage)
    assert len(expected.timings.tile_seconds) == 12
    assert all(seconds > 0 for seconds in expected.timings.tile_seconds)


def test_engines_that_a_group_of_tiles_opens_are_told_from_its_work(expected: RestoreResult) -> None:
    timings = expected.timings
    flow_s = timings.stages[f"load:{Stage.FLOW}"].seconds  # opened before, for the flow of the whole photo
    first_s, *others_s = timings.tile_load_seconds
    assert first_s == pytest.approx(timings.load_seconds - flow_s)
    assert first_s > 0
    assert others_s == [0.0] * 11
    assert timings.tile_run_seconds == (timings.tile_seconds[0] - first_s, *timings.tile_seconds[1:])


# --- what must not change the result


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_the_batch_size_changes_nothing(batch: int, bundle: Bundle, expected: RestoreResult) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, batch=batch, threads=1)
    assert np.array_equal(found.image, expected.image)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_order_of_tiles_changes_nothing(
    batch: int, bundle: Bundle, expected: RestoreResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = restoration.plan_balanced
    orders = []

    def shuffled(*args: Any, **kwargs: Any) -> Any:
        plan = planner(*args, **kwargs)
        order = np.random.default_rng(batch).permutation(len(plan.tiles))
        orders.append(order.tolist())
        return dataclasses.replace(plan, tiles=tuple(plan.tiles[i] for i in order))

    monkeypatch.setattr(restoration, "plan_balanced", shuffled)
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, batch=batch, threads=1)
    assert orders[0] != sorted(orders[0])
    assert np.array_equal(found.image, expected.image)
    assert found.metadata["pcr_mean_shift_px"] == expected.metadata["pcr_mean_shift_px"]


@pytest.mark.parametrize(
    "options",
    [
        {"reference": "phase-split"},
        {"reference": "phase-split", "kv_store": "disk", "batch": 3},
        {"reference": ReferencePolicy("every", interval=1)},
        {"reference": "phase-split", "kv_budget_bytes": 2 * 6 * 4096},
    ],
)
def test_exact_policies_agree(options: dict[str, Any], bundle: Bundle, expected: RestoreResult) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1, **options)
    assert difference(found.image, expected.image) == 0
    assert found.metadata["reference_policy"] == str(options["reference"])


def test_the_kv_layout_is_the_graphs_affair(tmp_path: Path, expected: RestoreResult) -> None:
    stacked = make_fake_bundle(tmp_path / "stacked", layout="stacked")
    found = restore_photo(stacked, FRAME, PHOTO, KEY_FRAME, threads=1)
    assert difference(found.image, expected.image) <= 1


def test_half_precision_graphs_come_close(tmp_path: Path, expected: RestoreResult) -> None:
    half = make_fake_bundle(tmp_path / "half", dtype="float16")
    found = restore_photo(half, FRAME, PHOTO, KEY_FRAME, threads=1)
    assert 0 < difference(found.image, expected.image) < 16
    error = found.image.astype(float) - expected.image
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 45


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"reference": "frozen"},
        {"reference": "every-3"},
        {"steps": 4},
        {"flow": "dis"},
        {"compat": "upstream"},
    ],
)
def test_these_do_change_the_result(options: dict[str, Any], bundle: Bundle, expected: RestoreResult) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1, **options)
    assert difference(found.image, expected.image) > 1
    for name in ("steps", "flow", "compat", "seed"):
        if name in options:
            assert found.metadata[name] == options[name]


# --- tiles, borders, sizes


def test_compat_upstream_has_the_grey_border_and_the_default_has_not(bundle: Bundle) -> None:
    def stitched(**options: Any) -> np.ndarray:
        seen: dict[str, np.ndarray] = {}
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, observer=lambda n, v: seen.update({n: v}), **options)
        return seen["photo.before_color_fix"]

    compat, fixed = stitched(compat="upstream"), stitched()
    assert (np.abs(compat[0].astype(int) - 127.5) <= 0.5).all()
    assert (np.abs(compat[:, 0].astype(int) - 127.5) <= 0.5).all()
    assert fixed[0].std() > 5
    assert fixed[:, 0].std() > 5


def test_the_upstream_plan_pads_to_whole_strides(bundle: Bundle) -> None:
    photo = Photo(PHOTO.pixels[:150, :195].copy())
    balanced = restore_photo(bundle, FRAME, photo, KEY_FRAME)
    padded = restore_photo(bundle, FRAME, photo, KEY_FRAME, tile_plan="upstream")
    assert padded.image.shape == photo.pixels.shape
    assert (padded.metadata["tile_plan"], padded.metadata["tiles"]) == ("upstream", 12)
    assert difference(padded.image, balanced.image) > 1
    upstream = restore_photo(bundle, FRAME, photo, KEY_FRAME, compat="upstream")
    assert upstream.metadata["tile_plan"] == "upstream"


def test_the_planner_chooses_among_the_bundles_tile_sizes(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "two", tiles=(Size(64, 64), Size(96, 112)))
    chosen = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME)
    assert (chosen.metadata["tile"], chosen.metadata["tiles"]) == ("112x96", 4)
    told = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, tile=Size(64, 64))
    assert (told.metadata["tile"], told.metadata["tiles"]) == ("64x64", 12)
    with pytest.raises(UsageError, match="no graphs for 80x80 tiles; it has 64x64, 112x96"):
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, tile=Size(80, 80))


def test_a_photo_smaller_than_the_tile_needs_pad_small(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "large", tiles=(Size(192, 192),))
    with pytest.raises(UsageError, match="208x160") as caught:
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME)
    assert "--pad-small" in str(caught.value.fix)
    padded = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, pad_small=True)
    assert padded.image.shape == PHOTO.pixels.shape
    assert padded.image.std() > 10


@pytest.mark.parametrize(("video", "photo"), [(Size(78, 102), Size(159, 207)), (Size(65, 85), Size(161, 210))])
def test_odd_sizes_work(video: Size, photo: Size, bundle: Bundle) -> None:
    pixels = cv2.resize(PHOTO.pixels, (photo.width, photo.height))
    found = restore_photo(bundle, Photo(shrunk(pixels, video)), Photo(pixels), flow="engine")
    assert found.image.shape == (photo.height, photo.width, 3)


def test_upscaled_size_overrides_the_photos(bundle: Bundle) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, upscaled_size=Size(156, 204))
    assert found.image.shape == (156, 204, 3)


# --- the observer and injected noise


def test_the_observer_gets_every_tensor_of_a_golden_recording(bundle: Bundle) -> None:
    seen: dict[str, np.ndarray] = {}
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, batch=5, observer=lambda n, v: seen.update({n: v}))
    of_tile = [f"{name}.posterior_{part}" for name in ("lq", "ref") for part in ("mean", "std")]
    of_tile += ["flow", "z_lq", "z_ref", "z_init", "z_out", "decoded"]
    kv = [spec.name for spec in bundle.graph(Stage.REFERENCE, Size(64, 64)).outputs]
    of_tile += [f"step{s}.{name}" for s in range(6) for name in ("velocity", *kv)]
    of_photo = ["photo.flow_lr", "photo.stitched", "photo.before_color_fix", "photo.result", "ref_patch_coords"]
    assert set(seen) == {*of_photo, *(f"tile{i}.{name}" for i in range(12) for name in of_tile)}
    assert seen["photo.flow_lr"].shape == (1, 2, 80, 104)
    assert seen["ref_patch_coords"].shape == (12, 2)
    assert seen["tile11.decoded"].shape == (1, 3, 64, 64)
    assert seen["tile11.flow"].shape == (1, 2, 64, 64)
    assert seen["photo.stitched"].shape == (1, 3, 160, 208)
    assert np.array_equal(seen["photo.result"], found.image)
    z_init = 0.8 * seen["tile3.z_lq"] + 0.2 * SeededNoise(0).draw(Tile(3, 0, 144, 64, 64), (16, 8, 8)).initial
    np.testing.assert_allclose(seen["tile3.z_init"], z_init, rtol=1e-4, atol=1e-5)


def test_injected_noise_replaces_the_seed(bundle: Bundle, expected: RestoreResult) -> None:
    class Same:
        def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
            return SeededNoise(0).draw(tile, latent_shape)

    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, noise=Same(), seed=99, threads=1)
    assert np.array_equal(found.image, expected.image)
    assert found.metadata["seed"] is None


# --- the cache


def test_a_second_frame_of_the_same_photo_reuses_keys_and_values(bundle: Bundle, tmp_path: Path) -> None:
    def run(frame: Photo, **options: Any) -> tuple[RestoreResult, int]:
        log = LoggingBackend()
        found = restore_photo(bundle, frame, PHOTO, frame, backend=log, kv_cache=tmp_path, **options)
        return found, len(log.runs(Stage.REFERENCE))

    # Frame and key frame are equal, so the flow is zero and the reference tiles are the same for both frames.
    darker = Photo((FRAME.pixels * 0.8).astype(np.uint8))
    plain = restore_photo(bundle, darker, PHOTO, darker, threads=1)
    assert run(FRAME)[1] == 12 * 6
    found, runs = run(darker, batch=2)
    assert runs == 0
    assert difference(found.image, plain.image) <= 1
    assert run(darker, seed=1)[1] == 12 * 6
    assert run(darker, kv_dtype="float16")[1] == 12 * 6
    victim = sorted(tmp_path.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-40])
    assert run(FRAME)[1] + run(FRAME, kv_dtype="float16")[1] + run(FRAME, seed=1)[1] == 1

"""Restoring a photo end to end, with bundles of tiny graphs (``fake_bundle``)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from PIL import Image

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, EngineError, ImageError, OutputError, ResourceError, UsageError
from livemoments.runtime import restore as restore_photo
from livemoments.runtime import settings as settings_module
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.flow import DisFlow, EngineFlow
from livemoments.runtime.images import Photo, read_photo
from livemoments.runtime.inputs import derive_photo_frame, load_inputs
from livemoments.runtime.noise import SeededNoise, TileNoise
from livemoments.runtime.restore import RestoreResult
from livemoments.types import ReferencePolicy, Size, Stage, Tile

SIZE = Size(160, 208)
VIDEO = Size(80, 104)
RESTORE_MEMORY_LIMIT_BYTES = 1_500_000_000


def textured(size: Size, seed: int, dtype: Any = np.uint8) -> np.ndarray:
    """(H, W, 3) of smooth random colours."""
    top = np.iinfo(dtype).max
    coarse = np.random.default_rng(seed).random((size.height // 8, size.width // 8, 3)).astype(np.float32)
    fine = cv2.resize(coarse, (size.width, size.height), interpolation=cv2.INTER_LINEAR)
    return np.rint(fine * top).astype(dtype)


def shrunk(pixels: np.ndarray, size: Size, shift_px: int = 0) -> np.ndarray:
    small = cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.roll(small, shift_px, axis=1))


PHOTO = Photo(textured(SIZE, 1))
KEY_FRAME = Photo(shrunk(PHOTO.pixels, VIDEO))
FRAME = Photo(shrunk(PHOTO.pixels, VIDEO, shift_px=2))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("restore") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> RestoreResult:
    return restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1)


def difference(found: np.ndarray, wanted: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())


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


# --- what must not change the result


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_the_batch_size_changes_nothing(batch: int, bundle: Bundle, expected: RestoreResult) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, batch=batch, threads=1)
    assert np.array_equal(found.image, expected.image)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_order_of_tiles_changes_nothing(
    batch: int, bundle: Bundle, expected: RestoreResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = settings_module.plan_balanced
    orders = []

    def shuffled(*args: Any, **kwargs: Any) -> Any:
        plan = planner(*args, **kwargs)
        order = np.random.default_rng(batch).permutation(len(plan.tiles))
        orders.append(order.tolist())
        return dataclasses.replace(plan, tiles=tuple(plan.tiles[i] for i in order))

    monkeypatch.setattr(settings_module, "plan_balanced", shuffled)
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


# --- flow


def test_engine_flow_pads_by_replication_split_on_both_sides() -> None:
    images = np.random.default_rng(0).standard_normal((2, 2, 3, 11, 20)).astype(np.float32)
    given: dict[str, np.ndarray] = {}

    class Pool:
        bundle = make_stub_bundle()

        def run(self, stage: Stage, inputs: dict[str, np.ndarray], *, size: Size) -> dict[str, np.ndarray]:
            given.update(inputs, size=np.array([size.height, size.width]))
            return {"flow": inputs["image1"][:, :2]}

    flow = EngineFlow(Pool())(images[0], images[1])  # type: ignore[arg-type]
    # 11 -> 16: two above, three below; 20 -> 24: two on each side
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (2, 3), (2, 2)), mode="edge")
    np.testing.assert_array_equal(given["image1"], padded[0])
    np.testing.assert_array_equal(given["image2"], padded[1])
    assert given["size"].tolist() == [16, 24]
    np.testing.assert_array_equal(flow, images[0][:, :2])


def make_stub_bundle() -> Any:
    """Just enough of a bundle for :class:`EngineFlow`: a flow stage of free size."""

    class Entry:
        graphs = ()

        def graph(self, size: Size) -> str:
            return "any"

    class Stub:
        def stage(self, stage: Stage) -> Entry:
            return Entry()

    return Stub()


def test_dis_flow_finds_a_shift_and_takes_batches() -> None:
    base = textured(Size(96, 128), 3)
    moved = np.roll(base, 3, axis=1)
    pair = [p.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1 for p in (base, moved)]
    flow = DisFlow()(np.concatenate(pair), np.concatenate(pair[::-1]))
    assert flow.shape == (2, 2, 96, 128)
    assert flow.dtype == np.float32
    inner = flow[:, 0, 16:-16, 16:-16].mean(axis=(1, 2))
    assert np.allclose(inner, [3, -3], atol=0.5)


def test_dis_needs_no_flow_stage_and_engine_does(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "noflow", omit=[Stage.FLOW])
    assert restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, flow="dis").metadata["flow"] == "dis"
    with pytest.raises(BundleError, match="no stage 'flow'"):
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME)


def test_a_flow_engine_of_fixed_size_points_to_dis(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "fixed", fixed_flow=True)
    with pytest.raises(UsageError, match="64x64 only, not 104x80") as caught:
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME)
    assert "--flow dis" in str(caught.value.fix)


# --- images in and out


def test_a_missing_photo_frame_is_derived_and_recorded(bundle: Bundle, expected: RestoreResult) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, threads=1)
    assert found.metadata["photo_frame"].startswith("derived from the photo: area downscale to 104x80, JPEG")
    derived = derive_photo_frame(PHOTO, VIDEO)
    assert derived.size == VIDEO
    grey, wanted = (cv2.cvtColor(p.pixels, cv2.COLOR_RGB2GRAY).astype(float) for p in (derived, KEY_FRAME))
    assert 0.2 < np.abs(grey - wanted).mean() < 4  # JPEG's losses, and nothing worse
    given = restore_photo(bundle, FRAME, PHOTO, derived, threads=1)
    assert np.array_equal(found.image, given.image)


def test_derived_frames_of_deep_photos_are_8_bit() -> None:
    deep = Photo((PHOTO.pixels.astype(np.uint16) * 257), icc_profile=b"icc", exif=b"exif")
    derived = derive_photo_frame(deep, VIDEO)
    assert derived.pixels.dtype == np.uint8
    assert (derived.icc_profile, derived.exif) == (None, None)
    assert np.array_equal(derived.pixels, derive_photo_frame(PHOTO, VIDEO).pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_files_in_and_out_with_metadata(suffix: str, bundle: Bundle, expected: RestoreResult, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(PHOTO.pixels).save(tmp_path / "photo.png", exif=exif.tobytes(), icc_profile=b"\0" * 128)
    Image.fromarray(FRAME.pixels).save(tmp_path / "frame.png")
    Image.fromarray(KEY_FRAME.pixels).save(tmp_path / "key.png")
    output = tmp_path / "new" / f"out{suffix}"
    found = restore_photo(
        bundle.path, tmp_path / "frame.png", str(tmp_path / "photo.png"), tmp_path / "key.png", output, threads=1
    )
    assert np.array_equal(found.image, expected.image)
    assert found.output == output
    assert found.metadata["not_carried_over"] == []
    written = read_photo(output)
    assert written.size == SIZE
    if suffix in (".png", ".tif"):
        assert np.array_equal(written.pixels, expected.image)
    with Image.open(output) as image:
        assert image.getexif()[0x010F] == "Maker"
        if suffix == ".png":
            facts = json.loads(image.text["livemoments"])  # type: ignore[attr-defined]
            assert facts["bundle_sha256"] == expected.metadata["bundle_sha256"]
    assert sorted(p.name for p in output.parent.iterdir()) == [output.name]


def test_deep_photos_give_deep_results(bundle: Bundle, tmp_path: Path) -> None:
    deep = Photo(textured(SIZE, 1, np.uint16))
    found = restore_photo(bundle, FRAME, deep, KEY_FRAME, tmp_path / "out.png")
    assert found.image.dtype == np.uint16
    assert len(np.unique(found.image % 257)) > 200  # more than 8 bits repeated
    assert np.array_equal(read_photo(tmp_path / "out.png").pixels, found.image)
    eight = restore_photo(bundle, FRAME, deep, KEY_FRAME, bit_depth=8)
    assert eight.image.dtype == np.uint8
    assert np.abs(eight.image.astype(int) - np.rint(found.image / 257)).max() <= 1
    sixteen = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, bit_depth=16)
    assert sixteen.image.dtype == np.uint16
    assert restore_photo(bundle, FRAME, deep, KEY_FRAME, compat="upstream").image.dtype == np.uint8


# --- the observer and injected noise


def test_the_observer_gets_every_tensor_of_a_golden_recording(bundle: Bundle) -> None:
    seen: dict[str, np.ndarray] = {}
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, batch=5, observer=lambda n, v: seen.update({n: v}))
    of_tile = [f"{name}.posterior_{part}" for name in ("lq", "ref") for part in ("mean", "std")]
    of_tile += ["flow", "z_lq", "z_ref", "z_init", "z_out", "decoded", *(f"step{s}.velocity" for s in range(6))]
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


# --- trouble


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch of 0"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 7}, "export with --steps 7"),
        ({"seed": -1}, "negative"),
        ({"compat": "downstream"}, "downstream"),
        ({"compat": "upstream", "bit_depth": 16}, "8 bits"),
        ({"bit_depth": 10}, "10 bits"),
        ({"bit_depth": 16, "output": "out.jpg"}, "no 16-bit"),
        ({"quality": 0}, "0 is no quality"),
        ({"reference": "sometimes"}, "sometimes"),
        ({"reference": "frozen@6"}, "frozen@6"),
        ({"flow": "guess"}, "guess"),
        ({"tile_plan": "random"}, "random"),
        ({"kv_store": "tape", "reference": "phase-split"}, "tape"),
        ({"kv_dtype": "int3", "reference": "phase-split"}, "int3"),
        ({"kv_budget_bytes": 0}, "0 bytes"),
        ({"provider": "abacus"}, "abacus"),
        ({"threads": 0}, "0 threads"),
        ({"output": "out.bmp"}, r"\.bmp"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path) -> None:
    if "output" in options:
        options = {**options, "output": tmp_path / options["output"]}
    with pytest.raises(UsageError, match=message):
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, **options)


def test_images_that_do_not_fit_are_refused_before_any_engine_opens(bundle: Bundle, tmp_path: Path) -> None:
    log = LoggingBackend()
    with pytest.raises(ImageError, match="no such file"):
        restore_photo(bundle, tmp_path / "none.png", PHOTO, backend=log)
    with pytest.raises(ImageError, match="aspect"):
        restore_photo(bundle, Photo(FRAME.pixels[:, :80]), PHOTO, backend=log)
    with pytest.raises(ImageError, match="64"):
        restore_photo(bundle, Photo(shrunk(PHOTO.pixels, Size(40, 52))), PHOTO, backend=log)
    with pytest.raises(ImageError, match="frame"):
        restore_photo(bundle, FRAME, PHOTO, Photo(shrunk(PHOTO.pixels, Size(81, 104))), backend=log)
    assert log.events == []


def test_an_output_that_cannot_be_written_is_found_before_the_work(bundle: Bundle, tmp_path: Path) -> None:
    log = LoggingBackend()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        restore_photo(bundle, FRAME, PHOTO, output=tmp_path / "file" / "out.png", backend=log)
    assert log.events == []


def test_no_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        restore_photo(tmp_path / "none", FRAME, PHOTO)


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("policy", ["per-step", "phase-split"])
def test_an_interrupt_anywhere_leaves_nothing_behind(
    stage: Stage, policy: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(running: Stage, number: int) -> None:
        if running is stage and number == 1:
            raise KeyboardInterrupt

    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    log = LoggingBackend(interrupt)
    with pytest.raises(KeyboardInterrupt):
        restore_photo(
            bundle, FRAME, PHOTO, output=out / "out.png", backend=log, reference=policy, kv_store="disk", batch=2
        )
    assert list(scratch.iterdir()) == []
    assert not out.exists() or list(out.iterdir()) == []
    assert log.open_now == set()


def test_an_old_output_survives_a_failed_run(bundle: Bundle, tmp_path: Path) -> None:
    def fail(stage: Stage, number: int) -> None:
        if stage is Stage.VAE_DECODER:
            raise EngineError("broken")

    output = tmp_path / "out.png"
    output.write_bytes(b"precious")
    with pytest.raises(EngineError, match="broken"):
        restore_photo(bundle, FRAME, PHOTO, output=output, backend=LoggingBackend(fail))
    assert output.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [output]


def test_keys_and_values_beyond_the_budget(bundle: Bundle) -> None:
    with pytest.raises(ResourceError, match="--kv-store disk"):
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, reference="phase-split", kv_budget_bytes=1000)


def test_an_engine_that_overflows_names_its_stage(tmp_path: Path) -> None:
    half = make_fake_bundle(tmp_path / "half", dtype="float16")

    class Loud:
        def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
            return TileNoise(*(np.full((3, *latent_shape), 60000, np.float32)))

    with pytest.raises(EngineError, match="NaN or infinity"):
        restore_photo(half, FRAME, PHOTO, KEY_FRAME, noise=Loud())


# --- resources


def test_engines_are_closed_when_nothing_needs_them(bundle: Bundle) -> None:
    log = LoggingBackend()
    restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, backend=log)
    order = [event[:2] for event in log.events]
    last_restoration = max(i for i, e in enumerate(order) if e == ("run", Stage.RESTORATION))
    assert order.index(("close", Stage.FLOW)) < last_restoration
    assert order.index(("close", Stage.VAE_ENCODER)) < last_restoration
    assert order.index(("close", Stage.RESTORATION)) < len(order) - 1 - order[::-1].index(("run", Stage.VAE_DECODER))
    assert log.open_now == set()
    assert [what for what, _ in order].count("open") == len(Stage)


def test_restoring_loads_neither_torch_nor_onnx(bundle: Bundle, tmp_path: Path) -> None:
    for name, photo in (("photo", PHOTO), ("frame", FRAME)):
        Image.fromarray(photo.pixels).save(tmp_path / f"{name}.png")
    code = (
        "import sys; from livemoments.runtime import restore; b, f, p, o = sys.argv[1:]; restore(b, f, p, output=o);"
        "print([m for m in ('torch', 'onnx', 'diffusers') if m in sys.modules])"
    )
    arguments = [str(bundle.path), str(tmp_path / "frame.png"), str(tmp_path / "photo.png"), str(tmp_path / "o.png")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "o.png").is_file()


@pytest.mark.slow
def test_a_12_megapixel_photo_needs_little_memory_beside_the_engines(tmp_path: Path) -> None:
    tile = Size(1072, 1072)
    make_fake_bundle(tmp_path / "bundle", tiles=(tile,), overlap=64, step_counts=(1,))
    photo = textured(Size(3072, 4096), 1)
    Image.fromarray(photo).save(tmp_path / "photo.png", compress_level=1)
    Image.fromarray(shrunk(photo, Size(1080, 1440))).save(tmp_path / "frame.png")
    code = (
        "import resource, sys; import livemoments.runtime as r; b, f, p, o = sys.argv[1:];"
        "r.restore(b, f, p, output=o, steps=1, flow='dis', threads=2);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))"
    )
    arguments = [str(tmp_path / name) for name in ("bundle", "frame.png", "photo.png", "out.png")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) < RESTORE_MEMORY_LIMIT_BYTES  # with the interpreter and the tiny engines


def test_load_inputs_reads_paths_and_takes_photos(tmp_path: Path) -> None:
    Image.fromarray(PHOTO.pixels).save(tmp_path / "photo.png")
    inputs = load_inputs(FRAME, tmp_path / "photo.png")
    assert inputs.frame is FRAME
    assert inputs.photo_frame_derived
    assert inputs.size == SIZE
    window = inputs.photo_view.window(10, 20, 30, 40)
    np.testing.assert_allclose(window, PHOTO.pixels[10:40, 20:60] / 255, atol=1e-6)


def test_the_pool_reuses_a_free_graph_for_every_size(bundle: Bundle) -> None:
    log = LoggingBackend()
    images = np.zeros((1, 3, 80, 104), np.float32)
    with EnginePool(bundle, log, Size(64, 64)) as pool:
        pool.run(Stage.FLOW, {"image1": images, "image2": images}, size=Size(80, 104))
        pool.run(Stage.FLOW, {"image1": images[..., :64, :64], "image2": images[..., :64, :64]})
        assert pool.is_open(Stage.FLOW)
        pool.close(Stage.FLOW)
        assert not pool.is_open(Stage.FLOW)
    assert [event[0] for event in log.events] == ["open", "run", "run", "close"]

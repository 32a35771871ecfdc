"""Images and flow of a restoration: files in and out, bit depths, derived frames, flow by engine and by DIS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from PIL import Image
from restore_images import FRAME, KEY_FRAME, PHOTO, SIZE, VIDEO, textured

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, UsageError
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.flow import DisFlow, EngineFlow
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.runtime.inputs import derive_photo_frame, load_inputs
from livemoments.runtime.restore import RestoreResult
from livemoments.types import Size, Stage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("restore") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> RestoreResult:
    return restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1)


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


def test_the_pool_tells_the_sizes_of_one_file_apart(bundle: Bundle) -> None:
    """A Core ML package holds a function for each size: the same path, another program."""
    entry = bundle.manifest.stages["flow"]
    (graph,) = entry.graphs
    sizes = (Size(64, 64), Size(80, 104))
    graphs = tuple(msgspec.structs.replace(graph, size=str(size)) for size in sizes)
    stages = {**bundle.manifest.stages, "flow": msgspec.structs.replace(entry, graphs=graphs)}
    shared = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, stages=stages))
    log = LoggingBackend()
    with EnginePool(shared, log, sizes[0]) as pool:
        for size in (*sizes, sizes[0]):
            images = np.zeros((1, 3, size.height, size.width), np.float32)
            pool.run(Stage.FLOW, {"image1": images, "image2": images}, size=size)
    assert [event[0] for event in log.events] == ["open", "run", "open", "run", "run", "close", "close"]

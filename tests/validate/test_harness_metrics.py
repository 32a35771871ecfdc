"""What a run over a data set measures: against a recording, with the package's own metrics, over the whole set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from harness_support import make_dataset, run
from logging_backend import LoggingBackend

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db
from livemoments.errors import UsageError
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import restore
from livemoments.types import Size, Stage
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.run_store import features_file
from livemoments.validate.harness.summary import aggregate_metrics
from livemoments.validate.quality.aggregate import load_features
from livemoments.validate.recording.schema import (
    RECORDING_SCHEMA,
    ImageEntry,
    RecordingMeta,
    RecordingSettings,
    Selection,
    TileEntry,
)
from livemoments.validate.recording.store import Recording, StoredRecording

TILE = Size(64, 64)
COUNT = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("bundle") / "b", tiles=(TILE,))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), COUNT)


def recording_of(bundle: Bundle, dataset: Dataset, folder: Path, **conditions: Any) -> tuple[Recording, list[Photo]]:
    entries, photos = {}, []
    for number, item in enumerate(dataset.items[:2]):
        result = restore(bundle, item.frame, item.photo, item.photo_frame, folder / f"{item.name}.png", seed=3)
        photos.append(read_photo(folder / f"{item.name}.png"))
        tiles = [
            TileEntry(
                y=tile.y, x=tile.x, height=64, width=64, ref_y=corner.y + number * (tile.index == 1), ref_x=corner.x
            )
            for tile, (_, corner) in zip(result.plan.tiles, result.corners, strict=True)
        ]
        size = str(result.plan.size)
        entries[item.name] = ImageEntry(
            files={"result": f"{item.name}.png"},
            size=size,
            padded=size,
            tiles=tuple(tiles),
            detail="stages",
            tensors=(),
        )
    given = {"tile": "64x64", "overlap": 16, "steps": 6, "policy": "per-step", "seed": 3, **conditions}
    schedule = tuple(bundle.manifest.schedule.points[index] for index in bundle.manifest.schedule.plans["6"])
    meta = RecordingMeta(
        schema=RECORDING_SCHEMA,
        created="",
        producer="tests",
        source=bundle.manifest.source,
        dtype="float32",
        settings=RecordingSettings(**given, schedule=schedule, noise_level=0.2),
        model=None,
        detail="stages",
        selection=Selection(),
        images=entries,
        files={},
    )
    return StoredRecording(folder, meta), photos


def test_photos_are_compared_with_a_recording(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    reference = make_fake_bundle(tmp_path / "reference", tiles=(TILE,), seed=9)
    recording, photos = recording_of(reference, dataset, tmp_path)
    settings = RestoreOptions(seed=3)
    metrics = StandardMetrics(("psnr_y",))
    found = run(bundle, dataset, tmp_path / "work", recording=recording, settings=settings, metrics=metrics)
    ours = [restore(bundle, item.frame, item.photo, item.photo_frame, seed=3) for item in dataset.items[:2]]
    for result, own, photo in zip(found, ours, photos, strict=False):
        assert result.parity_psnr_db == pytest.approx(psnr_db(own.image, photo.pixels, peak=255))
    assert [result.pcr["corners_differ"] for result in found[:2]] == [
        float(
            sum(
                (a.y, a.x) != (b.ref_y, b.ref_x)
                for (_, a), b in zip(own.corners, recording.entry(name).tiles, strict=True)
            )
        )
        for own, name in zip(ours, recording.images, strict=True)
    ]
    assert found[2].parity_psnr_db is None
    assert "corners_differ" not in found[2].pcr
    same = run(reference, dataset, tmp_path / "same", recording=recording, settings=settings, metrics=metrics)
    assert same[0].parity_psnr_db is None, "equal photos"
    assert [result.pcr["corners_differ"] for result in same[:2]] == [0.0, 1.0]
    for conditions, message in (
        ({"seed": 4}, "recorded with seed 4, this run uses 3"),
        ({"seed": None}, "noise came from no seed"),
        ({"steps": 3}, "recorded with steps 3, this run uses 6"),
        ({"tile": "96x96"}, "recorded with tiles 96x96, this run uses 64x64"),
        ({"overlap": 8}, "recorded with overlap 8"),
        ({"upstream": True}, "recorded with compat upstream True"),
    ):
        other, _ = recording_of(reference, dataset, tmp_path, **conditions)
        with pytest.raises(UsageError, match=message):
            run(bundle, dataset, tmp_path / "refused", recording=other, settings=settings)


def test_the_packages_own_metrics_over_a_set(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    metrics = StandardMetrics(("psnr_y", "ssim_y", "lpips"))
    results = run(bundle, dataset, tmp_path, metrics=metrics)
    psnr, ssim, lpips = aggregate_metrics(results, tmp_path, metrics)
    own = []
    for item in dataset.items:
        image = restore(bundle, item.frame, item.photo, item.photo_frame).image
        assert item.truth is not None
        luma = [pixels @ np.array([65.481, 128.553, 24.966]) / 255 for pixels in (image, read_photo(item.truth).pixels)]
        own.append(10 * np.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2)))
    assert [result.metrics["psnr_y"] for result in results] == pytest.approx(own, abs=1e-4)
    assert (psnr.count, psnr.mean, psnr.std) == (
        COUNT,
        pytest.approx(np.mean(own)),
        pytest.approx(np.std(own), rel=0.3),
    )
    assert psnr.input_mean == pytest.approx(np.mean([result.input_metrics["psnr_y"] for result in results]))
    assert ssim.count == COUNT
    assert lpips.mean is None
    assert lpips.status != "ok"
    key = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["key"]
    assert (key["metrics"], key["luma"], key["weights.lpips"]) == (["psnr_y", "ssim_y", "lpips"], "bt601-studio", None)
    assert all(result.seam is not None and result.seam > 0 for result in results)
    assert {"mean_shift_px", "clamp_rate"} <= set(results[0].pcr)


def test_features_for_metrics_of_the_whole_set_are_kept(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    results = run(bundle, dataset, tmp_path)
    files = [features_file(tmp_path, result.name) for result in results]
    first = load_features(files[0])["patches.output"]
    item = dataset.items[0]
    assert (first == restore(bundle, item.frame, item.photo, item.photo_frame).image.reshape(-1, 3)[:5]).all()
    files[0].unlink()
    backend = LoggingBackend()
    run(bundle, dataset, tmp_path, backend=backend)
    assert len(backend.runs(Stage.VAE_DECODER)) == results[0].tiles, "the image whose features were lost is done again"
    assert (load_features(files[0])["patches.output"] == first).all()
    run(bundle, dataset, tmp_path, metrics=StandardMetrics(("psnr_y",)))  # another run takes the folder
    assert not any(file.exists() for file in files), "features of other metrics would be taken for theirs"

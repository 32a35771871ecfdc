"""Runs over a data set: one image after another, kept as they finish, resumed, with bad images counted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from harness_support import make_dataset, pictures_in, run, scores, spoil, with_item, without_times
from logging_backend import LoggingBackend
from restore_images import textured

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, EngineError, OutputError, ResourceError, UsageError
from livemoments.progress import Task
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.resize import BicubicView
from livemoments.runtime.restore import restore
from livemoments.types import ReferencePolicy, Size, Stage
from livemoments.validate.datasets.index import Dataset, open_dataset
from livemoments.validate.harness.image_worker import whole_image
from livemoments.validate.harness.kept_engines import KeptEngines
from livemoments.validate.harness.previews import LONGEST_SIDE_PX, TRUTH_TOP_LEVELS, error_map
from livemoments.validate.harness.run import run_images
from livemoments.validate.harness.run_store import folder_name
from livemoments.validate.harness.summary import image_checks
from livemoments.validate.report_data import ImageResult

TILE = Size(64, 64)
COUNT = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("bundle") / "b", tiles=(TILE,))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), COUNT)


def lines_of(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]


class Stopping:
    """Progress that interrupts the run once ``after`` images are done."""

    def __init__(self, after: int, error: Callable[[], BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error
        self.done = 0

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        outer = self

        class Bar:
            def advance(self, amount: float = 1, note: str | None = None) -> None:
                if title == "Restoring the images" and amount:
                    outer.done += int(amount)
                    if outer.done >= outer.after:
                        raise outer.error()

        yield Bar()


def test_every_image_is_what_restore_makes_of_it(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    settings = RestoreOptions(seed=7, steps=6, reference="every-2", flow="dis", batch=2)
    results = run(bundle, dataset, tmp_path, settings=settings)
    assert [result.name for result in results] == [item.name for item in dataset.items]
    for item, result in zip(dataset.items, results, strict=True):
        alone = restore(
            bundle, item.frame, item.photo, item.photo_frame, seed=7, reference="every-2", flow="dis", batch=2
        )
        assert item.truth is not None
        truth, photo = read_photo(item.truth).pixels, read_photo(item.photo).pixels
        upscaled = whole_image(load_inputs(item.frame, item.photo, item.photo_frame).frame_view, 8)
        expected = scores(alone.image, upscaled, photo, truth) | {"endless": None}
        assert result.metrics == expected
        assert result.input_metrics == scores(upscaled, upscaled, photo, truth) | {"endless": None}
        assert (result.width, result.height) == (alone.image.shape[1], alone.image.shape[0])
        assert result.tiles == len(alone.timings.tile_seconds) == len(result.tile_seconds) > 1
        assert result.seam == float(alone.image[:, alone.plan.tiles[1].x].mean())
        assert result.pcr == {"clamp_rate": alone.metadata["pcr_clamp_rate"]}
        assert result.status == "ok"
        assert result.seconds > 0
        assert result.parity_psnr_db is None
    assert len({result.metrics["mean"] for result in results}) == COUNT


def test_the_upscaled_input_is_computed_in_strips() -> None:
    pixels = textured(Size(320, 96), seed=3)
    view = BicubicView(pixels, Size(700, 210))
    unit = np.clip(view.window(0, 0, 700, 210), 0, 1)
    for bits in (8, 16):
        assert (whole_image(view, bits) == np.rint(unit * np.float32((1 << bits) - 1))).all()


def test_engines_are_opened_once_for_all_images(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    backend = LoggingBackend()
    run(bundle, dataset, tmp_path, backend=backend)
    opened = [event[1] for event in backend.events if event[0] == "open"]
    assert sorted(opened) == sorted(Stage)
    assert not backend.open_now, "something was left open"


def test_phase_split_never_holds_both_networks(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    backend = LoggingBackend()
    split = run(bundle, dataset, tmp_path / "split", backend=backend, settings=RestoreOptions(reference="phase-split"))
    assert not any({Stage.REFERENCE, Stage.RESTORATION} <= stages for stages in backend.most_open)
    opened = [event[1] for event in backend.events if event[0] == "open"]
    assert opened.count(Stage.VAE_DECODER) == 1
    assert opened.count(Stage.REFERENCE) == COUNT
    assert not backend.open_now
    whole = run(bundle, dataset, tmp_path / "whole")
    assert [result.metrics for result in split] == [result.metrics for result in whole]


def test_what_one_image_needs_is_kept_and_goes_when_another_size_comes(tmp_path: Path) -> None:
    sizes = (TILE, Size(64, 96), Size(96, 64))
    bundle = make_fake_bundle(tmp_path / "b", tiles=sizes)
    backend = LoggingBackend()
    with closing(KeptEngines(backend, ReferencePolicy.parse("per-step"))) as kept:

        def events() -> list[str]:
            return [event[0] for event in backend.events]

        first, second = (kept.open(bundle, Stage.VAE_DECODER, size) for size in sizes[:2])
        assert events() == ["open", "open"], "the first was still lent out"
        first.close()
        with pytest.raises(EngineError, match="closed"):
            first.run({})
        second.close()
        for size in sizes[:2]:
            kept.open(bundle, Stage.VAE_DECODER, size).close()
        assert events() == ["open", "open"]
        kept.open(bundle, Stage.MOTION, TILE)
        kept.open(bundle, Stage.VAE_DECODER, sizes[2])
        assert events() == ["open", "open", "open", "close", "close", "open"]
    assert not backend.open_now


def test_interrupted_run_goes_on_and_ends_alike(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    whole = run(bundle, dataset, tmp_path / "whole")
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(bundle, dataset, work, progress=Stopping(2))
    assert len(lines_of(work)) == 1 + 2
    with (work / "results.jsonl").open("a") as stream:
        stream.write('{"name": "photo002", "sha')  # a killed process stopped in the middle of a line
    half = work / "images" / "photo002"
    half.mkdir()
    (half / "input.jpg").write_bytes(b"half")  # … and had its pictures in place already
    (work / "images" / ".photo003.partial-1-abc").mkdir()
    backend = LoggingBackend()
    again = run(bundle, dataset, work, backend=backend)
    assert list(map(without_times, again)) == list(map(without_times, whole))
    assert [result.seconds for result in again[:2]] != [result.seconds for result in whole[:2]]
    assert pictures_in(work) == pictures_in(tmp_path / "whole")
    assert sorted(path.name for path in (work / "images").iterdir()) == [item.name for item in dataset.items]
    assert len(backend.runs(Stage.VAE_DECODER)) == sum(result.tiles for result in again[2:])
    seen: list[ImageResult] = []
    third = LoggingBackend()
    assert run(bundle, dataset, work, backend=third, on_result=seen.append) == again
    assert seen == list(again)
    assert third.events == []


def test_pictures_of_the_report(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    results = run(bundle, dataset, tmp_path)
    item, result = dataset.items[0], results[0]
    roles = ("input", "output", "reference", "truth", "error")
    assert result.files == {role: f"images/{item.name}/{role}.jpg" for role in roles}
    photo = read_photo(tmp_path / result.files["reference"]).pixels.astype(int)
    assert np.abs(photo - read_photo(item.photo).pixels).mean() < 6
    none = run(bundle, dataset, tmp_path / "none", pictures=False)
    assert not (tmp_path / "none" / "images").exists()
    assert none[0].files == {}
    assert none[0].metrics == result.metrics
    later = run(bundle, dataset, tmp_path / "none")  # pictures are wanted now: done again
    assert later[0].files == result.files
    (tmp_path / result.files["truth"]).unlink()
    backend = LoggingBackend()
    assert list(map(without_times, run(bundle, dataset, tmp_path, backend=backend))) == list(
        map(without_times, results)
    )
    assert len(backend.runs(Stage.VAE_DECODER)) == result.tiles, "only the image whose picture was lost is done again"


def test_results_are_kept_and_another_run_is_compared_with_them(
    bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    first = run(bundle, dataset, tmp_path / "first", pictures=False, results=True)
    photos = {result.name: tmp_path / "first" / result.files["result"] for result in first}
    for item in dataset.items:
        restored = restore(bundle, item, RestoreOptions())
        assert np.array_equal(read_photo(photos[item.name]).pixels, restored.image)
    again = LoggingBackend()
    run(bundle, dataset, tmp_path / "first", pictures=False, results=True, backend=again)
    assert again.events == []
    key = {"compared_with": "first"}
    same = run(bundle, dataset, tmp_path / "same", compare_with=photos, key=key)
    assert all(result.parity_psnr_db is None for result in same), "equal pictures have no PSNR"
    other = run(bundle, dataset, tmp_path / "other", compare_with=photos, key=key, settings=RestoreOptions(seed=1))
    for result, item in zip(other, dataset.items, strict=True):
        pixels = restore(bundle, item, RestoreOptions(seed=1)).image
        wanted = cv2.PSNR(pixels, read_photo(photos[item.name]).pixels)
        assert result.parity_psnr_db == pytest.approx(wanted, abs=1e-9)
    photos[dataset.items[0].name].unlink()
    lost = LoggingBackend()
    run(bundle, dataset, tmp_path / "first", pictures=False, results=True, backend=lost)
    assert len(lost.runs(Stage.VAE_DECODER)) == first[0].tiles, "only the image whose result was lost is done again"
    with_pictures = LoggingBackend()
    run(bundle, dataset, tmp_path / "first", results=True, backend=with_pictures)
    assert len(with_pictures.runs(Stage.VAE_DECODER)) == sum(result.tiles for result in first)


def test_large_pictures_shrink_and_the_heat_map_shows_where(tmp_path: Path) -> None:
    wanted = np.full((600, 1800, 3), 100, np.uint8)
    value = wanted.copy()
    value[:300, :900] += int(TRUTH_TOP_LEVELS)
    value[300:, 900:] += int(TRUTH_TOP_LEVELS) // 2
    found = error_map(value, wanted, top_levels=TRUTH_TOP_LEVELS)
    assert found.shape == (300, LONGEST_SIDE_PX, 3)
    scale = cv2.applyColorMap(np.array([[0, 128, 255]], np.uint8), cv2.COLORMAP_INFERNO)[0, :, ::-1]
    for place, level in (((50, 800), 0), ((250, 600), 1), ((50, 100), 2)):
        assert np.abs(found[place].astype(int) - scale[level]).max() <= 4, place
    one_level = error_map(wanted + np.uint8(1), wanted, top_levels=4.0)
    assert one_level.astype(int).sum() > error_map(wanted, wanted, top_levels=4.0).astype(int).sum()


def test_a_bad_image_is_reported_skipped_and_counted(bundle: Bundle, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 3, rejected=(("photo001b", "its frame is turned"),))
    good = run(bundle, dataset, tmp_path / "good")
    dataset = with_item(dataset, 1, spoil(dataset.items[1]))
    results = run(bundle, dataset, tmp_path / "work")
    assert [result.status for result in results] == ["ok", "failed", "failed", "ok"]
    assert [result.name for result in results] == ["photo000", "photo001", "photo001b", "photo002"]
    assert "photo001.png" in str(results[1].error)
    assert "damaged or cut short" in str(results[1].error)
    assert results[2].error == "its frame is turned"
    assert [without_times(results[index]) for index in (0, 3)] == [without_times(good[index]) for index in (0, 3)]
    done, failed = image_checks(results)
    assert (done.name, done.value, done.status) == ("images.done", 2, "info")
    assert (failed.name, failed.value, failed.limit, failed.status) == ("images.failed", 2, 0, "fail")
    assert "photo001b (its frame is turned)" in failed.detail
    assert image_checks(results, allowed_failures=2)[1].status == "pass"
    assert image_checks(good[:1])[1].status == "pass"
    backend = LoggingBackend()
    assert run(bundle, dataset, tmp_path / "work", backend=backend) == results, "a failure is a result, too"
    assert backend.events == []
    mended = make_dataset(tmp_path / "data", 3)  # the photo is whole again
    mended = with_item(mended, 1, replace(mended.items[1], sha256="new"))
    third = run(bundle, mended, tmp_path / "work", backend=backend)
    assert [result.status for result in third] == ["ok"] * 3
    assert len(backend.runs(Stage.VAE_DECODER)) == third[1].tiles, "the others are not done again"


def test_an_image_too_small_for_the_tiles_fails_alone(tmp_path: Path, dataset: Dataset) -> None:
    bundle = make_fake_bundle(tmp_path / "b", tiles=(Size(128, 128),))
    results = run(bundle, dataset, tmp_path / "work")
    assert {result.status for result in results} == {"failed"}
    assert "smaller than every tile size" in str(results[0].error)
    assert {
        result.status for result in run(bundle, dataset, tmp_path / "pad", settings=RestoreOptions(pad_small=True))
    } == {"ok"}


def test_an_engine_that_fails_on_one_image_fails_alone(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    left = ["stage 'vae_decoder', output 'image': NaN or infinity"]

    def trouble(stage: Stage, run: int) -> None:
        if stage is Stage.VAE_DECODER and left:
            raise EngineError(left.pop())

    results = run(bundle, dataset, tmp_path, backend=LoggingBackend(trouble))
    assert [result.status for result in results] == ["failed", "ok", "ok", "ok"]
    whole = run(bundle, dataset, tmp_path / "whole")
    assert [without_times(result) for result in results[1:]] == [without_times(result) for result in whole[1:]]


def test_an_engine_that_does_not_open_ends_the_run(tmp_path: Path, dataset: Dataset) -> None:
    bundle = make_fake_bundle(tmp_path / "b", tiles=(TILE,))
    graph = bundle.path / bundle.graph(Stage.MOTION, TILE).path
    graph.write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match="cannot be loaded"):
        run(bundle, dataset, tmp_path / "work")
    assert len(lines_of(tmp_path / "work")) == 1


def test_no_memory_ends_the_run_and_keeps_what_is_done(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    def full(stage: Stage, run: int) -> None:
        if stage is Stage.VAE_DECODER and run == tiles:
            raise ResourceError("memory ran out")

    def full_numpy(stage: Stage, run: int) -> None:
        if stage is Stage.VAE_DECODER and run == 0:
            raise MemoryError("Unable to allocate 3.00 GiB")

    whole = run(bundle, dataset, tmp_path / "whole")
    tiles = whole[0].tiles
    with pytest.raises(ResourceError, match="memory ran out"):
        run(bundle, dataset, tmp_path / "work", backend=LoggingBackend(full))
    assert [line["name"] for line in lines_of(tmp_path / "work")[1:]] == ["photo000"]
    with pytest.raises(ResourceError, match=r"'photo001': memory ran out \(Unable to allocate"):
        run(bundle, dataset, tmp_path / "work", backend=LoggingBackend(full_numpy))
    assert list(map(without_times, run(bundle, dataset, tmp_path / "work"))) == list(map(without_times, whole))


def test_other_conditions_are_not_mixed(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(bundle, dataset, work, progress=Stopping(1))
    before = (work / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"1 results of an unfinished run that differs in: settings\.seed, weights"):
        run(bundle, dataset, work, settings=RestoreOptions(seed=1), key={"weights": "abc"})
    other = make_fake_bundle(tmp_path / "other", tiles=(TILE,), seed=5)
    with pytest.raises(UsageError, match="differs in: bundle"):
        run(other, dataset, work)
    assert (work / "results.jsonl").read_bytes() == before
    run(bundle, dataset, work, settings=RestoreOptions(threads=1, kv_store="disk"))  # they change no pixel: it goes on
    assert [line.get("name") for line in lines_of(work)[1:]] == [*(item.name for item in dataset.items), None]
    seeded = run(bundle, dataset, work, settings=RestoreOptions(seed=1))  # a finished run is replaced
    alone = run(bundle, dataset, tmp_path / "alone", settings=RestoreOptions(seed=1))
    assert list(map(without_times, seeded)) == list(map(without_times, alone))
    with pytest.raises(KeyboardInterrupt):
        run(bundle, dataset, work, progress=Stopping(1), settings=RestoreOptions(seed=2))
    fresh = run(bundle, dataset, work, settings=RestoreOptions(seed=1), fresh=True)
    assert list(map(without_times, fresh)) == list(map(without_times, alone))


def test_two_runs_in_one_folder_are_refused(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    def second(_: ImageResult) -> None:
        run(bundle, dataset, tmp_path)

    with pytest.raises(UsageError, match="another run is working in"):
        run(bundle, dataset, tmp_path, on_result=second)
    run(bundle, dataset, tmp_path)


def test_a_place_that_cannot_be_written_is_one_error(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run(bundle, dataset, tmp_path / "file")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RestoreOptions(steps=99), "99 steps"),
        (RestoreOptions(batch=0), "a batch of 0"),
        (RestoreOptions(seed=-1), "negative"),
        (RestoreOptions(reference="frozen@9"), "names a step"),
        (RestoreOptions(reference="sometimes"), "not a reference policy"),
        (RestoreOptions(kv_dtype="int3"), "no storage format"),
        (RestoreOptions(tile="96x96"), "no graphs for 96x96"),
        (RestoreOptions(flow="farneback"), "'farneback' is no flow"),  # type: ignore[arg-type]
        (RestoreOptions(tile_plan="random"), "is no tile plan"),  # type: ignore[arg-type]
        (RestoreOptions(provider="abacus"), "no provider 'abacus'"),
    ],
)
def test_settings_are_checked_before_the_first_image(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, settings: RestoreOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(bundle, dataset, tmp_path, settings=settings)


def test_wrong_engines_are_refused(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an engine for a run"):
        run(bundle, dataset, tmp_path, engine="dask")
    with pytest.raises(UsageError, match="one worker"):
        run(bundle, dataset, tmp_path, workers=2)
    with pytest.raises(BundleError):
        run_images(tmp_path / "nothing", dataset, work=tmp_path / "work")


def test_options_are_the_same_on_the_command_line() -> None:
    from livemoments.cli.restore import command

    options = RestoreOptions(seed=3, steps=6, reference="every-2", tile="64x96", pad_small=True, threads=2)
    assert options.tile == Size(96, 64)
    parsed = command.make_context(
        "restore", ["bundle", "--frame", "f", "--photo", "p", "-o", "o.png", *options.arguments()]
    ).params
    for name, value in options.to_json().items():
        assert str(parsed[name]) == str(value), name
    assert json.loads(json.dumps(options.to_json()))["reference"] == "every-2"
    assert set(options.key()) < set(options.to_json())


def test_a_live_photo_with_options_is_restored_as_with_keywords(bundle: Bundle, dataset: Dataset) -> None:
    item = dataset.items[0]
    keywords = restore(bundle, item.frame, item.photo, item.photo_frame, seed=4, flow="dis", batch=2)
    options = restore(bundle, item, RestoreOptions(seed=4, flow="dis", batch=2))
    assert np.array_equal(keywords.image, options.image)
    assert keywords.metadata == options.metadata
    with pytest.raises(TypeError, match="with RestoreOptions"):
        restore(bundle, item, seed=4)
    with pytest.raises(TypeError, match="stepps"):
        restore(bundle, item.frame, item.photo, stepps=4)


def test_folder_names_are_safe_and_distinct() -> None:
    assert folder_name("IMG_0001") == "IMG_0001"
    odd = ["a/b", "..", ".hidden", "100%", "ü", "a b", "a?b", "x" * 200, "a\nb"]
    names = [folder_name(name) for name in odd]
    assert len(set(names)) == len(odd)
    assert all(name.isascii() and not set(name) & set("/?%# \n") and not name.startswith(".") for name in names)


def test_the_index_feeds_the_harness(bundle: Bundle, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", 3)
    spoil(made.items[2])
    dataset = open_dataset(tmp_path / "data")
    results = run(bundle, dataset, tmp_path / "work")
    assert [result.status for result in results] == ["ok", "ok", "failed"]
    round_trip = msgspec.json.decode(msgspec.json.encode(results), type=tuple[ImageResult, ...])
    assert round_trip == results

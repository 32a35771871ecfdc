"""Calibration through the real pipeline: what it counts, what it refuses, and that it can be taken up again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from calibration_photos import (
    TRANSFORMERS,
    RecordingBackend,
    edited_bundle,
    linear_inputs,
    write_photos,
)
from restore_images import difference

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, FileError, ImageError, OutputError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.graphs.segments import Tap
from livemoments.graphs.taps import TappedBackend, segments_of
from livemoments.manifest import Source
from livemoments.progress import Task
from livemoments.quantize.calibrate.photos import read_set, set_sha256
from livemoments.quantize.calibrate.result import CalibrationResult, fill_unseen
from livemoments.quantize.calibrate.run import calibrate, photo_seed
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.image_files.photo import read_photo
from livemoments.types import Stage

ROUNDING = 1e-4
"""Of a layer's largest value: sums in another order through a whole network and six steps."""
ROUNDING_LEVELS = 1


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def result(bundle: Bundle, photos: Path) -> CalibrationResult:
    return calibrate(bundle, photos, flow="dis", observer="minmax", seed=3)


class _Stop(BaseException):
    """What a Ctrl-C is: no ordinary error."""


class Diary:
    """A reporter that writes down titles, totals and notes, and may stop in the middle of a photo."""

    def __init__(self, stop_at: float | None = None) -> None:
        self.totals: dict[str, float | None] = {}
        self.done: dict[str, float] = {}
        self.moves = 0
        self._stop_at = stop_at

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        self.totals[title] = total
        self.done[title] = 0
        diary = self

        class Bar:
            def advance(self, amount: float = 1, note: str | None = None) -> None:
                diary.done[title] += amount
                if title == "Calibrating":
                    diary.moves += 1
                    if diary._stop_at is not None and diary.done[title] > diary._stop_at:
                        raise _Stop

        yield Bar()


# --- the folder


def test_a_set_is_indexed_in_the_order_of_names(tmp_path: Path) -> None:
    folder = write_photos(tmp_path, ("c", "a", "b"))
    items = read_set(folder)
    assert [item.name for item in items] == ["a", "b", "c"]
    assert items[0].frame == folder / "lr" / "a.png"
    assert items[0].photo_frame == folder / "ref_lr" / "a.png"
    assert [item.name for item in read_set(folder, limit=2)] == ["a", "b"]
    assert len({item.sha256 for item in items}) == 3
    assert set_sha256(items) == set_sha256(read_set(folder))
    assert set_sha256(items) != set_sha256(items[:2])


def test_key_frames_are_optional_and_suffixes_may_differ(tmp_path: Path) -> None:
    folder = write_photos(tmp_path, ("a",), key_frames=False)
    pixels = read_photo(folder / "ref" / "a.png").pixels
    (folder / "ref" / "a.png").unlink()
    import cv2

    cv2.imwrite(str(folder / "ref" / "a.jpg"), pixels[..., ::-1])
    (item,) = read_set(folder)
    assert item.photo.name == "a.jpg"
    assert item.photo_frame is None


def test_bad_sets_are_one_clear_error(tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ImageError, match=message) as caught:
            read_set(folder)
        assert caught.value.fix

    refused(tmp_path / "nowhere", "no such folder")
    empty = tmp_path / "empty"
    (empty / "lr").mkdir(parents=True)
    refused(empty, "holds no images")
    (empty / "lr" / "a.png").write_bytes(b"")
    refused(empty, "there is no folder 'ref'")

    unmatched = write_photos(tmp_path / "unmatched", ("a", "b"))
    (unmatched / "ref_lr" / "a.png").unlink()
    refused(unmatched, "there is no ref_lr/a")

    twice = write_photos(tmp_path / "twice", ("a",))
    (twice / "lr" / "a.jpg").write_bytes(b"x")
    refused(twice, "a.jpg and a.png have one name")

    damaged = write_photos(tmp_path / "damaged", ("a", "b", "c"))
    file = damaged / "ref" / "b.png"
    file.write_bytes(file.read_bytes()[:2000])
    refused(damaged, r"a calibration photo cannot be used: .*b\.png")
    (damaged / "lr" / "c.png").write_bytes(b"not an image at all")
    refused(damaged, r"2 of 3 calibration photos cannot be used: b, c; the first: .*b\.png")
    with pytest.raises(UsageError, match="limit of 0"):
        read_set(damaged, limit=0)


def test_calibrate_refuses_before_it_works(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        calibrate(bundle, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no observer 'average'"):
        calibrate(bundle, photos, observer="average")
    with pytest.raises(UsageError, match="no plan for 5 steps; it has 3, 6"):
        calibrate(bundle, photos, flow="dis", steps=(5,))
    with pytest.raises(UsageError, match="negative"):
        calibrate(bundle, photos, flow="dis", seed=-1)
    quantized = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, recipe="int8"))
    with pytest.raises(UsageError, match="quantized already"):
        calibrate(quantized, photos)


# --- what is counted


def test_statistics_are_those_of_a_direct_computation(bundle: Bundle, photos: Path, result: CalibrationResult) -> None:
    """Against the whole graphs with extra outputs, fed with what the plain pipeline feeds them."""
    backend = RecordingBackend()
    for item in read_set(photos):
        restore_photo(
            bundle,
            item.frame,
            item.photo,
            item.photo_frame,
            seed=photo_seed(3, item),
            flow="dis",
            pad_small=True,
            backend=backend,
        )
    sampled = bundle.manifest.schedule.plans[str(bundle.manifest.schedule.default_steps)]
    seen = set()
    for stage in TRANSFORMERS:
        for linear, arrays in linear_inputs(bundle, stage, backend.fed[stage]).items():
            seen.add(linear)
            stats = result.stats[linear]
            everything = np.concatenate([rows for _, rows in arrays]).astype(np.float64)
            tolerance = ROUNDING * np.abs(everything).max()
            np.testing.assert_allclose(stats.channel_absmax, np.abs(everything).max(axis=0), atol=tolerance)
            np.testing.assert_allclose(stats.second_moment, (everything**2).mean(axis=0), rtol=1e-3, atol=tolerance**2)
            for point in sampled:
                rows = np.concatenate([rows for at, rows in arrays if at == point])
                assert stats.rows is not None
                assert stats.rows[point] == len(rows)
                assert stats.low[point] == pytest.approx(min(0, rows.min()), abs=tolerance)
                assert stats.high[point] == pytest.approx(max(0, rows.max()), abs=tolerance)
                assert stats.channel_low is not None
                np.testing.assert_allclose(stats.channel_low[point], rows.min(axis=0), atol=tolerance)
    assert seen == set(result.stats)
    assert (result.images, result.tiles, result.seed) == (2, 2, 3)
    assert result.observer == "minmax"


def test_every_step_of_the_default_plan_is_seen_and_differs(bundle: Bundle, result: CalibrationResult) -> None:
    stats = result.stats[LinearId("restoration", "transformer_blocks.2.ff.net.0.proj.weight")]
    assert stats.rows is not None
    schedule = bundle.manifest.schedule
    sampled = schedule.plans[str(schedule.default_steps)]
    assert len(sampled) == 6
    np.testing.assert_array_equal(np.flatnonzero(stats.rows), sampled)
    assert len({stats.high[point] for point in sampled}) == 6


def test_linears_of_one_input_share_their_statistics(result: CalibrationResult) -> None:
    first = result.stats[LinearId("restoration", "transformer_blocks.1.attn.to_q.weight")]
    assert result.stats[LinearId("restoration", "transformer_blocks.1.attn.to_k.weight")] is first
    assert result.stats[LinearId("restoration", "transformer_blocks.1.attn.to_out.0.weight")] is not first
    names = [str(linear) for linear in result.stats]
    assert names[0].startswith("reference/")
    assert "restoration/proj_out.weight" in names


def test_points_that_are_not_sampled_get_their_neighbours_ranges(bundle: Bundle, photos: Path) -> None:
    found = calibrate(bundle, photos, flow="dis", observer="minmax", steps=(3,), limit=1)
    plan = set(bundle.manifest.schedule.plans["3"])
    missing = next(p for p in range(len(bundle.manifest.schedule.points)) if p not in plan)
    for stats in found.stats.values():
        assert stats.rows is not None
        assert {int(p) for p in np.flatnonzero(stats.rows)} == plan
        before = max(p for p in plan if p < missing)
        after = min(p for p in plan if p > missing)
        assert stats.low[missing] == min(stats.low[before], stats.low[after])
        assert stats.high[missing] == max(stats.high[before], stats.high[after])
        assert np.isfinite(stats.channel_absmax).all()


def test_unseen_points_at_the_ends_take_the_only_neighbour() -> None:
    values = np.array([9.0, 1.0, 9.0, 9.0, 3.0, 9.0])
    seen = np.array([False, True, False, False, True, False])
    np.testing.assert_array_equal(fill_unseen(values, seen, np.maximum), [1, 1, 3, 3, 3, 3])


# --- the taps


@pytest.mark.parametrize("options", [{}, {"taps_budget_bytes": 1}, {"taps_budget_bytes": 1, "resident_bytes": 0}])
def test_taps_do_not_change_the_picture(bundle: Bundle, photos: Path, options: dict[str, int]) -> None:
    item = read_set(photos, limit=1)[0]
    calls: dict[tuple[LinearId, int], int] = {}

    def listen(tap: Tap, point: int, values: np.ndarray) -> None:
        assert values.shape[-1] == tap.features
        calls[tap.key, point] = calls.get((tap.key, point), 0) + 1

    images = [
        restore_photo(
            bundle, item.frame, item.photo, item.photo_frame, pad_small=True, flow="dis", backend=backend
        ).image
        for backend in (None, TappedBackend(listen, **options))
    ]
    assert difference(*images) <= ROUNDING_LEVELS
    steps = bundle.manifest.schedule.default_steps
    assert set(calls.values()) == {1}
    assert len(calls) == steps * len({key for key, _ in calls})


def test_segments_hold_few_taps_and_every_node_once(bundle: Bundle) -> None:
    for stage in TRANSFORMERS:
        path = bundle.path / bundle.graph(stage, bundle.tile_sizes[0]).path
        whole, parts = segments_of(path, stage, 1 << 40), segments_of(path, stage, 1)
        assert len(whole) == 1
        assert len(parts) == bundle.manifest.model.num_blocks
        assert [tap.key for part in parts for tap in part.taps] == [tap.key for tap in whole[0].taps]
        nodes = [node for part in parts for node in onnx.load_model_from_string(part.model).graph.node]
        assert len(nodes) == len(onnx.load(path, load_external_data=False).graph.node)
        elements = max(sum(tap.elements for tap in part.taps) for part in parts)
        halves = segments_of(path, stage, 8 * elements)
        assert len(parts) > len(halves) > 1


def test_the_motions_slices_are_not_carried_along(bundle: Bundle) -> None:
    path = bundle.path / bundle.graph(Stage.RESTORATION, bundle.tile_sizes[0]).path
    parts = segments_of(path, Stage.RESTORATION, 1)
    assert all("motion_bias" in part.inputs for part in parts)
    tokens = {
        value.name
        for part in parts
        for value in onnx.load_model_from_string(part.model).graph.input
        if len(value.type.tensor_type.shape.dim) == 3 and not value.name.startswith("reference_")
    }
    assert len(tokens) <= 2 * len(parts)  # the image's and the text's stream


def test_nan_is_an_error_that_names_layer_and_step(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    def plant(bias: np.ndarray) -> None:
        bias[5] = np.nan

    damaged = edited_bundle(
        bundle.path, tmp_path / "bundle", {("restoration", "transformer_blocks.2.ff.net.0.proj.bias"): plant}
    )
    wanted = (
        r"a: NaN or infinity enters restoration/transformer_blocks\.2\.ff\.net\.2\.weight "
        r"at schedule point 0 \(timestep 200\.2\)"
    )
    with pytest.raises(EngineError, match=wanted):
        calibrate(damaged, photos, flow="dis")
    damaged = edited_bundle(
        bundle.path, tmp_path / "other", {("reference", "transformer_blocks.3.attn.to_k.bias"): plant}
    )
    with pytest.raises(EngineError, match=r"stage 'reference', output 'reference_k\.3': NaN .* schedule point 0"):
        calibrate(damaged, photos, flow="dis")


# --- the file, and taking work up again


def test_a_result_survives_its_file(result: CalibrationResult, bundle: Bundle, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    result.save(one)
    loaded = CalibrationResult.load(one)
    loaded.save(two)
    assert one.read_bytes() == two.read_bytes()
    assert list(loaded.stats) == list(result.stats)
    assert (loaded.sha256, loaded.images, loaded.schedule) == (result.sha256, 2, result.schedule)
    for linear, stats in result.stats.items():
        np.testing.assert_array_equal(loaded.stats[linear].second_moment, stats.second_moment)
        np.testing.assert_array_equal(loaded.stats[linear].low, stats.low)
    q, k = (loaded.stats[LinearId("reference", f"transformer_blocks.1.attn.to_{x}.weight")] for x in "qk")
    assert q is k
    loaded.check_fits(bundle)
    other = msgspec.structs.replace(bundle.manifest.schedule, points=bundle.manifest.schedule.points[:2])
    with pytest.raises(UsageError, match="other timesteps"):
        loaded.check_fits(Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, schedule=other)))
    stranger = msgspec.structs.replace(bundle.manifest, source=Source(name="another", files={}))
    with pytest.raises(UsageError, match="another checkpoint"):
        loaded.check_fits(Bundle(bundle.path, stranger))


def test_damaged_results_are_refused(result: CalibrationResult, tmp_path: Path) -> None:
    file = tmp_path / "result"
    result.save(file)
    data = bytearray(file.read_bytes())
    with pytest.raises(FileError, match="cannot be read"):
        CalibrationResult.load(tmp_path / "none")
    for content in (b"", data[:-1], data[:100], b"x" * 1000):
        file.write_bytes(content)
        with pytest.raises(FileError, match="is not a calibration"):
            CalibrationResult.load(file)
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(FileError, match="damaged"):
        CalibrationResult.load(file)


def test_interrupted_work_is_taken_up_again_with_the_same_bytes(
    bundle: Bundle, photos: Path, result: CalibrationResult, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    with pytest.raises(_Stop):
        calibrate(bundle, photos, flow="dis", observer="minmax", seed=3, work=work, progress=Diary(stop_at=1.4))
    (kept,) = work.iterdir()
    first = kept.read_bytes()
    diary = Diary()
    resumed = calibrate(bundle, photos, flow="dis", observer="minmax", seed=3, work=work, progress=diary)
    assert diary.totals["Calibrating"] == 1
    assert diary.done["Calibrating"] == pytest.approx(1)
    assert diary.moves >= bundle.manifest.schedule.default_steps  # the bar, and its time left, move with the steps
    assert kept.read_bytes() == first
    for place, found in (("resumed", resumed), ("at once", result)):
        found.save(tmp_path / place)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "at once").read_bytes()
    # another observer needs no further restoration, another seed needs all of them
    diary = Diary()
    other = calibrate(bundle, photos, flow="dis", observer="mse", seed=3, work=work, progress=diary)
    assert diary.totals["Calibrating"] == 0
    assert other.sha256 != result.sha256
    # a damaged file is made again
    kept.write_bytes(first[:-100])
    calibrate(bundle, photos, flow="dis", observer="minmax", seed=3, work=work)
    assert kept.read_bytes() == first


def test_the_seed_and_the_set_are_in_the_hash(bundle: Bundle, photos: Path, result: CalibrationResult) -> None:
    other = calibrate(bundle, photos, flow="dis", observer="minmax", seed=4, limit=1)
    assert other.sha256 != result.sha256
    assert other.images == 1


def test_a_work_folder_that_cannot_be_written(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        calibrate(bundle, photos, flow="dis", work=tmp_path / "file", limit=1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_outright_and_started_again(
    bundle: Bundle, photos: Path, result: CalibrationResult, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    code = (
        "import sys; from livemoments.quantize.calibrate.run import calibrate; "
        "calibrate(sys.argv[1], sys.argv[2], observer='minmax', seed=3, work=sys.argv[3], flow='dis')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(bundle.path), str(photos), str(work)])
    try:
        deadline_s = time.monotonic() + 120
        while not list(work.glob("*.calibration")) and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    calibrate(bundle, photos, flow="dis", observer="minmax", seed=3, work=work).save(tmp_path / "again")
    result.save(tmp_path / "at once")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "at once").read_bytes()

"""The ladder's measures, its parts, what it refuses, and a whole compare of a good bundle."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ladder_support import Without, recording_of

from livemoments import distances
from livemoments.bundle import Bundle, open_bundle
from livemoments.errors import BundleError, EngineError, FileError, UsageError
from livemoments.export import conditioning
from livemoments.graphs.subgraphs import Network
from livemoments.limits import load_limits
from livemoments.types import Size, Stage
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.graph_values import expected_values
from livemoments.validate.ladder.graph_values.block_errors import BlockErrors
from livemoments.validate.ladder.graph_values.modules import find_modules
from livemoments.validate.ladder.recorded_conditions import check_fits, choose_image
from livemoments.validate.ladder.recorded_runs import recorded_runs
from livemoments.validate.ladder.rungs import WorstDistance
from livemoments.validate.ladder.tensor_distance import PIECE_ELEMENTS, tensor_distance
from livemoments.validate.recording.store import Recording

TILE = Size(128, 128)


@pytest.fixture(scope="module")
def recording(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recording_of(tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.mark.parametrize("count", [1, PIECE_ELEMENTS, 2 * PIECE_ELEMENTS + 3])
def test_measures_in_pieces_are_those_of_the_whole(count: int) -> None:
    rng = np.random.default_rng(count)
    reference = rng.standard_normal(count).astype(np.float32)
    value = reference + 0.1 * rng.standard_normal(count).astype(np.float32)
    found = tensor_distance(value, reference, peak=2.0)
    wide, want = value.astype(np.float64), reference.astype(np.float64)
    assert found.rel_l2 == pytest.approx(np.linalg.norm(wide - want) / np.linalg.norm(want), rel=1e-12)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(found.rel_l2), rel=1e-12)
    assert found.cosine == pytest.approx(wide @ want / np.linalg.norm(wide) / np.linalg.norm(want), rel=1e-12)
    assert found.max_abs == pytest.approx(np.abs(wide - want).max(), rel=1e-12)
    assert found.psnr_db == pytest.approx(10 * math.log10(4 / np.mean((wide - want) ** 2)), rel=1e-12)
    assert found.cosine == pytest.approx(distances.cosine(value, reference), rel=1e-12)


def test_measures_at_the_edges() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    equal = tensor_distance(ones, ones, peak=1.0)
    assert (equal.rel_l2, equal.sqnr_db, equal.cosine, equal.max_abs, equal.psnr_db) == (0, math.inf, 1, 0, math.inf)
    assert tensor_distance(zeros, zeros).rel_l2 == 0
    assert tensor_distance(ones, zeros).rel_l2 == math.inf
    assert tensor_distance(ones, zeros).cosine == 0
    assert math.isnan(tensor_distance(np.array([1, math.nan, 2]), ones).max_abs)
    assert math.isnan(tensor_distance(np.array([1, math.nan, 2]), ones).rel_l2)
    assert tensor_distance(np.ones((3, 1)), ones).rel_l2 == math.inf
    assert tensor_distance(-ones, ones).cosine == -1


@pytest.mark.parametrize(
    ("value", "status"),
    [([1.0, 1.0], "pass"), ([1.0, 1.5], "fail"), ([1.0, math.nan], "fail"), ([math.inf, 1], "fail")],
)
def test_a_rung_passes_only_what_is_finite_and_within_its_limit(value: list[float], status: str) -> None:
    worst = WorstDistance()
    worst.add(tensor_distance(np.array(value), np.ones(2)), "the first")
    worst.add(tensor_distance(np.ones(2) * 1.01, np.ones(2)), "the second")
    rung = worst.rung("network", "motion", "256x256", 0.1)
    assert rung.status == status
    assert ("first" in rung.where) == (status == "fail")
    assert worst.rung("network", "motion", "256x256", None).status == "info"
    msgspec.json.encode(rung)
    empty = WorstDistance().rung("network", "motion", "256x256", 0.1)
    assert (empty.status, empty.rel_l2) == ("info", None)
    assert empty.where


@pytest.mark.parametrize(("noise", "status"), [(0.0, "pass"), (1e-4, "pass"), (0.1, "fail"), (math.nan, "fail")])
def test_a_pictures_rung_is_held_to_its_psnr(noise: float, status: str) -> None:
    picture = np.linspace(-1, 1, 300)
    worst = WorstDistance("psnr_db")
    worst.add(tensor_distance(picture + noise, picture, peak=2), "tile0")
    rung = worst.rung("tile", "tile0.decoded", "256x256", 60.0)
    assert (rung.status, rung.limit_of) == (status, "psnr_db")


def test_rows_are_diffusers_and_the_exporters() -> None:
    assert expected_values.ZERO_ROWS == conditioning.ZERO_ROWS
    assert expected_values.CONTINUOUS_ROWS == conditioning.CONTINUOUS_ROWS


def test_attention_is_torchs() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, n, 24)).astype(np.float32) for n in (700, 50, 50))
    split = [torch.from_numpy(x).unflatten(-1, (3, 8)).transpose(1, 2) for x in (query, key, value)]
    want = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2).numpy()
    assert tensor_distance(expected_values.attention(query, key, value, 3), want).rel_l2 < 1e-6


def test_every_weight_is_a_module_and_every_block_has_its_boundary(bundle: Bundle) -> None:
    for stage in (Stage.MOTION, Stage.VAE_ENCODER, Stage.VAE_DECODER, Stage.REFERENCE, Stage.RESTORATION):
        network = Network(bundle.path / bundle.graph(stage, TILE).path)
        weights = {name.removesuffix(".weight") for name in network.weights if name.endswith(".weight")}
        assert set(find_modules(network)) == weights
    for stage, last in ((Stage.REFERENCE, []), (Stage.RESTORATION, ["hidden"])):
        walk = BlockErrors(bundle, stage, bundle.graph(stage, TILE))
        found = [sorted(block.boundary) for block in walk.transformer.blocks]
        assert found == [["context", "hidden"]] * 3 + [last]


def test_a_piece_computes_what_the_whole_graph_does(bundle: Bundle, recording: Recording) -> None:
    given = next(recorded_runs(recording, "a", bundle, Stage.RESTORATION))
    network = Network(bundle.path / bundle.graph(Stage.RESTORATION, TILE).path)
    walk = BlockErrors(bundle, Stage.RESTORATION, bundle.graph(Stage.RESTORATION, TILE))
    middle = [block.boundary["hidden"] for block in walk.transformer.blocks]
    inputs = given.case.inputs
    with network.cut(["velocity", *middle], ()) as whole:
        want = whole.run(inputs)
    with network.cut_apart(
        ["velocity", *middle[1:]], [*middle, walk.transformer.blocks[0].boundary["context"]]
    ) as apart:
        assert middle[0] in apart.inputs
    values = dict(inputs)
    for block in walk.transformer.blocks:  # one after the other, each fed with the one before
        stops = set(values) - set(inputs)
        with network.cut(list(block.boundary.values()), stops) as piece:
            values |= piece.run(values)
    with network.cut(["velocity"], {middle[-1]}) as piece:
        assert set(piece.inputs) == {middle[-1], "step"}
        found = piece.run(values)["velocity"]
    assert tensor_distance(found, want["velocity"]).rel_l2 < 1e-6
    with pytest.raises(EngineError, match="is closed"):
        piece.run(values)


def test_only_boundaries_leave_a_block(bundle: Bundle) -> None:
    walk = BlockErrors(bundle, Stage.RESTORATION, bundle.graph(Stage.RESTORATION, TILE))
    before: dict[str, str] = {}
    for block in walk.transformer.blocks:
        piece = walk.piece(block, before)
        assert piece.outputs == tuple(block.boundary.values())
        assert set(before.values()) <= set(piece.inputs)
        before = block.boundary


def test_what_was_not_recorded_says_so(bundle: Bundle, recording: Recording) -> None:
    few = Without(recording, r"\.kv\.|\.block|\.module|embed|motion_bias")
    rungs = compare(bundle, few, levels=("block", "network"), stages=(Stage.REFERENCE, Stage.MOTION))
    assert {rung.status for rung in rungs} == {"info"}
    assert all("record with --detail" in rung.where for rung in rungs)
    assert all(rung.rel_l2 is None for rung in rungs)


def test_what_does_not_fit_is_refused(bundle: Bundle, recording: Recording) -> None:
    with pytest.raises(UsageError, match="no level"):
        compare(bundle, recording, levels=("blocks",))  # type: ignore[arg-type]
    with pytest.raises(FileError, match="no photo 'b'"):
        compare(bundle, recording, image="b")
    assert choose_image(recording, None) == "a"
    manifest = bundle.manifest
    changes = {
        "overlap": msgspec.structs.replace(manifest, overlap=64),
        "with overlap": msgspec.structs.replace(manifest, tiles=("512x512",)),
        "checkpoint": msgspec.structs.replace(manifest, source=msgspec.structs.replace(manifest.source, files={})),
    }
    for what, changed in changes.items():
        with pytest.raises(BundleError, match=what) as refused:
            check_fits(Bundle(bundle.path, changed), recording)
        assert "export" in (refused.value.fix or "")
    points = manifest.schedule.points[:1] + manifest.schedule.points[2:]  # the middle of three steps is gone
    plans = {"3": (0, 1, len(points) - 1)}
    schedule = msgspec.structs.replace(manifest.schedule, points=points, plans=plans, default_steps=3)
    with pytest.raises(BundleError, match="other timesteps"):
        check_fits(Bundle(bundle.path, msgspec.structs.replace(manifest, schedule=schedule)), recording)


def test_limits_without_the_inner_rungs_are_still_limits(bundle: Bundle, recording: Recording, tmp_path: Path) -> None:
    old = tmp_path / "old.toml"
    stages = "\n".join(f"{stage} = 1e-4" for stage in Stage)
    old.write_text(f"[fp32]\nphoto_psnr_db = 60.0\n[fp32.stage_rel_l2]\n{stages}\n")
    limits = load_limits("fp32", old)
    rungs = compare(bundle, recording, levels=("block", "network"), stages=(Stage.RESTORATION,), limits=limits)
    assert {(rung.level, rung.status) for rung in rungs} == {("block", "info"), ("network", "pass")}
    for precision in ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "fp8"):
        shipped = load_limits(precision)
        assert None not in msgspec.structs.astuple(shipped)


def test_replaying_needs_no_torch() -> None:
    script = (
        "import sys, livemoments.validate.ladder.bisect, livemoments.validate.ladder.selfcheck\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_a_good_bundle_climbs_to_the_photo(bundle: Bundle, recording: Recording) -> None:
    rungs = compare(bundle, recording)
    assert {rung.status for rung in rungs} == {"pass"}
    assert list(dict.fromkeys(rung.level for rung in rungs)) == [
        "block",
        "network",
        "step",
        "tile",
        "photo",
    ]
    names = {rung.name for rung in rungs}
    assert {str(stage) for stage in Stage} <= names
    assert {"step0.velocity", "step2.velocity", "z_out", "tile1.decoded", "stitched", "result"} <= names
    assert min(rung.psnr_db or 999 for rung in rungs) > 70
    assert "0 of 2 reference tiles" in next(rung.where for rung in rungs if rung.name == "result")

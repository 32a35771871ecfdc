"""Sensitivity of single layers, what it is measured with, and mixes on a real bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from calibration_photos import PHOTO as SIZE
from calibration_photos import VIDEO
from logging_backend import LoggingBackend
from restore_images import shrunk, textured

from livemoments.bundle import Bundle
from livemoments.errors import CheckFailedError, EngineError, UsageError
from livemoments.graphs.linears import Linear
from livemoments.graphs.tensors import read_tensor
from livemoments.live_photo import LivePhoto
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.recipes import load_recipe
from livemoments.quantize.search.budget import Budget
from livemoments.quantize.search.chain import SearchResult
from livemoments.quantize.search.find_mix import find_mix, score_mix
from livemoments.quantize.search.heat_map import draw_sensitivity
from livemoments.quantize.search.in_memory_engine import load_graph, open_in_memory
from livemoments.quantize.search.photo_loss import PhotoLoss, open_photo_loss
from livemoments.quantize.search.sensitivity import SensitivityOptions, measure_sensitivity, quantizable, stage_sqnr_db
from livemoments.quantize.search.sensitivity_report import LayerSensitivity, Sensitivity
from livemoments.quantize.search.trial_photos import centre, pixels_sha256
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.restore import restore
from livemoments.types import Size, Stage

PHOTO = Photo(textured(SIZE, 1))
KEY_FRAME, FRAME = (Photo(shrunk(PHOTO.pixels, VIDEO, shift_px=shift)) for shift in (0, 2))
PHOTOS = [LivePhoto(FRAME, PHOTO, KEY_FRAME, truth=PHOTO)]
RECIPE = load_recipe("int4-weights")
SAME_DB = 90.0
"""Two sessions of one graph agree this far; 4 bits in one layer of this network are seen from 55 to 92 dB."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, verify_hashes=False)


@pytest.fixture(scope="module")
def loss(bundle: Bundle) -> Iterator[PhotoLoss]:
    with open_photo_loss(bundle, PHOTOS, backend=LoggingBackend()) as opened:
        yield opened


def few(linear: Linear) -> bool:
    return linear.block in (None, 1) and linear.kind in ("proj_out", "attn.to_v", "attn.add_q_proj")


class Interrupting:
    """A progress that interrupts after some layers, or never."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.seen = after, 0

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Interrupting]:
        yield self

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.seen += 1
        if self.seen == self.after:
            raise KeyboardInterrupt


def counting(log: list[str]) -> Callable[[ir.Model, Sequence[Linear], Mix], None]:
    real = SensitivityOptions(RECIPE).rewrite

    def rewriter(model: ir.Model, linears: Sequence[Linear], mix: Mix) -> None:
        log.extend(map(str, mix))
        real(model, linears, mix)

    return rewriter


def test_photo_loss_restores_as_restore_does_and_computes_everything_once(bundle: Bundle, loss: PhotoLoss) -> None:
    log = LoggingBackend()
    with open_photo_loss(bundle, PHOTOS, backend=log, seed=3) as own:
        plain = restore(
            bundle, FRAME, PHOTO, KEY_FRAME, seed=3, bit_depth=16, pad_small=True, backend=LoggingBackend()
        ).image
        assert np.array_equal(own._source[0].image, plain)
        before = len(log.events)
        assert own.score({}).mse == 0
        assert own.score({}).psnr_db == math.inf
        assert len(log.events) == before
        assert [call.point for call in own.calls(Stage.RESTORATION)] == list(own.points)
        assert own.source_score.truth_mse == pytest.approx(np.mean((plain / 65535 - PHOTO.pixels / 255) ** 2), rel=1e-9)


def test_unchanged_graph_in_memory_gives_the_same_photo(bundle: Bundle, loss: PhotoLoss) -> None:
    for stage in (Stage.REFERENCE, Stage.RESTORATION):
        with open_in_memory(load_graph(bundle, stage, loss.size), bundle, stage, loss.size, threads=1) as engine:
            assert loss.score({stage: engine}).psnr_db > SAME_DB
            assert min(stage_sqnr_db(engine, loss.calls(stage), loss.points)) > SAME_DB


def test_replaced_restoration_reuses_everything_before_it(bundle: Bundle) -> None:
    log = LoggingBackend()
    with open_photo_loss(bundle, PHOTOS, backend=log) as own:
        ran = {stage: len(log.runs(stage)) for stage in Stage}
        model = load_graph(bundle, Stage.RESTORATION, own.size)
        head = model.graph.initializers["proj_out.weight"]
        assert head.const_value is not None
        head.const_value = ir.Tensor(read_tensor(head.const_value) * np.float32(0.9), name=head.name)
        with own.remembered(open_in_memory(model, bundle, Stage.RESTORATION, own.size)) as engine:
            score = own.score({Stage.RESTORATION: engine})
            last = own.score({Stage.RESTORATION: engine}, point=own.points[-1])
        assert score.psnr_db < last.psnr_db < SAME_DB
        again = {stage: len(log.runs(stage)) - count for stage, count in ran.items()}
        assert again == dict.fromkeys(Stage, 0) | {Stage.VAE_DECODER: 2}


@pytest.mark.slow
def test_layers_are_measured_alone(bundle: Bundle, loss: PhotoLoss) -> None:
    log: list[str] = []
    report = measure_sensitivity(
        loss, SensitivityOptions(RECIPE, only=few, per_step_photo=True, rewriter=counting(log))
    )
    assert log == [str(layer.linear) for layer in report.layers]
    stages = [layer.linear.stage for layer in report.layers]
    assert stages == sorted(stages)
    assert set(stages) == {"reference", "restoration"}
    assert {layer.kind for layer in report.layers} == {"proj_out", "attn.to_v", "attn.add_q_proj"}
    points = bundle.manifest.schedule.points
    assert report.timesteps == tuple(points[point].timestep for point in loss.points)
    for layer in report.layers:
        assert len(layer.sqnr_db) == len(layer.step_photo_psnr_db) == len(loss.points)
        assert min(layer.step_photo_psnr_db) > layer.photo_psnr_db - 3  # one step harms less than all of them
        assert layer.worst_step == layer.sqnr_db.index(min(layer.sqnr_db))
    head = next(layer for layer in report.layers if layer.kind == "proj_out")
    assert 15 < min(head.sqnr_db) < 35
    assert head.photo_psnr_db == min(layer.photo_psnr_db for layer in report.layers)


def test_noise_of_a_layer_is_that_of_its_weights(bundle: Bundle, loss: PhotoLoss) -> None:
    """Keys are linear in to_k: of block 0's keys the noise is that of the product, by numpy."""
    name = "transformer_blocks.0.attn.to_k.weight"
    rng = np.random.default_rng()

    def rewriter(model: ir.Model, linears: Sequence[Linear], mix: Mix) -> None:
        (own,) = mix
        value = model.graph.initializers[own.weight]
        assert value.const_value is not None
        weight = read_tensor(value.const_value)
        noise = rng.standard_normal(weight.shape).astype(np.float32) * weight.std() * 0.01
        value.const_value = ir.Tensor(weight + noise, name=value.name)

    report = measure_sensitivity(
        loss, SensitivityOptions(RECIPE, only=lambda own: own.id.weight == name, rewriter=rewriter)
    )
    reference = report.layers[0]
    assert reference.linear.stage == "reference"
    # 1 % noise in 1 of 8 tensors of about equal energy (later blocks change by less): -40 dB and a factor of 8
    for value in reference.sqnr_db:
        assert 40 < value < 40 + 10 * math.log10(8) + 8


def test_interrupted_measurement_goes_on_and_gives_the_same(bundle: Bundle, loss: PhotoLoss, tmp_path: Path) -> None:
    def run(log: list[str], work: Path | None, after: int | None = None) -> Sensitivity:
        options = SensitivityOptions(RECIPE, only=few, work=work, rewriter=counting(log))
        return measure_sensitivity(loss, options, progress=Interrupting(after))

    whole: list[str] = []
    expected = run(whole, None)
    first: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "new" / "work", after=2)
    assert first == whole[:2]
    (journal,) = (tmp_path / "new" / "work").iterdir()
    with journal.open("a") as stream:
        stream.write('{"linear": "restor')  # the process was killed in the middle of a line
    rest: list[str] = []
    assert run(rest, tmp_path / "new" / "work") == expected
    assert rest == whole[2:]
    none: list[str] = []
    assert run(none, tmp_path / "new" / "work") == expected
    assert none == []
    options = SensitivityOptions(RECIPE, action=Action.WEIGHT_INT8, only=few, work=tmp_path / "new" / "work")
    other = measure_sensitivity(loss, options)
    assert other.key != expected.key
    assert [layer.photo_psnr_db for layer in other.layers] != [layer.photo_psnr_db for layer in expected.layers]


def test_layer_that_breaks_the_network_is_named(bundle: Bundle, loss: PhotoLoss) -> None:
    def rewriter(model: ir.Model, linears: Sequence[Linear], mix: Mix) -> None:
        (own,) = mix
        value = model.graph.initializers[own.weight]
        assert value.const_value is not None
        value.const_value = ir.Tensor(read_tensor(value.const_value) * np.float32(np.inf), name=value.name)

    with pytest.raises(EngineError, match=r"restoration/proj_out\.weight as weight-int4: .*NaN or infinity"):
        measure_sensitivity(
            loss, SensitivityOptions(RECIPE, only=lambda own: own.kind == "proj_out", rewriter=rewriter)
        )


def test_nothing_to_measure_is_refused(bundle: Bundle, loss: PhotoLoss) -> None:
    with pytest.raises(UsageError, match="quantizes no layer"):
        SensitivityOptions(load_recipe("fp16"))
    with pytest.raises(UsageError, match="no layer that the recipe"):
        measure_sensitivity(loss, SensitivityOptions(RECIPE, only=lambda own: False))
    with pytest.raises(UsageError, match="no photo"), open_photo_loss(bundle, []):
        pass
    with pytest.raises(UsageError, match="calibration"):
        measure_sensitivity(loss, SensitivityOptions(load_recipe("int8"), only=few))


@pytest.fixture(scope="module")
def report(bundle: Bundle, loss: PhotoLoss) -> Sensitivity:
    return measure_sensitivity(loss, SensitivityOptions(RECIPE, only=few))


def test_report_survives_json_and_its_table_leads_with_the_worst(report: Sensitivity) -> None:
    endless = dataclasses.replace(report.layers[0], photo_psnr_db=math.inf)
    full = dataclasses.replace(report, layers=(endless, *report.layers[1:]))
    written = json.loads(json.dumps(full.to_json(), allow_nan=False))
    assert tuple(LayerSensitivity.from_json(layer) for layer in written["layers"]) == full.layers
    assert (written["schema"], written["recipe"]) == ("livemoments/sensitivity/1", RECIPE.name)
    assert (written["key"], written["timesteps"]) == (full.key, list(full.timesteps))
    table = full.to_text().splitlines()
    assert "proj_out" in table[1]
    assert "inf" in table[-1]
    assert len(table) == len(full.layers) + 1
    assert len(full.to_text(most=2).splitlines()) == 3


@pytest.mark.parametrize("by_step", [False, True])
def test_plot_is_a_self_contained_picture_with_every_number(report: Sensitivity, by_step: bool) -> None:
    steps = report.layers[0].sqnr_db if by_step else ()
    shown = dataclasses.replace(
        report,
        recipe="<&'\">",
        layers=tuple(dataclasses.replace(layer, step_photo_psnr_db=steps) for layer in report.layers),
    )
    text = draw_sensitivity(shown)
    assert text == draw_sensitivity(shown)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    tips = [tip.text or "" for tip in root.iter(f"{space}title")]
    for layer in report.layers:
        assert any(tip.startswith(f"{layer.linear}: ") and f"{layer.sqnr_db[2]:.1f}" in tip for tip in tips)
    assert "<&'\">" in "".join(root.itertext())
    assert not re.search(r"(href|src|url\(|<script|<style)", text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for box in root.iter(f"{space}rect"):
        x, y, w, h = (float(box.get(name, 0)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        assert re.fullmatch("#[0-9a-f]{6}", box.attrib["fill"])


def test_centre_of_a_photo_is_large_enough_for_a_frame() -> None:
    whole = LivePhoto(*(Photo(np.zeros((side, side, 3), np.uint8)) for side in (200, 400)))
    cut = centre(whole, Size(64, 64))
    assert (cut.frame.size, cut.photo.size) == (Size(64, 64), Size(128, 128))


@pytest.mark.parametrize(("height", "width", "scale"), [(400, 300, 2), (208, 512, 2), (100, 90, 1)])
def test_centre_of_a_photo_is_one_tile_of_matching_places(height: int, width: int, scale: int) -> None:
    ramp = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    pixels = np.concatenate([ramp, ramp[..., :1] * 0], axis=-1).astype(np.uint16)
    small = pixels[::scale, ::scale].copy()
    whole = LivePhoto(Photo(small), Photo(pixels), Photo(small.copy()), truth=Photo(pixels))
    cut = centre(whole, Size(128, 128))
    assert cut.photo.size == Size(min(height, 128), min(width, 128))
    assert cut.truth is not None
    assert np.array_equal(cut.truth.pixels, cut.photo.pixels)
    assert cut.photo_frame is not None
    assert np.array_equal(cut.frame.pixels, cut.photo_frame.pixels)
    assert np.abs(cut.frame.pixels[0, 0].astype(int) - cut.photo.pixels[0, 0]).max() <= scale
    middle = cut.photo.pixels[cut.photo.size.height // 2, cut.photo.size.width // 2]
    assert np.abs(middle[:2].astype(int) - [width // 2, height // 2]).max() <= scale + 1
    assert pixels_sha256(cut) != pixels_sha256(whole) or cut is whole


@pytest.mark.slow
def test_mix_on_a_real_bundle_keeps_its_budget(bundle: Bundle, tmp_path: Path) -> None:
    """A few layers may become 4 or 8 bits; the budget lies between all in 8 and all in 4."""
    shipped = RECIPE
    with open_photo_loss(bundle, PHOTOS) as own:
        linears = [one for _, found in quantizable(bundle, shipped, own.size) for one in found]
        rewriter = SensitivityOptions(shipped).rewrite
        mixes = [{one.id: action for one in linears if few(one)} for action in (Action.WEIGHT_INT4, Action.WEIGHT_INT8)]
        lowest, highest = (score_mix(own, mix, rewriter).psnr_db for mix in mixes)
    assert lowest < highest
    recipe = msgspec.structs.replace(shipped, keep=tuple({one.id.weight for one in linears if not few(one)}))
    budget = Budget.parse(f"{(lowest + highest) / 2:.3f}dB")

    def searched(limit: Budget) -> SearchResult:
        with open_photo_loss(bundle, PHOTOS, parent=tmp_path) as own:
            return find_mix(own, SensitivityOptions(recipe, work=tmp_path), limit)

    found = searched(budget)
    assert found.measured_db >= (lowest + highest) / 2 - 0.001
    assert set(found.mix) == set(mixes[0])
    assert set(found.mix.values()) == {Action.WEIGHT_INT4, Action.WEIGHT_INT8}
    assert found.cost < found.source_cost / 4
    assert searched(budget).to_json() == found.to_json()
    assert not list(tmp_path.glob("livemoments-loss-*"))
    with pytest.raises(CheckFailedError, match="no mix keeps the budget of 150dB"):
        searched(Budget.parse("150dB"))

"""SmoothQuant folded into tables and weights: the same function, and better int8 where activations have outliers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from calibration_photos import TRANSFORMERS, RecordingBackend, edited_bundle, linear_inputs, write_photos
from restore_images import difference

from livemoments.bundle import Bundle
from livemoments.distances import relative_l2, sqnr_db
from livemoments.errors import UsageError
from livemoments.export.passes.graph import count_initializers
from livemoments.graphs.linears import Linear, LinearId, find_linears
from livemoments.graphs.tensors import read_tensor
from livemoments.ort import open_session, session_options
from livemoments.quantize.calibrate.photos import read_set
from livemoments.quantize.calibrate.result import CalibrationResult, LinearStats
from livemoments.quantize.calibrate.run import calibrate
from livemoments.quantize.recipes import Recipe, load_recipe, recipe_mix
from livemoments.quantize.rewrite.run import rewrite
from livemoments.quantize.rewrite.smoothquant import (
    fold_scales,
    smooth,
    smooth_scales,
    smoothable,
    smoothed_stats,
    weights_absmax,
)
from livemoments.runtime import restore as restore_photo
from livemoments.types import Stage

pytestmark = pytest.mark.threads

ROUNDING_REL_L2 = 3e-6
"""Of a whole network in float32, whose products are rounded anew."""
OUTLIER = 60.0
"""How much larger a planted channel's activations are."""
OUTLIER_GAIN_DB = 15.0
"""What smoothing must at least gain where outliers are planted; 26 and 31 dB were measured."""
ALPHA = 0.5


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), ("a",))


@pytest.fixture(scope="module")
def planted(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same function with outliers: in every norm four channels are 60 times as large and weigh as much less."""
    edits: dict[tuple[str, str], Callable[[np.ndarray], None]] = {}
    chunks: dict[tuple[str, str], set[int]] = {}
    channels = np.array([3, 40, 77, 101])
    for stage in TRANSFORMERS:
        for linear in find_linears(loaded(bundle, stage), str(stage)):
            if linear.table is not None and linear.scale_chunk is not None and linear.shift_chunk is not None:
                edits[str(stage), linear.id.weight] = functools.partial(_scale_rows, channels=channels)
                chunks.setdefault((str(stage), linear.table), set()).update({linear.scale_chunk, linear.shift_chunk})
    for key, rows in chunks.items():
        edits[key] = functools.partial(_scale_columns, rows=sorted(rows), channels=channels)
    return edited_bundle(bundle.path, tmp_path_factory.mktemp("planted") / "bundle", edits)


def _scale_rows(weight: np.ndarray, channels: np.ndarray) -> None:
    weight[channels] /= OUTLIER


def _scale_columns(table: np.ndarray, rows: Sequence[int], channels: np.ndarray) -> None:
    table[np.ix_(range(len(table)), rows, channels)] *= OUTLIER


@pytest.fixture(scope="module")
def calibration(bundle: Bundle, photos: Path) -> CalibrationResult:
    return calibrate(bundle, photos, flow="dis")


@pytest.fixture(scope="module")
def fed(bundle: Bundle, photos: Path) -> dict[Stage, list[dict[str, np.ndarray]]]:
    """What the pipeline feeds the transformers with."""
    backend = RecordingBackend()
    (item,) = read_set(photos)
    restore_photo(bundle, item.frame, item.photo, item.photo_frame, pad_small=True, flow="dis", backend=backend)
    return backend.fed


def loaded(bundle: Bundle, stage: Stage) -> ir.Model:
    return ir.load(next((bundle.path / str(stage)).glob("*.onnx")))


def run(
    bundle: Bundle, stage: Stage, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Every output for each of the feeds."""
    options = session_options()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.path / str(stage))
    )
    data = ir.to_proto(model).SerializeToString()
    session = open_session(data, options)
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]


def stats_of(absmax: Sequence[float]) -> LinearStats:
    wide = np.array(absmax, np.float32)
    return LinearStats(
        low=np.full(2, -wide.max(), np.float64),
        high=np.full(2, wide.max(), np.float64),
        channel_absmax=wide,
        second_moment=wide.astype(np.float64) ** 2,
        channel_low=np.stack([-wide, -wide / 2]),
        channel_high=np.stack([wide / 4, wide]),
        rows=np.array([5, 5]),
    )


def linear(name: str, norm: str | None = "norm") -> Linear:
    return Linear(LinearId("restoration", name), "x", 4, 2, 0, name, norm, "table", 1, 0)


# --- the scales


def test_scales_by_hand() -> None:
    one, two = linear("one"), linear("two")
    stats = {one.id: stats_of([16, 1, 1, 4])}
    stats[two.id] = stats[one.id]
    weights = {one.id: np.array([1.0, 1, 0.25, 1]), two.id: np.array([0.5, 1, 0.25, 0.1])}
    (scale,) = smooth_scales([one, two], stats, weights, 0.5).values()
    wanted = np.sqrt(np.array([16, 1, 4, 4]))  # by the larger weight of the two
    np.testing.assert_allclose(scale, wanted / np.median(wanted))
    (scale,) = smooth_scales([one, two], stats, weights, 1.0).values()
    np.testing.assert_allclose(scale / scale[1], [16, 1, 1, 4])
    (scale,) = smooth_scales([one, two], stats, weights, 0.0).values()
    np.testing.assert_allclose(scale / scale[1], [1, 1, 4, 1])


def test_dead_channels_are_left_alone_and_scales_are_bounded() -> None:
    one = linear("one")
    weights = {one.id: np.array([1.0, 0, 1, 1])}
    (scale,) = smooth_scales([one], {one.id: stats_of([0, 5, 1, 1])}, weights, 0.5).values()
    np.testing.assert_array_equal(scale, 1)
    (scale,) = smooth_scales([one], {one.id: stats_of([1e9, 1, 1, 1])}, {one.id: np.ones(4)}, 1.0).values()
    assert scale.max() == 1024
    (scale,) = smooth_scales([one], {one.id: stats_of([0, 0, 0, 0])}, weights, 0.5).values()
    np.testing.assert_array_equal(scale, 1)


def test_bad_arguments() -> None:
    one = linear("one")
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="smoothing strength"):
            smooth_scales([one], {}, {}, alpha)
    with pytest.raises(UsageError, match="nothing about 'restoration/one'"):
        smooth_scales([one], {}, {}, 0.5)


def test_smoothed_statistics_by_hand() -> None:
    one, other = linear("one"), linear("other", norm=None)
    stats = {one.id: stats_of([16, 1, 1, 4]), other.id: stats_of([1, 1, 1, 1])}
    found = smoothed_stats([one, other], stats, {"norm": np.array([8.0, 1, 0.5, 2])})
    assert set(found) == {one.id}
    np.testing.assert_allclose(found[one.id].channel_absmax, [2, 1, 2, 2])
    np.testing.assert_allclose(found[one.id].low, [-2, -1])
    np.testing.assert_allclose(found[one.id].high, [0.5, 2])
    np.testing.assert_allclose(found[one.id].second_moment, [4, 1, 4, 4])


# --- the folding


@pytest.mark.parametrize("stage", TRANSFORMERS)
def test_the_function_stays_the_same(
    bundle: Bundle,
    calibration: CalibrationResult,
    fed: dict[Stage, list[dict[str, np.ndarray]]],
    stage: Stage,
) -> None:
    model = loaded(bundle, stage)
    before = run(bundle, stage, model, fed[stage])
    weight = find_linears(model, str(stage))[0].id.weight
    old = read_tensor(model.graph.initializers[weight].const_value)  # type: ignore[arg-type]
    parameters = count_initializers(model)
    stats = smooth(model, find_linears(model, str(stage)), calibration.stats, ALPHA)
    assert count_initializers(model) == parameters
    assert set(stats) == set(calibration.stats)
    assert relative_l2(read_tensor(model.graph.initializers[weight].const_value), old) > 0.05  # type: ignore[arg-type]
    after = run(bundle, stage, model, fed[stage])
    assert len(before) == 6
    for was, found in zip(before, after, strict=True):
        for name, value in was.items():
            assert relative_l2(found[name], value) < ROUNDING_REL_L2, name


def test_every_modulated_norm_is_smoothed_and_nothing_else(bundle: Bundle, calibration: CalibrationResult) -> None:
    model = loaded(bundle, Stage.RESTORATION)
    linears = find_linears(model, "restoration")
    found = smoothable(model, linears)
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert len({linear.norm for linear in found}) == len(norms)
    assert {linear.kind for linear in linears} - {linear.kind for linear in found} == {
        "attn.to_out.0",
        "attn.to_add_out",
        "ff.net.2",
        "ff_context.net.2",
    }
    file = bundle.path / "restoration" / "weights.bin"
    stored = file.stat().st_mtime_ns
    fold_scales(model, found, smooth_scales(found, calibration.stats, weights_absmax(model, found), ALPHA))
    changed = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)]
    assert len(changed) == len(found) + len({linear.table for linear in found})
    assert file.stat().st_mtime_ns == stored


def test_what_others_read_is_not_smoothed(bundle: Bundle) -> None:
    model = loaded(bundle, Stage.RESTORATION)
    linears = find_linears(model, "restoration")
    everything = {linear.id for linear in smoothable(model, linears)}
    q = next(linear for linear in linears if linear.id.weight == "transformer_blocks.1.attn.to_q.weight")
    norm = next(v for node in model.graph for v in node.outputs if v.name == q.norm)
    model.graph.outputs.append(norm)
    lost = everything - {linear.id for linear in smoothable(model, linears)}
    assert lost == {LinearId("restoration", f"transformer_blocks.1.attn.to_{x}.weight") for x in "qkv"}
    model.graph.outputs.remove(norm)
    # another reader of the scale's row
    row = norm.producer().inputs[1]  # type: ignore[union-attr]
    model.graph.append(ir.Node("", "Identity", [row]))
    assert everything - {linear.id for linear in smoothable(model, linears)} == lost
    # one of the three is not among the linears that would be scaled
    fewer = [linear for linear in linears if not linear.id.weight.endswith("2.attn.to_v.weight")]
    assert not any(".2.attn.to_" in linear.weight for linear in {x.id for x in smoothable(model, fewer)})


def test_the_new_statistics_are_those_of_the_new_graph(
    bundle: Bundle,
    calibration: CalibrationResult,
    fed: dict[Stage, list[dict[str, np.ndarray]]],
) -> None:
    """The scaled extremes hold what enters the smoothed linears, and touch it where the photo is the calibration's."""
    model = loaded(bundle, Stage.RESTORATION)
    found = smoothable(model, find_linears(model, "restoration"))
    scales = smooth_scales(found, calibration.stats, weights_absmax(model, found), ALPHA)
    new = smoothed_stats(found, calibration.stats, scales)
    plain = linear_inputs(bundle, Stage.RESTORATION, fed[Stage.RESTORATION])
    for linear in found:
        assert linear.norm is not None
        spread = calibration.stats[linear.id].channel_absmax
        smoothed = new[linear.id].channel_absmax
        assert smoothed.max() / np.median(smoothed) <= spread.max() / np.median(spread) * 1.05
        wide = np.concatenate([rows for _, rows in plain[linear.id]]) / scales[linear.norm]
        # another seed's noise: the same photo to within a few percent
        assert np.abs(wide).max() == pytest.approx(new[linear.id].channel_absmax.max(), rel=0.35)


# --- what it is for


def quantized_sqnr_db(
    bundle: Bundle,
    recipe: Recipe,
    alpha: float | None,
    stats: Mapping[LinearId, LinearStats],
    fed: Mapping[Stage, Sequence[Mapping[str, np.ndarray]]],
) -> dict[Stage, float]:
    """Of all outputs of each transformer, all steps together, after the shipped int8 rewrite."""
    found = {}
    for stage in TRANSFORMERS:
        wanted = run(bundle, stage, loaded(bundle, stage), fed[stage])
        model = loaded(bundle, stage)
        linears, known = find_linears(model, str(stage)), dict(stats)
        if alpha is not None:
            known = smooth(model, linears, known, alpha)
        rewrite(model, linears, recipe_mix(recipe, linears), recipe, known)
        got = run(bundle, stage, model, fed[stage])
        values, references = (
            np.concatenate([value.ravel() for outputs in every for value in outputs.values()])
            for every in (got, wanted)
        )
        found[stage] = sqnr_db(values, references)
    return found


def test_planting_outliers_keeps_the_function(bundle: Bundle, planted: Bundle, photos: Path) -> None:
    (item,) = read_set(photos)
    images = [
        restore_photo(each, item.frame, item.photo, item.photo_frame, pad_small=True, flow="dis").image
        for each in (bundle, planted)
    ]
    assert difference(*images) <= 1


def test_smoothed_int8_is_better_where_there_are_outliers(
    planted: Bundle, photos: Path, fed: dict[Stage, list[dict[str, np.ndarray]]]
) -> None:
    recipe = load_recipe("int8")
    assert recipe.smoothquant_alpha is not None
    stats = calibrate(planted, photos, observer=recipe.observer, percentile=recipe.percentile, flow="dis").stats
    plain = quantized_sqnr_db(planted, recipe, None, stats, fed)
    smoothed = quantized_sqnr_db(planted, recipe, recipe.smoothquant_alpha, stats, fed)
    for stage in TRANSFORMERS:
        assert smoothed[stage] > plain[stage] + OUTLIER_GAIN_DB, (stage, plain, smoothed)


def test_smoothed_int8_is_not_worse_without_outliers(
    bundle: Bundle, calibration: CalibrationResult, fed: dict[Stage, list[dict[str, np.ndarray]]]
) -> None:
    recipe = load_recipe("int8")
    plain = quantized_sqnr_db(bundle, recipe, None, calibration.stats, fed)
    smoothed = quantized_sqnr_db(bundle, recipe, recipe.smoothquant_alpha, calibration.stats, fed)
    for stage in TRANSFORMERS:
        assert smoothed[stage] > plain[stage], (stage, plain, smoothed)

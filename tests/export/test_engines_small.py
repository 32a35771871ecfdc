"""The trained checkpoint's bundle, built by the real TensorRT for RTX: half precision, int8 and fp8, from graphs that
hold onnxruntime's form of attention."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibration_photos import TRANSFORMERS, write_photos
from engine_support import check_engines, check_numerics, needs_rtx

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.export.tensorrt.check import check_target
from livemoments.export.tensorrt.options import DEFAULT_SM
from livemoments.quantize.calibrate.result import CalibrationResult
from livemoments.quantize.calibrate.run import Counted, calibrate
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.types import Stage

pytestmark = [needs_rtx, pytest.mark.slow]


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("small") / "fp16"
    quantize_bundle(trained_bundle(), place, recipe="fp16")
    return place


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> CalibrationResult:
    photos = write_photos(tmp_path_factory.mktemp("photos"), ("a",))
    return calibrate(trained_bundle(), photos, what=Counted(operands=True))


def test_every_stage_builds_in_half_precision(half_bundle: Path) -> None:
    stages = tuple(stage for stage in Stage if stage is not Stage.FLOW)  # it was trained without RAFT
    assert set(Bundle.open(half_bundle).manifest.stages) == set(stages)
    check_engines(half_bundle, stages, DEFAULT_SM)


@pytest.mark.parametrize(("recipe", "sm"), [("int8-tensorrt", DEFAULT_SM), ("fp8", ("8.9", "12.0"))])
def test_its_transformers_build_in_8_bits(
    half_bundle: Path, ranges: CalibrationResult, tmp_path: Path, recipe: str, sm: tuple[str, ...]
) -> None:
    quantized = quantize_bundle(half_bundle, tmp_path / recipe, recipe=recipe, calibration=ranges, verify=False)
    assert check_target(quantized, "rtx", sm=sm, stages=TRANSFORMERS).passed
    check_engines(quantized.path, TRANSFORMERS, sm)
    for stage in TRANSFORMERS:
        check_numerics(Bundle.open(half_bundle), quantized, stage)

"""The trained checkpoint as Core ML packages, through the interpreter: every stage's parity, and compressed photos."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle, trained_checkpoint
from livemoments.export.pipeline import export_bundle
from livemoments.quantize.calibrate.run import calibrate
from livemoments.quantize.packages.linears import named_as_in_packages
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.restore import restore
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.quality.fidelity import psnr_y

pytestmark = [pytest.mark.slow, pytest.mark.process]

TILE, PHOTO = Size(64, 64), Size(96, 96)
STEPS = (1, 3)
FLOAT32_REL_L2, FLOAT16_REL_L2 = 5e-6, 5e-3
MOST_LOST_DB = 0.1
RANGES_REL = 0.02
"""Half-precision activations against float32's, the ends of their ranges, of the wider end."""


@pytest.fixture(name="packages", scope="module")
def fixture_packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The checkpoint's packages by precision, made once."""
    folder = tmp_path_factory.mktemp("packages")

    @functools.cache
    def of(precision: str) -> Bundle:
        return export_bundle(
            trained_checkpoint(),
            folder / precision,
            target="coreml",
            precision=precision,
            tiles=(TILE,),
            overlap=16,
            steps=STEPS,
            verify="sampled",
        )

    return of


@pytest.fixture(name="photos", scope="module")
def fixture_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedded_set(tmp_path_factory.mktemp("set"), size=PHOTO, count=2, seed=11)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", FLOAT32_REL_L2), ("fp16", FLOAT16_REL_L2)])
def test_every_stage_is_the_references(packages: Callable[[str], Bundle], precision: str, limit: float) -> None:
    """The fp16 packages' own float32 twin is held to the same 5e-6 when they are exported (export/coreml/gate.py)."""
    stages = packages(precision).manifest.stages
    assert len(stages) == 5  # its flow is DIS
    for name, entry in stages.items():
        assert entry.parity, name
        assert max(parity.rel_l2 for parity in entry.parity) <= limit, name


def test_six_bit_palettes_restore_as_well_as_float32(
    packages: Callable[[str], Bundle], photos: Path, tmp_path: Path
) -> None:
    small = quantize_bundle(packages("fp16"), tmp_path / "small", recipe="palette6-coreml")
    assert small.manifest.recipe == "palette6-coreml"
    quality = []
    for bundle in (trained_bundle(), small):
        found = []
        for truth in sorted((photos / TRUTHS).iterdir()):
            parts = (photos / part / truth.name for part in (FRAMES, PHOTOS, PHOTO_FRAMES))
            found.append(psnr_y(restore(bundle, *parts, steps=3, seed=0).image, read_photo(truth).pixels))
        quality.append(float(np.mean(found)))
    assert abs(quality[1] - quality[0]) <= MOST_LOST_DB


def test_ranges_seen_in_packages_are_those_seen_in_graphs(packages: Callable[[str], Bundle], photos: Path) -> None:
    """Calibration through the interpreter and through onnxruntime: the same photos, noise, layers, and extremes."""
    ours = calibrate(packages("fp16"), photos, observer="minmax", steps=(1,), limit=1)
    theirs = calibrate(trained_bundle(), photos, observer="minmax", steps=(1,), limit=1)
    want = named_as_in_packages(theirs.stats)
    assert set(ours.stats) == set(want)
    for linear, stats in ours.stats.items():
        seen, known = stats.rows > 0, want[linear].rows > 0
        ends = (
            np.array([stats.low[seen], stats.high[seen]]),
            np.array([want[linear].low[known], want[linear].high[known]]),
        )
        assert np.abs(ends[0] - ends[1]).max() <= RANGES_REL * np.abs(ends[1]).max(), linear

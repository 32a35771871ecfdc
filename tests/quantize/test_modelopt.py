"""Ranges that nvidia-modelopt chooses: what is asked of it, what it is kept from, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import msgspec
import numpy as np
import pytest
from calibration_photos import write_photos
from cli_support import run

from livemoments.checkpoints import trained_bundle
from livemoments.errors import MissingExtraError, UsageError
from livemoments.quantize.calibrate import modelopt_observers
from livemoments.quantize.calibrate.histogram import Histogram
from livemoments.quantize.calibrate.modelopt_observers import METHODS, modelopt_observer, sampled
from livemoments.quantize.calibrate.run import Counted, calibrate
from livemoments.quantize.options import QuantizeOptions
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.quantize.recipes import Recipe, load_recipe

needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="the extra 'modelopt' is not installed ('make modelopt')"
)
BINS = 2 / 2048
"""Of the largest magnitude: what modelopt's histogram can tell."""


def counted(values: np.ndarray) -> Histogram:
    histogram = Histogram.empty()
    histogram.add(values)
    return histogram


def recipe(name: str = "int8-tensorrt", **changes: object) -> Recipe:
    return msgspec.structs.replace(load_recipe(name), **changes)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def without_modelopt(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        modelopt_observers.importlib.util, "find_spec", lambda name: None if name == "modelopt" else find(name)
    )


def test_a_sample_has_the_distribution_that_was_counted() -> None:
    rng = np.random.default_rng()
    values = rng.standard_t(4, 50_000).astype(np.float32)
    histogram = counted(values)
    for most in (1 << 20, 5000):
        found = np.sort(sampled(histogram, most))
        assert found.dtype == np.float32
        assert len(found) == min(most, values.size)
        assert (found[0], found[-1]) == (values.min(), values.max())
        ranks = (np.arange(1, len(found) - 1) + 0.5) * (values.size / len(found))
        off = np.abs(found[1:-1] - np.sort(values)[ranks.astype(int)])
        assert off.max() <= histogram.width
    assert sampled(counted(np.array([3.0], np.float32))) == [3.0]


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, without_modelopt: None) -> None:
    with pytest.raises(MissingExtraError, match="modelopt") as caught:
        modelopt_observer(recipe())
    assert caught.value.fix == "pip install 'livemoments-deploy[modelopt]'"
    arguments = ["quantize", trained_bundle(), "-o", tmp_path / "new", "--recipe", "fp8", "--via", "modelopt"]
    result = run(*arguments, "--calibration", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "pip install 'livemoments-deploy[modelopt]'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        (recipe("int8"), "about zero"),
        (recipe("int8-dynamic"), "about zero"),
        (recipe("int8-weights"), "about zero"),
        (recipe("fp16"), "about zero"),
        (recipe("int8-coreml"), "about zero"),
        (recipe("fp8", observer="mse"), "fp8 ranges by 'mse'"),
        (recipe("fp8", observer="entropy"), "fp8 ranges by 'entropy'"),
        (recipe(observer="mse"), "int8 ranges by 'mse'"),
        (recipe(observer="average"), "int8 ranges by 'average'"),
    ],
    ids=lambda value: value.name + value.observer if isinstance(value, Recipe) else "",
)
def test_recipes_whose_ranges_it_cannot_choose(chosen: Recipe, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        modelopt_observer(chosen)


def test_no_other_source_of_ranges() -> None:
    with pytest.raises(UsageError, match="via"):
        QuantizeOptions("fp8", via="neural-compressor")  # type: ignore[arg-type]


@needs_modelopt
@pytest.mark.slow  # importing it takes up to 20 s
@pytest.mark.parametrize("name", METHODS)
def test_int8_ranges(name: str) -> None:
    rng = np.random.default_rng()
    values = rng.standard_t(3, 60_000).astype(np.float32)
    histogram = counted(values)
    largest = max(-histogram.low, histogram.high)
    low, high = modelopt_observer(recipe(observer=name, percentile=99.9)).range(histogram)
    assert low == -high
    bins = BINS * largest
    if name == "minmax":
        assert high == np.float32(largest)
    elif name == "percentile":
        least, most = np.quantile(np.abs(values), [0.9985, 0.9995])
        assert least - bins < high < most + bins
    else:
        assert np.quantile(np.abs(values), 0.95) < high < largest / 2  # it clips, but not much


@needs_modelopt
@pytest.mark.slow
@pytest.mark.parametrize("name", modelopt_observers.FP8_OBSERVERS)
def test_e4m3_ranges(name: str) -> None:
    histogram = counted(np.random.default_rng().standard_normal(60_000).astype(np.float32))
    largest = max(-histogram.low, histogram.high)
    _, high = modelopt_observer(recipe("fp8", observer=name)).range(histogram)
    assert 0.8 * largest < high <= largest


@needs_modelopt
@pytest.mark.slow
def test_what_is_refused_fails_in_modelopt() -> None:
    """A refusal goes when this fails."""
    values = np.random.default_rng().standard_normal(20_000).astype(np.float32)
    for method in ("mse", "entropy"):
        with pytest.raises(TypeError):
            modelopt_observers._calibrated(values, method, 99.9, (4, 3))
    narrowest = np.abs(values).max() * 128.5 / 2048
    assert modelopt_observers._calibrated(values, "mse", 99.9, 8) == pytest.approx(narrowest, rel=1e-3)


@needs_modelopt
@pytest.mark.slow
def test_a_percentile_that_is_zero_gives_way_to_the_whole_range() -> None:
    values = np.zeros(100_000, np.float32)
    values[:3] = 1.0
    found = modelopt_observer(recipe(observer="percentile", percentile=99.9)).range(counted(values))
    assert found == (-1.0, 1.0)
    assert modelopt_observer(recipe()).range(counted(np.zeros(9, np.float32))) == (0.0, 0.0)


@needs_modelopt
@pytest.mark.slow
def test_a_bundle_by_its_ranges_leaves_the_source_alone(tmp_path: Path) -> None:
    source, photos = trained_bundle(), write_photos(tmp_path / "photos", ("a",))
    before = hashes(source)
    how = {"recipe": "int8-tensorrt", "via": "modelopt", "verify": False}
    made = quantize_bundle(source, tmp_path / "new", calibration=photos, work=tmp_path / "work", **how)
    assert hashes(source) == before
    assert made.manifest.toolchain["nvidia-modelopt"].startswith("0.47.")
    counts = Counted(operands=True)
    ours = calibrate(source, photos, what=counts, percentile=recipe().percentile, work=tmp_path / "work")
    assert made.manifest.calibration_sha256 != ours.sha256
    ours.save(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"were chosen by 'percentile:99\.999', not by 'nvidia-modelopt"):
        quantize_bundle(source, tmp_path / "other", calibration=tmp_path / "saved", **how)
    assert not (tmp_path / "other").exists()

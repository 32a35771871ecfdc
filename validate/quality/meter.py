"""Every metric that was asked for, of one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livemoments.errors import UsageError
from livemoments.validate.quality.fidelity import measure_fidelity
from livemoments.validate.quality.luma import Luma, check_same_size, full_scale
from livemoments.validate.quality.networks import Adapter, Adapters, naming
from livemoments.validate.quality.registry import DEFAULT, FID_PATCH_PX, MetricSpec, select
from livemoments.validate.quality.tiling import TILE_PX, direction, patches, tile_mean

INFINITE = "_infinite"
"""Ends the name of an entry that stands, as 1.0, beside a ``None`` which means infinitely good (equal pictures)."""


@dataclass(frozen=True, slots=True)
class ImageQuality:
    """What was measured of one image; JSON-able but for the features.

    Attributes:
        metrics: of the result, by name; ``None`` where there is no number for this image. An infinite PSNR is ``None``
            too, and ``psnr_y_infinite`` is 1.0 beside it.
        input_metrics: the same of the upscaled input; without the Frechet distance.
        features: (patches, d) float32 by ``fid_512.output`` and ``fid_512.truth``; empty unless it was asked for.
    """

    metrics: dict[str, float | None]
    input_metrics: dict[str, float | None] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)


class QualityMeter:
    """Measures images with one set of metrics; networks are loaded once, on first use or by :meth:`open`.

    Args:
        metrics: names, or specs that :func:`select` gave.
        weights: the folder of the deep metrics' weights.
        luma: the convention of y.
        device: torch's, for the packages' networks.
        planted: adapters by metric name instead of the packages', e.g. a user's own.
        tile_px: longest side of the deep metrics' tiles.

    Attributes:
        specs: the metrics.
        luma: the convention of y.
        problems: why a metric cannot be measured here at all, by name; grows where loading fails.

    Raises:
        UsageError: a metric or a convention is unknown, or the folder is not there.
    """

    def __init__(
        self,
        metrics: str | Iterable[str] = DEFAULT,
        *,
        weights: Path | None = None,
        luma: str = Luma.BT601_STUDIO,
        device: str = "cpu",
        planted: Mapping[str, Adapter] | None = None,
        tile_px: int = TILE_PX,
    ) -> None:
        self.specs = select(metrics)
        self.luma = Luma.parse(luma)
        self._adapters = Adapters(self.specs, weights, device=device, planted=planted)
        self.problems = self._adapters.problems
        self._tile_px = tile_px

    def open(self) -> None:
        """Load every network now, so that :attr:`problems` is complete before the first image."""
        for spec in self.specs:
            if spec.sources:
                self._adapters.get(spec)

    def measure(
        self,
        output: np.ndarray,
        input_upscaled: np.ndarray | None = None,
        reference: np.ndarray | None = None,
        truth: np.ndarray | None = None,
    ) -> ImageQuality:
        """Measure one image.

        Args:
            output: the result, (H, W, 3) RGB, uint8, uint16, or float in [0, 1].
            input_upscaled: the input, upscaled to the result's size, for ``input_metrics``.
            reference: the key photo, of any size.
            truth: the ground truth, of the result's size.

        Raises:
            UsageError: the pictures cannot be compared.
            EngineError: a network failed.
        """
        for other in (input_upscaled, truth):
            if other is not None:
                check_same_size(output, other)
        photo = None if reference is None else _ScoredPicture(reference, self._tile_px)
        metrics = self._scores(output, photo, truth)
        inputs = {} if input_upscaled is None else self._scores(input_upscaled, photo, truth)
        features: dict[str, np.ndarray] = {}
        for spec in self.specs:
            if spec.kind == "frechet" and truth is not None and (encode := self._adapters.get(spec)) is not None:
                with naming(spec):
                    for role, pixels in (("output", output), ("truth", truth)):
                        rows = [encode(patch) for patch in patches(pixels, FID_PATCH_PX)]
                        if rows:
                            features[f"{spec.name}.{role}"] = np.stack(rows).astype(np.float32)
        return ImageQuality(metrics, inputs, features)

    def _scores(
        self, pixels: np.ndarray, photo: _ScoredPicture | None, truth: np.ndarray | None
    ) -> dict[str, float | None]:
        full_scale(pixels)
        own = [spec.name for spec in self.specs if spec.kind == "fidelity"]
        values: dict[str, float | None] = dict.fromkeys(own)
        if truth is not None and own:
            values |= measure_fidelity(pixels, truth, own, self.luma)
        seen = _ScoredPicture(pixels, self._tile_px)
        for spec in self.specs:
            if spec.kind not in ("fidelity", "frechet"):
                with naming(spec):
                    values[spec.name] = self._deep(spec, seen, photo, truth)
        scores: dict[str, float | None] = {}
        for spec in self.specs:
            if spec.kind == "frechet":
                continue  # of the whole set
            value = values.get(spec.name)
            scores[spec.name] = value if value is not None and math.isfinite(value) else None
            if value == math.inf:
                scores[spec.name + INFINITE] = 1.0
        return scores

    def _deep(
        self, spec: MetricSpec, seen: _ScoredPicture, photo: _ScoredPicture | None, truth: np.ndarray | None
    ) -> float | None:
        lacks_truth, lacks_photo = spec.needs_truth and truth is None, spec.needs_photo and photo is None
        shown = [seen] if photo is None or not spec.needs_photo else [seen, photo]
        if lacks_truth or lacks_photo or min(each.least_side_px for each in shown) < spec.least_side_px:
            return None
        network = self._adapters.get(spec)
        if network is None:
            return None
        if spec.kind == "pair":
            assert truth is not None
            return tile_mean(network, seen.pixels, truth, longest_px=self._tile_px)
        if spec.kind == "solo":
            return seen.score(spec.name, network)
        assert photo is not None
        if spec.kind == "relative":
            return relative_deviation(*(each.score(str(spec.base), network) for each in shown))
        first, second = (each.features(spec.name, network) for each in shown)
        return cosine(first, second)


def relative_deviation(value: float, reference: float) -> float | None:
    """``|value - reference| / |reference|``, the paper's equation 7; ``None`` where the reference scores 0."""
    if reference == 0 or not math.isfinite(reference):
        return None
    return abs(value - reference) / abs(reference)


def cosine(first: np.ndarray, second: np.ndarray) -> float | None:
    """The cosine of the angle between two (d,) features; ``None`` where one of them is 0.

    Raises:
        UsageError: their lengths differ.
    """
    if first.shape != second.shape:
        raise UsageError(f"features of lengths {first.size} and {second.size} cannot be compared")
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else None


class _ScoredPicture:
    """A picture, and what networks have said about it so far."""

    def __init__(self, pixels: np.ndarray, tile_px: int) -> None:
        self.pixels = pixels
        self.least_side_px = min(pixels.shape[:2])
        self._tile_px = tile_px
        self._scores: dict[str, float] = {}
        self._features: dict[str, np.ndarray] = {}

    def score(self, name: str, network: Callable[[np.ndarray], float]) -> float:
        if name not in self._scores:
            self._scores[name] = tile_mean(network, self.pixels, longest_px=self._tile_px)
        return self._scores[name]

    def features(self, name: str, network: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if name not in self._features:
            self._features[name] = tile_mean(
                lambda tile: direction(network(tile)), self.pixels, longest_px=self._tile_px
            )
        return self._features[name]

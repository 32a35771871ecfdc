"""Ranges that nvidia-modelopt chooses, for our own placement of Q/DQ pairs.

The calibrators of ``modelopt.torch.quantization.calib`` (release 0.47) are given values and asked for the largest
magnitude that an 8-bit tensor should hold. The values are those that our calibration counted, as a sample drawn from
its histogram: calibration stays resumable, and modelopt sees neither a graph nor the path of a file (its own
quantization of ONNX files overwrites some of those it reads).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from livemoments.errors import MissingExtraError, UsageError
from livemoments.quantize.actions import Action
from livemoments.quantize.calibrate.histogram import Histogram
from livemoments.quantize.calibrate.observers import Observer

if TYPE_CHECKING:
    from livemoments.quantize.recipes import Recipe

PACKAGE = "nvidia-modelopt"
METHODS = {"minmax": "max", "percentile": "percentile", "entropy": "entropy"}
"""What modelopt calls our observers. Its MSE is left out: 0.47 hands the number of bits to its rounding as a bias, and
always answers with the narrowest range that it tries."""
FP8_OBSERVERS = ("minmax", "percentile")
"""modelopt 0.47's entropy (and MSE) raise ``TypeError`` for E4M3."""
SAMPLE = 1 << 20
"""Most values that a calibrator is given: ten of them lie beyond the 99.999th percentile."""
STRIDE = 16
"""Its 2048 bins are tried as the end of the range in steps of this many: 16 times as fast as all of them, and a range
0.8 % of the largest magnitude off at most."""


def modelopt_observer(recipe: Recipe) -> Observer:
    """The observer that a recipe names, computed by modelopt; ranges are symmetric about 0.

    Raises:
        UsageError: the recipe has no fixed symmetric ranges, or an observer that modelopt does not have for its type.
        MissingExtraError: the extra ``modelopt`` is not installed.
    """
    fp8 = recipe.action is Action.FP8
    if recipe.for_packages or not (fp8 or (recipe.action is Action.INT8_STATIC and recipe.symmetric)):
        raise UsageError(
            f"nvidia-modelopt chooses ranges about zero, which the recipe '{recipe.name}' does not have",
            fix="use int8-tensorrt, int8-rotated or fp8, or leave --via out",
        )
    kind, have = ("fp8", FP8_OBSERVERS) if fp8 else ("int8", tuple(METHODS))
    if recipe.observer not in have:
        raise UsageError(
            f"nvidia-modelopt cannot choose {kind} ranges by '{recipe.observer}'",
            fix=f"set observer to {' or '.join(have)} in the recipe, or leave --via out",
        )
    if importlib.util.find_spec("modelopt") is None:
        raise MissingExtraError("scales from nvidia-modelopt", "modelopt", missing="modelopt")
    method = f"{recipe.observer}:{recipe.percentile:g}" if recipe.observer == "percentile" else recipe.observer
    return Observer(
        f"{PACKAGE} {importlib.metadata.version(PACKAGE)}:{method}:{kind}",
        _chooser(METHODS[recipe.observer], recipe.percentile, (4, 3) if fp8 else 8),
    )


def sampled(histogram: Histogram, most: int = SAMPLE) -> np.ndarray:
    """Values (n,) float32 with the distribution of a histogram: at evenly spaced ranks, and its two extremes.

    A value is its bin's middle; n is the number of those counted, or ``most`` if that is less.
    """
    total = histogram.total
    number = min(total, most)
    ranks = (np.arange(number) + 0.5) * (total / number)
    bins = np.searchsorted(np.cumsum(histogram.counts), ranks, side="right")
    values = histogram.centers()[bins].astype(np.float32)
    values[0], values[-1] = histogram.low, histogram.high
    return values


def _chooser(method: str, percentile: float, bits: int | tuple[int, int]) -> Callable[[Histogram], tuple[float, float]]:
    def choose(histogram: Histogram) -> tuple[float, float]:
        largest = max(-histogram.low, histogram.high)
        if largest == 0:
            return 0.0, 0.0
        chosen = float(_calibrated(sampled(histogram), method, percentile, bits))
        # a percentile is the lower edge of its bin, which is 0 where nearly all values lie in the first one
        top = min(chosen, largest) if math.isfinite(chosen) and chosen > 0 else largest
        return -top, top

    return choose


def _calibrated(values: np.ndarray, method: str, percentile: float, bits: int | tuple[int, int]) -> Any:
    """What one of modelopt's calibrators says of the values: the largest magnitude to be represented."""
    import torch

    with warnings.catch_warnings():  # of transformers' release, which is not used here
        warnings.simplefilter("ignore")
        try:
            from modelopt.torch.quantization.calib import HistogramCalibrator, MaxCalibrator
        except ImportError as error:
            raise MissingExtraError("scales from nvidia-modelopt", "modelopt", missing=error.name) from None
    tensor = torch.from_numpy(values)
    if method == "max":
        largest = MaxCalibrator(num_bits=bits)
        largest.collect(tensor)
        return largest.compute_amax()
    calibrator = HistogramCalibrator(num_bits=bits)
    calibrator.collect(tensor)
    return calibrator.compute_amax(method, stride=STRIDE, percentile=percentile)

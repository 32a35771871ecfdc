"""For the tests of the quality metrics: pictures, piq without its torchvision half, stand-ins for the deep packages."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator

import cv2
import numpy as np


def picture(height: int, width: int, seed: int, dtype: type = np.uint8) -> np.ndarray:
    """Structure at every scale and fine noise: (H, W, 3), the full range of the type."""
    generator = np.random.default_rng(seed)
    unit = np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        coarse = generator.uniform(0, 1, (cells, cells, 3))
        unit += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) / cells**0.5
    unit += generator.normal(0, 0.02, unit.shape)
    unit = np.clip((unit - unit.min()) / (unit.max() - unit.min()), 0, 1)
    if np.issubdtype(dtype, np.floating):
        return unit.astype(dtype)
    return np.rint(unit * np.iinfo(dtype).max).astype(dtype)


def degraded(pixels: np.ndarray, seed: int, noise: float = 0.03) -> np.ndarray:
    """Blurred and noisy, of the same type."""
    top = 1.0 if np.issubdtype(pixels.dtype, np.floating) else float(np.iinfo(pixels.dtype).max)
    blurred = cv2.GaussianBlur(pixels.astype(np.float64), (0, 0), 1.2)
    noisy = np.clip(blurred + np.random.default_rng(seed).normal(0, noise * top, pixels.shape), 0, top)
    return noisy.astype(pixels.dtype)


@contextlib.contextmanager
def piq_modules(*names: str) -> Iterator[list[types.ModuleType]]:
    """Modules of piq, imported without the package's own start, which wants the torchvision that is not here."""
    spec = importlib.util.find_spec("piq")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("these tests need piq: pip install --no-deps piq", name="piq")
    package = types.ModuleType("piq")
    package.__path__ = list(spec.submodule_search_locations)
    with modules(piq=package):
        yield [importlib.import_module(f"piq.{name}") for name in names]


@contextlib.contextmanager
def modules(**planted: types.ModuleType) -> Iterator[None]:
    """Put modules where ``import`` finds them; afterwards they and their submodules are what they were."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] in planted}
    for name in kept:
        del sys.modules[name]
    sys.modules.update(planted)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in planted]:
            del sys.modules[name]
        sys.modules.update(kept)

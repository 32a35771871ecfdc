"""Adapters of the extra ``iqa-nc``: pyiqa's no-reference metrics.

pyiqa's licence is PolyForm-Noncommercial-1.0.0 with S-Lab's: it is never a dependency of anything else here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from livemoments.validate.quality.lpips_dists_piq import batch_of
from livemoments.validate.quality.weights import hub_cache, offline


def load_pyiqa(name: str, file: Path, device: str) -> Callable[[np.ndarray], float]:
    """One of pyiqa's metrics with its default settings.

    Args:
        name: pyiqa's: ``niqe``, ``musiq``, ``clipiqa`` or ``maniqa``.
        file: its weights, under the name by which pyiqa caches them.
        device: torch's.

    Raises:
        EngineError: the package wants something from the network.
    """
    with hub_cache(file) as hub, offline(hub):
        import pyiqa
        from pyiqa.utils import download_util

        # pyiqa settles its cache when it is imported, perhaps long before
        with mock.patch.object(download_util, "DEFAULT_CACHE_DIR", str(hub / "pyiqa")), _random_backbone(name):
            metric = pyiqa.create_metric(name, device=device)
    import torch

    def score(tile: np.ndarray) -> float:
        with torch.inference_mode():
            return float(metric(batch_of(tile, device)))

    return score


def _random_backbone(name: str) -> contextlib.AbstractContextManager[object]:
    """MANIQA asks timm for ImageNet's weights and then overwrites all of them with its own: spare the download."""
    if name != "maniqa":
        return contextlib.nullcontext()
    timm = importlib.import_module("timm")  # a dependency of pyiqa, not of this package
    create: Callable[..., Any] = timm.create_model

    def without_weights(*arguments: Any, **options: Any) -> Any:
        return create(*arguments, **{**options, "pretrained": False})

    return mock.patch.object(timm, "create_model", without_weights)

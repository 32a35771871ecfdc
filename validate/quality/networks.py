"""The deep metrics' networks behind three small interfaces, opened from local weights only.

All take (h, w, 3) float32 RGB in [0, 1]. An :class:`Adapters` opens each network once, on first use, and says why one
cannot be opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.errors import EngineError, LiveMomentsError
from livemoments.validate.quality.registry import BY_NAME, MetricSpec
from livemoments.validate.quality.weights import check_folder, missing, offline, open_source

Solo = Callable[[np.ndarray], float]
"""Scores one tile."""
Pair = Callable[[np.ndarray, np.ndarray], float]
"""The distance of a tile from the truth's."""
Encoder = Callable[[np.ndarray], np.ndarray]
"""Features of a tile or patch: (d,) floating point."""
Adapter = Solo | Pair | Encoder


class Adapters:
    """The networks of the metrics that were asked for.

    Args:
        specs: the metrics.
        weights: the folder of their weights.
        device: torch's, for the packages' networks.
        planted: adapters by metric name instead of the packages', e.g. a user's own.

    Attributes:
        problems: why a metric cannot be measured, by name.

    Raises:
        UsageError: the folder is not there.
    """

    def __init__(
        self,
        specs: Iterable[MetricSpec],
        weights: Path | None = None,
        *,
        device: str = "cpu",
        planted: Mapping[str, Adapter] | None = None,
    ) -> None:
        check_folder(weights)
        self._weights = weights
        self._device = device
        self._open: dict[str, Adapter] = dict(planted or {})
        self._failed: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        for spec in specs:
            key = spec.base or spec.name
            if spec.sources and key not in self._open and (reason := missing(spec, weights)):
                self.problems[spec.name] = reason

    def get(self, spec: MetricSpec) -> Any:
        """The network of a metric; ``None`` if it cannot be opened, with the reason in :attr:`problems`."""
        if spec.name in self.problems:
            return None
        key = spec.base or spec.name
        if key not in self._open and key not in self._failed:
            try:
                self._open[key] = _load(BY_NAME[key], self._weights, self._device)
            except LiveMomentsError as error:
                self._failed[key] = error.message
            except Exception as error:  # other people's packages and files: whatever it is, only this metric lacks
                self._failed[key] = f"{type(error).__name__}: {first_line(error)}"
        if key in self._failed:
            self.problems[spec.name] = f"could not be loaded: {self._failed[key]}"
            return None
        return self._open[key]


@contextlib.contextmanager
def naming(spec: MetricSpec) -> Iterator[None]:
    """Turn a network's failure on a picture into an error that names the metric.

    Raises:
        EngineError: the network failed.
    """
    try:
        yield
    except RuntimeError as error:  # torch's and onnxruntime's, out of memory among them
        raise EngineError(f"the metric {spec.name} failed: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load(spec: MetricSpec, weights: Path | None, device: str) -> Adapter:
    source, file = open_source(spec, weights)
    if source.loader == "encoder":
        from livemoments.validate.quality.encoders import open_encoder

        return open_encoder(file, device)
    if source.loader in ("clip_vit", "dino_vit"):
        from livemoments.validate.quality.vit import load_clip_vit, load_dino_vit

        return (load_clip_vit if source.loader == "clip_vit" else load_dino_vit)(file, device)
    from livemoments.validate.quality import lpips_dists_piq, pyiqa_adapters

    adapter = (
        pyiqa_adapters.load_pyiqa(spec.name, file, device)
        if source.loader == "pyiqa"
        else lpips_dists_piq.LOADERS[source.loader](file, device)
    )
    guarded: Adapter = offline()(adapter)  # kept from the network while it runs, too
    return guarded

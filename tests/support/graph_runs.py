"""Graphs run in onnxruntime on random inputs, and how far their outputs are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from livemoments.distances import relative_l2
from livemoments.ort import open_session, session_options
from livemoments.types import Size, TensorSpec


def run_graph(model: Path | bytes, feeds: dict[str, np.ndarray], weights: Path, **config: str) -> list[np.ndarray]:
    """A graph, or its bytes beside the folder of its weights, in onnxruntime on the CPU; ``config``: options of the
    session."""
    options = session_options()
    for name, value in config.items():
        options.add_session_config_entry(f"session.{name}", value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    outputs: list[np.ndarray] = open_session(model, options).run(None, feeds)
    return outputs


def random_feeds(specs: Sequence[TensorSpec], batch: int, size: Size | None = None) -> dict[str, np.ndarray]:
    """Fresh standard normal inputs, the second step of the schedule; ``size`` is that of graphs with free axes."""
    rng = np.random.default_rng()
    lengths = {"batch": batch} | ({} if size is None else {"height": size.height, "width": size.width})
    shapes = {spec.name: [lengths[axis] if isinstance(axis, str) else axis for axis in spec.shape] for spec in specs}
    return {
        spec.name: np.ones((), np.int64)
        if spec.dtype == "int64"
        else rng.standard_normal(shapes[spec.name]).astype(spec.dtype)
        for spec in specs
    }


def farthest(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest relative L2 distance of an output."""
    pairs = zip(found, wanted, strict=True)
    return max(relative_l2(got.astype(np.float32), want.astype(np.float32)) for got, want in pairs)

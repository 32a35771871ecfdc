"""Image encoders that the user exported: ONNX, which needs nothing more, or TorchScript.

An encoder takes ``image`` (1, 3, H, W) float32 RGB in [0, 1], of any size that the metric asks for, and gives features
of (1, d), or (1, d, 1, 1). Its own resizing and normalisation are part of the exported file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from livemoments.errors import EngineError
from livemoments.ort import open_session


def open_encoder(file: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Open an exported encoder: ``.onnx`` by ONNX Runtime on the CPU, anything else by TorchScript on ``device``.

    Raises:
        EngineError: the file is no such encoder.
    """
    run = _open_onnx(file) if file.suffix == ".onnx" else _open_torchscript(file, device)

    def encode(tile: np.ndarray) -> np.ndarray:
        features = run(np.ascontiguousarray(tile.transpose(2, 0, 1))[None])
        if features.shape[0] != 1 or features.size != features.shape[1]:
            raise EngineError(f"{file.name} gives {features.shape}, not (1, features)")
        return features.reshape(-1).astype(np.float32)

    return encode


def _open_onnx(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    try:
        session = open_session(file)
    except Exception as error:  # onnxruntime's exceptions have no public base
        raise EngineError(f"{file}: not an ONNX graph that can be run: {str(error).splitlines()[0]}") from error
    if len(session.get_inputs()) != 1:
        raise EngineError(f"{file}: an encoder takes one image, not {len(session.get_inputs())} inputs")
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def _open_torchscript(file: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    try:
        module = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{file}: not a TorchScript module: {str(error).splitlines()[0]}") from error

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(batch).to(device)).float().cpu())

    return run

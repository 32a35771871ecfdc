"""Run bundles: restore photos with exported engines, without PyTorch.

Importing this package loads neither PyTorch nor onnxruntime; onnxruntime is loaded with the first graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from livemoments.bundle import Bundle, open_bundle
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.runtime.noise import NoiseSource, RecordedNoise, SeededNoise, TileNoise

# Imported here rather than on demand: the submodule of the same name would otherwise take the function's place.
from livemoments.runtime.restore import RestoreResult, restore
from livemoments.runtime.schedule import build_schedule, plan_steps, upstream_sigmas

if TYPE_CHECKING:
    from livemoments.runtime.backends.ort import OrtBackend

__all__ = [
    "Bundle",
    "NoiseSource",
    "OrtBackend",
    "Photo",
    "RecordedNoise",
    "RestoreResult",
    "SeededNoise",
    "TileNoise",
    "build_schedule",
    "open_bundle",
    "plan_steps",
    "read_photo",
    "restore",
    "upstream_sigmas",
    "write_image",
]


def __getattr__(name: str) -> Any:
    if name == "OrtBackend":
        from livemoments.runtime.backends.ort import OrtBackend

        return OrtBackend
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

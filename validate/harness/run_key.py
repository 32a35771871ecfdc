"""What a run's results depend on besides each image: the same key, the same results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from livemoments.bundle import MANIFEST_NAME, Bundle, hash_file
from livemoments.runtime.options import RestoreOptions
from livemoments.version import __version__, version_of

RUN_SCHEMA = "livemoments/run/1"
_LIBRARIES = ("onnxruntime", "numpy", "opencv-python-headless")


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of the manifest, which lists every file's hash, the schedule, the tiles and the policy."""
    return hash_file(bundle.path / MANIFEST_NAME).sha256


def run_key(
    digest: str,
    settings: RestoreOptions,
    recording: str | None,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The key: flat, JSON-able.

    Args:
        digest: the bundle's.
        settings: how images are restored.
        recording: digest of the recording whose photos the results are compared with.
        metrics: what decides the metrics.
    """
    return {
        "schema": RUN_SCHEMA,
        "livemoments": __version__,
        **{name: version_of(name) for name in _LIBRARIES},
        "bundle": digest,
        **{f"settings.{name}": value for name, value in settings.key().items()},
        "recording": recording,
        **metrics,
    }

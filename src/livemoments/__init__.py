"""Turn a LiveMoments checkpoint into engines that ship. The names below are the public Python interface."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from livemoments.version import __version__

if TYPE_CHECKING:
    from livemoments.export.pipeline import export_bundle
    from livemoments.quantize.pipeline import quantize_bundle
    from livemoments.runtime.restore import restore
    from livemoments.validate.run import validate_bundle

_PUBLIC = {
    "export_bundle": "livemoments.export.pipeline",
    "open_bundle": "livemoments.bundle",
    "quantize_bundle": "livemoments.quantize.pipeline",
    "restore": "livemoments.runtime.restore",
    "validate_bundle": "livemoments.validate.run",
}

__all__ = ["__version__", "export_bundle", "open_bundle", "quantize_bundle", "restore", "validate_bundle"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `import livemoments` costs nothing and never imports torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "validate":  # the package, which can be called until 0.2
        return import_module("livemoments.validate")
    raise AttributeError(f"module 'livemoments' has no attribute '{name}'")

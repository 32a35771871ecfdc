"""Opening the PyTorch backend where PyTorch may be missing."""

from __future__ import annotations

from livemoments.errors import MissingExtraError
from livemoments.runtime.backends.base import Backend


def open_torch_backend(provider: str, threads: int | None) -> Backend:
    """The backend of a bundle of PyTorch networks.

    Raises:
        UsageError: this machine has no such provider.
        MissingExtraError: the extra ``reference`` is not installed.
    """
    try:
        from livemoments.pytorch.backend import TorchBackend
    except ModuleNotFoundError as error:
        raise MissingExtraError("a bundle of PyTorch networks", "reference", missing=error.name) from None
    return TorchBackend(provider, threads)

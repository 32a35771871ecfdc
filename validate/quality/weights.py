"""The local weights folder: which metric finds its files in it, a cache that the deep packages
read them from, and their way to the network shut.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from livemoments.errors import EngineError, UsageError
from livemoments.validate.quality.registry import MetricSpec, Weights

# Where a file may lie below the folder, so that a copy of $TORCH_HOME, or of its hub folder, will do.
_PLACES = ("", "checkpoints", "pyiqa", "clip", "hub/checkpoints", "hub/pyiqa", "hub/clip")
# Below the hub folder: torchvision's and piq's downloads, pyiqa's, and CLIP's as pyiqa loads it.
_CACHES = ("checkpoints", "pyiqa", "clip")

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def check_folder(weights: Path | None) -> None:
    """Refuse a weights folder that is not there.

    Raises:
        UsageError: it is none.
    """
    if weights is not None and not weights.is_dir():
        raise UsageError(
            f"{weights}: the folder of the metrics' weights is not there", fix="name it with --iqa-weights"
        )


def find_file(source: Weights, weights: Path | None) -> Path | None:
    """The first of a source's files that lies in the folder or in one of a torch cache's folders below it."""
    if weights is None:
        return None
    places = [weights / place / name for name in source.files for place in _PLACES]
    return next((place.resolve() for place in places if place.is_file()), None)


def missing(spec: MetricSpec, weights: Path | None) -> str | None:
    """Why a metric cannot be measured here: an extra or a file is missing; ``None`` if a source is at hand."""
    reasons = [_missing(source, weights) for source in spec.sources]
    if None in reasons or not reasons:
        return None
    # The sources with all modules here come first: they are the shorter way to a number.
    ordered = sorted((reason for reason in reasons if reason), key=lambda reason: reason.startswith("needs"))
    return "; or ".join(dict.fromkeys(ordered)) + (f" [{spec.licence}]" if spec.licence else "")


def open_source(spec: MetricSpec, weights: Path | None) -> tuple[Weights, Path]:
    """The first source that is at hand, and its file.

    Raises:
        UsageError: none is; :func:`missing` says so beforehand.
    """
    for source in spec.sources:
        file = find_file(source, weights)
        if file is not None and _missing(source, weights) is None:
            return source, file
    raise UsageError(f"{spec.name}: {missing(spec, weights)}")


@contextlib.contextmanager
def hub_cache(file: Path) -> Iterator[Path]:
    """A hub folder that holds one file of weights under its own name, wherever a package may look for it."""
    with tempfile.TemporaryDirectory(prefix="livemoments-hub-") as name:
        for folder in _CACHES:
            place = Path(name) / folder / file.name
            place.parent.mkdir()
            place.symlink_to(file)
        yield Path(name)


@contextlib.contextmanager
def offline(hub: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Run a package's code without the network: weights are local files, or there is no number.

    The thread that entered it can open no connection and resolve no name, and ``torch.load`` unpickles tensors only,
    whatever a package passes.

    Args:
        hub: a folder that torch's hub takes for its cache meanwhile.

    Raises:
        EngineError: from within, where something wants to connect.
    """
    import torch

    thread = threading.get_ident()
    load = torch.load

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def guard(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == thread:
                raise EngineError("a metric's package wanted to reach the network; weights are read from files only")
            return call(*arguments, **options)

        return guard

    def tensors_only(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **{**options, "weights_only": True})

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (socket, "getaddrinfo"),
            (socket.socket, "connect"),
            (socket.socket, "connect_ex"),
            (torch.hub, "download_url_to_file"),
        ):
            stack.enter_context(mock.patch.object(owner, name, guarded(getattr(owner, name))))
        stack.enter_context(mock.patch.object(torch, "load", tensors_only))
        stack.enter_context(mock.patch.dict(os.environ, _OFFLINE))
        if hub is not None:
            stack.callback(torch.hub.set_dir, torch.hub.get_dir())
            torch.hub.set_dir(os.fspath(hub))
        yield


def _missing(source: Weights, weights: Path | None) -> str | None:
    if any(importlib.util.find_spec(name) is None for name in source.modules):
        return f"needs the extra '{source.extra}': pip install 'livemoments-deploy[{source.extra}]'"
    if find_file(source, weights) is None:
        place = "a folder and name it with --iqa-weights" if weights is None else str(weights)
        return f"weights not found: put {' or '.join(source.files)} into {place} (from {source.origin})"
    return None

"""Keeps the deep packages from the network: their weights are local files, or there is no number.

Within :func:`offline` the thread that entered it can open no connection and resolve no name, and ``torch.load``
unpickles tensors only, whatever a package passes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from livemoments.errors import EngineError

_VARIABLES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextlib.contextmanager
def offline(hub: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Run a package's code without the network.

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
        stack.enter_context(mock.patch.dict(os.environ, _VARIABLES))
        if hub is not None:
            stack.callback(torch.hub.set_dir, torch.hub.get_dir())
            torch.hub.set_dir(os.fspath(hub))
        yield

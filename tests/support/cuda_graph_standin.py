"""CUDA graphs without a GPU: a replay runs the captured function on the static inputs, into the static outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pytest
import torch

from livemoments.pytorch.execution import Graphed


class _Stream:
    def wait_stream(self, other: object) -> None:
        pass


class _ReplayedByRunning:
    refresh: Callable[[], None]

    def replay(self) -> None:
        self.refresh()


def stand_in_for_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let :class:`Graphed` capture on a CPU: its buffers, which are what can go wrong, are the real ones."""
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _ReplayedByRunning)
    build = Graphed.__init__

    def with_replay(
        graphed: Graphed, function: Callable[..., Sequence[torch.Tensor]], examples: Sequence[torch.Tensor]
    ) -> None:
        build(graphed, function, examples)

        def refresh() -> None:
            for static, new in zip(graphed._outputs, function(*graphed._inputs), strict=True):
                static.copy_(new)

        graphed._graph.refresh = refresh

    monkeypatch.setattr(Graphed, "__init__", with_replay)

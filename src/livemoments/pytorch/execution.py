"""How modules are run: compiled block by block, and as CUDA graphs. This module needs PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch._dynamo
from torch import Tensor

from livemoments.export.mmdit import MMDiT

_CAPTURE_WARMUP = 3
_MOST_GRAPHS = 32
"""First, middle and last block, with and without guidance, and some to spare."""


def compile_blocks(network: MMDiT, backend: str = "inductor") -> None:
    """``torch.compile`` block by block: equal blocks share their code, so it takes seconds, not minutes.

    Args:
        network: changed in place; its blocks are compiled at their first run.
        backend: of ``torch.compile``.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, _MOST_GRAPHS)
    for block in network.transformer_blocks:
        block.compile(dynamic=False, fullgraph=True, backend=backend)


class Graphed:
    """A function of tensors, captured as a CUDA graph: inputs are copied into static buffers, outputs are static.

    An input that already is the static buffer (another graph's output) is not copied.

    Args:
        function: of tensors whose shapes and types do not change.
        examples: become the static inputs.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> None:
        self._inputs = list(examples)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_CAPTURE_WARMUP):  # libraries choose and allocate outside the capture
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        """Replay the graph on these inputs; its outputs are overwritten by the next call."""
        for static, new in zip(self._inputs, given, strict=True):
            if static.data_ptr() != new.data_ptr():
                static.copy_(new)
        self._graph.replay()
        return self._outputs

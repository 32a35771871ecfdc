"""Transformers that are loaded a block at a time: the back-end behind ``--residency streamed``.

In a room of its own, because cutting graphs takes onnx (the extra ``plan``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from livemoments.bundle import Bundle
from livemoments.chains.chain import ChainEngine, Segment, cut_at_blocks
from livemoments.manifest import Graph
from livemoments.runtime.backends.base import Engine
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.backends.ort_providers import DeviceLimits, check_form
from livemoments.types import TRANSFORMER_STAGES, Size, Stage


class StreamedBackend(OrtBackend):
    """Opens both transformers as chains of their blocks, of which one is loaded at a time; other stages as usual.

    A block is opened, run for the whole batch, and closed before the next one: every run loads all blocks anew, and a
    larger batch loads them less often for a tile. The numbers are those of the whole graph
    (:func:`livemoments.chains.blocks.places` says why).

    Args:
        provider: see :class:`livemoments.runtime.backends.ort.OrtBackend`.
        threads: see there.
        limits: see there.
    """

    def __init__(
        self, provider: str = "cpu", threads: int | None = None, *, limits: DeviceLimits | None = None
    ) -> None:
        # blocks would each keep an arena of their own
        super().__init__(provider, threads, limits=limits, memory_arena=False, memory_pattern=False)
        self._chains: dict[Path, list[Segment]] = {}

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """See :meth:`Backend.open`."""
        if stage not in TRANSFORMER_STAGES:
            return super().open(bundle, stage, size)
        check_form(self._provider, bundle)
        graph = bundle.graph(stage, size)
        path = bundle.path / graph.path
        if path not in self._chains:
            self._chains[path] = cut_at_blocks(path)
        return ChainEngine(
            stage,
            self._chains[path],
            graph.inputs,
            graph.outputs,
            path=path,
            open_segment=lambda part: self._open_segment(part, path, stage, bundle, graph),
            resident=False,
        )

    def _open_segment(self, part: Segment, path: Path, stage: Stage, bundle: Bundle, graph: Graph) -> Any:
        options = self._session_options(stage)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        limits = self._limits.without_graphs()  # a recording would not outlive its one run
        return self._session(part.model, options, path, bundle, graph, limits)

"""A backend whose transformers also show what enters their linears; everything else is onnxruntime as usual.

Given to :func:`livemoments.runtime.restore.restore`, it lets the real pipeline run unchanged (all steps, the tiles and
their references as PCR aligns them, keys and values from one network to the other) while a listener counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from livemoments.bundle import Bundle
from livemoments.chains.chain import ChainEngine, Segment
from livemoments.errors import EngineError
from livemoments.graphs.segments import Tap, cut, find_taps
from livemoments.ort import open_session, session_options
from livemoments.runtime.backends.base import Array, Backend, Engine, to_host
from livemoments.runtime.backends.ort import OrtBackend, _translated
from livemoments.types import TRANSFORMER_STAGES, Size, Stage

TAPPED_STAGES = TRANSFORMER_STAGES
TAPS_BUDGET_BYTES = 256 << 20
"""Activations held for the listener at once: about one block of the published size at a 1024-pixel tile."""
RESIDENT_BYTES = 2 << 30
"""A stage whose weights are larger is loaded a segment at a time, so that no whole network is ever in memory."""

Listener = Callable[[Tap, int, np.ndarray], None]
"""Called with an activation: what it feeds, the schedule point, and its values (B, ..., K)."""


class TappedBackend(Backend):
    """Opens the transformers with taps, on the CPU.

    Args:
        listener: gets every activation; what it raises ends the run.
        threads: threads within an operator.
        operands: also show what attention reads, and the keys and values that leave ReferenceNet.
        taps_budget_bytes: activations of a tile held at once; a single block's are always.
        resident_bytes: stages of larger weights are loaded a segment at a time.
    """

    name = "onnxruntime with taps"
    provider = "cpu"

    def __init__(
        self,
        listener: Listener,
        threads: int | None = None,
        *,
        operands: bool = False,
        taps_budget_bytes: int = TAPS_BUDGET_BYTES,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        self._listener = listener
        self._threads = threads
        self._operands = operands
        self._taps_budget_bytes = taps_budget_bytes
        self._resident_bytes = resident_bytes
        self._plain = OrtBackend("cpu", threads)
        self._cut: dict[Path, list[Segment]] = {}

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """See :meth:`Backend.open`."""
        if stage not in TAPPED_STAGES:
            return self._plain.open(bundle, stage, size)
        graph = bundle.graph(stage, size)
        path = bundle.path / graph.path
        if path not in self._cut:
            self._cut[path] = segments_of(path, stage, self._taps_budget_bytes, operands=self._operands)
        weights_bytes = sum(bundle.manifest.files[name].bytes for name in graph.weights)
        resident = weights_bytes <= self._resident_bytes
        return TappedEngine(
            stage,
            self._cut[path],
            graph.inputs,
            graph.outputs,
            path=path,
            open_segment=lambda part: open_segment(part, path, threads=self._threads, prepack=resident),
            resident=resident,
            listener=self._listener,
        )


class TappedEngine(ChainEngine):
    """A chain of segments that shows its taps."""

    def __init__(self, *arguments: Any, listener: Listener, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._listener = listener

    def _look(self, part: Segment, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, Array]) -> None:
        point = int(to_host(inputs["step"]))
        for tap in part.taps:
            self._listener(tap, point, outputs[tap.value])
        for spec in self.outputs:
            if spec.name in part.outputs and not np.isfinite(outputs[spec.name]).all():
                raise EngineError(
                    f"stage '{self.stage}', output '{spec.name}': NaN or infinity at schedule point {point}",
                    fix="check the checkpoint's weights and the calibration images",
                )


def segments_of(path: Path, stage: Stage, taps_budget_bytes: int, *, operands: bool = False) -> list[Segment]:
    """Cut a bundle's graph; its weights are not read. ``operands``: see :func:`find_taps`.

    Raises:
        EngineError: the graph has no linears to tap.
    """
    model = ir.load(path)
    taps = find_taps(model, str(stage), operands=operands)
    if not taps:
        raise EngineError(f"{path}: there are no matrix products with float weights in this graph")
    return cut(model, taps, budget_bytes=taps_budget_bytes)


def open_segment(part: Segment, path: Path, *, threads: int | None, prepack: bool) -> Any:
    """An onnxruntime session for one segment of the graph at ``path``.

    Without ``prepack`` the weights stay mapped from the bundle's file; it pays only for sessions that run often.

    Raises:
        EngineError: onnxruntime does not load it.
        ResourceError: memory ran out.
    """
    options = session_options(threads)
    # many sessions, each of which would keep its own peak
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return open_session(part.model, options)
    except Exception as error:
        raise _translated(error, f"{path}: a part of the graph cannot be loaded") from error

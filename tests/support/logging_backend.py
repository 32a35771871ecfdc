"""A backend around another that keeps a diary: what was opened, run (with which batch and step) and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from livemoments.bundle import Bundle
from livemoments.runtime.backends.base import Array, Backend, DeviceArray, Engine
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import Size, Stage

Event = tuple[Any, ...]


class LoggingBackend(Backend):
    """Opens graphs with onnxruntime on the CPU. ``before_run`` may raise, to simulate trouble in the middle."""

    name = "onnxruntime"
    provider = "cpu"

    def __init__(self, before_run: Callable[[Stage, int], None] | None = None) -> None:
        self.events: list[Event] = []
        self.open_now: set[Stage] = set()
        self.most_open: list[frozenset[Stage]] = []
        self.before_run = before_run
        self._inner = OrtBackend("cpu", 1)

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        engine = _LoggingEngine(self._inner.open(bundle, stage, size), self)
        self.events.append(("open", stage))
        self.open_now.add(stage)
        self.most_open.append(frozenset(self.open_now))
        return engine

    def runs(self, stage: Stage) -> list[Event]:
        """(batch, step or None, whether something stayed on the device, device inputs) of every run of a stage."""
        return [event[2:] for event in self.events if event[:2] == ("run", stage)]


class _LoggingEngine(Engine):
    def __init__(self, inner: Engine, log: LoggingBackend) -> None:
        super().__init__(inner.stage, inner.inputs, inner.outputs)
        self._inner = inner
        self._log = log

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        first = next(iter(inputs.values()))
        step = int(inputs["step"].item()) if "step" in inputs else None  # type: ignore[union-attr]
        on_device = sorted(name for name, array in inputs.items() if isinstance(array, DeviceArray))
        if self._log.before_run is not None:
            self._log.before_run(self.stage, len(self._log.runs(self.stage)))
        self._log.events.append(("run", self.stage, first.shape[0], step, bool(keep), on_device))
        return self._inner.run(inputs, keep=keep)

    def close(self) -> None:
        if not self._closed:
            self._log.events.append(("close", self.stage))
            self._log.open_now.discard(self.stage)
        self._inner.close()
        super().close()

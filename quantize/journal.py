"""Finished layers of a measurement, kept in a file so that a run that was killed can go on."""

from __future__ import annotations

from pathlib import Path

from livemoments.errors import UsageError
from livemoments.graphs.linears import LinearId
from livemoments.quantize.sensitivity_report import LayerSensitivity
from livemoments.store.journals import LineJournal


class Journal:
    """Finished layers, a JSON line each after a first line with the key. What another key wrote is not read.

    Args:
        path: the file; ``None`` keeps nothing.
        key: of the measurement.

    Attributes:
        done: what was read, by layer.

    Raises:
        OutputError: the file cannot be written.
        ResourceError: the disk is full.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.done: dict[LinearId, LayerSensitivity] = {}
        self._file = None if path is None else LineJournal(path)
        if self._file is None:
            return
        if self._file.head != {"key": key}:
            self._file.start({"key": key})
        for number, line in enumerate(self._file.lines):
            try:
                layer = LayerSensitivity.from_json(line)
            except (ValueError, KeyError, TypeError, UsageError):
                self._file.keep(number)
                break
            self.done[layer.linear] = layer

    def add(self, layer: LayerSensitivity) -> None:
        """Append a layer and flush it to the disk.

        Raises:
            OutputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        if self._file is not None:
            self._file.append(layer.to_json())

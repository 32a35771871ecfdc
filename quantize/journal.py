"""Finished layers of a measurement, kept in a file so that a run that was killed can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from livemoments.errors import OutputError, UsageError
from livemoments.quantize.plan import LinearId
from livemoments.quantize.sensitivity_report import LayerSensitivity


class Journal:
    """Finished layers, a JSON line each after a first line with the key. What another key wrote is not read.

    Args:
        path: the file; ``None`` keeps nothing.
        key: of the measurement.

    Attributes:
        done: what was read, by layer.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.done: dict[LinearId, LayerSensitivity] = {}
        self._path = path
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            good = self._read(lines, key)
            # what a killed run left half-written goes
            path.write_text("".join(f"{line}\n" for line in good or [json.dumps({"key": key})]), encoding="utf-8")
        except OSError as error:
            raise OutputError(path, f"cannot be written ({error.strerror})", fix="choose another folder") from None

    def _read(self, lines: list[str], key: str) -> list[str]:
        good: list[str] = []
        for line in lines:
            try:
                data = json.loads(line)
                if good:
                    layer = LayerSensitivity.from_json(data)
                    self.done[layer.linear] = layer
                elif data != {"key": key}:
                    return []
            except (ValueError, KeyError, TypeError, UsageError):
                break
            good.append(line)
        return good

    def add(self, layer: LayerSensitivity) -> None:
        """Append a layer and flush it to the disk.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(layer.to_json()) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OutputError(self._path, f"cannot be written ({error.strerror})") from None

"""What a training run keeps: its state, whole or not at all, and a log with a line for every measurement."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from livemoments.errors import CheckpointError, OutputError
from livemoments.store.files import write_file

STATE_NAME = "state.pt"
LOG_NAME = "log.jsonl"


class Average:
    """The exponential moving average of networks' weights, which is what is kept in the end.

    Args:
        networks: by name; their weights when this is made are the first average.
        decay: per step, once enough steps were made; the first ones count more.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float) -> None:
        self._networks, self._decay = networks, decay
        self._steps = 0
        self.weights = {name: _copy(network) for name, network in networks.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self._steps += 1
        keep = min(self._decay, self._steps / (self._steps + 10))
        for name, network in self._networks.items():
            mean = self.weights[name]
            for key, value in network.state_dict().items():
                mean[key].lerp_(value, 1 - keep)

    def state_dict(self) -> dict[str, Any]:
        """For :meth:`load_state_dict`."""
        return {"weights": self.weights, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an earlier average."""
        self.weights, self._steps = state["weights"], int(state["steps"])


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the run's state.

    Raises:
        OutputError: it cannot be written; the earlier one is still there.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(folder / STATE_NAME, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state that an interrupted run left in this folder, or ``None``.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:
        raise CheckpointError(path, f"cannot be read ({error})", fix="delete it to begin anew") from None
    return state


class Log:
    """Appends to ``log.jsonl`` in the run's folder.

    Args:
        folder: the run's; made where it is missing.
        since_s: seconds that earlier parts of the run took.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, since_s: float = 0.0) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(folder, f"cannot be made ({error.strerror})", fix="name another folder") from None
        self._path = folder / LOG_NAME
        self._start = time.monotonic() - since_s

    @property
    def seconds(self) -> float:
        """Since the run began, pauses not counted."""
        return time.monotonic() - self._start

    def write(self, **values: float) -> None:
        """One line; ``seconds`` is added."""
        rounded = {name: float(f"{value:.5g}") for name, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**rounded, "seconds": round(self.seconds, 1)}) + "\n")


def read_log(folder: Path) -> Iterator[dict[str, float]]:
    """The lines of a run's log."""
    with (folder / LOG_NAME).open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)

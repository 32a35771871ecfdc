"""What a GPU is to the engines: memory, streams, events and recorded graphs, and nothing else.

:mod:`livemoments.tensorrt.cuda` is CUDA's own; the tests have one that runs on a CPU and watches the order of accesses.
Calls that take a stream only queue work there; what is queued on one stream runs in order, and streams know of each
other through events alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

Stream: TypeAlias = int
Event: TypeAlias = Any
Recording: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of memory.

    Attributes:
        address: where the GPU finds it.
        nbytes: its size.
        host: the same as bytes, of memory on the host (pinned: the GPU copies from and to it by itself).
    """

    address: int
    nbytes: int
    host: np.ndarray | None = None


class Device(Protocol):
    """One GPU. Every call raises EngineError where the driver reports an error, ResourceError where memory ran out."""

    def allocate(self, nbytes: int, *, pinned: bool) -> Memory:
        """Memory of the device, or pinned memory of the host."""

    def free(self, memory: Memory) -> None:
        """Give memory back; nothing that is queued may use it any more."""

    def make_stream(self) -> Stream:
        """A stream of its own order."""

    def drop_stream(self, stream: Stream) -> None:
        """End a stream with no work left."""

    def copy(self, target: Memory, source: Memory, nbytes: int, stream: Stream) -> None:
        """Queue a copy between pinned memory and the device's, in either direction."""

    def mark(self, stream: Stream) -> Event:
        """An event that comes when everything queued so far is done; it lives as long as it is referred to."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Let what is queued on the stream from now on begin after the event."""

    def synchronize(self, event: Event) -> None:
        """Let the host wait for an event."""

    def record(self, stream: Stream, queue: Callable[[], None]) -> Recording:
        """Call ``queue``, and keep what it puts on the stream in place of running it."""

    def replay(self, recording: Recording, stream: Stream) -> None:
        """Queue all of a recording at once."""

    def drop_recording(self, recording: Recording) -> None:
        """Forget a recording that is not running."""

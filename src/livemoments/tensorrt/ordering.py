"""Who may touch a buffer when: all work waits for the writes and reads that it conflicts with, and for no others.

That is what makes copies, one engine's run and another's overlap where they can and never where they must not: a buffer
is read after its last write is done, and written after its last reads are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from livemoments.tensorrt.device import Device, Event, Memory, Stream

Kind = tuple[str, int, bool]
"""What it is for, its bytes, and whether it is pinned memory."""


class Buffer:
    """Memory, and the work that was last queued on it.

    Attributes:
        memory: what it is.
        kind: which requests it serves.
        written: when its contents are there; ``None``: nothing was queued.
        reads: by stream, when the last of its readers is done.
    """

    __slots__ = ("__weakref__", "kind", "memory", "reads", "written")

    def __init__(self, memory: Memory, kind: Kind) -> None:
        self.memory = memory
        self.kind = kind
        self.written: Event | None = None
        self.reads: dict[Stream, Event] = {}

    @property
    def events(self) -> list[Event]:
        """After which nothing uses it."""
        return [*self.reads.values(), *([] if self.written is None else [self.written])]


def queue(
    device: Device,
    stream: Stream,
    work: Callable[[], None],
    *,
    reads: Sequence[Buffer] = (),
    writes: Sequence[Buffer] = (),
) -> Event:
    """Put work on a stream, after what it depends on; the event of its end.

    Args:
        device: whose stream it is.
        stream: where it runs.
        work: queues it there.
        reads: what it reads.
        writes: what it overwrites.
    """
    awaited = [buffer.written for buffer in reads if buffer.written is not None]
    for buffer in writes:
        awaited += buffer.events
    for event in {id(event): event for event in awaited}.values():
        device.wait(stream, event)
    work()
    done = device.mark(stream)
    for buffer in reads:
        buffer.reads[stream] = done
    for buffer in writes:
        buffer.written, buffer.reads = done, {}
    return done


class Memories:
    """Allocates buffers, counts them, and uses those again that nobody holds.

    Args:
        device: where.

    Attributes:
        used_bytes: of device memory that is allocated now, with what engines said they take.
        peak_bytes: the most that was.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.used_bytes = 0
        self.peak_bytes = 0
        self._idle: dict[Kind, list[Buffer]] = {}

    def count(self, nbytes: int) -> None:
        """Count device memory that somebody else allocated (or, negative, freed)."""
        self.used_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def take(self, nbytes: int, *, pinned: bool = False, label: str = "") -> Buffer:
        """A buffer of this size; the one that was let go last for the same purpose, if there is one.

        A tensor that is let go before it is computed again so lies where it lay.

        Args:
            nbytes: its size.
            pinned: on the host.
            label: the purpose.
        """
        kind = label, nbytes, pinned
        if idle := self._idle.get(kind):
            return idle.pop()
        buffer = Buffer(self.device.allocate(max(1, nbytes), pinned=pinned), kind)
        if not pinned:
            self.count(buffer.memory.nbytes)
        return buffer

    def let_go(self, buffer: Buffer) -> None:
        """Take a buffer back, although work on it may still be queued: who takes it next waits for that."""
        self._idle.setdefault(buffer.kind, []).append(buffer)

    def lend(self, holder: Any, buffer: Buffer) -> None:
        """The buffer is ``holder``'s until that object is gone."""
        weakref.finalize(holder, self.let_go, buffer).atexit = False

    def trim(self) -> None:
        """Free what nobody holds, once nothing uses it any more."""
        for (_, _, pinned), idle in self._idle.items():
            while idle:
                buffer = idle.pop()
                for event in buffer.events:
                    self.device.synchronize(event)
                self.device.free(buffer.memory)
                if not pinned:
                    self.count(-buffer.memory.nbytes)

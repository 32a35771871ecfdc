"""A GPU that runs on the CPU, late and in any order that streams and events allow; and engines for it.

Work is queued and runs only when the host waits for an event, streams taking turns by chance. Every access is also
compared with those before it: two of which one writes, on streams that no event orders, are an error even where they
happened to run in the right order. New memory holds NaN, and reading what nothing wrote is an error.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livemoments.manifest import Graph
from livemoments.ort import open_session, session_options
from livemoments.tensorrt.device import Memory
from livemoments.tensorrt.program import Port
from livemoments.types import Size

Clock = dict[int, int]
HOST = 0


class RaceError(AssertionError):
    """Two accesses of which one writes, and no event says which comes first; or a read of what was never written."""


@dataclass
class Work:
    """A piece of queued work; ``after`` is what it waits for: a place in each stream's queue."""

    run: Callable[[], None]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    after: Clock = field(default_factory=dict)


@dataclass
class StandInEvent:
    clock: Clock


class StandInGpu:
    """See this module's text, and :class:`livemoments.tensorrt.device.Device`.

    Attributes:
        memory: what is allocated, by address.
        replays, launches: of recordings, and of engines without one.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.replays = self.launches = 0
        self._chance = random.Random(seed)
        self._queues: dict[int, list[Work]] = {}
        self._done: dict[int, int] = {}
        self._clocks: dict[int, Clock] = {HOST: {}}
        self._writers: dict[int, tuple[int, int]] = {}
        self._readers: dict[int, list[tuple[int, int]]] = {}
        self._recorded: list[Work] | None = None

    def allocate(self, nbytes: int, *, pinned: bool) -> Memory:
        array = np.full(nbytes, 0xFF, np.uint8)
        address = array.ctypes.data
        self.memory[address] = array
        self._writers.pop(address, None)
        self._readers.pop(address, None)
        return Memory(address, nbytes, array if pinned else None)

    def free(self, memory: Memory) -> None:
        self._check_done(memory.address)
        self.memory.pop(memory.address).fill(0xFF)

    def make_stream(self) -> int:
        stream = len(self._clocks)
        self._queues[stream], self._done[stream], self._clocks[stream] = [], 0, {}
        return stream

    def drop_stream(self, stream: int) -> None:
        assert self._done[stream] == len(self._queues[stream]), "a stream with work left was dropped"

    def copy(self, target: Memory, source: Memory, nbytes: int, stream: int) -> None:
        assert (target.host is None) != (source.host is None), "a copy within one kind of memory"

        def run() -> None:
            self.memory[target.address][:nbytes] = self.memory[source.address][:nbytes]

        # what the host wrote into pinned memory is not seen from here
        reads = () if source.host is not None else (source.address,)
        self.put(stream, run, reads, (target.address,))
        if source.host is not None:
            self._readers.setdefault(source.address, []).append((stream, len(self._queues[stream])))

    def mark(self, stream: int) -> StandInEvent:
        assert self._recorded is None
        return StandInEvent({**self._clocks[stream], stream: len(self._queues[stream])})

    def wait(self, stream: int, event: StandInEvent) -> None:
        _join(self._clocks[stream], event.clock)

    def synchronize(self, event: StandInEvent) -> None:
        while any(self._done[stream] < count for stream, count in event.clock.items() if stream != HOST):
            self._run_one()
        _join(self._clocks[HOST], event.clock)

    def record(self, stream: int, queue: Callable[[], None]) -> list[Work]:
        assert self._recorded is None
        self._recorded = []
        try:
            queue()
            return self._recorded
        finally:
            self._recorded = None

    def replay(self, recording: list[Work], stream: int) -> None:
        assert recording, "nothing was recorded"
        self.replays += 1
        for work in recording:
            self.put(stream, work.run, work.reads, work.writes)

    def drop_recording(self, recording: list[Work]) -> None:
        recording.clear()

    def launch(self, stream: int, run: Callable[[], None], reads: Sequence[int], writes: Sequence[int]) -> None:
        """What an engine's library does."""
        if self._recorded is not None:
            self._recorded.append(Work(run, tuple(reads), tuple(writes)))
            return
        self.launches += 1
        self.put(stream, run, reads, writes)

    @property
    def is_recording(self) -> bool:
        return self._recorded is not None

    def put(self, stream: int, run: Callable[[], None], reads: Sequence[int], writes: Sequence[int]) -> None:
        clock = self._clocks[stream]
        _join(clock, self._clocks[HOST])
        clock[stream] = len(self._queues[stream])
        for address in (*reads, *writes):
            assert address in self.memory, "memory that was freed, or never allocated"
        for address in reads:
            if address not in self._writers:
                raise RaceError("a read of what nothing wrote")
            self._ordered(self._writers[address], clock, "a read that no event puts after the write")
        for address in writes:
            for reader in self._readers.pop(address, []):
                self._ordered(reader, clock, "a write that no event puts after a read")
            if address in self._writers:
                self._ordered(self._writers[address], clock, "a write that no event puts after another")
        self._queues[stream].append(Work(run, tuple(reads), tuple(writes), dict(clock)))
        place = (stream, len(self._queues[stream]))
        for address in reads:
            self._readers.setdefault(address, []).append(place)
        for address in writes:
            self._writers[address] = place

    def _ordered(self, place: tuple[int, int], clock: Clock, what: str) -> None:
        stream, count = place
        if clock.get(stream, 0) < count:
            raise RaceError(what)

    def _run_one(self) -> None:
        ready = [
            stream
            for stream, queue in self._queues.items()
            if self._done[stream] < len(queue)
            and all(self._done[other] >= n for other, n in queue[self._done[stream]].after.items() if other != HOST)
        ]
        assert ready, "streams that wait for each other"
        stream = self._chance.choice(ready)
        self._queues[stream][self._done[stream]].run()
        self._done[stream] += 1

    def _check_done(self, address: int) -> None:
        for stream, queue in self._queues.items():
            for work in queue[self._done[stream] :]:
                assert address not in (*work.reads, *work.writes), "memory was freed that queued work uses"


def _join(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


class StandInProgram:
    """A graph run by onnxruntime, as an engine of fixed shapes whose tensors lie where they are bound."""

    def __init__(self, gpu: StandInGpu, folder: Path, graph: Graph, size: Size, batch: int) -> None:
        axes = {"batch": batch, "height": size.height, "width": size.width}
        self.ports = {
            spec.name: Port(
                spec in graph.inputs,
                tuple(axes.get(axis, axis) for axis in spec.shape),
                spec.dtype,  # type: ignore[arg-type, misc]
            )
            for spec in (*graph.inputs, *graph.outputs)
        }
        self.nbytes = 1000
        self.stage = ""
        self.binds = 0
        self._gpu = gpu
        self._session = open_session(folder / graph.path, session_options(1))
        self._addresses: dict[str, int] = {}
        self._ran_at: set[tuple[int, ...]] = set()
        self.is_closed = False

    def bind(self, name: str, address: int) -> None:
        assert name in self.ports
        self._addresses[name] = address
        self.binds += 1

    def enqueue(self, stream: int) -> None:
        assert not self.is_closed
        assert self._addresses.keys() == self.ports.keys(), "a tensor has no address"
        at = tuple(self._addresses.values())
        assert at in self._ran_at or not self._gpu.is_recording, "a first run cannot be recorded"
        self._ran_at.add(at)
        bound = dict(self._addresses)
        inputs = [name for name, port in self.ports.items() if port.is_input]
        outputs = [name for name, port in self.ports.items() if not port.is_input]

        def view(name: str) -> np.ndarray:
            port = self.ports[name]
            return self._gpu.memory[bound[name]][: port.nbytes].view(port.dtype).reshape(port.shape)

        def run() -> None:
            for name, array in zip(outputs, self._session.run(outputs, {n: view(n) for n in inputs}), strict=True):
                view(name)[...] = array

        self._gpu.launch(stream, run, [bound[n] for n in inputs], [bound[n] for n in outputs])

    def close(self) -> None:
        self.is_closed = True

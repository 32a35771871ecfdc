"""One stage's engine on a GPU: buffers bound once, inputs copied on a stream of their own, a recorded graph a run.

A run whose outputs all stay on the device is only queued, and the host goes on; one with outputs for the host waits for
these. Inputs from the host have two buffers each, so that the next run's copies do not wait for this run's kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from livemoments.errors import EngineError
from livemoments.runtime.backends.base import BATCH_AXIS, Array, DeviceArray, Engine, batch_axis, to_host
from livemoments.tensorrt.device import Device, Event, Recording, Stream
from livemoments.tensorrt.ordering import Buffer, Memories, queue
from livemoments.tensorrt.program import Port, Program
from livemoments.types import Stage, TensorSpec

MOST_RECORDINGS = 8
"""Recorded runs of an engine; for further addresses its kernels are launched one by one."""
_SLOTS = 2


class GpuArray(DeviceArray):
    """A tensor on the GPU, perhaps not computed yet; its buffer is used again when nobody refers to it any more.

    Args:
        buffer: holds it, and tiles beyond it where a batch was not full.
        port: the engine's tensor.
        shape: of what is valid in it.
        axis: of the tiles; ``None``: there is none.
        memories: where buffers come from.
        stream: for copies to the host.
    """

    def __init__(
        self, buffer: Buffer, port: Port, shape: tuple[int, ...], axis: int | None, memories: Memories, stream: Stream
    ) -> None:
        self.buffer = buffer
        self.port = port
        self._shape = shape
        self._axis = axis
        self._memories = memories
        self._stream = stream
        memories.lend(self, buffer)

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`DeviceArray`."""
        return self._shape

    @property
    def dtype(self) -> np.dtype:
        """See :class:`DeviceArray`."""
        return np.dtype(self.port.dtype)

    @property
    def nbytes(self) -> int:
        """See :class:`DeviceArray`."""
        return self.port.nbytes

    def numpy(self) -> np.ndarray:
        """A copy on the host, once it is computed."""
        whole = download(self._memories, self.buffer, self.port, self._stream)
        return whole if self._axis is None else whole.take(range(self._shape[self._axis]), axis=self._axis)


def download(memories: Memories, source: Buffer, port: Port, stream: Stream) -> np.ndarray:
    """A tensor copied to the host, through pinned memory."""
    device, staging = memories.device, memories.take(port.nbytes, pinned=True)
    try:
        done = queue(
            device,
            stream,
            lambda: device.copy(staging.memory, source.memory, port.nbytes, stream),
            reads=[source],
            writes=[staging],
        )
        device.synchronize(done)
        assert staging.memory.host is not None
        return staging.memory.host[: port.nbytes].view(port.dtype).reshape(port.shape).copy()
    finally:
        memories.let_go(staging)


class TensorRtEngine(Engine):
    """See this module's text.

    Args:
        stage: the stage.
        inputs: from the manifest.
        outputs: from the manifest.
        program: the engine; closed with this object.
        memories: the device, and where buffers come from.
        batch: tiles that the engine computes at once; a run of fewer repeats its last one.
        copies: the stream that inputs are copied on.

    Raises:
        EngineError: the engine's tensors are not the manifest's.
    """

    def __init__(
        self,
        stage: Stage,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        program: Program,
        memories: Memories,
        *,
        batch: int,
        copies: Stream,
    ) -> None:
        super().__init__(stage, inputs, outputs)
        _check_ports(stage, inputs, outputs, program.ports, batch)
        self._program = program
        self._memories = memories
        self._device: Device = memories.device
        self._batch = batch
        self._copies = copies
        self._stream = self._device.make_stream()
        self._slots: dict[tuple[str, int], tuple[Buffer, Buffer]] = {}  # pinned, on the device
        self._results: dict[str, Buffer] = {}
        self._runs = 0
        self._bound: dict[str, int] = {}
        self._recordings: dict[tuple[int, ...], Recording | None] = {}
        self._last: Event | None = None
        memories.count(program.nbytes)

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        tiles = self._tiles(inputs)
        if tiles > self._batch:
            raise EngineError(
                f"stage '{self.stage}': {tiles} tiles for an engine of {self._batch}", fix=f"pass --batch {self._batch}"
            )
        self._runs += 1
        given = {spec.name: self._given(spec, inputs[spec.name]) for spec in self.inputs}
        made = {spec.name: self._target(spec.name, spec.name in keep) for spec in self.outputs}
        kept: dict[str, Array] = {}
        for spec in self.outputs:
            if spec.name in keep:  # from now on, so that a run that fails gives them back
                shape = self._shape(spec, tiles)
                axis = batch_axis(spec) if BATCH_AXIS in spec.shape else None
                port = self._program.ports[spec.name]
                kept[spec.name] = GpuArray(made[spec.name], port, shape, axis, self._memories, self._copies)
        self._launch(given, made)
        return {spec.name: kept[spec.name] if spec.name in keep else self._host(spec, tiles) for spec in self.outputs}

    def _given(self, spec: TensorSpec, array: Array) -> Buffer:
        """The buffer with an input in it, or with the copy of it queued."""
        port = self._program.ports[spec.name]
        if isinstance(array, GpuArray) and array.port == port:
            return array.buffer
        key = spec.name, self._runs % _SLOTS
        if key not in self._slots:
            pinned = self._memories.take(port.nbytes, pinned=True)
            self._slots[key] = pinned, self._memories.take(port.nbytes)
        pinned, target = self._slots[key]
        for event in pinned.events:  # its last copy is under way
            self._device.synchronize(event)
        assert pinned.memory.host is not None
        values = pinned.memory.host[: port.nbytes].view(port.dtype).reshape(port.shape)
        values[...] = _filled_up(to_host(array), spec, self._batch)
        queue(
            self._device,
            self._copies,
            lambda: self._device.copy(target.memory, pinned.memory, port.nbytes, self._copies),
            reads=[pinned],
            writes=[target],
        )
        return target

    def _target(self, name: str, is_kept: bool) -> Buffer:
        nbytes = self._program.ports[name].nbytes
        if is_kept:
            return self._memories.take(nbytes, label=f"{self.stage}.{name}")
        if name not in self._results:
            self._results[name] = self._memories.take(nbytes)
        return self._results[name]

    def _launch(self, given: Mapping[str, Buffer], made: Mapping[str, Buffer]) -> None:
        tensors = {**given, **made}
        addresses = tuple(buffer.memory.address for buffer in tensors.values())
        recording = self._recordings.get(addresses)
        if recording is None:
            for name, buffer in tensors.items():
                if self._bound.get(name) != buffer.memory.address:
                    self._program.bind(name, buffer.memory.address)
                    self._bound[name] = buffer.memory.address
            if addresses in self._recordings:  # the second run: the first did what cannot be recorded
                recording = self._device.record(self._stream, lambda: self._program.enqueue(self._stream))
                self._recordings[addresses] = recording
            elif len(self._recordings) < MOST_RECORDINGS:
                self._recordings[addresses] = None

        def work() -> None:
            if recording is None:
                self._program.enqueue(self._stream)
            else:
                self._device.replay(recording, self._stream)

        self._last = queue(self._device, self._stream, work, reads=list(given.values()), writes=list(made.values()))

    def _host(self, spec: TensorSpec, tiles: int) -> np.ndarray:
        whole = download(self._memories, self._results[spec.name], self._program.ports[spec.name], self._stream)
        return whole.take(range(tiles), axis=batch_axis(spec)) if BATCH_AXIS in spec.shape else whole

    def _tiles(self, inputs: Mapping[str, Array]) -> int:
        batched = next(spec for spec in self.inputs if BATCH_AXIS in spec.shape)
        return inputs[batched.name].shape[batch_axis(batched)]

    def _shape(self, spec: TensorSpec, tiles: int) -> tuple[int, ...]:
        shape = list(self._program.ports[spec.name].shape)
        if BATCH_AXIS in spec.shape:
            shape[batch_axis(spec)] = tiles
        return tuple(shape)

    def close(self) -> None:
        """Wait for what is queued, then free the engine and its buffers; arrays that somebody keeps stay."""
        if self._closed:
            return
        super().close()
        if self._last is not None:
            self._device.synchronize(self._last)
        for recording in self._recordings.values():
            if recording is not None:
                self._device.drop_recording(recording)
        for buffer in (*self._results.values(), *(buffer for pair in self._slots.values() for buffer in pair)):
            self._memories.let_go(buffer)
        self._program.close()
        self._device.drop_stream(self._stream)
        self._memories.count(-self._program.nbytes)
        self._memories.trim()


def _filled_up(array: np.ndarray, spec: TensorSpec, batch: int) -> np.ndarray:
    """A batch of the engine's size, by repeating the last tile."""
    if BATCH_AXIS not in spec.shape:
        return array
    axis = batch_axis(spec)
    tiles = array.shape[axis]
    return array if tiles == batch else array.take([min(tile, tiles - 1) for tile in range(batch)], axis=axis)


def _check_ports(
    stage: Stage,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    ports: Mapping[str, Port],
    batch: int,
) -> None:
    wanted = {spec.name: (spec, True) for spec in inputs} | {spec.name: (spec, False) for spec in outputs}
    if unlike := sorted(wanted.keys() ^ ports.keys()):
        raise EngineError(
            f"stage '{stage}': the engine and the manifest do not agree on the tensor '{unlike[0]}'",
            fix="build the engine again (--rebuild)",
        )
    for name, (spec, is_input) in wanted.items():
        port = ports[name]
        shape = tuple(batch if axis == BATCH_AXIS else axis for axis in spec.shape)
        fits = len(shape) == len(port.shape) and all(
            isinstance(axis, str) or axis == length for axis, length in zip(shape, port.shape, strict=True)
        )
        if not fits or port.dtype != spec.dtype or port.is_input != is_input:
            raise EngineError(
                f"stage '{stage}', tensor '{name}': the manifest says {spec.dtype} {shape}, "
                f"the engine has {port.dtype} {port.shape}",
                fix="build the engine again (--rebuild)",
            )

"""What an inference engine is: one loaded graph behind :class:`Engine`, opened by a :class:`Backend`.

The public methods check (names, dtypes, shapes, finiteness); a backend only implements the private ones.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import TypeAlias

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import EngineError
from livemoments.types import Size, Stage, TensorSpec

BATCH_AXIS = "batch"
"""The name that manifests give to the axis of tiles."""

_CHUNK_ELEMENTS = 1 << 22  # float16 bits are tested in pieces of 8 MiB, so that the mask stays small


class DeviceArray(abc.ABC):
    """A tensor that stays where its engine computed it; opaque except for its shape, dtype and size."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Element type, as numpy names it."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Size in bytes."""

    @abc.abstractmethod
    def numpy(self) -> np.ndarray:
        """A copy in host memory."""


Array: TypeAlias = np.ndarray | DeviceArray


def to_host(array: Array) -> np.ndarray:
    """The array in host memory; numpy arrays pass through."""
    return array.numpy() if isinstance(array, DeviceArray) else array


class Engine(abc.ABC):
    """One loaded graph.

    Args:
        stage: the stage, for messages.
        inputs: specs of the graph's inputs, from the manifest.
        outputs: specs of its outputs.

    Attributes:
        remarks: what the user should know of how it runs, a line each.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, stage: Stage, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.stage = stage
        self.inputs = inputs
        self.outputs = outputs
        self._closed = False

    def cast(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs in the dtypes that the graph wants; names it does not know pass through, for :meth:`run` to name.

        numpy arrays are made contiguous. A device array of another dtype comes to the host.
        """
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.inputs}
        return {name: _cast(array, dtypes.get(name, array.dtype)) for name, array in inputs.items()}

    def run(self, inputs: Mapping[str, Array], *, keep: Collection[str] = ()) -> dict[str, Array]:
        """Run the graph once.

        Args:
            inputs: one array for every input, in the spec's dtype (:meth:`cast` converts).
            keep: outputs that stay on the device, as :class:`DeviceArray`; the others come as numpy arrays.

        Raises:
            EngineError: the engine is closed; a name, dtype or shape does not fit; an output that comes to the
                host has a wrong shape or is not finite; the run failed.
            ResourceError: memory ran out.
        """
        if self._closed:
            raise EngineError(f"stage '{self.stage}': the engine is closed")
        self._check_inputs(inputs)
        known = {spec.name for spec in self.outputs}
        if unknown := sorted(set(keep) - known):
            raise EngineError(f"stage '{self.stage}': there is no output {_quoted(unknown)}; it has {_quoted(known)}")
        results = self._run(inputs, frozenset(keep))
        for spec in self.outputs:
            check_output(self.stage, spec, results[spec.name])
        return results

    @abc.abstractmethod
    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        """Compute every output; the inputs are checked already."""

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        self._closed = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_inputs(self, inputs: Mapping[str, Array]) -> None:
        wanted = {spec.name for spec in self.inputs}
        if missing := sorted(wanted - set(inputs)):
            raise EngineError(f"stage '{self.stage}': no value for input {_quoted(missing)}")
        if unknown := sorted(set(inputs) - wanted):
            raise EngineError(f"stage '{self.stage}': there is no input {_quoted(unknown)}; it has {_quoted(wanted)}")
        axes: dict[str, tuple[str, int]] = {}
        for spec in self.inputs:
            array = inputs[spec.name]
            what = f"stage '{self.stage}', input '{spec.name}'"
            if array.dtype != np.dtype(spec.dtype):
                raise EngineError(f"{what}: expected dtype {spec.dtype}, got {array.dtype}")
            if not spec.accepts(tuple(array.shape)):
                raise EngineError(f"{what}: expected shape {_shape(spec.shape)}, got {_shape(array.shape)}")
            for axis, length in zip(spec.shape, array.shape, strict=True):
                if isinstance(axis, str) and axes.setdefault(axis, (spec.name, length))[1] != length:
                    other, expected = axes[axis]
                    raise EngineError(f"{what}: axis '{axis}' is {length} here but {expected} in '{other}'")


class Backend(abc.ABC):
    """Opens a bundle's graphs on one kind of hardware. ``name`` is the library, ``provider`` the hardware."""

    name: str
    provider: str

    queues_ahead: bool = False
    """Runs whose outputs are kept are only queued: what can be started early overlaps with what runs."""

    @property
    def peak_device_bytes(self) -> int | None:
        """The most device memory that its engines took so far; ``None``: it does not count."""
        return None

    @abc.abstractmethod
    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """Load the stage's graph for tiles of this size.

        Raises:
            BundleError: the bundle has no such graph.
            EngineError: it does not load.
            ResourceError: memory ran out.
        """


def check_output(stage: Stage, spec: TensorSpec, array: Array) -> None:
    """Refuse an output whose shape is not the spec's, or that came to the host with NaN or infinity in it.

    Arrays kept on the device are not looked into: what is wrong there shows in the next output that is.

    Raises:
        EngineError: naming the stage and the tensor.
    """
    if not spec.accepts(tuple(array.shape)):
        raise EngineError(
            f"stage '{stage}', output '{spec.name}': the manifest says {_shape(spec.shape)}, "
            f"the engine gave {_shape(array.shape)}",
            fix="export the bundle again",
        )
    if isinstance(array, np.ndarray) and not _is_finite(array):
        half = spec.dtype == "float16"
        raise EngineError(
            f"stage '{stage}', output '{spec.name}': NaN or infinity"
            + (" (the float16 engine overflowed)" if half else ""),
            fix="export with --precision fp32" if half else "check the checkpoint's weights and the input images",
        )


def batch_axis(spec: TensorSpec) -> int:
    """Which axis counts the tiles.

    Raises:
        EngineError: the spec names no batch axis.
    """
    if BATCH_AXIS not in spec.shape:
        raise EngineError(
            f"tensor '{spec.name}' has no axis named '{BATCH_AXIS}' in the manifest: {_shape(spec.shape)}"
        )
    return spec.shape.index(BATCH_AXIS)


def _cast(array: Array, dtype: np.dtype) -> Array:
    if isinstance(array, DeviceArray):
        if array.dtype == dtype:
            return array
        array = array.numpy()
    # require keeps zero axes; ascontiguousarray would turn the scalar step into shape (1,)
    return np.require(array, dtype=dtype, requirements="C")


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype == np.float16:  # numpy's float16 minimum is slow; the exponent's bits are not
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint16)
        pieces = range(0, bits.size, _CHUNK_ELEMENTS)
        return all(int((bits[i : i + _CHUNK_ELEMENTS] & 0x7FFF).max()) < 0x7C00 for i in pieces)
    if array.dtype.kind != "f" or not array.size:
        return True
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))  # both propagate NaN


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(axis) for axis in shape) + ")"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))

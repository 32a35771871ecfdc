"""Tensors of one session that stay at their addresses from run to run, as CUDA graphs ask of every input and output.

A graph is recorded for one set of addresses. Inputs that come from the host and outputs that go there have one buffer
each; an output that stays on the device has as many as are held at once, and takes the one that was let go last: keys
and values that are dropped before the next ones are computed always lie at the same place.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from livemoments.ort import import_onnxruntime
from livemoments.types import TensorSpec

MOST_GRAPHS = 8
"""Recorded runs of a session: for other addresses or shapes kernels are launched one by one."""
_NO_GRAPH = -1
_Key = tuple[str, tuple[int, ...]]


class DeviceBuffers:
    """The buffers of one session.

    Args:
        device: onnxruntime's name of it.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._own: dict[_Key, Any] = {}
        self._free: dict[_Key, list[Any]] = {}
        self._graphs: dict[tuple[int, ...], int] = {}

    def given(self, name: str, array: np.ndarray) -> Any:
        """The input's buffer (an ``OrtValue``) with a host array copied into it."""
        value = self._own_value(name, array.shape, array.dtype)
        value.update_inplace(array)
        return value

    def returned(self, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
        """The buffer of an output that goes to the host after the run, before the next."""
        return self._own_value(spec.name, shape, np.dtype(spec.dtype))

    def kept(self, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
        """A buffer that nobody holds, for an output that stays; :meth:`lend` gives it to somebody."""
        free = self._free.setdefault((spec.name, shape), [])
        return free.pop() if free else self._make(shape, np.dtype(spec.dtype))

    def lend(self, holder: Any, spec: TensorSpec, shape: tuple[int, ...], value: Any) -> None:
        """The buffer is ``holder``'s until that object is gone."""
        weakref.finalize(holder, self._free.setdefault((spec.name, shape), []).append, value).atexit = False

    def graph_of(self, values: list[Any]) -> int:
        """onnxruntime's ``gpu_graph_id`` of a run with these inputs and outputs: -1 where none is to be recorded."""
        key = tuple(value.data_ptr() for value in values)
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                return _NO_GRAPH
            self._graphs[key] = len(self._graphs)
        return self._graphs[key]

    def _own_value(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        if (name, shape) not in self._own:
            self._own[name, shape] = self._make(shape, dtype)
        return self._own[name, shape]

    def _make(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, self._device)


def output_shapes(
    outputs: tuple[TensorSpec, ...], inputs: tuple[TensorSpec, ...], given: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]] | None:
    """The outputs' shapes for inputs of given shapes; ``None`` if a free axis of an output is none of the inputs'."""
    axes = {
        axis: length
        for spec in inputs
        for axis, length in zip(spec.shape, given[spec.name], strict=True)
        if isinstance(axis, str)
    }
    shapes = {}
    for spec in outputs:
        if any(isinstance(axis, str) and axis not in axes for axis in spec.shape):
            return None
        shapes[spec.name] = tuple(axes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
    return shapes

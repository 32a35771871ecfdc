"""Engines whose keys and values are floats, whatever passes between the networks: for comparing bundles whose keys and
values are int8 with those whose are not.

The scales, one per channel, are constants of the graphs; restoring never needs them, since both networks hold the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, MissingExtraError
from livemoments.runtime.backends.base import Array, Backend, Engine, to_host
from livemoments.types import Size, Stage, TensorSpec, is_keys_values

_INT8_MAX = 127


class FloatKeysValues(Backend):
    """Opens engines of another back-end; int8 keys and values are float32 outside of them.

    Args:
        backend: opens them.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.provider = backend.name, backend.provider

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """See :meth:`Backend.open`."""
        engine = self._backend.open(bundle, stage, size)
        if not any(_is_narrow(spec) for spec in (*engine.inputs, *engine.outputs)):
            return engine
        return _FloatEngine(engine, keys_values_scales(bundle, stage, size))


class _FloatEngine(Engine):
    def __init__(self, engine: Engine, scales: Mapping[str, np.ndarray]) -> None:
        inputs, outputs = (tuple(map(_widened, specs)) for specs in (engine.inputs, engine.outputs))
        super().__init__(engine.stage, inputs, outputs)
        self._engine = engine
        self._scales = scales

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        narrow = {name: self._narrow(name, array) for name, array in inputs.items()}
        outputs = self._engine.run(narrow, keep=keep - set(self._scales))
        return {name: self._wide(name, array) for name, array in outputs.items()}

    def _narrow(self, name: str, array: Array) -> Array:
        if name not in self._scales:
            return array
        codes = np.rint(to_host(array) / self._scales[name])
        return np.clip(codes, -_INT8_MAX - 1, _INT8_MAX).astype(np.int8)

    def _wide(self, name: str, array: Array) -> Array:
        return to_host(array) * self._scales[name] if name in self._scales else array

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        super().close()
        self._engine.close()


def keys_values_scales(bundle: Bundle, stage: Stage, size: Size) -> dict[str, np.ndarray]:
    """The scale of every channel of a stage's int8 keys and values, (D,) float32 by the tensor's name.

    Raises:
        EngineError: the graph does not quantize what the manifest calls int8.
        MissingExtraError: the extra ``export`` is not installed.
    """
    try:
        import onnx_ir as ir

        from livemoments.graphs.operands import find_keys_values
        from livemoments.graphs.tensors import read_tensor
    except ImportError as error:
        raise MissingExtraError("comparing int8 keys and values", "export", missing=error.name) from None
    graph = bundle.graph(stage, size)
    path = bundle.path / graph.path
    found = {}
    for each in find_keys_values(ir.load(path), str(stage)):
        nodes = [each.tokens.producer(), *(usage.node for usage in each.tokens.uses())]
        for node in nodes:
            if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.inputs[1] is None:
                continue
            tensor = ir.convenience.get_const_tensor(node.inputs[1])
            if tensor is not None:
                found[each.id.weight] = read_tensor(tensor).astype(np.float32)
    if missing := [s.name for s in (*graph.inputs, *graph.outputs) if _is_narrow(s) and s.name not in found]:
        raise EngineError(f"{path}: '{missing[0]}' has no constant scale", fix="quantize the bundle again")
    return found


def _is_narrow(spec: TensorSpec) -> bool:
    return spec.dtype == "int8" and is_keys_values(spec.name)


def _widened(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, "float32", spec.shape) if _is_narrow(spec) else spec

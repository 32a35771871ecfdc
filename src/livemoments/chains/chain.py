"""A graph as a chain of smaller graphs, and an engine that runs it; the weights stay in the bundle's file.

Of the optional packages it takes onnx alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from livemoments.chains.blocks import Wires, block_cuts, places
from livemoments.errors import EngineError
from livemoments.heap import give_back_freed
from livemoments.runtime.backends.base import Array, Engine, to_host
from livemoments.runtime.backends.ort import _translated
from livemoments.types import Stage, TensorSpec

if TYPE_CHECKING:
    from livemoments.graphs.segments import Tap


@dataclass(frozen=True, slots=True)
class Segment:
    """A graph of the chain.

    Attributes:
        model: serialized; external data is named relative to the bundle's stage folder.
        inputs: values it takes, from the stage's inputs or from segments before it.
        outputs: values that later segments or the caller need.
        taps: activations it returns besides.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[Tap, ...] = ()


def wires_of(nodes: Iterable[onnx.NodeProto]) -> list[Wires]:
    """What :mod:`livemoments.chains.blocks` needs of a written graph's nodes."""
    return [(node.op_type, node.input, node.output) for node in nodes]


def given_to(graph: onnx.GraphProto) -> set[str]:
    """Names of a graph's inputs and weights."""
    return {value.name for value in (*graph.input, *graph.initializer)}


def cut_at_blocks(path: Path) -> list[Segment]:
    """One segment a transformer block of the graph at ``path``, whose weights are not read.

    Raises:
        EngineError: a value that crosses a cut has no known type.
    """
    proto = onnx.load(path, load_external_data=False)
    nodes = wires_of(proto.graph.node)
    place = places(nodes, given_to(proto.graph), block_cuts(nodes), sums_to_readers=True)
    return [segment(proto, place, number) for number in range(max(place, default=0) + 1)]


def segment(proto: onnx.ModelProto, place: Sequence[int], number: int, taps: Sequence[Tap] = ()) -> Segment:
    """The part ``number`` of a graph whose nodes go to the parts ``place``.

    Raises:
        EngineError: a value that crosses a cut has no known type.
    """
    graph = proto.graph
    nodes = [node for node, where in zip(graph.node, place, strict=True) if where == number]
    made = {name for node in nodes for name in node.output if name}
    read = {name for node in nodes for name in node.input if name}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    stored = {tensor.name for tensor in graph.initializer}
    later = {n for node, where in zip(graph.node, place, strict=True) if where > number for n in node.input}
    wanted = later | {value.name for value in graph.output}
    inputs = [name for name in _ordered(nodes) if name in read - made - stored]
    outputs = [name for node in nodes for name in node.output if name in wanted]
    mine = tuple(tap for tap in taps if tap.value in made)
    known = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    returned = dict.fromkeys([*outputs, *(tap.value for tap in mine)])
    part = onnx.GraphProto(name=f"{graph.name}.{number}", node=nodes, initializer=weights)
    part.input.extend(_typed(known, name) for name in inputs)
    part.output.extend(_typed(known, name) for name in returned)
    part.value_info.extend(known[name] for name in sorted(made - set(returned)) if name in known)
    model = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=part)
    return Segment(model.SerializeToString(), tuple(inputs), tuple(outputs), mine)


class ChainEngine(Engine):
    """Runs the segments one after the other; a value is let go of behind its last reader.

    Args:
        stage: the stage, for messages.
        segments: the chain.
        inputs: specs of the whole graph's inputs.
        outputs: and of its outputs.
        path: the graph's file.
        open_segment: loads one segment.
        resident: sessions stay open from run to run; otherwise each is closed before the next one is opened.
    """

    def __init__(
        self,
        stage: Stage,
        segments: Sequence[Segment],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        path: Path,
        open_segment: Callable[[Segment], Any],
        resident: bool,
    ) -> None:
        super().__init__(stage, inputs, outputs)
        self._segments = segments
        self._path = path
        self._open_segment = open_segment
        self._resident = resident
        self._sessions: dict[int, Any] = {}
        self._last_reader = {name: number for number, part in enumerate(segments) for name in part.inputs}

    def _run(self, inputs: Mapping[str, Array], keep: Collection[str]) -> dict[str, Array]:
        values = {name: to_host(array) for name, array in inputs.items()}
        results: dict[str, Array] = {}
        wanted = {spec.name for spec in self.outputs}
        for number, part in enumerate(self._segments):
            outputs = self._run_segment(number, part, values)
            self._look(part, outputs, inputs)
            results |= {name: outputs[name] for name in part.outputs if name in wanted}
            values |= {name: outputs[name] for name in part.outputs}
            del outputs
            values = {name: array for name, array in values.items() if self._last_reader.get(name, -1) > number}
        return results

    def _look(self, part: Segment, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, Array]) -> None:
        """Called with all that a segment returned."""

    def _run_segment(self, number: int, part: Segment, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(dict.fromkeys([*part.outputs, *(tap.value for tap in part.taps)]))
        session = self._sessions.get(number) or self._open_segment(part)
        if self._resident:
            self._sessions[number] = session
        try:
            arrays = session.run(names, {name: values[name] for name in part.inputs})
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise _translated(error, f"stage '{self.stage}' failed in {self._path.name}") from error
        if not self._resident:
            del session
            give_back_freed()
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        super().close()
        self._sessions.clear()


def _ordered(nodes: Iterable[onnx.NodeProto]) -> dict[str, None]:
    return dict.fromkeys(name for node in nodes for name in node.input)


def _typed(known: Mapping[str, onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    if name not in known or not known[name].type.tensor_type.elem_type:
        raise EngineError(f"the graph does not say the type of '{name}'", fix="export the bundle again")
    return known[name]

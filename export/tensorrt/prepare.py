"""A bundle's graph as the libraries take it: standard operators, fixed shapes; the weights stay where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from livemoments.errors import EngineError, UsageError
from livemoments.export.passes.freeze_axes import freeze_axes
from livemoments.export.passes.standard_attention import standard_attention
from livemoments.types import Size


@dataclass(frozen=True, slots=True)
class PreparedGraph:
    """A graph in memory, and its weights' size.

    Attributes:
        model: its external weights refer to the folder of ``path``.
        path: of the graph in the bundle.
        weight_bytes: of all initializers.
    """

    model: ir.Model
    path: Path
    weight_bytes: int

    def serialize(self) -> bytes:
        """As a parser takes it, together with ``path``."""
        return ir.to_proto(self.model).SerializeToString()


def prepare(path: Path, size: Size, batch: int) -> PreparedGraph:
    """Read a graph and make it one for a library's parser.

    Args:
        path: the graph.
        size: length of the free axes ``height`` and ``width``, pixels.
        batch: length of the free axis ``batch``.

    Raises:
        EngineError: it cannot be read, or an axis is left free that has another name.
        UsageError: it is of an opset without the standard Attention.
    """
    try:
        model = ir.load(path)
        standard_attention(model)
    except ValueError as error:
        raise UsageError(f"{path}: {error}", fix="export the bundle again") from None
    except Exception as error:  # protobuf's own, which share no base
        raise EngineError(f"{path}: not a graph that can be read ({error})", fix="export the bundle again") from None
    freeze_axes(model, {"batch": batch, "height": size.height, "width": size.width})
    for value in (*model.graph.inputs, *model.graph.outputs):
        free = [str(axis) for axis in value.shape or () if not isinstance(axis, int)]
        if value.shape is None or free:
            what = f"a free axis {', '.join(free)}" if free else "no shape"
            raise EngineError(
                f"{path}: '{value.name}' has {what}; engines here have fixed shapes", fix="export the bundle again"
            )
    weights = (value.const_value for value in model.graph.initializers.values())
    return PreparedGraph(model, path, sum(tensor.nbytes for tensor in weights if tensor is not None))

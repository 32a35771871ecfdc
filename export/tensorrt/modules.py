"""From a graph's node back to the PyTorch module that it was traced from."""

from __future__ import annotations

import re

import onnx_ir as ir

from livemoments.export.passes.name_modules import MODULE

_NO_MODULE = ""
_TENSOR = re.compile(r"\.(?:weight|bias|input|output)(?:\.|$)")
"""Where a tensor's name leaves its module's: ``to_k.weight``, and what recipes add, ``to_k.input.scale``."""


class ModuleNames:
    """The modules behind a graph's nodes.

    Nodes that a pass or a recipe added carry no note of their own; theirs is told by their name, which begins with the
    module's, or by the node that they feed.

    Args:
        model: a graph of a bundle.
    """

    def __init__(self, model: ir.Model) -> None:
        self._nodes = {node.name: node for node in model.graph.all_nodes() if node.name}
        modules = {node.metadata_props.get(MODULE, _NO_MODULE) for node in self._nodes.values()}
        weights = (_module_of_weight(name) for name in model.graph.initializers)
        self._known = sorted((modules | set(weights)) - {_NO_MODULE}, key=len, reverse=True)

    def of(self, node: ir.Node) -> str:
        """The module's name under the checkpoint's names, or the node's own where none is known."""
        if module := node.metadata_props.get(MODULE):
            return module
        name = node.name or ""
        for module in self._known:
            if name.startswith(f"{module}."):
                return module
        for value in node.inputs:
            if value is not None and value.is_initializer() and "." in (value.name or ""):
                return _module_of_weight(value.name or "")
        for user in (use.node for output in node.outputs for use in output.uses()):
            if module := user.metadata_props.get(MODULE):
                return module
        return name or node.op_type

    def of_name(self, name: str) -> str:
        """The same by a node's name, as a parser reports it."""
        node = self._nodes.get(name)
        return name if node is None else self.of(node)


def _module_of_weight(name: str) -> str:
    found = _TENSOR.search(name)
    return name[: found.start()] if found else name.rpartition(".")[0]

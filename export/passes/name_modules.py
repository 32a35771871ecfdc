"""Keep, of what the tracer says of each node, the module that it comes from, under the checkpoint's name.

The tracer's own notes hold stack traces with this machine's paths; engines that refuse an operation need no more than
the module's name to say where it is (``livemoments check``).

Requires: nodes as ``torch.onnx.export`` leaves them.
Ensures: a traced node's only note is ``module``, e.g. ``transformer_blocks.3.attn.to_q``; nodes that the optimizer made
have none, and no documentation is left.
"""

from __future__ import annotations

import ast

import onnx_ir as ir
import onnx_ir.passes.common as common

from livemoments.export.passes.graph import count_initializers
from livemoments.export.passes.report import PassReport

NAME = "name_modules"
MODULE = "module"
_SCOPES = "pkg.torch.onnx.name_scopes"
"""The path of modules from the root, and last the operation, as a Python list."""
_WRAPPERS = ("network.", "raft.")
"""What the stages' modules put before the checkpoint's names."""


def name_modules(model: ir.Model) -> PassReport:
    """Apply the pass; ``model`` is changed in place."""
    count = count_initializers(model)
    found = {node: _module(node.metadata_props.get(_SCOPES)) for node in model.graph.all_nodes()}
    common.ClearMetadataAndDocStringPass()(model)
    for node, module in found.items():
        if module:
            node.metadata_props[MODULE] = module
    named = sum(bool(module) for module in found.values())
    return PassReport(NAME, True, count, count, f"{named} of {len(found)} nodes know their module")


def _module(scopes: str | None) -> str:
    """The innermost module of a node, without what our stages wrap around it; empty where the tracer names none."""
    if scopes is None:
        return ""
    path = ast.literal_eval(scopes)
    module = str(path[-2]) if len(path) > 1 else ""
    for wrapper in _WRAPPERS:
        module = module.removeprefix(wrapper)
    return "" if module.startswith("_") or f"{module}." in _WRAPPERS else module

"""Run a PyTorch network whose weights do not fit in memory: each layer's are read just before it runs.

What an export is compared with is the reference itself, at any size, in float32: for SD3-medium's 2 billion parameters
that would be 8 GB at once, and is the largest layer's 57 MB this way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from livemoments.export.weights import WeightSource


@contextlib.contextmanager
def streamed(root: nn.Module, weights: WeightSource) -> Iterator[None]:
    """While open, ``root`` (on the meta device) computes with float32 weights that are read layer by layer.

    Args:
        root: its state dict's names are those of ``weights``; layers are called as modules, one at a time.
        weights: the checkpoint's weights, from which the values come.
    """
    handles = []
    for prefix, module in root.named_modules():
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        if own:
            handles.append(module.register_forward_pre_hook(_fill(prefix, own, weights)))
            handles.append(module.register_forward_hook(_drop(own)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fill(prefix: str, own: list[str], weights: WeightSource) -> Any:
    def hook(module: nn.Module, _inputs: Any) -> None:
        for name in own:
            full = f"{prefix}.{name}" if prefix else name
            if full in weights:
                _assign(module, name, weights.get(full))

    return hook


def _drop(own: list[str]) -> Any:
    def hook(module: nn.Module, _inputs: Any, _output: Any) -> None:
        for name in own:
            _assign(module, name, getattr(module, name).to("meta"))

    return hook


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[name] = tensor

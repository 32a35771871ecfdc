"""Weights that are read one tensor at a time: a network's names, bound to a checkpoint or to what passes computed.

Networks are traced without weights (on torch's meta device); this is where their values come from afterwards, so the
memory an export needs is that of its largest tensor, whatever the network's size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from livemoments.errors import CheckpointError
from livemoments.reference.stored import SafetensorsFolder
from livemoments.reference.weights import check_finite

M = TypeVar("M", bound=nn.Module)

_REMAP_BYTES = 256 << 20
"""After reading this much the files are opened anew: mapped pages that were read count as the process's memory."""


class WeightSource:
    """Lazy tensors by parameter name.

    Args:
        stored: the checkpoint's tensors, a :class:`SafetensorsFolder` or a state dict.
        path: the file that the weights came from, for messages.
    """

    def __init__(self, stored: Mapping[str, Tensor], path: Path) -> None:
        self.path = path
        self._stored = stored
        shapes = (
            stored.shapes if isinstance(stored, SafetensorsFolder) else {k: tuple(v.shape) for k, v in stored.items()}
        )
        self._shapes: dict[str, tuple[int, ...]] = dict(shapes)
        self._derived: dict[str, Callable[[], Tensor]] = {}
        self._mapped_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._shapes[name]

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Read one tensor.

        Raises:
            CheckpointError: no such tensor, or a NaN or infinity in it, before or after the conversion to ``dtype``.
        """
        if name not in self._shapes:
            raise CheckpointError(self.path, f"holds no '{name}'", fix="check that config.json and the weights match")
        derived = self._derived.get(name)
        tensor = self._read(name) if derived is None else derived()
        path = (
            self._stored.path_of(name) if derived is None and isinstance(self._stored, SafetensorsFolder) else self.path
        )
        check_finite(path, {name: tensor})
        converted = tensor.to(dtype)
        if converted is not tensor:
            check_finite(path, {f"{name} (as {str(dtype).removeprefix('torch.')})": converted})
        return converted

    def _read(self, name: str) -> Tensor:
        if isinstance(self._stored, SafetensorsFolder) and self._mapped_bytes > _REMAP_BYTES:
            self._stored = SafetensorsFolder(self._stored.folder)
            self._mapped_bytes = 0
        tensor = self._stored[name]
        self._mapped_bytes += tensor.nbytes
        return tensor

    def derive(self, name: str, tensor: Tensor) -> None:
        """Add or replace a tensor by a computed one, which is kept in memory."""
        self.derive_lazily(name, tuple(tensor.shape), lambda: tensor)

    def derive_lazily(self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        """Add or replace a tensor by one that ``make`` computes at every read."""
        self._shapes[name] = shape
        self._derived[name] = make

    def drop(self, *names: str) -> None:
        """Forget tensors; a name ending in ``.`` drops everything that begins with it. Unknown names are ignored."""
        for name in names:
            for gone in [n for n in self._shapes if n == name or (name.endswith(".") and n.startswith(name))]:
                del self._shapes[gone]
                self._derived.pop(gone, None)

    def materialise(self, module: M, prefix: str, dtype: torch.dtype = torch.float64) -> M:
        """A copy of a module (which may be on the meta device) with its weights read: for computing with one part."""
        filled = copy.deepcopy(module)
        state = {name: self.get(f"{prefix}{name}", dtype) for name in filled.state_dict()}
        filled.load_state_dict(state, strict=True, assign=True)
        return filled.eval().requires_grad_(False)

    @property
    def parameters(self) -> int:
        """Elements in all tensors."""
        return sum(torch.Size(shape).numel() for shape in self._shapes.values())

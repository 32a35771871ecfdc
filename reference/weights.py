"""Reading weights: safetensors, pickles with ``weights_only=True``; what is no dense, finite tensor is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch

from livemoments.errors import CheckpointError
from livemoments.reference.stored import AGAIN, LISTED, SAFETENSORS, open_safetensors

_COUNTER = "num_batches_tracked"


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a ``.safetensors`` file, or from a pickle if that is not its suffix; see :func:`read_pickled`.

    Raises:
        CheckpointError: unreadable, zero bytes, holds anything but tensors.
    """
    return _load_safetensors(path) if path.suffix == SAFETENSORS else read_pickled(path)


def read_tensor(path: Path) -> torch.Tensor:
    """One tensor, in float32, from a ``.safetensors`` file (under any name) or a pickle.

    Raises:
        CheckpointError: unreadable, not one tensor, or not finite.
    """
    if path.suffix != SAFETENSORS:
        return read_pickled_tensor(path)
    found = _load_safetensors(path)
    if len(found) != 1:
        raise CheckpointError(path, f"holds {len(found)} tensors, should be one", fix="keep one tensor in the file")
    check_dense(path, found)
    check_finite(path, found)
    return next(iter(found.values())).float()


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a ``.pt`` / ``.pth`` file; ``module.`` prefixes of DataParallel are removed.

    Raises:
        CheckpointError: unreadable, zero bytes, holds anything but tensors.
    """
    found = _load(path)
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(path, "holds no state dict (a mapping of names to tensors)")
    check_dense(path, {str(key): value for key, value in found.items()})
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def read_pickled_tensor(path: Path) -> torch.Tensor:
    """One tensor from a ``.pt`` file, in float32.

    Raises:
        CheckpointError: unreadable, not a tensor, or not finite.
    """
    found = _load(path)
    if not isinstance(found, torch.Tensor):
        raise CheckpointError(path, "holds no tensor")
    check_dense(path, {"the tensor": found})
    check_finite(path, {"(the tensor)": found})
    return found.detach().float()


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(path, "no such file")
    with open_safetensors(path) as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (safe_open is no mapping)


def _load(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(path, "no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(path, "is empty (0 bytes)", fix=AGAIN)
    try:
        with contextlib.suppress(RuntimeError):  # zip-format pickles can be mapped; older ones cannot
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged pickle provokes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(path, f"cannot be read as weights ({first})", fix=AGAIN) from None


def check_dense(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what is no plain array of floating-point numbers: sparse, quantized, meta, complex, integer tensors, and
    those that claim more elements than the file holds (a stride of 0). Batch norms' counters are integers.

    Raises:
        CheckpointError: naming the first such tensor and what it is.
    """
    for name, tensor in tensors.items():
        if (what := _oddity(tensor)) and not name.endswith(_COUNTER):
            fix = "save it as a dense float32 or float16 tensor"
            raise CheckpointError(path, f"{name} is {what}; weights are dense floating-point numbers", fix=fix)


def _oddity(tensor: torch.Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"stored as {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type == "meta":
        return "on the meta device, without values"
    if not tensor.dtype.is_floating_point:
        return f"of type {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{tuple(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes"
    return None


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: naming the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        listed = ", ".join(bad[:LISTED]) + (" …" if len(bad) > LISTED else "")
        raise CheckpointError(path, f"NaN or infinite weights in {listed}", fix=AGAIN)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is finite; one pass without a mask the size of the tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))

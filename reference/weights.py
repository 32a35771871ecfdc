"""Reading weights: sharded safetensors one tensor at a time, pickles with ``weights_only=True``, all keys checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors import safe_open

from livemoments.errors import CheckpointError
from livemoments.reference.config import read_json

SAFETENSORS = ".safetensors"
_LISTED = 6
_COUNTER = "num_batches_tracked"
_AGAIN = "download the file again, and compare its size and hash with the publisher's"


class SafetensorsFolder(Mapping[str, torch.Tensor]):
    """The tensors of a diffusers folder (one ``.safetensors``, or shards with an index), read on demand.

    Nothing is loaded at construction; :attr:`shapes` comes from the headers. Each ``folder[key]`` reads one tensor,
    in the type it is stored in.

    Raises:
        CheckpointError: no weights, a missing shard, a zero-byte or truncated file, a key the index misplaces.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, safe_open] = {}
        for file in self._files():
            handle = open_safetensors(file)
            self._open[file] = handle
            for key in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key in self._file_of:
                    raise CheckpointError(file, f"holds '{key}', which {self._file_of[key].name} holds too")
                self._file_of[key] = file
                self.shapes[key] = tuple(handle.get_slice(key).get_shape())

    def _files(self) -> Sequence[Path]:
        if indices := sorted(self.folder.glob("*.safetensors.index.json")):
            shards = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
            if not shards:
                raise CheckpointError(indices[0], "lists no shards", fix=_AGAIN)
            if missing := [name for name in shards if not (self.folder / name).is_file()]:
                raise CheckpointError(self.folder, f"missing shards: {', '.join(missing)}", fix=_AGAIN)
            return [self.folder / name for name in shards]
        found = sorted(self.folder.glob("*.safetensors"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(self.folder, f"several weight files and no index: {names}", fix="keep one of them")
        if not found:
            raise CheckpointError(self.folder, "holds no .safetensors file", fix="download the folder again")
        return found

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._open[self._file_of[key]].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def stored_dtype(self, key: str) -> str:
        """The type that a tensor is stored in, by safetensors' name, e.g. ``F32``."""
        code: str = self._open[self._file_of[key]].get_slice(key).get_dtype()
        return code

    def path_of(self, key: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[key]


def open_safetensors(file: Path) -> safe_open:
    """A safetensors file, its header read and compared with its length.

    Raises:
        CheckpointError: empty, truncated or something else.
    """
    if file.stat().st_size == 0:
        raise CheckpointError(file, "is empty (0 bytes)", fix=_AGAIN)
    try:
        return safe_open(file, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(file, f"not a whole safetensors file ({error})", fix=_AGAIN) from None


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


def read_pickled_tensor(path: Path, *, keep_type: bool = False) -> torch.Tensor:
    """One tensor from a ``.pt`` file, in float32, or in the type it is stored in.

    Raises:
        CheckpointError: unreadable, not a tensor, or not finite.
    """
    found = _load(path)
    if not isinstance(found, torch.Tensor):
        raise CheckpointError(path, "holds no tensor")
    check_dense(path, {"the tensor": found})
    check_finite(path, {"(the tensor)": found})
    return found.detach() if keep_type else found.detach().float()


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(path, "no such file")
    with open_safetensors(path) as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (safe_open is no mapping)


def _load(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(path, "no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(path, "is empty (0 bytes)", fix=_AGAIN)
    try:
        with contextlib.suppress(RuntimeError):  # zip-format pickles can be mapped; older ones cannot
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged pickle provokes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(path, f"cannot be read as weights ({first})", fix=_AGAIN) from None


def check_keys(path: Path, expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> None:
    """Compare the names and shapes a network needs with those a file holds.

    Raises:
        CheckpointError: one error names the missing, extra and misshapen keys.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    misshapen = [
        f"{key} is {tuple(found[key])}, should be {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    problems = [
        f"{len(items)} {title}: " + "; ".join(items[:_LISTED]) + (" …" if len(items) > _LISTED else "")
        for title, items in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if items
    ]
    if problems:
        raise CheckpointError(
            path,
            "the weights do not fit the configuration: " + " | ".join(problems),
            fix="check that config.json and the weights belong together",
        )


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
        listed = ", ".join(bad[:_LISTED]) + (" …" if len(bad) > _LISTED else "")
        raise CheckpointError(path, f"NaN or infinite weights in {listed}", fix=_AGAIN)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is finite; one pass without a mask the size of the tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))

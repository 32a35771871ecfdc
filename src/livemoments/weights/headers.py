"""Names, shapes and types of the tensors in a file of weights, without their values and without torch.

Safetensors has a header. What ``torch.save`` writes is a pickle of how each tensor lies in its storage, beside or
before the storages' bytes; here the pickle is read by an unpickler that knows those few names and refuses every other,
and the storages are only measured.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from livemoments.errors import CheckpointError
from livemoments.reference.stored import AGAIN, SAFETENSORS, SafetensorsFolder, open_safetensors

_SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""By the name in the pickle: type, and bytes an element."""
_COUNTER = "num_batches_tracked"
_DATA_PARALLEL = "module."
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
"""Before torch 1.6 a file was a row of pickles, this number first, and the storages' bytes behind them."""
_OLD_COUNT_BYTES = 8
"""In such a file every storage's bytes follow their number of elements."""
_MOST_PICKLE_BYTES = 64 << 20
"""Names and shapes of any network here take a few hundred kilobytes."""


class Tensor(NamedTuple):
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Header:
    """Of one part of a checkpoint.

    Attributes:
        tensors: by name.
    """

    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Types without batch norms' counters, the one with the most elements first."""
        counts: dict[str, int] = {}
        for name, (shape, dtype) in self.tensors.items():
            if not name.endswith(_COUNTER):
                counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
        return tuple(sorted(counts, key=lambda dtype: -counts[dtype]))


def folder_header(folder: Path) -> Header:
    """Of a diffusers folder; its shards together.

    Raises:
        CheckpointError: as :class:`~livemoments.reference.stored.SafetensorsFolder`, or a tensor of a type that weights
            do not have.
    """
    found = SafetensorsFolder(folder, framework="np")
    codes = {name: found.stored_dtype(name) for name in found}
    return _checked(folder, {name: Tensor(shape, _type(codes[name])) for name, shape in found.shapes.items()})


def file_header(file: Path) -> Header:
    """Of a ``.safetensors`` file or of what ``torch.save`` wrote; a lone tensor has an empty name.

    ``module.`` prefixes of DataParallel are removed.

    Raises:
        CheckpointError: unreadable, cut off, holds anything but tensors, or tensors that weights are not: sparse,
            quantized, of whole numbers, larger than what is stored of them.
    """
    if not file.is_file():
        raise CheckpointError(file, "no such file")
    if file.stat().st_size == 0:
        raise CheckpointError(file, "is empty (0 bytes)", fix=AGAIN)
    if file.suffix == SAFETENSORS:
        with open_safetensors(file, "np") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
            tensors = {name: Tensor(tuple(s.get_shape()), _type(s.get_dtype())) for name, s in slices.items()}
        return _checked(file, tensors)
    return _checked(file, _pickled(file))


def _type(code: str) -> str:
    return _SAFETENSORS_TYPES.get(code, code)


def _checked(place: Path, tensors: Mapping[str, Tensor]) -> Header:
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_TYPES.values() and not name.endswith(_COUNTER):
            message = f"{name or 'the tensor'} is of type {tensor.dtype}; weights are dense floating-point numbers"
            raise CheckpointError(place, message, fix="save it as a dense float32 or float16 tensor")
    return Header(tensors)


class _Storage(NamedTuple):
    key: str
    dtype: str
    item_bytes: int
    elements: int


class _Stored(NamedTuple):
    """A tensor and the storage that it lies in."""

    tensor: Tensor
    storage: _Storage


class _UnreadableError(Exception):
    """The file is no dense weights, or only a part of them."""


class _Names(pickle.Unpickler):
    """Reads where tensors lie; nothing that a pickle names is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda stored, *_: stored
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _UnreadableError(f"holds {module}.{name}; weights are dense tensors")

    def persistent_load(self, found: Any) -> _Storage:
        if not isinstance(found, tuple) or len(found) < 5 or found[0] != "storage":
            raise _UnreadableError("refers to what is no storage")
        _, (dtype, item_bytes), key, _, elements = found[:5]
        return _Storage(str(key), dtype, item_bytes, int(elements))


def _rebuilt(storage: _Storage, offset: int, shape: Iterable[int], stride: Iterable[int], *_: Any) -> _Stored:
    shape = tuple(shape)
    elements = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if elements and (last >= storage.elements or elements > storage.elements):
        raise _UnreadableError(f"a tensor of shape {shape} lies over {storage.elements} elements")
    return _Stored(Tensor(shape, storage.dtype), storage)


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as stream:
            found = _from_zip(stream) if zipfile.is_zipfile(stream) else _from_old(stream)
    except CheckpointError:
        raise
    except Exception as error:  # the pickle machinery raises whatever a damaged file provokes
        reason = str(error) if isinstance(error, _UnreadableError) else f"cannot be read as weights ({_first(error)})"
        raise CheckpointError(file, reason, fix=AGAIN) from None
    if isinstance(found, _Stored):
        return {"": found.tensor}
    return {str(name).removeprefix(_DATA_PARALLEL): stored.tensor for name, stored in found.items()}


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _from_zip(stream: IO[bytes]) -> _Stored | dict[str, _Stored]:
    stream.seek(0)
    with zipfile.ZipFile(stream) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        names = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1 or sizes[names[0]] > _MOST_PICKLE_BYTES:
            raise _UnreadableError("is a zip archive, but not of weights")
        with archive.open(names[0]) as pickled:
            found = _tensors(_Names(pickled).load())
    root = names[0].removesuffix("data.pkl")
    for storage in _storages(found):
        if sizes.get(f"{root}data/{storage.key}", -1) < storage.elements * storage.item_bytes:
            raise _UnreadableError(f"lacks a part of its values (storage {storage.key})")
    return found


def _from_old(stream: IO[bytes]) -> _Stored | dict[str, _Stored]:
    stream.seek(0)
    if _Names(stream).load() != _OLD_MAGIC:
        raise _UnreadableError("is not what torch.save writes")
    for _ in range(2):  # the protocol, and the machine's sizes of numbers
        _Names(stream).load()
    found = _tensors(_Names(stream).load())
    _Names(stream).load()  # the storages' keys, in the order of their bytes
    needed = sum(_OLD_COUNT_BYTES + s.elements * s.item_bytes for s in _storages(found))
    start = stream.tell()
    if stream.seek(0, 2) - start < needed:
        raise _UnreadableError("is cut off")
    return found


def _storages(found: _Stored | dict[str, _Stored]) -> set[_Storage]:
    return {stored.storage for stored in ([found] if isinstance(found, _Stored) else found.values())}


def _tensors(found: object) -> _Stored | dict[str, _Stored]:
    if isinstance(found, _Stored):
        return found
    if not isinstance(found, Mapping) or not all(isinstance(value, _Stored) for value in found.values()):
        raise _UnreadableError("holds no state dict (a mapping of names to tensors)")
    return dict(found)

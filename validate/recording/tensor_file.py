"""One safetensors file: written tensor by tensor in bounded memory, read tensor by tensor.

The header comes first, but what it says is known last: until :meth:`TensorWriter.close` the bytes go to a hidden file
beside it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from livemoments.errors import EngineError, FileError, UsageError
from livemoments.manifest import FileEntry
from livemoments.store.files import sync_file
from livemoments.store.hashed_folders import hash_file
from livemoments.store.safetensors_file import write_safetensors
from livemoments.validate.recording.schema import StorageType

_COPY_BYTES = 1 << 22
_LARGEST_HALF = 65504.0
HALF_REL_L2 = 2.0**-11
"""Half precision rounds by at most this, relatively, where its exponent suffices; below that a tensor stays float32."""


class TensorWriter:
    """A file being written.

    Args:
        path: the file; its folder exists.
        dtype: what floats are stored as.

    Raises:
        FileExistsError: it was written already.
    """

    def __init__(self, path: Path, dtype: StorageType) -> None:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self.path = path
        self._dtype = dtype
        self._tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._sizes: dict[str, int] = {}
        self._data_path = path.with_name(f".{path.name}.data")
        self._data = self._data_path.open("xb")

    def add(self, name: str, value: np.ndarray) -> None:
        """Append one tensor.

        Raises:
            EngineError: it is not finite.
            UsageError: too large for half precision, or added already.
        """
        if name in self._tensors:
            raise UsageError(f"'{name}' would be recorded twice in {self.path.name}")
        stored = self._stored(name, value)
        self._tensors[name] = (stored.dtype.name, stored.shape)
        self._sizes[name] = stored.nbytes
        self._data.write(stored.data)

    def close(self) -> FileEntry:
        """Write the header, then the tensors behind it; flush to the disk. Returns the file's size and SHA-256."""
        self._data.close()
        with self._data_path.open("rb") as data:
            write_safetensors(self.path, self._tensors, lambda name: _pieces(data, self._sizes[name]))
        sync_file(self.path)
        self._data_path.unlink()
        return hash_file(self.path)

    def _stored(self, name: str, value: np.ndarray) -> np.ndarray:
        if value.dtype.kind != "f":
            kind = np.uint8 if value.dtype == np.uint8 else np.int64
            return np.asarray(value, dtype=kind, order="C")
        exact = np.asarray(value, dtype=np.float32, order="C")
        largest = float(np.abs(exact).max(initial=0.0))
        if not np.isfinite(largest):
            raise EngineError(f"the reference's '{name}' is not finite", fix="check the checkpoint and the images")
        if self._dtype == "float32":
            return exact
        if largest > _LARGEST_HALF:
            raise UsageError(
                f"'{name}' reaches {largest:.3g}, float16 ends at {_LARGEST_HALF:.0f}",
                fix="record with --dtype float32",
            )
        half = exact.astype(np.float16)
        return half if _keeps(exact, half) else exact


def _keeps(exact: np.ndarray, half: np.ndarray) -> bool:
    """Whether half precision's exponent sufficed: posteriors' standard deviations may lie below its normal range."""
    squares = float(np.vdot(exact, exact))
    lost = half.astype(np.float32)
    lost -= exact
    return float(np.vdot(lost, lost)) <= squares * HALF_REL_L2**2


def _pieces(data: BinaryIO, size: int) -> Iterator[bytes]:
    """The next bytes of an open file."""
    for start in range(0, size, _COPY_BYTES):
        yield data.read(min(_COPY_BYTES, size - start))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, opened by safetensors; what is wrong with it becomes one error.

    Raises:
        FileError: damaged or unreadable.
        ModuleNotFoundError: safetensors is not installed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise FileError(path, f"cannot be read ({error})", fix="copy the recording again, or record again") from None


def tensor_names(path: Path) -> tuple[str, ...]:
    """Names of a file's tensors, in the order in which they are stored.

    Raises:
        FileError: damaged or unreadable.
    """
    with _opened(path) as opened:
        return tuple(getattr(opened, "offset_keys", opened.keys)())  # releases before 0.6 give them in no order


def read_tensor(path: Path, name: str) -> np.ndarray:
    """One tensor, as it is stored; the others are not read.

    Raises:
        FileError: damaged or unreadable.
    """
    with _opened(path) as opened:
        tensor: np.ndarray = opened.get_tensor(name)
        return tensor

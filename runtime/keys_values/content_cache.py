"""Keys and values kept between runs, found again by what they were computed from.

An entry belongs to one tile at one schedule point. Its key hashes everything that the numbers depend on (the
reference tile's pixels, its posterior noise, the graphs, the timestep, the hardware), so a second frame of the
same photo that cuts the same reference tile finds them, and any change misses. Entries are written atomically
and carry a checksum: a damaged one is a miss, never data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livemoments.errors import OutputError
from livemoments.runtime.keys_values.codecs import Codec, NativeCodec, codec_for
from livemoments.store.claims import claim, remove_left_behind
from livemoments.store.errors import output_errors
from livemoments.store.files import PARTIAL

_MAGIC = b"livemoments-kv 1\n"
_DIGEST_BYTES = 32
_SUFFIX = ".kv"


def content_key(context: Mapping[str, object], *arrays: np.ndarray) -> str:
    """SHA-256 (hex) of a description and of arrays: their dtypes, shapes and numbers.

    Args:
        context: JSON-able facts that the result depends on (digests of graphs, the provider).
        arrays: the data that it depends on.
    """
    digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"\0{array.dtype.str}{array.shape}\0".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How a run used a cache: entries (a tile at a schedule point) that were found, were not, and made room."""

    hits: int = 0
    misses: int = 0
    dropped: int = 0


class KvCache:
    """A folder of keys and values by content.

    Any file of it may be deleted at any time, by several processes that share it too.

    Args:
        folder: made if it does not exist.
        codec: how numbers are stored. With a lossy codec :meth:`put` returns what :meth:`get` will return, so that
            a hit and a miss give the same picture.
        budget_bytes: of all its entries, whoever wrote them: the least recently used go first. ``None``: no bound. An
            entry that is larger by itself is not kept. Who goes through more than fits, in the same order again, finds
            nothing: it should hold all tiles of a photo.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self, folder: str | os.PathLike[str], codec: Codec | None = None, *, budget_bytes: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.codec: Codec = codec or NativeCodec()
        self.hits = 0
        self.misses = 0
        self.dropped = 0
        self._budget_bytes = budget_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_left_behind(self.folder, PARTIAL)
        except OSError as error:
            raise OutputError(
                folder, f"cannot hold the cache ({error.strerror})", fix="choose another --kv-cache"
            ) from None

    @property
    def use(self) -> CacheUse:
        """So far."""
        return CacheUse(self.hits, self.misses, self.dropped)

    def get(self, key: str, point: int) -> dict[str, np.ndarray] | None:
        """The arrays of one tile at one schedule point, or ``None`` if they are not there or damaged."""
        path = self._path(key, point)
        kept = self._load(path)
        if kept is None:
            self.misses += 1
        else:
            self.hits += 1
            with contextlib.suppress(OSError):  # another process dropped it, or the folder cannot be written
                os.utime(path)  # its time of change is that of its last use
        return kept

    def put(self, key: str, point: int, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Store one tile's arrays and return them as :meth:`get` will.

        Raises:
            OutputError: the folder cannot be written.
            ResourceError: the disk is full.
        """
        dtypes = {name: array.dtype for name, array in arrays.items()}
        codecs = {name: codec_for(self.codec, dtype) for name, dtype in dtypes.items()}
        stored = {name: np.ascontiguousarray(codecs[name].encode(array)) for name, array in arrays.items()}
        needed = sum(array.nbytes for array in stored.values())
        if self._budget_bytes is None or needed <= self._budget_bytes:
            self._make_room(needed)
            self._save(self._path(key, point), stored, dtypes)
        return {name: codecs[name].decode(array, dtypes[name]) for name, array in stored.items()}

    def _make_room(self, needed_bytes: int) -> None:
        """Drop entries until as many bytes fit into the budget."""
        if self._budget_bytes is None:
            return
        entries = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(_SUFFIX):
                    status = entry.stat()
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
        held = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if held + needed_bytes <= self._budget_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
                self.dropped += 1
            held -= size

    def _path(self, key: str, point: int) -> Path:
        name = hashlib.sha256(f"{key} {point} {self.codec.name}".encode()).hexdigest()
        return self.folder / f"{name}{_SUFFIX}"

    def _save(self, path: Path, stored: Mapping[str, np.ndarray], dtypes: Mapping[str, np.dtype]) -> None:
        header = json.dumps([[n, a.dtype.str, a.shape, dtypes[n].str] for n, a in stored.items()]).encode() + b"\n"
        pieces: list[bytes | memoryview] = [_MAGIC, header, *map(_bytes, stored.values())]
        with output_errors(self.folder, fix="choose another --kv-cache"):
            own = claim(self.folder, PARTIAL)
            try:
                digest = hashlib.sha256()
                with own.path.open("xb") as stream:
                    for piece in pieces:
                        digest.update(piece)
                        stream.write(piece)
                    stream.write(digest.digest())
                own.path.replace(path)
            finally:
                own.remove()

    def _load(self, path: Path) -> dict[str, np.ndarray] | None:
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError:
            return None
        body, trailer = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(body.data).digest() != trailer.tobytes() or body[: len(_MAGIC)].tobytes() != _MAGIC:
            return None
        start = len(_MAGIC)
        end = start + int(np.argmax(body[start:] == ord("\n"))) + 1
        arrays: dict[str, np.ndarray] = {}
        for name, stored_dtype, shape, dtype in json.loads(body[start:end].tobytes()):
            length = math.prod(shape) * np.dtype(stored_dtype).itemsize
            data = np.frombuffer(body[end : end + length].tobytes(), dtype=stored_dtype).reshape(shape)
            arrays[name] = codec_for(self.codec, np.dtype(dtype)).decode(data, np.dtype(dtype))
            end += length
        return arrays


def _bytes(array: np.ndarray) -> memoryview:
    """An array's numbers, as they lie in memory when it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

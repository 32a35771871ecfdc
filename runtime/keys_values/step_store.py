"""Keys and values of the reference network between the pass that computes them and the pass that reads them.

A store (host memory or disk) lives for one group of tiles under the ``phase-split`` policy; ``kv_cache.py`` holds
what outlives a run. Stored numbers pass through a codec (``kv_codecs.py``), which may trade bytes for exactness.
"""

from __future__ import annotations

import abc
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from livemoments.errors import ResourceError, UsageError
from livemoments.runtime.backends.base import Array, to_host
from livemoments.runtime.keys_values.codecs import Codec, codec_for, find_codec
from livemoments.store.claims import Claim, claim, remove_left_behind
from livemoments.store.errors import is_full, output_errors

KvKey = tuple[int, int]
"""(number of the tile batch within its group, schedule point)."""

_DISK_PREFIX = ".livemoments-kv.partial-"
_MIB = 1 << 20


class KvStore(abc.ABC):
    """Keeps dictionaries of arrays by :data:`KvKey`, and counts their bytes."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._sizes: dict[KvKey, int] = {}
        self._dtypes: dict[KvKey, dict[str, np.dtype]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes stored now."""
        return sum(self._sizes.values())

    def put(self, key: KvKey, arrays: Mapping[str, Array]) -> None:
        """Store the arrays under a key, replacing what was there; device arrays come to the host.

        Raises:
            ResourceError: the budget or the disk is exhausted.
        """
        self.discard(key)
        host = {name: to_host(array) for name, array in arrays.items()}
        stored = {name: codec_for(self.codec, array.dtype).encode(array) for name, array in host.items()}
        self._write(key, stored)
        self._sizes[key] = sum(array.nbytes for array in stored.values())
        self._dtypes[key] = {name: array.dtype for name, array in host.items()}

    def get(self, key: KvKey) -> dict[str, np.ndarray]:
        """The arrays stored under a key, in the dtypes they came in. A missing key is a KeyError."""
        dtypes = self._dtypes[key]
        stored = self._read(key)
        return {n: codec_for(self.codec, dtypes[n]).decode(array, dtypes[n]) for n, array in stored.items()}

    def discard(self, key: KvKey) -> None:
        """Forget one key; nothing happens if it is not there."""
        if key in self._sizes:
            self._delete(key)
            del self._sizes[key], self._dtypes[key]

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._sizes):
            self.discard(key)

    @abc.abstractmethod
    def _write(self, key: KvKey, arrays: Mapping[str, np.ndarray]) -> None: ...

    @abc.abstractmethod
    def _read(self, key: KvKey) -> dict[str, np.ndarray]: ...

    @abc.abstractmethod
    def _delete(self, key: KvKey) -> None: ...


class HostStore(KvStore):
    """Keeps arrays in memory, up to a budget.

    Args:
        codec: how arrays are stored.
        budget_bytes: the most that may be stored at once; ``None`` is unlimited.
    """

    def __init__(self, codec: Codec, budget_bytes: int | None = None) -> None:
        super().__init__(codec)
        self._budget_bytes = budget_bytes
        self._arrays: dict[KvKey, dict[str, np.ndarray]] = {}

    def _write(self, key: KvKey, arrays: Mapping[str, np.ndarray]) -> None:
        needed = self.nbytes + sum(array.nbytes for array in arrays.values())
        if self._budget_bytes is not None and needed > self._budget_bytes:
            raise budget_error(needed, self._budget_bytes)
        self._arrays[key] = dict(arrays)

    def _read(self, key: KvKey) -> dict[str, np.ndarray]:
        return self._arrays[key]

    def _delete(self, key: KvKey) -> None:
        del self._arrays[key]


class DiskStore(KvStore):
    """Keeps arrays in files of a folder, read back memory-mapped. Use :func:`open_store`, which removes the folder.

    Args:
        codec: how arrays are stored.
        folder: an existing, empty folder.
    """

    def __init__(self, codec: Codec, folder: Path) -> None:
        super().__init__(codec)
        self.folder = folder

    def _write(self, key: KvKey, arrays: Mapping[str, np.ndarray]) -> None:
        folder = self._folder(key)
        try:
            folder.mkdir()
            for number, array in enumerate(arrays.values()):
                np.save(folder / f"{number}.npy", array, allow_pickle=False)
            (folder / "names").write_text("\n".join(arrays), encoding="utf-8")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _disk_error(self.folder, error, sum(array.nbytes for array in arrays.values())) from None

    def _read(self, key: KvKey) -> dict[str, np.ndarray]:
        folder = self._folder(key)
        names = (folder / "names").read_text(encoding="utf-8").split("\n")
        return {name: np.load(folder / f"{number}.npy", mmap_mode="r") for number, name in enumerate(names)}

    def _delete(self, key: KvKey) -> None:
        shutil.rmtree(self._folder(key), ignore_errors=True)

    def _folder(self, key: KvKey) -> Path:
        return self.folder / f"{key[0]}-{key[1]}"


@contextlib.contextmanager
def open_store(
    kind: Literal["host", "disk"],
    *,
    codec: str = "native",
    budget_bytes: int | None = None,
    parent: Path | None = None,
) -> Iterator[KvStore]:
    """A store for the length of a ``with`` block; a disk store's folder is gone afterwards, whatever happened.

    Args:
        kind: ``host`` (memory, bounded by the budget) or ``disk``.
        codec: one of :data:`livemoments.runtime.keys_values.codecs.KV_DTYPES`.
        budget_bytes: limit of a host store; a disk store is limited by the disk.
        parent: where a disk store makes its folder; the system's temporary folder (TMPDIR) by default. Folders
            that killed processes left there are removed first.

    Raises:
        UsageError: an unknown kind or codec.
        OutputError: the folder cannot be made.
    """
    chosen = find_codec(codec)
    if kind == "host":
        store = HostStore(chosen, budget_bytes)
        try:
            yield store
        finally:
            store.clear()
    elif kind == "disk":
        own = _make_folder(Path(tempfile.gettempdir()) if parent is None else parent)
        try:
            yield DiskStore(chosen, own.path)
        finally:
            own.remove()
    else:
        raise UsageError(f"'{kind}' is no place for keys and values", fix="use host or disk")


def budget_error(needed_bytes: int, budget_bytes: int) -> ResourceError:
    """The error for keys and values that do not fit into a host store's budget."""
    return ResourceError(
        f"the reference keys and values need {needed_bytes / _MIB:.1f} MiB, "
        f"the budget is {budget_bytes / _MIB:.1f} MiB",
        fix="raise --kv-budget, pass --batch 1, --kv-dtype int8 or --kv-store disk, or use the policy per-step",
    )


def _make_folder(parent: Path) -> Claim:
    """A temporary folder that nobody else may look into."""
    with output_errors(parent, fix="set TMPDIR to a folder that can be written"):
        remove_left_behind(parent, _DISK_PREFIX)
        own = claim(parent, _DISK_PREFIX)
        own.path.mkdir(mode=0o700)
    return own


def _disk_error(folder: Path, error: OSError, needed_bytes: int) -> ResourceError:
    why = "the disk is full" if is_full(error) else (error.strerror or str(error))
    return ResourceError(
        f"{folder}: {needed_bytes / _MIB:.0f} MiB of reference keys and values cannot be written: {why}",
        fix="set TMPDIR to a larger disk, lower --kv-budget, or pass --kv-dtype int8",
    )

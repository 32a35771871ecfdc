"""What files of weights hold, by their headers; nothing here imports torch, which takes more than a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
from safetensors import safe_open

from livemoments.errors import CheckpointError
from livemoments.reference.config import read_json

SAFETENSORS = ".safetensors"
LISTED = 6
"""A message names so many keys."""
AGAIN = "download the file again, and compare its size and hash with the publisher's"


class SafetensorsFolder(Mapping[str, Any]):
    """The tensors of a diffusers folder (one ``.safetensors``, or shards with an index), read on demand.

    Nothing is loaded at construction; :attr:`shapes` comes from the headers. Each ``folder[key]`` reads one tensor,
    in the type it is stored in.

    Args:
        folder: where they lie.
        framework: whose tensors, safetensors' name: ``pt``, or ``np`` where only headers are read and torch need not be
            imported.

    Raises:
        CheckpointError: no weights, a missing shard, a zero-byte or truncated file, a key the index misplaces.
    """

    def __init__(self, folder: Path, framework: str = "pt") -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, safe_open] = {}
        for file in self._files():
            handle = open_safetensors(file, framework)
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
                raise CheckpointError(indices[0], "lists no shards", fix=AGAIN)
            if missing := [name for name in shards if not (self.folder / name).is_file()]:
                raise CheckpointError(self.folder, f"missing shards: {', '.join(missing)}", fix=AGAIN)
            return [self.folder / name for name in shards]
        found = sorted(self.folder.glob("*.safetensors"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(self.folder, f"several weight files and no index: {names}", fix="keep one of them")
        if not found:
            raise CheckpointError(self.folder, "holds no .safetensors file", fix="download the folder again")
        return found

    def __getitem__(self, key: str) -> Any:
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


def open_safetensors(file: Path, framework: str = "pt") -> safe_open:
    """A safetensors file, its header read and compared with its length.

    Args:
        file: the file.
        framework: as :class:`SafetensorsFolder`'s.

    Raises:
        CheckpointError: empty, truncated or something else.
    """
    if file.stat().st_size == 0:
        raise CheckpointError(file, "is empty (0 bytes)", fix=AGAIN)
    try:
        return safe_open(file, framework=framework)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(file, f"not a whole safetensors file ({error})", fix=AGAIN) from None


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
        f"{len(items)} {title}: " + "; ".join(items[:LISTED]) + (" …" if len(items) > LISTED else "")
        for title, items in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if items
    ]
    if problems:
        raise CheckpointError(
            path,
            "the weights do not fit the configuration: " + " | ".join(problems),
            fix="check that config.json and the weights belong together",
        )

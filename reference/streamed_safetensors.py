"""Writing ``.safetensors`` files piece by piece, so that memory does not grow with the file.

The format: the header's length (unsigned 64-bit, little-endian), a JSON header that names each tensor's type, shape and
place, then the tensors' bytes without gaps (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_ALIGNMENT_BYTES = 8

Pieces = Callable[[str], Iterable[bytes]]
"""From a tensor's name to its bytes, in order, in pieces."""


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, pieces: Pieces) -> None:
    """Write one file.

    Args:
        path: the file.
        shapes: names and shapes, in the order in which the tensors are stored.
        dtype: ``float32``, ``float16`` or ``bfloat16``, of every tensor.
        pieces: gives each tensor's bytes; exactly as many as its shape says.

    Raises:
        ValueError: a tensor's pieces are more or fewer bytes than its shape says.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT_BYTES)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)))
        stream.write(encoded)
        for name, shape in shapes.items():
            written = sum(stream.write(piece) for piece in pieces(name))
            if written != math.prod(shape) * ITEM_BYTES[dtype]:
                raise ValueError(f"{name}: {written} bytes for shape {shape} in {dtype}")


def write_sharded(
    folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]], dtype: str, pieces: Pieces, shard_bytes: int
) -> None:
    """Write tensors as diffusers does: ``STEM.safetensors``, or numbered shards and ``STEM.safetensors.index.json``.

    Args:
        folder: where, existing.
        stem: the files' common name.
        shapes: as :func:`write_safetensors`.
        dtype: as :func:`write_safetensors`.
        pieces: as :func:`write_safetensors`.
        shard_bytes: the most tensor bytes in one file (a larger tensor has a file of its own).
    """
    shards = list(_split(shapes, ITEM_BYTES[dtype], shard_bytes))
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", shapes, dtype, pieces)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, dtype, pieces)
        places |= dict.fromkeys(shard, name)
    total = sum(math.prod(shape) for shape in shapes.values()) * ITEM_BYTES[dtype]
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def _split(
    shapes: Mapping[str, tuple[int, ...]], item_bytes: int, shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    held = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * item_bytes
        if shard and held + size > shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = shape
        held += size
    yield shard

"""Tensors as diffusers stores them: one ``.safetensors`` file, or numbered shards and an index."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from livemoments.store.safetensors_file import ITEM_BYTES, Pieces, write_safetensors

DTYPES = ("float32", "float16", "bfloat16")


def write_sharded(
    folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]], dtype: str, pieces: Pieces, shard_bytes: int
) -> None:
    """Write tensors as diffusers does: ``STEM.safetensors``, or numbered shards and ``STEM.safetensors.index.json``.

    Args:
        folder: where, existing.
        stem: the files' common name.
        shapes: names and shapes, in the order in which the tensors are stored.
        dtype: ``float32``, ``float16`` or ``bfloat16``, of every tensor.
        pieces: gives each tensor's bytes, as :func:`write_safetensors` takes them.
        shard_bytes: the most tensor bytes in one file (a larger tensor has a file of its own).
    """
    shards = list(_split(shapes, ITEM_BYTES[dtype], shard_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {tensor: (dtype, shape) for tensor, shape in shard.items()}
        write_safetensors(folder / name, tensors, pieces, format="pt")
        places |= dict.fromkeys(shard, name)
    if len(shards) == 1:
        return
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

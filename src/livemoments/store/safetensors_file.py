"""Writing one ``.safetensors`` file piece by piece, so that memory does not grow with the file.

The format: the header's length (unsigned 64-bit, little-endian), a JSON header that names each tensor's type, shape and
place, then the tensors' bytes without gaps (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1}
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}
_ALIGNMENT_BYTES = 8

Pieces = Callable[[str], Iterable[bytes]]
"""From a tensor's name to its bytes, in order, in pieces."""


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], pieces: Pieces, **metadata: str
) -> None:
    """Write one file.

    Args:
        path: the file.
        tensors: names, with type and shape, in the order in which they are stored.
        pieces: gives each tensor's bytes; exactly as many as its shape says.
        metadata: texts for the header.

    Raises:
        ValueError: a tensor's pieces are more or fewer bytes than its shape says.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT_BYTES)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, (dtype, shape) in tensors.items():
            written = sum(stream.write(piece) for piece in pieces(name))
            if written != math.prod(shape) * ITEM_BYTES[dtype]:
                raise ValueError(f"{name}: {written} bytes for shape {shape} in {dtype}")

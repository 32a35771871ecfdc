"""The file in which a package keeps large constants (``weight.bin``), mapped and read without a copy.

Its layout is Apple's MILBlob storage, version 2 (github.com/apple/coremltools, ``mlmodel/src/MILBlob/Blob``): a header
of 64 bytes, then for each tensor 64 bytes that say its type, place and length, and its data, all at multiples of 64
bytes, little-endian. Elements narrower than a byte are packed from the lowest bit up.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from livemoments.coreml.program import BITS, ValueType
from livemoments.errors import FileError

_HEADER = struct.Struct("<II")
_VERSION = 2
_ENTRY = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
_DTYPES = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
_AGAIN = "export the bundle again"


class WeightFile:
    """A mapped weight file.

    Args:
        path: the file.

    Raises:
        FileError: it cannot be read, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Copy on write: torch wants arrays that may be written to, and nothing does.
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise FileError(path, f"cannot be read ({error})", fix=_AGAIN) from None
        version = _HEADER.unpack_from(self._bytes.data, 0)[1] if len(self._bytes) >= _HEADER.size else None
        if version != _VERSION:
            raise FileError(path, f"is no weight file of version {_VERSION} (it says {version})", fix=_AGAIN)

    def read(self, offset: int, wanted: ValueType) -> np.ndarray:
        """The tensor whose description lies at ``offset``, as an array of the type's shape.

        Raises:
            FileError: there is no tensor, or one of another type or size.
        """
        if offset + _ENTRY.size > len(self._bytes):
            raise FileError(self.path, f"ends before the tensor at {offset}", fix=_AGAIN)
        sentinel, code, length, start, padding = _ENTRY.unpack_from(self._bytes.data, offset)
        if sentinel != _SENTINEL:
            raise FileError(self.path, f"there is no tensor at {offset}", fix=_AGAIN)
        found = _DTYPES.get(code, f"of unknown type {code}")
        stored = "uint8" if wanted.dtype == "bool" else wanted.dtype
        bits = math.prod(axis or 0 for axis in wanted.shape) * BITS[wanted.dtype]
        if found != stored or length * 8 - (padding if BITS[wanted.dtype] < 8 else 0) != bits:
            raise FileError(
                self.path, f"the tensor at {offset} is {found}, {length} bytes; the program says {wanted}", fix=_AGAIN
            )
        if start + length > len(self._bytes):
            raise FileError(self.path, f"ends within the tensor at {offset}", fix=_AGAIN)
        return decode(self._bytes[start : start + length], wanted)


def decode(data: np.ndarray, wanted: ValueType) -> np.ndarray:
    """Little-endian bytes as an array of the wanted type and shape; elements narrower than a byte come one a byte.

    Args:
        data: bytes, uint8.
        wanted: the elements' type and shape.
    """
    bits = BITS[wanted.dtype]
    shape = tuple(axis or 0 for axis in wanted.shape)
    if bits >= 8:
        return data.view(np.dtype(wanted.dtype).newbyteorder("<")).reshape(shape)
    signed = wanted.dtype.startswith("int")
    weights = (1 << np.arange(bits)).astype(np.int8 if signed else np.uint8)
    if signed:
        weights[-1] = -(1 << (bits - 1))  # two's complement
    lowest_first = np.unpackbits(data, count=math.prod(shape) * bits, bitorder="little").reshape(-1, bits)
    return (lowest_first.astype(weights.dtype) @ weights).reshape(shape)

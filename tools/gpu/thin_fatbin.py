"""Blank the GPU code that a machine will not run in a CUDA library, so that the library compresses to a fraction.

onnxruntime's CUDA provider is mostly device code, for many chips and many kinds of network. Code of other chips, and
kernels that a diffusion transformer never launches, are overwritten by zeros where they stand: nothing moves, so every
offset in the file holds, and the zeros cost nothing once compressed.

The format (CUDA's fat binaries, as ``cuobjdump`` lists them): a region begins with a magic number, version, header
size and length; in it entries follow each other, each a header (kind, sizes, architecture) and a payload, which is
compressed with Zstandard since CUDA 13.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MAGIC = struct.pack("<I", 0xBA55ED50)
_REGION = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
_KINDS = (1, 2, 4, 8, 16, 32, 64)
_MOST_HEADER = 4096
_MOST_DECOMPRESSED = 1 << 28
_SYMBOL = re.compile(rb"\.text\.(_Z[A-Za-z0-9_]{8,})")

NEVER_LAUNCHED = re.compile(
    rb"[Mm]oe|MoE|paged|xqa|[Bb]eam|deep_gemm|linear_attention|causal_conv|[Ll]stm|Rnn|MatMulNBits|fpA_intB|GroupQuery"
    rb"|tinygemm|Dropout|[Dd]eform|DecoderMasked|masked_multihead|[Rr]oi[Aa]lign|NonMaxSuppress|MainloopSm90Array"
    rb"|GroupProblemShape|Sm50|Sm70|Sm75"
)
"""Kernels of language models, detectors and older chips."""
_BFLOAT16 = re.compile(rb"bfloat16|BFloat16")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: where its payload lies, in bytes, and the architecture it is for (90 for SM 9.0)."""

    start: int
    stop: int
    architecture: int


@dataclass(frozen=True, slots=True)
class Thinned:
    """Bytes of device code that were kept, blanked for their architecture, and blanked for their names."""

    kept: int
    other_architectures: int
    never_launched: int


def find_entries(data: bytes | bytearray) -> Iterator[Entry]:
    """Every entry of every region."""
    at = 0
    while (at := data.find(_MAGIC, at)) >= 0:
        if at + _REGION.size > len(data):
            return
        _, version, header, length = _REGION.unpack_from(data, at)
        stop = at + header + length
        if version != 1 or header != _REGION.size or stop > len(data):
            at += len(_MAGIC)  # a number that only looks like a region
            continue
        place, found = at + header, False
        while place + _ENTRY.size <= stop:
            kind, _, head, payload, *rest = _ENTRY.unpack_from(data, place)
            if kind not in _KINDS or not _ENTRY.size <= head <= _MOST_HEADER or place + head + payload > stop:
                break
            yield Entry(place + head, place + head + payload, rest[4])
            place, found = place + head + payload, True
        at = stop if found else at + len(_MAGIC)


def thin(data: bytearray, architecture: int, *, is_wanted: Callable[[list[bytes]], bool] | None = None) -> Thinned:
    """Blank what is not for this architecture, and entries none of whose kernels are wanted.

    Args:
        data: the library, changed in place.
        architecture: as 90 for SM 9.0.
        is_wanted: of the mangled names of an entry's kernels; ``None``: all are, and Zstandard is not needed.

    Raises:
        ValueError: nothing is left: the library has no code for this architecture.
    """
    kept = others = unwanted = 0
    for entry in list(find_entries(data)):
        size = entry.stop - entry.start
        if entry.architecture != architecture:
            others += size
        elif is_wanted is None or is_wanted(kernel_names(bytes(data[entry.start : entry.stop]))):
            kept += size
            continue
        else:
            unwanted += size
        data[entry.start : entry.stop] = bytes(size)
    if not kept:
        raise ValueError(f"the library has no code for SM {architecture / 10:.1f}")
    return Thinned(kept, others, unwanted)


def kernel_names(payload: bytes) -> list[bytes]:
    """The mangled names of the kernels in a payload, decompressed first."""
    import zstandard

    return _SYMBOL.findall(zstandard.ZstdDecompressor().decompress(payload, max_output_size=_MOST_DECOMPRESSED))


def is_launched(names: list[bytes]) -> bool:
    """Whether a float16 diffusion transformer may launch one of these kernels; unknown ones count as if it did."""
    return not names or not all(NEVER_LAUNCHED.search(name) or _BFLOAT16.search(name) for name in names)

"""What a process holds in memory: its peak, and a long run's heap kept from fragmenting."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

LARGE_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_STATUS = Path("/proc/self/status")
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_resident_bytes() -> int:
    """This process' own peak, 0 where the system does not say; ``ru_maxrss`` begins with its parent's at the fork."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES


def give_back_large_blocks() -> bool:
    """Have glibc return every freed block of a megabyte or more to the system at once; elsewhere nothing is done.

    glibc raises that limit to 32 MB by itself once such blocks are freed. Pictures of changing sizes then leave holes
    in the heap, and a run's memory creeps up over its first dozens of images: 313 MB instead of 189 MB after 60 photos
    of 320 x 256 pixels, at the same speed. The setting is the whole process's and stays.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))


def give_back_freed() -> bool:
    """Have glibc return what is free inside its heap to the system too; elsewhere nothing is done.

    A closed engine leaves thousands of freed blocks below the limit above: 40 MB after RAFT's, which stay resident
    otherwise. Takes some milliseconds.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))

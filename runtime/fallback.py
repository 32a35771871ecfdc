"""What to do when memory runs out on the way: the rest of the tiles in a way that takes less, for the same picture."""

from __future__ import annotations

import errno
from dataclasses import replace

from livemoments.errors import ResourceError
from livemoments.runtime.options import RestoreOptions

_CV_NO_MEMORY = -4  # cv2.Error.StsNoMem


def is_memory(error: Exception) -> bool:
    """Whether work that takes less memory could have gone on.

    numpy raises MemoryError and the back-ends a ResourceError; a system call (mapping a file, opening one) fails with
    ENOMEM; OpenCV has a code of its own.
    """
    if isinstance(error, ResourceError):
        return error.of_memory
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if type(error).__module__ == "cv2":
        return getattr(error, "code", 0) == _CV_NO_MEMORY
    return isinstance(error, MemoryError)


def take_less(options: RestoreOptions, *, streams: bool = False) -> tuple[RestoreOptions, str] | None:
    """The next way of restoring that takes less memory, and what changes, in words; ``None``: there is none.

    None of these changes a pixel: fewer tiles at once, then one phase's engines at a time with one batch's keys and
    values, then these on the disk, then a block of the transformers at a time. Another flow, smaller tiles, a VAE in
    windows and stronger approximations are the user's to choose.

    Args:
        options: of the attempt that failed.
        streams: the networks can be opened a block at a time.
    """
    if options.batch > 1:
        batch = options.batch // 2
        return replace(options, batch=batch), f"{batch} at once instead of {options.batch} tiles"
    if options.residency == "all":
        # a group of one batch: the budget bounds what several may store
        return replace(options, residency="phases", kv_budget_bytes=1, kv_store="disk"), (
            "only one phase's engines are loaded, and keys and values lie on the disk"
        )
    if options.kv_store != "disk":
        return replace(options, kv_store="disk", kv_budget_bytes=1), "keys and values lie on the disk"
    if options.kv_budget_bytes > 1:
        return replace(options, kv_budget_bytes=1), "one tile passes through all phases before the next"
    if streams and options.residency != "streamed":
        return replace(options, residency="streamed"), "one block of the transformers is loaded at a time"
    return None

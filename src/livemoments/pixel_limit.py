"""How large a picture may be that is read: above it, a file is refused by what its header says, before decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MAX_PIXELS = 250_000_000
"""Above every camera's photo (200 megapixels); 1.5 GB at 16 bits a channel."""
max_pixels: ContextVar[int] = ContextVar("max_pixels", default=MAX_PIXELS)
"""The limit that holds here."""


@contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Another limit within the block."""
    token = max_pixels.set(pixels)
    try:
        yield
    finally:
        max_pixels.reset(token)

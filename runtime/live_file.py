"""What surrounds a restored picture in its file when it comes from a Live Photo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class LiveFile:
    """The part of a written file that is not the picture.

    Attributes:
        origin: where the images come from, JSON-able; becomes part of the metadata.
        trailer: what follows the picture in the file: a Motion Photo's video.
        gain_map: what an HDR display shows of the picture: a JPEG that follows it in its file.
        keeps_video_claims: the file's EXIF and XMP say that a video belongs to it, since one does.
    """

    origin: Mapping[str, Any] = field(default_factory=dict)
    trailer: bytes = b""
    gain_map: bytes = b""
    keeps_video_claims: bool = False

"""One Live Photo as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Clip:
    """The reselected frame, the key photo, and the frame at its instant, if there is one.

    Attributes:
        name: how it is called in reports and recordings.
    """

    frame: Path
    photo: Path
    photo_frame: Path | None = None
    name: str = "photo"

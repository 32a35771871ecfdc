"""Clips: videos and folders of consecutive frames, one kind of thing to the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError
from livemoments.runtime.image_files.colour_profiles import match_profile
from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.runtime.upstream_layout import is_broken_link, is_picture, joint_sha256
from livemoments.runtime.video.reader import VideoReader
from livemoments.types import Size

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".3gp")
FOLDER_RATE = Fraction(30)
"""Frames a second that a folder of frames is taken for."""


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What is known without decoding.

    Attributes:
        sha256: of the file, or of a folder's files in order.
        frames: how many.
        size: upright, in pixels.
        rate: frames a second; the median where it varies.
    """

    sha256: str
    frames: int
    size: Size
    rate: Fraction


class Clip(Protocol):
    """A sequence of frames that can be read at random."""

    name: str
    info: ClipInfo

    def read(self, first: int, last: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Frames ``first`` to ``last`` (inclusive), (H, W, 3) uint8 RGB, upright."""


class FolderClip:
    """Images of one size in one folder, in the order of the numbers in their names.

    Args:
        folder: holds them.
        name: how the clip is called.

    Raises:
        FileError: a file cannot be read.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._files = sorted(images_in(folder), key=_natural)
        digest = joint_sha256(hash_file(file).sha256 for file in self._files)
        self.info = ClipInfo(digest, len(self._files), read_photo(self._files[0]).size, FOLDER_RATE)

    def read(self, first: int, last: int) -> Iterator[npt.NDArray[np.uint8]]:
        """See :class:`Clip`.

        Raises:
            ImageError: an image cannot be read or has another size than the first.
        """
        for file in self._files[first : last + 1]:
            pixels = read_8_bit(file)
            if pixels.shape[:2] != (self.info.size.height, self.info.size.width):
                message = f"is {pixels.shape[1]}x{pixels.shape[0]}, the folder's first image is {self.info.size}"
                raise ImageError(file, message, fix="put only the frames of one clip into a folder")
            yield pixels


class VideoClip:
    """A video as a clip; see :class:`livemoments.runtime.video.reader.VideoReader`.

    Args:
        path: the file.
        name: how the clip is called.

    Raises:
        FileError: it cannot be read, has no video, or is interlaced, HDR or not of square pixels.
        ModuleNotFoundError: PyAV is not installed.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        digest = hash_file(path).sha256
        self._reader = VideoReader(path)
        reader = self._reader
        self.info = ClipInfo(digest, len(reader.times), reader.size, reader.rate or FOLDER_RATE)

    def read(self, first: int, last: int) -> Iterator[npt.NDArray[np.uint8]]:
        """See :class:`Clip`.

        Raises:
            FileError: a frame is missing, damaged or of another size.
        """
        return self._reader.read(first, last)


def images_in(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names."""
    return [path for path in visible(folder) if is_picture(path)]


def is_video(path: Path) -> bool:
    """Whether a file is a video by its suffix; a link to nothing with such a suffix counts, so that it is named."""
    return path.suffix.lower() in VIDEO_SUFFIXES and (path.is_file() or is_broken_link(path))


def visible(folder: Path) -> list[Path]:
    """What a folder holds but for hidden files, in the order of names."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise FileError(folder, f"cannot be read ({error.strerror})", fix="check its permissions") from None


def read_8_bit(path: Path) -> npt.NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8 sRGB, whatever its colour profile."""
    photo = read_photo(path)
    photo, _ = match_profile(photo, Photo(photo.pixels[:1, :1]))
    return to_bit_depth(photo.pixels, 8)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts ``frame2`` before ``frame10``."""
    parts = re.findall(r"(\d+)|(\D+)", path.name)
    return [(0, int(number), "") if number else (1, 0, text) for number, text in parts]

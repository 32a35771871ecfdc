"""Clips: videos and folders of consecutive frames, one kind of thing to the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, LiveMomentsError
from livemoments.runtime.image_files.colour_profiles import match_profile
from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.runtime.upstream_layout import is_broken_link, is_picture, joint_sha256
from livemoments.types import Size
from livemoments.validate.synlive.yuv import UnusableFrameError, frame_to_rgb

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".3gp")
FOLDER_RATE = Fraction(30)
"""Frames a second that a folder of frames is taken for."""
_ANOTHER = "copy it again, or use another video"
_LEADS = (0, 48, 300, None)
"""Frames before the wanted one at which decoding begins, one after the other where it did not come; ``None``: at the
start. Streams without an index (MPEG-TS, MPEG-PS) and open groups of pictures seek past what they should."""


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
    """A video, read through PyAV. Frames are counted in the order in which they are shown.

    Args:
        path: the file.
        name: how the clip is called.

    Raises:
        FileError: it cannot be read, has no video, or is interlaced, HDR or not of square pixels.
        ModuleNotFoundError: PyAV is not installed.
    """

    def __init__(self, path: Path, name: str) -> None:
        import av

        self.name = name
        self._path = path
        self._size: Size | None = None
        digest = hash_file(path).sha256
        try:
            with av.open(str(path)) as container:
                stream = self._stream(container)
                if stream.sample_aspect_ratio not in (None, 0, 1):
                    raise self._error("does not have square pixels")
                self._times = sorted(
                    packet.pts for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard
                )
                if not self._times:
                    raise self._error("holds no frames")
                rate = self._rate(stream)
            self._size = Size(*next(self.read(0, 0)).shape[:2])
        except (av.FFmpegError, UnusableFrameError, EOFError) as error:
            raise self._trouble(error) from None
        self.info = ClipInfo(digest, len(self._times), self._size, rate)

    def read(self, first: int, last: int) -> Iterator[npt.NDArray[np.uint8]]:
        """See :class:`Clip`.

        Raises:
            FileError: a frame is missing, damaged or of another size.
        """
        import av

        at = first
        try:
            for lead in _LEADS:
                for pixels in self._decode(at, last, lead):
                    if self._size not in (None, Size(*pixels.shape[:2])):
                        message = f"frame {at} is {pixels.shape[1]}x{pixels.shape[0]}, the first is {self._size}"
                        raise self._error(message)
                    yield pixels
                    at += 1
                if at > last:
                    return
        except (av.FFmpegError, UnusableFrameError, EOFError) as error:
            raise self._trouble(error) from None
        raise self._error(f"frame {at} is damaged or missing")

    def _decode(self, first: int, last: int, lead: int | None) -> Iterator[npt.NDArray[np.uint8]]:
        """Frames from ``first`` on, as many as come one after the other; decoding begins ``lead`` frames before."""
        import av

        wanted = self._times[first : last + 1]
        with av.open(str(self._path)) as container:
            stream = self._stream(container)
            stream.thread_type = "AUTO"
            if lead is not None and first > lead:
                container.seek(self._times[first - lead], stream=stream, backward=True, any_frame=False)
            count = 0
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts < wanted[count]:
                    continue
                if frame.pts > wanted[count] or frame.is_corrupt:
                    return
                if frame.interlaced_frame:
                    raise self._error("is interlaced")
                yield frame_to_rgb(frame)
                count += 1
                if count == len(wanted):
                    return

    def _stream(self, container: Any) -> Any:
        """The first video; a cover picture, which players show for sound, is none."""
        import av

        cover = av.stream.Disposition.attached_pic
        videos = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not videos:
            raise self._error("holds no video")
        return videos[0]

    def _rate(self, stream: Any) -> Fraction:
        steps = sorted(later - earlier for earlier, later in zip(self._times, self._times[1:], strict=False))
        step = steps[len(steps) // 2] if steps else 0
        if step <= 0:
            return FOLDER_RATE
        return Fraction(1 / (step * stream.time_base)).limit_denominator(1001)

    def _error(self, message: str) -> FileError:
        return FileError(self._path, message, fix=_ANOTHER)

    def _trouble(self, error: Exception) -> FileError:
        if isinstance(error, LiveMomentsError):
            return FileError(self._path, error.message, fix=error.fix)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return self._error(f"cannot be read as a video ({reason[:1].lower() + reason[1:]})")


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

"""A video's frames, at random or in order, through PyAV."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from livemoments.errors import FileError, LiveMomentsError
from livemoments.runtime.video.span import Span
from livemoments.runtime.video.yuv import UnusableFrameError, frame_to_rgb
from livemoments.types import Size

_ANOTHER = "copy it again, or use another video"
_LEADS = (0, 48, 300, None)
"""Frames before the wanted one at which decoding begins, one after the other where it did not come; ``None``: at the
start. Streams without an index (MPEG-TS, MPEG-PS) and open groups of pictures seek past what they should."""

Pixels = npt.NDArray[np.uint8]


class VideoReader:
    """The frames of a video's first picture track, counted in the order in which they are shown.

    Args:
        source: the file, or the part of one that is the video.
        container: FFmpeg's name of the only container that may be read; ``None``: whatever it knows. Files from
            strangers need one: playlists open other files.
        max_pixels: refuse larger frames, before they are decoded; ``None``: any.
        max_frames: refuse more of them; ``None``: any number.
        convert: what makes RGB of a decoded frame.

    Raises:
        FileError: it cannot be read, has no video, too much of it, or is interlaced or not of square pixels; or
            ``convert`` cannot take its frames.
        ModuleNotFoundError: PyAV is not installed.

    Attributes:
        path: the file.
        times: when each frame is shown, in seconds from the start of the movie, ascending.
        size: upright, in pixels.
        rate: frames a second, the median where it varies; ``None``: there are too few frames to tell.
    """

    def __init__(
        self,
        source: Path | Span,
        *,
        container: str | None = None,
        max_pixels: int | None = None,
        max_frames: int | None = None,
        convert: Callable[[Any], Pixels] = frame_to_rgb,
    ) -> None:
        import av

        self._span = source if isinstance(source, Span) else None
        self.path = source.path if isinstance(source, Span) else source
        self._container, self._max_pixels, self._convert = container, max_pixels, convert
        self._size: Size | None = None
        try:
            with self._open() as opened:
                stream = self._stream(opened)
                if stream.sample_aspect_ratio not in (None, 0, 1):
                    raise self._error("does not have square pixels")
                self._pts = self._find_times(opened, stream, max_frames)
                self.times = tuple(pts * stream.time_base for pts in self._pts)
            self.size = self._size = Size(*next(self.read(0, 0)).shape[:2])
        except (av.FFmpegError, UnusableFrameError, EOFError, OSError, ValueError) as error:
            raise self._trouble(error) from None
        self.rate = _median_rate(self.times)

    def read(self, first: int, last: int) -> Iterator[Pixels]:
        """Frames ``first`` to ``last`` (inclusive), (H, W, 3) uint8 RGB, upright.

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
        except (av.FFmpegError, UnusableFrameError, EOFError, OSError) as error:
            raise self._trouble(error) from None
        raise self._error(f"frame {at} is damaged or missing")

    def _decode(self, first: int, last: int, lead: int | None) -> Iterator[Pixels]:
        """Frames from ``first`` on, as many as come one after the other; decoding begins ``lead`` frames before."""
        wanted = self._pts[first : last + 1]
        with self._open() as opened:
            stream = self._stream(opened)
            stream.thread_type = "AUTO"
            if self._max_pixels is not None:
                stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
            if lead is not None and first > lead:
                opened.seek(self._pts[first - lead], stream=stream, backward=True, any_frame=False)
            found = 0
            for frame in opened.decode(stream):
                if frame.pts is None or frame.pts < wanted[found]:
                    continue
                if frame.pts > wanted[found] or frame.is_corrupt:
                    return
                if frame.interlaced_frame:
                    raise self._error("is interlaced")
                self._check_pixels(frame.width, frame.height)
                yield self._convert(frame)
                found += 1
                if found == len(wanted):
                    return

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        import av

        with contextlib.ExitStack() as stack:
            file: Any = str(self.path) if self._span is None else stack.enter_context(self._span.open())
            yield stack.enter_context(av.open(file, format=self._container))

    def _stream(self, container: Any) -> Any:
        """The first video; a cover picture, which players show for sound, is none."""
        import av

        cover = av.stream.Disposition.attached_pic
        videos = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not videos:
            raise self._error("holds no video")
        if videos[0].codec_context is None:
            raise self._error("is of a codec that cannot be decoded")
        self._check_pixels(videos[0].width or 0, videos[0].height or 0)
        return videos[0]

    def _check_pixels(self, width: int, height: int) -> None:
        if self._max_pixels is not None and width * height > self._max_pixels:
            raise self._error(f"has frames of {width}x{height} pixels; the limit is {self._max_pixels:,}")

    def _find_times(self, container: Any, stream: Any, max_frames: int | None) -> list[int]:
        """When the frames are shown, in the stream's units; those that an edit list cuts away are not shown."""
        times = []
        for packet in container.demux(stream):
            if packet.pts is not None and not packet.is_discard:
                times.append(packet.pts)
            if max_frames is not None and len(times) > max_frames:
                raise self._error(f"has more than {max_frames} frames, which no Live Photo's clip has")
        if not times:
            raise self._error("holds no frames")
        return sorted(times)

    def _error(self, message: str) -> FileError:
        return FileError(self.path, message, fix=_ANOTHER)

    def _trouble(self, error: Exception) -> FileError:
        if isinstance(error, LiveMomentsError):
            return FileError(self.path, error.message, fix=error.fix)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return self._error(f"cannot be read as a video ({reason[:1].lower() + reason[1:]})")


def _median_rate(times: tuple[Fraction, ...]) -> Fraction | None:
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    step = steps[len(steps) // 2] if steps else Fraction(0)
    return Fraction(1 / step).limit_denominator(1001) if step > 0 else None

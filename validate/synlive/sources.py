"""Where pairs come from: clips with moving scenes, or photographs that are moved by hand."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, UsageError
from livemoments.progress import Progress
from livemoments.runtime.image_files.photo import MIN_SIDE_PX
from livemoments.runtime.upstream_layout import listed
from livemoments.simulated_clip import MARGIN_FRACTION, simulate_live_photo
from livemoments.store.names import check_utf8, escaped
from livemoments.types import Size
from livemoments.validate.synlive.clips import (
    Clip,
    FolderClip,
    VideoClip,
    images_in,
    is_video,
    read_8_bit,
    visible,
)
from livemoments.validate.synlive.codec import LEAD_FRAMES, TAIL_FRAMES
from livemoments.validate.synlive.pairs import PairMeasure, measure_pair, place_crop, start_frame

WHOLE_MULTIPLE_PX = 16
"""Whole frames are cut to sides that are multiples of this."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What pairs should be like.

    Attributes:
        gap: frames between the two.
        crop: their size; ``None``: whole frames.
        neighbours: the codec needs the clip's frames around them.
    """

    gap: int
    crop: Size | None
    neighbours: bool


@dataclass(frozen=True, slots=True)
class RawPair:
    """Two frames in full quality, (H, W, 3) uint8 RGB, cropped.

    Attributes:
        key, frame: the key photo and the reselected frame.
        key_index, frame_index: their numbers in the clip; of photographs 0 (as it is) and 1 (moved).
        y, x: top row and left column of the crop.
        measure: how the two differ.
        around: the clip's frames around both from number ``first_index`` on, if they were asked for, cropped too.
        rate: the clip's frames a second.
    """

    key: Pixels
    frame: Pixels
    key_index: int
    frame_index: int
    y: int
    x: int
    measure: PairMeasure
    around: tuple[Pixels, ...] = ()
    first_index: int = 0
    rate: Fraction = Fraction(30)


class Source(abc.ABC):
    """A video, a folder of frames or a photograph.

    Attributes:
        name: its path below the folder of all sources.
        sha256: of its contents.
        gap: pairs that start closer to each other than this overlap; 0: none do.
    """

    name: str
    sha256: str
    gap: int

    @abc.abstractmethod
    def start(self, slot: int, phase: float) -> int:
        """What tells pair number ``slot`` from others: the number of its earlier frame."""

    @abc.abstractmethod
    def pair(self, start: int, rng: np.random.Generator) -> RawPair | str:
        """That pair, or why it is of no use."""


class ClipSource(Source):
    """Pairs of frames of one clip, which do not overlap.

    Args:
        clip: the frames.
        options: what pairs should be like.

    Raises:
        ImageError: the clip is too short or too small for it.
    """

    def __init__(self, clip: Clip, options: PairOptions) -> None:
        self.name, self.sha256, self.gap = clip.name, clip.info.sha256, options.gap
        self._clip, self._options = clip, options
        if clip.info.frames <= self.gap:
            raise ImageError(clip.name, f"has {clip.info.frames} frames, no two of them {self.gap} apart")
        _check_size(clip.name, clip.info.size, options.crop or Size(WHOLE_MULTIPLE_PX, WHOLE_MULTIPLE_PX))

    def start(self, slot: int, phase: float) -> int:
        """See :class:`Source`."""
        return start_frame(slot, phase, self._clip.info.frames - self.gap)

    def pair(self, start: int, rng: np.random.Generator) -> RawPair | str:
        """See :class:`Source`."""
        end = start + self.gap
        key_index, frame_index = (start, end) if rng.random() < 0.5 else (end, start)
        try:
            images = {index: next(self._clip.read(index, index)) for index in (start, end)}
            y, x, window = _crop(images[key_index], self._options.crop, rng)
            key, frame = (np.ascontiguousarray(images[index][window]) for index in (key_index, frame_index))
            measure = measure_pair(key, frame)
            if problem := measure.problem():
                return problem
            first, around = self._around(start, end, window)
        except FileError as error:
            return error.message.removeprefix(f"{error.path}: ")
        rate = self._clip.info.rate
        return RawPair(key, frame, key_index, frame_index, y, x, measure, around, first, rate)

    def _around(self, start: int, end: int, window: tuple[slice, slice]) -> tuple[int, tuple[Pixels, ...]]:
        if not self._options.neighbours:
            return start, ()
        first, last = max(0, start - LEAD_FRAMES), min(self._clip.info.frames - 1, end + TAIL_FRAMES)
        return first, tuple(np.ascontiguousarray(image[window]) for image in self._clip.read(first, last))


class PhotoSource(Source):
    """Pairs of a photograph as it is and as a hand-held camera would see it an instant later: every motion is another.

    Args:
        path: the photograph.
        name: how it is called.
        crop: of the pairs; ``None``: all that the motion leaves.

    Raises:
        FileError: it cannot be read, or is too small.
    """

    def __init__(self, path: Path, name: str, crop: Size | None) -> None:
        self.name, self.sha256, self.gap = name, hash_file(path).sha256, 0
        self._path, self._crop = path, crop
        size = Size(*read_8_bit(path).shape[:2])
        _check_size(name, size, with_margin(crop or Size(2 * MIN_SIDE_PX, 2 * MIN_SIDE_PX)))

    def start(self, slot: int, phase: float) -> int:
        """See :class:`Source`."""
        return slot

    def pair(self, start: int, rng: np.random.Generator) -> RawPair | str:
        """See :class:`Source`."""
        pixels = read_8_bit(self._path)
        y, x, window = _crop(pixels, with_margin(self._crop) if self._crop else None, rng)
        key, frame = moved_pair(np.ascontiguousarray(pixels[window]), self._crop, seed=int(rng.integers(1 << 31)))
        measure = measure_pair(key, frame)
        return measure.problem() or RawPair(key, frame, 0, 1, y, x, measure)


def with_margin(size: Size) -> Size:
    """How large a photograph must be so that ``size`` is left when it was moved."""

    def outer(side: int) -> int:
        whole = -(-side // WHOLE_MULTIPLE_PX) * WHOLE_MULTIPLE_PX
        return next(outer for outer in itertools.count(whole) if outer - 2 * round(outer * MARGIN_FRACTION) >= whole)

    return Size(outer(size.height), outer(size.width))


def moved_pair(photograph: Pixels, size: Size | None, *, seed: int) -> tuple[Pixels, Pixels]:
    """A photograph and what a hand-held camera would see an instant later, both in full quality.

    Args:
        photograph: (H, W, 3) uint8 RGB.
        size: of both, at most what the motion leaves; ``None``: all of that.
        seed: of the motion.
    """
    moved = simulate_live_photo(photograph, seed=seed, multiple=WHOLE_MULTIPLE_PX)
    height, width = (size.height, size.width) if size else moved.photo.shape[:2]
    key, frame = (np.ascontiguousarray(image[:height, :width]) for image in (moved.photo, moved.parts()["truth"]))
    return key, frame


def open_sources(
    folder: Path, options: PairOptions, *, photographs: bool, skip_unusable: bool, progress: Progress
) -> tuple[list[Source], dict[str, str]]:
    """Open everything that pairs can be made from.

    Args:
        folder: videos (at any depth) and folders of consecutive frames; or photographs (at any depth).
        options: what pairs should be like.
        photographs: which of the two.
        skip_unusable: leave out what cannot be used instead of refusing all.
        progress: where to report.

    Returns:
        The sources in the order of their names, and what was left out: why, by name.

    Raises:
        ImageError: there is no such folder, nothing in it, or something that cannot be used.
        ModuleNotFoundError: there are videos, and PyAV is not installed.
    """
    what = "photographs" if photographs else "videos"
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "no such folder"
        raise ImageError(folder, problem, fix=f"name a folder with {what}")
    places = _photographs(folder) if photographs else _clips(folder)
    if not places:
        raise ImageError(folder, f"holds no {what}", fix=f"name a folder with {what}; suffixes tell what a file is")
    sources: list[Source] = []
    unusable: dict[str, str] = {}
    with progress.task(f"Checking the {what}", len(places)) as task:
        for place in places:
            name = place.relative_to(folder).as_posix() if place != folder else folder.resolve().name
            try:
                sources.append(_open(place, name, options, photographs))
            except (FileError, UsageError) as error:
                unusable[escaped(name)] = error.message.removeprefix(f"{getattr(error, 'path', '')}: ")
            task.advance(1, note=name)
    if unusable and not (skip_unusable and sources):
        name, reason = next(iter(unusable.items()))
        message = f"{len(unusable)} of {len(places)} {what} cannot be used: {listed(list(unusable))}; {name} {reason}"
        fix = f"use other {what}" if skip_unusable else "take them out, or leave them out with --skip-unusable"
        raise ImageError(folder, message, fix=fix)
    return sources, unusable


def _open(place: Path, name: str, options: PairOptions, photographs: bool) -> Source:
    check_utf8(name, ImageError)
    if photographs:
        return PhotoSource(place, name, options.crop)
    return ClipSource(FolderClip(place, name) if place.is_dir() else VideoClip(place, name), options)


def _clips(folder: Path) -> list[Path]:
    """Videos, and folders that hold images and no videos (a video's folder may hold its key photos)."""
    clips = []
    for inner in _folders(folder):
        videos = [path for path in visible(inner) if is_video(path)]
        clips += videos if videos or len(images_in(inner)) < 2 else [inner]
    return _each_once(sorted(clips))


def _photographs(folder: Path) -> list[Path]:
    return _each_once(sorted(path for inner in _folders(folder) for path in images_in(inner)))


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those in it at any depth, each once: a link may lead back up."""
    seen, left = set(), [folder]
    while left:
        inner = left.pop()
        status = inner.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield inner
        left += [path for path in reversed(visible(inner)) if path.is_dir()]


def _each_once(paths: Sequence[Path]) -> list[Path]:
    """Without further names (links of either kind) of what is there already; links to nothing stay."""
    by_file: dict[object, Path] = {}
    for path in paths:
        try:
            status = path.stat()
            by_file.setdefault((status.st_dev, status.st_ino), path)
        except OSError:
            by_file[path] = path
    return list(by_file.values())


def _crop(image: Pixels, size: Size | None, rng: np.random.Generator) -> tuple[int, int, tuple[slice, slice]]:
    """Top row, left column and window of a crop with some detail, or of the middle in whole multiples."""
    if size is not None:
        y, x = place_crop(image, size, rng)
    else:
        height, width = (side // WHOLE_MULTIPLE_PX * WHOLE_MULTIPLE_PX for side in image.shape[:2])
        size = Size(height, width)
        y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return y, x, (slice(y, y + size.height), slice(x, x + size.width))


def _check_size(name: str, size: Size, least: Size) -> None:
    if size.height < least.height or size.width < least.width:
        raise ImageError(name, f"is {size}, and {least} are needed", fix="use a smaller --crop")

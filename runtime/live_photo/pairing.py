"""Which video belongs to a photo where the two are files of their own: by content identifier, else by name.

Apple writes one identifier into the photo's maker note and into the video's metadata; Android phones that write pairs
(vivo's JPEG and MP4, Google Takeout's halves of Motion Photos) have names only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from livemoments.errors import FileError
from livemoments.runtime.live_photo.movie import Movie, MovieError, read_movie
from livemoments.runtime.video.span import Span

VIDEO_SUFFIXES = (".mov", ".mp4", ".m4v", ".qt", ".3gp", ".mp")
"""``.mp`` is what Google Takeout calls the video of ``….MP.jpg``."""
PHOTO_SUFFIXES = (".heic", ".heif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
_NAME_ENDINGS = ("", "_hevc", "_heic", "_live", "(1)")
_MAX_SEARCHED = 2000
"""Videos of a folder whose identifiers are read."""
_FORCE = "name the right one with --video, or say --force to take it all the same"


@dataclass(frozen=True, slots=True)
class Paired:
    """A video beside a photo, and how it was found."""

    span: Span
    movie: Movie
    found_by: str
    notes: tuple[str, ...] = ()


def pair(photo: Path, identifier: str | None, *, video: Path | None, force: bool) -> Paired | None:
    """Find a photo's video, or check the one that is named.

    Args:
        photo: the photo's file.
        identifier: Apple's content identifier in it.
        video: the video that the user named.
        force: take it although the identifiers contradict.

    Returns:
        The video; ``None`` where none is named and none lies beside the photo.

    Raises:
        FileError: a video is no video, or belongs to another photo by its identifier.
    """
    if video is not None:
        return _checked(photo, identifier, video, "--video", force)
    if identifier is not None:
        same = [path for path in _videos(photo.parent) if _identifier(path) == identifier]
        if same:
            own = [path for path in same if is_named_like(path, photo)]
            best = own[0] if own else same[0]
            named = "" if own else f", although it is called {best.name}"
            several = (f"{len(same)} videos have its identifier: {best.name} was taken",) * (len(same) > 1)
            span = Span.whole(best)
            return Paired(span, read_movie(span), f"content identifier{named}", several)
    named_alike = [path for path in _videos(photo.parent) if is_named_like(path, photo)]
    if not named_alike:
        return None
    return _checked(photo, identifier, named_alike[0], "name", force)


def is_named_like(video: Path, photo: Path) -> bool:
    """Whether a video's name is the photo's with another suffix, as phones and downloaders write it."""
    name = video.name.lower()
    stems = [photo.stem.lower() + ending for ending in _NAME_ENDINGS] + [photo.name.lower()]
    return name in {stem + suffix for stem in stems for suffix in VIDEO_SUFFIXES} | {photo.stem.lower()}


def find_photo(video: Path) -> Path:
    """The photo that a video belongs to by its name.

    Raises:
        FileError: there is none.
    """
    for path in sorted(_files(video.parent)):
        if path.suffix.lower() in PHOTO_SUFFIXES and is_named_like(video, path):
            return path
    raise FileError(video, "is a video, and no photo of that name lies beside it", fix="name the photo")


def _checked(photo: Path, identifier: str | None, video: Path, found_by: str, force: bool) -> Paired:
    _check_same_bytes(photo, video)
    try:
        span = Span.whole(video)
        movie = read_movie(span)
    except FileNotFoundError:
        raise FileError(video, "no such file", fix="check the path") from None
    except OSError as error:
        raise FileError(video, f"cannot be read ({error.strerror})", fix="check its permissions") from None
    except MovieError as error:
        raise FileError(video, f"cannot be read as a video: {error}", fix="copy it again from the phone") from None
    if identifier != movie.identifier:
        if identifier is not None and movie.identifier is not None:
            both = f"its content identifier is {movie.identifier}, the photo's {identifier}"
            problem = f"belongs to another photo: {both}"
        else:
            has, lacks = (photo.name, video.name) if identifier is not None else (video.name, photo.name)
            problem = f"only {has} has a content identifier, {lacks} has none"
        if not force:
            raise FileError(video, problem, fix=_FORCE)
        return Paired(span, movie, found_by, (f"{problem}: taken by --force",))
    return Paired(span, movie, found_by)


def _check_same_bytes(photo: Path, video: Path) -> None:
    """Phones that ran out of space, and downloaders, write the photo twice."""
    try:
        if photo.stat().st_size == video.stat().st_size and photo.read_bytes() == video.read_bytes():
            fix = "copy the video again from the phone"
            raise FileError(video, f"is byte for byte the photo {photo.name}, not a video", fix=fix)
    except OSError:
        return  # said better by what opens it


def _identifier(path: Path) -> str | None:
    try:
        return read_movie(Span.whole(path)).identifier
    except (MovieError, OSError):
        return None


def _videos(folder: Path) -> list[Path]:
    found = [path for path in _files(folder) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    return sorted(found)[:_MAX_SEARCHED]


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise FileError(folder, f"cannot be read ({error.strerror})", fix="check its permissions") from None

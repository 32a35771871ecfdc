"""Live Photos of every kind are opened: where the video lies, whose it is, when the photo was taken.

Each trap was reported against another reader (the numbers are theirs). Beside what ours must find stands what a reader
without the remedy does with the same file, which must go wrong: otherwise the file would not be the trap.
"""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import pytest
from live_photo_files import (
    IDENTIFIER,
    KEY_FRAME,
    OTHER_IDENTIFIER,
    RATE,
    apple_movie,
    box,
    exif_block,
    google_photo,
    item,
    key_time_us,
    motion_xmp,
    movie_bytes,
    mpv2,
    part,
    photo_and_frames,
    sef_trailer,
    still_bytes,
    top_boxes,
    with_still_time,
    write,
    write_pair,
)

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.errors import FileError, ImageError
from livemoments.runtime.live_photo.claims import read_claims
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.opened import APPLE, MOTION, PLAIN, OpenedLivePhoto, open_live_photo
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
PHOTO, FRAMES = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(72, 96))
MOVIE = movie_bytes(FRAMES)
OTHER = movie_bytes(FRAMES[:3])
"""A shorter movie: the decoy."""


def embedded(live: OpenedLivePhoto) -> bytes:
    return live.video.read(0, live.video.size)


def assert_found(path: Path, movie: bytes = MOVIE) -> OpenedLivePhoto:
    """The video is this one, byte for byte, and can be decoded."""
    live = open_live_photo(path)
    assert live.kind == MOTION
    assert embedded(live) == movie
    assert len(LiveClip(live).times_s) == len(FRAMES if movie is MOVIE else FRAMES[:3])
    return live


def by_declared_length(data: bytes) -> bytes:
    """A reader that believes the XMP's length."""
    (length,) = [entry.length for entry in read_claims(xmp_of(data)).items if entry.semantic == "MotionPhoto"]
    return data[len(data) - (length or 0) :]


def by_first_type(data: bytes) -> bytes:
    """A reader that takes everything from the first ``ftyp`` behind the file's own start."""
    return data[data.index(b"ftyp", 8) - 4 :]


def xmp_of(data: bytes) -> bytes:
    start = data.index(b"<x:xmpmeta")
    return data[start : data.index(b"</x:xmpmeta>", start) + 12]


# Apple's pairs


@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_an_apple_pair(tmp_path: Path, kind: str) -> None:
    still, video = write_pair(tmp_path, PHOTO, FRAMES, kind=kind)
    for given in (still, video, tmp_path):
        live = open_live_photo(given)
        assert (live.path, live.video.path, live.kind) == (still, video, APPLE)
        assert live.identifier == live.movie.identifier == IDENTIFIER
        assert live.key_time_s == pytest.approx(KEY_FRAME / RATE, abs=1e-3)
        clip = LiveClip(live)
        assert clip.key_index == KEY_FRAME
        assert len(clip.times_s) == len(FRAMES)


def test_the_key_time_is_the_empty_edit_not_the_samples_own_time(tmp_path: Path) -> None:
    """The sample lies at 0 of its media: a reader that takes that says 0."""
    still, video = write_pair(tmp_path, PHOTO, FRAMES, key_frame=None)
    assert open_live_photo(still).key_time_s is None
    seconds = Fraction(7, 40)
    video.write_bytes(with_still_time(apple_movie(FRAMES, key_frame=None), seconds))
    assert open_live_photo(still).key_time_s == pytest.approx(float(seconds), abs=1e-3)


def test_identifiers_decide_before_names(tmp_path: Path) -> None:
    """AppleLivePhotoConvert 10, Google's Takeout: names that are swapped. By name the wrong video is taken."""
    first = write(tmp_path / "IMG_1.JPG", still_bytes(PHOTO, exif=exif_block(identifier=IDENTIFIER)))
    second = write(tmp_path / "IMG_2.JPG", still_bytes(PHOTO, exif=exif_block(identifier=OTHER_IDENTIFIER)))
    write(tmp_path / "IMG_1.MOV", apple_movie(FRAMES[:3], OTHER_IDENTIFIER))
    write(tmp_path / "IMG_2.MOV", apple_movie(FRAMES, IDENTIFIER))
    assert first.with_suffix(".MOV").exists()  # what a reader by names takes
    assert open_live_photo(first).video.path.name == "IMG_2.MOV"
    assert open_live_photo(second).video.path.name == "IMG_1.MOV"
    assert "although it is called" in open_live_photo(first).found_by


def test_edited_photos_take_the_video_of_their_own_name(tmp_path: Path) -> None:
    """immich 5473, kei 713: the edit and the original share an identifier. The first video found is the original's."""
    identifier = exif_block(identifier=IDENTIFIER)
    edited = write(tmp_path / "IMG_E0001.JPG", still_bytes(PHOTO[16:-16], exif=identifier))
    write(tmp_path / "IMG_0001.JPG", still_bytes(PHOTO, exif=identifier))
    write(tmp_path / "IMG_0001.MOV", apple_movie(FRAMES))
    write(tmp_path / "IMG_E0001.MOV", apple_movie(FRAMES[:3]))
    live = open_live_photo(edited)
    assert live.video.path.name == "IMG_E0001.MOV"
    assert any("2 videos have its identifier" in note for note in live.notes)
    assert open_live_photo(tmp_path / "IMG_0001.JPG").video.path.name == "IMG_0001.MOV"


@pytest.mark.parametrize(("photos", "videos"), [(IDENTIFIER, None), (None, IDENTIFIER), (IDENTIFIER, OTHER_IDENTIFIER)])
def test_an_identifier_on_one_side_or_another_one_is_refused_unless_forced(
    tmp_path: Path, photos: str | None, videos: str | None
) -> None:
    still = write(tmp_path / "a.jpg", still_bytes(PHOTO, exif=exif_block(identifier=photos)))
    video = write(tmp_path / "a.mov", apple_movie(FRAMES, videos))
    for given in (None, video):
        with pytest.raises(FileError, match="identifier") as refused:
            open_live_photo(still, video=given)
        assert "--force" in str(refused.value.fix)
        live = open_live_photo(still, video=given, force=True)
        assert live.kind == PLAIN
        assert any("taken by --force" in note for note in live.notes)


@pytest.mark.parametrize("name", ["a.MP4", "a_HEVC.MOV", "A.JPG.mov", "a.mp", "a_heic.mov"])
def test_a_plain_photo_and_video_are_matched_by_name(tmp_path: Path, name: str) -> None:
    """vivo's JPEG and MP4; what downloaders make of the names."""
    still = write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "b.mp4", MOVIE)
    write(tmp_path / name, MOVIE)
    live = open_live_photo(still)
    assert (live.kind, live.video.path.name, live.key_time_s) == (PLAIN, name, None)


def test_takeouts_halves_of_a_motion_photo(tmp_path: Path) -> None:
    """Google's Takeout writes the video as ``….MP`` beside ``….MP.jpg``, and leaves claims in the photo."""
    data = google_photo(PHOTO, MOVIE)
    still = write(tmp_path / "PXL_1.MP.jpg", data[: -len(MOVIE)])
    write(tmp_path / "PXL_1.MP", MOVIE)
    live = open_live_photo(still)
    assert live.kind == PLAIN
    assert live.key_time_s == pytest.approx(KEY_FRAME / RATE, abs=1e-5)


def test_a_movie_without_ftyp(tmp_path: Path) -> None:
    """metadata-extractor-dotnet 426: ``wide`` and ``mdat`` first. A reader that asks for ``ftyp`` refuses it."""
    still, video = write_pair(tmp_path, PHOTO, FRAMES)
    data = video.read_bytes()
    ftyp = part(data, b"ftyp")
    # offsets in the file stay true: boxes of no meaning take the place of ftyp
    video.write_bytes(box(b"wide", bytes(len(ftyp) - 8)) + data[len(ftyp) :])
    assert b"ftyp" not in video.read_bytes()[:16]
    live = open_live_photo(still)
    assert (live.kind, live.movie.brand) == (APPLE, None)
    assert len(LiveClip(live).times_s) == len(FRAMES)


def test_a_movie_that_is_the_photo_again(tmp_path: Path) -> None:
    """photoprism 1895. A reader by suffix hands it to a decoder."""
    still = write(tmp_path / "IMG_1.HEIC", still_bytes(PHOTO, kind="HEIF"))
    write(tmp_path / "IMG_1.MOV", still.read_bytes())
    with pytest.raises(FileError, match=r"byte for byte the photo IMG_1\.HEIC"):
        open_live_photo(still)
    write(tmp_path / "IMG_1.MOV", still_bytes(PHOTO[::-1], kind="HEIF"))
    with pytest.raises(FileError, match="still image \\('heic'\\), not a video"):
        open_live_photo(still)


def test_no_video_is_named(tmp_path: Path) -> None:
    still = write(tmp_path / "a.jpg", still_bytes(PHOTO))
    with pytest.raises(FileError, match="no video belongs to it"):
        open_live_photo(still)
    with pytest.raises(FileError, match="no such file"):
        open_live_photo(still, video=tmp_path / "b.mov")
    with pytest.raises(FileError, match="no photo of that name"):
        open_live_photo(write(tmp_path / "c.mov", MOVIE))
    with pytest.raises(ImageError, match="no such file"):
        open_live_photo(tmp_path / "d.heic")
    claimed = write(tmp_path / "e.jpg", still_bytes(PHOTO, xmp=motion_xmp()))
    with pytest.raises(FileError, match="although its metadata speak of one"):
        open_live_photo(claimed)


def test_a_movie_without_pictures(tmp_path: Path) -> None:
    still, video = write_pair(tmp_path, PHOTO, FRAMES)
    data = video.read_bytes()
    video.write_bytes(data.replace(b"vide", b"soun"))
    with pytest.raises(FileError, match="holds no pictures"):
        open_live_photo(still)


# Motion Photos


@pytest.mark.parametrize("kind", ["JPEG", "HEIC"])
@pytest.mark.parametrize("brand", [None, "mp42", "mp4a"])
def test_a_motion_photo_of_any_brand(tmp_path: Path, kind: str, brand: str | None) -> None:
    """photoprism 1739: the brand changed from ``mp4…`` to ``isom``. A search for one of them finds nothing."""
    movie = movie_bytes(FRAMES, brand=brand)
    path = write(tmp_path / f"a.{kind.lower()}", google_photo(PHOTO, movie, kind=kind))
    live = open_live_photo(path)
    assert embedded(live) == movie
    assert live.movie.brand == (brand or "isom")
    assert (b"ftypmp4" in path.read_bytes()) == (brand is not None)  # what older phones' readers look for
    assert live.found_by == "XMP container"
    assert LiveClip(live).key_index == KEY_FRAME
    without_claims = write(tmp_path / f"b.{kind.lower()}", path.read_bytes().replace(b"MotionPhoto", b"NotionPhoto"))
    assert embedded(open_live_photo(without_claims)) == movie


def test_micro_video(tmp_path: Path) -> None:
    attributes = f'GCamera:MicroVideo="1" GCamera:MicroVideoOffset="{len(MOVIE)}" '
    attributes += f'GCamera:MicroVideoPresentationTimestampUs="{key_time_us()}"'
    still = still_bytes(PHOTO, xmp=motion_xmp(attributes=attributes))
    live = assert_found(write(tmp_path / "MVIMG.jpg", still + MOVIE))
    assert live.found_by == "XMP MicroVideoOffset"
    assert LiveClip(live).key_index == KEY_FRAME


def test_an_unknown_instant_is_no_instant(tmp_path: Path) -> None:
    xmp = motion_xmp(item("Primary", "image/jpeg", 0), item("MotionPhoto", "video/mp4", len(MOVIE)), time_us=-1)
    live = assert_found(write(tmp_path / "a.jpg", still_bytes(PHOTO, xmp=xmp) + MOVIE))
    assert live.key_time_s is None
    assert LiveClip(live).key_index is None


def gain_map() -> bytes:
    return still_bytes(PHOTO[::4, ::4])


def test_a_flag_without_container_item_or_trailer(tmp_path: Path) -> None:
    """immich 30654: the directory knows the gain map only. A reader of directories finds no video."""
    extra = gain_map()
    xmp = motion_xmp(item("Primary", "image/jpeg", None), item("GainMap", "image/jpeg", len(extra)))
    path = write(tmp_path / "a.jpg", still_bytes(PHOTO, xmp=xmp) + extra + MOVIE)
    assert not list(read_claims(xmp.encode()).offsets_from_end())
    live = assert_found(path)
    assert live.found_by == "search for a movie's start"
    assert any("gain map" in note for note in live.notes)


@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_wrong_lengths_in_xmp_and_a_right_trailer(tmp_path: Path, kind: str) -> None:
    """immich 6337. A reader of XMP gets other bytes than a movie."""
    xmp = motion_xmp(item("Primary", "image/jpeg", 0), item("MotionPhoto", "video/mp4", len(MOVIE) - 1000))
    data = still_bytes(PHOTO, kind=kind, xmp=xmp) + sef_trailer(
        (b"Image_UTC_Data", b"1680"), (b"MotionPhoto_Data", MOVIE)
    )
    path = write(tmp_path / "a", data)
    assert b"ftyp" not in by_declared_length(data)[:16]
    live = assert_found(path)
    assert live.found_by == "Samsung's trailer"
    assert any("where no movie begins" in note for note in live.notes)


@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_samsungs_trailer_alone(tmp_path: Path, kind: str) -> None:
    """immich 31289, aves 1423: what Smart Switch makes of Apple's. There is no XMP to read."""
    movie = apple_movie(FRAMES)
    data = still_bytes(PHOTO, kind=kind) + sef_trailer((b"MotionPhoto_Data", movie), (b"Image_UTC_Data", b"1680"))
    live = open_live_photo(write(tmp_path / "a", data))
    assert not live.claims.is_motion
    assert live.found_by == "Samsung's trailer"
    assert embedded(live) == movie
    assert live.key_time_s == pytest.approx(KEY_FRAME / RATE, abs=1e-3)  # Apple's track is still in it


def samsung_heic(xmp_length: int, movie: bytes = MOVIE) -> bytes:
    """HEIC, ``mpvd``, and a trailer in a box of its own that points back."""
    xmp = motion_xmp(
        item("Primary", "image/heic", 0, 8), item("MotionPhoto", "video/mp4", xmp_length), time_us=key_time_us()
    )
    still = still_bytes(PHOTO, kind="HEIF", xmp=xmp)
    trailer = sef_trailer((b"MotionPhoto_Data", mpv2(len(still) + 8, len(movie))))
    return still + box(b"mpvd", movie) + box(b"sefd", trailer)


def test_a_declared_length_that_includes_sefd(tmp_path: Path) -> None:
    """XDRemux 16: the length counts the trailer, whose bytes must not become part of the movie."""
    length = 0
    for _ in range(3):  # the length's own digits are part of the file
        data = samsung_heic(length)
        length = len(data) - data.index(MOVIE)
    assert by_declared_length(data).startswith(MOVIE)
    assert by_declared_length(data) != MOVIE
    assert_found(write(tmp_path / "a.heic", data))


def test_lengths_that_are_nonsense(tmp_path: Path) -> None:
    """MotionPhoto2 6: with ``mpv2`` only the trailer's numbers mean anything (a real Galaxy S22 says 104)."""
    data = samsung_heic(104)
    assert by_declared_length(data)[4:8] != b"ftyp"
    assert assert_found(write(tmp_path / "a.heic", data)).found_by == "Samsung's trailer"
    without_trailer = data.replace(b"SEFT", b"XXXX")
    assert assert_found(write(tmp_path / "b.heic", without_trailer)).found_by == "the mpvd box"


def test_two_streams_the_first_is_shown(tmp_path: Path) -> None:
    """XDRemux 16 (OPPO's ColorOS 16): a second movie for analysis follows, and the length counts both."""
    second = movie_bytes(FRAMES + FRAMES[::-1])
    xmp = motion_xmp(item("Primary", "image/jpeg", 0), item("MotionPhoto", "video/mp4", len(MOVIE) + len(second)))
    data = still_bytes(PHOTO, xmp=xmp) + MOVIE + second
    assert by_declared_length(data) != MOVIE
    assert_found(write(tmp_path / "a.jpg", data))


def with_decoy(xmp: str | None) -> bytes:
    """A JPEG with a whole small movie in a segment of the maker's own, ahead of the picture."""
    still = still_bytes(PHOTO, xmp=xmp)
    segment = b"\xff\xea" + struct.pack(">H", 2 + len(OTHER)) + OTHER
    assert len(OTHER) < 65000
    return still[:2] + segment + still[2:]


def test_a_decoy_in_the_picture(tmp_path: Path) -> None:
    """XDRemux 16 (Samsung): bytes like a movie inside the still. A search takes the first."""
    xmp = motion_xmp(item("Primary", "image/jpeg", 0), item("MotionPhoto", "video/mp4", len(MOVIE)))
    data = with_decoy(xmp) + MOVIE
    assert by_first_type(data).startswith(OTHER)
    assert assert_found(write(tmp_path / "a.jpg", data)).found_by == "XMP container"
    live = assert_found(write(tmp_path / "b.jpg", with_decoy(None) + MOVIE))
    assert any("2 movies in the file: the largest was taken" in note for note in live.notes)


def test_ftyp_that_is_no_movie(tmp_path: Path) -> None:
    """The word alone, as any compressed data may hold it, in front of the movie."""
    data = still_bytes(PHOTO) + b"\0\0\0\x18ftypisom" + os.urandom(4000) + MOVIE
    assert by_first_type(data) != MOVIE
    assert_found(write(tmp_path / "a.jpg", data))


def test_a_primary_without_length_under_ultra_hdr(tmp_path: Path) -> None:
    """memories 965: positions counted from the front need the primary's length, which is missing."""
    extra = gain_map()
    items = (
        item("Primary", "image/jpeg", None, None),
        item("GainMap", "image/jpeg", len(extra)),
        item("MotionPhoto", "video/mp4", len(MOVIE)),
    )
    xmp = motion_xmp(*items, time_us=key_time_us(), attributes='GCamera:MotionPhoto="1" hdrgm:Version="1.0"')
    data = still_bytes(PHOTO, xmp=xmp) + extra + MOVIE
    counted = sum(entry.length or 0 for entry in read_claims(xmp.encode()).items[:2])
    assert data[counted + 4 : counted + 8] != b"ftyp"
    assert_found(write(tmp_path / "a.jpg", data))


def test_a_gain_map_behind_the_video(tmp_path: Path) -> None:
    """The video's place is counted from the file's end: what follows it counts too."""
    extra = gain_map()
    items = (
        item("Primary", "image/jpeg", 0),
        item("MotionPhoto", "video/mp4", len(MOVIE)),
        item("GainMap", "image/jpeg", len(extra)),
    )
    data = still_bytes(PHOTO, xmp=motion_xmp(*items)) + MOVIE + extra
    assert by_declared_length(data) != MOVIE
    assert assert_found(write(tmp_path / "a.jpg", data)).found_by == "XMP container"


def test_a_video_inside_is_taken_before_one_beside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", google_photo(PHOTO, MOVIE))
    write(tmp_path / "a.mp4", OTHER)
    assert_found(path)
    assert open_live_photo(path, video=tmp_path / "a.mp4").kind == PLAIN


def test_xmp_in_elements_instead_of_attributes() -> None:
    """Both of RDF's spellings."""
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:G="http://ns.google.com/photos/1.0/camera/" '
        'xmlns:C="http://ns.google.com/photos/1.0/container/" '
        'xmlns:I="http://ns.google.com/photos/1.0/container/item/"><G:MotionPhoto>1</G:MotionPhoto>'
        "<G:MotionPhotoPresentationTimestampUs>500000</G:MotionPhotoPresentationTimestampUs><C:Directory><rdf:Seq><rdf:li>"
        "<C:Item><I:Semantic>MotionPhoto</I:Semantic><I:Mime>video/mp4</I:Mime><I:Length>77</I:Length></C:Item>"
        "</rdf:li></rdf:Seq></C:Directory></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    claims = read_claims(xmp.encode())
    assert claims.is_motion
    assert claims.time_s == 0.5
    assert list(claims.offsets_from_end()) == [("XMP container", 77)]


@pytest.mark.parametrize("value", ["-1", "1e9", "", "٣", "9" * 16, "0x10", " "])
def test_numbers_that_are_none(value: str) -> None:
    xmp = motion_xmp(item("MotionPhoto", "video/mp4", 5).replace('"5"', f'"{value}"'))
    assert not list(read_claims(xmp.encode()).offsets_from_end())


# Orientation


def test_the_files_of_these_tests_are_what_they_say() -> None:
    """The helpers write boxes that another parser finds, in the order that they should have."""
    assert [kind for kind, _, _ in top_boxes(apple_movie(FRAMES))] == [b"ftyp", b"wide", b"mdat", b"moov", b"mdat"]
    assert [kind for kind, _, _ in top_boxes(samsung_heic(104))][-2:] == [b"mpvd", b"sefd"]

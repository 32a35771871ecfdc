"""What travels from a photo to its restored still: resolution, large profiles and texts, and what must not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import SRGB, XMP, noise, parsed, png16, smooth
from PIL import ExifTags, Image

from livemoments.runtime.image_files import png_chunks
from livemoments.runtime.image_files.exif import without_video_link
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.runtime.image_files.tiff_tags import MAX_ENTRIES

UUID = b"4F5C31B2-9B0C-4C1E-8A55-0123456789AB"


def test_a_profile_of_more_than_a_mebibyte(tmp_path: Path) -> None:
    large = SRGB[:-4] + noise(4, 800, 800).tobytes()
    large = struct.pack(">I", len(large)) + large[4:]
    write_image(tmp_path / "a.png", noise(1), icc_profile=large)
    assert read_photo(tmp_path / "a.png").icc_profile == large


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "compressed iTXt"])
def test_long_texts_hinder_nothing(kind: str, tmp_path: Path) -> None:
    text = b"a long prompt " * 200_000
    body = {
        "tEXt": b"parameters\0" + text,
        "zTXt": b"parameters\0\0" + zlib.compress(text),
        "iTXt": b"parameters\0\0\0\0\0" + text,
        "compressed iTXt": b"parameters\0\1\0\0\0" + zlib.compress(text),
    }[kind]
    chunk = png_chunks._chunk(kind.split()[-1].encode(), body)
    (tmp_path / "a.png").write_bytes(png16(noise(1, 64, 64, np.uint16), 2, chunk, png_chunks.xmp_chunk(XMP)))
    photo = read_photo(tmp_path / "a.png")
    assert photo.bit_depth == 16
    assert photo.xmp == XMP


def test_texts_without_end_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_chunks, "MAX_INFLATED_BYTES", 1000)
    bomb = png_chunks._chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5000)))
    fine = png_chunks._chunk(b"zTXt", b"b\0\0" + zlib.compress(bytes(500)))
    data = png16(noise(1, 64, 64, np.uint16), 2, bomb, fine, png_chunks.icc_chunk(bytes(5000)))
    assert png_chunks.texts(data) == {"b": bytes(500)}
    assert png_chunks.profile(data) is None


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("target", [".png", ".jpg"])
def test_the_resolution_is_carried(suffix: str, target: str, tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / f"a{suffix}", dpi=(300, 240))
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.resolution_dpi == pytest.approx((300, 240), rel=1e-3)
    assert write_image(tmp_path / f"out{target}", photo.pixels, like=photo) == ()
    assert read_photo(tmp_path / f"out{target}").resolution_dpi == pytest.approx((300, 240), rel=1e-3)


def test_a_resolution_that_cannot_be_carried_is_named(tmp_path: Path) -> None:
    photo = Photo(smooth(), resolution_dpi=(300, 300))
    assert write_image(tmp_path / "a.webp", photo.pixels, like=photo) == ("resolution",)
    assert write_image(tmp_path / "a.tif", photo.pixels, like=photo) == ("resolution",)


def test_a_header_without_units_states_no_resolution(tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "a.jpg")
    assert read_photo(tmp_path / "a.jpg").resolution_dpi is None


def test_iptc_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(smooth()).save(stream, "JPEG")
    record = b"\x1c\x02\x78\x00\x05Hello"  # caption
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    (tmp_path / "a.jpg").write_bytes(stream.getvalue()[:2] + segment + stream.getvalue()[2:])
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.not_read == ("iptc",)
    assert write_image(tmp_path / "out.png", photo.pixels, like=photo) == ("iptc",)
    assert read_photo(tmp_path / "out.png").not_read == ()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize(("comment", "stays"), [("oplus_8388608", False), ("oplus_ is a word", True), ("mine", True)])
def test_a_motion_photos_mark_in_the_comment_goes(comment: str, stays: bool, suffix: str, tmp_path: Path) -> None:
    block = Image.Exif()
    block[ExifTags.Base.Make] = "Examplecam"
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + comment.encode()
    for text in ({}, {"seed": "1"}):
        write_image(tmp_path / f"a{suffix}", smooth(), exif=block.tobytes(), text=text)
        found = parsed(read_photo(tmp_path / f"a{suffix}").exif)
        assert found[0][ExifTags.Base.Make] == "Examplecam"
        assert (comment.encode() in found[1].get(ExifTags.Base.UserComment, b"")) is stays


def apple_note(*tags: int, order: str = ">") -> bytes:
    """A maker note as iOS writes it: texts behind the directory, offsets from the note's start."""
    head = b"Apple iOS\0\0\1" + (b"MM" if order == ">" else b"II")
    at = len(head) + 2 + 12 * len(tags) + 4
    lines, values = b"", b""
    for tag in tags:
        value = (UUID if tag == 17 else b"kept %d" % tag) + b"\0"
        lines += struct.pack(order + "HHII", tag, 2, len(value), at + len(values))
        values += value
    return head + struct.pack(order + "H", len(tags)) + lines + b"\0\0\0\0" + values


@pytest.mark.parametrize("order", [">", "<"])
def test_apples_link_to_a_video_goes_and_its_neighbours_stay(order: str, tmp_path: Path) -> None:
    block = Image.Exif()
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = apple_note(1, 17, 33, order=order)
    write_image(tmp_path / "a.jpg", smooth(), exif=block.tobytes())
    exif = read_photo(tmp_path / "a.jpg").exif
    note = parsed(exif)[1][ExifTags.Base.MakerNote]
    assert UUID not in (exif or b"")
    assert len(note) == len(apple_note(1, 17, 33))
    (count,) = struct.unpack_from(order + "H", note, 14)
    entries = [struct.unpack_from(order + "HHII", note, 16 + 12 * index) for index in range(count)]
    assert [(tag, note[at : at + length]) for tag, _, length, at in entries] == [(1, b"kept 1\0"), (33, b"kept 33\0")]


@pytest.mark.parametrize("note", [b"Apple iOS\0", b"Apple iOS\0\0\1MM\xff\xff", apple_note(17)[:30], b"Nikon" * 9])
def test_broken_and_other_maker_notes_stay_as_they_are(note: bytes) -> None:
    block = Image.Exif()
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = note
    exif = block.tobytes().removeprefix(b"Exif\0\0")
    assert without_video_link(exif) == exif


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_without_end_is_left_out_and_the_result_can_be_read(suffix: str, tmp_path: Path) -> None:
    count = MAX_ENTRIES + 1
    lines = b"".join(struct.pack("<HHII", 1000 + number, 3, 1, 5) for number in range(count))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + lines + b"\0\0\0\0"
    assert write_image(tmp_path / f"a{suffix}", smooth(), exif=exif) == ("exif",)
    assert read_photo(tmp_path / f"a{suffix}").size.width == 128


@pytest.mark.parametrize(("scale", "hot"), [(1.0, 1.3), (1.0, 900.0), (255.0, 300.0), (65535.0, 70000.0)])
def test_a_hot_pixel_does_not_darken_a_float_picture(scale: float, hot: float, tmp_path: Path) -> None:
    plane = (smooth(200, 200)[..., 0] / np.float32(255) * np.float32(scale)).astype(np.float32)
    plane[100, 100] = hot
    Image.fromarray(plane, "F").save(tmp_path / "a.tif")
    found = read_photo(tmp_path / "a.tif").pixels[..., 0]
    expected = np.rint(plane.clip(0, scale) * (65535 / scale)).astype(np.uint16)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found[100, 100] == 65535

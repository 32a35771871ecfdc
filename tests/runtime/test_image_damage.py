"""Files that are cut, changed, too large or no images, and images that do not fit each other."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import SRGB, XMP, camera_exif, noise, png16, read_or_error, tiff16
from PIL import Image

from livemoments.errors import ImageError
from livemoments.pixel_limit import pixel_limit
from livemoments.runtime.image_files import png_chunks, tiff_tags
from livemoments.runtime.image_files.photo import Photo, check_pair_sizes, read_photo, write_image
from livemoments.types import Size

# ---- bad input


def _valid(kind: str) -> bytes:
    deep = np.dstack([noise(9, 90, 80, np.uint16)])
    image, stream = Image.fromarray(noise(9, 90, 80)), io.BytesIO()
    if kind == "png16":
        return png16(deep, 2)
    if kind == "tiff16":
        return tiff16(deep, "<", 2)
    if kind in ("ours.tif", "ours.png"):
        size = Size(90, 80)
        exif = tiff_tags.edit_exif(camera_exif()[6:], size=size, comment="x")
        if kind == "ours.tif":
            return tiff_tags.encode_tiff(deep, icc_profile=SRGB, exif=exif, xmp=XMP)
        return png_chunks.insert(png16(deep, 2), [png_chunks.icc_chunk(SRGB), png_chunks.exif_chunk(exif or b"")])
    options = {
        "png": ("PNG", {}),
        "jpeg": ("JPEG", {"quality": 90}),
        "progressive": ("JPEG", {"progressive": True, "exif": camera_exif()}),
        "tiff": ("TIFF", {}),
        "deflate": ("TIFF", {"compression": "tiff_adobe_deflate", "icc_profile": SRGB}),
        "bigtiff": ("TIFF", {"big_tiff": True, "exif": camera_exif(6)}),
        "lzw": ("TIFF", {"compression": "tiff_lzw"}),
        "webp": ("WEBP", {}),
        "lossless": ("WEBP", {"lossless": True, "xmp": XMP, "icc_profile": SRGB}),
    }
    name, extra = options[kind]
    image.save(stream, name, **extra)
    return stream.getvalue()


KINDS = (
    "png",
    "png16",
    "ours.png",
    "jpeg",
    "progressive",
    "tiff",
    "tiff16",
    "ours.tif",
    "deflate",
    "lzw",
    "bigtiff",
    "webp",
    "lossless",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused(tmp_path, kind) -> None:
    whole = _valid(kind)
    path = tmp_path / "photo"
    path.write_bytes(whole)
    read_photo(path)
    cuts = {len(whole) * percent // 100 for percent in (1, 10, 33, 50, 90, 99)} | {
        len(whole) - n for n in (1, 2, 4, 10, 12, 100)
    }
    cuts |= {int(n) for n in np.random.default_rng(0).integers(1, len(whole), 25)}
    for length in sorted(cuts):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=str(path)) as caught:
            read_photo(path)
        assert caught.value.fix, length
        if length > 16:
            assert "cut short" in caught.value.message, length


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_picture_or_one_clear_error(tmp_path, kind, at, value) -> None:
    data = bytearray(_valid(kind))
    data[at % min(len(data), 400)] = value
    (tmp_path / "photo").write_bytes(data)
    found = read_or_error(tmp_path / "photo")
    if isinstance(found, Photo):
        assert found.pixels.shape[2] == 3
        assert found.pixels.dtype in (np.uint8, np.uint16)
    else:
        assert found.fix


def test_a_damaged_png_chunk_is_named(tmp_path) -> None:
    data = bytearray(_valid("png"))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="chunk IDAT is damaged"):
        read_photo(tmp_path / "a.png")


def test_files_that_are_no_images(tmp_path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    for path, words in (
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.png", "is empty"),
        (tmp_path / "text.png", "not an image"),
        (tmp_path / "text.png" / "x.png", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            read_photo(path)
        assert str(path) in caught.value.message
        assert caught.value.fix


def test_more_pixels_than_the_limit(tmp_path, monkeypatch) -> None:
    def header_only(width: int, height: int) -> bytes:
        header = png_chunks._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return (
            png_chunks.SIGNATURE
            + header
            + png_chunks._chunk(b"IDAT", zlib.compress(b""))
            + png_chunks._chunk(b"IEND", b"")
        )

    (tmp_path / "bomb.png").write_bytes(header_only(60_000, 60_000))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="too large") as caught:
        read_photo(tmp_path / "bomb.png")
    assert "250,000,000" in caught.value.message
    assert "--max-pixels" in (caught.value.fix or "")
    assert before == Image.MAX_IMAGE_PIXELS, "Pillow's own limit is put back"
    write_image(tmp_path / "a.png", noise(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "a.png").size == Size(37, 53), "Pillow's own limit does not decide"
    assert Image.MAX_IMAGE_PIXELS == 100
    with pixel_limit(1000), pytest.raises(ImageError, match="too large"):
        read_photo(tmp_path / "a.png")


def test_heic_without_its_plugin_names_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ImageError, match="HEIC") as caught:
        read_photo(tmp_path / "a.heic")
    assert caught.value.fix == "pip install 'livemoments-deploy[livephoto]', or convert it to PNG"


def test_a_raw_files_preview_is_not_taken_for_the_photo(tmp_path) -> None:
    Image.fromarray(noise(1)).save(tmp_path / "a.dng", "TIFF", tiffinfo={254: 1})
    with pytest.raises(ImageError, match="preview"):
        read_photo(tmp_path / "a.dng")


# ---- pairs


def _blank(width: int, height: int) -> Photo:
    return Photo(np.zeros((height, width, 3), np.uint8), path=Path(f"{width}x{height}.png"))


def test_pairs_that_fit() -> None:
    check_pair_sizes(_blank(144, 108), _blank(404, 303), _blank(144, 108))
    check_pair_sizes(_blank(144, 108), _blank(144, 108))
    check_pair_sizes(_blank(1000, 1009), _blank(2000, 2000))


@pytest.mark.parametrize(
    ("frame", "photo", "photo_frame", "words", "fix"),
    [
        ((63, 80), (630, 800), None, "at least 64", "larger"),
        ((80, 80), (80, 63), None, "at least 64", "larger"),
        ((160, 90), (400, 300), None, r"160x90.*400x300", "crop"),
        ((100, 102), (200, 200), None, "aspect", "crop"),
        ((108, 144), (400, 300), None, r"108x144.*400x300", "rotate the frame by 90"),
        ((400, 300), (200, 150), None, r"400x300.*200x150", "swap --frame and --photo"),
        ((160, 120), (400, 300), (120, 90), r"120x90.*160x120", "same video"),
        ((160, 120), (400, 300), (160, 60), "at least 64", "larger"),
    ],
)
def test_pairs_that_do_not_fit(frame, photo, photo_frame, words, fix) -> None:
    third = _blank(*photo_frame) if photo_frame else None
    with pytest.raises(ImageError, match=words) as caught:
        check_pair_sizes(_blank(*frame), _blank(*photo), third)
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize("count", [1 << 20, 1 << 40, 1 << 60, (1 << 64) - 1])
def test_a_bigtiff_that_claims_more_than_there_is(count: int, tmp_path) -> None:
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, 16)
    entry = struct.pack("<HHQQ", 273, 16, count, 16)
    for body in (struct.pack("<Q", count) + bytes(100), struct.pack("<Q", 1) + entry + bytes(8)):
        (tmp_path / "a.tif").write_bytes(head + body)
        with pytest.raises(ImageError, match="damaged or cut short"):
            read_photo(tmp_path / "a.tif")

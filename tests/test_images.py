"""Image files in and out: what is read is what was stored, what is written reads back, and damage is named."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from livemoments.errors import ImageError, OutputError, UsageError
from livemoments.runtime import _image_decode, _png, _tiff, _xmp, images
from livemoments.runtime.images import Photo, check_pair_sizes, ensure_writable, read_photo, write_image
from livemoments.types import Size

LOSSY_MEAN_LEVELS = 2.0  # of 255: JPEG and WebP at quality 95 on a smooth picture
MAX_READ_COPIES = 5.0  # peak memory of reading a 16-bit PNG, in sizes of its pixels
SUFFIXES = (".png", ".jpg", ".tif", ".webp")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="k\xc3\xa4mera"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def noise(seed: int, height: int = 37, width: int = 53, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def smooth(height: int = 96, width: int = 128, dtype: type = np.uint8) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2)
    return (planes * np.iinfo(dtype).max).astype(dtype)


def camera_exif(orientation: int = 1) -> bytes:
    """An EXIF block as a camera's: IFD0, EXIF and GPS directories, a binary maker note."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Examplecam"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.XResolution] = 72.0
    inner = {
        ExifTags.Base.ExposureTime: 0.008,
        ExifTags.Base.LensModel: "50 mm",
        ExifTags.Base.MakerNote: bytes(range(200)),
        ExifTags.Base.ExifImageWidth: 4000,
        ExifTags.Base.ExifImageHeight: 3000,
    }
    exif.get_ifd(ExifTags.IFD.Exif).update(inner)
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (47, 0, 1)})
    return exif.tobytes()


def parsed(exif: bytes | None) -> tuple[dict, dict, dict]:
    assert exif is not None
    found = Image.Exif()
    found.load(exif)
    return dict(found), found.get_ifd(ExifTags.IFD.Exif), found.get_ifd(ExifTags.IFD.GPSInfo)


def png16(samples: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG of any colour type, written without any library."""
    height, width = samples.shape[:2]
    header = _png._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"".join(
        [_png.SIGNATURE, header, *chunks, _png._chunk(b"IDAT", zlib.compress(rows)), _png._chunk(b"IEND", b"")]
    )


def tiff16(samples: np.ndarray, order: str, photometric: int, orientation: int = 1, planar: int = 1) -> bytes:
    """An uncompressed 16-bit TIFF with its directory first, written without the code under test."""
    height, width, channels = samples.shape
    stored = samples if planar == 1 else samples.transpose(2, 0, 1)
    body = stored.astype(order + "u2").tobytes()
    planes = 1 if planar == 1 else channels
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [16] * channels), 259: ("H", [1]),
        262: ("H", [photometric]), 273: ("I", [0] * planes), 274: ("H", [orientation]), 277: ("H", [channels]),
        278: ("I", [height]), 279: ("I", [len(body) // planes] * planes), 284: ("H", [planar]),
    }  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    sizes = {tag: struct.calcsize("<" + str(len(v)) + c) for tag, (c, v) in tags.items()}
    pixels_at = start + sum(n + n % 2 for n in sizes.values() if n > 4)
    tags[273] = ("I", [pixels_at + i * (len(body) // planes) for i in range(planes)])
    lines, extra = b"", b""
    for tag, (code, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            field = struct.pack(order + "I", start + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
        else:
            field = packed.ljust(4, b"\0")
        lines += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[code], len(values)) + field
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "IH", 8, len(tags)) + lines + b"\0\0\0\0"
    return head + extra + body


def read_or_error(path: Path) -> Photo | ImageError:
    try:
        return read_photo(path)
    except ImageError as error:
        return error


# ---- round trips


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    suffix=st.sampled_from([".png", ".tif", ".TIFF"]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    with_exif=st.booleans(),
)
def test_lossless_formats_return_the_same_pixels(tmp_path, height, width, seed, suffix, dtype, with_exif) -> None:
    pixels = noise(seed, height, width, dtype)
    path = tmp_path / f"photo{suffix}"
    write_image(path, pixels, exif=camera_exif() if with_exif else None)
    photo = read_photo(path)
    assert photo.pixels.dtype == dtype
    assert photo.bit_depth == 8 * np.dtype(dtype).itemsize
    assert photo.size == Size(height, width)
    np.testing.assert_array_equal(photo.pixels, pixels)
    by_opencv = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(by_opencv, pixels)
    with Image.open(path) as by_pillow:
        high = pixels if dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(by_pillow), high)


def test_a_tiff_of_several_strips_comes_back(tmp_path) -> None:
    pixels = noise(3, 700, 600, np.uint16)
    write_image(tmp_path / "a.tif", pixels)
    with Image.open(tmp_path / "a.tif") as image:
        assert len(image.tag_v2[273]) > 1
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossy_formats_are_close_and_eight_bit(tmp_path, suffix, dtype) -> None:
    pixels = smooth(dtype=dtype)
    write_image(tmp_path / f"a{suffix}", pixels)
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.bit_depth == 8
    assert np.abs(photo.unit() - Photo(pixels).unit()).mean() * 255 < LOSSY_MEAN_LEVELS


def test_bit_depths_convert_with_rounding(tmp_path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    deep = np.repeat(levels[..., None], 3, axis=2)
    write_image(tmp_path / "a.png", deep, bit_depth=8)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels, np.rint(deep / 257.0).astype(np.uint8))
    shallow = noise(1)
    write_image(tmp_path / "b.tif", shallow, bit_depth=16)
    np.testing.assert_array_equal(read_photo(tmp_path / "b.tif").pixels, shallow.astype(np.uint16) * 257)


def test_unit_is_float32_over_the_whole_range() -> None:
    for dtype in (np.uint8, np.uint16):
        top = np.iinfo(dtype).max
        unit = Photo(np.array([[[0, top, top // 3]]], dtype)).unit()
        assert unit.dtype == np.float32
        np.testing.assert_array_equal(unit, np.array([[[0, 1, (top // 3) / np.float32(top)]]], np.float32))


# ---- what other programs write


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_of_every_colour_type(tmp_path, colour_type, channels) -> None:
    samples = np.random.default_rng(colour_type).integers(0, 65536, (9, 14, channels)).astype(np.uint16)
    gamma = _png._chunk(b"gAMA", struct.pack(">I", 100000))  # ignored, as by every decoder used here
    (tmp_path / "a.png").write_bytes(png16(samples, colour_type, gamma))
    expected = samples[..., :3] if channels >= 3 else np.repeat(samples[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("photometric", "channels"), [(0, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_16_bit_tiff_of_other_programs(tmp_path, order, photometric, channels, orientation) -> None:
    samples = np.random.default_rng(7).integers(0, 65536, (11, 17, channels)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff16(samples, order, photometric, orientation))
    light = 65535 - samples if photometric == 0 else samples
    expected = np.repeat(light, 3 // channels, axis=2)
    if orientation == 6:
        expected = np.rot90(expected, -1)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif").pixels, expected)


def test_16_bit_tiff_with_separate_planes_is_right_or_refused(tmp_path) -> None:
    samples = np.random.default_rng(8).integers(0, 65536, (11, 17, 3)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff16(samples, "<", 2, planar=2))
    found = read_or_error(tmp_path / "a.tif")
    if isinstance(found, Photo):
        np.testing.assert_array_equal(found.pixels, samples)
    else:
        assert "faithfully" in found.message


def test_grey_palette_alpha_and_bilevel_become_rgb_with_the_colours_under_alpha(tmp_path) -> None:
    pixels = noise(5)
    alpha = np.random.default_rng(6).integers(0, 256, pixels.shape[:2]).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    rgba.save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "rgba.png").pixels, pixels)
    grey = Image.fromarray(pixels[..., 0])
    for name, image in (("l", grey), ("la", Image.merge("LA", (grey, Image.fromarray(alpha))))):
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(
            read_photo(tmp_path / f"{name}.png").pixels, np.repeat(pixels[..., :1], 3, axis=2)
        )
    palette = Image.fromarray(pixels).quantize(32)
    palette.save(tmp_path / "p.png", transparency=bytes(range(32)))
    np.testing.assert_array_equal(read_photo(tmp_path / "p.png").pixels, np.asarray(palette.convert("RGB")))
    grey.convert("1").save(tmp_path / "one.tif")
    assert set(np.unique(read_photo(tmp_path / "one.tif").pixels)) <= {0, 255}


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_tiffs_are_scaled_by_their_range(tmp_path, top) -> None:
    plane = np.linspace(0, top, 80 * 70, dtype=np.float32).reshape(80, 70)
    Image.fromarray(plane).save(tmp_path / "f.tif")
    photo = read_photo(tmp_path / "f.tif")
    assert photo.bit_depth == 16
    np.testing.assert_allclose(photo.unit()[..., 1], plane / top, atol=1 / 65535)
    plane[3, 4] = np.nan if top == 1 else np.inf
    Image.fromarray(plane).save(tmp_path / "bad.tif")
    with pytest.raises(ImageError, match="NaN"):
        read_photo(tmp_path / "bad.tif")


def test_cmyk_and_lab_become_srgb_without_their_profile(tmp_path) -> None:
    flat = Image.new("CMYK", (80, 70), (0, 255, 255, 0))
    flat.save(tmp_path / "a.jpg", quality=95, icc_profile=SRGB)  # a profile of the wrong kind must not stop it
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.icc_profile is None
    red, green, blue = photo.pixels.reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(green, blue) < 60
    Image.new("LAB", (80, 70), (128, 128, 128)).save(tmp_path / "lab.tif")
    lab = read_photo(tmp_path / "lab.tif").pixels.reshape(-1, 3).astype(int)
    assert np.ptp(lab[0]) <= 2, "a neutral Lab colour is a neutral grey"
    assert 110 <= lab[0, 0] <= 130


def grey_profile(gamma: float) -> bytes:
    """A minimal ICC v2 grey profile: description, copyright, white point, tone curve."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"g\0" + bytes(78)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0),
    }
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def test_grey_with_a_grey_profile_becomes_srgb(tmp_path) -> None:
    Image.new("L", (80, 70), 128).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    photo = read_photo(tmp_path / "a.png")
    assert photo.icc_profile is None
    linear_half_in_srgb = 188
    assert abs(int(photo.pixels[0, 0, 0]) - linear_half_in_srgb) <= 1
    assert np.ptp(photo.pixels[0, 0].astype(int)) == 0
    Image.new("L", (80, 70), 128).save(tmp_path / "b.png", icc_profile=SRGB)  # an RGB profile fits the RGB pixels
    assert read_photo(tmp_path / "b.png").icc_profile == SRGB


def test_the_first_picture_of_an_animation(tmp_path) -> None:
    first, second = (Image.fromarray(noise(seed)) for seed in (1, 2))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels, np.asarray(first))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.webp").pixels, np.asarray(first))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif").pixels, np.asarray(first))


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png8", "png16", "tiff8", "tiff16", "jpeg", "webp"])
def test_every_orientation_is_applied_once(tmp_path, orientation, kind) -> None:
    stored = smooth(64, 96, np.uint16 if kind.endswith("16") else np.uint8)
    path = tmp_path / f"a.{kind.rstrip('0123456789')}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if kind == "png16":
        path.write_bytes(png16(stored, 2, _png.exif_chunk(exif.tobytes()[6:])))
    elif kind == "tiff16":
        path.write_bytes(tiff16(stored, ">", 2, orientation))
    else:
        options = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(stored).save(path, exif=exif, **options)
    photo = read_photo(path)
    if kind.endswith("16"):
        planes = [ImageOps.exif_transpose(_tagged(stored[..., c], orientation)) for c in range(3)]
        np.testing.assert_array_equal(photo.pixels, np.stack([np.asarray(p).astype(np.uint16) for p in planes], axis=2))
    else:
        with Image.open(path) as image:
            np.testing.assert_array_equal(photo.pixels, np.asarray(ImageOps.exif_transpose(image)))
    write_image(tmp_path / "again.png", photo.pixels, like=photo)
    again = read_photo(tmp_path / "again.png")
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    assert parsed(photo.exif)[0][ExifTags.Base.Orientation] == 1


def _tagged(plane: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(plane.astype(np.int32))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def test_an_orientation_that_only_xmp_states(tmp_path) -> None:
    packet = XMP.replace(b'dc:source="', b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" dc:source="')
    pixels = noise(4)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, xmp=packet)
    photo = read_photo(tmp_path / "a.webp")
    np.testing.assert_array_equal(photo.pixels, np.rot90(pixels, -1))
    assert photo.xmp is not None
    assert b"Orientation" not in photo.xmp
    assert "kämera".encode() in photo.xmp


# ---- metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_profile_exif_and_xmp_survive_from_and_to_every_format(tmp_path, source, suffix) -> None:
    pixels = smooth(70, 90, np.uint16 if suffix in (".png", ".tif") else np.uint8)
    write_image(tmp_path / f"in{source}", smooth(), icc_profile=SRGB, exif=camera_exif(), xmp=XMP)
    original = read_photo(tmp_path / f"in{source}")
    lost = write_image(tmp_path / f"out{suffix}", pixels, like=original)
    assert lost == ()
    photo = read_photo(tmp_path / f"out{suffix}")
    assert photo.icc_profile == SRGB
    assert photo.xmp is not None
    assert photo.xmp.strip(b"\0") == XMP
    main, inner, gps = parsed(photo.exif)
    assert main[ExifTags.Base.Make] == "Examplecam"
    assert main[ExifTags.Base.Orientation] == 1
    assert inner[ExifTags.Base.LensModel] == "50 mm"
    assert inner[ExifTags.Base.MakerNote] == bytes(range(200))
    assert float(inner[ExifTags.Base.ExposureTime]) == pytest.approx(0.008)
    assert (inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight]) == (90, 70)
    assert gps[ExifTags.GPS.GPSLatitudeRef] == "N"
    with Image.open(tmp_path / f"out{suffix}") as image:  # and where other programs look for it
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[ExifTags.Base.Make] == "Examplecam"
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] == "50 mm"


def test_metadata_can_be_replaced_and_dropped(tmp_path) -> None:
    like = Photo(noise(1), icc_profile=SRGB, exif=camera_exif()[6:], xmp=XMP)
    other = Image.Exif()
    other[ExifTags.Base.Make] = "Other"
    write_image(tmp_path / "a.tif", noise(1), like=like, icc_profile=b"", exif=other.tobytes(), xmp=b"")
    photo = read_photo(tmp_path / "a.tif")
    assert (photo.icc_profile, photo.xmp) == (None, None)
    assert parsed(photo.exif)[0][ExifTags.Base.Make] == "Other"


def test_a_thumbnail_of_the_old_picture_is_not_carried(tmp_path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(noise(1)).save(thumbnail, "JPEG")
    base = bytearray(camera_exif(6)[6:])
    tiff = _tiff.Tiff(bytes(base))
    following_at = tiff.first + 2 + 12 * len(tiff.directory(tiff.first)[0])
    directory_at = len(base)
    struct.pack_into(tiff.order + "I", base, following_at, directory_at)
    size = len(thumbnail.getvalue())
    base += struct.pack(tiff.order + "HHHIIHHIII", 2, 513, 4, 1, directory_at + 30, 514, 4, 1, size, 0)
    base += thumbnail.getvalue()
    write_image(tmp_path / "a.jpg", smooth(), exif=bytes(base))
    stored = read_photo(tmp_path / "a.jpg").exif
    assert stored is not None
    assert thumbnail.getvalue()[:64] not in stored
    assert parsed(stored)[1][ExifTags.Base.MakerNote] == bytes(range(200))
    found = Image.Exif()
    found.load(stored)
    assert found.get_ifd(ExifTags.IFD.IFD1) == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("exif", [b"", camera_exif()])
def test_text_has_one_place_in_each_format(tmp_path, suffix, exif) -> None:
    text = {"Software": "livemoments 1", "Derived frame": "oui, à 0,48 s → ja"}
    write_image(tmp_path / f"a{suffix}", smooth(), exif=exif, text=text)
    with Image.open(tmp_path / f"a{suffix}") as image:
        if suffix == ".png":
            assert {key: image.text[key] for key in text} == text
            return
    stored = read_photo(tmp_path / f"a{suffix}").exif
    assert stored is not None
    assert json.loads(_tiff.user_comment(stored)) == text
    write_image(tmp_path / f"b{suffix}", smooth(), exif=stored, text={"a": "b"})
    again = json.loads(_tiff.user_comment(read_photo(tmp_path / f"b{suffix}").exif or b""))
    assert json.loads(again["UserComment"]) == text
    assert again["a"] == "b"


@pytest.mark.parametrize("key", ["", "x" * 80, " a", "a\0b", "→"])
def test_png_text_keywords_are_checked(tmp_path, key) -> None:
    with pytest.raises(UsageError, match="keyword"):
        write_image(tmp_path / "a.png", smooth(), text={key: "x"})
    assert list(tmp_path.iterdir()) == []


def test_what_a_jpeg_cannot_hold_is_reported(tmp_path) -> None:
    huge = XMP.replace(b"k\xc3\xa4mera", b"x" * 70_000)
    note = Image.Exif()
    note.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(70_000)
    for suffix, expected in ((".jpg", ("exif", "xmp")), (".png", ()), (".tif", ()), (".webp", ())):
        lost = write_image(tmp_path / f"a{suffix}", smooth(), exif=note.tobytes(), xmp=huge, text={"a": "b"})
        assert lost == expected
        read_photo(tmp_path / f"a{suffix}")
    assert json.loads(_tiff.user_comment(read_photo(tmp_path / "a.jpg").exif or b"")) == {"a": "b"}


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_damaged_exif_never_raises_anything_but_its_own_error(at, value, cut) -> None:
    block = bytearray(camera_exif(6)[6:])
    block[at % len(block)] = value
    data = bytes(block[: len(block) - cut % len(block)])
    for work in (
        lambda: _tiff.set_number(data, _tiff.ORIENTATION, 1),
        lambda: _tiff.extract_exif(data),
        lambda: _tiff.user_comment(data),
        lambda: _tiff.edit_exif(data, size=Size(3, 4), comment="x"),
    ):
        with contextlib.suppress(_tiff.TiffError):
            work()


@pytest.mark.parametrize("block", [b"Exif\0\0garbage", b"II*\0\xff\xff\xff\xff", b"\0"])
def test_malformed_exif_and_xmp_are_left_out_and_named(tmp_path, block) -> None:
    assert write_image(tmp_path / "a.png", smooth(), exif=block, xmp=b"<x:a MotionPhoto") == ("exif", "xmp")
    photo = read_photo(tmp_path / "a.png")
    assert (photo.exif, photo.xmp) == (None, None)
    Image.fromarray(smooth()).save(tmp_path / "b.png", exif=block)
    assert read_photo(tmp_path / "b.png").exif is None


# ---- motion photos

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_MOTION = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""
  xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" xmlns:C="http://ns.google.com/photos/1.0/container/"
  xmlns:Item="http://ns.google.com/photos/1.0/container/item/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
  xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:xmpNote="http://ns.adobe.com/xmp/note/" GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1"
  GCamera:MicroVideoOffset="123" hdrgm:Version="1.0" dc:source="kämera &amp; co" xmpNote:HasExtendedXMP="00FF">
  <GCamera:MicroVideo>1</GCamera:MicroVideo><tiff:Orientation>6</tiff:Orientation>
  <C:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">
  <C:Item Item:Mime="image/jpeg" Item:Semantic="Primary"/></rdf:li>
  <rdf:li rdf:parseType="Resource">
  <C:Item Item:Mime="video/mp4" Item:Semantic="MotionPhoto" Item:Length="104"/></rdf:li>
  </rdf:Seq></C:Directory><dc:title><rdf:Alt><rdf:li xml:lang="x-default">Motion &lt;1&gt;</rdf:li></rdf:Alt></dc:title>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_motion_photos_claims_are_removed_and_the_rest_kept(encoding) -> None:
    cleaned = _xmp.make_still(_MOTION.encode(encoding))
    assert cleaned is not None
    root = ElementTree.fromstring(cleaned)
    names = {e.tag for e in root.iter()} | {a for e in root.iter() for a in e.attrib}
    for word in ("Motion", "MicroVideo", "Directory", "container", "gain-map", "Extended", "Orientation"):
        assert not any(word in name for name in names), word
    description = root.find(f".//{{{_RDF}}}Description")
    assert description is not None
    assert description.attrib["{http://purl.org/dc/elements/1.1/}source"] == "kämera & co"
    assert [e.text for e in root.iter(f"{{{_RDF}}}li")] == ["Motion <1>"]
    assert cleaned.startswith(b"<?xpacket begin=")
    assert cleaned.endswith(b'<?xpacket end="w"?>')
    assert _xmp.make_still(cleaned) is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_output_does_not_claim_to_be_a_motion_photo(tmp_path, suffix) -> None:
    Image.fromarray(smooth()).save(
        tmp_path / "in.jpg", xmp=_MOTION.replace("<tiff:Orientation>6", "<tiff:Orientation>1").encode()
    )
    with (tmp_path / "in.jpg").open("ab") as stream:
        stream.write(b"\0\0\0\x18ftypmp42" + bytes(5000))  # the video behind the picture
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.xmp is not None
    assert b"MotionPhoto" in photo.xmp
    write_image(tmp_path / f"out{suffix}", photo.pixels, like=photo)
    assert b"MotionPhoto=" not in (tmp_path / f"out{suffix}").read_bytes()
    assert "kämera".encode() in (tmp_path / f"out{suffix}").read_bytes()


def test_xmp_that_claims_nothing_is_untouched_and_unparsable_xmp_dropped() -> None:
    assert _xmp.make_still(XMP) == XMP
    assert _xmp.make_still(_MOTION.encode()[:-60]) is None
    bomb = b'<!DOCTYPE a [<!ENTITY b "MotionPhoto">]><a>&b;</a>'
    assert _xmp.make_still(bomb) is None


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
        exif = _tiff.edit_exif(camera_exif()[6:], size=size, comment="x")
        if kind == "ours.tif":
            return _tiff.encode_tiff(deep, icc_profile=SRGB, exif=exif, xmp=XMP)
        return _png.insert(png16(deep, 2), [_png.icc_chunk(SRGB), _png.exif_chunk(exif or b"")])
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
        header = _png._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return _png.SIGNATURE + header + _png._chunk(b"IDAT", zlib.compress(b"")) + _png._chunk(b"IEND", b"")

    (tmp_path / "bomb.png").write_bytes(header_only(60_000, 60_000))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="too large") as caught:
        read_photo(tmp_path / "bomb.png")
    assert str(images.MAX_PIXELS) in caught.value.message
    assert before == Image.MAX_IMAGE_PIXELS, "Pillow's own limit is put back"
    write_image(tmp_path / "a.png", noise(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "a.png").size == Size(37, 53), "Pillow's own limit does not decide"
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(_image_decode, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large"):
        read_photo(tmp_path / "a.png")


def test_heic_without_its_plugin_names_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ImageError, match="HEIC") as caught:
        read_photo(tmp_path / "a.heic")
    assert caught.value.fix == "pip install pillow-heif, or convert to PNG"


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


# ---- writing


@pytest.mark.parametrize("name", ["a.bmp", "a", "a.png.txt"])
def test_unknown_suffixes_list_the_known_ones(tmp_path, name) -> None:
    for work in (lambda: write_image(tmp_path / name, noise(1)), lambda: ensure_writable(tmp_path / name)):
        with pytest.raises(UsageError) as caught:
            work()
        assert all(suffix in (caught.value.fix or "") for suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (np.zeros((4, 4, 3), np.float32), {}),
        (np.zeros((4, 4), np.uint8), {}),
        (np.zeros((0, 4, 3), np.uint8), {}),
        (np.zeros((4, 4, 4), np.uint8), {}),
        (np.zeros((4, 4, 3), np.uint8), {"bit_depth": 16}),
        (np.zeros((4, 4, 3), np.uint8), {"bit_depth": 12}),
        (np.zeros((4, 4, 3), np.uint8), {"quality": 0}),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, pixels, options) -> None:
    with pytest.raises(UsageError):
        write_image(tmp_path / "a.jpg", pixels, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16384), (".jpg", 65501)])
def test_pictures_too_large_for_the_format(tmp_path, suffix, side) -> None:
    with pytest.raises(OutputError, match="larger than"):
        write_image(tmp_path / f"a{suffix}", np.zeros((1, side, 3), np.uint8))


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_write_leaves_nothing_new(tmp_path, monkeypatch, failure, exists) -> None:
    target = tmp_path / "a.png"
    if exists:
        target.write_bytes(b"older")

    def fail(_: int) -> None:
        assert any(".partial-" in p.name for p in tmp_path.iterdir()), "the data is under a temporary name"
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_image(target, noise(1))
    assert [p.name for p in tmp_path.iterdir()] == (["a.png"] if exists else [])
    assert not exists or target.read_bytes() == b"older"


def test_a_full_disk_is_an_output_error(tmp_path) -> None:
    code = (
        "import resource, sys, numpy as np\n"
        "from livemoments.errors import OutputError\n"
        "from livemoments.runtime.images import write_image\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)\n"
        "try:\n    write_image(sys.argv[1], pixels)\n"
        "except OutputError as error:\n    sys.exit(str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "cannot be written (File too large)" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_an_output_error(tmp_path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from livemoments.errors import OutputError\n"
        "from livemoments.runtime.images import ensure_writable, write_image\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)  # root may write anywhere: become nobody\n"
        "failures = 0\n"
        "for work in (ensure_writable, lambda path: write_image(path, np.zeros((9, 9, 3), np.uint8))):\n"
        "    try:\n        work(sys.argv[1])\n"
        "    except OutputError as error:\n        failures += 'Permission denied' in error.message\n"
        "sys.exit(failures)\n"
    )
    tmp_path.chmod(0o555)
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    assert run.returncode == 2, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writers_leftovers_go_with_the_next_write(tmp_path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("a.png", "b[1].png"):
        (tmp_path / f".{name}.partial-{dead.pid}-0a1b").write_bytes(b"half")
        (tmp_path / f".{name}.partial-{os.getpid()}-0a1b").write_bytes(b"another thread's")
        write_image(tmp_path / name, noise(1))
        assert {p.name for p in tmp_path.iterdir() if name in p.name} == {name, f".{name}.partial-{os.getpid()}-0a1b"}


def test_places_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png", tmp_path / ("x" * 300 + ".png")):
        for work in (lambda path=path: ensure_writable(path), lambda path=path: write_image(path, noise(1))):
            with pytest.raises(OutputError) as caught:
                work()
            assert caught.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_read_only_file_or_folder_is_not_replaced(tmp_path, monkeypatch) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"precious")
    target.chmod(stat.S_IRUSR)
    if os.geteuid() == 0:  # root may write everything: say what access() says to everyone else
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OutputError, match="read-only"):
        ensure_writable(target)
    with pytest.raises(OutputError, match="read-only"):
        write_image(target, noise(1))
    assert target.read_bytes() == b"precious"


def test_folders_are_made_links_followed_and_the_umask_kept(tmp_path) -> None:
    ensure_writable(tmp_path / "new" / "deep" / "a.png")
    assert list(tmp_path.iterdir()) == []
    write_image(tmp_path / "new" / "deep" / "a.png", noise(1))
    (tmp_path / "link.png").symlink_to(tmp_path / "new" / "a.png")
    write_image(tmp_path / "link.png", noise(1))
    assert (tmp_path / "link.png").is_symlink()
    (tmp_path / "plain").touch()
    written = tmp_path / "new" / "a.png"
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_import_is_light() -> None:
    code = (
        "import sys, livemoments.runtime.images\n"
        "banned = {'torch', 'diffusers', 'onnx', 'onnxruntime', 'pillow_heif'} & set(sys.modules)\n"
        "sys.exit(str(banned) if banned else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_reading_holds_a_few_copies_at_most(tmp_path) -> None:
    side = 2000
    pixels = np.repeat(np.repeat(noise(1, side // 10, side // 10, np.uint16), 10, axis=0), 10, axis=1)
    write_image(tmp_path / "a.png", pixels)
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom livemoments.runtime.images import read_photo\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "before = peak()\nphoto = read_photo(sys.argv[1])\nprint((peak() - before) / photo.pixels.nbytes)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert 1 <= float(run.stdout) < MAX_READ_COPIES

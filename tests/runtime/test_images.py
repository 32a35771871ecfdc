"""Image files in and out: what is read is what was stored, what is written reads back."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from icc import grey_profile
from image_files import SRGB, XMP, camera_exif, noise, parsed, png16, read_or_error, smooth, tiff16
from PIL import ExifTags, Image, ImageOps

from livemoments.errors import ImageError
from livemoments.runtime.image_files import png_chunks
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.types import Size

LOSSY_MEAN_LEVELS = 2.0  # of 255: JPEG and WebP at quality 95 on a smooth picture


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
    gamma = png_chunks._chunk(b"gAMA", struct.pack(">I", 100000))  # ignored, as by every decoder used here
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
        path.write_bytes(png16(stored, 2, png_chunks.exif_chunk(exif.tobytes()[6:])))
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

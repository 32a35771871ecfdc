"""Colour spaces that are stated without an ICC profile, and what becomes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from image_files import SRGB, noise, parsed, png16
from PIL import ExifTags, Image, ImageCms

from livemoments.errors import ImageError
from livemoments.runtime.image_files import decode, png_chunks
from livemoments.runtime.image_files.colour_codes import ColourCodeError, adobe_rgb, display_p3, profile_of_codes
from livemoments.runtime.image_files.colour_profiles import match_profile, profile_name
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image

PIXELS = noise(1, 64, 64, np.uint16)


def png(folder: Path, *chunks: bytes) -> Path:
    path = folder / "a.png"
    path.write_bytes(png16(PIXELS, 2, *chunks))
    return path


def cicp(primaries: int, transfer: int) -> bytes:
    return png_chunks._chunk(b"cICP", bytes([primaries, transfer, 0, 1]))


@pytest.mark.parametrize(
    ("make", "red", "green"),
    # the corners of the larger cubes by Lindbloom's formulas, from sRGB's to theirs
    [(display_p3, (234, 51, 35), (117, 251, 76)), (adobe_rgb, (219, 0, 0), (144, 255, 60))],
)
def test_profiles_mean_their_space(make: object, red: tuple[int, ...], green: tuple[int, ...]) -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(make()))  # type: ignore[operator]
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), profile, "RGB", "RGB", 1)
    corners = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]]], np.uint8))
    found = np.asarray(transform.apply(corners))[0].astype(int)
    assert np.abs(found - [red, green, (255, 255, 255), (0, 0, 0)]).max() <= 1


def test_a_png_in_display_p3_has_its_profile(tmp_path: Path) -> None:
    photo = read_photo(png(tmp_path, cicp(12, 13)))
    assert photo.icc_profile == display_p3()
    assert profile_name(photo.icc_profile) == "Display P3"
    frame = Photo(np.full((64, 64, 3), (255, 0, 0), np.uint8))
    matched, done = match_profile(frame, photo)
    assert done == "converted"
    assert np.abs(matched.pixels[0, 0].astype(int) - (234, 51, 35)).max() <= 1
    write_image(tmp_path / "out.png", photo.pixels, like=photo)
    assert read_photo(tmp_path / "out.png").icc_profile == display_p3()


def test_cicp_goes_before_a_profile(tmp_path: Path) -> None:
    assert read_photo(png(tmp_path, cicp(12, 13), png_chunks.icc_chunk(SRGB))).icc_profile == display_p3()
    assert read_photo(png(tmp_path, cicp(1, 13), png_chunks.icc_chunk(display_p3()))).icc_profile is None


@pytest.mark.parametrize(("codes", "words"), [((9, 16), "PQ"), ((9, 18), "HLG"), ((12, 16), "PQ"), ((9, 1), "9")])
def test_hdr_and_unknown_spaces_are_refused(codes: tuple[int, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        read_photo(png(tmp_path, cicp(*codes)))
    assert "standard dynamic range" in (caught.value.fix or "")


def test_unspecified_points_are_srgb() -> None:
    assert profile_of_codes(2, 2) is None
    assert profile_of_codes(1, 1) is None
    with pytest.raises(ColourCodeError):
        profile_of_codes(2, 16)


def test_heics_nclx_counts_where_there_is_no_profile() -> None:
    image = Image.new("RGB", (64, 64))
    image.format = "HEIF"
    image.info["nclx_profile"] = {"color_primaries": 12, "transfer_characteristics": 13}
    assert decode._stated_profile("a.heic", image, b"", None) == display_p3()
    image.info["icc_profile"] = SRGB
    assert decode._stated_profile("a.heic", image, b"", None) == SRGB
    del image.info["icc_profile"]
    image.info["nclx_profile"] = {"color_primaries": 9, "transfer_characteristics": 18}
    with pytest.raises(ImageError, match=r"a\.heic: holds HDR \(HLG\)"):
        decode._stated_profile("a.heic", image, b"", None)


def exif(space: int, index: str | None) -> bytes:
    block = Image.Exif()
    block[ExifTags.Base.Make] = "Examplecam"
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = space
    if index:
        block.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: index}
    return block.tobytes()


@pytest.mark.parametrize(
    ("space", "index", "is_adobe"),
    [(65535, "R03", True), (2, None, True), (65535, "R98", False), (65535, None, False), (1, "R98", False)],
)
def test_adobe_rgb_by_exif_alone(space: int, index: str | None, is_adobe: bool, tmp_path: Path) -> None:
    Image.fromarray(noise(2, 64, 64)).save(tmp_path / "a.jpg", exif=exif(space, index))
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.icc_profile == (adobe_rgb() if is_adobe else None)
    write_image(tmp_path / "out.jpg", photo.pixels, like=photo)
    again = read_photo(tmp_path / "out.jpg")
    assert again.icc_profile == photo.icc_profile, "the profile and EXIF say the same"
    assert parsed(again.exif)[1][ExifTags.Base.ColorSpace] == space


def test_a_profile_goes_before_exif(tmp_path: Path) -> None:
    Image.fromarray(noise(2, 64, 64)).save(tmp_path / "a.jpg", exif=exif(65535, "R03"), icc_profile=SRGB)
    assert read_photo(tmp_path / "a.jpg").icc_profile == SRGB

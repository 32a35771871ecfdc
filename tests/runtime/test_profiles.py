"""Frames of another colour profile than the photo's are converted to it; equal ones are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from icc import P3_COLORANTS, SRGB_COLORANTS, rgb_profile
from PIL import Image, ImageCms
from restore_images import FRAME, KEY_FRAME, PHOTO, difference

from livemoments.bundle import Bundle
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.image_files.colour_profiles import match_profile, profile_name
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.runtime.inputs import load_inputs

CONVERSION_LIMIT_LEVELS = 2
"""Of 255, against the arithmetic in float64: littlecms works with 8 bits and tables."""
NEAR_BLACK_LEVELS = 16
"""Below this a power curve is so steep that 8 bits hold few steps of it, and littlecms smooths it."""
P3 = rgb_profile()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BROKEN = P3[:16] + b"RGB " + P3[20:100]


def with_profile(image: Photo, icc_profile: bytes | None) -> Photo:
    return Photo(image.pixels, icc_profile=icc_profile)


def expected_conversion(pixels: np.ndarray) -> np.ndarray:
    """sRGB to the P3-like profile, written as the definition: both curves, both matrices, clipped to the gamut."""
    unit = pixels / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(SRGB_COLORANTS)
    return np.clip(xyz @ np.linalg.inv(np.array(P3_COLORANTS)), 0, 1) ** (1 / 2.2) * 255


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("profiles") / "bundle")


# --- one image


def test_a_conversion_follows_its_definition() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    found, done = match_profile(Photo(pixels), Photo(pixels, icc_profile=P3))
    assert done == "converted"
    assert found.icc_profile == P3
    clear = pixels.min(axis=2) >= NEAR_BLACK_LEVELS
    error = np.abs(found.pixels - expected_conversion(pixels)).max(axis=2)
    assert clear.sum() > 1000
    assert error[clear].max() <= CONVERSION_LIMIT_LEVELS
    assert found.pixels[0, 0, 1] > 30, "sRGB's red is less saturated in the larger gamut"


def test_there_and_back_is_the_same_picture() -> None:
    there, _ = match_profile(PHOTO, with_profile(PHOTO, P3))
    back, done = match_profile(there, PHOTO)
    assert done == "converted"
    assert back.icc_profile is None
    assert difference(there.pixels, PHOTO.pixels) > CONVERSION_LIMIT_LEVELS
    clear = PHOTO.pixels.min(axis=2) >= NEAR_BLACK_LEVELS
    error = np.abs(back.pixels[clear].astype(int) - PHOTO.pixels[clear])
    assert error.max() <= 2 * CONVERSION_LIMIT_LEVELS, "saturated colours: the inverse matrix enlarges the rounding"
    assert error.mean() < 0.5


@pytest.mark.parametrize("icc_profile", [None, P3, SRGB, BROKEN, b"nonsense"])
def test_equal_profiles_leave_the_image_alone(icc_profile: bytes | None) -> None:
    image = with_profile(FRAME, icc_profile)
    found, done = match_profile(image, with_profile(PHOTO, icc_profile))
    assert found is image
    assert done == "same"


@pytest.mark.parametrize(
    ("own", "photos"),
    [(None, SRGB), (SRGB, None), (P3, rgb_profile(name="the same by another name"))],
    ids=["none-srgb", "srgb-none", "renamed"],
)
def test_profiles_of_one_colour_space_leave_the_pixels_alone(own: bytes | None, photos: bytes | None) -> None:
    found, done = match_profile(with_profile(FRAME, own), with_profile(PHOTO, photos))
    assert done == "same"
    assert found.pixels is FRAME.pixels
    assert found.icc_profile == photos


def test_16_bits_are_kept_where_nothing_is_converted_and_become_8_where_something_is() -> None:
    deep = Photo(FRAME.pixels.astype(np.uint16) * 257 + 100)
    kept, done = match_profile(deep, with_profile(PHOTO, SRGB))
    assert (kept.bit_depth, done) == (16, "same")
    assert np.array_equal(kept.pixels, deep.pixels)
    found, done = match_profile(deep, with_profile(PHOTO, P3))
    assert (found.bit_depth, done) == (8, "converted, through 8 bits")
    assert np.array_equal(found.pixels, match_profile(FRAME, with_profile(PHOTO, P3))[0].pixels)


@pytest.mark.parametrize("broken", [BROKEN, P3[:200], b"", b"\0" * 500, P3[:132], P3.replace(b"rXYZ", b"none", 1)])
def test_a_broken_profile_is_srgb(broken: bytes) -> None:
    as_srgb = match_profile(FRAME, with_profile(PHOTO, P3))[0]
    found, done = match_profile(with_profile(FRAME, broken), with_profile(PHOTO, P3))
    assert done == "unreadable, taken as sRGB: converted"
    assert np.array_equal(found.pixels, as_srgb.pixels)
    found, done = match_profile(with_profile(FRAME, broken), PHOTO)
    assert done == "unreadable, taken as sRGB: same"
    assert found.pixels is FRAME.pixels
    found, done = match_profile(FRAME, with_profile(PHOTO, broken))
    assert done == "same"
    assert found.pixels is FRAME.pixels
    assert profile_name(broken) == "unreadable, taken as sRGB"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_profiles_never_crash(seed: int) -> None:
    rng = np.random.default_rng(seed)
    damaged = bytearray(P3)
    for at in rng.integers(0, len(P3), 6):
        damaged[at] = rng.integers(0, 256)
    small = Photo(FRAME.pixels[:8, :8].copy(), icc_profile=bytes(damaged))
    for image, photo in ((small, with_profile(small, P3)), (with_profile(small, None), small)):
        found, done = match_profile(image, photo)
        assert found.pixels.shape == (8, 8, 3)
        assert done
    assert profile_name(bytes(damaged))


def test_a_profile_that_is_not_for_rgb_is_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert match_profile(with_profile(FRAME, lab), PHOTO)[1] == "unreadable, taken as sRGB: same"


def test_profiles_have_names() -> None:
    assert profile_name(None) == "none: sRGB"
    assert profile_name(P3) == "P3-like"
    assert profile_name(SRGB) == "sRGB built-in"


# --- a restoration


def test_both_frames_are_converted_on_loading(tmp_path: Path) -> None:
    for name, image, icc_profile in (("photo", PHOTO, P3), ("frame", FRAME, None), ("key", KEY_FRAME, SRGB)):
        Image.fromarray(image.pixels).save(tmp_path / f"{name}.png", icc_profile=icc_profile)
    inputs = load_inputs(*(tmp_path / f"{name}.png" for name in ("frame", "photo", "key")))
    assert (inputs.frame_profile, inputs.photo_frame_profile) == ("converted", "converted")
    for found, original in ((inputs.frame, FRAME), (inputs.photo_frame, KEY_FRAME)):
        assert difference(found.pixels, match_profile(original, with_profile(PHOTO, P3))[0].pixels) <= 1
        assert found.icc_profile == P3
    ignored = load_inputs(*(tmp_path / f"{name}.png" for name in ("frame", "photo", "key")), match_profiles=False)
    assert (ignored.frame_profile, ignored.photo_frame_profile) == ("ignored", "ignored")
    assert np.array_equal(ignored.frame.pixels, FRAME.pixels)
    window = (40, 40, 8, 8)
    assert np.abs(inputs.frame_view.window(*window) - ignored.frame_view.window(*window)).max() > 1 / 255


def test_the_result_is_as_if_the_frame_had_had_the_photos_profile(bundle: Bundle, tmp_path: Path) -> None:
    photo = with_profile(PHOTO, P3)
    converted = match_profile(FRAME, photo)[0]
    wanted = restore_photo(bundle, converted, photo, flow="dis")
    found = restore_photo(bundle, FRAME, photo, output=tmp_path / "out.png", flow="dis")
    assert np.array_equal(found.image, wanted.image)
    assert (wanted.metadata["frame_profile"], found.metadata["frame_profile"]) == ("same", "converted")
    assert found.metadata["photo_profile"] == "P3-like"
    assert found.metadata["photo_frame_profile"] == "same", "it is derived from the photo"
    written = read_photo(tmp_path / "out.png")
    assert written.icc_profile == P3
    with Image.open(tmp_path / "out.png") as image:
        assert json.loads(image.text["livemoments"])["frame_profile"] == "converted"  # type: ignore[attr-defined]
    untouched = restore_photo(bundle, FRAME, PHOTO, flow="dis")
    assert difference(found.image, untouched.image) > CONVERSION_LIMIT_LEVELS


def test_compat_upstream_ignores_profiles(bundle: Bundle) -> None:
    plain = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, flow="dis", compat="upstream")
    found = restore_photo(bundle, FRAME, with_profile(PHOTO, P3), KEY_FRAME, flow="dis", compat="upstream")
    assert np.array_equal(found.image, plain.image)
    assert (found.metadata["frame_profile"], found.metadata["photo_frame_profile"]) == ("ignored", "ignored")
    assert plain.metadata["frame_profile"] == "ignored"

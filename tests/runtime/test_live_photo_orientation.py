"""A Live Photo's picture is turned once, by whichever of its file's two marks means it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from live_photo_files import exif_block, movie_bytes, photo_and_frames, write

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.runtime.image_files.decode import turn
from livemoments.runtime.live_photo.opened import OpenedLivePhoto, open_live_photo
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
PHOTO, FRAMES = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(72, 96))
MOVIE = movie_bytes(FRAMES)


def test_irot_and_exif_are_not_applied_twice_or_lost(tmp_path: Path) -> None:
    """libheif 227, ImageMagick 5647, remove-ai-watermarks 105: HEIC is turned by its own property, not by EXIF."""
    import pillow_heif
    from PIL import Image

    wide = PHOTO[:, :96]  # 96 x 144: portrait, so that a turn shows in the size
    stream = io.BytesIO()
    pillow_heif.register_heif_opener()
    # pillow-heif stores the picture as it is and writes the property that its orientation asks for
    Image.fromarray(np.ascontiguousarray(np.rot90(wide))).save(
        stream, "HEIF", quality=95, exif=exif_block(orientation=6)
    )
    turned = open_with_movie(tmp_path / "turned.heic", stream.getvalue())
    assert turned.photo.pixels.shape == wide.shape
    assert correlation(turned.photo.pixels, wide) > 0.98
    # the block in the file still says 6: a reader that turns by it too has the picture lying again
    stored = Image.Exif()
    stored.load(exif_in(stream.getvalue()))
    assert stored[274] == 6
    assert turn(turned.photo.pixels, 6).shape != wide.shape
    # the same EXIF, but no such property: nothing turns the picture
    data = stream.getvalue()
    assert b"irot" in data
    plain = open_with_movie(tmp_path / "plain.heic", data.replace(b"irot", b"free"))
    assert plain.photo.pixels.shape == np.rot90(wide).shape
    assert correlation(plain.photo.pixels, np.rot90(wide)) > 0.98


def exif_in(heic: bytes) -> bytes:
    """The EXIF item's bytes from its TIFF header on, as they lie in the file."""
    at = heic.index(b"Exif\0\0MM\0*") if b"Exif\0\0MM\0*" in heic else heic.index(b"Exif\0\0II*\0")
    return heic[at:]


def open_with_movie(path: Path, still: bytes) -> OpenedLivePhoto:
    write(path, still)
    write(path.with_suffix(".mp4"), MOVIE)
    return open_live_photo(path)


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel().astype(float), two.ravel().astype(float))[0, 1])

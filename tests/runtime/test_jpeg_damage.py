"""JPEGs damaged inside: every marker is in its place, the picture is not."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import noise
from PIL import Image

from livemoments.errors import ImageError
from livemoments.runtime.image_files.integrity import MAX_SCANS
from livemoments.runtime.image_files.photo import read_photo


def picture() -> Image.Image:
    return Image.fromarray(cv2.resize(noise(3, 30, 40), (320, 240), interpolation=cv2.INTER_CUBIC))


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def four_to_one() -> bytes:
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411]
    return cv2.imencode(".jpg", np.asarray(picture()), sampling)[1].tobytes()


KINDS = {
    "baseline": lambda: jpeg(picture()),
    "progressive": lambda: jpeg(picture(), progressive=True),
    "grey": lambda: jpeg(picture().convert("L")),
    "CMYK": lambda: jpeg(picture().convert("CMYK")),
    "full chroma": lambda: jpeg(picture(), subsampling=0),
    "4:1:1": four_to_one,
    "restart markers": lambda: jpeg(picture(), restart_marker_blocks=4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_one_is_read_whatever_its_kind(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    for tail in (b"", b"\0\0\0\x18ftypmp42" + bytes(1000), data):  # a motion photo's video, MPO's second picture
        (tmp_path / "a.jpg").write_bytes(data + tail)
        assert read_photo(tmp_path / "a.jpg").size.width == 320


@pytest.mark.parametrize("kind", KINDS)
def test_zeroed_data_is_refused(kind: str, tmp_path: Path) -> None:
    data = bytearray(KINDS[kind]())
    start = data.index(b"\xff\xda") + 20
    middle = (start + len(data)) // 2
    data[middle : middle + 200] = bytes(200)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.jpg: this JPEG is damaged") as caught:
        read_photo(tmp_path / "a.jpg")
    assert caught.value.fix == "copy or download the file again"


def test_removed_and_added_data_are_refused(tmp_path: Path) -> None:
    data = KINDS["baseline"]()
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    for name, damaged in (
        ("removed", data[:middle] + data[middle + 500 :]),
        ("added", data[:middle] + data[middle - 500 : middle] + data[middle:]),
        ("marker", data[:middle] + b"\xff\xd9" + data[middle + 2 :]),
    ):
        (tmp_path / f"{name}.jpg").write_bytes(damaged)
        with pytest.raises(ImageError, match="damaged inside"):
            read_photo(tmp_path / f"{name}.jpg")


def test_padding_before_the_end_is_no_damage(tmp_path: Path) -> None:
    data = KINDS["baseline"]()
    (tmp_path / "a.jpg").write_bytes(data[:-2] + b"\0" + data[-2:])
    assert read_photo(tmp_path / "a.jpg").size.width == 320


def test_a_thousand_scans_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    data = jpeg(picture(), progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + scan * 1000 + data[-2:])
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        read_photo(tmp_path / "a.jpg")

"""Profiles, EXIF, XMP and text that travel with an image, and claims that must not."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import SRGB, SUFFIXES, XMP, camera_exif, noise, parsed, smooth
from PIL import ExifTags, Image

from livemoments.errors import UsageError
from livemoments.runtime.image_files import tiff_tags, xmp_packet
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.types import Size

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
    tiff = tiff_tags.Tiff(bytes(base))
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
    assert json.loads(tiff_tags.user_comment(stored)) == text
    write_image(tmp_path / f"b{suffix}", smooth(), exif=stored, text={"a": "b"})
    again = json.loads(tiff_tags.user_comment(read_photo(tmp_path / f"b{suffix}").exif or b""))
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
    assert json.loads(tiff_tags.user_comment(read_photo(tmp_path / "a.jpg").exif or b"")) == {"a": "b"}


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_damaged_exif_never_raises_anything_but_its_own_error(at, value, cut) -> None:
    block = bytearray(camera_exif(6)[6:])
    block[at % len(block)] = value
    data = bytes(block[: len(block) - cut % len(block)])
    for work in (
        lambda: tiff_tags.set_number(data, tiff_tags.ORIENTATION, 1),
        lambda: tiff_tags.extract_exif(data),
        lambda: tiff_tags.user_comment(data),
        lambda: tiff_tags.edit_exif(data, size=Size(3, 4), comment="x"),
    ):
        with contextlib.suppress(tiff_tags.TiffError):
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
    cleaned = xmp_packet.make_still(_MOTION.encode(encoding))
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
    assert xmp_packet.make_still(cleaned) is not None


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
    assert xmp_packet.make_still(XMP) == XMP
    assert xmp_packet.make_still(_MOTION.encode()[:-60]) is None
    bomb = b'<!DOCTYPE a [<!ENTITY b "MotionPhoto">]><a>&b;</a>'
    assert xmp_packet.make_still(bomb) is None

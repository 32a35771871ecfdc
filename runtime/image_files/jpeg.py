"""JPEG's entropy-coded data, judged by libjpeg's own warnings, which Pillow and OpenCV swallow.

Damage inside a scan leaves every marker in its place: decoders go on with what they have and give grey or shifted
blocks. libjpeg-turbo says so in a warning, which simplejpeg passes on. Damage after which the Huffman decoder falls
into step again, with as many blocks as there should be, is not told from good data by any decoder.
"""

from __future__ import annotations

import re

import simplejpeg

_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end")
_PADDING = re.compile(r"Corrupt JPEG data: [12] extraneous bytes before marker 0xd9")
"""A byte or two before EOI: some cameras pad there, and no pixel depends on it."""
_ADOBE_SPACES = {"CMYK": "CMYK", "YCCK": "CMYK", "Gray": "GRAY"}
_SMALLEST = 8
"""The decoder's largest reduction: all of the coded data is read, an eighth of every side is computed."""


def find_warning(data: bytes) -> str | None:
    """libjpeg's warning that the coded data is damaged, in its words; ``None`` without one, or for a kind of JPEG that
    it does not decode (Pillow then decides).
    """
    try:
        *_, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        simplejpeg.decode_jpeg(
            data,
            colorspace=_ADOBE_SPACES.get(space, "RGB"),
            fastdct=True,
            fastupsample=True,
            min_height=1,
            min_width=1,
            min_factor=_SMALLEST,
        )
    except ValueError as error:
        text = str(error)
        return text if _DAMAGE.search(text) and not _PADDING.search(text) else None
    return None

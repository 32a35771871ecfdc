"""The detail of a photo that the page shows for every point: chosen once, from the input, so that all show the same."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from livemoments.runtime.image_files.colour_profiles import match_profile
from livemoments.runtime.image_files.encode import Metadata, encode, to_bit_depth
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.inputs import RestoreInputs
from livemoments.runtime.restore import to_integers
from livemoments.types import Size

CROP_PX = 256
_QUALITY = 92  # from 90 on colour keeps its full resolution


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of a photo, in pixels."""

    y: int
    x: int
    size: Size

    def of(self, photo: Photo) -> bytes:
        """The rectangle as a JPEG file in sRGB."""
        y1, x1 = self.y + self.size.height, self.x + self.size.width
        return _jpeg(Photo(photo.pixels[self.y : y1, self.x : x1], icc_profile=photo.icc_profile))

    def of_input(self, inputs: RestoreInputs) -> bytes:
        """The rectangle of the enlarged video frame, as a JPEG file in sRGB."""
        window = inputs.frame_view.window(self.y, self.x, self.size.height, self.size.width)
        return _jpeg(Photo(to_integers(window, 8), icc_profile=inputs.photo.icc_profile))


def find_crop(frame: Photo, photo_size: Size, side_px: int = CROP_PX) -> Crop:
    """Where the video frame has the most detail: the largest mean of its absolute Laplacian.

    Args:
        frame: the video frame.
        photo_size: of the restored photo, in whose pixels the crop is.
        side_px: of the crop; a photo's shorter side, where that is less.
    """
    height, width = min(side_px, photo_size.height), min(side_px, photo_size.width)
    grey = cv2.cvtColor(to_bit_depth(frame.pixels, 8), cv2.COLOR_RGB2GRAY)
    detail = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    rows = min(grey.shape[0], max(1, round(height * grey.shape[0] / photo_size.height)))
    columns = min(grey.shape[1], max(1, round(width * grey.shape[1] / photo_size.width)))
    sums = cv2.integral(detail, sdepth=cv2.CV_64F)
    totals = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    y, x = np.unravel_index(int(totals.argmax()), totals.shape)
    return Crop(
        min(round(int(y) * photo_size.height / grey.shape[0]), photo_size.height - height),
        min(round(int(x) * photo_size.width / grey.shape[1]), photo_size.width - width),
        Size(height, width),
    )


def _jpeg(crop: Photo) -> bytes:
    shown, _ = match_profile(crop, Photo(crop.pixels[:1, :1]))
    return encode("crop.jpg", to_bit_depth(shown.pixels, 8), Metadata(), _QUALITY)[0]

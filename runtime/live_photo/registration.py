"""Where the video's picture lies in the photo: phones crop, scale and stabilise the two differently.

Matched features give a similarity (scale, turn, shift); what moves between photo and frame is outvoted. The photo is
then cropped to what the video covers, without resampling, and the frames are resampled once to that crop's view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.types import Size

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

MIN_LIKENESS = 0.5
"""Correlation of photo and registered frame, blurred: pairs reach 0.8 to 1, other scenes stay below 0.4."""
_WORK_PX = 1600
"""Longest side at which features are looked for: the video's own resolution."""
_MAX_FEATURES = 2000
_MATCH_RATIO = 0.75  # Lowe's
_REPROJECTION_PX = 3.0
_MIN_INLIERS = 12
_MIN_INLIER_SHARE = 0.15
_SIMILARITY_PX = 96
"""Longest side at which the likeness is measured: motion between photo and frame is below a pixel there."""
_FLAT_LEVELS = 4.0
_NEAR_RIGHT_ANGLE_DEG = 10.0
_SAME_PLACE_PX = 0.25
"""Frames that would move by less than this anywhere stay as they are."""


@dataclass(frozen=True, eq=False)
class Registration:
    """How the video lies over the photo.

    Attributes:
        matrix: (2, 3), the upright, perhaps mirrored frame's pixel centres (x, y) to the photo's.
        mirrored: whether the frame has to be mirrored first (left and right change places).
        matches: how many features agree with it; 0: it was not estimated.
        likeness: correlation of the blurred pictures after it, -1 to 1.
    """

    matrix: Matrix
    mirrored: bool
    matches: int
    likeness: float

    @property
    def scale(self) -> float:
        """Photo pixels a video pixel."""
        return math.hypot(self.matrix[0, 0], self.matrix[1, 0])

    @property
    def turn_deg(self) -> float:
        """Clockwise turn of the frame in the photo, -180 to 180."""
        return math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))

    @property
    def is_estimated(self) -> bool:
        """Whether features decided, not the two aspect ratios."""
        return self.matches > 0


@dataclass(frozen=True, eq=False)
class View:
    """What photo and video both show.

    Attributes:
        x, y: the crop's corner in the photo, in pixels.
        crop: its size.
        frame: the size of frames of this view, at the video's own resolution where it is below the photo's.
        matrix: (2, 3), pixel centres of such a frame to those of the video's frame.
        mirrored: whether the video's frame has to be mirrored first.
        keeps: the share of the photo's area that is left.
    """

    x: int
    y: int
    crop: Size
    frame: Size
    matrix: Matrix
    mirrored: bool
    keeps: float

    def photo_pixels(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> np.ndarray:
        """The crop of the photo."""
        return np.ascontiguousarray(pixels[self.y : self.y + self.crop.height, self.x : self.x + self.crop.width])

    def frame_pixels(self, pixels: Pixels) -> Pixels:
        """A frame of the video in this view: (H, W, 3) uint8."""
        if self.mirrored:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        size = (self.frame.width, self.frame.height)
        if pixels.shape[1::-1] == size and self._leaves_in_place():
            return pixels
        flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(pixels, self.matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def _leaves_in_place(self) -> bool:
        corners = _corners(self.frame)
        return bool(np.abs(_apply(self.matrix, corners) - corners).max() < _SAME_PLACE_PX)


def register(photo: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], frame: Pixels) -> Registration:
    """Estimate where the frame lies in the photo.

    Args:
        photo: (H, W, 3) RGB.
        frame: (h, w, 3) RGB, upright, of an instant near the photo's.

    Returns:
        Of the frame as it is, else of the mirrored one; where neither has features enough that agree, the placement
        that the sizes suggest: the same centre, as much of both as their aspect ratios allow. ``likeness`` says how
        well it fits.
    """
    size = Size(*photo.shape[:2])
    grey, grey_scale = _grey(photo)
    for mirrored in (False, True):
        seen = frame[:, ::-1] if mirrored else frame
        small, small_scale = _grey(np.ascontiguousarray(seen))
        estimate = _from_features(small, grey)
        if estimate is not None:
            matrix, matches = estimate
            to_photo = _scaling(1 / grey_scale) @ _square(matrix) @ _scaling(small_scale)
            found = Registration(to_photo[:2], mirrored, matches, 0.0)
            found = replace(found, likeness=likeness(photo, frame, found))
            if found.likeness >= MIN_LIKENESS:
                return found
    found = Registration(centred(Size(*frame.shape[:2]), size), False, 0, 0.0)
    return replace(found, likeness=likeness(photo, frame, found))


def centred(frame: Size, photo: Size) -> Matrix:
    """(2, 3): the frame over the photo's centre, touching it on two sides, inside it: a video's crop of the photo."""
    scale = min(photo.height / frame.height, photo.width / frame.width)
    middle = np.array([(photo.width - 1) / 2, (photo.height - 1) / 2])
    own = np.array([(frame.width - 1) / 2, (frame.height - 1) / 2])
    return np.column_stack([np.eye(2) * scale, middle - scale * own])


def common_view(
    registration: Registration, frame: Size, photo: Size, *, inside: tuple[int, int, int, int] | None = None
) -> View | None:
    """The largest upright rectangle of the photo that the video covers.

    Args:
        registration: how the video lies over the photo.
        frame: the size of the video's frames.
        photo: the photo's size.
        inside: the part of the frame that counts: left, top, right, bottom in its pixels.

    Returns:
        The view; ``None`` where the video is turned by no multiple of 90 degrees, or hardly covers anything.
    """
    turn = registration.turn_deg
    if abs(turn - 90 * round(turn / 90)) > _NEAR_RIGHT_ANGLE_DEG:
        return None
    first_x, first_y, end_x, end_y = inside or (0, 0, frame.width, frame.height)
    edges = np.array([[first_x, first_y], [end_x, end_y]]) - 0.5
    outline = np.array([[x, y] for x in edges[:, 0] for y in edges[:, 1]])
    xs, ys = (np.sort(values) for values in _apply(registration.matrix, outline).T)
    left, right = max(-0.5, float(xs[1])), min(photo.width - 0.5, float(xs[2]))
    top, bottom = max(-0.5, float(ys[1])), min(photo.height - 0.5, float(ys[2]))
    # a video that reaches to within half of one of its pixels of the photo's edge covers it
    slack = registration.scale / 2
    x0, y0 = _inside(left, slack), _inside(top, slack)
    x1 = photo.width - _inside(photo.width - 1 - right, slack)
    y1 = photo.height - _inside(photo.height - 1 - bottom, slack)
    # even lengths where the photo is cropped: video codecs, and so HEIC, store colour for pairs of pixels
    x1 -= (x1 - x0) % 2 if x1 - x0 < photo.width else 0
    y1 -= (y1 - y0) % 2 if y1 - y0 < photo.height else 0
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    crop = Size(y1 - y0, x1 - x0)
    per_pixel = max(1.0, registration.scale)
    target = Size(max(1, round(crop.height / per_pixel)), max(1, round(crop.width / per_pixel)))
    step = np.diag([crop.width / target.width, crop.height / target.height])
    # pixel centres: crop coordinate = step * (u + 1/2) - 1/2
    to_photo = np.column_stack([step, np.diag(step) / 2 - 0.5 + np.array([x0, y0])])
    back = np.linalg.inv(_square(registration.matrix)) @ _square(to_photo)
    keeps = crop.height * crop.width / (photo.height * photo.width)
    return View(x0, y0, crop, target, back[:2], registration.mirrored, keeps)


def _inside(edge: float, slack: float) -> int:
    """The first whole pixel inside an edge at -1/2 or later."""
    return 0 if edge + 0.5 <= slack else math.ceil(edge + 0.5 - 1e-6)


def _from_features(frame: Pixels, photo: Pixels) -> tuple[Matrix, int] | None:
    sift = cv2.SIFT.create(_MAX_FEATURES, enable_precise_upscale=True)  # without: a shift of a quarter pixel
    (frame_points, frame_marks), (photo_points, photo_marks) = (
        sift.detectAndCompute(picture, None) for picture in (frame, photo)
    )
    if frame_marks is None or photo_marks is None or min(len(frame_marks), len(photo_marks)) < _MIN_INLIERS:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(frame_marks, photo_marks, k=2)
    good = [two[0] for two in pairs if len(two) == 2 and two[0].distance < _MATCH_RATIO * two[1].distance]
    if len(good) < _MIN_INLIERS:
        return None
    source = np.array([frame_points[match.queryIdx].pt for match in good], np.float32)
    target = np.array([photo_points[match.trainIdx].pt for match in good], np.float32)
    matrix, inliers = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=_REPROJECTION_PX, maxIters=5000, confidence=0.999
    )
    count = 0 if inliers is None else int(inliers.sum())
    if matrix is None or count < max(_MIN_INLIERS, _MIN_INLIER_SHARE * len(good)) or not np.isfinite(matrix).all():
        return None
    return np.asarray(matrix, np.float64), count


def likeness(
    photo: np.ndarray,
    frame: Pixels,
    registration: Registration,
    *,
    longest_px: int = _SIMILARITY_PX,
    only: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Normalised correlation of luma over what both show, both made small: -1 to 1; -1 where they share nothing.

    Args:
        photo: (H, W, 3) RGB.
        frame: (h, w, 3) RGB.
        registration: how the frame lies over the photo.
        longest_px: the photo's longest side when it is compared.
        only: (h, w), the frame's pixels that count.
    """
    size = Size(*photo.shape[:2])
    seen = np.ascontiguousarray(frame[:, ::-1]) if registration.mirrored else frame
    scale = longest_px / max(size.height, size.width)
    small = Size(max(4, round(size.height * scale)), max(4, round(size.width * scale)))
    across, down = small.width / size.width, small.height / size.height
    reduce = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
    to_small = (reduce @ _square(registration.matrix))[:2]
    blur = max(1.0, math.hypot(to_small[0, 0], to_small[1, 0]) ** -1) / 2
    soft = cv2.GaussianBlur(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), blur)
    a = cv2.warpAffine(soft, to_small, (small.width, small.height), flags=cv2.INTER_LINEAR)
    counted = np.ones(seen.shape[:2], np.float32)
    if only is not None:
        counted = np.ascontiguousarray((only[:, ::-1] if registration.mirrored else only).astype(np.float32))
    covered = cv2.warpAffine(counted, to_small, (small.width, small.height), flags=cv2.INTER_LINEAR) > 0.99
    grey = cv2.cvtColor(_eight_bit(photo), cv2.COLOR_RGB2GRAY)
    b = cv2.resize(grey, (small.width, small.height), interpolation=cv2.INTER_AREA).astype(np.float32)
    if covered.sum() < 16:
        return -1.0
    first, second = a[covered] - a[covered].mean(), b[covered] - b[covered].mean()
    if max(float(first.std()), float(second.std())) < _FLAT_LEVELS:  # two pictures of nothing are alike
        return 1.0
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if norm > 0 else 0.0


def _grey(pixels: np.ndarray) -> tuple[Pixels, float]:
    """Luma of at most ``_WORK_PX``, and how much smaller it is."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _WORK_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = np.asarray(cv2.cvtColor(_eight_bit(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
    if scale < 1.0:
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    return grey, scale


def _eight_bit(pixels: np.ndarray) -> Pixels:
    return to_bit_depth(pixels, 8)


def _scaling(scale: float) -> Matrix:
    """Pixel centres to those of a picture ``scale`` times as large."""
    shift = scale / 2 - 0.5
    return np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]])


def _square(matrix: Matrix) -> Matrix:
    return np.vstack([matrix, [0, 0, 1]])


def _apply(matrix: Matrix, points: Matrix) -> Matrix:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _corners(size: Size) -> Matrix:
    right, bottom = size.width - 1.0, size.height - 1.0
    return np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])

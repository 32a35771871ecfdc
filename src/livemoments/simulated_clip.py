"""A Live Photo made from one photograph: hand-held motion, motion blur, downscaling, sensor noise and JPEG.

A stand-in where no real Live Photo is at hand. Unlike a real one it has the truth: the reselected instant in full
quality. The camera's motion is a homography, so nothing in the scene moves by itself.
"""

from __future__ import annotations

import cv2
import numpy as np

from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.natural_images import natural_image
from livemoments.types import Size

MARGIN_FRACTION = 0.06
"""Of each side, cut away on all four sides so that the moved view never runs out of the photograph."""
ROTATION_DEG = 1.2
SHIFT_FRACTION = 0.025
PERSPECTIVE = 1.2e-5
BLUR_LENGTH_FRACTION = 0.006
NOISE_SIGMA = 2.0
"""Standard deviation of the sensor noise, in 8-bit levels."""
JPEG_QUALITY = 55


def synthetic_photograph(size: Size, *, seed: int = 0) -> np.ndarray:
    """A picture with a photograph's spectrum (amplitude as 1/f), (H, W, 3) uint8, where no photograph is at hand."""
    picture = natural_image(np.random.default_rng(seed), 1, 3, size)[0].transpose(1, 2, 0)
    grey = picture.mean(axis=2, keepdims=True)  # channels of a photograph go together
    picture = (grey + 0.3 * (picture - grey)) / grey.std()
    return np.clip(np.rint(127.5 + 50 * picture), 0, 255).astype(np.uint8)


def simulate_live_photo(
    source: np.ndarray, *, seed: int = 0, scale: int = 2, multiple: int = 16
) -> LivePhoto[np.ndarray]:
    """Simulate a Live Photo: (H, W, 3) uint8 RGB; the frames are smaller by ``scale``, and the truth is what the frame
    would be in full quality.

    Args:
        source: the photograph, (H, W, 3) uint8 RGB.
        seed: seed of the motion and the noise.
        scale: how much smaller the clip is than the photo.
        multiple: the photo's sides become multiples of this, in pixels.

    Raises:
        UsageError: the photograph is too small to leave 64-pixel frames.
    """
    height, width = source.shape[:2]
    top, left = round(height * MARGIN_FRACTION), round(width * MARGIN_FRACTION)
    inner_height = (height - 2 * top) // multiple * multiple
    inner_width = (width - 2 * left) // multiple * multiple
    if min(inner_height, inner_width) < 64 * scale:
        raise UsageError(f"a photograph of {width}x{height} is too small to simulate a clip from")
    rng = np.random.default_rng(seed)
    moved = cv2.warpPerspective(
        source, _hand_motion(rng, height, width), (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    window = (slice(top, top + inner_height), slice(left, left + inner_width))
    photo, truth = source[window], moved[window]
    blur = _motion_blur_kernel(rng, max(3, round(BLUR_LENGTH_FRACTION * width)))
    return LivePhoto(
        photo=np.ascontiguousarray(photo),
        frame=_degrade(truth, blur, scale, rng),
        photo_frame=_degrade(photo, blur, scale, rng),
        truth=np.ascontiguousarray(truth),
    )


def _hand_motion(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A 3x3 homography about the centre: rotation, shift and a little perspective."""
    angle = np.deg2rad(rng.uniform(0.4, 1.0) * ROTATION_DEG * rng.choice([-1, 1]))
    shift = rng.uniform(0.4, 1.0, 2) * SHIFT_FRACTION * np.array([width, height]) * rng.choice([-1, 1], 2)
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1.0]])
    move = np.array(
        [
            [np.cos(angle), -np.sin(angle), shift[0]],
            [np.sin(angle), np.cos(angle), shift[1]],
            [*rng.uniform(-PERSPECTIVE, PERSPECTIVE, 2), 1.0],
        ]
    )
    return np.linalg.inv(centre) @ move @ centre


def _motion_blur_kernel(rng: np.random.Generator, length: int) -> np.ndarray:
    """A line of unit sum through the middle of a square kernel."""
    side = length | 1
    kernel = np.zeros((side, side), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * (side // 2)
    middle = side // 2
    start, end = (tuple(int(v) for v in np.round(middle + sign * reach)) for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA)
    return kernel / kernel.sum()


def _degrade(image: np.ndarray, blur: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    soft = cv2.filter2D(image.astype(np.float32), -1, blur, borderType=cv2.BORDER_REFLECT)
    size = (image.shape[1] // scale, image.shape[0] // scale)
    small = cv2.resize(soft, size, interpolation=cv2.INTER_AREA)
    noisy = small + rng.normal(0, NOISE_SIGMA, small.shape)
    pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])

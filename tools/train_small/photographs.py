"""The photographs that are trained on: those that Python packages carry, and any folder's.

The four photographs of the embedded set (:mod:`livemoments.validate.datasets.embedded`) are never among them: they are
held out, so that `livemoments demo` shows pictures that the networks have not seen.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.errors import ImageError, MissingExtraError
from livemoments.validate.datasets.embedded import NAMES as HELD_OUT
from livemoments.validate.synlive.clips import images_in, read_8_bit

Pixels = npt.NDArray[np.uint8]

_LARGE_PX = 1500
"""A photograph with a longer side than this is resized to something between _LEAST_PX and _MOST_OF_LARGE of it:
at full size a phone's photograph is soft."""
_LEAST_PX, _MOST_OF_LARGE = 560, 0.7
_LEAST_OF_SMALL = 0.75
_TRIES = 2
"""Places looked at for one window, of which the most detailed is taken: skies and blurs teach little."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A photograph within an installed package: where, and under which licence its package says it is."""

    package: str
    path: str
    licence: str


PACKAGED = (
    Packaged("sklearn.datasets", "images/china.jpg", "CC BY 2.0, danielbuechele"),
    Packaged("sklearn.datasets", "images/flower.jpg", "CC BY 2.0, vultilion"),
    Packaged("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "public domain, US Navy"),
    Packaged("skimage", "data/brick.png", "CC0, from CC0Textures"),
    Packaged("skimage", "data/grass.png", "CC0"),
    Packaged("skimage", "data/gravel.png", "CC0, from CC0Textures"),
    Packaged("skimage", "data/camera.png", "CC0, Lav Varshney"),
    Packaged("skimage", "data/hubble_deep_field.jpg", "public domain, NASA"),
    Packaged("skimage", "data/retina.jpg", "CC0"),
    Packaged("skimage", "data/ihc.png", "no known copyright restrictions"),
)
"""scipy's `face` and `ascent` are not here: scipy downloads them."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """``pixels`` is (H, W, 3) uint8 RGB; ``name`` is unique; ``licence`` is empty where nobody said."""

    name: str
    pixels: Pixels
    licence: str = ""


def load_photographs(folders: Sequence[Path], *, least_px: int) -> list[Photograph]:
    """The packaged photographs and those of the folders, in a fixed order.

    Args:
        folders: their images, not those of folders within.
        least_px: the shortest side that can be used; smaller ones are left out.

    Raises:
        MissingExtraError: scikit-image, scikit-learn or matplotlib is not installed.
        ImageError: a folder has no image of that size.
    """
    found = [Photograph(f"{p.package}/{p.path}", _packaged(p), p.licence) for p in PACKAGED]
    usable = [photo for photo in found if min(photo.pixels.shape[:2]) >= least_px]
    for folder in folders:
        images = [Photograph(path.name, read_8_bit(path)) for path in images_in(folder)]
        large = [photo for photo in images if min(photo.pixels.shape[:2]) >= least_px and _may_train(photo.name)]
        if not large:
            raise ImageError(folder, f"holds no image of {least_px} pixels or more", fix="name another folder")
        usable += large
    return usable


def _may_train(name: str) -> bool:
    return Path(name).stem not in HELD_OUT


def _packaged(photograph: Packaged) -> Pixels:
    try:
        root = importlib.resources.files(photograph.package)
    except ModuleNotFoundError as error:
        raise MissingExtraError("the packaged photographs", "train", missing=error.name or "") from None
    with importlib.resources.as_file(root / photograph.path) as path:
        return read_8_bit(path)


class WindowSampler:
    """Random windows of photographs at random sizes, larger photographs more often.

    Args:
        photographs: what to choose from.
    """

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self._photographs = photographs
        # By the root of the area: a 13-megapixel photograph holds more than a small one, but not fifty times.
        weights = np.array([math.sqrt(photo.pixels[..., 0].size) for photo in photographs])
        self._odds = weights / weights.sum()

    def window(self, rng: np.random.Generator, side_px: int) -> Pixels:
        """(side, side, 3): resized, turned, mirrored and recoloured at random."""
        photo = self._photographs[int(rng.choice(len(self._photographs), p=self._odds))].pixels
        factor = _factor(rng, photo.shape[0], photo.shape[1], side_px)
        source_px = min(math.ceil(side_px / factor), *photo.shape[:2])
        window = max((_cut(rng, photo, source_px) for _ in range(_TRIES)), key=_detail)
        mode = cv2.INTER_AREA if source_px > side_px else cv2.INTER_CUBIC
        window = np.asarray(cv2.resize(window, (side_px, side_px), interpolation=mode), np.uint8)
        window = np.rot90(window, int(rng.integers(4)))
        if rng.random() < 0.5:
            window = window[:, ::-1]
        return np.ascontiguousarray(_recoloured(rng, window))


def _cut(rng: np.random.Generator, photo: Pixels, side_px: int) -> Pixels:
    y, x = (int(rng.integers(length - side_px + 1)) for length in photo.shape[:2])
    return photo[y : y + side_px, x : x + side_px]


def _detail(window: Pixels) -> float:
    """How much there is to restore: the mean step between pixels that are two apart, of every fourth row."""
    green = window[::4, :, 1].astype(np.int16)
    return float(np.abs(green[:, 2:] - green[:, :-2]).mean())


def _factor(rng: np.random.Generator, height: int, width: int, side_px: int) -> float:
    """By how much the photograph is resized: 1 or less, unless the window would not fit."""
    longest = max(height, width)
    if longest > _LARGE_PX:
        factor = math.exp(rng.uniform(math.log(_LEAST_PX / longest), math.log(_MOST_OF_LARGE)))
    else:
        factor = rng.uniform(_LEAST_OF_SMALL, 1.0)
    return max(factor, side_px / min(height, width))


def _recoloured(rng: np.random.Generator, window: Pixels) -> Pixels:
    if rng.random() < 0.4:
        return window
    levels = np.arange(256, dtype=np.float64) / 255
    gamma = math.exp(rng.uniform(-0.3, 0.3))
    gains = rng.uniform(0.75, 1.05) * rng.uniform(0.9, 1.1, 3)
    table = np.stack([np.clip(gain * levels**gamma, 0, 1) for gain in gains], axis=-1)
    recoloured = np.stack([(table[:, c] * 255)[window[..., c]] for c in range(3)], axis=-1)
    if rng.random() < 0.5:
        grey = recoloured.mean(axis=-1, keepdims=True)
        recoloured = grey + rng.uniform(0.3, 1.3) * (recoloured - grey)
    return np.clip(np.rint(recoloured), 0, 255).astype(np.uint8)


def licences() -> Iterator[tuple[str, str]]:
    """Each packaged photograph and its licence, for the model card."""
    for photograph in PACKAGED:
        yield f"{photograph.package}/{photograph.path}", photograph.licence

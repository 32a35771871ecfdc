"""Two instants of a scene in full quality: a camera that moves, and things that move within the picture.

The background is one photograph seen through a homography; foreground layers are cut from others along a smooth
outline and move on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from photographs import Pixels, WindowSampler

MARGIN_PX = 48
"""Around the picture, so that a moved camera does not look past the photograph."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """``key`` and ``frame`` are (side, side, 3) uint8 RGB; ``between`` are instants from the key to the frame."""

    key: Pixels
    frame: Pixels
    between: tuple[Pixels, ...] = ()


def draw_scene(
    rng: np.random.Generator, sampler: WindowSampler, side_px: int, *, instants: int = 2, motion: float = 1.0
) -> Scene:
    """Draw a scene.

    Args:
        rng: of everything.
        sampler: where the photographs come from.
        side_px: of the square pictures.
        instants: pictures in all, from the key to the frame; more than two for a codec.
        motion: share of the drawn motion that takes place; 0: nothing moves.
    """
    outer_px = side_px + 2 * MARGIN_PX
    background = sampler.window(rng, outer_px)
    camera = _Motion.draw_camera(rng)
    layers = [_Layer.draw(rng, sampler, side_px) for _ in range(_layer_count(rng))]
    pictures = []
    for time in np.linspace(0, motion, instants):
        view = _warp(background, camera.at(float(time), outer_px)).astype(np.float32)
        view = view[MARGIN_PX : MARGIN_PX + side_px, MARGIN_PX : MARGIN_PX + side_px]
        for layer in layers:
            view = layer.over(view, float(time))
        pictures.append(np.clip(np.rint(view), 0, 255).astype(np.uint8))
    return Scene(pictures[0], pictures[-1], tuple(pictures[1:-1]))


def _layer_count(rng: np.random.Generator) -> int:
    return int(rng.choice(3, p=[0.5, 0.35, 0.15]))


@dataclass(frozen=True, slots=True)
class _Motion:
    """Rotation (radians), zoom (factor - 1), shift (pixels, x and y) and perspective from time 0 to time 1."""

    angle: float
    zoom: float
    shift_px: tuple[float, float]
    perspective: tuple[float, float]

    @staticmethod
    def draw_camera(rng: np.random.Generator) -> _Motion:
        kind = rng.random()
        if kind < 0.2:  # a tripod: less than a pixel
            return _Motion(0.0, 0.0, _pair(rng.uniform(-0.7, 0.7, 2)), (0.0, 0.0))
        reach = 6.0 if kind < 0.5 else 30.0
        size = min(1.0, reach / 15)
        return _Motion(
            angle=float(np.deg2rad(rng.uniform(-1.5, 1.5) * size)),
            zoom=float(rng.uniform(-0.02, 0.02) * size),
            shift_px=_pair(rng.uniform(-reach, reach, 2)),
            perspective=_pair(rng.uniform(-4e-5, 4e-5, 2) * size),
        )

    @staticmethod
    def draw_object(rng: np.random.Generator) -> _Motion:
        reach = 5.0 if rng.random() < 0.4 else 24.0
        angle = float(np.deg2rad(rng.uniform(-4, 4)))
        return _Motion(angle, float(rng.uniform(-0.04, 0.04)), _pair(rng.uniform(-reach, reach, 2)), (0.0, 0.0))

    def at(self, time: float, side_px: int) -> npt.NDArray[np.float64]:
        """The homography about the middle of a square picture, at a time from 0 to 1."""
        middle = side_px / 2
        centre = np.array([[1, 0, -middle], [0, 1, -middle], [0, 0, 1.0]])
        scale = 1 + self.zoom * time
        cos, sin = scale * np.cos(self.angle * time), scale * np.sin(self.angle * time)
        x, y = (value * time for value in self.shift_px)
        px, py = (value * time for value in self.perspective)
        move = np.array([[cos, -sin, x], [sin, cos, y], [px, py, 1.0]])
        result: npt.NDArray[np.float64] = np.linalg.inv(centre) @ move @ centre
        return result


@dataclass(frozen=True, slots=True)
class _Layer:
    """A thing in front: its picture, its outline (0 to 1), both of the scene's size, and how it moves."""

    picture: Pixels
    outline: Floats
    motion: _Motion

    @staticmethod
    def draw(rng: np.random.Generator, sampler: WindowSampler, side_px: int) -> _Layer:
        return _Layer(sampler.window(rng, side_px), _outline(rng, side_px), _Motion.draw_object(rng))

    def over(self, view: Floats, time: float) -> Floats:
        move = self.motion.at(time, len(view))
        picture, outline = _warp(self.picture, move), _warp(self.outline, move)[..., None]
        blended: Floats = view + outline * (picture.astype(np.float32) - view)
        return blended


def _outline(rng: np.random.Generator, side_px: int) -> Floats:
    """A blob: an ellipse with a wavy edge, soft over about two pixels."""
    centre = rng.uniform(0.2, 0.8, 2) * side_px
    radius = rng.uniform(0.1, 0.3) * side_px
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    rows, columns = np.mgrid[:side_px, :side_px].astype(np.float32)
    dy, dx = (rows - centre[0]) * stretch, (columns - centre[1]) / stretch
    angle = np.arctan2(dy, dx)
    edge = np.full_like(angle, radius)
    for waves in (2, 3, 5):
        edge += radius * np.float32(rng.uniform(0, 0.15)) * np.cos(waves * angle + np.float32(rng.uniform(0, 6.3)))
    return np.asarray(np.clip((edge - np.hypot(dy, dx)) / 2 + 0.5, 0, 1), np.float32)


def _warp(picture: npt.NDArray[np.generic], move: npt.NDArray[np.float64]) -> npt.NDArray[np.generic]:
    side = (picture.shape[1], picture.shape[0])
    # Enlarging by cubic convolution overshoots at edges, which is why the outline is linear
    mode = cv2.INTER_CUBIC if picture.ndim == 3 else cv2.INTER_LINEAR
    border = cv2.BORDER_REFLECT_101 if picture.ndim == 3 else cv2.BORDER_CONSTANT
    return np.asarray(cv2.warpPerspective(picture, move, side, flags=mode, borderMode=border))


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])

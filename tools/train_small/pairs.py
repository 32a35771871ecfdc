"""A training pair: a degraded frame, its truth, and the reference tile that PCR would find, made from one number.

The degradation is that of ``livemoments synlive build`` (its two-stage model, or its video codec), the flow is OpenCV's
DIS, and the reference tile is cut as the runtime cuts it: training sees what a restoration sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from photographs import Pixels, WindowSampler
from scenes import Scene, draw_scene

from livemoments.dis import dis_flow
from livemoments.runtime.tiles.correspondence import mean_flow, reference_corner
from livemoments.types import Size, Tile
from livemoments.validate.synlive.codec import sample_codec, through_codec
from livemoments.validate.synlive.degradation import apply, image_rng, sample_degradation

SCALE = 2
PRESET = "live-photo"
CODEC_PROB = 0.12
_CODEC_INSTANTS = 4
_BLUR_PROB, _BLUR_PX = 0.25, (2.0, 6.0)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TilePair:
    """Tiles of one size: ``truth`` and ``ref`` (P, P, 3) uint8; ``lr``, the upscaled frame, (P, P, 3) float32 in
    [0, 1]; ``flow``, from the reference's frame to the frame, (P, P, 2) float32 in pixels.
    """

    truth: Pixels
    ref: Pixels
    lr: Floats
    flow: Floats


def make_pair(
    sampler: WindowSampler, seed: int, number: int, *, tile_px: int, scene_px: int, motion: float = 1.0
) -> TilePair:
    """The pair of this number; the same seed and number give the same pair, whatever was made before.

    Args:
        sampler: where photographs come from.
        seed: of the whole training.
        number: which pair.
        tile_px: P.
        scene_px: side of the scene that the tile is cut from, a multiple of four.
        motion: see :func:`scenes.draw_scene`.
    """
    rng = image_rng(seed, f"pair:{number}")
    coded = rng.random() < CODEC_PROB
    scene = draw_scene(rng, sampler, scene_px, instants=_CODEC_INSTANTS if coded else 2, motion=motion)
    frame_lr, key_lr = _through_codec(rng, scene) if coded else _degraded(rng, scene)
    lr, ref_lr = (upscaled(image, scene_px) for image in (frame_lr, key_lr))
    tile = Tile(0, *(int(v) for v in rng.integers(scene_px - tile_px + 1, size=2)), tile_px, tile_px)
    flow = np.asarray(cv2.resize(dis_flow(frame_lr, key_lr), (scene_px, scene_px), interpolation=cv2.INTER_CUBIC))
    mean = mean_flow(flow[_cut(tile.y, tile.x, tile_px)] * np.float32(SCALE))
    corner = reference_corner(tile, mean, Size(scene_px, scene_px))
    here, there = _cut(tile.y, tile.x, tile_px), _cut(corner.y, corner.x, tile_px)
    return TilePair(
        truth=np.ascontiguousarray(scene.frame[here]),
        ref=np.ascontiguousarray(scene.key[there]),
        lr=np.ascontiguousarray(lr[here]),
        flow=dis_flow(np.ascontiguousarray(ref_lr[there]), np.ascontiguousarray(lr[here])),
    )


def upscaled(image: Pixels, side_px: int) -> Floats:
    """(side, side, 3) float32 in [0, 1]: bicubic (a = -0.75) as the runtime upscales frames, clipped as tiles are."""
    larger = cv2.resize(image.astype(np.float32) / 255, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(larger, 0, 1)


def _cut(y: int, x: int, side: int) -> tuple[slice, slice]:
    return slice(y, y + side), slice(x, x + side)


def _degraded(rng: np.random.Generator, scene: Scene) -> tuple[Pixels, Pixels]:
    """Frame and key through the same two-stage degradation, each with noise of its own."""
    parameters = sample_degradation(rng, PRESET, Size(*scene.key.shape[:2]), scale=SCALE)
    frame, key = scene.frame, scene.key
    if rng.random() < _BLUR_PROB:
        kernel = _line_kernel(float(rng.uniform(*_BLUR_PX)), float(rng.uniform(0, np.pi)))
        frame, key = (np.asarray(cv2.filter2D(image, -1, kernel), np.uint8) for image in (frame, key))
    return apply(parameters, frame, rng), apply(parameters, key, rng)


def _line_kernel(length_px: float, angle: float) -> npt.NDArray[np.float32]:
    """A hand's shake during the exposure: a line of unit sum."""
    reach = int(np.ceil(length_px / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for along in np.linspace(-length_px / 2, length_px / 2, 8 * reach):
        kernel[round(reach + along * np.sin(angle)), round(reach + along * np.cos(angle))] += 1
    return kernel / kernel.sum()


def _through_codec(rng: np.random.Generator, scene: Scene) -> tuple[Pixels, Pixels]:
    frames, _ = through_codec(sample_codec(rng, scale=SCALE), [scene.key, *scene.between, scene.frame])
    return frames[-1], frames[0]

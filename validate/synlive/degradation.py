"""The two-stage degradation of Real-ESRGAN (Wang et al. 2021), with its parameters as data.

Parameters are drawn once per pair (:func:`sample_degradation`) and applied to both frames (:func:`apply`), each with
noise of its own: the paper degrades the key frame "by applying the same degradation parameters". NumPy and OpenCV
only. The same parameters and generator give the same pixels whatever the number of threads.

Differences from the published code: Poisson noise counts 255 photons at white whatever levels an image holds, and
resizing is OpenCV's (``area``, ``linear``, ``cubic``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from livemoments.errors import UsageError
from livemoments.types import Size
from livemoments.validate.synlive.kernels import KernelKind, blur_kernel, sinc_kernel
from livemoments.validate.synlive.presets import Preset, Stage, load_preset

Floats: TypeAlias = npt.NDArray[np.float32]

_LEAST_SIDE_PX = 16  # no resizing in between makes an image smaller than this
_SMALL_SINC_PX = 13  # below this side a lower cutoff would leave a kernel without shape
_CHROMA_420 = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
_MODES: Mapping[str, int] = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step"):
    """Base of the steps: immutable, strict, told apart in JSON by ``step``."""


class Blur(_Step, frozen=True, kw_only=True, tag="blur"):
    """Convolution.

    Gaussians and plateaus have ``sigma_px`` (along, across), ``angle`` (radians) and ``beta``, sinc kernels ``cutoff``
    (radians a pixel).
    """

    kind: KernelKind
    side_px: int
    sigma_px: tuple[float, float] = (1.0, 1.0)
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = 0.0

    def kernel(self) -> npt.NDArray[np.float64]:
        """(side, side), of unit sum."""
        if self.kind == "sinc":
            return sinc_kernel(self.side_px, self.cutoff)
        return blur_kernel(self.kind, self.side_px, self.sigma_px, self.angle, self.beta)


class Resize(_Step, frozen=True, kw_only=True, tag="resize"):
    """To ``width`` x ``height`` pixels."""

    width: int
    height: int
    mode: Literal["area", "linear", "cubic"]


class Noise(_Step, frozen=True, kw_only=True, tag="noise"):
    """``amount``: standard deviation in 8-bit levels (``gaussian``), or the ``poisson_scale`` of the presets; ``grey``:
    the same in all channels.
    """

    kind: Literal["gaussian", "poisson"]
    amount: float
    grey: bool


class Jpeg(_Step, frozen=True, kw_only=True, tag="jpeg"):
    """JPEG with 4:2:0 chroma at this quality, there and back."""

    quality: int


Step: TypeAlias = Blur | Resize | Noise | Jpeg


class Degradation(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="model", tag="two-stage"
):
    """What happens to an image of ``width`` x ``height`` pixels, in order; the last resizing makes the output."""

    width: int
    height: int
    steps: tuple[Step, ...]

    @property
    def output(self) -> Size:
        """The degraded image's size."""
        resizes = [step for step in self.steps if isinstance(step, Resize)]
        return Size(resizes[-1].height, resizes[-1].width) if resizes else Size(self.height, self.width)


def image_rng(seed: int, name: str) -> np.random.Generator:
    """The generator of one image: from the set's seed and the image's name, so that order and threads do not matter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32).tolist())


def sample_degradation(rng: np.random.Generator, preset: str | Preset, size: Size, *, scale: int = 2) -> Degradation:
    """Draw the parameters of one degradation.

    Args:
        rng: where they are drawn from.
        preset: one of ``PRESETS``, or a preset of one's own.
        size: of the images that it will be applied to, in pixels; both sides multiples of ``scale``.
        scale: how much smaller the output is.

    Raises:
        UsageError: the preset is unknown, or the size does not fit the scale.
    """
    ranges = load_preset(preset) if isinstance(preset, str) else preset
    if scale < 1 or size.height % scale or size.width % scale:
        raise UsageError(f"{size} pixels cannot be divided by {scale}", fix=f"use sides that are multiples of {scale}")
    output = Size(size.height // scale, size.width // scale)
    if min(output.height, output.width) < _LEAST_SIDE_PX:
        raise UsageError(f"{size} pixels leave {output} after x{scale}", fix="use a larger image")
    first, second = ranges.stages
    steps: list[Step] = [*_blur(rng, first), _resize(rng, first, size), _noise(rng, first), _jpeg(rng, first)]
    steps += [*_blur(rng, second), _resize(rng, second, output), _noise(rng, second)]
    shrink: list[Step] = [Resize(width=output.width, height=output.height, mode=_mode(rng))]
    if rng.random() < ranges.final_sinc_prob:
        shrink.append(_sinc(rng, second))
    jpeg = _jpeg(rng, second)
    steps += [*shrink, jpeg] if rng.random() < 0.5 else [jpeg, *shrink]
    return Degradation(width=size.width, height=size.height, steps=tuple(steps))


def apply(degradation: Degradation, image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Degrade an image.

    Args:
        degradation: the parameters.
        image: (H, W, 3) uint8 RGB, of the size that they were drawn for.
        rng: of the noise.

    Returns:
        (H / scale, W / scale, 3) uint8 RGB.

    Raises:
        UsageError: the image is of another size or type.
    """
    if image.shape != (degradation.height, degradation.width, 3) or image.dtype != np.uint8:
        want = f"({degradation.height}, {degradation.width}, 3) uint8"
        raise UsageError(f"the degradation is for {want} images, not {image.shape} {image.dtype}")
    values = image.astype(np.float32)
    for step in degradation.steps:
        values = _apply_step(step, values, rng)
    return np.ascontiguousarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _apply_step(step: Step, values: Floats, rng: np.random.Generator) -> Floats:
    """``values``: (H, W, 3) float32 in 8-bit levels, not clipped."""
    match step:
        case Blur():
            return np.asarray(cv2.filter2D(values, -1, step.kernel(), borderType=cv2.BORDER_REFLECT_101), np.float32)
        case Resize():
            if values.shape[:2] == (step.height, step.width):
                return values
            return np.asarray(
                cv2.resize(values, (step.width, step.height), interpolation=_MODES[step.mode]), np.float32
            )
        case Noise():
            return _add_noise(step, values, rng)
        case Jpeg():
            pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
            options = [cv2.IMWRITE_JPEG_QUALITY, step.quality, *_CHROMA_420]
            _, data = cv2.imencode(".jpg", pixels[..., ::-1], options)
            decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
            return np.asarray(decoded[..., ::-1], np.float32)


def _add_noise(step: Noise, values: Floats, rng: np.random.Generator) -> Floats:
    height, width = values.shape[:2]
    if step.kind == "gaussian":
        noise = step.amount * rng.standard_normal((height, width, 1 if step.grey else 3), dtype=np.float32)
    else:
        # photons: as many as 8-bit levels
        clean = np.clip(np.rint(values), 0, 255)
        if step.grey:
            clean = np.rint(clean @ np.array([[0.299], [0.587], [0.114]], np.float32))
        noise = np.float32(step.amount) * (rng.poisson(clean).astype(np.float32) - clean)
    return np.clip(values + noise, 0, 255).astype(np.float32)


def _blur(rng: np.random.Generator, stage: Stage) -> tuple[Blur, ...]:
    if rng.random() >= stage.blur_prob:
        return ()
    if rng.random() < stage.sinc_prob:
        return (_sinc(rng, stage),)
    side = _side(rng, stage)
    kinds = list(stage.kernels)
    odds = np.array(list(stage.kernels.values()))
    kind = kinds[int(rng.choice(len(kinds), p=odds / odds.sum()))]
    along = rng.uniform(*stage.sigma_px)
    if kind.endswith("aniso"):
        across, angle = rng.uniform(*stage.sigma_px), rng.uniform(-np.pi, np.pi)
    else:
        across, angle = along, 0.0
    beta = 1.0
    if kind.startswith("generalized"):
        beta = _around_one(rng, stage.beta_generalized)
    elif kind.startswith("plateau"):
        beta = _around_one(rng, stage.beta_plateau)
    return (Blur(kind=kind, side_px=side, sigma_px=(along, across), angle=angle, beta=beta),)


def _around_one(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """Below and above 1 are equally likely, where the range has both."""
    low, high = ends
    if low < 1 < high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))


def _sinc(rng: np.random.Generator, stage: Stage) -> Blur:
    side = _side(rng, stage)
    lowest = np.pi / 3 if side < _SMALL_SINC_PX else np.pi / 5
    return Blur(kind="sinc", side_px=side, cutoff=float(rng.uniform(lowest, np.pi)))


def _side(rng: np.random.Generator, stage: Stage) -> int:
    low, high = stage.kernel_px
    return int(rng.integers(low // 2, high // 2 + 1)) * 2 + 1


def _resize(rng: np.random.Generator, stage: Stage, base: Size) -> Resize:
    """To a random factor of ``base``: the input's size in Real-ESRGAN's first stage, the output's in its second."""
    change = rng.choice(3, p=np.array(stage.resize_odds) / sum(stage.resize_odds))
    low, high = stage.resize
    factor = rng.uniform(1, high) if change == 0 else rng.uniform(low, 1) if change == 1 else 1.0
    height, width = (max(_LEAST_SIDE_PX, round(side * factor)) for side in (base.height, base.width))
    return Resize(width=width, height=height, mode=_mode(rng))


def _mode(rng: np.random.Generator) -> Literal["area", "linear", "cubic"]:
    modes: tuple[Literal["area", "linear", "cubic"], ...] = ("area", "linear", "cubic")
    return modes[int(rng.integers(3))]


def _noise(rng: np.random.Generator, stage: Stage) -> Noise:
    grey = bool(rng.random() < stage.grey_prob)
    if rng.random() < stage.gaussian_prob:
        return Noise(kind="gaussian", amount=float(rng.uniform(*stage.gaussian_sigma)), grey=grey)
    return Noise(kind="poisson", amount=float(rng.uniform(*stage.poisson_scale)), grey=grey)


def _jpeg(rng: np.random.Generator, stage: Stage) -> Jpeg:
    return Jpeg(quality=int(rng.integers(stage.jpeg[0], stage.jpeg[1] + 1)))

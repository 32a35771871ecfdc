"""The whole pipeline as upstream runs it (paper, sections 3.2 to 3.4; UPSTREAM "One photo", "One tile")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference import photo
from livemoments.reference.checkpoint import Reference
from livemoments.reference.flow import estimate_flow
from livemoments.reference.mmdit import BlockGuidance
from livemoments.reference.motion import embedding_index
from livemoments.schedule import NOISE_LEVEL, sigma_at, step_indices
from livemoments.types import ReferencePolicy, Size, Tile

Observer = Callable[[str, np.ndarray], None]
"""Is told every intermediate by its name in the golden format, e.g. ``tile0.step3.velocity``."""


@dataclass(frozen=True, slots=True)
class TileNoise:
    """One tile's noise, each (1, 16, h, w), in the order upstream draws it."""

    posterior_lr: Tensor
    posterior_ref: Tensor
    initial: Tensor


NoiseOfTile = Callable[[Tile, tuple[int, ...]], TileNoise]
"""Gives a tile's noise for a latent of the given shape."""


def _upstream_policy() -> ReferencePolicy:
    return ReferencePolicy.parse("per-step")


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a photo is restored.

    ``tiles`` and ``padded`` replace upstream's tiling where given. ``upstream_border`` keeps the grey border,
    ``upstream_color`` the 8-bit colour fix; both are upstream's by default here, for this is the reference.
    """

    tile: Size = field(default_factory=lambda: Size(1024, 1024))
    overlap: int = 64
    steps: int = 6
    policy: ReferencePolicy = field(default_factory=_upstream_policy)
    tiles: Sequence[Tile] | None = None
    padded: Size | None = None
    upstream_border: bool = True
    upstream_color: bool = True


@dataclass(frozen=True, slots=True)
class RestoredPhoto:
    """``stitched`` is (1, 3, H, W), nominally [-1, 1]; ``result`` (H, W, 3) in [0, 1], whole 255ths if 8-bit."""

    stitched: Tensor
    result: Tensor
    corners: tuple[tuple[int, int], ...]


def ignore(name: str, value: np.ndarray) -> None:
    """The observer that looks away."""


def _images(image: Tensor) -> Tensor:
    return (image * 2 - 1).clamp(-1, 1)


@torch.inference_mode()
def restore_photo(
    reference: Reference,
    inputs: LivePhoto[Tensor],
    size: Size,
    noise: NoiseOfTile,
    settings: PipelineSettings,
    *,
    only_tiles: Callable[[Tile], bool] | None = None,
    observe: Observer = ignore,
    progress: Progress = SILENT,
) -> RestoredPhoto:
    """Restore one photo.

    Args:
        reference: the loaded checkpoint.
        inputs: the images, (1, 3, H, W), [0, 1]; frame and photo frame of one size, the photo of ``size``.
        size: size that the frames are upscaled to: ``int(frame size * ref_res / lr_res)``.
        noise: every tile's noise.
        settings: tiling, steps, policy, compatibility.
        only_tiles: which tiles to restore (all if not given); the others stay mid-grey in the result.
        observe: told every intermediate.
        progress: receives the progress.
    """
    device, key_frame = reference.device, inputs.photo_frame
    if key_frame is None:
        raise ValueError("the reference derives no photo frame: it is given one")
    flow = estimate_flow(reference.flow, _images(inputs.frame).to(device), _images(key_frame).to(device)).cpu()
    observe("photo.flow_lr", flow.numpy())
    lr_up, ref_lr_up = (photo.resize_bicubic(image, size) for image in (inputs.frame, key_frame))
    observe("photo.lq_up", lr_up.numpy())
    observe("photo.ref_lq_up", ref_lr_up.numpy())

    padded, tiles = photo.upstream_tiles(size, settings.tile, settings.overlap)
    if settings.tiles is not None and settings.padded is not None:
        padded, tiles = settings.padded, tuple(settings.tiles)
    observe("lq_padded_shape", np.array([1, 3, padded.height, padded.width]))
    observe("tile_indices", np.array([(tile.y, tile.x) for tile in tiles]))
    lr_padded, ref_lr_padded, ref_padded = (
        photo.pad_reflect(image, padded) for image in (lr_up, ref_lr_up, inputs.photo)
    )
    flow_padded = photo.pad_zero(photo.resize_flow(flow, size), padded)
    corners = tuple(photo.reference_corner(flow_padded, tile) for tile in tiles)
    observe("ref_patch_coords", np.array(corners))

    decoded = []
    with progress.task("reference: tiles", total=len(tiles)) as task:
        for tile, corner in zip(tiles, corners, strict=True):
            if only_tiles is not None and not only_tiles(tile):
                continue
            images = TileImages(
                lr=_images(photo.cut(lr_padded, tile)).to(device, reference.dtype),
                ref=_images(photo.cut(ref_padded, tile, corner)).to(device, reference.dtype),
                ref_lr=_images(photo.cut(ref_lr_padded, tile, corner)).to(device, reference.dtype),
            )
            pixels = restore_tile(reference, images, tile, noise, settings, observe)
            decoded.append((tile, pixels.float().cpu()))
            task.advance()
    stitched = photo.blend(decoded, padded, size, upstream_border=settings.upstream_border)
    observe("photo.stitched", stitched.numpy())
    result = _finish(stitched, lr_up, settings, observe)
    return RestoredPhoto(stitched, result, corners)


def _finish(stitched: Tensor, lr_up: Tensor, settings: PipelineSettings, observe: Observer) -> Tensor:
    content, style = stitched / 2 + 0.5, lr_up
    if settings.upstream_color:
        content, style = photo.to_bytes(content) / 255, photo.to_bytes_upstream(style) / 255
    observe("photo.before_color_fix", _hwc_bytes(content))
    if not settings.upstream_color:
        content, style = content.clamp(0, 1), style.clamp(0, 1)
    result = photo.wavelet_color_fix(content, style).clamp(0, 1)
    if settings.upstream_color:
        result = (result * 255).floor() / 255  # upstream cuts off instead of rounding
    observe("photo.result", _hwc_bytes(result))
    return result[0].permute(1, 2, 0)


def _hwc_bytes(image: Tensor) -> np.ndarray:
    return photo.to_bytes(image)[0].permute(1, 2, 0).numpy().astype(np.uint8)


@dataclass(frozen=True, slots=True)
class TileImages:
    """The three images of one tile, (1, 3, h, w), [-1, 1]; reference images are cut at the PCR corner."""

    lr: Tensor
    ref: Tensor
    ref_lr: Tensor


def restore_tile(
    reference: Reference,
    images: TileImages,
    tile: Tile,
    noise: NoiseOfTile,
    settings: PipelineSettings,
    observe: Observer = ignore,
) -> Tensor:
    """Restore one tile: (1, 3, h, w), nominally [-1, 1], not clamped.

    Raises nothing of its own; see :func:`restore_photo` for the arguments.
    """
    name = f"tile{tile.index}"

    def tell(part: str, value: Tensor) -> None:
        observe(f"{name}.{part}", value.float().cpu().numpy())

    for part, value in {"lq.image": images.lr, "ref.image": images.ref, "ref_lq.image": images.ref_lr}.items():
        tell(part, value)
    flow = estimate_flow(reference.flow, images.ref_lr.float(), images.lr.float())
    tell("flow", flow)
    motion = reference.motion_encoder(flow.to(reference.dtype))
    tell("motion.0", motion[0])
    tell("motion.last", motion[-1])

    mean, std = reference.vae.encode(images.lr)
    drawn = noise(tile, tuple(mean.shape))
    posterior_lr, posterior_ref, initial = (
        part.to(mean) for part in (drawn.posterior_lr, drawn.posterior_ref, drawn.initial)
    )
    ref_mean, ref_std = reference.vae.encode(images.ref)
    for part, value in {
        "noise": initial,
        "lq.posterior_mean": mean,
        "lq.posterior_std": std,
        "lq.posterior_noise": posterior_lr,
        "ref.posterior_mean": ref_mean,
        "ref.posterior_std": ref_std,
        "ref.posterior_noise": posterior_ref,
    }.items():
        tell(part, value)
    z_lr = reference.vae.scale(mean + std * posterior_lr)
    z_ref = reference.vae.scale(ref_mean + ref_std * posterior_ref)
    tell("z_lq", z_lr)
    tell("z_ref", z_ref)
    z = (1 - NOISE_LEVEL) * z_lr + NOISE_LEVEL * initial
    tell("z_init", z)
    z = sample(reference, z, z_ref, motion, settings, tell)
    tell("z_out", z)
    decoded = reference.vae.decode(z)
    tell("decoded", decoded)
    return decoded


def sample(
    reference: Reference,
    z: Tensor,
    z_ref: Tensor,
    motion: Sequence[Tensor],
    settings: PipelineSettings,
    tell: Callable[[str, Tensor], None],
) -> Tensor:
    """Euler steps from z at t = 0.2 to the restored latent, ``z += (sigma_next - sigma) v``; (B, 16, h, w)."""
    config = reference.configs.schedule
    sigmas = [
        sigma_at(index, shift=config.shift, train_steps=config.num_train_timesteps)
        for index in step_indices(settings.steps)
    ]
    prompt, pooled = (
        part.expand(len(z), *part.shape[1:]) for part in (reference.prompt.tokens, reference.prompt.pooled)
    )
    timesteps = [torch.full((len(z),), sigma * config.num_train_timesteps, device=z.device) for sigma in sigmas]
    kv, kv_step = None, -1
    for step, source in enumerate(settings.policy.source_steps(settings.steps)):
        if kv is None or source != kv_step:
            kv, kv_step = reference.reference_net(z_ref, timesteps[source], prompt, pooled), source
            for index, block in enumerate(kv):
                prefix = f"step{step}.kv.transformer_blocks.{index}.attn"
                tell(f"{prefix}.to_k", block.image_key)
                tell(f"{prefix}.to_v", block.image_value)
                tell(f"{prefix}.add_k_proj", block.text_key)
                tell(f"{prefix}.add_v_proj", block.text_value)
        guidance = [BlockGuidance(block, motion[embedding_index(index)]) for index, block in enumerate(kv)]
        tell(f"step{step}.z", z)
        velocity = reference.restoration_net(z, timesteps[step], prompt, pooled, guidance)
        tell(f"step{step}.velocity", velocity)
        following = sigmas[step + 1] if step + 1 < settings.steps else 0.0
        z = z + (following - sigmas[step]) * velocity
    return z

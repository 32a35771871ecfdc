"""The six stages as modules: what each graph computes, and the names and types of its inputs and outputs.

Modules live on the meta device; their parameters' names are the checkpoint's (:class:`StageGraph` says how).
Shapes: B tiles, H x W pixels, h x w latent pixels, N image tokens, T text tokens, S = N + T, L blocks, D wide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livemoments.export.marks import MARK
from livemoments.export.mmdit import Guidance, KeyValue, MMDiT
from livemoments.reference.motion import MotionEncoder, embedding_index
from livemoments.reference.raft import RAFT

PER_BLOCK = "per-block"
STACKED = "stacked"
KV_LAYOUTS = (PER_BLOCK, STACKED)

_LOGVAR_LIMITS = (-30.0, 20.0)
"""Limits that diffusers puts on the posterior's log variance."""


class FlowStage(nn.Module):
    """image1, image2 (B, 3, H, W) in [-1, 1] to flow (B, 2, H, W), pixels, image1 -> image2.

    Tracing twenty equal iterations takes most of a minute, so two are traced, their results marked, and
    ``passes.unroll_iterations`` repeats the second.

    Attributes:
        repeats: how often the second iteration stands for one.
    """

    def __init__(self, raft: RAFT) -> None:
        super().__init__()
        self.raft = copy.copy(raft)
        self.repeats = raft.iterations - 1
        self.raft.iterations = min(raft.iterations, 2)
        if self.repeats > 1:
            self.raft.refine = _marked(self.raft.refine)  # type: ignore[method-assign]

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        """(B, 3, H, W) twice to (B, 2, H, W)."""
        flow: Tensor = self.raft(image1, image2)
        return flow


def _marked(refine: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(*arguments: Any) -> tuple[Tensor, Tensor]:
        state, coordinates = refine(*arguments)
        marked = torch.onnx.ops.symbolic_multi_out(
            MARK,
            [state, coordinates],
            dtypes=[state.dtype, coordinates.dtype],
            shapes=[state.shape, coordinates.shape],
            version=1,
        )
        return marked[0], marked[1]

    return run


class VaeEncoderStage(nn.Module):
    """image (B, 3, H, W) to mean and std (B, 16, h, w) of the posterior, unscaled.

    ``std = exp(logvar / 2)``, taken in float32: in half precision small ones would be subnormal.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to (B, 16, h, w) twice."""
        moments = self.encoder(image.to(self.encoder.conv_in.weight.dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.float().chunk(2, dim=1)
        return mean, torch.exp(0.5 * logvar.clamp(*_LOGVAR_LIMITS))


class VaeDecoderStage(nn.Module):
    """latent (B, 16, h, w), unscaled, to image (B, 3, H, W), nominally in [-1, 1], not clamped."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.decoder = autoencoder.decoder
        self.post_quant_conv = autoencoder.post_quant_conv

    def forward(self, latent: Tensor) -> Tensor:
        """(B, 16, h, w) to (B, 3, H, W)."""
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        image: Tensor = self.decoder(latent)
        return image.float()


class MotionStage(nn.Module):
    """flow (B, 2, H, W), pixels, to motion_bias (L, B, N, D) (paper, equation 4).

    ``motion_bias[i] = point_proj_i(LayerNorm(embedding of block i))``: constant over the steps, so it is computed here.
    """

    def __init__(self, encoder: MotionEncoder, dim: int, blocks: int) -> None:
        super().__init__()
        self.blocks = encoder.blocks
        self.point_proj = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(blocks))

    def forward(self, flow: Tensor) -> Tensor:
        """(B, 2, H, W) to (L, B, N, D)."""
        features = flow.to(next(self.parameters()).dtype)
        normed = []
        for block in self.blocks[: embedding_index(len(self.point_proj) - 1) + 1]:
            features = block(features)
            tokens = features.flatten(2).transpose(1, 2)
            normed.append(F.layer_norm(tokens, tokens.shape[-1:]))
        return torch.stack([proj(normed[embedding_index(i)]) for i, proj in enumerate(self.point_proj)])


class ReferenceStage(nn.Module):
    """latent (B, 16, h, w), step () to every block's keys and values.

    Per block: ``reference_k.{i}``, ``reference_v.{i}`` (B, S, D); stacked: ``reference_kv`` (L, 2, B, S, D).
    """

    def __init__(self, network: MMDiT, kv_layout: str) -> None:
        super().__init__()
        self.network = network
        self.kv_layout = kv_layout

    def forward(self, latent: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        """Latent and point of the schedule to the keys and values."""
        _, kept = self.network(latent, step)
        if self.kv_layout == STACKED:
            return (torch.stack([torch.stack(pair) for pair in kept]),)
        return tuple(tensor for pair in kept for tensor in pair)


class RestorationStage(nn.Module):
    """latent z_t (B, 16, h, w), step (), motion_bias (L, B, N, D), keys and values, to velocity (B, 16, h, w)."""

    def __init__(self, network: MMDiT, kv_layout: str) -> None:
        super().__init__()
        self.network = network
        self.kv_layout = kv_layout

    def forward(self, latent: Tensor, step: Tensor, motion_bias: Tensor, kv: Sequence[Tensor]) -> Tensor:
        """Latent, point of the schedule, motion and the reference's keys and values to the velocity."""
        count = len(self.network.transformer_blocks)
        if self.kv_layout == STACKED:
            pairs = [KeyValue(kv[0][i, 0], kv[0][i, 1]) for i in range(count)]
        else:
            pairs = [KeyValue(kv[2 * i], kv[2 * i + 1]) for i in range(count)]
        guidance = [Guidance(pair, motion_bias[i]) for i, pair in enumerate(pairs)]
        velocity, _ = self.network(latent, step, guidance)
        if velocity is None:
            raise ValueError("the restoration network has no output")
        return velocity

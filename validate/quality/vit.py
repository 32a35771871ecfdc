"""The image encoders of CLIP-Q and DINO-Q from upstream's own weights: vision transformers without position embeddings.

As the paper says, the position embeddings are left out, so that pictures of any size can be encoded without resizing;
a remainder smaller than a patch at the right and bottom is not seen. Two layouts of weights are read: OpenAI's CLIP
(``ViT-B-32.pt``: LayerNorm before the blocks, QuickGELU, a projection) and DINO's (``dino_deitsmall16_pretrain.pth``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from livemoments.errors import EngineError
from livemoments.validate.quality.lpips_dists_piq import batch_of

HEAD_DIM = 64
"""Width of one attention head, the same in both families."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """How a family names its tensors, and where its architecture differs.

    Attributes:
        block: a block's prefix, with ``{}`` for its number.
        patch: of the patch embedding's convolution.
        cls: the class token.
        norm1, qkv, out, norm2, up, down: within a block.
        norm: the last LayerNorm.
        norm_pre: a LayerNorm before the blocks, if any.
        projection: a matrix after the last LayerNorm, if any.
        activation: of the MLPs.
        eps: of the LayerNorms.
        mean, std: of the pixels that the family was trained with.
    """

    block: str
    patch: str
    cls: str
    norm1: str
    qkv: str
    out: str
    norm2: str
    up: str
    down: str
    norm: str
    norm_pre: str | None
    projection: str | None
    activation: Callable[[torch.Tensor], torch.Tensor]
    eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


CLIP = Layout(
    block="visual.transformer.resblocks.{}.",
    patch="visual.conv1",
    cls="visual.class_embedding",
    norm1="ln_1",
    qkv="attn.in_proj_",
    out="attn.out_proj",
    norm2="ln_2",
    up="mlp.c_fc",
    down="mlp.c_proj",
    norm="visual.ln_post",
    norm_pre="visual.ln_pre",
    projection="visual.proj",
    activation=_quick_gelu,
    eps=1e-5,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
DINO = Layout(
    block="blocks.{}.",
    patch="patch_embed.proj",
    cls="cls_token",
    norm1="norm1",
    qkv="attn.qkv.",
    out="attn.proj",
    norm2="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    norm="norm",
    norm_pre=None,
    projection=None,
    activation=F.gelu,
    eps=1e-6,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def load_clip_vit(file: Path, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """The image encoder of OpenAI's CLIP, from its TorchScript archive.

    Raises:
        EngineError: the file is none, or lacks a tensor.
    """
    try:
        tensors = torch.jit.load(str(file), map_location="cpu").state_dict()
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{file}: not CLIP's TorchScript archive: {str(error).splitlines()[0]}") from error
    return vit_encoder(tensors, CLIP, device, str(file))


def load_dino_vit(file: Path, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """DINO's encoder, from its state dictionary (tensors only are unpickled).

    Raises:
        EngineError: the file is none, or lacks a tensor.
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zipfile's and torch's own
        raise EngineError(f"{file}: not a file of tensors: {str(error).splitlines()[0]}") from error
    return vit_encoder(tensors, DINO, device, str(file))


def vit_encoder(
    tensors: Tensors, layout: Layout, device: str = "cpu", name: str = "the weights"
) -> Callable[[np.ndarray], np.ndarray]:
    """An encoder (h, w, 3) float32 in [0, 1] -> (d,) float32 from a family's tensors, computed in float32.

    Raises:
        EngineError: a tensor is missing.
    """
    pattern = re.compile(re.escape(layout.block).replace(r"\{\}", r"(\d+)"))
    blocks = {int(match[1]) for key in tensors if (match := pattern.match(key))}
    kept = {
        key: value.detach().to(device, torch.float32) for key, value in tensors.items() if value.is_floating_point()
    }
    lacking = [key for key in _keys(layout, len(blocks)) if key not in kept]
    if lacking or not blocks:
        raise EngineError(f"{name} is not of this architecture: {lacking[0] if lacking else 'a block'} is missing")
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (layout.mean, layout.std))

    def encode(tile: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features: np.ndarray = (
                _forward((batch_of(tile, device) - mean) / std, kept, layout, len(blocks))[0].cpu().numpy()
            )
        return features

    return encode


def _keys(layout: Layout, blocks: int) -> list[str]:
    norms = [layout.norm] + ([layout.norm_pre] if layout.norm_pre else [])
    keys = [f"{layout.patch}.weight", layout.cls] + ([layout.projection] if layout.projection else [])
    keys += [f"{norm}.{part}" for norm in norms for part in ("weight", "bias")]
    for block in map(layout.block.format, range(blocks)):
        linears = (layout.norm1, layout.out, layout.norm2, layout.up, layout.down)
        keys += [f"{block}{linear}.{part}" for linear in linears for part in ("weight", "bias")]
        keys += [f"{block}{layout.qkv}{part}" for part in ("weight", "bias")]
    return keys


def _forward(image: torch.Tensor, tensors: Tensors, layout: Layout, blocks: int) -> torch.Tensor:
    """(1, 3, H, W) normalised -> (1, d): the class token after the last LayerNorm and the projection."""

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{key}.weight"], tensors[f"{key}.bias"], layout.eps)

    def linear(x: torch.Tensor, key: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{key}.weight"], tensors[f"{key}.bias"])

    kernel = tensors[f"{layout.patch}.weight"]
    grid = F.conv2d(image, kernel, tensors.get(f"{layout.patch}.bias"), stride=kernel.shape[-1])
    x = torch.cat([tensors[layout.cls].reshape(1, 1, -1), grid.flatten(2).transpose(1, 2)], dim=1)  # B L D
    if layout.norm_pre:
        x = norm(x, layout.norm_pre)
    for block in map(layout.block.format, range(blocks)):
        h = norm(x, block + layout.norm1)
        qkv = F.linear(h, tensors[f"{block}{layout.qkv}weight"], tensors[f"{block}{layout.qkv}bias"])
        q, k, v = qkv.unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)  # B L (3 H d) -> 3, B H L d
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(h, block + layout.out)
        h = layout.activation(linear(norm(x, block + layout.norm2), block + layout.up))
        x = x + linear(h, block + layout.down)
    features = norm(x[:, 0], layout.norm)
    return features @ tensors[layout.projection] if layout.projection else features

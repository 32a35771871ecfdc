"""Names and shapes of the networks' tensors from their configurations alone.

Importing torch and diffusers takes seconds, which an inspection has not. Tests compare every shape with the networks'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from livemoments.reference.config import TransformerConfig

Shape = tuple[int, ...]
_TIME_CHANNELS = 256
"""Sines and cosines of the timestep (diffusers' ``CombinedTimestepTextProjEmbeddings``)."""
_FF_RATIO = 4
_ADALN_PARTS = 6
"""Shift, scale and gate of attention and MLP; the last text branch and the output have shift and scale only."""


def transformer_shapes(config: TransformerConfig, *, guided: bool) -> dict[str, Shape]:
    """Of an MM-DiT as SD3-medium's (``SD3Transformer2DModel``).

    Args:
        config: its sizes.
        guided: with the projection of the motion embedding in every block: RestorationNet.
    """
    dim = config.dim
    shapes: dict[str, Shape] = {
        "pos_embed.pos_embed": (1, config.pos_embed_max_size**2, dim),
        "pos_embed.proj.weight": (dim, config.in_channels, config.patch_size, config.patch_size),
        "pos_embed.proj.bias": (dim,),
    }
    linears = {
        "time_text_embed.timestep_embedder.linear_1": (dim, _TIME_CHANNELS),
        "time_text_embed.timestep_embedder.linear_2": (dim, dim),
        "time_text_embed.text_embedder.linear_1": (dim, config.pooled_projection_dim),
        "time_text_embed.text_embedder.linear_2": (dim, dim),
        "context_embedder": (config.caption_projection_dim, config.joint_attention_dim),
        "norm_out.linear": (2 * dim, dim),
        "proj_out": (config.patch_size**2 * config.out_channels, dim),
    }
    for block in range(config.num_layers):
        name = f"transformer_blocks.{block}"
        linears |= {f"{name}.{part}": shape for part, shape in _block(dim, is_last=block == config.num_layers - 1)}
        if guided:
            shapes[f"{name}.attn.processor.point_proj.weight"] = (dim, dim)
    for name, (width_out, width_in) in linears.items():
        shapes |= {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}
    return shapes


def _block(dim: int, *, is_last: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    yield "norm1.linear", (_ADALN_PARTS * dim, dim)
    yield "norm1_context.linear", ((2 if is_last else _ADALN_PARTS) * dim, dim)
    for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0"):
        yield f"attn.{part}", (dim, dim)
    if not is_last:
        yield "attn.to_add_out", (dim, dim)
    for part in ("ff",) if is_last else ("ff", "ff_context"):
        yield f"{part}.net.0.proj", (_FF_RATIO * dim, dim)
        yield f"{part}.net.2", (dim, _FF_RATIO * dim)


def vae_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Of a VAE as SD3's (``AutoencoderKL`` with plain down and up blocks).

    Args:
        config: its ``config.json``.
    """
    widths, layers, latent = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]
    attends = config.get("mid_block_add_attention", True)
    shapes: dict[str, Shape] = {}

    def conv(name: str, width_in: int, width_out: int, kernel_px: int = 3) -> None:
        shapes[f"{name}.weight"] = (width_out, width_in, kernel_px, kernel_px)
        shapes[f"{name}.bias"] = (width_out,)

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def resnet(name: str, width_in: int, width_out: int) -> None:
        norm(f"{name}.norm1", width_in)
        conv(f"{name}.conv1", width_in, width_out)
        norm(f"{name}.norm2", width_out)
        conv(f"{name}.conv2", width_out, width_out)
        if width_in != width_out:
            conv(f"{name}.conv_shortcut", width_in, width_out, 1)

    def level(name: str, sampler: str, count: int, width_in: int, width_out: int, *, is_last: bool) -> None:
        for layer in range(count):
            resnet(f"{name}.resnets.{layer}", width_out if layer else width_in, width_out)
        if not is_last:
            conv(f"{name}.{sampler}.0.conv", width_out, width_out)

    def middle(name: str) -> None:
        width = widths[-1]
        for layer in range(2):
            resnet(f"{name}.resnets.{layer}", width, width)
        if attends:
            norm(f"{name}.attentions.0.group_norm", width)
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes[f"{name}.attentions.0.{part}.weight"] = (width, width)
                shapes[f"{name}.attentions.0.{part}.bias"] = (width,)

    last = len(widths) - 1
    conv("encoder.conv_in", config.get("in_channels", 3), widths[0])
    conv("decoder.conv_in", latent, widths[-1])
    for index in range(len(widths)):
        down, before = widths[index], widths[max(0, index - 1)]
        level(f"encoder.down_blocks.{index}", "downsamplers", layers, before, down, is_last=index == last)
        up, before = widths[last - index], widths[min(last, last - index + 1)]
        level(f"decoder.up_blocks.{index}", "upsamplers", layers + 1, before, up, is_last=index == last)
    for part, width, channels in (
        ("encoder", widths[-1], 2 * latent),  # mean and log variance
        ("decoder", widths[0], config.get("out_channels", 3)),
    ):
        middle(f"{part}.mid_block")
        norm(f"{part}.conv_norm_out", width)
        conv(f"{part}.conv_out", width, channels)
    if config.get("use_quant_conv", True):
        conv("quant_conv", 2 * latent, 2 * latent, 1)
    if config.get("use_post_quant_conv", True):
        conv("post_quant_conv", latent, latent, 1)
    return shapes


def motion_shapes(widths: Sequence[int], depth: int) -> dict[str, Shape]:
    """Of a motion encoder.

    Args:
        widths: output channels of its strided convolutions, whose names leave a gap for the SiLU after each.
        depth: its embeddings, the first of which the strided convolutions make.
    """
    shapes: dict[str, Shape] = {}
    for index, (width_in, width_out) in enumerate(zip((2, *widths), widths, strict=False)):
        shapes |= _conv(f"blocks.0.{2 * index}", width_in, width_out)
    for block in range(1, depth):
        shapes |= _conv(f"blocks.{block}.0", widths[-1], widths[-1], (1, 1))
    return shapes


def raft_shapes() -> dict[str, Shape]:
    """Of the large RAFT, with princeton-vl's names; only the context encoder's norms have weights."""
    shapes: dict[str, Shape] = {}
    for encoder, channels_out in (("fnet", 256), ("cnet", 256)):
        normed = encoder == "cnet"
        shapes |= _conv(f"{encoder}.conv1", 3, 64, (7, 7))
        shapes |= _batch_norm(f"{encoder}.norm1", 64) if normed else {}
        width_in = 64
        for layer, width in enumerate((64, 96, 128), 1):
            for block in range(2):
                shapes |= _raft_block(f"{encoder}.layer{layer}.{block}", width_in, width, normed=normed)
                width_in = width
        shapes |= _conv(f"{encoder}.conv2", 128, channels_out, (1, 1))
    update = "update_block"
    shapes |= _conv(f"{update}.encoder.convc1", 4 * 81, 256, (1, 1))  # 4 levels of 9 x 9 correlations
    shapes |= _conv(f"{update}.encoder.convc2", 256, 192)
    shapes |= _conv(f"{update}.encoder.convf1", 2, 128, (7, 7))
    shapes |= _conv(f"{update}.encoder.convf2", 128, 64)
    shapes |= _conv(f"{update}.encoder.conv", 192 + 64, 126)
    for gate in "zrq":
        shapes |= _conv(f"{update}.gru.conv{gate}1", 384, 128, (1, 5))
        shapes |= _conv(f"{update}.gru.conv{gate}2", 384, 128, (5, 1))
    shapes |= _conv(f"{update}.flow_head.conv1", 128, 256)
    shapes |= _conv(f"{update}.flow_head.conv2", 256, 2)
    shapes |= _conv(f"{update}.mask.0", 128, 256)
    shapes |= _conv(f"{update}.mask.2", 256, 9 * 64, (1, 1))
    return shapes


def _raft_block(name: str, width_in: int, width: int, *, normed: bool) -> dict[str, Shape]:
    shapes = _conv(f"{name}.conv1", width_in, width) | _conv(f"{name}.conv2", width, width)
    norms = ["norm1", "norm2"]
    if width_in != width:
        shapes |= _conv(f"{name}.downsample.0", width_in, width, (1, 1))
        norms += ["norm3", "downsample.1"]  # one module under two names
    for norm in norms if normed else ():
        shapes |= _batch_norm(f"{name}.{norm}", width)
    return shapes


def _conv(name: str, width_in: int, width_out: int, kernel_px: tuple[int, int] = (3, 3)) -> dict[str, Shape]:
    return {f"{name}.weight": (width_out, width_in, *kernel_px), f"{name}.bias": (width_out,)}


def _batch_norm(name: str, width: int) -> dict[str, Shape]:
    parts = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,))
    return {f"{name}.{part}": shape for part, shape in parts.items()} | {f"{name}.num_batches_tracked": ()}

"""Whether each part of a checkpoint has the tensors that its configuration, and the other parts, ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livemoments.errors import CheckpointError
from livemoments.reference.config import (
    TransformerConfig,
    VaeConfig,
    motion_sizes,
    read_schedule_config,
    read_transformer_config,
    read_vae_config,
)
from livemoments.reference.stored import check_keys
from livemoments.weights.expected import motion_shapes, raft_shapes, transformer_shapes, vae_shapes
from livemoments.weights.headers import Header, file_header, folder_header

_BLOCKS_PER_EMBEDDING = 2
"""Of the transformers, that each of the motion encoder's embeddings serves."""


@dataclass(slots=True)
class Known:
    """What the parts need of each other; a part that could not be read leaves ``None``."""

    transformer: TransformerConfig | None = None
    vae: VaeConfig | None = None
    text_tokens: int | None = None


def _scheduler_header(place: Path) -> Header:
    read_schedule_config(place / "scheduler_config.json")
    return Header({})


READERS: dict[str, Callable[[Path], Header]] = {
    "vae": folder_header,
    "scheduler": _scheduler_header,
    "transformer": folder_header,
    "transformer_ref": folder_header,
    "motion_encoder": file_header,
    "raft": file_header,
    "prompt_embeds": file_header,
    "pooled_prompt_embeds": file_header,
}
"""By part, what reads its header; a ``CheckpointError`` means that it is damaged."""


def _check_transformer(place: Path, header: Header, known: Known) -> str:
    config = read_transformer_config(place / "config.json")
    check_keys(place, transformer_shapes(config, guided=True), header.shapes)
    if known.vae is not None and known.vae.latent_channels != config.in_channels:
        raise CheckpointError(
            place, f"takes {config.in_channels} latent channels, the VAE has {known.vae.latent_channels}"
        )
    return f"{config.num_layers} blocks, {config.num_attention_heads} heads x {config.attention_head_dim}"


def _check_transformer_ref(place: Path, header: Header, known: Known) -> str:
    config = read_transformer_config(place / "config.json")
    check_keys(place, transformer_shapes(config, guided=False), header.shapes)
    if known.transformer is not None and known.transformer != config:
        theirs = known.transformer.as_dict()
        differ = [name for name, value in config.as_dict().items() if value != theirs[name]]
        raise CheckpointError(place, f"differs from transformer in {', '.join(differ)}")
    return f"{config.num_layers} blocks, {config.num_attention_heads} heads x {config.attention_head_dim}"


def _check_vae(place: Path, header: Header, _known: Known) -> str:
    config = read_vae_config(place / "config.json")
    try:
        shapes = vae_shapes(config.raw)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(place / "config.json", f"lacks or garbles {error}") from None
    check_keys(place, shapes, header.shapes)
    return f"f{config.scale}, {config.latent_channels} latent channels"


def _check_scheduler(place: Path, _header: Header, _known: Known) -> str:
    return f"shift {read_schedule_config(place / 'scheduler_config.json').shift:g}"


def _check_motion(place: Path, header: Header, known: Known) -> str:
    if known.transformer is None:
        return ""
    dim, blocks = known.transformer.dim, known.transformer.num_layers
    widths, depth = motion_sizes(header.shapes)
    if not widths or widths[-1] != dim:
        raise CheckpointError(place, f"is {widths[-1] if widths else 'nothing'} wide, the transformer {dim}")
    check_keys(place, motion_shapes(widths, depth), header.shapes)
    if depth * _BLOCKS_PER_EMBEDDING < blocks:
        raise CheckpointError(place, f"serves {depth * _BLOCKS_PER_EMBEDDING} blocks, the transformer has {blocks}")
    if known.vae is not None and 2 ** len(widths) != (cell_px := known.vae.scale * known.transformer.patch_size):
        raise CheckpointError(place, f"shrinks a flow by {2 ** len(widths)}, one token covers {cell_px} pixels")
    return f"serves {depth * _BLOCKS_PER_EMBEDDING} blocks"


def _check_raft(place: Path, header: Header, _known: Known) -> str:
    check_keys(place, raft_shapes(), header.shapes)
    return ""


def _check_prompt(place: Path, header: Header, known: Known) -> str:
    shape = _only(place, header)
    width = _width(shape) if known.transformer is None else known.transformer.joint_attention_dim
    if shape[:-2] not in ((), (1,)) or len(shape) < 2 or shape[-1] != width or 0 in shape:
        raise CheckpointError(place, f"has shape {shape}, should be (T, {width})")
    known.text_tokens = shape[-2]
    return f"T = {shape[-2]}"


def _check_pooled(place: Path, header: Header, known: Known) -> str:
    shape = _only(place, header)
    width = _width(shape) if known.transformer is None else known.transformer.pooled_projection_dim
    if shape[:-1] not in ((), (1,)) or shape[-1:] != (width,):
        raise CheckpointError(place, f"has shape {shape}, should be ({width},)")
    return ""


def _width(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _only(place: Path, header: Header) -> tuple[int, ...]:
    if len(header.shapes) != 1:
        raise CheckpointError(place, f"holds {len(header.shapes)} tensors, should be one")
    (shape,) = header.shapes.values()
    return shape


CHECKS: dict[str, Callable[[Path, Header, Known], str]] = {
    "vae": _check_vae,
    "scheduler": _check_scheduler,
    "transformer": _check_transformer,
    "transformer_ref": _check_transformer_ref,
    "motion_encoder": _check_motion,
    "raft": _check_raft,
    "prompt_embeds": _check_prompt,
    "pooled_prompt_embeds": _check_pooled,
}
"""By part, what compares it, and says something worth knowing; a ``CheckpointError`` means that it is misshapen."""

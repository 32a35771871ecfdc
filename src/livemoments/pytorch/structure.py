"""What a stage's module is made of, as data: written beside the weights at export, built from again when it is opened.

A transformer after the export's passes is no longer what its configuration says: tables stand for layers, and unread
parts are gone. So what is left is written down, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import nn

from livemoments.export.conditioning import ModulationTable, TextTable
from livemoments.export.mmdit import JointBlock, MMDiT
from livemoments.export.stages import MotionStage, ReferenceStage, RestorationStage, VaeDecoderStage, VaeEncoderStage
from livemoments.manifest import Count
from livemoments.reference.config import TransformerConfig
from livemoments.reference.motion import MotionEncoder
from livemoments.reference.raft import RAFT
from livemoments.types import Stage

_Few = Annotated[int, Meta(ge=1, le=256)]
_ATTENTION = ("to_q", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_BLOCK = ("ff", "ff_context")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Base of the descriptions: immutable, strict."""


class Block(_Part):
    """One transformer block: the rows of its tables, and which of its layers are left.

    ``norm1_context`` and ``text`` are ``None`` where there is no such table.
    """

    norm1: tuple[str, ...]
    norm1_context: tuple[str, ...] | None
    text: tuple[str, ...] | None
    layers: tuple[str, ...]
    keys_only: bool


class Transformer(_Part):
    """A folded ReferenceNet or RestorationNet. ``grid``: rows and columns of tokens; ``points``: of the schedule;
    ``norm_out``: its rows, ``None`` where the network has no output.
    """

    config: dict[str, Count]
    grid: tuple[Count, Count]
    prompt_tokens: Annotated[int, Meta(ge=0, le=1 << 20)]
    points: Count
    kv_layout: str
    blocks: Annotated[tuple[Block, ...], Meta(min_length=1, max_length=256)]
    norm_out: tuple[str, ...] | None


class Motion(_Part):
    """The motion encoder and its projections, one a transformer block."""

    widths: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=16)]
    depth: _Few
    projections: _Few


class Vae(_Part):
    """Half of diffusers' ``AutoencoderKL`` of this configuration."""

    config: dict[str, Any]


class Raft(_Part):
    """RAFT in float32."""

    iterations: _Few


class Structure(_Part):
    """One stage for one tile size; exactly one of the parts is there.

    Attributes:
        dtype: of the stored weights: ``float32`` or ``float16``.
        stored_as: a parameter's name to the tensor's in the weights file, where they differ.
    """

    dtype: str
    stored_as: dict[str, str] = {}
    transformer: Transformer | None = None
    motion: Motion | None = None
    vae: Vae | None = None
    raft: Raft | None = None


def describe(module: nn.Module) -> dict[str, Transformer | Motion]:
    """The part of a :class:`Structure` that stands for a motion encoder or a transformer, by its field's name."""
    if isinstance(module, ReferenceStage | RestorationStage):
        return {"transformer": _describe_network(module.network, module.kv_layout)}
    if isinstance(module, MotionStage):
        strided, *_ = module.blocks
        widths = tuple(layer.out_channels for layer in strided.modules() if isinstance(layer, nn.Conv2d))
        return {"motion": Motion(widths=widths, depth=len(module.blocks), projections=len(module.point_proj))}
    raise TypeError(f"cannot describe a {type(module).__name__}")


def build(structure: Structure, stage: Stage) -> nn.Module:
    """The stage's module on the meta device, in the stored type.

    Raises:
        ValueError: the description is not one of this stage.
    """
    dtype = {"float32": torch.float32, "float16": torch.float16}.get(structure.dtype)
    if dtype is None:
        raise ValueError(f"weights of type {structure.dtype!r}")
    with torch.device("meta"):
        return _build(structure, stage).to(dtype).eval().requires_grad_(False)


def _build(structure: Structure, stage: Stage) -> nn.Module:
    if stage in (Stage.REFERENCE, Stage.RESTORATION) and structure.transformer is not None:
        network = _build_network(structure.transformer)
        kind = ReferenceStage if stage is Stage.REFERENCE else RestorationStage
        return kind(network, structure.transformer.kv_layout)
    if stage is Stage.MOTION and structure.motion is not None:
        motion = structure.motion
        return MotionStage(MotionEncoder(motion.widths, motion.depth), motion.widths[-1], motion.projections)
    if stage in (Stage.VAE_ENCODER, Stage.VAE_DECODER) and structure.vae is not None:
        from diffusers import AutoencoderKL

        half = VaeEncoderStage if stage is Stage.VAE_ENCODER else VaeDecoderStage
        return half(AutoencoderKL.from_config(structure.vae.config))
    if stage is Stage.FLOW and structure.raft is not None:
        return RAFT(structure.raft.iterations)
    raise ValueError(f"no part of it is the stage '{stage}'")


def _describe_network(network: MMDiT, kv_layout: str) -> Transformer:
    first = next(_blocks(network))
    if not network.folded or not isinstance(first.norm1, ModulationTable):
        raise ValueError("only folded networks are stored")
    return Transformer(
        config=network.config.as_dict(),
        grid=network.pos_embed.grid,
        prompt_tokens=network.prompt_tokens,
        points=first.norm1.table.shape[0],
        kv_layout=kv_layout,
        blocks=tuple(_describe_block(block) for block in _blocks(network)),
        norm_out=_rows(network.norm_out),
    )


def _blocks(network: MMDiT) -> Iterator[JointBlock]:
    for block in network.transformer_blocks:
        assert isinstance(block, JointBlock)
        yield block


def _describe_block(block: JointBlock) -> Block:
    norm1 = _rows(block.norm1)
    assert norm1 is not None  # every block reads the image's
    return Block(
        norm1=norm1,
        norm1_context=_rows(block.norm1_context),
        text=None if block.text is None else block.text.names,
        layers=tuple(
            name
            for holder, names in ((block.attn, _ATTENTION), (block, _BLOCK))
            for name in names
            if getattr(holder, name) is not None
        ),
        keys_only=block.keys_only,
    )


def _rows(table: object) -> tuple[str, ...] | None:
    return table.rows if isinstance(table, ModulationTable) else None


def _build_network(described: Transformer) -> MMDiT:
    config = TransformerConfig(**described.config)
    if len(described.blocks) != config.num_layers:
        raise ValueError(f"{len(described.blocks)} blocks, the configuration says {config.num_layers}")
    network = MMDiT(config, described.grid, described.prompt_tokens)
    network.time_text_embed = network.context_embedder = network.prompt = network.pooled = None
    network.context = nn.Parameter(torch.empty(1, described.prompt_tokens, config.dim))
    network.folded = True
    for block, wanted in zip(_blocks(network), described.blocks, strict=True):
        _shape_block(block, wanted, described.points, described.prompt_tokens, config.dim)
    network.norm_out = _table(described.norm_out, described.points, config.dim)
    if described.norm_out is None:
        network.proj_out = None
    return network


def _shape_block(block: JointBlock, wanted: Block, points: int, tokens: int, dim: int) -> None:
    block.keys_only = wanted.keys_only
    block.norm1 = ModulationTable(points, dim, wanted.norm1)
    block.norm1_context = _table(wanted.norm1_context, points, dim)
    if wanted.text is not None:
        block.text = TextTable(points, tokens, dim, wanted.text)
    for holder, names in ((block.attn, _ATTENTION), (block, _BLOCK)):
        for name in names:
            if name not in wanted.layers:
                setattr(holder, name, None)


def _table(rows: tuple[str, ...] | None, points: int, dim: int) -> ModulationTable | None:
    return None if rows is None else ModulationTable(points, dim, rows)

"""Builds the graph to trace for each stage: module, weights, names, types; and runs the network passes on the way."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from livemoments.errors import CheckpointError
from livemoments.export.conditioning import crop_position
from livemoments.export.mmdit import MMDiT
from livemoments.export.normalisation import replace_group_norms
from livemoments.export.passes.fold_conditioning import fold_conditioning
from livemoments.export.passes.fold_text import fold_text
from livemoments.export.passes.prune_reference_tail import prune_reference_tail
from livemoments.export.passes.prune_text_query import prune_text_query
from livemoments.export.passes.report import PassReport
from livemoments.export.stages import (
    STACKED,
    FlowStage,
    MotionStage,
    ReferenceStage,
    RestorationStage,
    VaeDecoderStage,
    VaeEncoderStage,
)
from livemoments.export.weights import WeightSource
from livemoments.manifest import Schedule
from livemoments.reference.checkpoint import Configs, Prompt, load_flow
from livemoments.reference.config import motion_sizes
from livemoments.reference.layout import CheckpointFiles
from livemoments.reference.motion import MotionEncoder, embedding_index
from livemoments.reference.stored import SafetensorsFolder, check_keys
from livemoments.reference.weights import read_state
from livemoments.types import Size, Stage, TensorSpec

ANY_SIZE = "any"
FLOW_MULTIPLE_PX = 8
FLOW_EXAMPLE_PX = 128
"""Side of the images RAFT is traced with; any other multiple of 8 from 64 up works."""
_POSITION = "pos_embed.pos_embed"
_WINDOW = "pos_embed.position"
_POINT_PROJ = "transformer_blocks.{}.attn.processor.point_proj.weight"


@dataclass(slots=True)
class StageGraph:
    """One graph to trace.

    Attributes:
        size: the tile as ``WxH``, or ``any``.
        module: the stage's module in the graph's type, on the meta device except for RAFT.
        weights: by checkpoint name.
        weight_name: a parameter of ``module`` to its name in ``weights``: the checkpoint's, or with the tile's size
            in it for a constant that graphs of other sizes do not share.
        parameters_before: elements of the checkpoint's network.
        reports: one report for each network pass.
        repeats: how often the iteration between the module's marks runs; 0 where none is marked.
    """

    stage: Stage
    size: str
    module: nn.Module
    weights: WeightSource
    weight_name: Callable[[str], str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters_before: int
    reports: list[PassReport] = field(default_factory=list)
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class _Folded:
    """A network after its passes; ``position`` reads the whole position table."""

    network: MMDiT
    weights: WeightSource
    position: Callable[[], Tensor]
    reports: list[PassReport]
    parameters_before: int


@dataclass(frozen=True, slots=True)
class Planner:
    """Everything that is the same for all graphs of one export.

    Plan, trace and write one graph after the other: graphs of several sizes share their network module.
    """

    files: CheckpointFiles
    configs: Configs
    prompt: Prompt
    schedule: Schedule
    dtype: torch.dtype
    kv_layout: str
    _folded: dict[Stage, _Folded] = field(default_factory=dict)

    def graph(self, stage: Stage, size: Size) -> StageGraph:
        """The graph of a stage for tiles of one size (``flow`` serves every size).

        Raises:
            CheckpointError: keys that do not fit, or NaN weights met while folding.
        """
        build = {
            Stage.FLOW: self._flow,
            Stage.VAE_ENCODER: self._vae_encoder,
            Stage.MOTION: self._motion,
            Stage.REFERENCE: self._reference,
            Stage.RESTORATION: self._restoration,
            Stage.VAE_DECODER: self._vae_decoder,
        }
        return build[stage](size)

    @property
    def _type(self) -> str:
        return "float16" if self.dtype == torch.float16 else "float32"

    def _grid(self, size: Size) -> tuple[int, int]:
        cell = self.configs.vae.scale * self.configs.transformer.patch_size
        return size.height // cell, size.width // cell

    def _latent(self, name: str, size: Size, dtype: str) -> TensorSpec:
        scale, channels = self.configs.vae.scale, self.configs.transformer.in_channels
        return TensorSpec(name, dtype, ("batch", channels, size.height // scale, size.width // scale))

    def _flow(self, size: Size) -> StageGraph:
        raft = load_flow(self.files, torch.device("cpu"))
        assert self.files.raft is not None  # or load_flow had refused
        state = dict(raft.state_dict())
        free = ("batch", 3, "height", "width")
        module = FlowStage(raft)
        return StageGraph(
            stage=Stage.FLOW,
            size=ANY_SIZE,
            module=module,  # small enough to trace with its weights, and its constants need values
            weights=WeightSource(state, self.files.raft),
            weight_name=lambda name: name.removeprefix("raft."),
            inputs=(TensorSpec("image1", "float32", free), TensorSpec("image2", "float32", free)),
            outputs=(TensorSpec("flow", "float32", ("batch", 2, "height", "width")),),
            parameters_before=sum(p.numel() for p in raft.parameters()),
            repeats=module.repeats,
        )

    def _vae(self) -> tuple[Any, WeightSource]:
        with torch.device("meta"):
            autoencoder = AutoencoderKL.from_config(self.configs.vae.raw)
        folder = SafetensorsFolder(self.files.vae)
        check_keys(self.files.vae, {k: tuple(v.shape) for k, v in autoencoder.state_dict().items()}, folder.shapes)
        replace_group_norms(autoencoder)
        return autoencoder, WeightSource(folder, self.files.vae)

    def _vae_encoder(self, size: Size) -> StageGraph:
        autoencoder, weights = self._vae()
        module = VaeEncoderStage(autoencoder).to(self.dtype)
        return StageGraph(
            stage=Stage.VAE_ENCODER,
            size=str(size),
            module=module,
            weights=weights,
            weight_name=str,
            inputs=(TensorSpec("image", "float32", ("batch", 3, size.height, size.width)),),
            outputs=(self._latent("mean", size, "float32"), self._latent("std", size, "float32")),
            parameters_before=sum(p.numel() for p in module.parameters()),
        )

    def _vae_decoder(self, size: Size) -> StageGraph:
        autoencoder, weights = self._vae()
        module = VaeDecoderStage(autoencoder).to(self.dtype)
        return StageGraph(
            stage=Stage.VAE_DECODER,
            size=str(size),
            module=module,
            weights=weights,
            weight_name=str,
            inputs=(self._latent("latent", size, self._type),),
            outputs=(TensorSpec("image", "float32", ("batch", 3, size.height, size.width)),),
            parameters_before=sum(p.numel() for p in module.parameters()),
        )

    def _motion(self, size: Size) -> StageGraph:
        path = self.files.motion_encoder
        state = read_state(path)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        widths, depth = motion_sizes(shapes)
        cell = self.configs.vae.scale * self.configs.transformer.patch_size
        if 2 ** len(widths) != cell:
            raise CheckpointError(path, f"shrinks a flow by {2 ** len(widths)}, one token covers {cell} px")
        dim, blocks = self.configs.transformer.dim, self.configs.transformer.num_layers
        if widths[-1] != dim or embedding_index(blocks - 1) >= depth:
            raise CheckpointError(path, f"is {widths[-1]} wide with {depth} blocks; {blocks} blocks of {dim} need more")
        with torch.device("meta"):
            encoder = MotionEncoder(widths, depth)
            check_keys(path, {k: tuple(v.shape) for k, v in encoder.state_dict().items()}, shapes)
            module = MotionStage(encoder, dim, blocks).to(self.dtype)
        weights = WeightSource(state, path)
        folder = SafetensorsFolder(self.files.transformer)
        main = WeightSource(folder, self.files.transformer)
        grid = self._grid(size)
        for index in range(blocks):
            name = _POINT_PROJ.format(index)
            weights.derive_lazily(name, (dim, dim), functools.partial(main.get, name))

        def weight_name(parameter: str) -> str:
            parts = parameter.split(".")
            return _POINT_PROJ.format(parts[1]) if parts[0] == "point_proj" else parameter

        tokens = grid[0] * grid[1]
        return StageGraph(
            stage=Stage.MOTION,
            size=str(size),
            module=module,
            weights=weights,
            weight_name=weight_name,
            inputs=(TensorSpec("flow", "float32", ("batch", 2, size.height, size.width)),),
            outputs=(TensorSpec("motion_bias", self._type, (len(module.point_proj), "batch", tokens, dim)),),
            parameters_before=sum(p.numel() for p in module.parameters()),
        )

    def _network(self, stage: Stage, size: Size) -> tuple[_Folded, Callable[[str], str]]:
        """The folded network with this size's grid, and the names of its weights; folded once for all sizes."""
        if stage not in self._folded:
            self._folded[stage] = self._fold(stage)
        folded = self._folded[stage]
        grid, dim = self._grid(size), self.configs.transformer.dim
        embedding = copy.deepcopy(folded.network.pos_embed)
        embedding.grid = grid
        with torch.device("meta"):
            embedding.position = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim, dtype=self.dtype))
        folded.network.pos_embed = embedding
        own = f"{_WINDOW}.{size}"
        table = folded.position
        folded.weights.derive_lazily(own, tuple(embedding.position.shape), lambda: crop_position(table(), grid))

        def weight_name(parameter: str) -> str:
            name = parameter.removeprefix("network.")
            return own if name == _WINDOW else name

        return folded, weight_name

    def check_files(self, stages: Sequence[Stage]) -> None:
        """Compare the headers of the large files with what the networks need, before minutes are spent on them.

        Raises:
            CheckpointError: a file is empty or truncated, or its keys do not fit.
        """
        for stage in (Stage.REFERENCE, Stage.RESTORATION):
            if stage in stages:
                self._open_network(stage)
        if Stage.VAE_ENCODER in stages or Stage.VAE_DECODER in stages:
            self._vae()

    def _open_network(self, stage: Stage) -> tuple[MMDiT, SafetensorsFolder]:
        """A transformer on the meta device, and its weights, whose names and shapes fit."""
        config = self.configs.transformer
        path = self.files.transformer_ref if stage == Stage.REFERENCE else self.files.transformer
        folder = SafetensorsFolder(path)
        with torch.device("meta"):
            network = MMDiT(config, (1, 1), self.prompt.tokens.shape[1])
        names = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        expected = {name: shape for name, shape in names.items() if name not in ("prompt", "pooled", _WINDOW)}
        expected[_POSITION] = (1, config.pos_embed_max_size**2, config.dim)
        if stage == Stage.RESTORATION:
            expected |= {_POINT_PROJ.format(i): (config.dim, config.dim) for i in range(config.num_layers)}
        check_keys(path, expected, folder.shapes)
        return network, folder

    def _fold(self, stage: Stage) -> _Folded:
        network, folder = self._open_network(stage)
        path = folder.folder
        weights, untouched = WeightSource(folder, path), WeightSource(folder, path)
        before = weights.parameters - torch.Size(folder.shapes[_POSITION]).numel()
        weights.drop(_POSITION)
        weights.derive("prompt", self.prompt.tokens)
        weights.derive("pooled", self.prompt.pooled)
        reports = [
            fold_conditioning(network, weights, [point.timestep for point in self.schedule.points]),
            fold_text(network, weights),
        ]
        tail = prune_reference_tail if stage == Stage.REFERENCE else prune_text_query
        reports.append(tail(network, weights))
        network = network.to(self.dtype).eval()
        return _Folded(network, weights, lambda: untouched.get(_POSITION), reports, before)

    def _kv_specs(self, size: Size) -> tuple[TensorSpec, ...]:
        rows, columns = self._grid(size)
        config = self.configs.transformer
        tokens = rows * columns + self.prompt.tokens.shape[1]
        if self.kv_layout == STACKED:
            shape = (config.num_layers, 2, "batch", tokens, config.dim)
            return (TensorSpec("reference_kv", self._type, shape),)
        names = [f"reference_{part}.{index}" for index in range(config.num_layers) for part in ("k", "v")]
        return tuple(TensorSpec(name, self._type, ("batch", tokens, config.dim)) for name in names)

    def _reference(self, size: Size) -> StageGraph:
        folded, weight_name = self._network(Stage.REFERENCE, size)
        return StageGraph(
            stage=Stage.REFERENCE,
            size=str(size),
            module=ReferenceStage(folded.network, self.kv_layout),
            weights=folded.weights,
            weight_name=weight_name,
            inputs=(self._latent("latent", size, self._type), TensorSpec("step", "int64", ())),
            outputs=self._kv_specs(size),
            parameters_before=folded.parameters_before,
            reports=folded.reports,
        )

    def _restoration(self, size: Size) -> StageGraph:
        folded, weight_name = self._network(Stage.RESTORATION, size)
        rows, columns = self._grid(size)
        config = self.configs.transformer
        motion = TensorSpec("motion_bias", self._type, (config.num_layers, "batch", rows * columns, config.dim))
        latent = self._latent("latent", size, self._type)
        return StageGraph(
            stage=Stage.RESTORATION,
            size=str(size),
            module=RestorationStage(folded.network, self.kv_layout),
            weights=folded.weights,
            weight_name=weight_name,
            inputs=(latent, TensorSpec("step", "int64", ()), motion, *self._kv_specs(size)),
            outputs=(self._latent("velocity", size, self._type),),
            parameters_before=folded.parameters_before,
            reports=folded.reports,
        )

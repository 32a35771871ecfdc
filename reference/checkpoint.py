"""A whole checkpoint, loaded strictly: every network, the prompt and the schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from livemoments.errors import CheckpointError, ResourceError
from livemoments.manifest import Model
from livemoments.progress import SILENT, Progress
from livemoments.reference.config import (
    ScheduleConfig,
    TransformerConfig,
    VaeConfig,
    motion_sizes,
    read_schedule_config,
    read_transformer_config,
    read_vae_config,
)
from livemoments.reference.flow import Dis, raft_from_state
from livemoments.reference.layout import CheckpointFiles, locate
from livemoments.reference.mmdit import ReferenceNet, RestorationNet
from livemoments.reference.motion import MotionEncoder
from livemoments.reference.raft import RAFT, Correlation
from livemoments.reference.stored import SafetensorsFolder, check_keys
from livemoments.reference.vae import Vae
from livemoments.reference.weights import (
    check_finite,
    is_finite,
    read_pickled,
    read_state,
    read_tensor,
)
from livemoments.types import FlowNetwork

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Configs:
    """The sizes of a checkpoint's networks."""

    transformer: TransformerConfig
    vae: VaeConfig
    schedule: ScheduleConfig


@dataclass(slots=True)
class Prompt:
    """The empty prompt's embeddings: tokens (1, T, J) and pooled (1, P)."""

    tokens: Tensor
    pooled: Tensor


@dataclass(slots=True)
class Reference:
    """The loaded reference: upstream's networks in PyTorch."""

    files: CheckpointFiles
    configs: Configs
    reference_net: ReferenceNet
    restoration_net: RestorationNet
    motion_encoder: MotionEncoder
    flow: RAFT | Dis
    vae: Vae
    prompt: Prompt
    dtype: torch.dtype
    device: torch.device


def read_configs(files: CheckpointFiles) -> Configs:
    """The sizes of every network; both transformers must agree.

    Raises:
        CheckpointError: a file is missing or malformed, or the two differ.
    """
    config = read_transformer_config(files.transformer / "config.json")
    other = read_transformer_config(files.transformer_ref / "config.json")
    if config != other:
        differ = [name for name in config.as_dict() if getattr(config, name) != getattr(other, name)]
        raise CheckpointError(files.transformer_ref, f"differs from {files.transformer} in {', '.join(differ)}")
    vae = read_vae_config(files.vae / "config.json")
    if vae.latent_channels != config.in_channels:
        raise CheckpointError(
            files.vae, f"has {vae.latent_channels} latent channels, the transformer takes {config.in_channels}"
        )
    return Configs(config, vae, read_schedule_config(files.scheduler / "scheduler_config.json"))


def read_prompt(files: CheckpointFiles, config: TransformerConfig) -> Prompt:
    """The empty prompt's embeddings, float32.

    Raises:
        CheckpointError: unreadable, or of a width that is not the transformer's.
    """
    tokens = read_tensor(files.prompt_embeds)
    pooled = read_tensor(files.pooled_prompt_embeds)
    tokens = tokens[None] if tokens.ndim == 2 else tokens
    pooled = pooled[None] if pooled.ndim == 1 else pooled
    for path, tensor, width, rank in (
        (files.prompt_embeds, tokens, config.joint_attention_dim, 3),
        (files.pooled_prompt_embeds, pooled, config.pooled_projection_dim, 2),
    ):
        if tensor.ndim != rank or tensor.shape[0] != 1 or tensor.shape[-1] != width or tensor.numel() == 0:
            raise CheckpointError(path, f"has shape {tuple(tensor.shape)}; its last axis should be {width}, one prompt")
    return Prompt(tokens, pooled)


def model_of(configs: Configs, prompt: Prompt, flow: FlowNetwork) -> Model:
    """What manifests say of the networks: what the runtime must know of them."""
    transformer, vae = configs.transformer, configs.vae
    return Model(
        num_blocks=transformer.num_layers,
        num_heads=transformer.num_attention_heads,
        head_dim=transformer.attention_head_dim,
        patch_size=transformer.patch_size,
        text_tokens=prompt.tokens.shape[1],
        latent_channels=vae.latent_channels,
        vae_scale=vae.scale,
        latent_shift=vae.shift_factor,
        latent_scaling=vae.scaling_factor,
        flow=flow,
    )


def load_reference(
    checkpoint: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    correlation: Correlation = "all-pairs",
    progress: Progress = SILENT,
) -> Reference:
    """Load every network of a checkpoint.

    Args:
        checkpoint: a folder in upstream's layout, or an ``inference_config.yml``.
        dtype: type of the transformers, the VAE and the motion encoder; RAFT is always float32.
        device: the device that the networks are put on.
        correlation: RAFT's; ``on-demand`` never holds the all-pairs volume.
        progress: receives the progress.

    Raises:
        CheckpointError: a missing file, missing, extra or misshapen keys, NaN weights, sizes that contradict.
        ResourceError: out of memory.
    """
    files = locate(checkpoint)
    configs = read_configs(files)
    device = torch.device(device)
    try:
        with progress.task("loading the reference", total=4 if files.raft is None else 5) as task:
            restoration = load_restoration_net(files, configs.transformer, dtype, device)
            task.advance(note="RestorationNet")
            reference = load_reference_net(files, configs.transformer, dtype, device)
            task.advance(note="ReferenceNet")
            vae = load_vae(files, configs.vae, dtype, device)
            task.advance(note="VAE")
            motion = load_motion_encoder(files, configs.transformer, dtype, device)
            task.advance(note="motion encoder")
            flow: RAFT | Dis = Dis()
            if files.raft is not None:
                flow = load_flow(files, device, correlation)
                task.advance(note="RAFT")
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"out of memory while loading {files.root} ({error})", fix="use a smaller dtype or a machine with more"
        ) from None
    prompt = read_prompt(files, configs.transformer)
    prompt = Prompt(prompt.tokens.to(device, dtype), prompt.pooled.to(device, dtype))
    return Reference(files, configs, reference, restoration, motion, flow, vae, prompt, dtype, device)


def load_reference_net(
    files: CheckpointFiles, config: TransformerConfig, dtype: torch.dtype, device: torch.device
) -> ReferenceNet:
    """ReferenceNet alone. Raises as :func:`load_reference`."""
    return _load_folder(lambda: ReferenceNet(config), lambda net: net.transformer, files.transformer_ref, dtype, device)


def load_restoration_net(
    files: CheckpointFiles, config: TransformerConfig, dtype: torch.dtype, device: torch.device
) -> RestorationNet:
    """RestorationNet alone. Raises as :func:`load_reference`."""
    return _load_folder(lambda: RestorationNet(config), lambda net: net.transformer, files.transformer, dtype, device)


def load_vae(files: CheckpointFiles, config: VaeConfig, dtype: torch.dtype, device: torch.device) -> Vae:
    """The VAE alone. Raises as :func:`load_reference`."""
    return _load_folder(lambda: Vae(config), lambda net: net.autoencoder, files.vae, dtype, device)


def load_motion_encoder(
    files: CheckpointFiles, config: TransformerConfig, dtype: torch.dtype, device: torch.device
) -> MotionEncoder:
    """The motion encoder alone. Raises as :func:`load_reference`; its width and depth must serve the transformer."""
    path = files.motion_encoder
    state = read_state(path)
    widths, depth = motion_sizes({key: tuple(value.shape) for key, value in state.items()})
    if not widths or widths[-1] != config.dim:
        found = widths[-1] if widths else "no"
        raise CheckpointError(path, f"the motion encoder is {found} wide, the transformer {config.dim}")
    with torch.device("meta"):
        encoder = MotionEncoder(widths, depth)
    if encoder.max_blocks < config.num_layers:
        raise CheckpointError(path, f"serves {encoder.max_blocks} blocks, the transformer has {config.num_layers}")
    return _assign(encoder, encoder, state, path, dtype, device)


def load_flow(files: CheckpointFiles, device: torch.device, correlation: Correlation = "all-pairs") -> RAFT:
    """RAFT alone, in float32. Raises as :func:`load_reference`, and where the checkpoint has none."""
    if files.raft is None:
        raise CheckpointError(files.root, "has no RAFT (flow: dis)", fix="let Dis estimate the flow")
    return raft_from_state(read_pickled(files.raft), files.raft, correlation=correlation).to(device)


def _load_folder(
    build: Callable[[], N], inner: Callable[[N], nn.Module], folder: Path, dtype: torch.dtype, device: torch.device
) -> N:
    with torch.device("meta"):
        network = build()
    return _assign(network, inner(network), SafetensorsFolder(folder), folder, dtype, device)


def _assign(
    network: N, holder: nn.Module, state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, device: torch.device
) -> N:
    """Give ``holder`` (a part of ``network``, on the meta device) its weights, one tensor at a time."""
    shapes = state.shapes if isinstance(state, SafetensorsFolder) else {k: tuple(v.shape) for k, v in state.items()}
    check_keys(path, {key: tuple(value.shape) for key, value in holder.state_dict().items()}, shapes)
    loaded: dict[str, Tensor] = {}
    damaged: list[str] = []
    for key in state:
        tensor = state[key]
        if not is_finite(tensor):
            damaged.append(key)
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        loaded[key] = tensor.to(device=device, dtype=wanted)
    if damaged:
        check_finite(path, {key: state[key] for key in damaged})
    holder.load_state_dict(loaded, strict=True, assign=True)
    return network.eval().requires_grad_(False)

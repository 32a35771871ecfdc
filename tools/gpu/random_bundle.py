"""A bundle that was never written: full-size networks with random weights, made on the device when they are opened.

A whole photo takes as long with random weights as with trained ones, and what would be read is 10 GB. Only the picture
means nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bench_networks import STEPS, Setup, build_motion, build_network, randomise

from livemoments.bundle import Bundle
from livemoments.export.stages import (
    PER_BLOCK,
    MotionStage,
    ReferenceStage,
    RestorationStage,
    VaeDecoderStage,
    VaeEncoderStage,
)
from livemoments.manifest import SCHEMA_VERSION, Graph, Manifest, Model, Source, StageEntry
from livemoments.pytorch.backend import TARGET, TorchBackend, TorchEngine
from livemoments.reference.raft import RAFT
from livemoments.runtime.backends.base import Backend
from livemoments.schedule import build_schedule
from livemoments.types import Size, Stage, TensorSpec


def random_bundle(setup: Setup, *, overlap_px: int) -> Bundle:
    """The manifest of such a bundle for one size of tiles; there are no files."""
    sizes = setup.sizes
    size = Size(setup.tile_px, setup.tile_px)
    vae = sizes.vae()
    graphs = {str(stage): _entry(_graph(setup, stage), setup) for stage in Stage}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        producer="tools/gpu",
        target=TARGET,
        precision="fp32" if setup.dtype == torch.float32 else "fp16",
        source=Source(name="random weights", files={}),
        model=Model(
            num_blocks=sizes.num_layers,
            num_heads=sizes.num_attention_heads,
            head_dim=sizes.attention_head_dim,
            patch_size=sizes.patch_size,
            text_tokens=sizes.prompt_tokens,
            latent_channels=sizes.latent_channels,
            vae_scale=sizes.token_px // sizes.patch_size,
            latent_shift=vae["shift_factor"],
            latent_scaling=vae["scaling_factor"],
        ),
        schedule=build_schedule((STEPS,), default_steps=STEPS),
        tiles=(str(size),),
        overlap=overlap_px,
        reference_policy="per-step",
        kv_layout=PER_BLOCK,
        stages=graphs,
        toolchain={},
        files={},
    )
    return Bundle(Path("random-weights"), manifest)


def _entry(graph: Graph, setup: Setup) -> StageEntry:
    precision = "fp32" if setup.dtype == torch.float32 else "fp16"
    return StageEntry(precision=precision, graphs=(graph,), parity=(), parameters=0, parameters_before=0)


def _graph(setup: Setup, stage: Stage) -> Graph:
    sizes, px = setup.sizes, setup.tile_px
    kind = str(setup.dtype).removeprefix("torch.")
    side, tokens = px // (sizes.token_px // sizes.patch_size), setup.image_tokens

    def latent(name: str, dtype: str) -> TensorSpec:
        return TensorSpec(name, dtype, ("batch", sizes.latent_channels, side, side))

    image = TensorSpec("image", "float32", ("batch", 3, px, px))
    motion = TensorSpec("motion_bias", kind, (sizes.num_layers, "batch", tokens, sizes.dim))
    step = TensorSpec("step", "int64", ())
    kv = tuple(
        TensorSpec(f"reference_{part}.{index}", kind, ("batch", setup.reference_tokens, sizes.dim))
        for index in range(sizes.num_layers)
        for part in ("k", "v")
    )
    free = ("batch", 3, "height", "width")
    frames = (TensorSpec("image1", "float32", free), TensorSpec("image2", "float32", free))
    ends: dict[Stage, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        Stage.FLOW: (frames, (TensorSpec("flow", "float32", ("batch", 2, "height", "width")),)),
        Stage.VAE_ENCODER: ((image,), (latent("mean", "float32"), latent("std", "float32"))),
        Stage.MOTION: ((TensorSpec("flow", "float32", ("batch", 2, px, px)),), (motion,)),
        Stage.REFERENCE: ((latent("latent", kind), step), kv),
        Stage.RESTORATION: ((latent("latent", kind), step, motion, *kv), (latent("velocity", kind),)),
        Stage.VAE_DECODER: ((latent("latent", kind),), (image,)),
    }
    inputs, outputs = ends[stage]
    size = "any" if stage is Stage.FLOW else f"{px}x{px}"
    return Graph(path=f"{stage}/{size}.json", size=size, weights=(), inputs=inputs, outputs=outputs)


class RandomBackend(Backend):
    """Opens the networks of :func:`random_bundle`.

    Args:
        setup: sizes, device, type.
        backend: makes the engines, as its provider says.
    """

    name = TARGET

    def __init__(self, setup: Setup, backend: TorchBackend) -> None:
        self._setup, self._backend = setup, backend
        self.provider = backend.provider

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> TorchEngine:
        """See :meth:`Backend.open`."""
        graph = bundle.graph(stage, size)
        return self._backend.engine(self._module(stage), stage, graph.inputs, graph.outputs)

    def _module(self, stage: Stage) -> torch.nn.Module:
        setup = self._setup
        if stage is Stage.REFERENCE:
            return ReferenceStage(build_network(setup, "reference", "ours"), PER_BLOCK)
        if stage is Stage.RESTORATION:
            return RestorationStage(build_network(setup, "restoration", "ours"), PER_BLOCK)
        if stage is Stage.MOTION:
            encoder, projections = build_motion(setup)
            module = MotionStage(encoder, setup.sizes.dim, 0)
            module.point_proj = projections.point_proj
            return module
        if stage is Stage.FLOW:
            return _filled(setup, "raft", RAFT, torch.float32)
        half = VaeEncoderStage if stage is Stage.VAE_ENCODER else VaeDecoderStage
        return half(_filled(setup, "vae", lambda: _autoencoder(setup), setup.dtype))


def _autoencoder(setup: Setup) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(setup.sizes.vae())


def _filled(setup: Setup, component: str, build: Any, dtype: torch.dtype) -> torch.nn.Module:
    with torch.device("meta"):
        module: torch.nn.Module = torch.nn.Module.to(build(), dtype)  # diffusers' own method warns for nothing
    module = module.to_empty(device=setup.device).eval().requires_grad_(False)
    randomise(module, component, setup)
    return module

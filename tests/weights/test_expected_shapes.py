"""Shapes from configurations alone, against the networks that diffusers and the reference build from them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from livemoments.reference.checkpoint_sizes import SIZES, SMALL
from livemoments.reference.motion import MotionEncoder
from livemoments.reference.raft import RAFT
from livemoments.weights.expected import motion_shapes, raft_shapes, transformer_shapes, vae_shapes

ALL = {**SIZES, "small": SMALL}


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("size", list(ALL))
def test_transformers_and_vaes_of_every_size(size: str) -> None:
    sizes = ALL[size]
    assert transformer_shapes(sizes.transformer(), guided=True) == sizes.shapes("transformer")
    assert transformer_shapes(sizes.transformer(), guided=False) == sizes.shapes("transformer_ref")
    assert vae_shapes(sizes.vae()) == sizes.shapes("vae")


@pytest.mark.parametrize("seed", range(4))
def test_vaes_of_other_depths_and_with_quantization_convolutions(seed: int) -> None:
    rng = random.Random(seed)
    depth = rng.randint(1, 4)
    sizes = replace(
        SIZES["tiny"],
        vae_channels=tuple(8 * rng.randint(1, 4) for _ in range(depth)),
        vae_layers_per_block=rng.randint(1, 3),
        latent_channels=rng.randint(2, 6),
        vae_mid_attention=rng.random() < 0.5,
    )
    config = sizes.vae() | {"use_quant_conv": rng.random() < 0.5, "use_post_quant_conv": rng.random() < 0.5}
    with torch.device("meta"):
        assert vae_shapes(config) == shapes_of(AutoencoderKL.from_config(config))


@pytest.mark.parametrize(("widths", "depth"), [((512, 1024, 1536, 1536), 12), ((8, 16, 32), 1), ((24,), 3)])
def test_motion_encoders(widths: tuple[int, ...], depth: int) -> None:
    with torch.device("meta"):
        assert motion_shapes(widths, depth) == shapes_of(MotionEncoder(widths, depth))


def test_raft() -> None:
    with torch.device("meta"):
        assert raft_shapes() == shapes_of(RAFT())

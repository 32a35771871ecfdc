"""Writes what was trained as a checkpoint in upstream's layout, every tensor as float16 safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from model import LiveMomentsModel
from safetensors.torch import save_file
from torch import Tensor

from livemoments.errors import OutputError
from livemoments.reference.checkpoint_sizes import CheckpointSizes
from livemoments.store.folders import StagedFolder, stage_folder

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_CARD = "README.md"
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_INFERENCE_CONFIG = """\
# Paths are relative to this file. flow: dis: there is no RAFT; OpenCV's Dense Inverse Search takes its place.
# tile, overlap: pixels; the size of the crops that the networks were trained on, and what an export takes by default.
SD3_weight_path: sd3
pretrained_weight_path: livemoments
motion_encoder_weight_path: motion_encoder.safetensors
prompt_embeds_path: prompt_embeds.safetensors
pooled_prompt_embeds_path: pooled_prompt_embeds.safetensors
flow: dis
tile: 64
overlap: 16
lr_res: 1
ref_res: 2
"""


def write_checkpoint(folder: Path, sizes: CheckpointSizes, vae: AutoencoderKL, model: LiveMomentsModel) -> int:
    """Write the checkpoint, whole or not at all; a model card that lies there already is kept.

    Returns:
        Bytes of the weights.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    target = folder.absolute()
    if target.exists() and not (target / "sd3").is_dir() and any(target.iterdir()):
        raise OutputError(target, "holds something else than a checkpoint", fix="name a new folder")
    card = (target / _CARD).read_text("utf-8") if (target / _CARD).is_file() else None
    scales = {name: float(vae.config[name]) for name in ("shift_factor", "scaling_factor")}
    networks = {"transformer_ref": model.reference_net, "transformer": model.restoration_net}
    with stage_folder(target) as staged:
        written = _folder(staged / "sd3/vae", sizes.vae() | scales, vae.state_dict())
        _json(staged / "sd3/scheduler/scheduler_config.json", _SCHEDULER)
        for name, network in networks.items():
            kind = "SD3Transformer2DModel" if name == "transformer_ref" else "SD3TransformerFuseMotion2DModel"
            config = {"_class_name": kind, **sizes.transformer().as_dict()}
            written += _folder(staged / "livemoments" / name, config, network.transformer.state_dict())
        written += _tensors(staged / "motion_encoder.safetensors", model.motion_encoder.state_dict())
        written += _tensors(staged / "prompt_embeds.safetensors", {"prompt_embeds": model.prompt})
        written += _tensors(staged / "pooled_prompt_embeds.safetensors", {"pooled_prompt_embeds": model.pooled})
        (staged / "inference_config.yml").write_text(_INFERENCE_CONFIG, "utf-8")
        if card is not None:
            (staged / _CARD).write_text(card, "utf-8")
        StagedFolder(target, staged, overwrite=True).publish()
    return written


def _folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> int:
    _json(folder / "config.json", config)
    return _tensors(folder / _WEIGHTS, state)


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def _tensors(path: Path, state: Mapping[str, Tensor]) -> int:
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
    save_file(half, path)
    return path.stat().st_size

"""The reference's outputs for every stage, on seeded inputs of realistic magnitude: what graphs are held against.

The networks are the verified ones of ``livemoments.reference``, in float32, with streamed weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.export.stages import STACKED
from livemoments.export.streaming import streamed
from livemoments.export.weights import WeightSource
from livemoments.manifest import Schedule
from livemoments.natural_images import FLOW_STD_PX, natural_image
from livemoments.reference.checkpoint import Configs, Prompt, load_flow, load_motion_encoder, load_vae
from livemoments.reference.layout import CheckpointFiles
from livemoments.reference.mmdit import BlockGuidance, BlockKV, ReferenceNet, RestorationNet
from livemoments.reference.motion import embedding_index
from livemoments.reference.stored import SafetensorsFolder
from livemoments.stage_inputs import IMAGE_STD
from livemoments.types import Size, Stage

Arrays = dict[str, np.ndarray]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Case:
    """One graph's inputs and what the reference makes of them, float32, by tensor name. ``point``: the schedule's."""

    inputs: Arrays
    outputs: Arrays
    point: int | None = None


class References:
    """Cases for every stage.

    Args:
        files: the checkpoint.
        configs: its sizes.
        prompt: its prompt, float32.
        schedule: the points that ``step`` indexes.
        kv_layout: how keys and values are passed.
        seed: seed of the inputs.
        batch: tiles per case.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        configs: Configs,
        prompt: Prompt,
        schedule: Schedule,
        kv_layout: str,
        *,
        seed: int = 0,
        batch: int = 1,
    ) -> None:
        self.files, self.configs, self.prompt = files, configs, prompt
        self.schedule, self.kv_layout = schedule, kv_layout
        self.seed, self.batch = seed, batch
        self.latents = functools.lru_cache(maxsize=1)(self._latents)
        self._motion_of = functools.lru_cache(maxsize=1)(self._embed_motion)

    def case(self, stage: Stage, size: Size, point: int = 0) -> Case:
        """Inputs and outputs of one stage for tiles of one size; ``point`` matters to the two transformers only."""
        with torch.inference_mode():
            if stage == Stage.REFERENCE:
                kept = self._keys_values(size, point)
                inputs = {"latent": self.latents(size)["z_ref"], "step": np.array(point, dtype=np.int64)}
                return Case(inputs, self._name_keys_values(kept), point)
            if stage == Stage.RESTORATION:
                return self._restoration(size, point)
            simple = {
                Stage.FLOW: self._flow,
                Stage.VAE_ENCODER: self._encoder,
                Stage.VAE_DECODER: self._decoder,
                Stage.MOTION: self._motion,
            }
            return simple[stage](size)

    def _rng(self, name: str, size: Size) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode(), size.height, size.width])

    def _images(self, name: str, size: Size) -> np.ndarray:
        return np.clip(natural_image(self._rng(name, size), self.batch, 3, size) * IMAGE_STD, -1, 1)

    def _latents(self, size: Size) -> Arrays:
        """``z_lr``, ``z_ref`` and ``z_t``: scaled posterior samples of two images, and the first with noise."""
        vae = load_vae(self.files, self.configs.vae, torch.float32, _CPU)
        case: Arrays = {}
        for name in ("z_lr", "z_ref"):
            with torch.inference_mode():
                mean, std = vae.encode(torch.from_numpy(self._images(name, size)))
            noise = self._rng(f"{name} noise", size).standard_normal(mean.shape).astype(np.float32)
            case[name] = vae.scale(mean + std * torch.from_numpy(noise)).numpy()
        noise = self._rng("noise", size).standard_normal(case["z_lr"].shape).astype(np.float32)
        level = self.schedule.noise_level
        case["z_t"] = (1 - level) * case["z_lr"] + level * noise
        return case

    def _flow(self, size: Size) -> Case:
        raft = load_flow(self.files, _CPU)
        first = self._images("flow", size)
        second = np.roll(first, (2, 3), axis=(2, 3))
        flow = raft(torch.from_numpy(first), torch.from_numpy(second))
        return Case({"image1": first, "image2": second}, {"flow": flow.numpy()})

    def _encoder(self, size: Size) -> Case:
        image = self._images("z_lr", size)
        vae = load_vae(self.files, self.configs.vae, torch.float32, _CPU)
        mean, std = vae.encode(torch.from_numpy(image))
        return Case({"image": image}, {"mean": mean.numpy(), "std": std.numpy()})

    def _decoder(self, size: Size) -> Case:
        vae = load_vae(self.files, self.configs.vae, torch.float32, _CPU)
        latent = torch.from_numpy(self.latents(size)["z_lr"])
        unscaled = latent / vae.config.scaling_factor + vae.config.shift_factor
        return Case({"latent": unscaled.numpy()}, {"image": vae.decode(latent).numpy()})

    def _tile_flow(self, size: Size) -> np.ndarray:
        return natural_image(self._rng("tile flow", size), self.batch, 2, size) * FLOW_STD_PX

    def _embed_motion(self, size: Size) -> tuple[list[Tensor], np.ndarray]:
        """The embedding of every block, and the stage's output."""
        encoder = load_motion_encoder(self.files, self.configs.transformer, torch.float32, _CPU)
        by_scale = encoder(torch.from_numpy(self._tile_flow(size)))
        embeddings = [by_scale[embedding_index(block)] for block in range(self.configs.transformer.num_layers)]
        weights = self._source(Stage.RESTORATION)
        bias = [
            F.layer_norm(motion, motion.shape[-1:])
            @ weights.get(f"transformer_blocks.{block}.attn.processor.point_proj.weight").T
            for block, motion in enumerate(embeddings)
        ]
        return embeddings, torch.stack(bias).numpy()

    def _motion(self, size: Size) -> Case:
        return Case({"flow": self._tile_flow(size)}, {"motion_bias": self._motion_of(size)[1]})

    def _source(self, stage: Stage) -> WeightSource:
        folder = self.files.transformer_ref if stage == Stage.REFERENCE else self.files.transformer
        return WeightSource(SafetensorsFolder(folder), folder)

    def _conditioning(self, point: int) -> tuple[Tensor, Tensor, Tensor]:
        timestep = torch.full((self.batch,), self.schedule.points[point].timestep)
        tokens = self.prompt.tokens.float().expand(self.batch, -1, -1)
        return timestep, tokens, self.prompt.pooled.float().expand(self.batch, -1)

    def _keys_values(self, size: Size, point: int) -> list[BlockKV]:
        with torch.device("meta"):
            network = ReferenceNet(self.configs.transformer)
        latent = torch.from_numpy(self.latents(size)["z_ref"])
        with streamed(network.transformer, self._source(Stage.REFERENCE)):
            kept: list[BlockKV] = network(latent, *self._conditioning(point))
        return kept

    def _name_keys_values(self, kept: list[BlockKV]) -> Arrays:
        pairs = [
            (torch.cat([kv.image_key, kv.text_key], dim=1), torch.cat([kv.image_value, kv.text_value], dim=1))
            for kv in kept
        ]
        if self.kv_layout == STACKED:
            return {"reference_kv": torch.stack([torch.stack(pair) for pair in pairs]).numpy()}
        return {
            f"reference_{part}.{index}": tensor.numpy()
            for index, pair in enumerate(pairs)
            for part, tensor in zip("kv", pair, strict=True)
        }

    def _restoration(self, size: Size, point: int) -> Case:
        kept = self._keys_values(size, point)
        embeddings, motion_bias = self._motion_of(size)
        with torch.device("meta"):
            network = RestorationNet(self.configs.transformer)
        z_t = self.latents(size)["z_t"]
        guidance = [BlockGuidance(kv, motion) for kv, motion in zip(kept, embeddings, strict=True)]
        with streamed(network.transformer, self._source(Stage.RESTORATION)):
            velocity = network(torch.from_numpy(z_t), *self._conditioning(point), guidance)
        inputs: Mapping[str, np.ndarray] = {
            "latent": z_t,
            "step": np.array(point, dtype=np.int64),
            "motion_bias": motion_bias,
            **self._name_keys_values(kept),
        }
        return Case(dict(inputs), {"velocity": velocity.numpy()}, point)

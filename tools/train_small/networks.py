"""The second half of the training: both networks and the motion encoder, by bridge matching (equation 9)."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from bridge import bridge_point, draw_times
from diffusers import AutoencoderKL
from latents import LatentBatch, LatentPool, start_worker
from model import LiveMomentsModel, mixed_precision
from photographs import WindowSampler
from schedule import rate_at
from sheets import Sheet
from state import Average, Log, load_state, save_state

from livemoments.progress import Progress
from livemoments.reference.checkpoint_sizes import CheckpointSizes
from livemoments.validate.synlive.degradation import image_rng


@dataclass(frozen=True, slots=True)
class NetworkTraining:
    """How the networks are trained.

    Attributes:
        steps: optimizer steps.
        batch: crops a step.
        rate: the highest learning rate.
        new_pairs: that come in at every step.
        first_pairs: that are there at the first.
        kept_pairs: at most in memory (0.6 MB each).
        tile_px, scene_px: of the pairs.
        crop_px: of the part of a tile that a step sees: a fourth of its tokens have a sixteenth of its attention.
        still_share, moving_share: of all pairs: in the first, nothing moves, so that the networks find out that the
            reference is worth looking at; then motion grows, up to all of it.
        decay: of the weights' average.
        seed: of everything.
    """

    steps: int = 8000
    batch: int = 16
    rate: float = 1e-3
    new_pairs: int = 1
    first_pairs: int = 240
    kept_pairs: int = 4000
    still_share: float = 0.06
    moving_share: float = 0.35
    tile_px: int = 128
    scene_px: int = 192
    crop_px: int = 64
    decay: float = 0.999
    seed: int = 0


_MEASURE_EVERY = 50
_SAVE_EVERY = 250
_SHEET_EVERY = 2000
_ADD_EVERY = 4


def train_networks(
    sizes: CheckpointSizes,
    training: NetworkTraining,
    vae: AutoencoderKL,
    sampler: WindowSampler,
    sheet: Sheet,
    folder: Path,
    progress: Progress,
) -> LiveMomentsModel:
    """Train, or go on with, the networks of a run.

    Args:
        sizes: of the networks.
        training: how.
        vae: trained; it stays as it is.
        sampler: where photographs come from.
        sheet: measures and draws every 2000 steps.
        folder: the run's: state, log and sheets.
        progress: where to report; the unit is steps.

    Returns:
        The averaged networks.
    """
    torch.manual_seed(training.seed)
    model = LiveMomentsModel(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), training.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = Average({"model": model}, training.decay)
    done, pairs, seconds = 0, 0, 0.0
    if state := load_state(folder):
        model.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        done, pairs, seconds = int(state["done"]), int(state["pairs"]), float(state["seconds"])
    log = Log(folder, seconds)
    worker = ProcessPoolExecutor(1, get_context("spawn"), start_worker, (sampler,))
    with progress.task("networks", total=training.steps) as task, worker as executor:
        pool = LatentPool(
            vae,
            executor,
            seed=training.seed,
            first=pairs,
            capacity=training.kept_pairs,
            tile_px=training.tile_px,
            scene_px=training.scene_px,
            still_pairs=round(training.still_share * _all_pairs(training)),
            moving_pairs=round(training.moving_share * _all_pairs(training)),
        )
        pool.add(training.first_pairs)
        task.advance(done)
        losses: list[float] = []
        for step in range(done, training.steps):
            if step % _ADD_EVERY == 0:
                pool.add(_ADD_EVERY * training.new_pairs)
            for group in optimizer.param_groups:
                group["lr"] = training.rate * rate_at(step, training.steps)
            rng = image_rng(training.seed, f"step:{step}")
            batch = pool.batch(rng, training.batch).cropped(rng, training.crop_px, sizes.token_px)
            losses.append(_step(model, optimizer, batch, rng))
            average.update()
            if (step + 1) % _MEASURE_EVERY == 0:
                loss = float(np.mean(losses))
                log.write(step=step + 1, loss=loss, pairs=pool.made)
                task.advance(_MEASURE_EVERY, note=f"loss {loss:.4f}")
                losses.clear()
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == training.steps:
                state = {"network": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"average": average.state_dict(), "done": step + 1, "pairs": pool.made}
                save_state(folder, state | {"seconds": log.seconds})
            if (step + 1) % _SHEET_EVERY == 0 or step + 1 == training.steps:
                averaged = LiveMomentsModel(sizes)
                averaged.load_state_dict(average.weights["model"])
                log.write(step=step + 1, **sheet.measure(averaged, folder / f"sheet_{step + 1:06d}.png"))
    model.load_state_dict(average.weights["model"])
    return model.eval().requires_grad_(False)


def _all_pairs(training: NetworkTraining) -> int:
    return training.first_pairs + training.steps * training.new_pairs


def _step(
    model: LiveMomentsModel, optimizer: torch.optim.Optimizer, batch: LatentBatch, rng: np.random.Generator
) -> float:
    """One optimizer step, somewhere in the largest tile; the mean squared error of the velocity."""
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    t = draw_times(len(batch.z_hq), generator)
    noise = torch.randn(batch.z_hq.shape, generator=generator)
    point = bridge_point(batch.z_hq, batch.z_lq, noise, t)
    embed = model.restoration_net.transformer.pos_embed
    row, column = (
        int(rng.integers(embed.pos_embed_max_size - side // embed.patch_size + 1)) for side in batch.z_hq.shape[-2:]
    )
    with mixed_precision(), model.placed(row, column):
        velocity = model(point.z, batch.z_ref, batch.flow, t)
    loss = (velocity.float() - point.velocity).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())

"""A random checkpoint in upstream's layout, of any size: for plans, benchmarks, tests and demonstrations.

Nothing in it is trained, but its networks behave like trained ones: values of order one at every depth, attention that
selects, and no weight without influence, so that a wrong graph shows in its outputs.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.embeddings import PatchEmbed

from livemoments.errors import ResourceError, UsageError
from livemoments.progress import SILENT, Progress, Task
from livemoments.reference.checkpoint_sizes import COMPONENTS, SIZES, CheckpointSizes, Component
from livemoments.reference.layout import CONFIG_NAME, FLOW_KEY
from livemoments.reference.random_weights import CHUNK_ELEMENTS, draw, fill_of, stream_key
from livemoments.reference.shards import DTYPES, write_sharded
from livemoments.store.errors import output_errors
from livemoments.store.folders import StagedFolder, check_destination, stage_folder
from livemoments.store.safetensors_file import ITEM_BYTES
from livemoments.types import FlowNetwork
from livemoments.version import __version__

RECORD_NAME = "random_checkpoint.json"
"""How the folder was made. Only a folder that holds it is ever overwritten."""

Dtype = Literal["float32", "float16", "bfloat16"]

_SHARD_BYTES = 1 << 30
_SPARE_BYTES = 1 << 24  # configuration files, pickles' own structure
_STEM = "diffusion_pytorch_model"
_POSITION_TABLE = "pos_embed.pos_embed"
_MOST_WORKERS = 8

_FOLDERS: dict[Component, str] = {
    "vae": "sd3/vae",
    "scheduler": "sd3/scheduler",
    "transformer": "livemoments/transformer",
    "transformer_ref": "livemoments/transformer_ref",
}
_PICKLES: dict[Component, str] = {
    "motion_encoder": "motion_encoder.pt",
    "raft": "raft-sintel.pth",
    "prompt_embeds": "prompt_embeds.pt",
    "pooled_prompt_embeds": "pooled_prompt_embeds.pt",
}
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_INFERENCE_CONFIG = """\
# A random checkpoint; the paths are relative to this file.
SD3_weight_path: sd3
pretrained_weight_path: livemoments
motion_encoder_weight_path: motion_encoder.pt
prompt_embeds_path: prompt_embeds.pt
pooled_prompt_embeds_path: pooled_prompt_embeds.pt
{flow}
lr_path: images/lr
ref_path: images/ref
ref_lr_path: images/ref_lr
lr_res: 1440
ref_res: 3072
"""
_FLOW: dict[FlowNetwork, str] = {
    "raft": "raft_path: RAFT\nraft_weight_path: raft-sintel.pth",
    "dis": f"{FLOW_KEY}: dis",
}


def make_checkpoint(
    folder: str | os.PathLike[str],
    *,
    size: str | CheckpointSizes = "tiny",
    seed: int = 0,
    dtype: Dtype = "float32",
    overwrite: bool = False,
    progress: Progress = SILENT,
    only: Collection[Component] | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Write a random checkpoint, whole or not at all.

    The same size and seed give the same values on every machine, whatever else is written; a smaller ``dtype`` rounds
    them. RAFT and the prompts' embeddings are float32 always, as published.

    Args:
        folder: where; must not exist, or be empty.
        size: ``"tiny"``, ``"mid"``, ``"sd3-medium"``, or sizes of your own.
        seed: seed of all random streams.
        dtype: type of the transformers, the VAE and the motion encoder.
        overwrite: replace an older random checkpoint.
        progress: receives the progress, in bytes.
        only: the components to write; ``None`` means all that these sizes have.
        shard_bytes: the most tensor bytes in one ``.safetensors`` file.

    Returns:
        The folder.

    Raises:
        UsageError: an unknown size, type or component, one that these sizes do not have, a negative seed, sizes that
            contradict each other.
        OutputError: the folder exists, or cannot be written.
        ResourceError: the disk is too small, or memory ran out.
    """
    sizes = _check_request(size, seed, dtype, only)
    target = check_destination(folder, is_ours=_is_random, kind="a random checkpoint", overwrite=overwrite)
    parts = [component for component in sizes.components if only is None or component in only]
    try:
        with output_errors(target), stage_folder(target) as staged:
            _check_space(target, staged, sum(_stored_bytes(sizes, part, dtype) for part in parts))
            writer = _Writer(staged, sizes, seed, dtype, shard_bytes)
            total = sum(_stored_bytes(sizes, part, dtype) for part in parts)
            with progress.task(f"writing {target.name}", total=total) as task:
                for part in parts:
                    writer.write(part, task)
            (staged / CONFIG_NAME).write_text(_INFERENCE_CONFIG.format(flow=_FLOW[sizes.flow]), "utf-8")
            record = {"sizes": asdict(sizes), "seed": seed, "dtype": dtype, "components": parts, "version": __version__}
            (staged / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            StagedFolder(target, staged, overwrite=overwrite, is_ours=_is_random).publish()
    except MemoryError:
        raise ResourceError(f"out of memory while making {target}", fix="use a smaller size, or only=...") from None
    return Path(folder)


def _is_random(folder: Path) -> bool:
    return (folder / RECORD_NAME).is_file()


def _check_request(
    size: str | CheckpointSizes, seed: int, dtype: str, only: Collection[Component] | None
) -> CheckpointSizes:
    if isinstance(size, str) and size not in SIZES:
        raise UsageError(f"'{size}' is not a checkpoint size", fix=f"use one of {', '.join(SIZES)}")
    sizes = SIZES[size] if isinstance(size, str) else size
    sizes.check()
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", fix="use 0 or more")
    if dtype not in DTYPES:
        raise UsageError(f"'{dtype}' is not a type of weights", fix=f"use one of {', '.join(DTYPES)}")
    if unknown := sorted(set(only or ()) - set(COMPONENTS)):
        raise UsageError(f"no such component: {', '.join(unknown)}", fix=f"use some of {', '.join(COMPONENTS)}")
    if absent := sorted(set(only or ()) - set(sizes.components)):
        raise UsageError(
            f"a checkpoint with flow: {sizes.flow} has no {absent[0]}", fix=f"use some of {', '.join(sizes.components)}"
        )
    return sizes


def _check_space(target: Path, place: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise ResourceError(
            f"{target}: needs {needed_bytes / 1e9:.2f} GB, the disk has {free_bytes / 1e9:.2f} GB left",
            fix="free some, or name another place",
        )


def _dtype_of(component: Component, dtype: Dtype) -> Dtype:
    return dtype if component in _FOLDERS or component == "motion_encoder" else "float32"


def _stored_bytes(sizes: CheckpointSizes, component: Component, dtype: Dtype) -> int:
    values = sum(math.prod(shape) for shape in sizes.shapes(component).values())
    return values * ITEM_BYTES[_dtype_of(component, dtype)]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the components of one checkpoint into ``root``."""

    root: Path
    sizes: CheckpointSizes
    seed: int
    dtype: Dtype
    shard_bytes: int

    def write(self, component: Component, task: Task) -> None:
        if component in _PICKLES:
            self._write_pickle(component, task)
            return
        folder = self.root / _FOLDERS[component]
        folder.mkdir(parents=True)
        if component == "scheduler":
            _write_json(folder / "scheduler_config.json", _SCHEDULER)
            return
        _write_json(folder / "config.json", self._config(component))
        shapes = self.sizes.shapes(component)
        workers = min(os.cpu_count() or 1, _MOST_WORKERS)
        with ThreadPoolExecutor(workers) as executor:

            def pieces(name: str) -> Iterator[bytes]:
                for chunk in self._chunks(component, name, shapes[name], executor, workers):
                    # numpy has no bfloat16: the bytes are torch's
                    yield chunk.to(getattr(torch, self.dtype)).view(torch.uint8).numpy().tobytes()
                task.advance(math.prod(shapes[name]) * ITEM_BYTES[self.dtype], note=f"{component}: {name}")

            write_sharded(folder, _STEM, shapes, self.dtype, pieces, self.shard_bytes)

    def _config(self, component: Component) -> dict[str, object]:
        if component == "vae":
            return self.sizes.vae()
        plain = component == "transformer_ref"
        name = "SD3Transformer2DModel" if plain else "SD3TransformerFuseMotion2DModel"
        return {"_class_name": name, **self.sizes.transformer().as_dict()}

    def _write_pickle(self, component: Component, task: Task) -> None:
        prefix = "module." if component == "raft" else ""
        dtype = getattr(torch, _dtype_of(component, self.dtype))
        state: dict[str, torch.Tensor] = {}
        for name, shape in self.sizes.shapes(component).items():
            if name.endswith("num_batches_tracked"):
                state[prefix + name] = torch.zeros(shape, dtype=torch.int64)
            else:
                values = torch.cat(list(self._chunks(component, name, shape)))
                state[prefix + name] = values.view(shape).to(dtype)
            task.advance(math.prod(shape) * dtype.itemsize, note=f"{component}: {name}" if name else component)
        # Through a buffer: torch.save reports a full disk as a RuntimeError without its cause.
        buffer = io.BytesIO()
        torch.save(state.get("", state), buffer)
        (self.root / _PICKLES[component]).write_bytes(buffer.getbuffer())

    def _chunks(
        self,
        component: Component,
        name: str,
        shape: tuple[int, ...],
        executor: ThreadPoolExecutor | None = None,
        workers: int = 1,
    ) -> Iterator[torch.Tensor]:
        if name == _POSITION_TABLE:
            yield from self._position_table().flatten().split(CHUNK_ELEMENTS)
            return
        key = stream_key(self.seed, component, name)
        for values in draw(key, fill_of(component, name, shape), math.prod(shape), executor, workers):
            yield torch.from_numpy(values)

    def _position_table(self) -> torch.Tensor:
        """SD3's table of two-dimensional sines and cosines, (1, pos_embed_max_size squared, D), by diffusers."""
        config = self.sizes.transformer()
        table: torch.Tensor = PatchEmbed(
            height=config.sample_size,
            width=config.sample_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            embed_dim=config.dim,
            pos_embed_max_size=config.pos_embed_max_size,
        ).pos_embed
        return table


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")

"""Where a checkpoint's files are: a folder in upstream's layout, or upstream's own ``inference_config.yml``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from livemoments.errors import CheckpointError
from livemoments.store.files import read_file
from livemoments.store.names import check_utf8
from livemoments.types import FlowNetwork

CONFIG_NAME = "inference_config.yml"
FLOW_KEY = "flow"
"""Ours, not upstream's: ``dis`` says that the checkpoint brings no RAFT and OpenCV's DIS takes its place."""
TILE_KEY, OVERLAP_KEY = "tile", "overlap"
"""Ours too, pixels: what an export takes by default, where it is not the networks' ``sample_size``."""
_TENSOR_SUFFIXES = (".pt", ".safetensors")
_LAYOUT_FIX = "see docs/checkpoints.md for the layout, or name upstream's inference_config.yml"


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The folders and files of one checkpoint; ``raft`` is ``None`` for one that says ``flow: dis``.

    ``tile`` and ``overlap`` are what its ``inference_config.yml`` says of them, pixels.
    """

    root: Path
    vae: Path
    scheduler: Path
    transformer: Path
    transformer_ref: Path
    motion_encoder: Path
    raft: Path | None
    prompt_embeds: Path
    pooled_prompt_embeds: Path
    tile: int | None = None
    overlap: int | None = None

    @property
    def flow(self) -> FlowNetwork:
        """What estimates the flow."""
        return "dis" if self.raft is None else "raft"

    def walk(self) -> Iterator[tuple[str, Path]]:
        """Every file that counts as part of the checkpoint, with a stable name relative to its component."""
        for field in fields(self):
            place = getattr(self, field.name)
            if field.name == "root" or not isinstance(place, Path):
                continue
            if place.is_file():
                yield f"{field.name}/{place.name}", place
                continue
            for file in sorted(place.iterdir()):
                if file.suffix in (".json", ".safetensors"):
                    yield f"{field.name}/{file.name}", file


def locate(path: str | Path) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Args:
        path: a folder that holds the SD3 folder (``vae/``, ``scheduler/``), the LiveMoments folder
            (``transformer/``, ``transformer_ref/``) and the ``.pt`` / ``.pth`` / ``.safetensors`` files, or an
            ``inference_config.yml`` whose relative paths are taken from its own folder, then from the working
            directory. Where the file, or the one in the folder, says ``flow: dis``, no RAFT is needed or looked for.

    Raises:
        CheckpointError: something is missing or ambiguous (one error lists everything that is), or ``flow`` is neither
            ``raft`` nor ``dis``.
    """
    path = Path(path)
    check_utf8(path, CheckpointError)
    if not path.exists():
        raise CheckpointError(path, "no such checkpoint", fix=_LAYOUT_FIX)
    if path.is_file():
        if path.suffix not in (".yml", ".yaml"):
            raise CheckpointError(path, "neither a folder nor an inference_config.yml", fix=_LAYOUT_FIX)
        return _from_config(path)
    config = path / CONFIG_NAME
    settings = read_inference_config(config) if config.is_file() else {}
    flow = _flow_of(config, settings)
    places = {
        "vae": _find(path, lambda folder: folder / "vae"),
        "scheduler": _find(path, lambda folder: folder / "scheduler"),
        "transformer": _find(path, lambda folder: folder / "transformer"),
        "transformer_ref": _find(path, lambda folder: folder / "transformer_ref"),
        "motion_encoder": _match(path, "*motion*.pt", "*motion*.pth") + _match(path, "*motion*.safetensors"),
        "raft": _match(path, "*raft*.pth", "*raft*.pt"),
        "prompt_embeds": [
            file
            for suffix in _TENSOR_SUFFIXES
            for file in _match(path, f"*prompt_embeds*{suffix}")
            if "pooled" not in file.name
        ],
        "pooled_prompt_embeds": [
            file for suffix in _TENSOR_SUFFIXES for file in _match(path, f"*pooled_prompt_embeds*{suffix}")
        ],
    }
    if flow == "dis":
        del places["raft"]
    lacking = [name for name, found in places.items() if not found]
    if lacking and config.is_file():
        return _from_config(config)
    if lacking:
        raise CheckpointError(path, f"not a LiveMoments checkpoint: found no {', '.join(lacking)}", fix=_LAYOUT_FIX)
    for name, found in places.items():
        if len(found) > 1:
            names = ", ".join(str(f.relative_to(path)) for f in found)
            raise CheckpointError(path, f"several files could be the {name}: {names}", fix="keep one of them there")
    chosen = {name: found[0] for name, found in places.items()}
    tile, overlap = _tiling_of(config, settings)
    return CheckpointFiles(root=path, raft=chosen.pop("raft", None), tile=tile, overlap=overlap, **chosen)


def _find(root: Path, place: Callable[[Path], Path]) -> list[Path]:
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    return [place(folder) for folder in folders if any(place(folder).glob("*config.json"))]


def _match(root: Path, *patterns: str) -> list[Path]:
    for pattern in patterns:
        if found := sorted({*root.glob(pattern), *root.glob(f"*/{pattern}")}):
            return found
    return []


def _from_config(path: Path) -> CheckpointFiles:
    settings = read_inference_config(path)
    keys = {
        "vae": ("SD3_weight_path", "vae"),
        "scheduler": ("SD3_weight_path", "scheduler"),
        "transformer": ("pretrained_weight_path", "transformer"),
        "transformer_ref": ("pretrained_weight_path", "transformer_ref"),
        "motion_encoder": ("motion_encoder_weight_path", ""),
        "raft": ("raft_weight_path", ""),
        "prompt_embeds": ("prompt_embeds_path", ""),
        "pooled_prompt_embeds": ("pooled_prompt_embeds_path", ""),
    }
    if _flow_of(path, settings) == "dis":
        del keys["raft"]
    if missing := sorted({key for key, _ in keys.values() if not isinstance(settings.get(key), str)}):
        raise CheckpointError(path, f"lacks the keys {', '.join(missing)}")
    places: dict[str, Path] = {}
    for name, (key, child) in keys.items():
        given = Path(settings[key])
        candidates = [base / given / child if child else base / given for base in (path.parent, Path.cwd())]
        found = next((c for c in candidates if c.exists()), None)
        if found is None:
            raise CheckpointError(path, f"{key}: {candidates[0]} does not exist", fix=f"correct {key}")
        places[name] = found
    tile, overlap = _tiling_of(path, settings)
    return CheckpointFiles(root=path.parent, raft=places.pop("raft", None), tile=tile, overlap=overlap, **places)


def _flow_of(path: Path, settings: Mapping[str, Any]) -> FlowNetwork:
    given = settings.get(FLOW_KEY, "raft")
    known: tuple[FlowNetwork, ...] = get_args(FlowNetwork)
    for flow in known:
        if given == flow:
            return flow
    raise CheckpointError(path, f"{FLOW_KEY}: '{given}' is not known", fix=f"use {' or '.join(known)}")


def _tiling_of(path: Path, settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    given = {key: settings[key] for key in (TILE_KEY, OVERLAP_KEY) if key in settings}
    for key, value in given.items():
        if type(value) is not int or not 0 < value < 1 << 16:
            raise CheckpointError(path, f"{key}: {value!r} is not a number of pixels", fix="write a whole number")
    return given.get(TILE_KEY), given.get(OVERLAP_KEY)


def read_inference_config(path: Path) -> dict[str, Any]:
    """Upstream's settings as a mapping.

    Raises:
        CheckpointError: unreadable, or no mapping.
    """
    try:
        found = yaml.safe_load(read_file(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(path, f"not readable as YAML ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(path, "holds no settings")
    return found

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


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found of a checkpoint, whole or not.

    Attributes:
        root: its folder.
        config: the ``inference_config.yml`` that names its parts, ``None`` where they were looked for in the folder.
        flow: what estimates the flow; with ``dis`` there is no part ``raft``.
        places: by part, in the order of :class:`CheckpointFiles`: what could be it. None is missing, several ambiguous.
        keys: by part, the key of ``config`` that names it; empty without one.
        lacking: why a part that ``config`` should name was not found, by part.
        tile: what the configuration says of tiles, pixels.
        overlap: and of their overlap.
    """

    root: Path
    config: Path | None
    flow: FlowNetwork
    places: dict[str, list[Path]]
    keys: dict[str, str]
    lacking: dict[str, str]
    tile: int | None
    overlap: int | None


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
    found = survey(path)
    path = Path(path) if found.config is None else found.config
    missing = [name for name, places in found.places.items() if not places]
    if missing and found.config is not None:
        absent = sorted({key for name, key in found.keys.items() if name in missing and name not in found.lacking})
        if absent:
            raise CheckpointError(path, f"lacks the keys {', '.join(absent)}")
        raise CheckpointError(path, found.lacking[missing[0]], fix=f"correct {found.keys[missing[0]]}")
    if missing:
        fix = f"'livemoments inspect {path}' says what each is, and the command that brings it"
        raise CheckpointError(path, f"not a LiveMoments checkpoint: found no {', '.join(missing)}", fix=fix)
    for name, places in found.places.items():
        if len(places) > 1:
            names = ", ".join(str(f.relative_to(path)) for f in places)
            raise CheckpointError(path, f"several files could be the {name}: {names}", fix="keep one of them there")
    chosen = {name: places[0] for name, places in found.places.items()}
    return CheckpointFiles(
        root=found.root, raft=chosen.pop("raft", None), tile=found.tile, overlap=found.overlap, **chosen
    )


def survey(path: str | Path) -> Survey:
    """Look for the parts of a checkpoint; what is missing or ambiguous is said, not refused.

    Args:
        path: as :func:`locate`. Where a folder lacks a part and has an ``inference_config.yml``, that one counts.

    Raises:
        CheckpointError: there is nothing, or nothing readable, of that name; ``flow``, ``tile`` or ``overlap`` have
            values that they cannot have.
    """
    path = Path(path)
    check_utf8(path, CheckpointError)
    if not path.exists():
        raise CheckpointError(path, "no such checkpoint", fix=_LAYOUT_FIX)
    if path.is_file():
        if path.suffix not in (".yml", ".yaml"):
            raise CheckpointError(path, "neither a folder nor an inference_config.yml", fix=_LAYOUT_FIX)
        return _survey_config(path)
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
        **_prompt_places(path),
    }
    if flow == "dis":
        del places["raft"]
    if not all(places.values()) and config.is_file():
        return _survey_config(config)
    return Survey(path, None, flow, places, {}, {}, *_tiling_of(config, settings))


def locate_prompt(folder: str | Path) -> tuple[Path, Path]:
    """The embeddings of a prompt that lies by itself, as ``livemoments make-prompt`` writes it.

    Returns:
        The files of the tokens' and of the pooled embeddings.

    Raises:
        CheckpointError: one is missing, or there are several.
    """
    folder = Path(folder)
    check_utf8(folder, CheckpointError)
    places = _prompt_places(folder) if folder.is_dir() else {"prompt_embeds": []}
    for name, found in places.items():
        if len(found) != 1:
            message = f"found {'several files' if found else 'no file'} that could be {name}"
            raise CheckpointError(folder, message, fix="make a prompt with 'livemoments make-prompt SD3 -o DIR'")
    return places["prompt_embeds"][0], places["pooled_prompt_embeds"][0]


def _prompt_places(root: Path) -> dict[str, list[Path]]:
    named = {
        name: [file for suffix in _TENSOR_SUFFIXES for file in _match(root, f"*{name}*{suffix}")]
        for name in ("prompt_embeds", "pooled_prompt_embeds")
    }
    named["prompt_embeds"] = [file for file in named["prompt_embeds"] if "pooled" not in file.name]
    return named


def _find(root: Path, place: Callable[[Path], Path]) -> list[Path]:
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    return [place(folder) for folder in folders if any(place(folder).glob("*config.json"))]


def _match(root: Path, *patterns: str) -> list[Path]:
    for pattern in patterns:
        if found := sorted({*root.glob(pattern), *root.glob(f"*/{pattern}")}):
            return found
    return []


def _survey_config(path: Path) -> Survey:
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
    flow = _flow_of(path, settings)
    if flow == "dis":
        del keys["raft"]
    places: dict[str, list[Path]] = {}
    lacking: dict[str, str] = {}
    for name, (key, child) in keys.items():
        places[name] = []
        if not isinstance(settings.get(key), str):
            continue
        given = Path(settings[key])
        candidates = [base / given / child if child else base / given for base in (path.parent, Path.cwd())]
        if (found := next((c for c in candidates if c.exists()), None)) is not None:
            places[name] = [found]
        else:
            lacking[name] = f"{key}: {candidates[0]} does not exist"
    named = {name: key for name, (key, _) in keys.items()}
    return Survey(path.parent, path, flow, places, named, lacking, *_tiling_of(path, settings))


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

"""What a checkpoint holds, read from headers: every part found, missing or misshapen, and the command that mends it.

No tensor is read but RAFT's and the prompts', and no network is built: values (NaN) are for the export to check.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from livemoments.errors import CheckpointError
from livemoments.reference.config import (
    TransformerConfig,
    VaeConfig,
    read_schedule_config,
    read_transformer_config,
    read_vae_config,
)
from livemoments.reference.layout import Survey, survey
from livemoments.reference.motion import motion_encoder_for
from livemoments.reference.raft import RAFT
from livemoments.reference.weights import (
    SAFETENSORS,
    SafetensorsFolder,
    check_keys,
    open_safetensors,
    read_pickled,
    read_pickled_tensor,
)
from livemoments.types import FlowNetwork
from livemoments.weights.expected import transformer_shapes, vae_shapes

State = Literal["found", "missing", "ambiguous", "damaged", "misshapen"]
"""``misshapen``: readable, but not what the other parts need. ``damaged``: not readable."""

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FETCH_PART = {
    "vae": "sd3",
    "scheduler": "sd3",
    "transformer": "livemoments",
    "transformer_ref": "livemoments",
    "motion_encoder": "livemoments",
    "raft": "raft",
}
SD3_FOLDER, PROMPT_FOLDER = "sd3", "prompt"
"""Where ``livemoments fetch`` puts Stable Diffusion 3, and where the README has ``make-prompt`` write."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a checkpoint.

    Attributes:
        name: as in :class:`~livemoments.reference.layout.CheckpointFiles`.
        state: what is wrong with it, if anything.
        path: where it is; ``None`` where it is missing.
        bytes: of its files on disk.
        dtypes: of its tensors, without duplicates, the one with the most bytes first.
        tensors: how many it holds.
        parameters: and their elements.
        note: what else is worth knowing, e.g. ``T = 154``.
        problem: what is wrong, a sentence; empty where nothing is.
        fix: the command that mends it.
    """

    name: str
    state: State
    path: Path | None = None
    bytes: int = 0
    dtypes: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    note: str = ""
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What :func:`inspect_checkpoint` found.

    Attributes:
        path: what was named.
        config: the ``inference_config.yml`` in effect.
        flow: what estimates the flow.
        parts: in a fixed order.
        text_tokens: T, the prompt's tokens; ``None`` where it cannot be read.
        tile: the checkpoint's own tile, pixels, if it names one.
        overlap: and its overlap.
    """

    path: Path
    config: Path | None
    flow: FlowNetwork
    parts: tuple[Part, ...]
    text_tokens: int | None
    tile: int | None
    overlap: int | None

    @property
    def exportable(self) -> bool:
        """Every part is there, readable and of the right shape."""
        return all(part.state == "found" for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all parts on disk."""
        return sum(part.bytes for part in self.parts)


@dataclass(slots=True)
class _Header:
    """Names and shapes of a part's tensors, and bytes by dtype."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.shapes[name] = shape
        if dtype.startswith("int"):  # batch norms count their batches
            return
        self.dtypes[dtype] = self.dtypes.get(dtype, 0) + max(1, torch.Size(shape).numel())


@dataclass(slots=True)
class _Found:
    """What the parts need of each other; a part that could not be read leaves ``None``."""

    transformer: TransformerConfig | None = None
    vae: VaeConfig | None = None
    text_tokens: int | None = None


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Look at every part of a checkpoint.

    Args:
        path: a folder in upstream's layout, or an ``inference_config.yml``.

    Raises:
        CheckpointError: there is nothing of that name, or its ``inference_config.yml`` cannot be read.
    """
    found = survey(path)
    known = _Found(
        transformer=_quietly(lambda: read_transformer_config(found.places["transformer"][0] / "config.json")),
        vae=_quietly(lambda: read_vae_config(found.places["vae"][0] / "config.json")),
    )
    parts = tuple(_part(name, found, known) for name in found.places)
    return Inspection(Path(path), found.config, found.flow, parts, known.text_tokens, found.tile, found.overlap)


def _quietly(read: Callable[[], Any]) -> Any:
    """``None`` where it is missing or unreadable: its own part says so."""
    try:
        return read()
    except (CheckpointError, IndexError):
        return None


def _part(name: str, found: Survey, known: _Found) -> Part:
    places = found.places[name]
    if not places:
        problem = found.lacking.get(name, f"{found.config.name} names none" if found.config else "not there")
        return Part(name, "missing", problem=problem, fix=_fix(name, found, None))
    if len(places) > 1:
        names = ", ".join(str(place.relative_to(found.root)) for place in places)
        return Part(name, "ambiguous", problem=f"several could be it: {names}", fix="keep one of them there")
    (place,) = places
    size = sum(file.stat().st_size for file in ([place] if place.is_file() else place.iterdir()) if file.is_file())
    fix = _fix(name, found, place)
    try:
        header = _HEADERS[name](place)
    except (CheckpointError, OSError) as error:
        return Part(name, "damaged", place, size, problem=_sentence(error, place), fix=fix)
    state: State = "found"
    note = problem = ""
    try:
        note = _CHECKS[name](place, header, known)
    except CheckpointError as error:
        state, problem = "misshapen", _sentence(error, place)
    parameters = sum(torch.Size(shape).numel() for shape in header.shapes.values())
    dtypes = tuple(sorted(header.dtypes, key=lambda dtype: -header.dtypes[dtype]))
    return Part(name, state, place, size, dtypes, len(header.shapes), parameters, note, problem, fix if problem else "")


def _sentence(error: Exception, place: Path) -> str:
    text = error.message if isinstance(error, CheckpointError) else str(error)
    return text.removeprefix(f"{place}: ").removeprefix(f"{place}/")


def _fix(name: str, found: Survey, place: Path | None) -> str:
    """The command that mends a part; where upstream's configuration names another place, what to write there."""
    root = shlex.quote(str(found.root))
    away = f"rm -r {shlex.quote(str(place))} && " if place is not None else ""
    if name in _FETCH_PART:
        command = f"{away}livemoments fetch {root} --only {_FETCH_PART[name]}"
        where = f"{found.root / _FETCH_PART[name]}"
    else:
        where = str(found.root / PROMPT_FOLDER)
        sd3 = found.root / SD3_FOLDER
        command = f"livemoments make-prompt {shlex.quote(str(sd3))} -o {shlex.quote(where)}"
        if place is not None and place.parent == found.root / PROMPT_FOLDER:
            command += " --overwrite"
        elif place is not None:
            command = f"{away}{command}"
        if not (sd3 / "text_encoder").is_dir():
            command = f"livemoments fetch {root} --only text-encoders && {command}"
    key = found.keys.get(name)
    return f"{command}, then let {key} name what is in {where}" if key else command


def _folder_header(place: Path) -> _Header:
    header = _Header()
    folder = SafetensorsFolder(place)
    for name, shape in folder.shapes.items():
        header.add(name, shape, _DTYPES.get(code := folder.stored_dtype(name), code))
    return header


def _file_header(place: Path) -> _Header:
    header = _Header()
    if place.suffix == SAFETENSORS:
        with open_safetensors(place) as handle:
            for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                piece = handle.get_slice(name)
                header.add(name, tuple(piece.get_shape()), _DTYPES.get(code := piece.get_dtype(), code))
        return header
    for name, tensor in read_pickled(place).items():  # mapped: no value is read
        header.add(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    return header


def _tensor_header(place: Path) -> _Header:
    header = _Header()
    if place.suffix == SAFETENSORS:
        return _file_header(place)
    tensor = read_pickled_tensor(place, keep_type=True)
    header.add("", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    return header


def _scheduler_header(place: Path) -> _Header:
    read_schedule_config(place / "scheduler_config.json")
    return _Header()


_HEADERS: dict[str, Callable[[Path], _Header]] = {
    "vae": _folder_header,
    "scheduler": _scheduler_header,
    "transformer": _folder_header,
    "transformer_ref": _folder_header,
    "motion_encoder": _file_header,
    "raft": _file_header,
    "prompt_embeds": _tensor_header,
    "pooled_prompt_embeds": _tensor_header,
}


def _check_transformer(place: Path, header: _Header, known: _Found) -> str:
    config = read_transformer_config(place / "config.json")
    check_keys(place, transformer_shapes(config, guided=True), header.shapes)
    if known.vae is not None and known.vae.latent_channels != config.in_channels:
        raise CheckpointError(
            place, f"takes {config.in_channels} latent channels, the VAE has {known.vae.latent_channels}"
        )
    return f"{config.num_layers} blocks, {config.num_attention_heads} heads x {config.attention_head_dim}"


def _check_transformer_ref(place: Path, header: _Header, known: _Found) -> str:
    config = read_transformer_config(place / "config.json")
    check_keys(place, transformer_shapes(config, guided=False), header.shapes)
    if known.transformer is not None and known.transformer != config:
        theirs = known.transformer.as_dict()
        differ = [name for name, value in config.as_dict().items() if value != theirs[name]]
        raise CheckpointError(place, f"differs from transformer in {', '.join(differ)}")
    return f"{config.num_layers} blocks, {config.num_attention_heads} heads x {config.attention_head_dim}"


def _check_vae(place: Path, header: _Header, _known: _Found) -> str:
    config = read_vae_config(place / "config.json")
    try:
        shapes = vae_shapes(config.raw)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(place / "config.json", f"lacks or garbles {error}") from None
    check_keys(place, shapes, header.shapes)
    return f"f{config.scale}, {config.latent_channels} latent channels"


def _check_scheduler(place: Path, _header: _Header, _known: _Found) -> str:
    return f"shift {read_schedule_config(place / 'scheduler_config.json').shift:g}"


def _check_motion(place: Path, header: _Header, known: _Found) -> str:
    if known.transformer is None:
        return ""
    encoder = motion_encoder_for(place, header.shapes, known.transformer)
    check_keys(place, _shapes_of(encoder.state_dict()), header.shapes)
    return f"serves {encoder.max_blocks} blocks"


def _check_raft(place: Path, header: _Header, _known: _Found) -> str:
    with torch.device("meta"):
        network = RAFT()
    check_keys(place, _shapes_of(network.state_dict()), header.shapes)
    return ""


def _check_prompt(place: Path, header: _Header, known: _Found) -> str:
    (shape,) = _only(place, header)
    width = shape[-1] if known.transformer is None else known.transformer.joint_attention_dim
    if len(shape) not in (2, 3) or shape[-1] != width or (len(shape) == 3 and shape[0] != 1) or 0 in shape:
        raise CheckpointError(place, f"has shape {shape}, should be (T, {width})")
    known.text_tokens = shape[-2]
    return f"T = {shape[-2]}"


def _check_pooled(place: Path, header: _Header, known: _Found) -> str:
    (shape,) = _only(place, header)
    width = shape[-1] if known.transformer is None else known.transformer.pooled_projection_dim
    if len(shape) not in (1, 2) or shape[-1] != width or (len(shape) == 2 and shape[0] != 1):
        raise CheckpointError(place, f"has shape {shape}, should be ({width},)")
    return ""


def _only(place: Path, header: _Header) -> list[tuple[int, ...]]:
    shapes = list(header.shapes.values())
    if len(shapes) != 1 or not shapes[0]:
        raise CheckpointError(place, f"holds {len(shapes)} tensors, should be one of two axes")
    return shapes


def _shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


_CHECKS: dict[str, Callable[[Path, _Header, _Found], str]] = {
    "vae": _check_vae,
    "scheduler": _check_scheduler,
    "transformer": _check_transformer,
    "transformer_ref": _check_transformer_ref,
    "motion_encoder": _check_motion,
    "raft": _check_raft,
    "prompt_embeds": _check_prompt,
    "pooled_prompt_embeds": _check_pooled,
}

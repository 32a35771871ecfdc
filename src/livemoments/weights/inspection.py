"""What a checkpoint holds, read from headers: every part found, missing or misshapen, and the command that mends it.

No tensor is read and no network is built, so it takes a second whatever the size: values (NaN) are for the export to
check.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from livemoments.errors import CheckpointError
from livemoments.reference.config import read_transformer_config, read_vae_config
from livemoments.reference.layout import Survey, survey
from livemoments.types import FlowNetwork
from livemoments.weights.checks import CHECKS, READERS, Known

State = Literal["found", "missing", "ambiguous", "damaged", "misshapen"]
"""``misshapen``: readable, but not what the other parts need. ``damaged``: not readable."""

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


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Look at every part of a checkpoint.

    Args:
        path: a folder in upstream's layout, or an ``inference_config.yml``.

    Raises:
        CheckpointError: there is nothing of that name, or its ``inference_config.yml`` cannot be read.
    """
    found = survey(path)
    known = Known(
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


def _part(name: str, found: Survey, known: Known) -> Part:
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
        header = READERS[name](place)
    except (CheckpointError, OSError) as error:
        return Part(name, "damaged", place, size, problem=_sentence(error, place), fix=fix)
    state: State = "found"
    note = problem = ""
    try:
        note = CHECKS[name](place, header, known)
    except CheckpointError as error:
        state, problem = "misshapen", _sentence(error, place)
    counts = (header.dtypes, len(header.tensors), header.parameters)
    return Part(name, state, place, size, *counts, note, problem, fix if problem else "")


def _sentence(error: Exception, place: Path) -> str:
    text = error.message if isinstance(error, CheckpointError) else str(error)
    return text.removeprefix(f"{place}: ").removeprefix(f"{place}/")


def _fix(name: str, found: Survey, place: Path | None) -> str:
    """The command that mends a part; where upstream's configuration names another place, what to write there."""
    if name in _FETCH_PART:
        folder = found.root / _FETCH_PART[name]
        command = f"livemoments fetch {_quoted(found.root)} --only {_FETCH_PART[name]}"
        is_replaced = place is not None and place.is_relative_to(folder)
    else:
        folder = found.root / PROMPT_FOLDER
        command = _prompt_command(found, folder)
        is_replaced = place is not None and place.parent == folder
        if is_replaced:
            command += " --overwrite"
    if place is not None and not is_replaced:  # or there would be two
        command = f"rm -r {_quoted(place)} && {command}"
    key = found.keys.get(name)
    return f"{command}, then let {key} name what is in {folder}" if key else command


def _prompt_command(found: Survey, folder: Path) -> str:
    encoders = [place.parent for place in found.places["vae"] if (place.parent / "text_encoder").is_dir()]
    sd3 = encoders[0] if encoders else found.root / SD3_FOLDER
    command = f"livemoments make-prompt {_quoted(sd3)} -o {_quoted(folder)}"
    return command if encoders else f"livemoments fetch {_quoted(found.root)} --only text-encoders && {command}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))

"""Where the published weights are: ``sources.toml``, read and checked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

PartName = Literal["livemoments", "sd3", "text-encoders", "raft"]
PARTS: tuple[PartName, ...] = get_args(PartName)
Variant = Literal["fp16", "fp32", "clip"]
"""Of the text encoders: halves, floats, or halves without T5."""
VARIANTS: tuple[Variant, ...] = get_args(Variant)


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of one repository on the Hugging Face hub.

    Attributes:
        repository: ``owner/name``.
        revision: the commit that is taken.
        folder: where the files go, relative to the checkpoint's folder.
        files: patterns, as :func:`fnmatch.fnmatchcase` reads them; each must match a file there.
        optional: patterns that need not.
    """

    repository: str
    revision: str
    folder: str
    files: tuple[str, ...]
    optional: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """One file in a zip archive.

    Attributes:
        url: the archive's.
        sha256: the archive's.
        member: the file's name in it.
        folder: where the file goes, relative to the checkpoint's folder.
    """

    url: str
    sha256: str
    member: str
    folder: str

    @property
    def file(self) -> str:
        """Where the file goes, relative to the checkpoint's folder."""
        return f"{self.folder}/{self.member.rpartition('/')[2]}"


@dataclass(frozen=True, slots=True)
class Sources:
    """All of them."""

    livemoments: HubSource
    sd3: HubSource
    text_encoders: dict[Variant, HubSource]
    raft: ArchiveSource


@cache
def published_sources() -> Sources:
    """What ``sources.toml`` says."""
    found: dict[str, Any] = tomllib.loads(Path(__file__).with_name("sources.toml").read_text("utf-8"))
    encoders = found["text-encoders"]
    variants = encoders.pop("variants")
    return Sources(
        livemoments=_hub(found["livemoments"]),
        sd3=_hub(found["sd3"]),
        text_encoders={name: _hub({**encoders, "files": encoders["files"] + variants[name]}) for name in VARIANTS},
        raft=ArchiveSource(**found["raft"]),
    )


def _hub(table: dict[str, Any]) -> HubSource:
    lists = {name: tuple(table[name]) for name in ("files", "optional")}
    return HubSource(table["repository"], table["revision"], table["folder"], **lists)

"""``livemoments synlive check``: a set against its manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemoments.bundle import hash_file
from livemoments.errors import FileError
from livemoments.progress import SILENT, Progress
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.validate.datasets.index import open_dataset
from livemoments.validate.synlive.manifest import MANIFEST_NAME, SynliveManifest, read_manifest

_PARTS = (FRAMES, PHOTOS, PHOTO_FRAMES, TRUTHS)
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class SetCheck:
    """What was found.

    Attributes:
        folder: the set.
        manifest: of the set.
        problems: one sentence each; empty: the set is whole.
        sha256: of the images, as ``validate`` reports it; ``None`` if they could not be indexed.
    """

    folder: Path
    manifest: SynliveManifest
    problems: tuple[str, ...]
    sha256: str | None

    @property
    def passed(self) -> bool:
        """Whether the set is whole."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "folder": os.fspath(self.folder),
            "passed": self.passed,
            "pairs": len(self.manifest.pairs),
            "sha256": self.sha256,
            "problems": list(self.problems),
        }

    def to_text(self) -> str:
        """Some lines for people."""
        settings, count = self.manifest.settings, len(self.manifest.pairs)
        if self.passed:
            made = f"{settings.degradation}, x{settings.scale}, seed {settings.seed}"
            return f"{self.folder}: {count} pairs ({made}), every image as the manifest says"
        lines = [f"{self.folder}: {len(self.problems)} problems in {count} pairs"]
        lines += [f"  {problem}" for problem in self.problems[:_MOST_SHOWN]]
        more = len(self.problems) - _MOST_SHOWN
        return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def check_set(folder: str | os.PathLike[str], *, progress: Progress = SILENT) -> SetCheck:
    """Compare every file with the manifest, then index the set, decoding every image.

    Raises:
        FileError: there is no manifest, or it is not a set's.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    problems = _compare(root, manifest, progress)
    sha256 = None
    if not problems:
        try:
            dataset = open_dataset(root, progress=progress)
        except FileError as error:
            problems.append(error.message)
        else:
            problems += [reason for _, reason in dataset.rejected]
            sha256 = dataset.sha256
    return SetCheck(root, manifest, tuple(problems), sha256)


def _compare(root: Path, manifest: SynliveManifest, progress: Progress) -> list[str]:
    problems = []
    listed = {f"{part}/{pair.name}.png": file for pair in manifest.pairs for part, file in pair.files.items()}
    if not listed:
        problems.append(f"{MANIFEST_NAME}: lists no pairs")
    for pair in manifest.pairs:
        if tuple(sorted(pair.files)) != tuple(sorted(_PARTS)):
            problems.append(f"{MANIFEST_NAME}: {pair.name} does not have {', '.join(_PARTS)}")
    there = {
        path.relative_to(root).as_posix()
        for part in _PARTS
        if (root / part).is_dir()
        for path in (root / part).iterdir()
        if not path.name.startswith(".")
    }
    problems += [f"{name}: is not in the manifest" for name in sorted(there - set(listed))]
    with progress.task("Comparing with the manifest", len(listed)) as task:
        for name, file in listed.items():
            if name not in there:
                problems.append(f"{name}: missing")
            elif hash_file(root / name) != file:
                problems.append(f"{name}: was changed or damaged (another SHA-256)")
            task.advance(1, note=name)
    return problems

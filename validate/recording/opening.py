"""Recordings of either format, opened."""

from __future__ import annotations

import os
from pathlib import Path

from livemoments.progress import SILENT, Progress
from livemoments.store.names import check_utf8
from livemoments.validate.recording.golden_format import GoldenRecording
from livemoments.validate.recording.schema import META_NAME
from livemoments.validate.recording.store import RECORDINGS, Recording, StoredRecording


def open_recording(
    path: str | os.PathLike[str], *, verify_hashes: bool = True, progress: Progress = SILENT
) -> Recording:
    """Open a recording and check it.

    Args:
        path: the folder that ``livemoments record`` wrote, or one in the golden format (``expected.npz``).
        verify_hashes: read every file and compare its SHA-256 (sizes are compared in any case).
        progress: where to report the hashing.

    Raises:
        FileError: not a recording, an unknown schema, a malformed ``recording.json``, a path that leaves the folder, a
            missing file, a wrong size or hash.
    """
    folder = Path(path)
    check_utf8(folder)
    if not (folder / META_NAME).is_file() and (folder / "expected.npz").is_file():
        return GoldenRecording(folder)
    meta = RECORDINGS.read(folder)
    RECORDINGS.check_names(folder, meta.files)
    with progress.task("Checking the recording", sum(entry.bytes for entry in meta.files.values())) as task:
        for name, entry in meta.files.items():
            RECORDINGS.check_file(folder / name, entry, verify_hash=verify_hashes)
            task.advance(entry.bytes)
    return StoredRecording(folder, meta)

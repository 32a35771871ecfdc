"""A recording that was interrupted: killed, or stopped by an error; what is there is kept and gone on from."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recording_support import write_set

from livemoments.reference.checkpoint import Reference
from livemoments.types import Size
from livemoments.validate.recording import pipeline
from livemoments.validate.recording.pipeline import record
from livemoments.validate.recording.schema import META_NAME
from livemoments.validate.recording.store import Recording

STEPS = 3
OPTIONS = {"tile": Size(128, 128), "overlap": 32, "steps": STEPS, "seed": 5}
SAME = 1e-6
"""Relative L2 of one network run twice on the same input, through a file."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("photos"), 2, truth=True)


def contents(recording: Recording) -> dict[str, bytes]:
    files = {path.relative_to(recording.path).as_posix(): path for path in recording.path.rglob("*") if path.is_file()}
    found = {name: path.read_bytes() for name, path in files.items()}
    found[META_NAME] = re.sub(rb'"created": "[^"]+"', b"", found[META_NAME])
    return found


# --- going on


def interrupted_after(checkpoint: Path, photos: Path, place: Path, finished: int) -> int:
    """A process that records, killed outright when that many photos are finished; its exit code."""
    code = (
        "import sys; from livemoments.types import Size; from livemoments.validate.recording.pipeline import record; "
        "record(*sys.argv[1:4], tile=Size(128, 128), overlap=32, steps=3, seed=5, detail='blocks')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(checkpoint), str(photos), str(place)])
    try:
        deadline_s = time.monotonic() + 180
        marks = place.with_name(f".{place.name}.unfinished") / "finished"
        while len(list(marks.glob("*.json"))) < finished and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return process.returncode


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_outright_and_started_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    photos = write_set(tmp_path / "photos", 3)
    place = tmp_path / "killed"
    assert interrupted_after(tiny_checkpoint, photos, place, 1) == -signal.SIGKILL, "it ended before it could be killed"
    assert not place.exists()
    kept = tmp_path / ".killed.unfinished" / "recording" / "tensors" / "a" / "tile0.safetensors"
    before = kept.stat()
    again = record(tiny_checkpoint, photos, place, detail="blocks", **OPTIONS)
    after = (again.path / "tensors" / "a" / "tile0.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "the finished photo was made again"
    at_once = record(tiny_checkpoint, photos, tmp_path / "at once", detail="blocks", **OPTIONS)
    assert contents(again) == contents(at_once)
    assert again.meta.digest == at_once.meta.digest


def test_an_error_in_a_later_photo_keeps_the_earlier_ones(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline._record_image
    recorded: list[str] = []

    def failing(reference: Reference, item: object, *arguments: object) -> object:
        recorded.append(item.name)  # type: ignore[attr-defined]
        if recorded == ["a", "b"]:
            raise KeyboardInterrupt
        return whole(reference, item, *arguments)  # type: ignore[arg-type]

    at_once = record(
        tiny_checkpoint, photos, tmp_path.with_name(f"{tmp_path.name}-at-once"), detail="blocks", **OPTIONS
    )
    monkeypatch.setattr(pipeline, "_record_image", failing)
    for _ in range(2):
        try:
            found = record(tiny_checkpoint, photos, tmp_path / "r", detail="blocks", **OPTIONS)
        except KeyboardInterrupt:
            assert [path.name for path in tmp_path.iterdir()] == [".r.unfinished"]
    assert recorded == ["a", "b", "b"]
    assert contents(found) == contents(at_once)

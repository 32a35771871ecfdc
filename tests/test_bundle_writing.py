"""Writing bundles: whole or not at all, and what is replaced is never lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from bundle_folder import GRAPH, WEIGHTS, manifest_for, names, write_small_bundle

from livemoments import staging
from livemoments.bundle import MANIFEST_NAME, Bundle, write_bundle
from livemoments.errors import OutputError, ResourceError
from livemoments.manifest import Manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_manifest_is_sorted_readable_json_written_last(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "bundle") as writer:
        (writer.folder / "flow").mkdir()
        (writer.folder / GRAPH).write_bytes(b"graph")
        (writer.folder / WEIGHTS).write_bytes(b"weights")
        assert not (tmp_path / "bundle").exists()
        assert names(writer.folder) == ["flow"]
        manifest = manifest_for(writer)
        writer.commit(manifest)
        assert names(tmp_path) == ["bundle"]
    text = (tmp_path / "bundle" / MANIFEST_NAME).read_text()
    assert msgspec.json.decode(text, type=Manifest) == manifest
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text.endswith("}\n")
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_without_a_commit_nothing_stays(tmp_path: Path, failure: BaseException) -> None:
    def fail_halfway() -> None:
        with write_bundle(tmp_path / "bundle") as writer:
            (writer.folder / "half").write_bytes(b"x")
            raise failure

    with pytest.raises(type(failure)):
        fail_halfway()
    assert names(tmp_path) == []


def test_what_is_there_is_kept_unless_overwriting_a_bundle(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / GRAPH).read_bytes()
    with pytest.raises(OutputError, match="exists already") as caught:
        write_small_bundle(bundle, content=b"new")
    assert caught.value.fix == "pass --overwrite to replace it"
    assert (bundle / GRAPH).read_bytes() == before
    write_small_bundle(bundle, content=b"new", overwrite=True)
    assert (Bundle.open(bundle).path / GRAPH).read_bytes() == b"new"
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("letters", "file", "dangling"):
        with pytest.raises(OutputError, match="exists already and is not a bundle"):
            write_small_bundle(tmp_path / name, overwrite=True)
    (tmp_path / "empty").mkdir()
    Bundle.open(write_small_bundle(tmp_path / "empty"))
    assert names(tmp_path) == ["bundle", "dangling", "empty", "file", "letters"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file/bundle", "file/below/bundle", "x" * 300):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            write_small_bundle(tmp_path / place)
        assert caught.value.fix
    assert names(tmp_path) == ["file"]


def test_what_a_killed_writer_left_goes_and_what_runs_stays(tmp_path: Path) -> None:
    odd = "b[1]*"  # a glob's characters are meant literally
    dead = dead_pid()
    for name in (f".{odd}.partial-{dead}-x", f".{odd}.partial-{os.getpid()}-x", f".other.partial-{dead}-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    write_small_bundle(tmp_path / odd)
    assert names(tmp_path) == sorted([f".{odd}.partial-{os.getpid()}-x", f".other.partial-{dead}-x", odd])


# --- replacing an older bundle


@pytest.mark.parametrize("failure", [OSError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_failure_between_the_two_renames_puts_the_old_bundle_back(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            assert not bundle.exists(), "the old one is out of the way by now"
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_small_bundle(bundle, content=b"new", overwrite=True)
    assert (Bundle.open(bundle).path / GRAPH).read_bytes() == b"graph"
    assert names(tmp_path) == ["bundle"]


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from livemoments.staging import StagedFolder, stage_folder
rename = Path.rename
def dying(self, target):
    moved = rename(self, target)
    if Path(target).name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return moved
Path.rename = dying
destination = Path(sys.argv[1])
with stage_folder(destination) as folder:
    (folder / "new").touch()
    StagedFolder(destination, folder).publish()
"""


def test_a_kill_between_the_two_renames_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_REPLACING, str(bundle), "replaced"]
    assert subprocess.run(command, check=False).returncode == -9
    assert not bundle.exists()
    assert all(name.startswith(".bundle.") for name in names(tmp_path))
    with pytest.raises(OutputError, match="exists already"):  # back again, and not to be replaced unasked
        write_small_bundle(bundle)
    assert (Bundle.open(bundle).path / GRAPH).read_bytes() == b"graph"
    write_small_bundle(bundle, content=b"newer", overwrite=True)
    assert (Bundle.open(bundle).path / GRAPH).read_bytes() == b"newer"
    assert names(tmp_path) == ["bundle"]


def test_a_kill_while_the_old_one_is_deleted_brings_it_back_never(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_REPLACING, str(bundle), "deleted"]
    assert subprocess.run(command, check=False).returncode == -9
    assert names(bundle) == ["new"]
    shutil.rmtree(bundle)
    with staging.stage_folder(bundle) as folder:
        assert not bundle.exists()
        staging.StagedFolder(bundle, folder).publish()
    staging.restore_retired(bundle)
    assert names(bundle) == []
    assert names(tmp_path) == ["bundle"]


def test_an_old_bundle_that_cannot_be_put_back_stays_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retired = tmp_path / f".bundle.old-{dead_pid()}-x"
    write_small_bundle(retired / "replaced")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        staging.restore_retired(tmp_path / "bundle")
    Bundle.open(retired / "replaced")
    staging.restore_retired(tmp_path / "bundle")
    Bundle.open(tmp_path / "bundle")
    assert names(tmp_path) == ["bundle"]


def test_a_full_disk_while_flushing_leaves_the_old_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"the disk of .*bundle is full"):
        write_small_bundle(bundle, content=b"new", overwrite=True)
    assert (Bundle.open(bundle).path / GRAPH).read_bytes() == b"graph"
    assert names(tmp_path) == ["bundle"]

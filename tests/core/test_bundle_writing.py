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
from hidden_entries import being_written, left_behind

from livemoments.bundle import MANIFEST_NAME, Bundle, write_bundle
from livemoments.errors import OutputError, ResourceError
from livemoments.manifest import Manifest
from livemoments.store import folders
from livemoments.store.files import write_file


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def test_the_manifest_is_sorted_readable_json_written_last(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "bundle") as writer:
        (writer.folder / "flow").mkdir()
        (writer.folder / GRAPH).write_bytes(b"graph")
        (writer.folder / WEIGHTS).write_bytes(b"weights")
        assert not (tmp_path / "bundle").exists()
        assert names(writer.folder) == ["flow"]
        manifest = manifest_for(writer)
        writer.commit(manifest)
        assert "bundle" in names(tmp_path)
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
    left_behind(tmp_path / f".{odd}.partial-1234abcd")
    left_behind(tmp_path / ".other.partial-1234abcd")
    (tmp_path / f".{odd}.partial-orphan.lock").touch()
    with being_written(tmp_path / f".{odd}.partial-5678abcd"):
        write_small_bundle(tmp_path / odd)
        assert names(tmp_path) == sorted(
            [
                odd,
                *(f".{odd}.partial-5678abcd{end}" for end in ("", ".lock")),
                *(f".other.partial-1234abcd{end}" for end in ("", ".lock")),
            ]
        )


def test_what_an_older_version_left_goes_after_a_day(tmp_path: Path) -> None:
    old, young = (tmp_path / f".b.partial-{pid}-x" for pid in (4321, 1234))
    for path in (old, young):
        path.mkdir()
    os.utime(old, (0, 0))
    write_small_bundle(tmp_path / "b")
    assert names(tmp_path) == [".b.partial-1234-x", "b"]


def test_long_names_leave_room_for_the_hidden_ones(tmp_path: Path) -> None:
    first, second = "x" * 250 + "1", "x" * 250 + "2"
    for name in (first, second):
        write_small_bundle(tmp_path / name)
    write_small_bundle(tmp_path / first, content=b"new", overwrite=True)
    assert (Bundle.open(tmp_path / first).path / GRAPH).read_bytes() == b"new"
    assert names(tmp_path) == [first, second]


def test_a_bundle_that_appears_meanwhile_is_not_replaced_unasked(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with write_bundle(place) as writer:
        (writer.folder / "flow").mkdir()
        (writer.folder / GRAPH).write_bytes(b"mine")
        (writer.folder / WEIGHTS).write_bytes(b"weights")
        manifest = manifest_for(writer)
        shutil.copytree(bundle, place)
        with pytest.raises(OutputError, match="appeared while this was being written") as caught:
            writer.commit(manifest)
    assert "--overwrite" in (caught.value.fix or "")
    assert (Bundle.open(place).path / GRAPH).read_bytes() == b"graph"
    assert names(tmp_path) == ["bundle", "place"]


def test_what_is_no_bundle_and_appears_meanwhile_is_not_replaced_at_all(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with write_bundle(place, overwrite=True) as writer:
        (writer.folder / "flow").mkdir()
        (writer.folder / GRAPH).write_bytes(b"mine")
        (writer.folder / WEIGHTS).write_bytes(b"weights")
        manifest = manifest_for(writer)
        place.mkdir()
        (place / "letters").write_text("dear")
        with pytest.raises(OutputError, match="appeared while this was being written"):
            writer.commit(manifest)
    assert (place / "letters").read_text() == "dear"
    assert names(tmp_path) == ["place"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_is_honoured(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_small_bundle(tmp_path / "bundle")
        write_file(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes["bundle"] == 0o777 & ~mask
    assert {modes["bundle/manifest.json"], modes[f"bundle/{GRAPH}"], modes["file"]} == {0o666 & ~mask}


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
def test_what_is_replaced_keeps_its_mode(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "file", b"old")
    (tmp_path / "file").chmod(0o600)
    bundle.chmod(0o700)
    sync, modes = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda number: (modes.append(os.fstat(number).st_mode & 0o777), sync(number)))
    write_file(tmp_path / "file", b"new")
    assert modes == [0o600], "nobody else could read it while it was being written"
    write_small_bundle(bundle, content=b"new", overwrite=True)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert bundle.stat().st_mode & 0o777 == 0o700


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
from livemoments.store.folders import StagedFolder, stage_folder
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
    StagedFolder(destination, folder, overwrite=True).publish()
"""


def test_a_kill_between_the_two_renames_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_REPLACING, str(bundle), "bundle"]
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
    command = [sys.executable, "-c", KILLED_WHILE_REPLACING, str(bundle), ".deleted"]
    assert subprocess.run(command, check=False).returncode == -9
    assert names(bundle) == ["new"]
    shutil.rmtree(bundle)
    with folders.stage_folder(bundle) as folder:
        assert not bundle.exists()
        folders.StagedFolder(bundle, folder, overwrite=False).publish()
    folders.restore_retired(bundle)
    assert names(bundle) == []
    assert names(tmp_path) == ["bundle"]


def test_an_old_bundle_that_cannot_be_put_back_stays_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retired = tmp_path / ".bundle.old-1234abcd"
    write_small_bundle(retired / "bundle")
    (tmp_path / ".bundle.old-1234abcd.lock").touch()

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        folders.restore_retired(tmp_path / "bundle")
    Bundle.open(retired / "bundle")
    folders.restore_retired(tmp_path / "bundle")
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

"""Hidden files and folders: whose they are is said by locks, and by their age where a file system has none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bundle_folder import names, write_small_bundle
from hidden_entries import left_behind

from livemoments.bundle import write_bundle
from livemoments.store.claims import BusyError, claim, only_one
from livemoments.store.claims import left_behind as found_left_behind
from livemoments.store.files import write_file

PREFIX = ".b.partial-"


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file system is one that refuses locks, as some network mounts do."""
    fcntl = pytest.importorskip("fcntl", reason="no flock here")
    number = getattr(errno, request.param)

    def refuse(_descriptor: object, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_writing_works_and_leaves_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"new")
    for content in (b"old", b"new"):
        write_small_bundle(tmp_path / "bundle", content=content, overwrite=True)
    with only_one(tmp_path / "lock"):
        pass
    assert names(tmp_path) == ["bundle", "file"]


@pytest.mark.usefixtures("without_locks")
def test_without_locks_what_is_a_day_old_counts_as_left_behind(tmp_path: Path) -> None:
    young, old = left_behind(tmp_path / f"{PREFIX}young"), left_behind(tmp_path / f"{PREFIX}old")
    os.utime(f"{old}.lock", (0, 0))
    write_small_bundle(tmp_path / "b")
    assert names(tmp_path) == [young.name, f"{young.name}.lock", "b"]


@pytest.mark.usefixtures("without_locks")
def test_without_locks_what_is_left_on_purpose_is_found_at_once(tmp_path: Path) -> None:
    own = claim(tmp_path, PREFIX)
    own.path.mkdir()
    assert list(found_left_behind(tmp_path, PREFIX)) == []
    own.leave()
    assert [found.path for found in found_left_behind(tmp_path, PREFIX)] == [own.path]


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_young_mark_is_another_process_and_the_fix_names_it(tmp_path: Path) -> None:
    mark = tmp_path / "lock"
    mark.touch()
    with pytest.raises(BusyError) as caught, only_one(mark):
        pass
    assert str(mark) in caught.value.hint
    os.utime(mark, (0, 0))
    with only_one(mark), pytest.raises(BusyError), only_one(mark):
        pass
    assert names(tmp_path) == []


def test_a_lock_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="no flock here")

    def fail(_descriptor: object, _operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        claim(tmp_path, PREFIX)
    assert names(tmp_path) == []


def test_threads_of_one_process_count(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        (writer.folder / "half").touch()
        other = threading.Thread(target=write_small_bundle, args=(tmp_path / "b",))
        other.start()
        other.join()
        assert (writer.folder / "half").is_file()
    assert names(tmp_path) == ["b"]


LIKE_ANOTHER_CONTAINER = """
import os, sys
os.getpid = lambda: 1
from pathlib import Path
from livemoments.store.claims import claim
own = claim(Path(sys.argv[1]), sys.argv[2])
own.path.mkdir()
print(own.path.name, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_a_process_of_any_id_keeps_its_folder_until_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIKE_ANOTHER_CONTAINER, str(tmp_path), PREFIX]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        name = writer.stdout.readline().strip()
        write_small_bundle(tmp_path / "b")
        assert name in names(tmp_path)
    write_small_bundle(tmp_path / "b", overwrite=True)
    assert names(tmp_path) == ["b"]

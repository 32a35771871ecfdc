"""Paths that are no plain files of Unicode names, folders that may not be entered, disks without room."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundle_folder import GRAPH, write_small_bundle

from livemoments.bundle import Bundle, write_bundle
from livemoments.checkpoints import copy_trained_checkpoint, trained_checkpoint, trained_recording
from livemoments.cli import main
from livemoments.cli.output import write_json
from livemoments.errors import BundleError, CheckpointError, FileError, ImageError, OutputError, ResourceError
from livemoments.limits import load_limits
from livemoments.quantize.recipes import load_recipe
from livemoments.reference.layout import locate, read_inference_config
from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.upstream_layout import list_photos
from livemoments.simulated_clip import synthetic_photograph
from livemoments.store.files import read_file, write_file
from livemoments.store.journals import LineJournal
from livemoments.types import Size
from livemoments.validate.quality.aggregate import load_features, save_features
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.report.report_json import decode_report
from livemoments.validate.synlive.manifest import read_manifest

NO_UTF8 = "f\udcff"
"""What Python makes of the bytes ``f\\xff``."""
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names must be Unicode")
only_posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes and pipes")


# --- names that are no UTF-8


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (Bundle.open, BundleError),
        (locate, CheckpointError),
        (open_recording, FileError),
        (lambda path: write_bundle(path).__enter__(), OutputError),
    ],
    ids=["bundle", "checkpoint", "recording", "output"],
)
def test_a_folder_whose_name_is_no_utf8(read: Callable[[Path], object], kind: type[FileError]) -> None:
    with pytest.raises(kind, match="the path is no UTF-8"):
        read(Path("nowhere") / NO_UTF8)


@only_linux
@pytest.mark.parametrize("as_json", [False, True])
def test_such_a_name_in_what_is_printed(as_json: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "livemoments", "inspect", NO_UTF8, *(["--json"] if as_json else [])]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "f\\udcff: the path is no UTF-8" in done.stderr.decode("utf-8")
    if as_json:
        assert json.loads(done.stdout.decode("utf-8"))["error"]["path"] == "f\\xff"


def test_such_a_name_in_a_document(capfd: pytest.CaptureFixture[str]) -> None:
    write_json({"output": Path(NO_UTF8), NO_UTF8: [NO_UTF8, 1.5, None]})
    assert json.loads(capfd.readouterr().out) == {"output": "f\\xff", "f\\xff": ["f\\xff", 1.5, None]}


@only_linux
def test_a_picture_of_a_set_with_such_a_name(tmp_path: Path) -> None:
    for part in ("lr", "ref"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{NO_UTF8}.png").touch()
    with pytest.raises(ImageError, match=r"f\udcff\.png: the path is no UTF-8"):
        list_photos(tmp_path)


@only_linux
def test_a_source_of_a_set_with_such_a_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "photos" / "good.png", synthetic_photograph(Size(512, 512)))
    (tmp_path / "photos" / f"{NO_UTF8}.png").touch()
    command = [
        "synlive",
        "build",
        "--photos",
        str(tmp_path / "photos"),
        "-o",
        str(tmp_path / "set"),
        "-q",
        "--crop",
        "128",
    ]
    assert main(command) == 2
    assert "1 of 2 photographs cannot be used: f\\xff.png; f\\xff.png the path is no UTF-8" in capfd.readouterr().err
    assert main([*command, "--skip-unusable"]) == 0
    assert list(read_manifest(tmp_path / "set").unusable) == ["f\\xff.png"]


# --- pipes


@only_posix
@pytest.mark.parametrize(
    "read",
    [
        lambda path: load_limits("fp32", path),
        decode_report,
        load_recipe,
        read_inference_config,
        lambda path: read_manifest(path.parent),
        LineJournal,
    ],
    ids=["limits", "report", "recipe", "inference_config", "manifest", "journal"],
)
def test_a_pipe_is_refused_at_once(read: Callable[[Path], object], tmp_path: Path) -> None:
    pipe = tmp_path / "manifest.json"
    pipe = tmp_path / "recipe.toml" if read is load_recipe else pipe
    os.mkfifo(pipe)

    # whoever reads it gets something and an end, so that the test fails instead of waiting for ever
    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write_bytes(b"{}\n")

    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    try:
        with pytest.raises(FileError, match="a pipe or a device"):
            read(pipe)
    finally:
        end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a writer that comes only now does not wait either
        writer.join(5)
        os.close(end)


@only_posix
def test_a_pipe_is_no_output_and_a_device_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OutputError, match="is a pipe or a device"):
        write_file(tmp_path / "pipe.png", b"picture")
    assert (tmp_path / "pipe.png").is_fifo()
    with pytest.raises(OSError, match="a pipe or a device"):
        read_file(os.devnull)


# --- folders that may not be entered


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As if the folder were another user's; root may enter every real one."""
    stat = os.stat

    def refuse(path: str | os.PathLike[str], *args: object, **options: object) -> os.stat_result:
        if not isinstance(path, int) and Path(path).parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return stat(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)


def test_a_part_of_a_bundle_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    forbid(monkeypatch, (bundle / GRAPH).parent)
    with pytest.raises(BundleError, match=r"cannot be read \(permission denied\)") as caught:
        Bundle.open(bundle)
    assert caught.value.fix == "check the path and its permissions"


def test_a_part_of_a_recording_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "recording"
    shutil.copytree(trained_recording("small"), place)
    forbid(monkeypatch, place / "tensors" / "coffee")
    with pytest.raises(FileError, match=r"cannot be read \(permission denied\)"):
        open_recording(place)


# --- copies of the trained checkpoint


def test_a_full_disk_while_copying_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_source: Path, place: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ResourceError, match=r"^the disk of \S+ is full") as caught:
        copy_trained_checkpoint(tmp_path / "copy")
    assert caught.value.fix == "free some space, or choose another disk"
    assert list(tmp_path.iterdir()) == []


@only_posix
def test_a_copy_has_the_umasks_modes(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        copy = copy_trained_checkpoint(tmp_path / "copy")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (copy, *copy.rglob("*"))} == {0o700, 0o600}
    source = trained_checkpoint()
    assert {path.relative_to(copy) for path in copy.rglob("*")} == {
        path.relative_to(source) for path in source.rglob("*") if "__pycache__" not in path.parts
    }


# --- what is kept of a run


@only_posix
def test_an_images_features_have_the_umasks_mode_and_a_full_disk_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o022)
    try:
        save_features(tmp_path / "x.npz", {"a": np.zeros(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.npz").stat().st_mode & 0o777 == 0o644

    def full(_descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"the disk of .*x\.npz is full"):
        save_features(tmp_path / "x.npz", {"a": np.ones(3)})
    assert not load_features(tmp_path / "x.npz")["a"].any()

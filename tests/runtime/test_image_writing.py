"""Writing image files: whole or not at all; places that cannot be written; memory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from hidden_entries import being_written, left_behind
from image_files import noise

from livemoments.errors import OutputError, ResourceError, UsageError
from livemoments.runtime.image_files.photo import ensure_writable, write_image

MAX_READ_COPIES = 5.0  # peak memory of reading a 16-bit PNG, in sizes of its pixels


# ---- writing


@pytest.mark.parametrize("name", ["a.bmp", "a", "a.png.txt"])
def test_unknown_suffixes_list_the_known_ones(tmp_path, name) -> None:
    for work in (lambda: write_image(tmp_path / name, noise(1)), lambda: ensure_writable(tmp_path / name)):
        with pytest.raises(UsageError) as caught:
            work()
        assert all(suffix in (caught.value.fix or "") for suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (np.zeros((4, 4, 3), np.float32), {}),
        (np.zeros((4, 4), np.uint8), {}),
        (np.zeros((0, 4, 3), np.uint8), {}),
        (np.zeros((4, 4, 4), np.uint8), {}),
        (np.zeros((4, 4, 3), np.uint8), {"bit_depth": 16}),
        (np.zeros((4, 4, 3), np.uint8), {"bit_depth": 12}),
        (np.zeros((4, 4, 3), np.uint8), {"quality": 0}),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, pixels, options) -> None:
    with pytest.raises(UsageError):
        write_image(tmp_path / "a.jpg", pixels, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16384), (".jpg", 65501)])
def test_pictures_too_large_for_the_format(tmp_path, suffix, side) -> None:
    with pytest.raises(OutputError, match="larger than"):
        write_image(tmp_path / f"a{suffix}", np.zeros((1, side, 3), np.uint8))


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_write_leaves_nothing_new(tmp_path, monkeypatch, failure, exists) -> None:
    target = tmp_path / "a.png"
    if exists:
        target.write_bytes(b"older")

    def fail(_: int) -> None:
        assert any(".partial-" in p.name for p in tmp_path.iterdir()), "the data is under a temporary name"
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    expected = ResourceError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_image(target, noise(1))
    assert [p.name for p in tmp_path.iterdir()] == (["a.png"] if exists else [])
    assert not exists or target.read_bytes() == b"older"


def test_a_full_disk_is_an_output_error(tmp_path) -> None:
    code = (
        "import resource, sys, numpy as np\n"
        "from livemoments.errors import OutputError\n"
        "from livemoments.runtime.image_files.photo import write_image\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)\n"
        "try:\n    write_image(sys.argv[1], pixels)\n"
        "except OutputError as error:\n    sys.exit(str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "cannot be written (file too large)" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_an_output_error(tmp_path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from livemoments.errors import OutputError\n"
        "from livemoments.runtime.image_files.photo import ensure_writable, write_image\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)  # root may write anywhere: become nobody\n"
        "failures = 0\n"
        "for work in (ensure_writable, lambda path: write_image(path, np.zeros((9, 9, 3), np.uint8))):\n"
        "    try:\n        work(sys.argv[1])\n"
        "    except OutputError as error:\n        failures += 'permission denied' in error.message\n"
        "sys.exit(failures)\n"
    )
    tmp_path.chmod(0o555)
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    assert run.returncode == 2, run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "b[1].png"])
def test_a_killed_writers_leftovers_go_with_the_next_write(tmp_path, name) -> None:
    left_behind(tmp_path / f".{name}.partial-1234abcd", is_folder=False)
    with being_written(tmp_path / f".{name}.partial-5678abcd", is_folder=False):
        write_image(tmp_path / name, noise(1))
        running = {f".{name}.partial-5678abcd", f".{name}.partial-5678abcd.lock"}
        assert {p.name for p in tmp_path.iterdir()} == {name, *running}


def test_places_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png", tmp_path / ("x" * 300 + ".png")):
        for work in (lambda path=path: ensure_writable(path), lambda path=path: write_image(path, noise(1))):
            with pytest.raises(OutputError) as caught:
                work()
            assert caught.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_read_only_file_or_folder_is_not_replaced(tmp_path, monkeypatch) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"precious")
    target.chmod(stat.S_IRUSR)
    if os.geteuid() == 0:  # root may write everything: say what access() says to everyone else
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OutputError, match="read-only"):
        ensure_writable(target)
    with pytest.raises(OutputError, match="read-only"):
        write_image(target, noise(1))
    assert target.read_bytes() == b"precious"


def test_folders_are_made_links_followed_and_the_umask_kept(tmp_path) -> None:
    ensure_writable(tmp_path / "new" / "deep" / "a.png")
    assert list(tmp_path.iterdir()) == []
    write_image(tmp_path / "new" / "deep" / "a.png", noise(1))
    (tmp_path / "link.png").symlink_to(tmp_path / "new" / "a.png")
    write_image(tmp_path / "link.png", noise(1))
    assert (tmp_path / "link.png").is_symlink()
    (tmp_path / "plain").touch()
    written = tmp_path / "new" / "a.png"
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_import_is_light() -> None:
    code = (
        "import sys, livemoments.runtime.image_files.photo\n"
        "banned = {'torch', 'diffusers', 'onnx', 'onnxruntime', 'pillow_heif'} & set(sys.modules)\n"
        "sys.exit(str(banned) if banned else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_reading_holds_a_few_copies_at_most(tmp_path) -> None:
    side = 2000
    pixels = np.repeat(np.repeat(noise(1, side // 10, side // 10, np.uint16), 10, axis=0), 10, axis=1)
    write_image(tmp_path / "a.png", pixels)
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom livemoments.runtime.image_files.photo import read_photo\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "before = peak()\nphoto = read_photo(sys.argv[1])\nprint((peak() - before) / photo.pixels.nbytes)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert 1 <= float(run.stdout) < MAX_READ_COPIES

"""What the tests on a real checkpoint and bundle share: pictures of two tiles, changed copies, what a refusal is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from PIL import Image
from restore_images import shrunk, textured

from livemoments.bundle import MANIFEST_NAME
from livemoments.types import Size

PHOTO_SIZE = Size(height=128, width=192)  # two tiles of 128 pixels that overlap by 64
FRAME_SIZE = Size(height=64, width=96)
FRAME_SHIFT_PX = 2


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def save_pair(folder: Path, photo_size: Size = PHOTO_SIZE, frame_size: Size = FRAME_SIZE) -> tuple[Path, Path]:
    """A frame and a photo of one scene."""
    photo = textured(photo_size, 1)
    frame = shrunk(photo, frame_size, FRAME_SHIFT_PX)
    return save(folder / "frame.png", frame), save(folder / "photo.png", photo)


def copy_linked(source: Path, target: Path) -> Path:
    """A copy whose files are links to the originals: replace files in it, never write into them."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def replace(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = bundle / MANIFEST_NAME
    found = json.loads(file.read_bytes())
    change(found)
    replace(file, json.dumps(found).encode())


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_refused(result: Result, *words: str | Path) -> None:
    """Exit code 2; one error on stderr that names the thing and the fix; nothing on stdout."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines].count(True) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr
    assert any(line.startswith("  fix: ") for line in lines), result.stderr
    assert result.stdout == ""

"""Bad input to ``restore`` and ``export``, through the command line, on a real checkpoint and a real bundle.

Each is refused with exit code 2 and one error that names the thing, and leaves nothing behind. What signals do is in
``test_signals.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import run
from click.testing import Result
from real_runs import PHOTO_SIZE, assert_refused, copy_linked, edit_manifest, listing, replace, save_pair

from livemoments.runtime.image_files.photo import read_photo
from livemoments.types import Size


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save_pair(tmp_path)


def restore(bundle: Path, pair: tuple[Path, Path], *options: object, output: str = "new/out.png") -> Result:
    """``livemoments restore`` into a folder that does not exist yet; what is left behind shows beside the images."""
    frame, photo = pair
    return run(
        "restore", bundle, "--frame", frame, "--photo", photo, "-o", photo.parent / output, "--flow", "dis", *options
    )


def assert_restore_refused(bundle: Path, pair: tuple[Path, Path], *words: str | Path, options: tuple = ()) -> None:
    folder = pair[1].parent
    before = listing(folder)
    assert_refused(restore(bundle, pair, *options), *words)
    assert listing(folder) == before


# --- images


@pytest.mark.parametrize("which", ["frame", "photo", "photo-frame"])
def test_missing_image(tiny_bundle: Path, tmp_path: Path, pair: tuple[Path, Path], which: str) -> None:
    missing = tmp_path / "missing.png"
    frame, photo = (missing if which == name else path for name, path in zip(("frame", "photo"), pair, strict=True))
    before = listing(tmp_path)
    out = tmp_path / "out.png"
    result = run(
        "restore", tiny_bundle, "--frame", frame, "--photo", photo, "-o", out,
        *(["--photo-frame", missing] if which == "photo-frame" else []),
    )  # fmt: skip
    assert_refused(result, missing, "no such file")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("percent", [0, 50, 99])
def test_truncated_png(tiny_bundle: Path, pair: tuple[Path, Path], index: int, percent: int) -> None:
    data = pair[index].read_bytes()
    replace(pair[index], data[: len(data) * percent // 100])
    assert_restore_refused(tiny_bundle, pair, pair[index], "cut short" if percent else "is empty (0 bytes)")


def test_wrong_aspect_between_frame_and_photo(tiny_bundle: Path, tmp_path: Path) -> None:
    pair = save_pair(tmp_path, PHOTO_SIZE, Size(height=64, width=85))
    assert_restore_refused(tiny_bundle, pair, pair[0], "aspect", "85x64", "192x128")


def test_image_smaller_than_64_pixels(tiny_bundle: Path, tmp_path: Path) -> None:
    pair = save_pair(tmp_path, Size(128, 128), Size(63, 63))
    assert_restore_refused(tiny_bundle, pair, pair[0], "63x63", "at least 64")


def test_photo_smaller_than_a_tile(tiny_bundle: Path, tmp_path: Path) -> None:
    pair = save_pair(tmp_path, Size(height=96, width=120), Size(height=64, width=80))
    assert_restore_refused(tiny_bundle, pair, "120x96", "128x128", "--pad-small")
    padded = restore(tiny_bundle, pair, "--pad-small")
    assert padded.exit_code == 0, padded.output
    restored = read_photo(tmp_path / "new" / "out.png")
    assert restored.size == Size(height=96, width=120)
    assert restored.pixels.std() > 1


# --- bundles


def test_missing_bundle(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    assert_restore_refused(tmp_path / "none", pair, tmp_path / "none", "no such bundle")


def test_folder_of_an_interrupted_export(tmp_path: Path, pair: tuple[Path, Path], tiny_bundle: Path) -> None:
    copy_linked(tiny_bundle, tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert_restore_refused(tmp_path / "half", pair, tmp_path / "half", "not a bundle")


def _flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    ("change", "words"),
    [(_flip, "SHA-256"), (lambda data: data[:-1], "bytes long"), (None, "missing")],
    ids=["changed", "cut", "missing"],
)
@pytest.mark.parametrize("command", ["restore", "verify", "inspect"])
@pytest.mark.parametrize("pattern", ["motion/*.onnx", "restoration/weights.*"])
def test_corrupted_bundle_file(
    tiny_bundle: Path,
    tmp_path: Path,
    pair: tuple[Path, Path],
    pattern: str,
    command: str,
    change: Callable[[bytes], bytes] | None,
    words: str,
) -> None:
    bundle = copy_linked(tiny_bundle, tmp_path / "bundle")
    (victim,) = bundle.glob(pattern)
    if change is None:
        victim.unlink()
    else:
        replace(victim, change(victim.read_bytes()))
    if command == "restore":
        assert_restore_refused(bundle, pair, victim.name, words)
    elif command == "verify":
        assert_refused(run("verify", bundle), victim.name, words)
    elif change is not _flip:  # inspect compares sizes only
        assert_refused(run("inspect", bundle), victim.name, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema_version=2), ["schema version 2 is not known"]),
        (lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}), ["'../x'", "leaves"]),
        (lambda m: m["stages"]["flow"]["graphs"][0].update(path="../x"), ["'../x'", "leaves"]),
        (lambda m: m["stages"]["flow"]["graphs"][0].update(weights=["/etc/x"]), ["'/etc/x'", "leaves"]),
        (lambda m: m.update(tile="huge"), ["unknown field `tile`"]),
        (lambda m: m["stages"].pop("motion"), ["no stage 'motion'"]),
    ],
    ids=["schema", "file", "graph", "weights", "field", "stage"],
)
def test_changed_manifest(
    tiny_bundle: Path,
    tmp_path: Path,
    pair: tuple[Path, Path],
    change: Callable[[dict[str, Any]], None],
    words: list[str],
) -> None:
    bundle = copy_linked(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "x").write_bytes(b"x")
    edit_manifest(bundle, change)
    assert_restore_refused(bundle, pair, bundle, *words)


# --- checkpoints


def export(checkpoint: Path, output: Path, *options: object) -> Result:
    return run("export", checkpoint, "-o", output, "--tile", "256x256", "--overlap", 32, "--verify", "none", *options)


def assert_export_refused(checkpoint: Path, tmp_path: Path, *words: str | Path, options: tuple = ()) -> None:
    before = listing(tmp_path)
    assert_refused(export(checkpoint, tmp_path / "new" / "bundle", *options), *words)
    assert listing(tmp_path) == before


def test_missing_checkpoint(tmp_path: Path) -> None:
    assert_export_refused(tmp_path / "none", tmp_path, tmp_path / "none", "no such checkpoint")


@pytest.mark.parametrize(
    ("pattern", "stage", "words"),
    [
        ("**/raft*.pth", "flow", "is empty (0 bytes)"),
        ("**/vae/*.safetensors", "vae_encoder", "is empty (0 bytes)"),
        ("**/motion*.pt", "motion", "is empty (0 bytes)"),
        ("**/transformer/*.safetensors", "restoration", "is empty (0 bytes)"),
        ("**/transformer_ref/*.safetensors", "reference", "is empty (0 bytes)"),
        ("**/pooled_prompt_embeds.pt", "flow", "is empty (0 bytes)"),
        ("**/transformer/config.json", "flow", "JSON"),
        ("**/scheduler_config.json", "flow", "JSON"),
    ],
)
def test_zero_byte_checkpoint_file(tiny_checkpoint: Path, tmp_path: Path, pattern: str, stage: str, words: str) -> None:
    checkpoint = copy_linked(tiny_checkpoint, tmp_path / "checkpoint")
    victim = sorted(checkpoint.glob(pattern))[0]
    replace(victim, b"")
    assert_export_refused(checkpoint, tmp_path, victim.name, words, options=("--stages", stage))


def _change_weights(checkpoint: Path, pattern: str, change: Callable[[dict[str, Any]], None]) -> Path:
    import torch
    from safetensors.torch import load_file, save

    file = sorted(checkpoint.glob(pattern))[0]
    if file.suffix == ".safetensors":
        state = load_file(file)
        change(state)
        replace(file, save(state))
    else:
        state = {key: value.clone() for key, value in torch.load(file, weights_only=True).items()}
        change(state)
        file.unlink()
        torch.save(state, file)
    return file


WEIGHTS = [
    ("**/raft*.pth", "flow"),
    ("**/vae/*.safetensors", "vae_decoder"),
    ("**/motion*.pt", "motion"),
    ("**/transformer/*.safetensors", "restoration"),
    ("**/transformer_ref/*.safetensors", "reference"),
]


@pytest.mark.parametrize(("pattern", "stage"), WEIGHTS)
def test_extra_key(tiny_checkpoint: Path, tmp_path: Path, pattern: str, stage: str) -> None:
    import torch

    checkpoint = copy_linked(tiny_checkpoint, tmp_path / "checkpoint")
    file = _change_weights(checkpoint, pattern, lambda state: state.update(surplus=torch.zeros(3)))
    named = file.name if file.suffix != ".safetensors" else file.parent.name
    assert_export_refused(checkpoint, tmp_path, named, "1 unexpected: surplus", options=("--stages", stage))


@pytest.mark.parametrize(
    ("pattern", "stage", "value"),
    [
        *((*WEIGHTS[0], value) for value in (np.nan, np.inf)),
        # Traced before their weights are read: seconds each, and test_export_bundle.py has the function's own test
        *(pytest.param(*weights, np.nan, marks=pytest.mark.slow) for weights in WEIGHTS[1:]),
    ],
)
def test_weights_that_are_not_finite(
    tiny_checkpoint: Path, tmp_path: Path, pattern: str, stage: str, value: float
) -> None:
    names = []

    def spoil(state: dict[str, Any]) -> None:
        used = "decoder.conv_in.weight", "transformer_blocks.1.attn.to_k.weight", "blocks.0.0.weight"
        names.append(next((key for key in state if key in used), next(iter(state))))
        state[names[0]].view(-1)[1] = value

    checkpoint = copy_linked(tiny_checkpoint, tmp_path / "checkpoint")
    file = _change_weights(checkpoint, pattern, spoil)
    name = names[0].removeprefix("module.")
    assert_export_refused(checkpoint, tmp_path, file.name, "NaN or infinite", name, options=("--stages", stage))


# --- outputs


@pytest.mark.parametrize("output", ["photo.png/out.png", "folder.png", "out.bmp"])
def test_restored_photo_cannot_be_written(
    tiny_bundle: Path, tmp_path: Path, pair: tuple[Path, Path], output: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    before = listing(tmp_path)
    assert_refused(restore(tiny_bundle, pair, output=output), tmp_path / output)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("output", ["file/bundle", "file", "letters"])
def test_bundle_cannot_be_written(tiny_checkpoint: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").touch()
    before = listing(tmp_path)
    assert_refused(export(tiny_checkpoint, tmp_path / output, "--overwrite"), tmp_path / output.split("/")[0])
    assert listing(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, pair: tuple[Path, Path]) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert_refused(restore(tiny_bundle, pair, output="locked/out.png"), locked, "ermission denied")
    assert_refused(export(tiny_checkpoint, locked / "bundle"), locked, "ermission denied")
    assert list(locked.iterdir()) == []


def test_restoring_over_an_input(tiny_bundle: Path, tmp_path: Path, pair: tuple[Path, Path]) -> None:
    before = {path: path.read_bytes() for path in pair}
    for name in ("photo.png", "frame.png"):
        assert_refused(restore(tiny_bundle, pair, output=name), "it would be overwritten")
    assert {path: path.read_bytes() for path in pair} == before

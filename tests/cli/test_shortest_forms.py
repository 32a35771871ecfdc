"""The shortest form of every command does the sensible thing, and what one makes fits the next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import run
from live_photo_files import apple_movie, exif_block, photo_and_frames, still_bytes, write

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle, trained_checkpoint
from livemoments.cli import cli
from livemoments.runtime.image_files.photo import write_image
from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.recording.opening import open_recording

pytestmark = pytest.mark.slow


def done(*arguments: object, exit_code: int = 0) -> str:
    result = run(*arguments)
    assert result.exit_code == exit_code, result.output
    return result.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedded_set(tmp_path_factory.mktemp("photos"), size=Size(128, 128), count=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export") / "bundle"
    done("export", trained_checkpoint(), "-o", place)
    return place


def test_export_takes_the_checkpoints_own_tiles(bundle: Path) -> None:
    assert Bundle.open(bundle).tile_sizes == (Size(64, 64),)
    assert not Bundle.open(bundle).missing_stages


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_looking_at_a_bundle(command: str, bundle: Path) -> None:
    assert "restoration" in done(command, bundle)


def test_restore(bundle: Path, photos: Path, tmp_path: Path) -> None:
    frame, photo = (next((photos / part).iterdir()) for part in ("lr", "ref"))
    done("restore", bundle, "--frame", frame, "--photo", photo, "-o", tmp_path / "out.png")
    assert (tmp_path / "out.png").is_file()


def test_a_recording_fits_an_export_of_the_same_checkpoint(bundle: Path, photos: Path, tmp_path: Path) -> None:
    done("record", trained_checkpoint(), "--dataset", photos, "-o", tmp_path / "recording")
    assert open_recording(tmp_path / "recording").meta.settings.overlap == Bundle.open(bundle).manifest.overlap
    assert "all limits kept" in done("validate", bundle, "--recording", tmp_path / "recording", "--no-cost")


def test_validate_a_bundle_by_itself_and_with_its_checkpoint(bundle: Path) -> None:
    assert "self.second_run" in done("validate", bundle)
    assert "all limits kept" in done("validate", bundle, "--checkpoint", trained_checkpoint(), "--no-cost")


def test_validate_a_data_set(bundle: Path, photos: Path) -> None:
    assert "PSNR" in done("validate", bundle, "--dataset", photos, "--no-cost")


@pytest.mark.parametrize("recipe", ["fp16", "int8-dynamic", "int8-weights", "int4-weights"])
def test_quantize(recipe: str, bundle: Path, tmp_path: Path) -> None:
    # whether it is faster is the machine's to say
    done("quantize", bundle, "--recipe", recipe, "-o", tmp_path / "made", "--allow-slower")
    assert Bundle.open(tmp_path / "made").manifest.recipe == recipe


def test_sensitivity(bundle: Path, photos: Path, tmp_path: Path) -> None:
    done("sensitivity", bundle, "--recipe", "int8-dynamic", "--calibration", photos, "-o", tmp_path / "made")
    assert json.loads((tmp_path / "made" / "sensitivity.json").read_text())["layers"]


def test_make_checkpoint(tmp_path: Path) -> None:
    done("make-checkpoint", tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "inference_config.yml").is_file()


def test_synlive_build_and_check(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.jpg", synthetic_photograph(Size(1200, 1300)))
    done("synlive", "build", "--photos", tmp_path / "photos", "-o", tmp_path / "set")
    done("synlive", "check", tmp_path / "set")


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done("demo")
    assert (tmp_path / "demo-output" / "comparison.png").is_file()


def test_frames_of_a_plain_photo_and_its_video(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(3, 5, photo_size=Size(504, 672), video_size=Size(252, 336))
    identifier = "A" * 36
    write(tmp_path / "a.jpg", still_bytes(photo, exif=exif_block(identifier=identifier)))
    write(tmp_path / "a.mov", apple_movie(frames, identifier))
    assert "5 frames" in done("frames", tmp_path / "a.jpg")


def test_devices_and_plan(bundle: Path) -> None:
    assert "cpu-avx2" in done("devices")
    assert "fits" in done("plan", bundle, "--photo", "256x192")


def test_check_and_build(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed (make rtx)")
    own = tmp_path / "bundle"
    shutil.copytree(trained_bundle(), own)
    assert "every graph can be taken" in done("check", own, "--target", "rtx")
    assert "engines built" in done("build", own, "--engine", "rtx")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "livemoments" in done("completion", shell)


def test_no_command_is_left_out() -> None:
    tried = Path(__file__).read_text("utf-8")
    elsewhere = ["fetch", "make-prompt"]  # tests/weights: they need a hub, and text encoders
    tried += "".join(f'"{name}"' for name in elsewhere)
    assert [name for name in cli.commands if f'"{name}"' not in tried] == []

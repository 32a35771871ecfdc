"""Restoring when something is wrong, and what it costs: errors, interrupts, memory, engines left open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from PIL import Image
from restore_images import FRAME, KEY_FRAME, PHOTO, shrunk, textured

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, EngineError, ImageError, OutputError, ResourceError, UsageError
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.noise import TileNoise
from livemoments.types import Size, Stage, Tile
from livemoments.validate.cost.fresh_process import measure_process

RESTORE_MEMORY_LIMIT_BYTES = 1_500_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("restore") / "bundle")


# --- trouble


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch of 0"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 7}, "export with --steps 7"),
        ({"seed": -1}, "negative"),
        ({"compat": "downstream"}, "downstream"),
        ({"compat": "upstream", "bit_depth": 16}, "8 bits"),
        ({"bit_depth": 10}, "10 bits"),
        ({"bit_depth": 16, "output": "out.jpg"}, "no 16-bit"),
        ({"quality": 0}, "0 is no quality"),
        ({"reference": "sometimes"}, "sometimes"),
        ({"reference": "frozen@6"}, "frozen@6"),
        ({"flow": "guess"}, "guess"),
        ({"tile_plan": "random"}, "random"),
        ({"kv_store": "tape", "reference": "phase-split"}, "tape"),
        ({"kv_dtype": "int3", "reference": "phase-split"}, "int3"),
        ({"kv_budget_bytes": 0}, "0 bytes"),
        ({"provider": "abacus"}, "abacus"),
        ({"threads": 0}, "0 threads"),
        ({"output": "out.bmp"}, r"\.bmp"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path) -> None:
    if "output" in options:
        options = {**options, "output": tmp_path / options["output"]}
    with pytest.raises(UsageError, match=message):
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, **options)


def test_images_that_do_not_fit_are_refused_before_any_engine_opens(bundle: Bundle, tmp_path: Path) -> None:
    log = LoggingBackend()
    with pytest.raises(ImageError, match="no such file"):
        restore_photo(bundle, tmp_path / "none.png", PHOTO, backend=log)
    with pytest.raises(ImageError, match="aspect"):
        restore_photo(bundle, Photo(FRAME.pixels[:, :80]), PHOTO, backend=log)
    with pytest.raises(ImageError, match="64"):
        restore_photo(bundle, Photo(shrunk(PHOTO.pixels, Size(40, 52))), PHOTO, backend=log)
    with pytest.raises(ImageError, match="frame"):
        restore_photo(bundle, FRAME, PHOTO, Photo(shrunk(PHOTO.pixels, Size(81, 104))), backend=log)
    assert log.events == []


def test_an_output_that_cannot_be_written_is_found_before_the_work(bundle: Bundle, tmp_path: Path) -> None:
    log = LoggingBackend()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        restore_photo(bundle, FRAME, PHOTO, output=tmp_path / "file" / "out.png", backend=log)
    assert log.events == []


def test_no_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        restore_photo(tmp_path / "none", FRAME, PHOTO)


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("policy", ["per-step", "phase-split"])
def test_an_interrupt_anywhere_leaves_nothing_behind(
    stage: Stage, policy: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(running: Stage, number: int) -> None:
        if running is stage and number == 1:
            raise KeyboardInterrupt

    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    log = LoggingBackend(interrupt)
    with pytest.raises(KeyboardInterrupt):
        restore_photo(
            bundle, FRAME, PHOTO, output=out / "out.png", backend=log, reference=policy, kv_store="disk", batch=2
        )
    assert list(scratch.iterdir()) == []
    assert not out.exists() or list(out.iterdir()) == []
    assert log.open_now == set()


def test_an_old_output_survives_a_failed_run(bundle: Bundle, tmp_path: Path) -> None:
    def fail(stage: Stage, number: int) -> None:
        if stage is Stage.VAE_DECODER:
            raise EngineError("broken")

    output = tmp_path / "out.png"
    output.write_bytes(b"precious")
    with pytest.raises(EngineError, match="broken"):
        restore_photo(bundle, FRAME, PHOTO, output=output, backend=LoggingBackend(fail))
    assert output.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [output]


def test_keys_and_values_beyond_the_budget(bundle: Bundle) -> None:
    with pytest.raises(ResourceError, match="--kv-store disk"):
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, reference="phase-split", kv_budget_bytes=1000)


def test_an_engine_that_overflows_names_its_stage(tmp_path: Path) -> None:
    half = make_fake_bundle(tmp_path / "half", dtype="float16")

    class Loud:
        def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
            return TileNoise(*(np.full((3, *latent_shape), 60000, np.float32)))

    with pytest.raises(EngineError, match="NaN or infinity"):
        restore_photo(half, FRAME, PHOTO, KEY_FRAME, noise=Loud())


# --- resources


def test_engines_are_closed_when_nothing_needs_them(bundle: Bundle) -> None:
    log = LoggingBackend()
    restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, backend=log)
    order = [event[:2] for event in log.events]
    last_restoration = max(i for i, e in enumerate(order) if e == ("run", Stage.RESTORATION))
    assert order.index(("close", Stage.FLOW)) < last_restoration
    assert order.index(("close", Stage.VAE_ENCODER)) < last_restoration
    assert order.index(("close", Stage.RESTORATION)) < len(order) - 1 - order[::-1].index(("run", Stage.VAE_DECODER))
    assert log.open_now == set()
    assert [what for what, _ in order].count("open") == len(Stage)


def test_restoring_loads_neither_torch_nor_onnx(bundle: Bundle, tmp_path: Path) -> None:
    for name, photo in (("photo", PHOTO), ("frame", FRAME)):
        Image.fromarray(photo.pixels).save(tmp_path / f"{name}.png")
    code = (
        "import sys; from livemoments.runtime import restore; b, f, p, o = sys.argv[1:]; restore(b, f, p, output=o);"
        "print([m for m in ('torch', 'onnx', 'diffusers') if m in sys.modules])"
    )
    arguments = [str(bundle.path), str(tmp_path / "frame.png"), str(tmp_path / "photo.png"), str(tmp_path / "o.png")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "o.png").is_file()


@pytest.mark.slow
def test_a_12_megapixel_photo_needs_little_memory_beside_the_engines(tmp_path: Path) -> None:
    tile = Size(1072, 1072)
    make_fake_bundle(tmp_path / "bundle", tiles=(tile,), overlap=64, step_counts=(1,))
    photo = textured(Size(3072, 4096), 1)
    Image.fromarray(photo).save(tmp_path / "photo.png", compress_level=1)
    Image.fromarray(shrunk(photo, Size(1080, 1440))).save(tmp_path / "frame.png")
    code = (
        "import sys; import livemoments.runtime as r; b, f, p, o = sys.argv[1:];"
        "r.restore(b, f, p, output=o, steps=1, flow='dis', threads=2)"
    )
    arguments = [str(tmp_path / name) for name in ("bundle", "frame.png", "photo.png", "out.png")]
    cost = measure_process([sys.executable, "-c", code, *arguments])
    assert cost.returncode == 0, cost.stderr
    assert cost.peak_rss_bytes < RESTORE_MEMORY_LIMIT_BYTES  # with the interpreter and the tiny engines

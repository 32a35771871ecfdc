"""From a budget to a bundle: the photos that the loss is measured on, and what becomes of a bundle that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from calibration_photos import PHOTO as SIZE
from calibration_photos import VIDEO
from restore_images import shrunk, textured

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db
from livemoments.errors import CheckFailedError, ImageError, OutputError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.live_photo import LivePhoto
from livemoments.quantize.actions import Action
from livemoments.quantize.options import QuantizeOptions
from livemoments.quantize.pipeline import quantize, quantize_bundle
from livemoments.quantize.recipes import Recipe, load_recipe
from livemoments.quantize.search import find_mix
from livemoments.quantize.search.budget import Budget
from livemoments.quantize.search.find_mix import check_budget, score_mix
from livemoments.quantize.search.layer_cost import layer_cost
from livemoments.quantize.search.photo_loss import open_photo_loss
from livemoments.quantize.search.sensitivity import SensitivityOptions, quantizable
from livemoments.quantize.search.sensitivity_report import LayerSensitivity
from livemoments.quantize.search.trial_photos import pixels_sha256, read_trial_photos
from livemoments.runtime.image_files.photo import Photo, write_image
from livemoments.types import Size

PHOTO = Photo(textured(SIZE, 1))
KEY_FRAME, FRAME = (Photo(shrunk(PHOTO.pixels, VIDEO, shift_px=shift)) for shift in (0, 2))
PHOTOS = [LivePhoto(FRAME, PHOTO, KEY_FRAME)]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, verify_hashes=False)


def only(bundle: Bundle, block: int, kinds: tuple[str, ...]) -> Recipe:
    """int4-weights for a few layers, so that measuring them is quick."""
    shipped = load_recipe("int4-weights")
    linears = [one for _, found in quantizable(bundle, shipped, bundle.tile_sizes[0]) for one in found]
    kept = {one.id.weight for one in linears if one.block != block or one.kind not in kinds}
    return msgspec.structs.replace(shipped, keep=tuple(sorted(kept)))


def write_larger_photos(folder: Path, names: str) -> Path:
    """Photos of which clips can be simulated."""
    for part, size in (("ref", Size(160, 208)), ("lr", Size(80, 104)), ("ref_lr", Size(80, 104))):
        for number, name in enumerate(names):
            write_image(folder / part / f"{name}.png", textured(size, number))
    return folder


def test_photos_of_a_folder_and_clips_simulated_from_them(tmp_path: Path) -> None:
    folder = write_larger_photos(tmp_path, "abc")
    real = read_trial_photos(folder, 2)
    assert [photo.truth for photo in real] == [None, None]
    assert all(photo.photo_frame is not None and photo.photo.size == Size(160, 208) for photo in real)
    simulated = read_trial_photos(folder, 2, with_truth=True)
    for photo, again in zip(simulated, read_trial_photos(folder, 2, with_truth=True), strict=True):
        assert pixels_sha256(photo) == pixels_sha256(again)
        assert photo.truth is not None
        assert photo.truth.size == photo.photo.size
        # the truth is the reselected instant: another view than the key photo
        assert psnr_db(photo.truth.pixels, photo.photo.pixels, peak=255) < 45
    assert pixels_sha256(simulated[0]) != pixels_sha256(simulated[1])
    with pytest.raises(UsageError):
        read_trial_photos(folder, 0)
    with pytest.raises(ImageError):
        read_trial_photos(tmp_path / "nowhere", 1)


@pytest.mark.slow
def test_the_source_itself_spends_nothing(bundle: Bundle) -> None:
    assert check_budget(bundle, bundle, PHOTOS, Budget(90)) == np.inf
    with pytest.raises(UsageError, match="perfect restoration"):
        check_budget(bundle, bundle, PHOTOS, Budget(0.1, of_quality=True))


@pytest.mark.parametrize("stage", ["reference", "restoration"])
def test_costs_are_bytes_as_stored_and_time_by_tokens(bundle: Bundle, stage: str) -> None:
    recipe, size = load_recipe("int4-weights"), Size(128, 128)

    def layer(kind: str) -> LayerSensitivity:
        return LayerSensitivity(LinearId(stage, kind), 0, kind, 128, 512, Action.KEEP, (), 0.0)

    def cost(kind: str, action: Action, goal: Any) -> float:
        return layer_cost(layer(kind), action, goal, bundle, size, recipe)

    assert cost("ff.net.0.proj", Action.KEEP, "size") == 4 * 128 * 512
    blocks = 128 // recipe.block_size * 512
    assert cost("ff.net.0.proj", Action.WEIGHT_INT4, "size") == 128 * 512 / 2 + blocks * (4 + 0.5)
    assert cost("ff.net.0.proj", Action.INT8_STATIC, "size") == 128 * 512 + 4 * 512
    tokens = bundle.manifest.model.text_tokens
    ratio = cost("ff.net.0.proj", Action.KEEP, "speed") / cost("ff_context.net.0.proj", Action.KEEP, "speed")
    assert ratio == pytest.approx(8 * 8 / tokens)
    assert cost("attn.to_q", Action.INT8_STATIC, "speed") < cost("attn.to_q", Action.KEEP, "speed")


@pytest.mark.slow
def test_budget_to_bundle_and_back(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_larger_photos(tmp_path / "photos", "a")
    recipe = only(bundle, 1, ("attn.to_v", "attn.to_out.0"))
    options: dict[str, Any] = {
        "recipe": recipe,
        "calibration": folder,
        "photos": 1,
        "work": tmp_path / "work",
        "allow_slower": True,
    }
    done = quantize(bundle, tmp_path / "one", budget="0.5dB-of-quality", **options)
    assert done.bundle.manifest.recipe == recipe.name
    assert done.search is not None
    assert done.search.measured_db <= 0.5
    simulated = read_trial_photos(folder, 1, with_truth=True)
    spent = check_budget(bundle, done.bundle, simulated, Budget(0.5, of_quality=True))
    assert spent == pytest.approx(done.search.measured_db, abs=0.01)
    quantize(bundle, tmp_path / "two", budget="0.5dB-of-quality", **options)
    files = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file()}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)

    with pytest.raises(OutputError, match="exists already"):
        quantize(bundle, tmp_path / "one", budget="40dB", **options)
    with pytest.raises(UsageError, match="not a budget"):
        quantize(bundle, tmp_path / "three", budget="40", **options)

    def broken(*_args: object, **_kwargs: object) -> float:
        raise CheckFailedError("measured 3 dB")

    monkeypatch.setattr(find_mix, "check_budget", broken)
    with pytest.raises(CheckFailedError, match="3 dB"):
        quantize(bundle, tmp_path / "three", budget="40dB", **options)
    assert not (tmp_path / "three").exists()
    with pytest.raises(CheckFailedError, match="3 dB"):
        quantize(bundle, tmp_path / "one", budget="40dB", overwrite=True, **options)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_options_that_cannot_be_used_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed -1 is negative"):
        QuantizeOptions("int8", seed=-1)
    with pytest.raises(UsageError, match="not a budget"):
        QuantizeOptions("int8", "photos", budget="40")
    with pytest.raises(UsageError, match="its photos") as caught:
        QuantizeOptions("int4-weights", budget="40dB")
    assert "--calibration DIR" in (caught.value.fix or "")
    with pytest.raises(TypeError, match="not both"):
        quantize(tiny_bundle, tmp_path / "out", QuantizeOptions("fp16"), seed=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_changed_bundle_is_scored_like_its_graphs_in_memory(bundle: Bundle, tmp_path: Path) -> None:
    from livemoments.graphs.linears import find_linears
    from livemoments.quantize.search.in_memory_engine import load_graph
    from livemoments.runtime.backends.ort import OrtBackend
    from livemoments.types import Stage

    recipe = load_recipe("int8-weights")
    model = load_graph(bundle, Stage.RESTORATION, bundle.tile_sizes[0])
    mix = {one.id: Action.WEIGHT_INT8 for one in find_linears(model, "restoration") if one.block == 2}
    made = quantize_bundle(bundle, tmp_path / "made", recipe=recipe, mix=mix, verify=False)
    with open_photo_loss(bundle, PHOTOS) as loss:
        written = loss.score_bundle(made, OrtBackend())
        in_memory = score_mix(loss, mix, SensitivityOptions(recipe).rewrite)
    assert written.mse > 0
    assert written.mse == pytest.approx(in_memory.mse, rel=1e-3)
    assert check_budget(bundle, made, PHOTOS, Budget(30)) == pytest.approx(written.psnr_db)
    with pytest.raises(CheckFailedError, match="breaks the budget of 150dB"):
        check_budget(bundle, made, PHOTOS, Budget(150))

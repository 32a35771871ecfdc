"""Checkpoints without RAFT: said so or refused, DIS in its place on both sides, bundles without a stage ``flow``."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from cli_support import run
from fake_bundle import make_fake_bundle
from recording_support import write_set
from restore_images import FRAME, KEY_FRAME, PHOTO, SIZE, textured
from safetensors.torch import save_file

from livemoments.bundle import MANIFEST_NAME, Bundle, open_bundle
from livemoments.errors import BundleError, CheckpointError, UsageError
from livemoments.limits import load_limits
from livemoments.manifest import Model
from livemoments.progress import Task
from livemoments.reference.checkpoint import load_flow, load_reference
from livemoments.reference.checkpoint_sizes import SMALL, CheckpointSizes
from livemoments.reference.flow import Dis, estimate_flow
from livemoments.reference.layout import CONFIG_NAME, locate
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.runtime import restore as restore_photo
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.flow import DisFlow
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size, Stage, Tile, whole_bundle
from livemoments.validate.ladder.all_points import check_source
from livemoments.validate.ladder.recorded_conditions import check_fits
from livemoments.validate.ladder.selfcheck import self_checks
from livemoments.validate.options import ValidateOptions
from livemoments.validate.recording.pipeline import record

MICRO = CheckpointSizes(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    prompt_tokens=3,
    joint_attention_dim=16,
    pooled_projection_dim=16,
    sample_size=32,
    pos_embed_max_size=16,
    motion_widths=(8, 16, 32),
    motion_depth=1,
    vae_channels=(8, 8, 8),
    vae_layers_per_block=1,
    vae_norm_groups=4,
    latent_channels=4,
    vae_mid_attention=False,
    flow="dis",
)
"""A VAE of f4, so that a token is 8 pixels wide; and one motion embedding."""
OTHERS = ("motion_encoder.pt", "prompt_embeds.pt", "pooled_prompt_embeds.pt")


class Diary:
    """A reporter, and its one task, that writes down the total and the notes."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.notes: list[str | None] = []

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        self.total = total
        yield self

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.notes.append(note)


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("micro") / "checkpoint", size=MICRO, seed=1)


@pytest.fixture
def checkpoint(micro: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(micro, tmp_path / "copy"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("dis") / "bundle", flow="dis")


def say(checkpoint: Path, flow: str | None) -> None:
    """Rewrite what the configuration says of the flow."""
    config = checkpoint / CONFIG_NAME
    lines = [line for line in config.read_text().splitlines() if not line.startswith("flow:")]
    config.write_text("\n".join([*lines, *([] if flow is None else [f"flow: {flow}"])]) + "\n")


# --- the layout


def test_a_random_checkpoint_without_raft_says_so(micro: Path) -> None:
    assert not list(micro.rglob("*raft*"))
    assert "flow: dis" in (micro / CONFIG_NAME).read_text().splitlines()
    for files in (locate(micro), locate(micro / CONFIG_NAME)):
        assert (files.raft, files.flow) == (None, "dis")
        assert {name.split("/")[0] for name, _ in files.walk()} == set(MICRO.components)


@pytest.mark.parametrize("at", ["", CONFIG_NAME], ids=["folder", "config"])
def test_without_the_word_a_missing_raft_stays_an_error(checkpoint: Path, at: str) -> None:
    say(checkpoint, None)
    with pytest.raises(CheckpointError, match="raft"):
        locate(checkpoint / at)
    say(checkpoint, "raft")
    with pytest.raises(CheckpointError, match="raft"):
        locate(checkpoint / at)
    (checkpoint / CONFIG_NAME).unlink()
    with pytest.raises(CheckpointError, match="found no raft"):
        locate(checkpoint)


@pytest.mark.parametrize("flow", ["DIS", "farneback", "", "[dis]"])
@pytest.mark.parametrize("at", ["", CONFIG_NAME], ids=["folder", "config"])
def test_an_unknown_flow_is_refused_and_the_known_named(checkpoint: Path, at: str, flow: str) -> None:
    say(checkpoint, flow)
    with pytest.raises(CheckpointError, match="flow: ") as caught:
        locate(checkpoint / at)
    assert caught.value.fix == "use raft or dis"


def test_dis_wins_over_a_raft_that_lies_beside(checkpoint: Path) -> None:
    (checkpoint / "raft-sintel.pth").write_bytes(b"")
    (checkpoint / "raft-things.pth").write_bytes(b"")  # two would be ambiguous
    assert locate(checkpoint).raft is None
    assert isinstance(load_reference(checkpoint).flow, Dis)


def test_a_checkpoint_with_raft_may_be_told_to_use_dis(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    assert locate(copy).flow == "raft"
    say(copy, "dis")
    assert locate(copy).flow == locate(copy / CONFIG_NAME).flow == "dis"


def test_a_random_checkpoint_cannot_be_of_a_part_that_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no raft"):
        make_checkpoint(tmp_path / "x", size=MICRO, only={"raft"})
    with pytest.raises(UsageError, match="'farneback' estimates no flow"):
        make_checkpoint(tmp_path / "x", size=replace(MICRO, flow="farneback"))  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


# --- safetensors


def to_safetensors(checkpoint: Path) -> None:
    """The small pickles as safetensors, the pickles gone."""
    for name in OTHERS:
        path = checkpoint / name
        found = torch.load(path, weights_only=True)
        save_file(found if isinstance(found, dict) else {"embeds": found}, path.with_suffix(".safetensors"))
        path.unlink()
    config = checkpoint / CONFIG_NAME
    config.write_text(config.read_text().replace(".pt\n", ".safetensors\n"))


@pytest.mark.parametrize("at", ["", CONFIG_NAME], ids=["folder", "config"])
def test_the_small_parts_may_be_safetensors(micro: Path, checkpoint: Path, at: str) -> None:
    to_safetensors(checkpoint)
    found, pickled = load_reference(checkpoint / at), load_reference(micro)
    assert {path.suffix for _, path in found.files.walk()} == {".safetensors", ".json"}
    for name, value in pickled.motion_encoder.state_dict().items():
        assert torch.equal(found.motion_encoder.state_dict()[name], value)
    assert torch.equal(found.prompt.tokens, pickled.prompt.tokens)
    assert torch.equal(found.prompt.pooled, pickled.prompt.pooled)


@pytest.mark.parametrize("name", OTHERS)
def test_a_part_that_is_there_twice_is_ambiguous(checkpoint: Path, name: str) -> None:
    pickle = (checkpoint / name).read_bytes()
    to_safetensors(checkpoint)
    (checkpoint / name).write_bytes(pickle)
    part = name.removesuffix(".pt")
    with pytest.raises(CheckpointError, match=rf"several files could be the {part}: {part}\.pt, {part}\.safetensors"):
        locate(checkpoint)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("keep", [0, 0.5], ids=["zero bytes", "truncated"])
def test_damaged_safetensors_are_named(checkpoint: Path, name: str, keep: float) -> None:
    to_safetensors(checkpoint)
    path = (checkpoint / name).with_suffix(".safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=path.name) as caught:
        load_reference(checkpoint)
    assert caught.value.fix


def test_safetensors_that_hold_something_else_are_refused(checkpoint: Path) -> None:
    to_safetensors(checkpoint)
    prompt = checkpoint / "prompt_embeds.safetensors"
    whole = prompt.read_bytes()
    save_file({"a": torch.zeros(1, 3, 16), "b": torch.zeros(1)}, prompt)
    with pytest.raises(CheckpointError, match="holds 2 tensors, should be one"):
        load_reference(checkpoint)
    save_file({"a": torch.full((1, 3, 16), torch.nan)}, prompt)
    with pytest.raises(CheckpointError, match="NaN or infinite weights in a"):
        load_reference(checkpoint)
    prompt.write_bytes(whole)
    save_file({"blocks.0.0.weight": torch.zeros(8, 2, 3, 3)}, checkpoint / "motion_encoder.safetensors")
    with pytest.raises(CheckpointError, match=r"motion_encoder\.safetensors"):
        load_reference(checkpoint)


# --- the reference


def test_the_reference_and_the_runtime_have_the_same_flow() -> None:
    images = np.stack([textured(SIZE, 1), textured(SIZE, 2)]).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    moved = np.roll(images, (2, 3), axis=(2, 3))
    found = estimate_flow(Dis(), torch.from_numpy(images), torch.from_numpy(moved))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), DisFlow()(images, moved))
    assert np.median(found[0, 0]) == pytest.approx(3, abs=0.2)
    small = torch.from_numpy(images[:, :, :32, :32])  # RAFT would need 64 px
    assert estimate_flow(Dis(), small, small).shape == (2, 2, 32, 32)
    with pytest.raises(UsageError, match="two images of one shape"):
        estimate_flow(Dis(), torch.from_numpy(images), small)


def test_loading_reports_the_parts_that_there_are(micro: Path) -> None:
    diary = Diary()
    reference = load_reference(micro, progress=diary)
    assert (diary.total, diary.notes) == (4, ["RestorationNet", "ReferenceNet", "VAE", "motion encoder"])
    assert isinstance(reference.flow, Dis)
    with pytest.raises(CheckpointError, match="has no RAFT"):
        load_flow(reference.files, torch.device("cpu"))


def test_a_recording_says_that_dis_estimated_the_flow(micro: Path, tmp_path: Path, bundle: Bundle) -> None:
    photos = write_set(tmp_path / "set")
    options = {"overlap": 8, "steps": 1, "seed": 1}
    found = record(micro, photos, tmp_path / "out", tile=Size(128, 128), detail="modules", **options)  # type: ignore[arg-type]
    assert found.meta.model is not None
    assert found.meta.model.flow == "dis"
    names = found.names("a")
    assert {"photo.flow_lr", "tile0.flow"} <= set(names)
    assert any(name.startswith("tile0.motion.module.") for name in names)
    assert not any(name.startswith("tile0.flow.module.") for name in names)

    raft = make_fake_bundle(tmp_path / "raft")
    manifest = msgspec.structs.replace(raft.manifest, source=found.meta.source)
    with pytest.raises(BundleError, match="exported with flow: raft, the recording was made with dis"):
        check_fits(Bundle(raft.path, manifest), found)
    with pytest.raises(BundleError, match="exported with flow: raft, this checkpoint says dis"):
        check_source(Bundle(raft.path, manifest), locate(micro))
    check_source(Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, source=found.meta.source)), locate(micro))


@pytest.mark.parametrize("tile", [Size(132, 128), Size(136, 136)])
def test_recorded_tiles_are_whole_tokens_of_the_position_table(micro: Path, tmp_path: Path, tile: Size) -> None:
    with pytest.raises(UsageError, match="not possible with this checkpoint") as caught:
        record(micro, write_set(tmp_path / "set"), tmp_path / "out", tile=tile)
    assert caught.value.fix == "use multiples of 8 up to 128"
    assert not list(tmp_path.glob("*out*"))


# --- the bundle


def test_a_stage_that_does_not_exist_cannot_be_exported(micro: Path, tmp_path: Path) -> None:
    result = run("export", micro, "-o", tmp_path / "out", "--tile", "128", "--stages", "flow,motion")
    assert result.exit_code == 2
    assert "has no RAFT (flow: dis), and so no stage 'flow' to export" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_manifest_tells_what_is_missing_by_design_from_what_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    raft = make_fake_bundle(tmp_path / "raft")
    part = make_fake_bundle(tmp_path / "part", omit=[Stage.FLOW])
    assert json.loads((bundle.path / MANIFEST_NAME).read_text())["model"]["flow"] == "dis"
    assert "flow" not in json.loads((raft.path / MANIFEST_NAME).read_text())["model"]  # as before there was a choice
    assert whole_bundle("dis") == bundle.manifest.model.stages == tuple(Stage)[1:]
    assert (bundle.missing_stages, raft.missing_stages, part.missing_stages) == ((), (), (Stage.FLOW,))
    with pytest.raises(BundleError, match="has no stage 'flow'") as caught:
        bundle.stage(Stage.FLOW)
    assert "its checkpoint has no RAFT" in str(caught.value.fix)
    with pytest.raises(BundleError) as caught:
        part.stage(Stage.FLOW)
    assert caught.value.fix == "export again, without --stages, or say --flow dis"


@pytest.mark.parametrize("flow", ["dis", "farneback"])
def test_a_manifest_that_contradicts_itself_is_malformed(tmp_path: Path, flow: str) -> None:
    path = make_fake_bundle(tmp_path / "bundle").path / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["model"]["flow"] = flow  # and a stage 'flow'
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="malformed"):
        open_bundle(tmp_path / "bundle")


def test_the_model_of_an_earlier_bundle_has_raft(bundle: Bundle) -> None:
    named = msgspec.to_builtins(bundle.manifest.model)
    del named["flow"]
    assert msgspec.convert(named, Model).flow == "raft"


# --- restoring


def test_without_an_engine_dis_is_the_default_and_recorded(bundle: Bundle) -> None:
    found = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1)
    assert found.metadata["flow"] == "dis"
    named = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1, flow="dis")
    np.testing.assert_array_equal(found.image, named.image)
    with pytest.raises(UsageError, match="has no flow engine") as caught:
        restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, flow="engine")
    assert caught.value.fix == "say --flow dis, or leave it out"


def test_a_part_of_a_bundle_is_no_bundle_without_an_engine(tmp_path: Path) -> None:
    part = make_fake_bundle(tmp_path / "part", omit=[Stage.FLOW])
    with pytest.raises(BundleError, match="has no stage 'flow'"):
        restore_photo(part, FRAME, PHOTO, KEY_FRAME)
    assert restore_photo(part, FRAME, PHOTO, KEY_FRAME, flow="dis", threads=1).metadata["flow"] == "dis"


def test_a_recorded_flow_takes_the_place_of_the_estimated_one(bundle: Bundle) -> None:
    told: dict[str, np.ndarray] = {}
    plain = restore_photo(bundle, FRAME, PHOTO, KEY_FRAME, threads=1, observer=told.__setitem__)
    estimated = {name: value for name, value in told.items() if name.endswith(".flow")}

    def of_tile(scale: float) -> Callable[[Tile], np.ndarray | None]:
        return lambda tile: None if tile.index == 1 else np.float32(scale) * estimated[f"tile{tile.index}.flow"][0]

    def restored(scale: float) -> np.ndarray:
        return restore_photo(
            bundle, FRAME, PHOTO, KEY_FRAME, threads=1, batch=3, tile_flow=of_tile(scale), observer=told.__setitem__
        ).image

    np.testing.assert_array_equal(restored(1), plain.image)
    assert np.any(restored(-3) != plain.image)
    for name, value in estimated.items():  # the observer gets what was estimated, whatever was used
        np.testing.assert_array_equal(told[name], value)


def test_the_commands_say_it(bundle: Bundle, tmp_path: Path) -> None:
    set_ = write_set(tmp_path / "set")
    images = ["--frame", set_ / "lr/a.png", "--photo", set_ / "ref/a.png", "-o", tmp_path / "out.png"]
    result = run("restore", bundle.path, *images, "--threads", 1)
    assert result.exit_code == 0
    assert "flow by dis" in result.stdout
    result = run("restore", bundle.path, *images, "--flow", "engine")
    assert result.exit_code == 2
    assert "has no flow engine" in result.stderr
    assert "OpenCV's DIS estimates the flow" in run("inspect", bundle.path).stdout
    assert run("verify", bundle.path).exit_code == 0


# --- validating


def test_settings_name_what_estimates_the_flow(bundle: Bundle, tmp_path: Path) -> None:
    raft = make_fake_bundle(tmp_path / "raft")
    assert RestoreOptions().for_bundle(bundle).flow == "dis"
    assert RestoreOptions().for_bundle(raft).flow == "engine"
    assert RestoreOptions(flow="dis").for_bundle(raft).flow == "dis"
    with pytest.raises(UsageError, match="has no flow engine"):
        RestoreOptions(flow="engine").check_for(bundle)


def test_a_bundle_without_an_engine_checks_itself(bundle: Bundle) -> None:
    checks = self_checks(bundle, backend=OrtBackend("cpu", 1), limits=load_limits("fp32"))
    assert {check.name.rpartition(".")[2] for check in checks if "batch_rows" in check.name} == {
        str(stage) for stage in whole_bundle("dis")
    }
    assert all(check.status == "pass" for check in checks)


@pytest.mark.slow
def test_the_small_size_goes_the_whole_way(tmp_path: Path) -> None:
    import livemoments
    from livemoments.export.pipeline import export_bundle
    from livemoments.quantize.pipeline import quantize

    checkpoint = make_checkpoint(tmp_path / "checkpoint", size=SMALL, seed=1)
    tile = Size(128, 128)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", tiles=(tile,), overlap=32, steps=(1, 2), verify="sampled")
    assert list(bundle.manifest.stages) == sorted(map(str, whole_bundle("dis")))
    report = livemoments.validate_bundle(
        bundle, checkpoint, options=ValidateOptions(RestoreOptions(steps=2), cost_runs=1, find_fault=True)
    )
    assert report.passed
    assert report.settings["flow"] == "dis"
    assert report.bisection is not None
    assert not report.bisection.suspects
    compared = {rung.name: rung for rung in report.ladder}
    assert "flow" not in {rung.name for rung in report.ladder if rung.level == "network"}
    assert compared["flow"].status == "info"
    assert compared["result"].status == "pass"

    photos = write_set(tmp_path / "set")
    recording = record(checkpoint, photos, tmp_path / "recording", tile=tile, overlap=32, steps=2)
    report = livemoments.validate_bundle(
        bundle, recording=recording, data=photos, options=ValidateOptions(RestoreOptions(steps=2))
    )
    assert report.passed

    quantized = quantize(
        bundle, tmp_path / "int8", recipe="int8", calibration=photos, allow_slower=True, work=tmp_path / "work"
    ).bundle
    assert quantized.manifest.model.flow == "dis"
    found = restore_photo(quantized, photos / "lr/a.png", photos / "ref/a.png", threads=1, steps=2)
    assert found.metadata["flow"] == "dis"

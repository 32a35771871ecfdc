"""Recording the reference: what is kept is what it computes, and each stage's inputs give its outputs again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recording_support import PHOTO, write_set
from restore_images import textured

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db, relative_l2
from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.reference.checkpoint import Reference, load_reference
from livemoments.reference.mmdit import BlockGuidance, BlockKV
from livemoments.reference.motion import embedding_index
from livemoments.runtime import restore
from livemoments.runtime.backends.base import to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.types import Size, Stage
from livemoments.validate.recording import pipeline
from livemoments.validate.recording.cases import recorded_case, schedule_point
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.pipeline import record
from livemoments.validate.recording.store import Recording
from livemoments.validate.reference_photo import restore_like_runtime

STEPS = 3
OPTIONS = {"tile": Size(128, 128), "overlap": 32, "steps": STEPS, "seed": 5}
SAME = 1e-6
"""Relative L2 of one network run twice on the same input, through a file."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("photos"), 2, truth=True)


@pytest.fixture(scope="module")
def recording(tiny_checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    place = tmp_path_factory.mktemp("recordings") / "recording"
    record(tiny_checkpoint, photos, place, detail="blocks", **OPTIONS)
    return open_recording(place)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return load_reference(tiny_checkpoint)


# --- what is kept


def test_tensors_are_those_of_a_fresh_run(recording: Recording, reference: Reference, photos: Path) -> None:
    fresh: dict[str, np.ndarray] = {}
    inputs = load_inputs(photos / "lr" / "a.png", photos / "ref" / "a.png", photos / "ref_lr" / "a.png")
    plan = plan_balanced(inputs.size, [Size(128, 128)], 32, pad_small=True)
    restored = restore_like_runtime(
        reference,
        inputs,
        plan,
        steps=STEPS,
        seed=5,
        policy="per-step",
        observe=lambda name, value: fresh.__setitem__(name, value.copy()),
    )
    kept = set(recording.names("a"))
    large, inner = {"photo.lq_up", "photo.ref_lq_up"}, {"tile0.motion.0", "tile0.motion.last"}
    assert set(fresh) - kept == large | inner
    for name in set(fresh) & kept:
        np.testing.assert_array_equal(recording.read("a", name), fresh[name], err_msg=name)
    more = {re.sub(r"step\d\.(reference|restoration)\.(embed|block\d)\.", "", name) for name in kept - set(fresh)}
    assert more == {"tile0.motion_bias", "tile0.hidden", "tile0.context"}
    entry = recording.entry("a")
    assert [(tile.ref_y, tile.ref_x) for tile in entry.tiles] == list(restored.corners)
    assert (entry.size, entry.padded, entry.tile(0)) == (str(PHOTO), str(plan.padded), plan.tiles[0])


def test_images_are_copied_and_the_result_is_kept_as_a_picture(recording: Recording, photos: Path) -> None:
    for role in ("lr", "ref", "ref_lr", "gt"):
        path = recording.image_path("b", role)
        assert path is not None
        assert path.read_bytes() == (photos / role / "b.png").read_bytes()
    result = recording.image_path("b", "result")
    assert result is not None
    assert result.name == "b.png"
    np.testing.assert_array_equal(read_photo(result).pixels, recording.read("b", "photo.result"))
    floats = recording.read("b", "photo.stitched")[0].transpose(1, 2, 0) / 2 + 0.5
    assert psnr_db(np.clip(floats, 0, 1), recording.read("b", "photo.result") / 255) > 15  # one picture, not another


def test_only_the_first_photo_is_kept_in_detail(recording: Recording) -> None:
    assert (recording.entry("a").detail, recording.entry("b").detail) == ("blocks", "stages")
    assert recording.meta.selection.images == ("a",)
    assert not [name for name in recording.names("b") if ".kv." in name or ".block" in name or "motion_bias" in name]
    assert recording.has("b", "tile0.lq.image", "tile0.step2.z", "tile0.step2.velocity", "tile0.decoded")


def test_the_checkpoint_and_the_conditions_are_recorded(recording: Recording, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle, verify_hashes=False).manifest
    meta = recording.meta
    assert meta.source == manifest.source
    assert meta.model == manifest.model
    plan = [manifest.schedule.points[point] for point in manifest.schedule.plans[str(STEPS)]]
    assert list(meta.settings.schedule) == plan
    assert [schedule_point(manifest.schedule, point.timestep) for point in meta.settings.schedule] == list(
        manifest.schedule.plans[str(STEPS)]
    )
    assert (meta.settings.seed, meta.settings.noise_level, meta.settings.upstream) == (5, 0.2, False)


# --- each stage: the recorded inputs give the recorded outputs


def check(found: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, value in found.items():
        assert value.shape == wanted[name].shape, name
        assert relative_l2(value.numpy(), wanted[name]) < SAME, name
        assert np.ptp(wanted[name]) > 0, name


@torch.inference_mode()
def test_the_inputs_of_the_image_stages_give_their_outputs(recording: Recording, reference: Reference) -> None:
    flow = recorded_case(recording, "a", 0, Stage.FLOW)
    images = [torch.from_numpy(flow.inputs[name]) for name in ("image1", "image2")]
    check({"flow": reference.flow(*images)}, flow.outputs)
    for part in ("lq", "ref"):
        encoder = recorded_case(recording, "a", 0, Stage.VAE_ENCODER, part=part)
        mean, std = reference.vae.encode(torch.from_numpy(encoder.inputs["image"]))
        check({"mean": mean, "std": std}, encoder.outputs)
    decoder = recorded_case(recording, "a", 0, Stage.VAE_DECODER)
    unscaled = torch.from_numpy(decoder.inputs["latent"])
    check({"image": reference.vae.autoencoder.decode(unscaled, return_dict=False)[0]}, decoder.outputs)


@torch.inference_mode()
def test_the_inputs_of_the_motion_stage_give_the_projected_embeddings(
    recording: Recording, reference: Reference
) -> None:
    case = recorded_case(recording, "a", 0, Stage.MOTION)
    embeddings = reference.motion_encoder(torch.from_numpy(case.inputs["flow"]))
    weights = reference.restoration_net.transformer.state_dict()
    bias = []
    for block in range(reference.configs.transformer.num_layers):
        motion = embeddings[embedding_index(block)]
        weight = weights[f"transformer_blocks.{block}.attn.processor.point_proj.weight"]
        bias.append(F.layer_norm(motion, motion.shape[-1:]) @ weight.T)
    check({"motion_bias": torch.stack(bias)}, case.outputs)


@pytest.mark.parametrize("step", range(STEPS))
@torch.inference_mode()
def test_the_inputs_of_the_transformers_give_their_outputs(
    recording: Recording, reference: Reference, step: int
) -> None:
    prompt = reference.prompt
    case = recorded_case(recording, "a", 0, Stage.REFERENCE, step=step)
    assert case.timestep is not None
    timestep = torch.full((1,), case.timestep)
    kept: list[BlockKV] = reference.reference_net(
        torch.from_numpy(case.inputs["latent"]), timestep, prompt.tokens, prompt.pooled
    )
    found = {}
    for block, kv in enumerate(kept):
        found[f"reference_k.{block}"] = torch.cat([kv.image_key, kv.text_key], dim=1)
        found[f"reference_v.{block}"] = torch.cat([kv.image_value, kv.text_value], dim=1)
    check(found, case.outputs)
    stacked = recorded_case(recording, "a", 0, Stage.REFERENCE, step=step, kv_layout="stacked").outputs["reference_kv"]
    np.testing.assert_array_equal(stacked[2, 1], case.outputs["reference_v.2"])

    case = recorded_case(recording, "a", 0, Stage.RESTORATION, step=step)
    embeddings = reference.motion_encoder(torch.from_numpy(recording.read("a", "tile0.flow")))
    tokens = kept[0].text_key.shape[1]
    guidance = []
    for block in range(len(kept)):
        key, value = (torch.from_numpy(case.inputs[f"reference_{part}.{block}"]) for part in "kv")
        kv = BlockKV(key[:, :-tokens], value[:, :-tokens], key[:, -tokens:], value[:, -tokens:])
        guidance.append(BlockGuidance(kv, embeddings[embedding_index(block)]))
    velocity = reference.restoration_net(
        torch.from_numpy(case.inputs["latent"]), timestep, prompt.tokens, prompt.pooled, guidance
    )
    check({"velocity": velocity}, case.outputs)


def test_euler_steps_join_the_recorded_latents(recording: Recording) -> None:
    sigmas = [point.sigma for point in recording.meta.settings.schedule] + [0.0]
    np.testing.assert_array_equal(recording.read("a", "tile0.step0.z"), recording.read("a", "tile0.z_init"))
    for step in range(STEPS):
        z = recording.read("a", f"tile0.step{step}.z")
        z = z + (sigmas[step + 1] - sigmas[step]) * recording.read("a", f"tile0.step{step}.velocity")
        following = f"step{step + 1}.z" if step + 1 < STEPS else "z_out"
        assert relative_l2(z, recording.read("a", f"tile0.{following}")) < SAME


def test_every_block_begins_where_the_one_before_ended(recording: Recording, reference: Reference) -> None:
    blocks = reference.restoration_net.transformer.transformer_blocks
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda _module, _inputs, given: seen.append((given["hidden_states"], given["encoder_hidden_states"])),
            with_kwargs=True,
        )
        for block in blocks
    ]
    try:
        test_the_inputs_of_the_transformers_give_their_outputs(recording, reference, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(blocks)
    for before, (hidden, context) in zip(["embed", *(f"block{i}" for i in range(len(blocks) - 1))], seen, strict=True):
        prefix = f"tile0.step1.restoration.{before}"
        assert relative_l2(hidden.numpy(), recording.read("a", f"{prefix}.hidden")) < SAME
        assert relative_l2(context.numpy(), recording.read("a", f"{prefix}.context")) < SAME
    last = f"tile0.step1.restoration.block{len(blocks) - 1}"
    assert recording.has("a", f"{last}.hidden")
    assert not recording.has("a", f"{last}.context")  # the last block gives none


# --- against a bundle


@pytest.mark.slow
def test_an_exported_bundle_is_held_against_a_recording(
    tiny_checkpoint: Path, tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle, verify_hashes=False)
    manifest = bundle.manifest
    size = bundle.tile_sizes[0]
    live = LivePhoto(photos / "lr" / "a.png", photos / "ref" / "a.png", name="one")  # the key frame is derived
    options = {"tile": size, "overlap": manifest.overlap, "steps": STEPS, "detail_steps": (2,), "seed": 9}
    recording = record(tiny_checkpoint, live, tmp_path / "r", detail="keys-values", **options)
    for stage in Stage:
        case = recorded_case(recording, "one", 0, stage, step=2, kv_layout=manifest.kv_layout)
        inputs = dict(case.inputs)
        if case.timestep is not None:
            inputs["step"] = np.array(schedule_point(manifest.schedule, case.timestep), dtype=np.int64)
        engine = OrtBackend().open(bundle, stage, size)
        try:
            outputs = engine.run(engine.cast(inputs))
        finally:
            engine.close()
        for name, wanted in case.outputs.items():
            assert relative_l2(to_host(outputs[name]), wanted) < 1e-4, (stage, name)
    paths = [recording.image_path("one", role) for role in ("lr", "ref", "ref_lr")]
    assert paths[2] is None
    result = restore(bundle, paths[0], paths[1], paths[2], steps=STEPS, seed=9, pad_small=True, bit_depth=8)
    assert psnr_db(result.image, recording.read("one", "photo.result"), peak=255) > 60


# --- modules


def test_the_first_module_that_differs_is_the_one_that_was_changed(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "tile0.step1.restoration.module.transformer_blocks.2.ff.net.0"
    options = {**OPTIONS, "detail": "modules", "blocks": (1, 2), "detail_steps": (1,), "limit": 1}
    good = record(tiny_checkpoint, photos, tmp_path / "good", **options)

    loaded: list[Reference] = []
    own_hook: list[torch.utils.hooks.RemovableHandle] = []

    def load_changed(*arguments: object, **more: object) -> Reference:
        changed = load_reference(*arguments, **more)  # type: ignore[arg-type]
        loaded.append(changed)
        gelu = changed.restoration_net.transformer.transformer_blocks[2].ff.net[0]
        assert gelu.approximate == "tanh"
        first = [0]

        def at_step_1(module: torch.nn.Module, _inputs: object) -> None:  # so that step 1's input is the same
            module.approximate = "none" if first[0] == 1 else "tanh"
            first[0] += 1

        own_hook.append(gelu.register_forward_pre_hook(at_step_1))
        return changed

    monkeypatch.setattr(pipeline, "load_reference", load_changed)
    bad = record(tiny_checkpoint, photos, tmp_path / "bad", **options)
    names = [name for name in good.names("a") if name.startswith("tile0.step1.restoration.module.")]
    assert names == [name for name in bad.names("a") if name.startswith("tile0.step1.restoration.module.")]
    differing = [name for name in names if not np.array_equal(good.read("a", name), bad.read("a", name))]
    assert differing[0] == place
    blocks = {re.sub(r".*transformer_blocks\.(\d).*", r"\1", name) for name in names}
    assert blocks == {"1", "2"}
    assert f"{place}.proj" in names
    assert not [name for name in good.names("a") if ".module." in name and ".step1." not in name]
    own_hook[0].remove()
    kinds = ("reference_net", "restoration_net", "vae", "flow", "motion_encoder")
    modules = [module for kind in kinds for module in getattr(loaded[0], kind).modules()]
    assert not [module for module in modules if module._forward_hooks or module._forward_pre_hooks]  # none stays behind


def test_modules_of_every_stage_by_the_checkpoints_names(
    tiny_checkpoint: Path, reference: Reference, photos: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "steps": 1, "detail": "modules", "limit": 1}
    recording = record(tiny_checkpoint, photos, tmp_path / "r", **options)
    networks = {
        "flow": reference.flow,
        "vae_encoder": reference.vae.autoencoder,
        "motion": reference.motion_encoder,
        "step0.reference": reference.reference_net.transformer,
        "step0.restoration": reference.restoration_net.transformer,
        "vae_decoder": reference.vae.autoencoder,
    }
    for stage, network in networks.items():
        prefix = f"tile0.{stage}.module."
        found = {name.removeprefix(prefix) for name in recording.names("a") if name.startswith(prefix)}
        part = {"vae_encoder": "encoder.", "vae_decoder": "decoder."}.get(stage, "")
        weighted = {
            name
            for name, module in network.named_modules()
            if name.startswith(part) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
        assert weighted <= found, sorted(weighted - found)[:5]
        assert {re.sub(r"(\[\d+\])?(@\d+)?$", "", name) for name in found} <= {
            name for name, _ in network.named_modules()
        }
    # the recurrent part runs once per iteration
    assert recording.has("a", "tile0.flow.module.update_block.gru.convz1@19")
    shutil.rmtree(recording.path)


# --- policies, tiles, storage


def test_keys_and_values_that_a_later_step_uses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wide = textured(Size(128, 208), 3)
    for name, pixels in (("photo", wide), ("frame", np.ascontiguousarray(wide[::2, ::2]))):
        write_image(tmp_path / f"{name}.png", pixels)
    live = LivePhoto(tmp_path / "frame.png", tmp_path / "photo.png")
    options = {**OPTIONS, "policy": "every-2", "detail": "keys-values", "detail_tiles": (1,), "detail_steps": (1,)}
    recording = record(tiny_checkpoint, live, tmp_path / "r", **options)
    assert len(recording.entry("photo").tiles) == 2
    kv = {name.split(".kv.")[0] for name in recording.names("photo") if ".kv." in name}
    assert kv == {"tile1.step0"}  # step 1 uses those of step 0
    case = recorded_case(recording, "photo", 1, Stage.RESTORATION, step=1)
    assert case.timestep == recording.meta.settings.schedule[1].timestep
    reference_case = recorded_case(recording, "photo", 1, Stage.REFERENCE, step=1)
    assert reference_case.timestep == recording.meta.settings.schedule[0].timestep
    assert recording.has("photo", "tile0.decoded", "tile1.decoded", "tile1.motion_bias")
    assert not recording.has("photo", "tile0.motion_bias")
    assert (recording.path / "images" / "result" / "photo.png").is_file()


def test_half_precision_is_half_the_size_and_close(
    recording: Recording, tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    half = record(tiny_checkpoint, photos, tmp_path / "half", dtype="float16", detail="blocks", limit=1, **OPTIONS)

    def tensors_bytes(of: Recording) -> int:
        return sum(of.meta.files[path].bytes for path in of.entry("a").tensors)

    assert 0.48 < tensors_bytes(half) / tensors_bytes(recording) < 0.56  # the bytes of pictures and the headers stay
    assert half.names("a") == recording.names("a")
    for name in half.names("a"):
        exact, rounded = recording.read("a", name), half.read("a", name)
        assert rounded.dtype == exact.dtype
        assert relative_l2(rounded, exact) <= 2**-11, name


def test_a_value_that_half_precision_cannot_hold_is_named(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_loud(*arguments: object, **more: object) -> Reference:
        loud = load_reference(*arguments, **more)  # type: ignore[arg-type]
        loud.vae.autoencoder.decoder.conv_out.weight.data *= 1e7
        return loud

    monkeypatch.setattr(pipeline, "load_reference", load_loud)
    with pytest.raises(UsageError, match=r"'tile0\.decoded' reaches") as caught:
        record(tiny_checkpoint, photos, tmp_path / "r", dtype="float16", limit=1, **{**OPTIONS, "steps": 1})
    assert caught.value.fix == "record with --dtype float32"
    assert list(tmp_path.iterdir()) == []

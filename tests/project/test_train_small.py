"""The small checkpoint's training code: its formulas, its pairs, and that a run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from places import ROOT

from livemoments.errors import CheckpointError, ImageError
from livemoments.progress import SILENT
from livemoments.reference.checkpoint import load_reference
from livemoments.reference.checkpoint_sizes import SMALL
from livemoments.reference.mmdit import BlockGuidance
from livemoments.reference.motion import embedding_index
from livemoments.runtime.image_files.photo import write_image
from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size
from livemoments.validate.datasets.embedded import NAMES as HELD_OUT

FOLDER = ROOT / "tools" / "train_small"
sys.path.insert(0, str(FOLDER))

import bridge  # noqa: E402
import latents  # noqa: E402
import model  # noqa: E402
import networks  # noqa: E402
import pairs  # noqa: E402
import patches  # noqa: E402
import photographs  # noqa: E402
import schedule  # noqa: E402
import sheets  # noqa: E402
import state  # noqa: E402
import train  # noqa: E402
import vae  # noqa: E402
import write  # noqa: E402

LITTLE = dataclasses.replace(SMALL, num_layers=2, motion_depth=1)
"""The same shape of networks, quick to train."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sampler() -> photographs.WindowSampler:
    found = [
        photographs.Photograph(f"made up {seed}", synthetic_photograph(Size(300, 320), seed=seed)) for seed in (1, 2)
    ]
    return photographs.WindowSampler(found)


@pytest.fixture(scope="module")
def identity_vae() -> AutoencoderKL:
    network = AutoencoderKL.from_config(SMALL.vae())
    vae.begin_as_identity(network, 0.01)
    return network.eval().requires_grad_(False)


# --- formulas -------------------------------------------------------------------------------------------------------


def latents_of(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator) for _ in range(3)]


def test_bridge_ends_at_the_truth_and_where_sampling_starts() -> None:
    truth, degraded, noise = latents_of(1)
    start = bridge.bridge_point(truth, degraded, noise, torch.full((3,), 0.2, dtype=torch.float64))
    end = bridge.bridge_point(truth, degraded, noise, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(start.z, 0.8 * degraded + 0.2 * noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.z, truth, rtol=0, atol=1e-12)


def test_bridge_velocity_is_the_derivative() -> None:
    truth, degraded, noise = latents_of(2)
    t = torch.tensor([0.01, 0.1, 0.19], dtype=torch.float64)
    step = 1e-6
    after, before = (bridge.bridge_point(truth, degraded, noise, t + sign * step).z for sign in (1, -1))
    velocity = bridge.bridge_point(truth, degraded, noise, t).velocity
    torch.testing.assert_close(velocity, (after - before) / (2 * step), rtol=0, atol=1e-7)


def test_bridge_weights_sum_to_one() -> None:
    one = torch.ones(5, 1, 1, 1, dtype=torch.float64)
    t = torch.linspace(0, 0.2, 5, dtype=torch.float64)
    torch.testing.assert_close(bridge.bridge_point(one, one, one, t).z, one, rtol=0, atol=1e-12)


def test_times_cover_the_interval_evenly() -> None:
    t = bridge.draw_times(10, torch.Generator().manual_seed(3))
    assert torch.equal((t.sort().values / 0.02).floor(), torch.arange(10.0))


def test_rate_rises_stays_and_falls() -> None:
    rates = [schedule.rate_at(step, 1000) for step in range(1000)]
    assert rates[0] < 0.01
    assert set(rates[150:700]) == {1.0}
    assert rates[-1] == pytest.approx(1 / 300)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_a_pair_depends_on_its_number_alone(sampler: photographs.WindowSampler) -> None:
    wanted = pairs.make_pair(sampler, 7, 3, tile_px=64, scene_px=160)
    pairs.make_pair(sampler, 7, 1, tile_px=64, scene_px=160)
    again = pairs.make_pair(sampler, 7, 3, tile_px=64, scene_px=160)
    for name in ("truth", "ref", "lr", "flow"):
        np.testing.assert_array_equal(getattr(wanted, name), getattr(again, name))
    other = pairs.make_pair(sampler, 8, 3, tile_px=64, scene_px=160)
    assert not np.array_equal(wanted.truth, other.truth)


def test_pairs_have_the_form_that_the_networks_take(sampler: photographs.WindowSampler) -> None:
    made = [pairs.make_pair(sampler, 0, number, tile_px=64, scene_px=160) for number in range(12)]
    for pair in made:
        assert pair.truth.shape == pair.ref.shape == pair.lr.shape == (64, 64, 3)
        assert pair.flow.shape == (64, 64, 2)
        assert pair.lr.dtype == pair.flow.dtype == np.float32
        assert pair.lr.min() >= 0
        assert pair.lr.max() <= 1
        # degraded, but the same picture; the reference is another instant
        assert 0.1 < np.abs(pair.lr * 255 - pair.truth).mean() < 30
        assert not np.array_equal(pair.ref, pair.truth)


def test_held_out_photographs_are_left_out(tmp_path: Path) -> None:
    for name in ("coffee", "beach"):
        write_image(tmp_path / f"{name}.png", synthetic_photograph(Size(64, 64)))
    found = [photograph.name for photograph in photographs.load_photographs([tmp_path], least_px=64)]
    assert "beach.png" in found
    assert not {Path(name).stem for name in found} & set(HELD_OUT)
    assert all(licence for _, licence in photographs.licences())


def test_a_folder_of_small_photographs_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "small.png", synthetic_photograph(Size(48, 48)))
    with pytest.raises(ImageError, match="64 pixels or more"):
        photographs.load_photographs([tmp_path], least_px=64)


# --- networks -------------------------------------------------------------------------------------------------------


def test_the_vae_begins_as_the_identity(identity_vae: AutoencoderKL) -> None:
    picture = torch.from_numpy(synthetic_photograph(Size(32, 40), seed=4)).permute(2, 0, 1)[None] / 127.5 - 1
    posterior = identity_vae.encode(picture).latent_dist
    torch.testing.assert_close(posterior.mean, picture, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(identity_vae.decode(picture).sample, picture, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(posterior.std, torch.full_like(picture, 0.01))


def test_a_vae_that_shrinks_cannot_begin_as_the_identity() -> None:
    deep = AutoencoderKL.from_config(dataclasses.replace(SMALL, vae_channels=(32, 32)).vae())
    with pytest.raises(ValueError, match="one level"):
        vae.begin_as_identity(deep, 0.01)


def random_model() -> model.LiveMomentsModel:
    torch.manual_seed(5)
    network = model.LiveMomentsModel(LITTLE)
    with torch.no_grad():  # what begins at nothing would hide a fault
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval().requires_grad_(False)


def test_what_is_trained_is_what_the_reference_computes(tmp_path: Path, identity_vae: AutoencoderKL) -> None:
    trained = random_model()
    folder = tmp_path / "checkpoint"
    written = write.write_checkpoint(folder, LITTLE, identity_vae, trained)
    assert written == sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    loaded = load_reference(folder)
    generator = torch.Generator().manual_seed(6)
    z, z_ref = (torch.randn(1, 3, 64, 64, generator=generator) for _ in range(2))
    flow, t = torch.randn(1, 2, 64, 64, generator=generator), torch.tensor([0.13])
    kv = loaded.reference_net(z_ref, t * 1000, loaded.prompt.tokens, loaded.prompt.pooled)
    motion = loaded.motion_encoder(flow)
    guidance = [BlockGuidance(block, motion[embedding_index(index)]) for index, block in enumerate(kv)]
    expected = loaded.restoration_net(z, t * 1000, loaded.prompt.tokens, loaded.prompt.pooled, guidance)
    for tensor in (*trained.parameters(), *trained.buffers()):
        tensor.copy_(tensor.half().float())
    torch.testing.assert_close(trained(z, z_ref, flow, t), expected, rtol=1e-4, atol=1e-4)
    assert loaded.configs.vae.scaling_factor == pytest.approx(identity_vae.config.scaling_factor)


def test_the_patch_basis_is_orthonormal() -> None:
    basis = patches.patch_basis(4).reshape(48, -1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(48), atol=1e-12)


def test_the_networks_begin_by_passing_a_picture_on() -> None:
    """The first guess of the velocity is -z, whatever the place."""
    network = model.LiveMomentsModel(SMALL).eval()
    picture = torch.from_numpy(synthetic_photograph(Size(256, 256), seed=8)).permute(2, 0, 1)[None] / 127.5 - 1
    z = picture[..., :64, :64] * (8 / picture.std())
    for place in ((0, 0), (24, 24), (48, 3)):
        with torch.no_grad(), network.placed(*place):
            velocity = network(z, z, torch.zeros(1, 2, 64, 64), torch.tensor([0.1]))
        assert float((velocity + z).square().mean() / z.square().mean()) < 0.03


def test_a_crop_is_placed_where_it_lies_in_the_largest_tile() -> None:
    """In the middle nothing changes; a part of a largest tile sees the positions that it has in it."""
    network = random_model()
    middle = (SMALL.pos_embed_max_size - 8) // 2
    z = 8 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    flow, t = torch.zeros(1, 2, 32, 32), torch.tensor([0.1])
    expected = network(z, z, flow, t)
    with network.placed(middle, middle):
        torch.testing.assert_close(network(z, z, flow, t), expected)
    with network.placed(3, 5):
        assert not torch.allclose(network(z, z, flow, t), expected)
        embed = network.reference_net.transformer.pos_embed
        side = SMALL.pos_embed_max_size
        whole = embed.pos_embed.reshape(side, side, -1)
        torch.testing.assert_close(embed.cropped_pos_embed(32, 32)[0], whole[3:11, 5:13].flatten(0, 1))
    torch.testing.assert_close(network(z, z, flow, t), expected)


def test_crops_turn_pictures_and_flow_alike() -> None:
    """A flow that says how the reference's picture became the frame's says so still."""
    side = 32
    rng = np.random.default_rng(3)
    scene = torch.from_numpy(rng.normal(size=(8, 3, side + 8, side + 8)).astype(np.float32))
    moved = [(int(dx), int(dy)) for dx, dy in rng.integers(-4, 5, size=(8, 2))]
    ref = scene[..., 4 : 4 + side, 4 : 4 + side]
    frame = torch.stack(
        [one[:, 4 - dy : 4 - dy + side, 4 - dx : 4 - dx + side] for one, (dx, dy) in zip(scene, moved, strict=True)]
    )
    flow = torch.tensor(moved, dtype=torch.float32).view(8, 2, 1, 1).expand(-1, -1, side, side)
    batch = latents.LatentBatch(frame, frame, ref, flow).cropped(rng, 24, 4)
    assert batch.z_hq.shape == batch.z_ref.shape == (8, 3, 24, 24)
    turned = 0
    for one, reference, motion, given in zip(batch.z_hq, batch.z_ref, batch.flow, moved, strict=True):
        dx, dy = (int(value) for value in motion[:, 0, 0])
        turned += (dx, dy) != given
        assert torch.equal(motion, motion[:, :1, :1].expand_as(motion))
        torch.testing.assert_close(one[:, 4 + dy : 20 + dy, 4 + dx : 20 + dx], reference[:, 4:20, 4:20])
    assert turned > 2


def test_half_of_the_heads_begin_at_their_own_place_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model.LiveMomentsModel(SMALL).eval()
    seen: list[torch.Tensor] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        seen.append(weights[0])
        return weights @ value

    monkeypatch.setattr(model.mmdit.F, "scaled_dot_product_attention", attend)
    z = 8 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network(z, z, torch.zeros(1, 2, 64, 64), torch.tensor([0.1]))
    tokens, text = 256, SMALL.prompt_tokens
    place = torch.arange(tokens)
    guided = [weights for weights in seen if weights.shape[-1] == 2 * (tokens + text)]
    assert len(guided) == SMALL.num_layers
    for weights in guided:
        at_itself = weights[:, place, tokens + text + place].mean(dim=1)
        assert (at_itself[:3] > 0.5).all()
        assert (at_itself[3:] < 0.5).all()


def test_narrow_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="48 components"):
        model.LiveMomentsModel(dataclasses.replace(SMALL, num_attention_heads=1, motion_widths=(8, 32)))


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_vae_run_goes_on_to_the_same_weights(
    tmp_path: Path, sampler: photographs.WindowSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "_SAVE_EVERY", 2)
    monkeypatch.setattr(vae, "_STATISTICS_WINDOWS", 2)
    training = vae.VaeTraining(steps=4, batch=2, window_px=32)
    whole = vae.train_vae(SMALL, training, sampler, tmp_path / "whole", SILENT)

    class KilledError(Exception):
        pass

    steps = 0

    def fail(*arguments: object) -> tuple[float, float]:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise KilledError
        return plain(*arguments)  # type: ignore[arg-type]

    plain = vae._step
    monkeypatch.setattr(vae, "_step", fail)
    with pytest.raises(KilledError):
        vae.train_vae(SMALL, training, sampler, tmp_path / "parts", SILENT)
    monkeypatch.setattr(vae, "_step", plain)
    parts = vae.train_vae(SMALL, training, sampler, tmp_path / "parts", SILENT)
    for (name, first), second in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, msg=name)
    assert parts.config.scaling_factor == pytest.approx(whole.config.scaling_factor)
    assert 2 < parts.config.scaling_factor < 40


@pytest.mark.slow
def test_the_networks_learn_go_on_and_are_drawn(
    tmp_path: Path,
    sampler: photographs.WindowSampler,
    identity_vae: AutoencoderKL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("_SAVE_EVERY", 6), ("_MEASURE_EVERY", 3), ("_SHEET_EVERY", 12)):
        monkeypatch.setattr(networks, name, value)
    monkeypatch.setattr(sheets, "_PAIRS", 2)
    monkeypatch.setattr(sheets, "_ROWS", 1)
    sizes = dataclasses.replace(LITTLE, sample_size=64)
    training = networks.NetworkTraining(
        steps=6, batch=2, rate=3e-3, new_pairs=0, first_pairs=2, kept_pairs=8, tile_px=64, scene_px=160, crop_px=32
    )
    made_up = [photographs.Photograph("another", synthetic_photograph(Size(300, 300), seed=9))]
    sheet = sheets.Sheet(identity_vae, made_up, tile_px=64, scene_px=160)
    networks.train_networks(sizes, training, identity_vae, sampler, sheet, tmp_path, SILENT)
    longer = dataclasses.replace(training, steps=12)
    trained = networks.train_networks(sizes, longer, identity_vae, sampler, sheet, tmp_path, SILENT)
    assert not trained.training
    log = list(state.read_log(tmp_path))
    losses = [line["loss"] for line in log if "loss" in line]
    assert [line["step"] for line in log if "loss" in line] == [3, 6, 9, 12]
    assert losses[-1] < losses[0]
    assert {"input_db", "restored_db", "unrelated_db", "vae_db"} <= log[-1].keys()
    assert (tmp_path / "sheet_000012.png").is_file()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / state.STATE_NAME).write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match=state.STATE_NAME):
        state.load_state(tmp_path)


def test_pool_forgets_the_oldest_pairs(sampler: photographs.WindowSampler, identity_vae: AutoencoderKL) -> None:
    with ThreadPoolExecutor(1, initializer=latents.start_worker, initargs=(sampler,)) as executor:
        pool = latents.LatentPool(identity_vae, executor, seed=0, first=0, capacity=3, tile_px=64, scene_px=160)
        pool.add(5)
        batch = pool.batch(np.random.default_rng(0), 2)
    assert pool.made == 5
    assert len(pool._kept) == 3
    assert batch.z_hq.shape == batch.z_lq.shape == batch.z_ref.shape == (2, 3, 64, 64)
    assert batch.flow.shape == (2, 2, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("networks", "{run}"), "holds no trained VAE"),
        (("write", "{run}", "-o", "{run}/out"), "holds no trained VAE"),
        (("vae", "{run}", "--steps", "0"), "not a positive number"),
        (("vae", "{run}", "--photos", "{run}/missing"), "missing"),
    ],
)
def test_mistakes_end_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    try:
        code: object = train.main([part.format(run=tmp_path) for part in arguments])
    except SystemExit as end:  # argparse's own way
        code = end.code
    assert code == 2
    assert said in capsys.readouterr().err

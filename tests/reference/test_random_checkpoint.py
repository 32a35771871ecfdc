"""Random checkpoints: the layout, the values' independence of how they are made, and that every weight matters."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import filecmp
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from hidden_entries import left_behind
from torch import Tensor, nn

from livemoments.errors import OutputError, ResourceError, UsageError
from livemoments.reference import random_checkpoint
from livemoments.reference.checkpoint import Reference, load_reference
from livemoments.reference.checkpoint_sizes import COMPONENTS, SIZES, CheckpointSizes
from livemoments.reference.layout import locate
from livemoments.reference.mmdit import BlockGuidance
from livemoments.reference.motion import embedding_index
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.reference.random_weights import CHUNK_ELEMENTS, Fill, draw, fill_of, stream_key
from livemoments.reference.stored import SafetensorsFolder
from livemoments.reference.weights import read_pickled
from livemoments.store.safetensors_file import write_safetensors

ODD = CheckpointSizes(
    num_layers=3,
    num_attention_heads=3,
    attention_head_dim=32,
    prompt_tokens=7,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    sample_size=16,
    pos_embed_max_size=20,
    motion_widths=(8, 12, 96),
    motion_depth=2,
    vae_channels=(8, 16, 24),
    vae_layers_per_block=2,
    vae_norm_groups=4,
)
"""Sizes unlike any published ones: three blocks, three heads, a VAE that shrinks by 4."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Reference:
    return load_reference(tiny)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(SafetensorsFolder(folder))


# --- layout ---------------------------------------------------------------------------------------------------------


def test_strict_loading_accepts_folder_and_config(tiny: Path) -> None:
    for path in (tiny, tiny / "inference_config.yml"):
        reference = load_reference(path)
        assert reference.prompt.tokens.shape == (1, 13, 64)
        assert reference.configs.transformer == SIZES["tiny"].transformer()


def test_sizes_of_ones_own_load_and_run(tmp_path: Path) -> None:
    reference = load_reference(make_checkpoint(tmp_path / "odd", size=ODD, seed=3))
    assert reference.configs.vae.scale == 4
    with torch.no_grad():
        mean, _ = reference.vae.encode(torch.zeros(1, 3, 64, 64))
        velocity = restore(reference, mean)
    assert velocity.shape == (1, 16, 16, 16)


def test_pickles_have_the_published_keys(tiny: Path) -> None:
    raw = torch.load(tiny / "raft-sintel.pth", weights_only=True)
    assert all(key.startswith("module.") for key in raw)
    assert raw["module.cnet.norm1.num_batches_tracked"].dtype == torch.int64
    shared = [key for key in raw if ".norm3." in key]
    assert shared
    for key in shared:
        assert torch.equal(raw[key], raw[key.replace(".norm3.", ".downsample.1.")])
    assert "blocks.0.6.weight" in read_pickled(tiny / "motion_encoder.pt")


def test_position_table_is_diffusers_own(tiny: Path) -> None:
    network = SD3Transformer2DModel(**SIZES["tiny"].transformer().as_dict())
    table = weights_of(locate(tiny).transformer)["pos_embed.pos_embed"]
    assert torch.equal(table, network.pos_embed.pos_embed)


def test_parameter_counts_are_the_paper_s() -> None:
    published = {
        "vae": 83.82,
        "transformer_ref": 2028.33,
        "transformer": 2084.95,
        "raft": 5.26,
        "motion_encoder": 66.09,
    }
    for component, millions in published.items():
        assert round(SIZES["sd3-medium"].parameter_count(component) / 1e6, 2) == millions


def test_shards_hold_the_same_tensors(tiny: Path, tmp_path: Path) -> None:
    most = 1_500_000
    sharded = make_checkpoint(tmp_path / "s", only=["transformer"], shard_bytes=most) / "livemoments" / "transformer"
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < most * 1.05 for file in files)
    index = json.loads((sharded / "diffusion_pytorch_model.safetensors.index.json").read_text())
    whole = weights_of(locate(tiny).transformer)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    assert_same(weights_of(sharded), whole)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


# --- values ---------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_another_seed_other_values(tiny: Path, tmp_path: Path) -> None:
    again = make_checkpoint(tmp_path / "again")
    files = [p.relative_to(tiny) for p in tiny.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert filecmp.cmpfiles(tiny, again, files, shallow=False) == (files, [], [])
    other = make_checkpoint(tmp_path / "other", seed=1, only=["vae"])
    ours, theirs = weights_of(tiny / "sd3" / "vae"), weights_of(other / "sd3" / "vae")
    assert not any(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_smaller_type_rounds_the_same_values(tiny: Path, tmp_path: Path, dtype: str) -> None:
    small = make_checkpoint(tmp_path / dtype, dtype=dtype)
    wide, narrow = weights_of(tiny / "livemoments/transformer"), weights_of(small / "livemoments/transformer")
    assert all(narrow[key].dtype == getattr(torch, dtype) for key in narrow)
    assert_same(narrow, {key: value.to(getattr(torch, dtype)) for key, value in wide.items()})
    assert_same(read_pickled(small / "raft-sintel.pth"), read_pickled(tiny / "raft-sintel.pth"))
    assert load_reference(small).restoration_net.transformer.dtype == torch.float32


def test_components_do_not_depend_on_each_other(tiny: Path, tmp_path: Path) -> None:
    alone = make_checkpoint(tmp_path / "alone", only=["transformer_ref", "raft"])
    assert not (alone / "sd3").exists()
    assert_same(weights_of(alone / "livemoments/transformer_ref"), weights_of(locate(tiny).transformer_ref))
    assert_same(read_pickled(alone / "raft-sintel.pth"), read_pickled(tiny / "raft-sintel.pth"))


def test_threads_do_not_change_values() -> None:
    key, elements = stream_key(5, "vae", "some.weight"), 2 * CHUNK_ELEMENTS + 17
    alone = np.concatenate(list(draw(key, Fill(0.5, 2.0), elements)))
    with ThreadPoolExecutor(3) as executor:
        shared = np.concatenate(list(draw(key, Fill(0.5, 2.0), elements, executor, 3)))
    assert alone.shape == (elements,)
    assert np.array_equal(alone, shared)
    assert abs(alone.mean() - 2.0) < 0.003
    assert abs(alone.std() - 0.5) < 0.003
    assert not np.array_equal(alone[:17], alone[CHUNK_ELEMENTS : CHUNK_ELEMENTS + 17])


def test_variance_rules() -> None:
    assert fill_of("raft", "cnet.norm1.running_var", (8,)).spread
    assert fill_of("vae", "encoder.conv_norm_out.weight", (8,)).mean == 1.0
    moments = fill_of("vae", "encoder.conv_out.bias", (32,)).mean
    assert isinstance(moments, np.ndarray)
    assert moments[:16].max() == 0
    assert moments[16:].max() < -1
    assert stream_key(0, "raft", "a.norm3.bias") == stream_key(0, "raft", "a.downsample.1.bias")
    assert stream_key(0, "vae", "a") != stream_key(0, "raft", "a") != stream_key(1, "raft", "a")


# --- behaviour ------------------------------------------------------------------------------------------------------


def inputs(reference: Reference, side: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    latent, clean = (torch.randn(2, 16, side, side, generator=generator) for _ in range(2))
    pixels = side * reference.configs.vae.scale
    return latent, clean, 3 * torch.randn(2, 2, pixels, pixels, generator=generator)


def guidance(reference: Reference, clean: Tensor, flow: Tensor, timestep: float) -> list[BlockGuidance]:
    batch = clean.shape[0]
    tokens, pooled = reference.prompt.tokens.expand(batch, -1, -1), reference.prompt.pooled.expand(batch, -1)
    kept = reference.reference_net(clean, torch.full((batch,), timestep), tokens, pooled)
    embeddings = reference.motion_encoder(flow)
    return [BlockGuidance(kv, embeddings[embedding_index(i)]) for i, kv in enumerate(kept)]


def restore(reference: Reference, like: Tensor, timestep: float = 90.0) -> Tensor:
    latent, clean, flow = inputs(reference, like.shape[-1])
    batch = latent.shape[0]
    tokens, pooled = reference.prompt.tokens.expand(batch, -1, -1), reference.prompt.pooled.expand(batch, -1)
    guides = guidance(reference, clean, flow, timestep)
    velocity = reference.restoration_net(latent, torch.full((batch,), timestep), tokens, pooled, guides)
    return velocity[: like.shape[0]]


@torch.no_grad()
def test_values_stay_of_order_one(loaded: Reference) -> None:
    velocity = restore(loaded, torch.zeros(2, 16, 16, 16))
    assert 0.3 < velocity.std() < 3
    _, clean, flow = inputs(loaded, 16)
    for guide in guidance(loaded, clean, flow, 3.0):
        assert 0.5 < guide.reference.image_key.std() < 3
        assert 0.3 < guide.reference.text_value.std() < 3
        assert 0.2 < guide.motion.std() < 20
    image = smooth_images()
    mean, std = loaded.vae.encode(image)
    assert 0.3 < loaded.vae.scale(mean).std() < 3
    assert 0.05 < std.mean() < 0.5
    assert 0.1 < loaded.vae.decode(loaded.vae.scale(mean)).std() < 2
    shift = loaded.flow(image[:1], image[1:])
    assert 0.5 < shift.abs().mean() < 30
    assert shift.std(dim=(2, 3)).min() > 0.05


def smooth_images() -> Tensor:
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return nn.functional.interpolate(noise, size=(128, 128), mode="bicubic").clamp(-1, 1)


@torch.no_grad()
def test_attention_selects_but_not_one_key(loaded: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    attention = nn.functional.scaled_dot_product_attention

    def watch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        shares.append(float((1 / weights.square().sum(-1)).mean()) / key.shape[2])
        return attention(query, key, value)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    restore(loaded, torch.zeros(2, 16, 32, 32))
    assert len(shares) == 8
    assert min(shares) > 0.005  # the share of keys that count: 1 for uniform attention
    assert max(shares) < 0.7


INERT = 1e-4
"""Relative change of an output below which a weight counts as inert; float32 rounding is near 1e-6."""


def inert(holder: nn.Module, run: Callable[[], list[Tensor]]) -> set[str]:
    """Names of the parameters that can change (half of the neighbour added to each value) while no output does."""
    base = run()
    found = set()
    for name, parameter in holder.named_parameters():
        kept = parameter.data
        parameter.data = kept + 0.5 * kept.flatten().roll(1).view_as(kept)
        moved = max(float((new - old).norm() / old.norm()) for new, old in zip(run(), base, strict=True))
        parameter.data = kept
        if moved < INERT:
            found.add(name)
    return found


@torch.no_grad()
def test_every_weight_of_the_transformers_matters(loaded: Reference) -> None:
    like = torch.zeros(2, 16, 8, 8)
    _, clean, flow = inputs(loaded, 8)

    def velocity() -> list[Tensor]:
        return [restore(loaded, like)]

    def keys() -> list[Tensor]:
        return [t for guide in guidance(loaded, clean, flow, 90.0) for t in guide.reference]

    assert inert(loaded.restoration_net.transformer, velocity) == {
        "transformer_blocks.3.attn.add_q_proj.weight",  # queries whose output the last block throws away
        "transformer_blocks.3.attn.add_q_proj.bias",
    }
    unread = inert(loaded.reference_net.transformer, keys)
    last = ("attn.to_q", "attn.add_q_proj", "attn.to_out", "ff.")
    assert unread == {
        name
        for name, _ in loaded.reference_net.transformer.named_parameters()
        if name.startswith(("norm_out", "proj_out", *(f"transformer_blocks.3.{part}" for part in last)))
    }
    used = {name for name in dict(loaded.motion_encoder.named_parameters()) if int(name.split(".")[1]) < 2}
    assert inert(loaded.motion_encoder, velocity) == set(dict(loaded.motion_encoder.named_parameters())) - used


@pytest.mark.slow
@torch.no_grad()
def test_every_weight_of_vae_and_raft_matters(loaded: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_images()[..., :64, :64]
    latent = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(4))
    autoencoder = loaded.vae.autoencoder

    def both() -> list[Tensor]:
        return [*loaded.vae.encode(image), loaded.vae.decode(latent)]

    # a bias that all keys share shifts every logit of a query alike
    assert {name for name in inert(autoencoder, both) if not name.endswith("to_k.bias")} == set()
    monkeypatch.setattr(loaded.flow, "iterations", 4)
    before_norm = ("conv1.bias", "conv2.bias", "downsample.0.bias")  # instance normalisation takes a bias out again
    unread = inert(loaded.flow, lambda: [loaded.flow(image[:1], image[1:])])
    assert {name for name in unread if not name.endswith(before_norm)} == set()


# --- trouble --------------------------------------------------------------------------------------------------------


def test_refuses_what_it_did_not_make(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "made", only=["vae"])
    with pytest.raises(OutputError, match=r"exists already[\s\S]*--overwrite"):
        make_checkpoint(made)
    make_checkpoint(made, only=["scheduler"], overwrite=True)
    assert not (made / "sd3" / "vae").exists()
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="not a random checkpoint"):
        make_checkpoint(foreign, overwrite=True)
    assert (foreign / "holiday.jpg").exists()
    with pytest.raises(OutputError, match="cannot be written"):
        make_checkpoint(foreign / "holiday.jpg" / "below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "photos"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": "huge"}, "'huge'"),
        ({"dtype": "int8"}, "'int8'"),
        ({"seed": -1}, "-1"),
        ({"only": ["vea"]}, "vea"),
        ({"size": dataclasses.replace(ODD, motion_widths=(8, 96))}, "motion_widths"),
        ({"size": dataclasses.replace(ODD, motion_widths=(8, 12, 95))}, "motion_widths"),
        ({"size": dataclasses.replace(ODD, motion_depth=1)}, "motion_depth"),
        ({"size": dataclasses.replace(ODD, vae_norm_groups=5)}, "vae_norm_groups"),
        ({"size": dataclasses.replace(ODD, sample_size=64)}, "sample_size"),
    ],
)
def test_requests_that_cannot_be_met_are_named(tmp_path: Path, options: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_checkpoint(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1_000_000))
    with pytest.raises(ResourceError, match="the disk has"):
        make_checkpoint(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, ResourceError), (errno.EROFS, OutputError), (errno.EIO, OutputError)]
)
def test_write_errors_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(random_checkpoint, "write_sharded", fail)
    with pytest.raises(expected):
        make_checkpoint(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


class Counting:
    """A reporter that counts, and can interrupt."""

    def __init__(self, stop_after: float = float("inf")) -> None:
        self.total, self.done, self.stop_after = 0.0, 0.0, stop_after

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Counting]:
        self.total = total or 0.0
        yield self

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount
        if self.done > self.stop_after:
            raise KeyboardInterrupt


def test_progress_adds_up_and_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    progress = Counting()
    made = make_checkpoint(tmp_path / "x", size=ODD, progress=progress)
    assert progress.done == progress.total > 0
    files = sum(p.stat().st_size for p in made.rglob("*") if p.is_file())
    assert progress.total == pytest.approx(files, rel=0.02)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path / "y", size=ODD, progress=Counting(stop_after=progress.total / 2))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left_behind(tmp_path / ".x.partial-1234abcd")
    make_checkpoint(tmp_path / "x", only=["scheduler"])
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_tensor_of_the_wrong_length_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w: 4 bytes"):
        write_safetensors(tmp_path / "f", {"w": ("float32", (2,))}, lambda name: [b"1234"])


def test_components_are_the_layout_s(tiny: Path) -> None:
    assert set(COMPONENTS) == {field.name for field in dataclasses.fields(locate(tiny))} - {"root", "tile", "overlap"}

"""What is predicted for networks of the published size, from counts that ``tools/plan_costs.py`` wrote down."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch
from places import ROOT
from torch.utils.flop_counter import FlopCounterMode

from livemoments.bundle import Bundle
from livemoments.manifest import Manifest
from livemoments.profiles.planner import plan as planner
from livemoments.profiles.planner.cost import StageCost
from livemoments.profiles.planner.plan import Costs, Plan, PlanRequest, Plans, make_plans
from livemoments.profiles.read import load_profile
from livemoments.reference.config import TransformerConfig
from livemoments.reference.mmdit import BlockGuidance, BlockKV, ReferenceNet, RestorationNet
from livemoments.runtime.tiles.plan import plan_balanced, plan_upstream
from livemoments.types import Size, Stage

COUNTED = ROOT / "tests/golden/plans/sd3-medium-fp16.json"
PHOTO, FRAME = Size(3072, 4096), Size(1080, 1440)
TILE, SMALL_TILE, UPSTREAM_TILE = Size(1072, 1072), Size(512, 512), Size(1024, 1024)
STEPS = 6
TEXT_TOKENS = 333


@pytest.fixture(autouse=True)
def one_tile_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "BATCHES", (1,))  # of which the counts are


@cache
def counted() -> tuple[Bundle, dict[str, list[StageCost]]]:
    document = json.loads(COUNTED.read_text())
    costs = {recipe: msgspec.convert(each, list[StageCost]) for recipe, each in document["costs"].items()}
    return Bundle(Path("counted"), msgspec.convert(document["manifest"], Manifest)), costs


def cost_of(stage: Stage, size: Size, recipe: str = "none") -> StageCost:
    (found,) = [cost for cost in counted()[1][recipe] if (cost.stage, cost.size) == (str(stage), str(size))]
    return found


def plans(recipe: str | None, **request: object) -> Plans:
    """For an RTX 4060, whose tiles are computed one at a time."""
    bundle, costs = counted()
    known = [*costs["none"], *(costs[recipe] if recipe else [])]
    wanted = PlanRequest(PHOTO, frame=FRAME, steps=STEPS, **request)  # type: ignore[arg-type]
    return make_plans(bundle, load_profile("rtx-4060-8gb"), wanted, costs=Costs(bundle, recipe, known))


def least(found: Plans, residency: str) -> Plan:
    """The exact plan of a residency that takes the least."""
    return min((p for p in found.plans if p.residency == residency and p.exact), key=lambda plan: plan.peak_bytes)


def test_8_gigabytes_hold_it_with_int8_weights_and_6_with_int4() -> None:
    """With every engine loaded: in half precision neither budget does."""
    half, int8, int4 = (plans(recipe, reference="per-step") for recipe in (None, "int8-weights", "int4-weights"))
    assert least(half, "all").peak_bytes > 8e9
    assert 6e9 < least(int8, "all").peak_bytes < 8e9
    assert least(int4, "all").peak_bytes < 6e9
    for recipe, budget in (("int8-weights", 8_000_000_000), ("int4-weights", 6_000_000_000)):
        chosen = plans(recipe, max_memory_bytes=budget).chosen
        assert chosen is not None
        assert chosen.exact
        assert chosen.peak_bytes <= budget


def test_every_residency_takes_less_than_the_one_before() -> None:
    found = plans(None, tile=SMALL_TILE, reference="per-step")
    peaks = [least(found, residency).peak_bytes for residency in ("all", "phases", "streamed")]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 4e9  # RAFT on the whole frame is what is left


def test_windows_shrink_the_vae_and_are_no_exact_plan() -> None:
    found = plans(None, tile=TILE, reference="per-step")
    of = {plan.vae_tile: plan for plan in found.plans if (plan.residency, plan.flow) == ("phases", "engine")}
    assert of.keys() == {None, str(SMALL_TILE)}
    whole, windows = (
        max(segment.device_bytes for segment in plan.segments if segment.label == "vae_decoder")
        for plan in (of[None], of[str(SMALL_TILE)])
    )
    assert windows < 0.4 * whole
    assert not of[str(SMALL_TILE)].exact
    assert of[str(SMALL_TILE)].flops > of[None].flops
    assert "--vae-tile" in of[str(SMALL_TILE)].arguments


def test_weights_shrink_as_the_recipes_say() -> None:
    for stage in (Stage.REFERENCE, Stage.RESTORATION):
        half, int8, int4 = (cost_of(stage, TILE, recipe) for recipe in ("none", "int8-weights", "int4-weights"))
        assert half.flops == int8.flops == int4.flops
        assert 0.5 < int8.weight_bytes / half.weight_bytes < 0.62
        assert 0.25 < int4.weight_bytes / half.weight_bytes < 0.4
        assert len(half.blocks) == 24
        assert sum(block.weight_bytes for block in half.blocks) == pytest.approx(half.weight_bytes, rel=0.01)


def test_twelve_tiles_do_what_takes_upstream_twenty_and_half_the_products() -> None:
    overlap = counted()[0].manifest.overlap
    assert len(plan_balanced(PHOTO, [TILE], overlap).tiles) == 12
    assert len(plan_upstream(PHOTO, UPSTREAM_TILE, 64).tiles) == 20
    ours = plans(None, tile=TILE, reference="frozen")
    (frozen,) = {plan.flops for plan in ours.plans if plan.vae_tile is None and plan.flow == "engine"}
    assert frozen <= upstream_flops() / 2


def upstream_flops() -> int:
    """Of upstream's code: 20 tiles, ReferenceNet at every step, text and modulation computed anew; by torch's counter.

    VAE, RAFT and motion encoder are taken from our graphs, shrunk with the tile's area, which is less than they are.
    """
    rest = sum(
        times * cost_of(stage, TILE).flops
        for stage, times in ((Stage.FLOW, 1), (Stage.VAE_ENCODER, 2), (Stage.MOTION, 1), (Stage.VAE_DECODER, 1))
    )
    shrunk = rest * UPSTREAM_TILE.height * UPSTREAM_TILE.width / (TILE.height * TILE.width)
    return round(20 * (STEPS * networks_flops(UPSTREAM_TILE) + shrunk))


def networks_flops(tile: Size) -> int:
    """One step of both networks as upstream runs them, at SD3-medium's size; nothing is computed."""
    config = TransformerConfig(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )
    tokens = tile.height * tile.width // 16**2
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        latent = torch.empty(1, 16, tile.height // 8, tile.width // 8)
        text = torch.empty(1, TEXT_TOKENS, 4096), torch.empty(1, 2048)
        image, words = torch.empty(1, tokens, config.dim), torch.empty(1, TEXT_TOKENS, config.dim)
        guidance = [BlockGuidance(BlockKV(image, image, words, words), image)] * config.num_layers
        reference, restoration = ReferenceNet(config), RestorationNet(config)
        with counter:
            reference(latent, torch.empty(1), *text)
            restoration(latent, torch.empty(1), *text, guidance)
    return int(counter.get_total_flops())

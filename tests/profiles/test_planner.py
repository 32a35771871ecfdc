"""Plans: what fits, what does not and by how much; the command; no weights and no PyTorch are needed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from cli_support import run
from places import ROOT

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.errors import BundleError, UsageError
from livemoments.profiles.planner import packed
from livemoments.profiles.planner.cost import cost_of_stage
from livemoments.profiles.planner.engines import rates_of
from livemoments.profiles.planner.plan import Plan, PlanRequest, Plans, _choose, make_plans
from livemoments.profiles.planner.svg import plan_svg
from livemoments.profiles.planner.text import plans_text, shortfall, what_would_fit
from livemoments.profiles.read import load_profile
from livemoments.profiles.schema import Profile
from livemoments.types import TRANSFORMER_STAGES, Size

PHOTO = Size(256, 304)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(trained_bundle(), verify_hashes=False)


def plans_for(bundle: Bundle, profile: str = "cpu-avx2", **request: object) -> Plans:
    return make_plans(bundle, load_profile(profile), PlanRequest(PHOTO, **request))  # type: ignore[arg-type]


def by(plans: Plans, **wanted: object) -> Plan:
    (found,) = [plan for plan in plans.plans if all(getattr(plan, key) == value for key, value in wanted.items())]
    return found


def test_the_peak_is_the_largest_segment_and_the_time_their_sum(bundle: Bundle) -> None:
    for plan in plans_for(bundle).plans:
        assert plan.peak_bytes == max(segment.host_bytes for segment in plan.segments)
        assert plan.seconds == pytest.approx(sum(segment.seconds or 0 for segment in plan.segments))
        assert plan.segments[0].label == "read"
        labels = [segment.label for segment in plan.segments]
        assert labels.index("reference") < labels.index("restoration") < labels.index("vae_decoder")


def test_phases_take_less_and_load_more(bundle: Bundle) -> None:
    plans = plans_for(bundle, reference="per-step")
    everything = by(plans, residency="all", batch=1, kv_store="host")
    phases = by(plans, residency="phases", batch=1, kv_store="disk")
    assert phases.peak_bytes < everything.peak_bytes
    for segment in phases.segments:
        assert not {"reference", "restoration"} <= segment.host.keys()
    assert any({"reference", "restoration"} <= segment.host.keys() for segment in everything.segments)
    host = by(plans, residency="phases", batch=1, kv_store="host")
    stored = max(segment.host.get("keys and values", 0) for segment in host.segments)
    tokens = 64 * 64 // 16 + 4  # of a tile, image and text
    assert stored == 2 * 4 * tokens * 192 * 4 * 6 * host.tiles  # key and value, blocks, width, float32, six points


def test_more_tiles_at_once_take_more_and_batches_of_all_sizes_do_the_same_work(bundle: Bundle) -> None:
    plans = plans_for(bundle, reference="per-step")
    of = {batch: by(plans, residency="all", batch=batch, kv_store="host") for batch in (1, 2, 4, 8)}
    peaks = [plan.peak_bytes for plan in of.values()]
    assert peaks == sorted(peaks)
    assert peaks[-1] > peaks[0]
    for plan in of.values():
        assert plan.flops == pytest.approx(of[1].flops, rel=0.02)
        assert plan.seconds == pytest.approx(of[1].seconds, rel=0.05)


def test_a_frozen_reference_does_less(bundle: Bundle) -> None:
    frozen, every = (plans_for(bundle, reference=name) for name in ("frozen", "per-step"))
    assert frozen.plans[0].flops < 0.75 * every.plans[0].flops
    assert not frozen.plans[0].exact
    assert every.plans[0].exact


@pytest.mark.parametrize("share", [0.9, 0.999, 1.0, 1.2, 2.0])
def test_what_is_chosen_fits_and_what_is_missing_is_said(bundle: Bundle, share: float) -> None:
    nearest = plans_for(bundle).nearest
    least = nearest.needs_bytes
    assert least == pytest.approx(nearest.peak_bytes * 1.1, rel=1e-6)
    budget = int(least * share)
    plans = plans_for(bundle, max_memory_bytes=budget)
    if share < 1:
        assert plans.chosen is None
        assert plans.nearest.over_bytes == least - budget
        assert f"{least - budget:,} bytes more" in shortfall(plans)
        assert "allow" in what_would_fit(plans)
        assert "no plan fits" in plans_text(plans)
    else:
        assert plans.chosen is not None
        assert plans.chosen.needs_bytes <= budget
        assert f"needs {plans.chosen.needs_bytes / 1e6:.0f} MB" in plans_text(plans)
        for plan in plans.plans:
            assert plan.fits == (plan.needs_bytes <= budget)
            if plan.fits and plan.exact:
                assert (plan.seconds or 0) > (plans.chosen.seconds or 0) * 0.98


def test_arenas_reserve_more_than_they_hold_where_there_are_some(bundle: Bundle) -> None:
    """What a limit of private memory counts beyond the resident set: nothing where nothing keeps its memory."""
    found = plans_for(bundle, reference="per-step").plans
    beyond = {
        (plan.residency, plan.batch): plan.data_bytes - plan.needs_bytes for plan in found if plan.kv_store == "host"
    }
    assert beyond["streamed", 1] == 0
    assert 0 < beyond["mapped", 1] < beyond["phases", 1] == beyond["all", 1] < beyond["all", 2]


def test_time_decides_too(bundle: Bundle) -> None:
    quickest = min(plan.seconds or 0 for plan in plans_for(bundle).plans)
    assert plans_for(bundle, max_seconds=quickest * 1.01).chosen is not None
    short = plans_for(bundle, max_seconds=quickest * 0.5)
    assert short.chosen is None
    assert "the fastest plan takes" in shortfall(short)
    unknown = plans_for(bundle, profile="iphone-pro", max_seconds=1000.0)
    assert unknown.chosen is None
    assert "cannot be said" in shortfall(unknown)


def test_every_residency_takes_less_than_the_one_before(bundle: Bundle) -> None:
    plans = plans_for(bundle, reference="per-step")
    # beside the process, which for a network this small takes more for cutting its graphs than that saves
    peaks = [
        max(
            segment.host_bytes - segment.host["process"]
            for segment in by(plans, residency=kind, batch=1, kv_store="disk").segments
        )
        for kind in ("phases", "mapped", "streamed")
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
    assert all(plan.exact for plan in plans.plans)
    for plan in plans.plans:
        if plan.residency == "streamed":  # between runs nothing of a transformer is held
            engines = [segment.host.get(name, 0) for segment in plan.segments for name in ("reference", "restoration")]
            assert set(engines) == {0}


def test_what_the_engines_cannot_do_is_not_proposed(bundle: Bundle) -> None:
    assert {plan.residency for plan in plans_for(bundle, profile="rtx-4090").plans} == {"all", "phases", "streamed"}


def test_ties_go_to_the_least_memory_or_to_the_simplest(bundle: Bundle) -> None:
    plans = list(plans_for(bundle, reference="per-step").plans)
    random.shuffle(plans)
    same = [msgspec.structs.replace(plan, seconds=10 + random.uniform(0, 0.1)) for plan in plans]
    assert _choose(same) == min(same, key=lambda plan: (plan.peak_bytes, plan.residency != "all", plan.arguments))
    unknown = _choose([msgspec.structs.replace(plan, seconds=None) for plan in plans])
    assert unknown is not None
    assert (unknown.residency, unknown.batch) == ("all", 1)


def test_recipes_that_are_planned_with_are_those_that_ship() -> None:
    from livemoments.quantize.recipes import load_recipe

    for name, bits in packed.RECIPES.items():
        recipe = load_recipe(name)
        assert recipe.block_size == packed.BLOCK
        assert recipe.action.value == f"weight-int{bits}"


@pytest.mark.slow
def test_what_a_recipe_would_leave_is_what_it_leaves(bundle: Bundle, tmp_path: Path) -> None:
    from livemoments.quantize.pipeline import quantize_bundle

    for name in packed.RECIPES:
        made = quantize_bundle(bundle.path, tmp_path / name, recipe=name, check_speed=False)
        for stage in TRANSFORMER_STAGES:
            size = bundle.tile_sizes[0]
            found = cost_of_stage(bundle, stage, size, recipe=name)
            expected = cost_of_stage(Bundle.open(made.path), stage, size)
            assert found.weight_bytes == pytest.approx(expected.weight_bytes, rel=0.05)
            assert found.flops == pytest.approx(expected.flops, rel=0.02)


def test_a_recipe_that_cannot_be_told_beforehand(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="what 'fp8' would leave cannot be told"):
        plans_for(bundle, recipe="fp8")
    restoration = msgspec.structs.replace(bundle.stage("restoration"), precision="int8-weights")
    stages = bundle.manifest.stages | {"restoration": restoration}
    quantized = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, stages=stages))
    with pytest.raises(UsageError, match="RestorationNet is int8-weights already"):
        plans_for(quantized, recipe="int8-weights")
    assert plans_for(bundle, recipe="int4-weights").nearest.peak_bytes < plans_for(bundle).nearest.peak_bytes


def test_rates_of_records_replace_peaks() -> None:
    gpu, cpu = rates_of(load_profile("h100")), rates_of(load_profile("cpu-amx"), cores=4)
    assert gpu.flops["fp16"] == pytest.approx(0.5 * 989.4e12)
    assert gpu.bytes_s == pytest.approx(0.7 * 3350e9)
    assert "assumed" in gpu.basis
    assert cpu.flops["fp32"] == pytest.approx(2 * 0.311e12)  # the record had two cores
    assert rates_of(load_profile("iphone-pro")).flops == {}


def test_an_accelerator_has_memory_of_its_own(bundle: Bundle) -> None:
    plans = plans_for(bundle, profile="rtx-4060-8gb")
    assert plans.budget_bytes == 7_200_000_000
    assert not plans.measured
    assert plans.chosen is not None
    assert plans.chosen.peak_bytes == max(segment.device_bytes for segment in plans.chosen.segments)
    assert "assumed, never measured" in plans_text(plans)


def test_what_the_bundle_cannot_do(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no plan for 5 steps"):
        plans_for(bundle, steps=5)
    with pytest.raises(UsageError, match="no graphs for 128x128"):
        plans_for(bundle, tile=Size(128, 128))
    with pytest.raises(UsageError, match="frozen@9 names a step"):
        plans_for(bundle, reference="frozen@9")


@pytest.mark.parametrize(("target", "words"), [("coreml", "Core ML bundle"), ("torch", "bundle of PyTorch networks")])
def test_bundles_without_graphs_are_not_planned_with(bundle: Bundle, target: str, words: str) -> None:
    other = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, target=target))
    with pytest.raises(UsageError, match=f"{words} has no graphs"):
        plans_for(other)


# The picture


def test_the_picture_is_whole(bundle: Bundle) -> None:
    plans = plans_for(bundle, max_memory_bytes=160_000_000)
    plan = plans.chosen or plans.nearest
    root = ET.fromstring(plan_svg(plans, plan))
    space = "{http://www.w3.org/2000/svg}"
    bars = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert len(bars) == sum(len(segment.host) for segment in plan.segments)
    columns: dict[str, float] = {}
    for bar in bars:
        columns[bar.attrib["x"]] = columns.get(bar.attrib["x"], 0) + float(bar.attrib["height"])
    assert len(columns) == len(plan.segments)
    heights = list(columns.values())
    by_memory = [segment.host_bytes for segment in plan.segments]
    for height, held in zip(heights, by_memory, strict=True):
        assert height / max(heights) == pytest.approx(held / max(by_memory), rel=1e-3)
    assert any("budget" in (text.text or "") for text in root.iter(f"{space}text"))


# The command


def test_plan_prints_what_restore_understands(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "timeline.svg"
    size = ("--photo", "304x256", "--frame", "152x128")
    result = run("plan", bundle.path, "--profile", "cpu-avx2", *size, "--svg", file)
    assert result.exit_code == 0
    assert "fits: " in result.stdout
    assert "memory over time" in result.stdout
    assert file.read_text().startswith("<svg")
    document = json.loads(run("plan", bundle.path, "--profile", "cpu-avx2", *size, "--json").stdout)
    from livemoments.cli import cli
    from livemoments.cli.restore import command

    assert cli.commands["restore"] is command
    images = ["--frame", "f", "--photo", "p", "-o", "o.png"]
    context = command.make_context("restore", [str(bundle.path), *images, *document["chosen"]["arguments"]])
    assert context.params["residency"] == document["chosen"]["residency"]
    assert context.params["batch"] == document["chosen"]["batch"]


def test_plan_ends_with_1_where_nothing_fits(bundle: Bundle) -> None:
    arguments = ("plan", bundle.path, "--profile", "cpu-avx2", "--photo", "304x256", "--max-memory", "50MB")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "no plan fits 50 MB: the smallest needs" in result.stdout
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["chosen"] is None
    assert "bytes more" in document["shortfall"]
    assert run("plan", bundle.path, "--max-time", "soon").exit_code == 2


def test_weights_are_not_read(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    removed = list(copy.rglob("weights.bin"))
    assert removed
    for file in removed:
        file.unlink()
    with pytest.raises(BundleError):
        Bundle.open(copy)
    arguments = ("--profile", "cpu-avx2", "--photo", "304x256", "--max-memory", "2GB", "--json")
    found, whole = (json.loads(run("plan", folder, *arguments).stdout) for folder in (copy, bundle.path))
    assert found == whole


@pytest.mark.process
def test_planning_needs_no_torch(bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx_ir'] = None; sys.modules['onnxscript'] = None\n"
        f"from livemoments.cli import main; sys.exit(main(['plan', {str(bundle.path)!r}, '--photo', '304x256']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_profile_of_ones_own_is_planned_with(bundle: Bundle) -> None:
    profile = load_profile("cpu-avx2")
    assert isinstance(profile, Profile)
    assert make_plans(bundle, profile, PlanRequest(PHOTO)).budget_bytes is None


def test_the_record_meets_the_bar_and_the_page_says_it() -> None:
    record = json.loads((ROOT / "benchmarks/results/plan-memory.json").read_text())
    page = (ROOT / "docs/planning.md").read_text()
    assert {row["network"] for row in record["rows"]} == {"tiny", "small", "mid"}
    for row in record["rows"]:
        assert abs(row["ratio"] - 1) <= record["bar"] == 0.1
        assert row["ratio"] == pytest.approx(row["predicted_mb"] / row["measured_mb"], abs=2e-3)
        assert f"{row['predicted_mb']:.0f} MB | {row['measured_mb']:.0f} MB" in page


def test_the_full_size_record_meets_the_bar_and_the_page_says_it() -> None:
    record = json.loads((ROOT / "benchmarks/results/full-size-memory.json").read_text())
    (row,) = record["rows"]
    assert row["residency"] == "mapped"
    assert row["measured_mb"] * 1e6 < record["bar_bytes"] == 6 << 30
    page = (ROOT / "docs/planning.md").read_text()
    assert f"{row['measured_mb']} MB ({row['measured_mb'] * 1e6 / (1 << 30):.2f} GiB)" in page
    assert f"Predicted were {row['predicted_mb']} MB" in page


def test_the_limits_record_kept_what_it_promised() -> None:
    record = json.loads((ROOT / "benchmarks/results/memory-limits.json").read_text())
    for kind, rows in record["rows"].items():
        assert len(rows) == record["settings"] == 20
        assert record["kept"][kind] == sum(row["kept"] for row in rows)
    for row in record["rows"]["said to fit"]:
        assert row["limit_mb"] >= row["needs_mb"] >= row["predicted_mb"] * 1.09
    for row in record["rows"]["does not fit"]:
        assert row["limit_mb"] < row["predicted_mb"]
    page = (ROOT / "docs/planning.md").read_text()
    for kind, words in (("said to fit", "said to fit: {} of 20"), ("does not fit", "said not to fit: {} of 20")):
        assert words.format(record["kept"][kind]) in page

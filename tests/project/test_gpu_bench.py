"""The GPU benchmark, on the CPU at tiny size: what it computes, counts and reports. Only the timings need a GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_graph_standin import stand_in_for_cuda_graphs
from places import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from livemoments.reference.checkpoint_sizes import SIZES
from livemoments.reference.mmdit import BlockGuidance, BlockKV, ReferenceNet, RestorationNet
from livemoments.reference.motion import embedding_index
from livemoments.schedule import build_schedule
from livemoments.types import ReferencePolicy

FOLDER = ROOT / "tools" / "gpu"
sys.path.insert(0, str(FOLDER))

import bench_cases  # noqa: E402
import bench_environment  # noqa: E402
import bench_measure  # noqa: E402
import bench_networks  # noqa: E402
import bench_plan  # noqa: E402
import bench_run  # noqa: E402
import bench_tile  # noqa: E402
import bench_torch  # noqa: E402

POLICIES = ("per-step", "every-2", "every-3", "frozen")
CLOSE = 1e-5
"""Relative L2 between two ways to compute one thing in float32."""
ODD = dataclasses.replace(SIZES["tiny"], num_layers=3, num_attention_heads=3, motion_widths=(8, 8, 8, 96))


def setup_of(sizes: Any = ODD, *, batch: int = 1, tile_px: int = 64, seed: int = 0) -> bench_networks.Setup:
    return bench_networks.Setup(sizes, tile_px, torch.device("cpu"), torch.float32, batch, seed)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


# --- what is computed -----------------------------------------------------------------------------------------------


def test_schedule_and_policies_are_the_package_s() -> None:
    points = build_schedule((6,)).points
    assert bench_networks.sigmas() == pytest.approx([*(point.sigma for point in points), 0.0], rel=1e-12)
    for policy in (*POLICIES, "phase-split"):
        assert tuple(bench_networks.policy_sources(policy)) == ReferencePolicy.parse(policy).source_steps(6)


def test_upstream_s_way_is_the_reference() -> None:
    setup = setup_of(batch=2, seed=7)
    inputs = bench_networks.draw_inputs(setup)
    tile = bench_tile.Tile(setup, "upstream", "eager", inputs)
    config = setup.sizes.transformer()
    reference, restoration = ReferenceNet(config).eval(), RestorationNet(config).eval()
    for network, ours in ((reference, tile.reference), (restoration, tile.restoration)):
        state = dict(ours.state_dict())
        state = {key: value for key, value in state.items() if key not in ("prompt", "pooled", "pos_embed.position")}
        missing, extra = network.transformer.load_state_dict(state, strict=False)
        assert not extra
        assert all(key.endswith(("pos_embed", "point_proj.weight")) for key in missing)
        network.transformer.pos_embed.cropped_pos_embed = lambda *_, own=ours: own.pos_embed.position
    for block, projection in zip(restoration.transformer.transformer_blocks, tile.projections.point_proj, strict=True):
        block.attn.processor.point_proj.weight.copy_(projection.weight)
    prompts = [(net.prompt.expand(2, -1, -1), net.pooled.expand(2, -1)) for net in (tile.reference, tile.restoration)]
    embeddings = tile.motion()
    for step in (0, 5):
        when = torch.full((2,), 1000 * bench_networks.sigmas()[step])
        kept: list[BlockKV] = reference(inputs.reference, when, *prompts[0])
        guidance = [BlockGuidance(kv, embeddings[embedding_index(i)]) for i, kv in enumerate(kept)]
        expected = restoration(inputs.latent, when, *prompts[1], guidance)
        kv = tile.reference_step(step)
        found = tile.restoration_step(inputs.latent, step, embeddings, kv)
        assert bench_measure.relative_error(kv[0], torch.cat([kept[0].image_key, kept[0].text_key], 1)) < CLOSE
        assert bench_measure.relative_error(found, expected) < CLOSE


@pytest.mark.parametrize("policy", POLICIES)
def test_ours_computes_what_upstream_s_way_computes(policy: str) -> None:
    setup = setup_of(seed=3)
    inputs = bench_networks.draw_inputs(setup)
    upstream, ours = (bench_tile.Tile(setup, way, "eager", inputs).run(policy) for way in ("upstream", "ours"))
    assert bench_measure.relative_error(ours, upstream) < CLOSE
    assert upstream.std() > 0.01
    if policy == "frozen":
        exact = bench_tile.Tile(setup, "upstream", "eager", inputs).run("per-step")
        assert bench_measure.relative_error(upstream, exact) > 100 * CLOSE


@pytest.mark.parametrize("way", ["upstream", "ours"])
@pytest.mark.parametrize("policy", ["per-step", "every-3", "frozen"])
def test_counted_operations_are_torch_s(way: bench_networks.Way, policy: str) -> None:
    setup = setup_of(batch=2)
    tile = bench_tile.Tile(setup, way, "eager", bench_networks.draw_inputs(setup))
    # the math kernel: the counter knows its products on every device
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tile.run(policy)
    assert tile.flops(policy) == counter.get_total_flops()


def test_full_size_operations_are_the_known_ones() -> None:
    sizes = SIZES["sd3-medium"]
    setup = bench_networks.Setup(sizes, 1024, torch.device("meta"), torch.float16)
    with torch.device("meta"):
        network = bench_networks.MMDiT(sizes.transformer(), setup.grid, sizes.prompt_tokens)
    alone = bench_tile.network_flops(network, batch=1) / 1e12
    guided = bench_tile.network_flops(network, batch=1, reference_tokens=setup.reference_tokens) / 1e12
    assert setup.image_tokens == 4096
    assert alone == pytest.approx(8.44, abs=0.01)
    assert guided == pytest.approx(11.10, abs=0.01)


@pytest.mark.parametrize("way", ["upstream", "ours"])
def test_static_buffers_of_graphs_carry_the_right_values(
    way: bench_networks.Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_cuda_graphs(monkeypatch)
    setup = setup_of()
    inputs = bench_networks.draw_inputs(setup)
    eager, graphs = (bench_tile.Tile(setup, way, mode, inputs) for mode in ("eager", "graphs"))
    before = inputs.latent.clone()
    for policy in ("every-2", "per-step"):
        assert bench_measure.relative_error(graphs.run(policy), eager.run(policy)) < CLOSE
    assert torch.equal(inputs.latent, before)


@pytest.mark.slow
def test_phase_split_is_exact_from_either_store() -> None:
    setup = setup_of()
    inputs = bench_networks.draw_inputs(setup)
    expected = bench_tile.Tile(setup, "ours", "eager", inputs).run("per-step")
    for store in ("device", "host"):
        record = bench_cases.phase_split(setup, inputs, store, expected, repeats=1)
        assert record["relative_error"] < CLOSE
        tokens = setup.image_tokens + setup.sizes.prompt_tokens
        assert record["store_bytes"] == 6 * setup.sizes.num_layers * 2 * tokens * setup.sizes.dim * 4
        assert [phase["network"] for phase in record["phases"]] == ["reference", "restoration"]


# --- what is reported -----------------------------------------------------------------------------------------------


def run_main(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    output = tmp_path / "results" / "bench.json"
    code = bench_torch.main([*arguments, "--output", str(output)])
    return code, json.loads(output.read_text())


@pytest.mark.slow
def test_dry_run_of_the_fast_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = ("eager", "graphs", "correctness", "phases", "micro")
    code, results = run_main(tmp_path, "--dry-run", *(a for group in groups for a in ("--group", group)))
    assert code == 0
    assert results["failures"] == []
    assert results["left_out"] == []
    cases = {case["name"]: case for case in results["cases"]}
    assert cases["ours eager per-step"]["error_against_upstream"] < CLOSE
    assert cases["ours eager frozen"]["tflop"] < cases["ours eager per-step"]["tflop"]
    assert cases["upstream eager per-step"]["tflop"] > cases["ours eager per-step"]["tflop"]
    assert cases["folding in float32"]["error_against_upstream"] < CLOSE
    assert cases["phase-split, host store"]["error_against_eager"] < CLOSE
    assert {item["name"] for item in results["skipped"]} == {
        f"{way} {mode} {policy}"
        for way, mode, policy in (
            ("ours", "graphs", "per-step"),
            ("ours", "graphs", "frozen"),
            ("upstream", "graphs", "per-step"),
        )
    }
    layers = cases["8-bit linears"]["layers"]
    assert {(layer["layer"], layer["kind"]) for layer in layers} == {
        (layer, kind) for layer in ("attention", "ff.0", "ff.2") for kind in ("float32", "fp8", "int8")
    }
    for layer in layers:
        assert "skipped" in layer or layer["relative_error"] < 0.06
    for case in results["cases"]:
        if "latency" in case:
            assert 0 < case["latency"]["p10_ms"] <= case["latency"]["median_ms"] <= case["latency"]["p90_ms"]
    environment = results["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["date"].startswith("20")
    assert "--dry-run" in results["settings"]["command"]
    table = capsys.readouterr().out
    assert "ours eager frozen" in table
    assert "skipped   ours graphs frozen: CUDA graphs need a CUDA device" in table


@pytest.mark.slow
def test_dry_run_of_everything(tmp_path: Path) -> None:
    code, results = run_main(tmp_path, "--dry-run", "--budget-s", "1000")
    assert code == 0
    cases = {case["name"]: case for case in results["cases"]}
    for way in ("ours", "upstream"):
        assert cases[f"{way} compile per-step"]["error_against_eager"] < CLOSE
    for part in ("motion encoder", "RAFT, all-pairs", "RAFT, on-demand", "VAE encode", "VAE decode"):
        assert cases[part]["tflop"] > 0
    assert cases["upstream through diffusers"]["tflop"] == pytest.approx(
        cases["upstream eager per-step"]["tflop"], rel=1e-3
    )
    assert all("graphs" in item["name"] for item in results["skipped"])


def test_a_spent_budget_leaves_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = run_main(tmp_path, "--dry-run", "--budget-s", "0")
    assert code == 0
    assert results["cases"] == []
    assert results["left_out"][:2] == [
        {"name": "ceilings", "group": "ceilings", "reason": "not run: time"},
        {"name": "upstream eager per-step", "group": "eager", "reason": "not run: time"},
    ]
    assert "left out  ours eager frozen: not run: time" in capsys.readouterr().out


class Clock:
    """A clock that only cases move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def fake_cases(clock: Clock, ran: list[str], **seconds: tuple[str, float]) -> list[bench_cases.Case]:
    def case(name: str, group: str, took_s: float) -> bench_cases.Case:
        def run() -> dict[str, Any]:
            ran.append(name)
            clock.now_s += took_s
            return {}

        return bench_cases.Case(name, group, run)

    return [case(name, group, took_s) for name, (group, took_s) in seconds.items()]


def test_slow_early_groups_do_not_starve_late_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran, saved = Clock(), [], []
    monkeypatch.setattr(bench_run, "time", clock)
    monkeypatch.setattr(bench_run, "GROUPS", {"early": 60, "late": 40})
    cases = fake_cases(clock, ran, a=("early", 35), b=("early", 35), c=("early", 35), d=("late", 10), e=("late", 2))
    results = bench_run.run_all(None, cases, 100.0, saved.append)
    assert ran == ["a", "b", "d", "e", "c"]  # c, which came too late in its group, gets what is left
    assert (results["left_out"], results["elapsed_s"]) == ([], 117.0)
    assert [len(found["cases"]) for found in saved] == [1, 2, 3, 4, 5]
    assert [item["name"] for item in saved[1]["left_out"]] == ["c", "d", "e"]  # who is stopped has said what is missing


def test_what_finds_no_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = Clock(), []
    monkeypatch.setattr(bench_run, "time", clock)
    monkeypatch.setattr(bench_run, "GROUPS", {"early": 60, "late": 40})
    results = bench_run.run_all(None, fake_cases(clock, ran, a=("early", 70), b=("early", 1), c=("late", 40)), 100.0)
    assert ran == ["a", "c"]
    assert results["left_out"] == [{"name": "b", "group": "early", "reason": "not run: time"}]


def test_every_case_is_in_a_group_that_has_a_share() -> None:
    bench = bench_cases.Bench(setup_of(), 1, 0, "eager")
    cases = bench_plan.plan(bench)
    assert {case.group for case in cases} == set(bench_plan.GROUPS)
    assert len({case.name for case in cases}) == len(cases)


def test_attention_is_held_against_float64_and_the_fastest_is_taken() -> None:
    bench = bench_cases.Bench(setup_of(batch=2), 2, 0, "eager")
    record = bench.attention()
    kernels = {kernel["kernel"]: kernel for kernel in record["kernels"]}
    assert set(kernels) == {"auto", "flash", "cudnn", "efficient", "sage"}
    assert kernels["auto"]["chosen"] == "flash"
    assert kernels["flash"]["relative_error"] < CLOSE
    assert (kernels["flash"]["queries"], kernels["flash"]["keys"]) == (29, 58)  # 16 + 13 tokens, twice as many keys
    for name in ("cudnn", "efficient", "sage"):
        assert "on cpu" in kernels[name]["skipped"]
    assert bench.fastest_attention in ("auto", "flash")
    assert bench_cases.Variant(fastest_attention=True).of(bench).attention == bench.fastest_attention


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_tile_with_8_bit_linears_is_near_and_counted_alike(kind: Any) -> None:
    sizes = dataclasses.replace(ODD, num_layers=2, motion_widths=(8, 8, 8, 96))
    plain, rounded = (
        bench_tile.Tile(setup, "ours", "eager", bench_networks.draw_inputs(setup))
        for setup in (setup_of(sizes), dataclasses.replace(setup_of(sizes), linears=kind))
    )
    error = bench_measure.relative_error(rounded.run("frozen"), plain.run("frozen"))
    assert 1e-3 < error < bench_cases.EIGHT_BIT_LIMIT[kind]
    assert rounded.flops("frozen") == plain.flops("frozen")


def test_the_commit_is_the_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert bench_environment.describe_environment(device, "checkout", "abc123")["commit"] == "abc123"
    monkeypatch.setattr(bench_environment, "first_line", lambda *command: command[0])
    assert bench_environment.describe_environment(device, "checkout")["commit"] == "git"


@pytest.mark.slow
def test_a_failed_case_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("out of memory: tried to allocate")

    monkeypatch.setattr(bench_cases, "phase_split", fail)
    code, results = run_main(tmp_path, "--dry-run", "--group", "phases", "--group", "micro")
    assert code == 1
    assert [item["name"] for item in results["failures"]] == ["phase-split, device store", "phase-split, host store"]
    assert results["failures"][0]["reason"].startswith("OutOfMemoryError: out of memory")
    assert [case["name"] for case in results["cases"]] == ["ceilings", "8-bit linears"]


def test_a_wrong_result_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = bench_networks.fold_conditioning

    def fold_wrongly(network: Any, weights: Any, timesteps: list[float]) -> Any:
        return fold(network, weights, [1.05 * timestep for timestep in timesteps])

    monkeypatch.setattr(bench_networks, "fold_conditioning", fold_wrongly)
    code, results = run_main(tmp_path, "--dry-run", "--group", "correctness")
    assert code == 1
    assert "error against upstream" in results["failures"][0]["reason"]


def test_missed_limits() -> None:
    assert bench_run.missed_limits({"finite": False}) == ["the result is not finite"]
    assert bench_run.missed_limits({"error_against_eager": 2e-2, "limit": 1e-2})
    assert bench_run.missed_limits({"error_against_eager": float("nan"), "limit": 1e-2})
    assert not bench_run.missed_limits({"error_against_eager": 1e-3, "limit": 1e-2})
    # frozen is not upstream's function: its distance is reported, not judged
    assert not bench_run.missed_limits({"policy": "frozen", "error_against_upstream": 0.3, "limit": 1e-2})
    assert bench_run.missed_limits({"policy": "per-step", "error_against_upstream": 0.3, "limit": 1e-2})


def test_what_needs_diffusers_is_skipped_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cases, "has_diffusers", lambda: False)
    monkeypatch.setattr(bench_plan, "raft_part", lambda *_: lambda: torch.ones(2))
    _, results = run_main(tmp_path, "--dry-run", "--group", "parts")
    needing = ("VAE encode", "VAE decode", "upstream through diffusers")
    found = {item["name"]: item["reason"] for item in results["skipped"]}
    assert found == dict.fromkeys(needing, "diffusers is not installed")
    assert "motion encoder" in {case["name"] for case in results["cases"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dry-run", "--group", "none"],
        ["--dry-run", "--tile", "72"],
        ["--dry-run", "--batch", "0"],
        ["--device", "cuda"],
    ],
)
def test_misuse_ends_with_one_line_and_code_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        bench_torch.main(arguments)
    assert left.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_quantiles_and_errors() -> None:
    found = bench_measure.quantiles([3.0, 1.0, 2.0])
    assert (found.median_ms, found.p10_ms, found.p90_ms, found.n) == (2.0, pytest.approx(1.2), pytest.approx(2.8), 3)
    assert bench_measure.relative_error(torch.ones(4), torch.full((4,), 2.0)) == 0.5
    assert bench_measure.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


BARE = """
import runpy, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", f)).lower()]
sys.modules.update(dict.fromkeys(["msgspec", "diffusers", "onnx", "cv2", "yaml"]))
script, output = sys.argv[1:]
sys.path.insert(0, script.rpartition("/")[0])
sys.argv = [script, "--dry-run", "--group", "correctness", "--output", output]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_runs_from_a_bare_checkout(tmp_path: Path) -> None:
    """Not installed, and without the packages that a GPU machine may lack."""
    output = tmp_path / "bare.json"
    command = [sys.executable, "-c", BARE, str(FOLDER / "bench_torch.py"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["environment"]["package_from"] == "checkout"
    assert results["failures"] == []

"""The GPU kit: its plan, clock, payloads and report; and a dry run in an environment as bare as a lent machine."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

FOLDER = ROOT / "tools" / "gpu"
sys.path[:0] = [str(FOLDER), str(ROOT / "benchmarks")]

import gpu_report  # noqa: E402
import kit_steps  # noqa: E402
import prepare_kit  # noqa: E402
import run_kit  # noqa: E402
import thin_fatbin  # noqa: E402

# --- the plan and its clock -----------------------------------------------------------------------------------------


Play = Callable[[Path, float], tuple[int | None, str, float]]
"""Stands for a step's process: its results' file and its time to (exit code, end of its output, seconds it took)."""


class Clock:
    """A clock that only steps move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def run_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: dict[kit_steps.Step, Play], *options: str
) -> tuple[int, dict[str, Any]]:
    """Run made-up steps on a made-up clock."""
    clock, plays = Clock(), {step.name: play for step, play in planned.items()}

    def run_for(command: list[str], time_s: float, environment: dict[str, str]) -> tuple[int | None, str]:
        output = Path(command[-1])
        code, tail, took_s = plays[output.stem](output, time_s)
        clock.now_s += took_s
        return code, tail

    monkeypatch.setattr(run_kit, "time", clock)
    monkeypatch.setattr(run_kit, "run_for", run_for)
    monkeypatch.setattr(run_kit, "steps", lambda sizes, call: [step for step in planned if step.call == call])
    monkeypatch.setattr(run_kit, "read_clocks", lambda: {"clocks.sm": "1980 MHz"})
    arguments = ["--output", str(tmp_path / "out"), "--commit", "abc", "--work", str(tmp_path / "work"), "--call", "1"]
    code = run_kit.main([*arguments, "--payload", str(tmp_path / "none"), *options])
    return code, json.loads((tmp_path / "out" / "call-1.json").read_text())


def step(name: str, share: int, **more: Any) -> kit_steps.Step:
    return kit_steps.Step(name, 1, share, ("x.py", "--budget-s", "{budget}", "--output", "{output}"), **more)


def never(output: Path, time_s: float) -> tuple[int | None, str, float]:
    raise AssertionError(f"{output} was run")


def plays(code: int | None, took_s: float, *, results: bool = True) -> Play:
    def play(output: Path, time_s: float) -> tuple[int | None, str, float]:
        if results:
            output.write_text(json.dumps({"had_s": time_s}))
        return code, f"the end of {output.stem}", took_s

    return play


def test_every_step_leaves_a_record_whatever_becomes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "made").mkdir(parents=True)
    planned = {
        step("good", 30): plays(0, 10.0),
        step("silent", 30): plays(0, 1.0, results=False),
        step("broken", 20): plays(1, 1.0, results=False),
        step("made", 10, makes="made", has_results=False): never,
        step("empty", 10, makes="checkpoint", has_results=False): plays(0, 0.0, results=False),
        step("foreign", 10, payload="onnxruntime"): never,
    }
    code, found = run_call(tmp_path, monkeypatch, planned, "--budget-s", "300")
    assert code == 1
    assert {record["name"]: record["status"] for record in found["steps"]} == {
        "good": "done",
        "silent": "failed: no results",
        "broken": "failed: exit code 1",
        "made": "there already",
        "empty": "failed: no checkpoint",
        "foreign": "not run: no payload 'onnxruntime'",
    }
    good, silent, broken, *_ = found["steps"]
    assert good["results"] == {"had_s": pytest.approx(300 * 30 / 110)}  # its share of 300 s
    assert good["command"][:3] == ["x.py", "--budget-s", "62"]  # without what the process takes to start
    assert silent["had_s"] == pytest.approx(290 * 30 / 80)  # what the first one left goes to the next ones
    assert good["clocks_before"] == good["clocks_after"] == {"clocks.sm": "1980 MHz"}
    assert broken["tail"] == "the end of broken"
    assert (found["commit"], found["call"], found["dry_run"], found["elapsed_s"]) == ("abc", 1, False, 12.0)


def test_a_stopped_step_keeps_its_results_and_late_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = {step("stopped", 50): plays(None, 95.0), step("late", 50): never, step("later", 1): never}
    code, found = run_call(tmp_path, monkeypatch, planned, "--budget-s", "100")
    assert code == 0
    first, *rest = found["steps"]
    assert (first["status"], first["results"]["had_s"]) == ("stopped: time", pytest.approx(100 * 50 / 101))
    assert [record["status"] for record in rest] == ["not run: time", "not run: time"]


@pytest.mark.process
def test_what_is_stopped_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """The child's child holds a pipe open as long as it lives."""
    read, write = os.pipe()
    text = "import subprocess, sys; subprocess.Popen(['sleep', '600'], pass_fds=[int(sys.argv[1])]).wait()"
    os.set_inheritable(write, True)
    popen = subprocess.Popen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_kit.subprocess, "Popen", lambda *args, **kwargs: popen(*args, **kwargs, pass_fds=[write]))
        code, _ = run_kit.run_for([sys.executable, "-c", text, str(write)], 2.0, os.environ)
    os.close(write)
    assert code is None
    with os.fdopen(read, "rb") as stream:
        assert stream.read() == b""  # the end: nobody is left who could write


def test_the_end_of_what_a_step_says_is_kept() -> None:
    text = "print('x' * 5000); raise SystemExit('no such kernel')"
    code, tail = run_kit.run_for([sys.executable, "-c", text], 100.0, os.environ)
    assert code == 1
    assert tail.strip().endswith("no such kernel")
    assert len(tail) == 2000


def test_the_plan_has_four_calls_whose_steps_all_have_a_way_to_run() -> None:
    for sizes in (kit_steps.FULL, kit_steps.DRY):
        planned = kit_steps.steps(sizes)
        assert [step.call for step in planned] == sorted(step.call for step in planned)
        assert {step.call for step in planned} == set(kit_steps.CALLS)
        assert len({step.name for step in planned}) == len(planned)
        for one in planned:
            assert (FOLDER / one.command[0]).is_file()
            assert one.has_results == ("{output}" in one.command)
    assert kit_steps.names(kit_steps.steps(kit_steps.FULL)) == kit_steps.names(kit_steps.steps(kit_steps.DRY))
    groups = {word for step in kit_steps.steps(kit_steps.FULL) for word in step.command}
    import bench_plan

    assert set(bench_plan.GROUPS) - {"ceilings"} <= groups


@pytest.mark.parametrize("options", [["--budget-s", "600"], ["--call", "5"], ["--budget-s", "0"]])
def test_a_call_longer_than_eight_minutes_is_refused(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        run_kit.main(["--output", str(tmp_path / "out"), "--commit", "abc", *options])
    assert left.value.code == 2
    assert not (tmp_path / "out").exists()


# --- the payloads ---------------------------------------------------------------------------------------------------


def region(*entries: tuple[int, bytes]) -> bytes:
    """A region of a fat binary with entries of an architecture and a payload."""
    body = b""
    for architecture, payload in entries:
        body += struct.pack("<HHIQIIHHIIIQQQ", 2, 0x101, 64, len(payload), 0, 0, 0, 0, architecture, 0, 0, 0, 0, 0)
        body += payload
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_code_of_other_chips_is_blanked_where_it_stands() -> None:
    lookalike = struct.pack("<I", 0xBA55ED50) + b"\x07" * 12
    head, tail = b"ELF" + lookalike, b"strings after"
    data = bytearray(head + region((80, b"a" * 40), (90, b"b" * 24), (120, b"c" * 8)) + b"--" + region((90, b"d" * 5)))
    data += tail
    size = len(data)
    assert [(e.architecture, e.stop - e.start) for e in thin_fatbin.find_entries(data)] == [
        (80, 40),
        (90, 24),
        (120, 8),
        (90, 5),
    ]
    done = thin_fatbin.thin(data, 90)
    assert (done.kept, done.other_architectures, done.never_launched) == (29, 48, 0)
    assert len(data) == size
    assert data.startswith(head)
    assert data.endswith(tail)
    assert (data.count(b"b"), data.count(b"d" * 5), data.count(b"a" * 2), data.count(b"c" * 2)) == (24, 1, 0, 0)
    with pytest.raises(ValueError, match=r"no code for SM 8\.9"):
        thin_fatbin.thin(data, 89)


def test_kernels_that_are_never_launched_are_blanked_and_unknown_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thin_fatbin, "kernel_names", lambda payload: [n for n in payload.split(b" ") if n])
    kept = [b"_Z9LayerNormI6__half", b"", b"_Z7GemmMoEI6__half _Z4copyI6__half"]
    gone = [b"_Z7GemmMoEI6__half _Z4topkMoe", b"_Z9LayerNormI13__nv_bfloat16"]
    data = bytearray(region(*((90, name) for name in (*kept, *gone))))
    thin_fatbin.thin(data, 90, is_wanted=thin_fatbin.is_launched)
    for name in kept:
        assert name in data
    for name in gone:
        assert name not in data


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
    return folder / name


def make_wheels(folder: Path) -> None:
    for name in ("diffusers-0.42.1", "importlib_metadata-9.0", "zipp-4.1", "msgspec-0.20", "simplejpeg-1.9"):
        make_wheel(folder, f"{name}-py3-none-any.whl", {f"{name.split('-')[0]}/__init__.py": b"version = 1\n"})


def prepare(tmp_path: Path, *options: str) -> Path:
    output = tmp_path / "kit"
    assert prepare_kit.main(["--output", str(output), "--wheels", str(tmp_path / "wheels"), *options]) == 0
    return output


def test_the_folder_holds_sources_wheels_and_what_each_is(tmp_path: Path) -> None:
    make_wheels(tmp_path / "wheels")
    kit = prepare(tmp_path, "--without-onnxruntime")
    assert (kit / "tools/gpu/run_kit.py").is_file()
    assert (kit / "src/livemoments/pytorch/linears.py").is_file()
    assert not (kit / "tests").exists()
    manifest = json.loads((kit / "payload/manifest.json").read_text())
    assert manifest["bytes"] < manifest["limit_bytes"] == 64 << 20
    assert set(manifest["files"]) == {f"payload/tools/{name}" for name in manifest["wheels_sha256"]}
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (kit / name).stat().st_size, "sha256": prepare_kit.digest(kit / name)}
    assert len(manifest["commit"].removesuffix("+changes")) == 40
    site = run_kit.unpack(kit / "payload", tmp_path / "site")
    assert list(site) == ["tools"]
    assert (site["tools"] / "msgspec" / "__init__.py").read_text() == "version = 1\n"
    assert run_kit.unpack(kit / "payload", tmp_path / "site") == site


def test_onnxruntime_is_packed_thin_and_whole_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin_fatbin, "kernel_names", lambda payload: [])
    provider = b"ELF" + region((80, b"a" * 40), (90, b"b" * 24))
    files = {
        "onnxruntime/__init__.py": b"version = 2\n",
        "onnxruntime/capi/libonnxruntime_providers_cuda.so": provider,
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": b"t" * 99,
        "onnxruntime/capi/libonnxruntime.so.1.31.1": b"twice",
        "onnxruntime/transformers/optimizer.py": b"",
        "onnxruntime_gpu-1.31.1.dist-info/METADATA": b"Version: 1.31.1\n",
    }
    make_wheels(tmp_path / "wheels")
    make_wheel(tmp_path / "wheels", "onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl", files)
    kit = prepare(tmp_path)
    with tarfile.open(kit / "payload/onnxruntime/onnxruntime.tar.xz") as archive:
        assert set(archive.getnames()) == {
            "onnxruntime/__init__.py",
            "onnxruntime/capi/libonnxruntime_providers_cuda.so",
            "onnxruntime_gpu-1.31.1.dist-info/METADATA",
        }
        member = archive.extractfile("onnxruntime/capi/libonnxruntime_providers_cuda.so")
        assert isinstance(member, io.BufferedReader)
        thinned = member.read()
    assert len(thinned) == len(provider)
    assert (thinned.count(b"a"), thinned.count(b"b")) == (0, 24)
    assert list(run_kit.unpack(kit / "payload", tmp_path / "site")) == ["onnxruntime", "tools"]


def test_what_is_too_large_or_incomplete_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_wheels(tmp_path / "wheels")
    monkeypatch.setattr(prepare_kit, "LIMIT_BYTES", 1000)
    with pytest.raises(SystemExit) as left:
        prepare(tmp_path, "--without-onnxruntime")
    assert left.value.code == 2
    assert "travel at once" in capsys.readouterr().err
    (tmp_path / "wheels" / "msgspec-0.20-py3-none-any.whl").unlink()
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--without-onnxruntime")
    assert "0 wheels of msgspec" in capsys.readouterr().err
    assert not (tmp_path / "kit").exists()


# --- the report -----------------------------------------------------------------------------------------------------


def case(name: str, way: str, time_ms: float, **more: Any) -> dict[str, Any]:
    usual = {"group": "eager", "mode": "eager", "dtype": "float16", "linears": None, "fraction_of_ceiling": 0.5}
    latency = {"median_ms": time_ms, "p10_ms": time_ms, "p90_ms": time_ms, "n": 10}
    return {"name": name, "way": way, "latency": latency, "peak_memory_bytes": {"reserved": 10**10}, **usual, **more}


def results_of(*cases: dict[str, Any]) -> dict[str, Any]:
    return {"cases": list(cases), "skipped": [], "left_out": [], "failures": []}


def call_of(number: int, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"call": number, "commit": "abc", "date": "2026-11-27T00:00:00", "chip": "NVIDIA H200", "driver": "580"}
    return head | {"dry_run": False, "steps": [{"status": "done", "took_s": 1.0} | step for step in steps]} | more


def verdicts(*calls: dict[str, Any]) -> list[str]:
    return [goal.verdict for goal in gpu_report.goals(calls)]


def test_goals_are_judged_within_one_call_and_never_from_a_dry_run() -> None:
    upstream, slow = case("upstream", "upstream", 900.0), case("ours", "ours", 310.0)
    fast = case("fast", "ours", 290.0, fraction_of_ceiling=0.61)
    rounded = case("fp8", "ours", 100.0, linears="fp8", fraction_of_ceiling=0.9)
    tiles = {"name": "tiles", "results": results_of(upstream, slow, rounded)}
    assert verdicts(call_of(1, tiles)) == ["not reached", "not reached", "not measured", "not measured"]
    other = call_of(2, {"name": "tiles-2", "results": results_of(fast)})
    assert verdicts(call_of(1, tiles), other)[:2] == ["not reached", "reached"]  # 900 / 290 is of two calls
    both = {"name": "tiles", "results": results_of(upstream, fast)}
    assert verdicts(call_of(1, both))[:2] == ["reached", "reached"]
    assert verdicts(call_of(1, both, dry_run=True)) == ["not measured"] * 4

    def phases(*peaks: int) -> dict[str, Any]:
        found = [{"peak_memory_bytes": {"reserved": peak}} for peak in peaks]
        return {"name": "phases", "results": results_of({"name": "split", "group": "phases", "phases": found})}

    assert verdicts(call_of(2, phases(5 * 10**9, 79 * 10**8)))[2] == "reached"
    assert verdicts(call_of(2, phases(5 * 10**9, 81 * 10**8)))[2] == "not reached"  # the worse phase counts

    def photo(policy: str, seconds: float) -> dict[str, Any]:
        facts = {"policy": policy, "median_s": seconds, "provider": "cuda", "flow": "dis", "tiles": 20}
        return {"name": f"photo-{policy}", "results": facts}

    assert verdicts(call_of(3, photo("per-step", 1.0)))[3] == "not measured"
    assert verdicts(call_of(3, photo("per-step", 1.0), photo("frozen", 3.1)))[3] == "not reached"
    assert verdicts(call_of(3, photo("frozen", 2.9)))[3] == "reached"


def test_the_page_names_what_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results_of(case("ours <1>", "ours", 12.5), case("upstream", "upstream", 50.0))
    found["left_out"] = [{"name": "late case", "group": "eager", "reason": "not run: time"}]
    late = {"name": "photo-frozen", "status": "not run: time"}
    call = call_of(1, {"name": "tiles", "results": found, "clocks_before": {"clocks.sm": "345 MHz"}}, late)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "call-1.json").write_text(json.dumps(call))
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", str(tmp_path / "in"), "--output", str(tmp_path / "gpu.md")])
    gpu_report.main()
    page, chart = (tmp_path / "gpu.md").read_text(), (tmp_path / "gpu.svg").read_text()
    for text in ("| photo-frozen | not run: time |", "* late case: not run: time", "345 MHz, -", "4.00 times", "abc"):
        assert text in page, text
    assert "ours &lt;1&gt;" in chart
    assert chart.count("<rect") == 3
    assert json.loads((tmp_path / "gpu.json").read_text()) == [call]


# --- as on the machine ----------------------------------------------------------------------------------------------

BARE = """
import sys
from importlib.machinery import PathFinder

MISSING, PAYLOAD = {missing!r}, {payload!r}


class OnlyFromPayload:
    @staticmethod
    def find_spec(name, path=None, target=None):
        is_missing = path is None and name.partition(".")[0] in MISSING
        return PathFinder.find_spec(name, [PAYLOAD] if is_missing else path, target)

    @staticmethod
    def find_distributions(*arguments, **options):
        return PathFinder.find_distributions(*arguments, **options)


finders = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", f)).lower()]
sys.meta_path[:] = [OnlyFromPayload if f is PathFinder else f for f in finders]
"""
MISSING = ("msgspec", "diffusers", "importlib_metadata", "simplejpeg", "coremltools", "tensorrt", "tensorrt_rtx")


def bare_machine(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the kit's sources without history, and an environment that has only what such a machine has.

    What the tools' wheels would bring is linked from here; everything else of the project's own is out of reach.
    """
    import simplejpeg

    kit, packages = tmp_path / "kit", Path(simplejpeg.__file__).parents[1]
    prepare_kit.copy_sources(kit)
    site = tmp_path / "work" / "site" / "tools"
    site.mkdir(parents=True)
    (kit / "payload" / "tools").mkdir(parents=True)
    for found in packages.iterdir():
        if found.name.startswith(("msgspec", "diffusers", "importlib_metadata", "simplejpeg", "_simplejpeg")):
            (site / found.name).symlink_to(found)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE.format(missing=MISSING, payload=str(site)))
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kit, kept | {"PYTHONPATH": str(tmp_path / "bare"), "OMP_NUM_THREADS": "1"}


def run_bare(tmp_path: Path, call: int) -> dict[str, Any]:
    kit, environment = bare_machine(tmp_path)
    command = [sys.executable, str(kit / "tools/gpu/run_kit.py"), "--dry-run", "--commit", "abc", "--call", str(call)]
    command += ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--budget-s", "480"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert (tmp_path / "out" / f"call-{call}.json").exists(), done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "out" / f"call-{call}.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("call", kit_steps.CALLS)
def test_a_dry_run_of_every_call_on_a_bare_machine(tmp_path: Path, call: int) -> None:
    """Nothing fails. A slow machine may stop a step or leave cases out, which then say so: typos fail at once."""
    found = run_bare(tmp_path, call)
    for step in found["steps"]:
        assert step["status"] in ("done", "stopped: time", "not run: time"), (step["name"], step.get("tail"))
        results = step.get("results", {})
        assert results.get("failures", []) == []
        if step["status"] == "done" and results:
            assert results["environment"]["package_from"] == "checkout"
            assert results["environment"]["commit"] == "abc"
    assert found["steps"][0]["status"] in ("done", "stopped: time")
    assert gpu_report.page([found], "chart.svg").startswith("# A processor (a dry run")
    assert [goal.verdict for goal in gpu_report.goals([found])] == ["not measured"] * 4

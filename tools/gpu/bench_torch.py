"""Upstream's way against ours on one GPU with PyTorch: latency per tile, peak memory, fraction of the chip's rate.

Needs PyTorch 2.5 or newer, numpy, safetensors and this checkout; diffusers, where it is there, serves the VAE and
upstream's way through diffusers' own modules. Weights are random and made on the device: neither latency nor memory
depends on them. README.md beside this file says how to run it and what the results mean.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench_path import make_importable

PACKAGE_FROM = make_importable()

import torch  # noqa: E402
from bench_arguments import leave, make_setup, parse_arguments  # noqa: E402
from bench_environment import describe_environment  # noqa: E402
from bench_measure import (  # noqa: E402
    copy_ceiling,
    matrix_ceiling,
    peak_memory,
    relative_error,
    release_memory,
    time_runs,
)
from bench_micro import micro_cases  # noqa: E402
from bench_networks import Setup, Way, draw_inputs  # noqa: E402
from bench_parts import diffusers_tile, has_diffusers, measure_part, motion_part, raft_part, vae_part  # noqa: E402
from bench_phases import Store, phase_split  # noqa: E402
from bench_table import print_table  # noqa: E402
from bench_tile import Mode, Tile  # noqa: E402

SCHEMA_VERSION = 1
FOLDING_LIMIT = 1e-4
"""Folded against unfolded, float32, relative L2."""
MODE_LIMIT = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4}
"""A variant against the eager run of the same function, relative L2: rounding of the type over six steps."""
_CHECKED_BLOCKS = 4
_EXACT = ("per-step", "phase-split")


class SkipCase(Exception):  # noqa: N818 (a signal, not an error)
    """A case that this machine cannot run; the reason goes into the results."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: ``run`` returns its record."""

    name: str
    group: str
    run: Callable[[], dict[str, Any]]


@dataclass(slots=True)
class Bench:
    """What the cases share: the setup, the networks that are resident now, results to compare with."""

    setup: Setup
    repeats: int
    warmup: int
    backend: str
    ceiling_tflops: float | None = None
    changes: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    _tile: tuple[tuple[torch.dtype, Way, Mode], Tile] | None = None

    def tile(self, setup: Setup, way: Way, mode: Mode) -> Tile:
        """The networks of a way and mode; the ones before are freed first."""
        key = (setup.dtype, way, mode)
        if self._tile is not None and f"{self._tile[0][2]}+graphs" == mode and self._tile[0][:2] == key[:2]:
            self._tile[1].capture()  # compiled already: capturing is all that is new
            self._tile = (key, self._tile[1])
        if self._tile is None or self._tile[0] != key:
            self.release()
            self._tile = (key, Tile(setup, way, mode, draw_inputs(setup), backend=self.backend))
        return self._tile[1]

    def release(self) -> None:
        """Free the resident networks."""
        self._tile = None
        release_memory(self.setup.device)

    def ceilings(self) -> dict[str, Any]:
        """The device's measured matrix rate and copy bandwidth."""
        small = self.setup.device.type != "cuda"
        dtype = self.setup.dtype
        side, size_bytes = (256, 1 << 22) if small else (8192, 1 << 31)
        rate, latency = matrix_ceiling(self.setup.device, dtype, side=side, repeats=self.repeats)
        bandwidth, copy = copy_ceiling(self.setup.device, size_bytes=size_bytes, repeats=self.repeats)
        self.ceiling_tflops = rate
        return {
            "matrix_tflop_per_s": rate,
            "matrix_side": side,
            "matrix_latency": asdict(latency),
            "copy_gb_per_s": bandwidth,
            "copy_bytes": size_bytes,
            "copy_latency": asdict(copy),
        }

    def transformers(self, way: Way, mode: Mode, policy: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """The two transformers and the motion encoder on one tile, all steps."""
        setup = self.setup if dtype is None else replace(self.setup, dtype=dtype)
        if "graphs" in mode and setup.device.type != "cuda":
            raise SkipCase("CUDA graphs need a CUDA device")
        started = time.perf_counter()
        tile = self.tile(setup, way, mode)
        tile.run(policy)
        prepared_s = time.perf_counter() - started
        with peak_memory(setup.device) as peak:
            latency = time_runs(lambda: tile.run(policy), setup.device, repeats=self.repeats, warmup=self.warmup)
        change = tile.run(policy)
        operations = tile.flops(policy)
        rate = operations / latency.median_ms / 1e9
        return {
            "way": way,
            "mode": mode,
            "policy": policy,
            "dtype": str(setup.dtype).removeprefix("torch."),
            "latency": asdict(latency),
            "peak_memory_bytes": asdict(peak),
            "tflop": operations / 1e12,
            "tflop_per_s": rate,
            "fraction_of_ceiling": rate / self.ceiling_tflops if self.ceiling_tflops and dtype is None else None,
            "prepared_s": prepared_s,
            **self._compare(setup, way, mode, policy, change),
        }

    def _compare(self, setup: Setup, way: Way, mode: Mode, policy: str, change: torch.Tensor) -> dict[str, Any]:
        suffix = "" if setup.dtype == self.setup.dtype else str(setup.dtype)
        key = (f"{way}{suffix}", policy)
        found: dict[str, Any] = {"finite": bool(torch.isfinite(change).all())}
        if mode == "eager":
            self.changes[key] = change
        elif key in self.changes:
            found["error_against_eager"] = relative_error(change, self.changes[key])
            found["limit"] = MODE_LIMIT[setup.dtype]
        base = self.changes.get((f"upstream{suffix}", "per-step"))
        if base is not None and key[0] + key[1] != f"upstream{suffix}per-step":
            found["error_against_upstream"] = relative_error(change, base)
            if policy in _EXACT:
                found["limit"] = MODE_LIMIT[setup.dtype]
        return found

    def folding(self) -> dict[str, Any]:
        """Folded and pruned against computed, in float32 with few blocks of full width."""
        self.release()
        few = min(_CHECKED_BLOCKS, self.setup.sizes.num_layers)
        sizes = replace(self.setup.sizes, num_layers=few)
        setup = replace(self.setup, sizes=sizes, dtype=torch.float32, tile_px=self.setup.tile_px // 2)
        inputs = draw_inputs(setup)
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            plain, folded = (Tile(setup, way, "eager", inputs).run("per-step") for way in ("upstream", "ours"))
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        error = relative_error(folded, plain)
        return {"blocks": few, "tile_px": setup.tile_px, "error_against_upstream": error, "limit": FOLDING_LIMIT}

    def phases(self, store: Store) -> dict[str, Any]:
        """The phase-split policy, each network resident alone."""
        self.release()
        expected = self.changes.get(("ours", "per-step"))
        record = phase_split(self.setup, draw_inputs(self.setup), store, expected, repeats=self.repeats)
        error = record.pop("relative_error")
        return {**record, "policy": "phase-split", "error_against_eager": error, "limit": MODE_LIMIT[self.setup.dtype]}

    def part(self, build: Callable[[], Callable[[], object]], *, diffusers: bool = False) -> dict[str, Any]:
        """One network beside the transformers."""
        if diffusers and not has_diffusers():
            raise SkipCase("diffusers is not installed")
        self.release()
        with torch.no_grad():
            return measure_part(build(), self.setup, repeats=self.repeats)

    def micro(self) -> dict[str, Any]:
        """8-bit linear layers."""
        self.release()
        return {"layers": list(micro_cases(self.setup, repeats=self.repeats))}


def plan(bench: Bench) -> list[Case]:
    """The cases, the most important first."""
    cases = [Case("ceilings", "ceilings", bench.ceilings)]

    def add(way: Way, mode: Mode, *policies: str, dtype: torch.dtype | None = None, suffix: str = "") -> None:
        for policy in policies:
            kind = suffix if dtype is None else f" {str(dtype).removeprefix('torch.')}"
            name = f"{way} {mode} {policy}{kind}"
            run = lambda policy=policy: bench.transformers(way, mode, policy, dtype)  # noqa: E731
            cases.append(Case(name, mode if dtype is None else "second-dtype", run))

    add("upstream", "eager", "per-step")
    add("ours", "eager", "per-step", "frozen", "every-2", "every-3")
    cases.append(Case("folding in float32", "correctness", bench.folding))
    modes: tuple[Mode, ...] = ("compile", "compile+graphs")
    for way, policies in (("ours", ("per-step", "frozen", "every-2", "every-3")), ("upstream", ("per-step",))):
        for mode in modes:
            add(way, mode, *policies)
    add("ours", "graphs", "per-step", "frozen")
    add("upstream", "graphs", "per-step")
    stores: tuple[Store, ...] = ("device", "host")
    cases += [Case(f"phase-split, {s} store", "phases", lambda s=s: bench.phases(s)) for s in stores]
    cases.append(Case("8-bit linears", "micro", bench.micro))
    setup, inputs = bench.setup, draw_inputs(bench.setup)
    builders: list[tuple[str, Callable[[], Callable[[], object]], bool]] = [
        ("motion encoder", lambda: motion_part(setup, inputs), False),
        ("RAFT, all-pairs", lambda: raft_part(setup, "all-pairs"), False),
        ("RAFT, on-demand", lambda: raft_part(setup, "on-demand"), False),
        ("VAE encode", lambda: vae_part(setup, "encode"), True),
        ("VAE decode", lambda: vae_part(setup, "decode"), True),
        ("upstream through diffusers", lambda: diffusers_tile(setup, inputs), True),
    ]
    for name, build, needs in builders:
        cases.append(Case(name, "parts", lambda build=build, needs=needs: bench.part(build, diffusers=needs)))
    other = torch.bfloat16 if setup.dtype == torch.float16 else torch.float16
    add("upstream", "eager", "per-step", dtype=other)
    add("ours", "eager", "per-step", "frozen", dtype=other)
    add("upstream", "eager", "per-step", suffix=" again")  # how far two measurements of one thing lie apart
    return cases


def run_all(bench: Bench, cases: list[Case], budget_s: float) -> dict[str, Any]:
    """Run the cases until the budget is spent; a case that fails does not stop the others."""
    started = time.monotonic()
    done: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    failures: list[dict[str, str]] = []
    left_out: list[str] = []
    for case in cases:
        elapsed_s = time.monotonic() - started
        if elapsed_s >= budget_s:
            left_out.append(case.name)
            continue
        sys.stderr.write(f"[{elapsed_s:6.1f} s] {case.name}\n")
        try:
            with torch.no_grad():
                record = {"name": case.name, "group": case.group, **case.run()}
        except SkipCase as reason:
            skipped.append({"name": case.name, "reason": str(reason)})
            continue
        except Exception as error:  # whatever a driver, a compiler or an allocator raises: record it, measure the rest
            failures.append({"name": case.name, "reason": f"{type(error).__name__}: {str(error)[:2000]}"})
            bench.release()
            continue
        done.append(record)
        failures += [{"name": case.name, "reason": text} for text in missed_limits(record)]
    return {
        "cases": done,
        "skipped": skipped,
        "failures": failures,
        "left_out": left_out,
        "elapsed_s": time.monotonic() - started,
        "budget_s": budget_s,
    }


def missed_limits(record: dict[str, Any]) -> list[str]:
    """What is wrong with a record's numbers."""
    found = ["the result is not finite"] if record.get("finite") is False else []
    exact = record.get("policy", "per-step") in _EXACT
    names = ("error_against_eager", *(("error_against_upstream",) if exact else ()))
    for name in names:
        error, limit = record.get(name), record.get("limit")
        if error is not None and limit is not None and not error <= limit:
            found.append(f"{name.replace('_', ' ')} is {error:.2e}, the limit {limit:.0e}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done (perhaps not everything, within the budget); 1: a case failed or missed its limit."""
    arguments = parse_arguments(argv, __doc__)
    bench = Bench(make_setup(arguments), arguments.repeats, arguments.warmup, arguments.compile_backend)
    cases = plan(bench)
    if unknown := set(arguments.group or ()) - {case.group for case in cases}:
        leave(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(sorted({c.group for c in cases}))}")
    wanted = [case for case in cases if not arguments.group or case.group in {*arguments.group, "ceilings"}]
    results = {
        "schema_version": SCHEMA_VERSION,
        "environment": describe_environment(bench.setup.device, PACKAGE_FROM),
        "settings": {
            "command": [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)],
            "size": arguments.size,
            "sizes": asdict(bench.setup.sizes),
            "tile_px": bench.setup.tile_px,
            "image_tokens": bench.setup.image_tokens,
            "prompt_tokens": bench.setup.sizes.prompt_tokens,
            "batch": bench.setup.batch,
            "dtype": arguments.dtype,
            "repeats": arguments.repeats,
            "warmup": arguments.warmup,
            "compile_backend": bench.backend,
        },
        **run_all(bench, wanted, arguments.budget_s),
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print_table(results)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

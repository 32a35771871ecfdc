"""Which cases there are, in which groups, and what share of the time each group gets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_cases import Bench, Case, Variant
from bench_networks import Way, draw_inputs
from bench_parts import diffusers_tile, motion_part, raft_part, vae_part
from bench_phases import Store
from bench_tile import Mode

GROUPS = {
    "ceilings": 2,
    "eager": 18,
    "correctness": 4,
    "attention": 3,
    "compile+graphs": 22,
    "linears": 18,
    "phases": 9,
    "parts": 9,
    "micro": 3,
    "graphs": 6,
    "compile": 4,
    "second-dtype": 6,
}
"""Each group's share of the time, in the order in which they run."""
PLAIN = Variant()


def plan(bench: Bench) -> list[Case]:
    """The cases, the most important first."""
    cases = [Case("ceilings", "ceilings", bench.ceilings)]

    def add(group: str, way: Way, mode: Mode, *policies: str, variant: Variant = PLAIN, suffix: str = "") -> None:
        for policy in policies:
            run = lambda policy=policy: bench.transformers(way, mode, policy, variant)  # noqa: E731
            cases.append(Case(f"{way} {mode} {policy}{suffix}", group, run))

    add("eager", "upstream", "eager", "per-step")
    add("eager", "ours", "eager", "per-step", "frozen", "every-2", "every-3")
    add("eager", "upstream", "eager", "per-step", suffix=" again")  # how far two measurements of one thing lie apart
    cases.append(Case("folding in float32", "correctness", bench.folding))
    cases.append(Case("attention", "attention", bench.attention))
    fastest = Variant(fastest_attention=True)
    add("attention", "ours", "eager", "per-step", "frozen", variant=fastest, suffix=", fastest attention")
    add("compile+graphs", "ours", "compile+graphs", "frozen", "per-step", "every-2")
    add("compile+graphs", "ours", "compile+graphs", "frozen", variant=fastest, suffix=", fastest attention")
    add("compile+graphs", "upstream", "compile+graphs", "per-step")
    for kind in ("fp8", "int8"):
        variant = Variant(linears=kind, fastest_attention=True)
        for mode in ("eager", "compile+graphs"):
            add("linears", "ours", mode, "per-step", "frozen", variant=variant, suffix=f", {kind} linears")
    stores: tuple[Store, ...] = ("device", "host")
    cases += [Case(f"phase-split, {s} store", "phases", lambda s=s: bench.phases(s)) for s in stores]
    cases += _parts(bench)
    cases.append(Case("8-bit linears", "micro", bench.micro))
    add("graphs", "ours", "graphs", "per-step", "frozen")
    add("graphs", "upstream", "graphs", "per-step")
    add("compile", "ours", "compile", "per-step", "frozen")
    add("compile", "upstream", "compile", "per-step")
    other = Variant(dtype=torch.bfloat16 if bench.setup.dtype == torch.float16 else torch.float16)
    name = f" {str(other.dtype).removeprefix('torch.')}"
    add("second-dtype", "upstream", "eager", "per-step", variant=other, suffix=name)
    add("second-dtype", "ours", "eager", "per-step", "frozen", variant=other, suffix=name)
    return cases


def _parts(bench: Bench) -> list[Case]:
    setup, inputs = bench.setup, draw_inputs(bench.setup)
    builders: list[tuple[str, Callable[[], Callable[[], object]], bool]] = [
        ("VAE encode", lambda: vae_part(setup, "encode"), True),
        ("VAE decode", lambda: vae_part(setup, "decode"), True),
        ("RAFT, all-pairs", lambda: raft_part(setup, "all-pairs"), False),
        ("RAFT, on-demand", lambda: raft_part(setup, "on-demand"), False),
        ("motion encoder", lambda: motion_part(setup, inputs), False),
        ("upstream through diffusers", lambda: diffusers_tile(setup, inputs), True),
    ]
    return [
        Case(name, "parts", lambda build=build, needs=needs: bench.part(build, diffusers=needs))
        for name, build, needs in builders
    ]

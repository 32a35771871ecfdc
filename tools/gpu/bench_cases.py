"""The cases: what each measures, and what they share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from bench_attention import attention_cases, draw_heads
from bench_measure import (
    copy_ceiling,
    matrix_ceiling,
    peak_memory,
    relative_error,
    release_memory,
    time_runs,
)
from bench_micro import micro_cases
from bench_networks import Setup, Way, draw_inputs
from bench_parts import has_diffusers, measure_part
from bench_phases import Store, phase_split
from bench_tile import Mode, Tile

from livemoments.pytorch.attention import AttentionKind, chosen_kernel
from livemoments.pytorch.linears import LinearKind

FOLDING_LIMIT = 1e-4
"""Folded against unfolded, float32, relative L2."""
MODE_LIMIT = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4}
"""A variant against the eager run of the same function, relative L2: rounding of the type over six steps."""
EIGHT_BIT_LIMIT: dict[LinearKind, float] = {"int8": 0.1, "fp8": 0.3}
"""The same for 8-bit linears on random weights: far above what rounding does, far below what a wrong product does."""
_CHECKED_BLOCKS = 4
EXACT = ("per-step", "phase-split")


class SkipCase(Exception):  # noqa: N818 (a signal, not an error)
    """A case that this machine cannot run; the reason goes into the results."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: ``run`` returns its record."""

    name: str
    group: str
    run: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs from the run's setup.

    Attributes:
        dtype: of weights and activations.
        linears: 8-bit products.
        fastest_attention: force the kernel that :meth:`Bench.attention` found to be the fastest.
    """

    dtype: torch.dtype | None = None
    linears: LinearKind | None = None
    fastest_attention: bool = False

    def of(self, bench: Bench) -> Setup:
        """The setup with it."""
        attention = bench.fastest_attention if self.fastest_attention else bench.setup.attention
        return replace(bench.setup, dtype=self.dtype or bench.setup.dtype, linears=self.linears, attention=attention)


@dataclass(slots=True)
class Bench:
    """What the cases share: the setup, the networks that are resident now, results to compare with."""

    setup: Setup
    repeats: int
    warmup: int
    backend: str
    ceiling_tflops: float | None = None
    fastest_attention: AttentionKind = "auto"
    changes: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    _tile: tuple[tuple[Setup, Way, Mode], Tile] | None = None

    def tile(self, setup: Setup, way: Way, mode: Mode) -> Tile:
        """The networks of a way and mode; the ones before are freed first."""
        key = (setup, way, mode)
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

    def transformers(self, way: Way, mode: Mode, policy: str, variant: Variant) -> dict[str, Any]:
        """The two transformers and the motion encoder on one tile, all steps."""
        setup = variant.of(self)
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
            "attention": chosen_kernel(setup.attention, *draw_heads(setup)),
            "linears": setup.linears,
            "latency": asdict(latency),
            "peak_memory_bytes": asdict(peak),
            "tflop": operations / 1e12,
            "tflop_per_s": rate,
            "fraction_of_ceiling": self._fraction(rate, setup),
            "prepared_s": prepared_s,
            **self._compare(setup, way, mode, policy, change),
        }

    def _fraction(self, rate: float, setup: Setup) -> float | None:
        """Of the matrix rate that was measured for the main type."""
        return rate / self.ceiling_tflops if self.ceiling_tflops and setup.dtype == self.setup.dtype else None

    def _compare(self, setup: Setup, way: Way, mode: Mode, policy: str, change: torch.Tensor) -> dict[str, Any]:
        suffix = "" if setup.dtype == self.setup.dtype else str(setup.dtype)
        key = (f"{way}{suffix}", policy)
        found: dict[str, Any] = {"finite": bool(torch.isfinite(change).all())}
        limit = MODE_LIMIT[setup.dtype] if setup.linears is None else EIGHT_BIT_LIMIT[setup.linears]
        if mode == "eager" and setup.linears is None and setup.attention == self.setup.attention:
            self.changes[key] = change
        elif key in self.changes:
            found["error_against_eager"] = relative_error(change, self.changes[key])
            found["limit"] = limit
        base = self.changes.get((f"upstream{suffix}", "per-step"))
        if base is not None and key[0] + key[1] != f"upstream{suffix}per-step":
            found["error_against_upstream"] = relative_error(change, base)
            if policy in EXACT:
                found["limit"] = limit
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

    def attention(self) -> dict[str, Any]:
        """Every attention kernel at the restoration network's shape."""
        self.release()
        kernels = list(attention_cases(self.setup, repeats=self.repeats))
        timed = {k["kernel"]: k["latency"]["median_ms"] for k in kernels if "latency" in k and k["kernel"] != "sage"}
        self.fastest_attention = min(timed, key=timed.__getitem__)  # of those that compute in the main type
        return {"kernels": kernels, "fastest": self.fastest_attention}

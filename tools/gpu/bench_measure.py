"""Latency, peak memory, and the device's own ceilings."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds over ``n`` runs: the median, the 10th and the 90th percentile."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    n: int


@dataclass(slots=True)
class PeakMemory:
    """The most device memory at once, in bytes; ``None`` where the device does not say (CPU).

    ``allocated`` counts tensors, ``reserved`` what the allocator took from the driver (the figure that must fit).
    """

    allocated: int | None = None
    reserved: int | None = None


def quantiles(samples_ms: list[float]) -> Latency:
    """The summary of some runs; percentiles by linear interpolation."""
    ordered = torch.tensor(sorted(samples_ms), dtype=torch.float64)
    p10, median, p90 = (float(torch.quantile(ordered, q)) for q in (0.1, 0.5, 0.9))
    return Latency(median, p10, p90, len(samples_ms))


def time_runs(run: Callable[[], object], device: torch.device, *, repeats: int, warmup: int) -> Latency:
    """Time ``run``: CUDA events around each run on a GPU (the queue is never drained in between), a clock on a CPU."""
    for _ in range(warmup):
        run()
    if device.type != "cuda":
        samples = []
        for _ in range(repeats):
            start = time.perf_counter_ns()
            run()
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return quantiles(samples)
    torch.cuda.synchronize(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize(device)
    return quantiles([a.elapsed_time(b) for a, b in itertools.pairwise(marks)])


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measures the peak inside the ``with`` block; what was resident before it counts."""
    found = PeakMemory()
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # or "reserved" tells of an earlier case
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    torch.cuda.synchronize(device)
    found.allocated = torch.cuda.max_memory_allocated(device)
    found.reserved = torch.cuda.max_memory_reserved(device)


def release_memory(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error, in float64; infinite when anything is not finite."""
    difference = torch.linalg.vector_norm(found.double() - expected.double())
    error = float(difference / torch.linalg.vector_norm(expected.double()))
    return error if math.isfinite(error) else math.inf


def matrix_ceiling(device: torch.device, dtype: torch.dtype, *, side: int, repeats: int) -> tuple[float, Latency]:
    """TFLOP/s of one large square matrix product on random data (zeros run faster than real data)."""
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    out = torch.empty_like(left)
    latency = time_runs(lambda: torch.matmul(left, right, out=out), device, repeats=repeats, warmup=3)
    return 2 * side**3 / latency.median_ms / 1e9, latency


def copy_ceiling(device: torch.device, *, size_bytes: int, repeats: int) -> tuple[float, Latency]:
    """GB/s of a large copy within the device, bytes read plus bytes written."""
    source = torch.randint(0, 255, (size_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    latency = time_runs(lambda: target.copy_(source), device, repeats=repeats, warmup=3)
    return 2 * size_bytes / latency.median_ms / 1e6, latency

"""How much memory an engine takes, loaded and running, by who runs it; and how fast it may be.

onnxruntime's CPU provider is followed closely (``ort_cpu.py``, ``liveness.py``) and compared with measured peaks
(``benchmarks/plan_memory.py``). For accelerators the numbers are assumptions that nothing has confirmed: they say so.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal

from livemoments.profiles.planner.cost import BlockCost, StageCost
from livemoments.profiles.schema import Profile
from livemoments.types import Stage

_MIB = 1 << 20
ARENA_STAGES = frozenset({Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION})
"""Those whose sessions keep their memory from run to run (``runtime/backends/ort.py``)."""


Keeping = Literal["usual", "lean", "blocks"]
"""What an engine keeps between runs: what it usually does; its weights alone, once, in memory or mapped from a file;
nothing, since each run loads one block after the other."""


class EngineModel(abc.ABC):
    """Memory of one kind of engine.

    Attributes:
        name: for people.
        measured: whether predictions were compared with measured peaks.
        process_bytes: of the process without any engine and picture.
        device_bytes: that the driver and its libraries take on the device.
        shares_host: the engines' memory is the process' own.
    """

    name: str
    measured: bool
    process_bytes: int
    device_bytes: int
    shares_host: bool

    @abc.abstractmethod
    def loaded_bytes(self, cost: StageCost, keeping: Keeping = "usual") -> int:
        """Of an engine that is loaded and has not run."""

    @abc.abstractmethod
    def running_bytes(self, cost: StageCost, runs: int, keeping: Keeping = "usual") -> int:
        """What the peak of ``runs`` runs adds to that, outputs included."""

    @abc.abstractmethod
    def kept_bytes(self, cost: StageCost, runs: int, keeping: Keeping = "usual") -> int:
        """What stays of that until the engine is closed."""


class OrtCpu(EngineModel):
    """onnxruntime on the CPU. Measured on Linux with onnxruntime 1.32: see ``docs/planning.md``."""

    name = "onnxruntime, CPU"
    measured = True
    process_bytes = 86 * _MIB  # Python, numpy, OpenCV, Pillow, onnxruntime with its first session's code
    device_bytes = 0
    shares_host = True
    _session_bytes = 2 * _MIB
    _node_bytes = 4 << 10
    _arena_slack = 1.2  # first run, in pieces of powers of two

    def loaded_bytes(self, cost: StageCost, keeping: Keeping = "usual") -> int:
        """Packed weights replace a product's own; those of convolutions lie beside the file's."""
        if keeping == "blocks":
            return 0
        packed = cost.conv_weight_bytes if keeping == "usual" else 0
        return cost.weight_bytes + packed + self._session(cost.nodes)

    def running_bytes(self, cost: StageCost, runs: int, keeping: Keeping = "usual") -> int:
        """See :meth:`EngineModel.running_bytes`: an arena keeps the first run's pieces beside the later runs' block."""
        if keeping == "blocks":
            return max(self._block(block) for block in cost.blocks)
        if keeping == "lean":
            return cost.first_run_bytes
        if cost.stage not in ARENA_STAGES:
            return max(cost.first_run_bytes, cost.second_run_bytes if runs > 1 else 0)
        first = int(cost.first_run_bytes * self._arena_slack)
        if runs > 1 and cost.block_bytes > _largest_region(first):
            return first + cost.block_bytes
        return max(first, cost.second_run_bytes if runs > 1 else 0)

    def kept_bytes(self, cost: StageCost, runs: int, keeping: Keeping = "usual") -> int:
        """See :meth:`EngineModel.kept_bytes`."""
        return self.running_bytes(cost, runs) if cost.stage in ARENA_STAGES and keeping == "usual" else 0

    def _session(self, nodes: int) -> int:
        return self._session_bytes + nodes * self._node_bytes

    def _block(self, block: BlockCost) -> int:
        return block.weight_bytes + self._session(block.nodes) + block.first_run_bytes + block.held_bytes


class Accelerator(EngineModel):
    """A GPU: weights once, live activations with a margin, the driver's share. **Assumed, not measured.**"""

    measured = False
    process_bytes = 86 * _MIB
    _margin = 1.25

    def __init__(self, name: str, *, unified: bool) -> None:
        self.name = name
        self.shares_host = unified
        self.device_bytes = 0 if unified else 500 * _MIB

    def loaded_bytes(self, cost: StageCost, keeping: Keeping = "usual") -> int:
        """The weights."""
        return 0 if keeping == "blocks" else cost.weight_bytes + cost.nodes * 1024

    def running_bytes(self, cost: StageCost, runs: int, keeping: Keeping = "usual") -> int:
        """Live activations and workspace, with a margin for the allocator."""
        if keeping == "blocks":
            blocks = (b.weight_bytes + b.held_bytes + int(b.live_bytes * self._margin) for b in cost.blocks)
            return max(blocks) + cost.input_bytes
        return int(cost.live_bytes * self._margin) + cost.input_bytes

    def kept_bytes(self, cost: StageCost, runs: int, keeping: Keeping = "usual") -> int:
        """An arena keeps it all."""
        return 0 if keeping == "blocks" else self.running_bytes(cost, runs)


def engine_model(profile: Profile) -> EngineModel:
    """What runs a profile's graphs."""
    if profile.engine.provider == "cpu":
        return OrtCpu()
    by = "Core ML" if profile.engine.target == "coreml" else "onnxruntime"
    return Accelerator(f"{by}, {profile.engine.provider}", unified=profile.memory.unified)


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations and bytes a second that a profile lets expect; ``None``: nobody knows.

    Attributes:
        flops: by what products are computed in; missing ones take float32's.
        bytes_s: of the device's memory.
        link_bytes_s: from the host; ``None`` too where nothing is copied.
        basis: where they come from, for people.
    """

    flops: dict[str, float]
    bytes_s: float | None
    link_bytes_s: float | None
    basis: str

    def seconds(self, cost: StageCost) -> float | None:
        """The roofline: the longer of computing and of moving, with nothing overlapping beyond that."""
        if not self.flops:
            return None
        slowest = min(self.flops.values())
        compute = sum(count / self.flops.get(unit, slowest) for unit, count in cost.product_flops.items())
        compute += cost.other_ops / slowest
        return compute if self.bytes_s is None else max(compute, cost.moved_bytes / self.bytes_s)


def rates_of(profile: Profile, cores: int | None = None) -> Rates:
    """A profile's measured rates where it has them, else its peaks times the efficiency that it states.

    Args:
        profile: of the device.
        cores: of a CPU that will be used; ``None``: as many as the record had.
    """
    chip, achieved, share = profile.chip, profile.achieved, profile.efficiency
    cores = profile.engine.threads or cores or achieved.cores
    scale = 1.0 if achieved.cores is None or cores is None else cores / achieved.cores
    flops: dict[str, float] = {}
    peaks = {"fp32": chip.tf32_tflops or chip.fp32_tflops, "fp16": chip.fp16_tflops, "int8": chip.int8_tops}
    peaks["fp8"] = chip.fp8_tflops
    measured = {"fp32": achieved.fp32_tflops, "fp16": achieved.fp16_tflops, "int8": achieved.int8_tops}
    for unit, peak in peaks.items():
        if (rate := measured.get(unit)) is not None:
            flops[unit] = rate * 1e12 * scale
        elif peak is not None:
            flops[unit] = peak * share.matrix * 1e12
    bandwidth = achieved.bandwidth_gb_s
    if bandwidth is None and chip.bandwidth_gb_s is not None:
        bandwidth = chip.bandwidth_gb_s * share.memory
    link = None if chip.link_gb_s is None else chip.link_gb_s * share.link * 1e9
    if any(rate is not None for rate in measured.values()):
        basis = "rates that records show"
        if achieved.cores is not None:
            basis += f" with {achieved.cores} cores, in proportion for {cores}"
    elif flops:
        basis = f"{share.matrix:.0%} of the peak rate and {share.memory:.0%} of the bandwidth, assumed"
    else:
        basis = "the profile has no rate"
    return Rates(flops, None if bandwidth is None else bandwidth * 1e9, link, basis)


def _largest_region(total: int) -> int:
    """The largest piece of an arena that grows by 1, 2, 4 … MiB until it holds ``total``."""
    region, held = _MIB, _MIB
    while held < total:
        region *= 2
        held += region
    return region

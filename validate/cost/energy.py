"""Energy of a piece of work, from the GPU's own counter; the processor's is not counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from livemoments.validate.cost.nvml import Gpu


class Energy:
    """What a piece of work took, in joules.

    Attributes:
        joules: of the whole GPU, idle power included; ``None`` where it was not counted.
    """

    def __init__(self) -> None:
        self.joules: float | None = None


@contextmanager
def count_energy(gpu: Gpu | None) -> Iterator[Energy]:
    """Count the GPU's energy over the ``with`` block (NVML's total energy counter; it ticks every 20 to 100 ms)."""
    energy = Energy()
    before = None if gpu is None else gpu.energy_j()
    yield energy
    after = None if gpu is None else gpu.energy_j()
    if before is not None and after is not None and after >= before:
        energy.joules = after - before

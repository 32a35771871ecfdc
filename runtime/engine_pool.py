"""The engines of one restoration: opened when first needed, timed, closed when no longer needed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

from livemoments.bundle import Bundle
from livemoments.heap import give_back_freed
from livemoments.manifest import Graph
from livemoments.runtime.backends.base import Array, Backend, Engine
from livemoments.types import Size, Stage

PHASES: tuple[frozenset[Stage], ...] = (
    frozenset({Stage.FLOW, Stage.VAE_ENCODER}),
    frozenset({Stage.REFERENCE}),
    frozenset({Stage.MOTION, Stage.RESTORATION}),
    frozenset({Stage.VAE_DECODER}),
)
"""A group of tiles passes through these one after the other; each stage is in one of them."""


@dataclass
class StageTiming:
    """How often something ran, and for how many seconds in all."""

    seconds: float = 0.0
    count: int = 0


class Timings:
    """Wall time by name.

    Attributes:
        stages: a stage's name for its runs, ``load:STAGE`` for opening its graph, and the steps without a graph:
            ``read``, ``photo_flow`` (which contains the flow stage's first run), ``color_fix``, ``write``.
        tile_seconds: for each tile, in the order of work, its share of its group's time.
        tile_load_seconds: the part of each of these in which engines were opened.
    """

    def __init__(self) -> None:
        self.stages: dict[str, StageTiming] = {}
        self.tile_seconds: list[float] = []
        self.tile_load_seconds: list[float] = []

    @property
    def load_seconds(self) -> float:
        """Seconds in which engines were opened, so far."""
        return sum(timing.seconds for name, timing in self.stages.items() if name.startswith("load:"))

    @property
    def tile_run_seconds(self) -> tuple[float, ...]:
        """Seconds of each tile without the opening of engines."""
        pairs = zip(self.tile_seconds, self.tile_load_seconds, strict=True)
        return tuple(max(0.0, seconds - load_seconds) for seconds, load_seconds in pairs)

    @contextlib.contextmanager
    def measure_group(self, tiles: int) -> Iterator[None]:
        """Time a ``with`` block that computes this many tiles, each of which gets the same share."""
        start_s, loaded_s = time.perf_counter(), self.load_seconds
        yield
        self.tile_seconds += [(time.perf_counter() - start_s) / tiles] * tiles
        self.tile_load_seconds += [(self.load_seconds - loaded_s) / tiles] * tiles

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of a ``with`` block to ``name``."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            entry = self.stages.setdefault(name, StageTiming())
            entry.seconds += time.perf_counter() - start_s
            entry.count += 1


class EnginePool:
    """Opens, runs and closes a bundle's stages for one tile size.

    Args:
        bundle: where the graphs are.
        backend: what opens them.
        size: the tiles' size in pixels.
        timings: where run and load times go.
        one_phase: opening an engine closes those of the other :data:`PHASES` first.
        remark: gets what the engines say of themselves (:attr:`Engine.remarks`) when they are opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        size: Size,
        timings: Timings | None = None,
        *,
        one_phase: bool = False,
        remark: Callable[[tuple[str, ...]], None] = lambda _: None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.size = size
        self.timings = timings or Timings()
        self._one_phase = one_phase
        self._remark = remark
        self._engines: dict[tuple[Stage, tuple[str, str]], Engine] = {}

    def graph(self, stage: Stage, size: Size | None = None) -> Graph:
        """The manifest's entry for the stage's graph, without loading it.

        Raises:
            BundleError: the bundle has none of this size.
        """
        return self.bundle.graph(stage, size or self.size)

    def is_open(self, stage: Stage) -> bool:
        """Whether some graph of the stage is loaded."""
        return any(key[0] == stage for key in self._engines)

    def run(
        self,
        stage: Stage,
        inputs: Mapping[str, Array],
        *,
        size: Size | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Array]:
        """Run a stage, loading it first if it is not loaded.

        Args:
            stage: the stage to run.
            inputs: numpy arrays of any float dtype (cast to the graph's), or arrays kept on the device before.
            size: image size in pixels; the tiles' by default.
            keep: outputs to leave on the device.

        Raises:
            BundleError: the bundle has no graph of this size.
            EngineError: see :meth:`Engine.run`.
            ResourceError: memory ran out.
        """
        engine = self._engine(stage, size or self.size)
        with self.timings.measure(str(stage)):
            return engine.run(engine.cast(inputs), keep=keep)

    def close(self, *stages: Stage) -> None:
        """Close these stages' engines, or all of them if none is named, and give their memory back to the system."""
        closed = [self._engines.pop(key) for key in list(self._engines) if not stages or key[0] in stages]
        for engine in closed:
            engine.close()
        if closed:
            give_back_freed()

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _engine(self, stage: Stage, size: Size) -> Engine:
        key = (stage, self.graph(stage, size).identity)
        if key not in self._engines:
            if self._one_phase:
                (phase,) = (stages for stages in PHASES if stage in stages)
                self.close(*(other for other in Stage if other not in phase))
            with self.timings.measure(f"load:{stage}"):
                self._engines[key] = self.backend.open(self.bundle, stage, size)
            self._remark(self._engines[key].remarks)
        return self._engines[key]

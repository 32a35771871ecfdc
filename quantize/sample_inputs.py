"""Inputs to try a quantized stage on: images, latents and flows with a natural spectrum, and what earlier stages made.

Only what the checked stages need is computed, with the source bundle's own engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from livemoments.bundle import Bundle
from livemoments.manifest import Graph
from livemoments.quantize.recipes import PACKAGES
from livemoments.runtime.backends.base import Backend, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.stage_inputs import draw_input
from livemoments.types import Size, Stage, TensorSpec

Arrays = Mapping[str, np.ndarray]

_STEPPED = (Stage.REFERENCE, Stage.RESTORATION)


def backend_for(bundle: Bundle) -> Backend:
    """What checks of a bundle run its engines with, on any system: onnxruntime, or the interpreter of packages."""
    if bundle.manifest.target != PACKAGES:
        return OrtBackend()
    from livemoments.coreml.backend import INTERPRETER, CoreMlBackend

    return CoreMlBackend(INTERPRETER)


class SampleInputs:
    """Cases for every stage of a bundle; one tile, at the first and the last point of its default sampling.

    Check ``reference`` and ``motion`` before ``restoration``, so that what they gave need not be computed again.

    Args:
        bundle: the source.
        seed: the seed of the noise.
    """

    def __init__(self, bundle: Bundle, seed: int = 0) -> None:
        self._bundle, self._backend, self._seed = bundle, backend_for(bundle), seed
        self._given: dict[tuple[Stage, Size, int | None], Arrays] = {}

    def cases(self, stage: Stage, size: Size) -> Iterator[tuple[int | None, Arrays]]:
        """A schedule's point (``None`` for stages that take none) and inputs in float32, by tensor name."""
        graph = self._bundle.graph(stage, size)
        schedule = self._bundle.manifest.schedule
        plan = schedule.plans[str(schedule.default_steps)]
        for point in dict.fromkeys((plan[0], plan[-1])) if stage in _STEPPED else (None,):
            yield point, self._inputs(graph, stage, size, point)

    def learn(self, stage: Stage, size: Size, point: int | None, outputs: Arrays) -> None:
        """Keep what the source gave, for the stages that take it."""
        if stage in (Stage.REFERENCE, Stage.MOTION):
            self._given[stage, size, point] = outputs

    def _inputs(self, graph: Graph, stage: Stage, size: Size, point: int | None) -> Arrays:
        given: dict[str, np.ndarray] = {}
        if stage is Stage.RESTORATION:
            for earlier, at in ((Stage.REFERENCE, point), (Stage.MOTION, None)):
                given |= self._outputs(earlier, size, at)
        return {
            spec.name: given[spec.name] if spec.name in given else self._draw(spec, stage, size, point)
            for spec in graph.inputs
        }

    def _outputs(self, stage: Stage, size: Size, point: int | None) -> Arrays:
        """What an earlier stage of the source gives; nothing if the bundle lacks it."""
        if str(stage) not in self._bundle.manifest.stages:
            return {}
        if (stage, size, point) not in self._given:
            inputs = self._inputs(self._bundle.graph(stage, size), stage, size, point)
            with self._backend.open(self._bundle, stage, size) as engine:
                outputs = engine.run(engine.cast(inputs))
            self.learn(stage, size, point, {name: to_host(array) for name, array in outputs.items()})
        return self._given[stage, size, point]

    def _draw(self, spec: TensorSpec, stage: Stage, size: Size, point: int | None) -> np.ndarray:
        rng = np.random.default_rng([self._seed, *f"{stage} {spec.name} {size}".encode()])
        return draw_input(spec, rng, size=size, point=point or 0)

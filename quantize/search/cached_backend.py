"""Restoring one photo again and again with one thing changed: what does not change is computed once.

:class:`CachedBackend` runs under the ordinary ``restore``. Each call of an engine is remembered by its inputs, so a
second restoration with another RestorationNet finds flow, latents, motion and every key and value again, and one whose
network differs at step 3 only finds the steps before it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livemoments.bundle import Bundle
from livemoments.manifest import Graph
from livemoments.runtime.backends.base import Array, Backend, Engine, to_host
from livemoments.types import Size, Stage

_SPOOL_BYTES = 1 << 20
"""Larger arrays lie in files and are read memory-mapped: a full-size tile's keys and values are gigabytes."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One run of an engine.

    Attributes:
        inputs: what it was given; large ones are memory-mapped.
        outputs: what it gave.
        point: the schedule's point, for stages that take a step.
    """

    inputs: Arrays
    outputs: Arrays
    point: int | None


class CallCache:
    """Calls by stage and inputs.

    Args:
        folder: an existing folder for large arrays; whoever made it removes it.
        knows: a cache whose arrays need not be copied or hashed again.

    Attributes:
        frozen: whether new calls are no longer remembered.
    """

    def __init__(self, folder: Path, knows: CallCache | None = None) -> None:
        self.frozen = False
        self._folder = folder
        self._other = knows
        self._calls: dict[tuple[Stage, bytes], Call] = {}
        self._known: dict[int, tuple[np.ndarray, bytes]] = {}
        self._files = 0

    def calls(self, stage: Stage) -> list[Call]:
        """A stage's distinct calls in their order."""
        return [call for (called, _), call in self._calls.items() if called == stage]

    def find(self, stage: Stage, inputs: Arrays) -> Call | None:
        """The call with these inputs, if it was made before."""
        return self._calls.get((stage, self._key(inputs)))

    def add(self, stage: Stage, inputs: Arrays, outputs: Arrays) -> Arrays:
        """Remember a call, unless frozen, and return its outputs as :meth:`find` will."""
        if self.frozen:
            return outputs
        key = (stage, self._key(inputs))
        step = inputs.get("step")
        call = Call(
            {name: self._keep(array) for name, array in inputs.items()},
            {name: self._keep(array) for name, array in outputs.items()},
            None if step is None else int(step),
        )
        self._calls[key] = call
        return call.outputs

    def _key(self, inputs: Arrays) -> bytes:
        digest = hashlib.blake2b(digest_size=20)
        for name in sorted(inputs):
            digest.update(name.encode() + b"\0" + self._digest(inputs[name]))
        return digest.digest()

    def _digest(self, array: np.ndarray) -> bytes:
        if (known := self._find_known(array)) is not None:
            return known
        digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=20)
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.digest()

    def _find_known(self, array: np.ndarray) -> bytes | None:
        """The digest of an array that this cache handed out: recognised as the object it is, without reading it."""
        kept, digest = self._known.get(id(array), (None, b""))
        if kept is array:
            return digest
        return None if self._other is None else self._other._find_known(array)

    def _keep(self, array: np.ndarray) -> np.ndarray:
        if self._find_known(array) is not None:
            return array
        if array.nbytes > _SPOOL_BYTES:
            path = self._folder / f"{self._files}.npy"
            self._files += 1
            np.save(path, array, allow_pickle=False)
            kept = np.load(path, mmap_mode="r")
        else:
            kept = array.copy()
        self._known[id(kept)] = (kept, self._digest(array))
        return kept


class CachedEngine(Engine):
    """An engine whose calls are remembered; the engine behind it is opened at the first call that is not."""

    def __init__(self, graph: Graph, cache: CallCache, stage: Stage, open_engine: Callable[[], Engine]) -> None:
        super().__init__(stage, graph.inputs, graph.outputs)
        self._cache = cache
        self._open = open_engine

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        given = {name: to_host(array) for name, array in inputs.items()}
        known = self._cache.find(self.stage, given)
        if known is not None:
            return dict(known.outputs)
        outputs = {name: to_host(array) for name, array in self._open().run(given).items()}
        return dict(self._cache.add(self.stage, given, outputs))


class _Replaced(Engine):
    """Passes calls on to another engine, or only those of one point of the schedule; closing it closes neither."""

    def __init__(self, engine: Engine, usual: Engine, point: int | None) -> None:
        super().__init__(engine.stage, engine.inputs, engine.outputs)
        self._engine, self._usual, self._point = engine, usual, point

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        here = self._point is None or int(to_host(inputs["step"])) == self._point
        return (self._engine if here else self._usual).run(inputs)


class CachedBackend(Backend):
    """Opens engines of a backend, remembers what they compute, and lets some stages be replaced.

    Engines stay open until :meth:`close`.

    Args:
        source: what runs the graphs.
        folder: an existing folder for large arrays.
    """

    def __init__(self, source: Backend, folder: Path) -> None:
        self.name, self.provider = source.name, source.provider
        self.cache, self.folder = CallCache(folder), folder
        self._source = source
        self._engines: dict[tuple[str, str], Engine] = {}
        self._replaced: dict[Stage, tuple[Engine, int | None]] = {}

    def replace(self, engines: Mapping[Stage, Engine], *, point: int | None = None) -> None:
        """Use these engines from now on; an empty mapping goes back to the source's.

        Args:
            engines: by stage; they are closed by whoever opened them.
            point: only at this point of the schedule, ``None`` at all of them.
        """
        self._replaced = {stage: (engine, point) for stage, engine in engines.items()}

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """The engine that stands in for the stage's, or the source's, kept open."""
        graph = bundle.graph(stage, size)

        def open_source() -> Engine:
            if graph.identity not in self._engines:
                self._engines[graph.identity] = self._source.open(bundle, stage, size)
            return self._engines[graph.identity]

        usual = CachedEngine(graph, self.cache, stage, open_source)
        if stage not in self._replaced:
            return usual
        engine, point = self._replaced[stage]
        return _Replaced(engine, usual, point)

    def close(self) -> None:
        """Close every engine that was opened for the source."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

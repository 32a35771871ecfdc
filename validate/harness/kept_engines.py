"""Engines that outlive a restoration: a run over many images opens each graph once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, LiveMomentsError
from livemoments.runtime.backends.base import Array, Backend, Engine
from livemoments.types import ReferencePolicy, Size, Stage

_NEVER_TOGETHER = (Stage.REFERENCE, Stage.RESTORATION)


class KeptEngines(Backend):
    """Hands out another back-end's engines again and again. Closing an engine gives it back; :meth:`close` ends them.

    One graph of each stage is kept: where another size is asked for, the idle one goes. Under ``phase-split``, whose
    purpose is that the two large networks are never resident together, those two are closed as the runtime says.

    Args:
        inner: what opens the graphs.
        policy: when ReferenceNet runs.

    Attributes:
        broken: why a graph could not be opened: no other image would fare better.
    """

    def __init__(self, inner: Backend, policy: ReferencePolicy) -> None:
        self.name = inner.name
        self.provider = inner.provider
        self.queues_ahead = inner.queues_ahead
        self.broken: LiveMomentsError | None = None
        self._inner = inner
        self._kept: dict[tuple[Stage, str], Engine] = {}
        self._lent: set[tuple[Stage, str]] = set()
        self._not_kept = frozenset(_NEVER_TOGETHER if policy.name == "phase-split" else ())

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """Lend the kept engine, opened first where need be."""
        try:
            if stage in self._not_kept:
                return self._inner.open(bundle, stage, size)
            key = (stage, f"{bundle.path}@{bundle.graph(stage, size).identity}")
            if key not in self._kept:
                self._drop(kept for kept in self._kept if kept[0] == stage and kept not in self._lent)
                self._kept[key] = self._inner.open(bundle, stage, size)
        except LiveMomentsError as error:
            self.broken = error
            raise
        self._lent.add(key)
        return _LentEngine(self._kept[key], self, key)

    @property
    def peak_device_bytes(self) -> int | None:
        """See :class:`Backend`."""
        return self._inner.peak_device_bytes

    def give_back(self, key: tuple[Stage, str]) -> None:
        """The engine is idle again."""
        self._lent.discard(key)

    def close(self) -> None:
        """Close every engine that is kept."""
        self._drop(self._kept)

    def _drop(self, keys: Iterable[tuple[Stage, str]]) -> None:
        for key in list(keys):
            self._kept.pop(key).close()


class _LentEngine(Engine):
    """A kept engine in the hands of one restoration."""

    def __init__(self, inner: Engine, owner: KeptEngines, key: tuple[Stage, str]) -> None:
        super().__init__(inner.stage, inner.inputs, inner.outputs)
        self.remarks = inner.remarks
        self._inner = inner
        self._owner = owner
        self._key = key

    def run(self, inputs: Mapping[str, Array], *, keep: Collection[str] = ()) -> dict[str, Array]:
        if self._closed:
            raise EngineError(f"stage '{self.stage}': the engine is closed")
        return self._inner.run(inputs, keep=keep)  # which checks

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        return self._inner.run(inputs, keep=keep)

    def close(self) -> None:
        if not self._closed:
            self._owner.give_back(self._key)
        super().close()

"""How far a build is, from the nested phases that the library reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

_EVERY_S = 0.2


class Phases:
    """Nested phases as a fraction: each step of a phase is an equal part of it, and its inner phases are of its current
    step. Outermost phases that come one after the other count as what they say of themselves, so the fraction is an
    estimate; it never goes back.
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._fraction = 0.0
        self.current = ""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins within ``parent``."""
        self._open[name] = (parent, max(1, steps), 0)
        self.current = name

    def step(self, name: str, index: int) -> None:
        """Step ``index`` of a phase is done."""
        if name in self._open:
            parent, steps, done = self._open[name]
            self._open[name] = (parent, steps, min(steps, max(done, index + 1)))

    def finish(self, name: str) -> None:
        """A phase is over."""
        self._open.pop(name, None)

    def fraction(self) -> float:
        """0 to 1."""
        roots = [name for name, (parent, _, _) in self._open.items() if parent not in self._open]
        self._fraction = max([self._fraction, *(self._of(name, 0) for name in roots)])
        return min(1.0, self._fraction)

    def _of(self, name: str, depth: int) -> float:
        _, steps, done = self._open[name]
        inner = [child for child, (parent, _, _) in self._open.items() if parent == name and child != name]
        within = max((self._of(child, depth + 1) for child in inner), default=0.0) if depth < len(self._open) else 0.0
        return min(1.0, (done + within) / steps)


def make_monitor(module: Any, report: Callable[[float, str], bool]) -> Any:
    """An ``IProgressMonitor`` of a library.

    Args:
        module: the bindings.
        report: gets the fraction and the phase, at most five times a second; ``False`` ends the build.
    """

    class Monitor(module.IProgressMonitor):
        """Called from the builder's threads."""

        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.phases = Phases()
            self.reported_s = 0.0
            self.go_on = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                self.phases.step(phase_name, step)
                now_s = time.monotonic()
                if self.go_on and now_s - self.reported_s >= _EVERY_S:
                    self.reported_s = now_s
                    self.go_on = report(self.phases.fraction(), self.phases.current)
                return self.go_on

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.phases.finish(phase_name)

    return Monitor()

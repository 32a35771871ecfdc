"""How long work reports itself: the protocol that every piece takes, and the reporter that says nothing.

The command line's reporter, which draws bars with the time left, is in ``livemoments.cli.progress``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Task(Protocol):
    """One bar."""

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Say that ``amount`` more of the total is done; ``note`` replaces the text beside the bar."""


class Progress(Protocol):
    """Where bars come from."""

    def task(self, title: str, total: float | None = None) -> AbstractContextManager[Task]:
        """A bar for ``total`` units of work (``None``: unknown), open for the length of the ``with`` block."""

    def say(self, line: str) -> None:
        """A line that stays: what has just been found, while the rest goes on."""


class _SilentTask:
    def advance(self, amount: float = 1, note: str | None = None) -> None:
        pass


class _Silent:
    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        yield _SilentTask()

    def say(self, line: str) -> None:
        pass


SILENT: Progress = _Silent()
"""The reporter that says nothing: the default everywhere in the Python interface."""

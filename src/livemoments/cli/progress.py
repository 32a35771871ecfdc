"""The command line's progress on stderr, with the time left: bars on a terminal, for work longer than about a second;
elsewhere (logs, CI) a line a minute, so that hours of work do not look like a hang and logs stay short.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from livemoments.cli.output import human_seconds, printable
from livemoments.progress import SILENT, Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# Work shorter than this shows nothing at all.
DELAY_S = 1.0
# Where there is no terminal, what is being done is said this often.
EVERY_S = 60.0
# Once past the delay, a bar must have been open this long: a row of very short tasks does not flicker.
_SETTLE_S = 0.2
# Tiles of the full-size network can take minutes each on a CPU; the speed is averaged over this long.
_SPEED_WINDOW_S = 3600.0
# From this total on, counts are shortened (1.2M of 4.1G): they are bytes, not items.
_SHORTEN_FROM = 100_000


def reporter(*, quiet: bool = False, stream: IO[str] | None = None) -> Progress:
    """The reporter for one command: bars when ``stream`` (stderr) is a terminal, else a line a minute."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return SILENT
    return TerminalProgress(stream) if stream.isatty() else LineProgress(stream)


class TerminalProgress:
    """Draws nested bars with rich; implements :class:`livemoments.progress.Progress`.

    Args:
        stream: the terminal.
        delay_s: seconds after construction before anything is drawn.
    """

    def __init__(self, stream: IO[str], *, delay_s: float = DELAY_S) -> None:
        self._stream = stream
        self._show_at_s = time.monotonic() + delay_s
        self._lock = threading.Lock()
        self._depth = 0
        self._bars: Bars | None = None
        self._timer: threading.Timer | None = None
        self._shown = False

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """A bar for ``total`` units of work (``None``: unknown), indented below the bars that are open already."""
        bars = self._enter()
        task = bars.add_task("  " * (self._depth - 1) + title, total=total, note="")
        try:
            yield _Bar(bars, task)
        finally:
            bars.remove_task(task)
            self._leave()

    def say(self, line: str) -> None:
        """A line above the bars."""
        with self._lock:
            if self._bars is not None and self._shown:
                self._bars.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
            else:
                print(printable(line), file=self._stream, flush=True)

    def _enter(self) -> Bars:
        with self._lock:
            self._depth += 1
            if self._bars is None:
                self._bars = _make_bars(self._stream)
                wait_s = max(_SETTLE_S, self._show_at_s - time.monotonic())
                self._timer = threading.Timer(wait_s, self._show)
                self._timer.daemon = True
                self._timer.start()
            return self._bars

    def _show(self) -> None:
        with self._lock:
            if self._bars is not None and not self._shown:
                self._bars.start()
                self._shown = True

    def _leave(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth or self._bars is None:
                return
            if self._timer is not None:
                self._timer.cancel()
            if self._shown:
                self._bars.stop()
            self._bars, self._timer, self._shown = None, None, False


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        if note is not None:
            self._bars.update(self._task, note=note)
        self._bars.advance(self._task, amount)


class LineProgress:
    """Says what is being done, how far it is and how long it will take, a line at a time: for logs.

    Args:
        stream: the stream that the bars are written to.
        every_s: seconds between two lines; work that is shorter is not mentioned.
    """

    def __init__(self, stream: IO[str], *, every_s: float = EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._lock = threading.Lock()
        self._open: list[_Counted] = []
        self._ended: threading.Event | None = None

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """Work that is mentioned while it lasts."""
        counted = _Counted(title, total)
        with self._lock:
            self._open.append(counted)
            if self._ended is None:
                self._ended = threading.Event()
                threading.Thread(target=self._repeat, args=(self._ended,), daemon=True).start()
        try:
            yield counted
        finally:
            with self._lock:
                self._open.remove(counted)
                if not self._open and self._ended is not None:
                    self._ended.set()
                    self._ended = None

    def say(self, line: str) -> None:
        """A line; nothing where stderr has been closed meanwhile."""
        with contextlib.suppress(OSError, ValueError):
            print(printable(line), file=self._stream, flush=True)

    def _repeat(self, ended: threading.Event) -> None:
        while not ended.wait(self._every_s):
            with self._lock:
                line = "; ".join(str(counted) for counted in self._open)
            if line:
                self.say(line)


class _Counted:
    def __init__(self, title: str, total: float | None) -> None:
        self._title, self._total, self._note = title, total, ""
        self._done = 0.0
        self._started_s = time.monotonic()

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self._done += amount
        self._note = self._note if note is None else note

    def __str__(self) -> str:
        spent_s = time.monotonic() - self._started_s
        text = f"{self._title}: {human_seconds(spent_s)}"
        if self._total:
            done = min(self._done, self._total)
            text += f", {shorten(done, self._total)} of {shorten(self._total, self._total)}"
            if done:
                text += f", about {human_seconds(spent_s * (self._total - done) / done)} left"
        return text + (f" ({self._note})" if self._note else "")


def _make_bars(stream: IO[str]) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.progress import Task as RichTask
    from rich.table import Column
    from rich.text import Text

    class Counts(ProgressColumn):
        """``M of N``, and the percentage; only what is done when the total is unknown."""

        def render(self, task: RichTask) -> Text:
            if task.total is None:
                return Text(shorten(task.completed, task.completed) if task.completed else "")
            done = shorten(min(task.completed, task.total), task.total)
            return Text(f"{task.percentage:3.0f} %  {done} of {shorten(task.total, task.total)}")

    def one_line(ratio: int | None = None) -> Column:
        return Column(no_wrap=True, overflow="ellipsis", ratio=ratio)

    return Bars(
        TextColumn("{task.description}", markup=False, table_column=one_line()),
        BarColumn(bar_width=12, table_column=one_line()),
        Counts(table_column=one_line()),
        TimeElapsedColumn(table_column=one_line()),
        TextColumn("left", table_column=one_line()),
        TimeRemainingColumn(table_column=one_line()),
        TextColumn("{task.fields[note]}", markup=False, table_column=one_line(ratio=1)),
        console=Console(file=stream),
        transient=True,
        expand=True,  # so that the note, which has a ratio, gives way first on a narrow terminal
        redirect_stdout=False,  # rich would send the command's result to stderr
        speed_estimate_period=_SPEED_WINDOW_S,
    )


def shorten(count: float, total: float) -> str:
    """A count as text; in k, M or G when ``total`` is so large that it must be bytes."""
    if total < _SHORTEN_FROM:
        return f"{count:.0f}" if float(count).is_integer() else f"{count:.1f}"
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if total >= limit:
            return f"{count / limit:.1f}{unit}"
    return f"{count / 1e3:.0f}k"

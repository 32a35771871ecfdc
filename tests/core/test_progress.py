"""The bars on stderr: when they appear, what they say, and that they leave the terminal as it was."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable

import pytest

from livemoments.cli.progress import LineProgress, TerminalProgress, reporter, shorten
from livemoments.progress import SILENT

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_short_work_draws_nothing(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal)
    with progress.task("quick", total=3) as task:
        for _ in range(3):
            task.advance()
    assert terminal.getvalue() == ""


def test_long_work_shows_percentage_counts_and_time_left(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0)
    with progress.task("restoring tiles", total=4) as task:
        task.advance(note="tile 1")
        time.sleep(0.5)
        task.advance()
        time.sleep(0.3)
    drawn = terminal.getvalue()
    for text in ("restoring tiles", "25 %", "1 of 4", "50 %", "2 of 4", "tile 1", "left", "0:00:00"):
        assert text in drawn


def test_time_left_is_estimated_from_the_speed_so_far(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0)
    with progress.task("tiles", total=101) as task:
        for _ in range(6):
            time.sleep(0.1)
            task.advance()
        time.sleep(0.2)
    # About 0.1 s a tile with 95 to go; a loaded machine may be slower, but not ten times.
    assert any(f"0:0{minutes}:" in terminal.getvalue().split("left")[-1] for minutes in (0, 1))


def test_nested_tasks_are_both_shown_and_indented(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0)
    with progress.task("stages", total=2) as outer:
        with progress.task("weights", total=None) as inner:
            inner.advance(5)
            time.sleep(0.5)
        outer.advance()
    assert "stages" in terminal.getvalue()
    assert "  weights" in terminal.getvalue()


def test_a_row_of_short_tasks_appears_once_the_whole_is_long(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0.3)
    for number in range(3):
        with progress.task(f"part {number}", total=1):
            time.sleep(0.5)
    assert "part 2" in terminal.getvalue()


def test_an_error_inside_restores_the_terminal(terminal: Terminal) -> None:
    def work() -> None:
        with TerminalProgress(terminal, delay_s=0).task("work", total=1):
            time.sleep(0.4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    drawn = terminal.getvalue()
    assert drawn.count(HIDE_CURSOR) == drawn.count(SHOW_CURSOR) == 1
    assert drawn.rindex(SHOW_CURSOR) > drawn.rindex(HIDE_CURSOR)


def test_threads_may_advance_one_task(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0)
    with progress.task("tensors", total=400) as task:
        workers = [threading.Thread(target=lambda: [task.advance() for _ in range(100)]) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        time.sleep(0.5)
    assert "400 of 400" in terminal.getvalue()


def test_titles_are_plain_text_not_markup(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0)
    with progress.task("reading [bold]x[/] [/nothing]", total=1):
        time.sleep(0.4)
    assert "[bold]x[/] [/nothing]" in terminal.getvalue()


def test_quiet_is_silent_and_a_log_gets_lines(terminal: Terminal) -> None:
    assert isinstance(reporter(stream=io.StringIO()), LineProgress)
    assert reporter(quiet=True, stream=terminal) is SILENT
    assert isinstance(reporter(stream=terminal), TerminalProgress)


def test_what_is_said_stays_above_the_bars(terminal: Terminal) -> None:
    progress = TerminalProgress(terminal, delay_s=0)
    progress.say("before [bold]all\x1b[2J")
    with progress.task("tiles", total=4):
        time.sleep(0.4)
        progress.say("found [/nothing]")
        time.sleep(0.2)
    lines = terminal.getvalue().split("\n")
    assert lines[0] == "before [bold]all\\x1b[2J"
    assert any("found [/nothing]" in line for line in lines)
    assert "tiles" in terminal.getvalue()


def test_a_log_hears_now_and_then_how_far_long_work_is() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every_s=0.2)
    with progress.task("short"):
        pass
    with progress.task("photos", total=10) as photos, progress.task("tiles") as tiles:
        photos.advance(5, note="IMG_1\x1b[2J")
        tiles.advance(3)
        wait_for(lambda: "tiles" in stream.getvalue())
    progress.say("done")
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"photos: [\d.]+ s, 5 of 10, about [\d.]+ s left \(IMG_1\\x1b\[2J\); tiles: [\d.]+ s", lines[0])
    assert lines[-1] == "done"
    assert "short" not in stream.getvalue()
    time.sleep(0.5)
    assert stream.getvalue().splitlines() == lines, "nothing is said once the work is over"


def test_a_log_that_was_closed_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    LineProgress(stream).say("nobody hears this")


def wait_for(condition: Callable[[], bool], limit_s: float = 30) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [(3, 10, "3"), (0.5, 2, "0.5"), (50_000, 200_000, "50k"), (1.2e6, 4.1e6, "1.2M"), (1.2e9, 4.1e9, "1.2G")],
)
def test_large_counts_are_shortened(count: float, total: float, text: str) -> None:
    assert shorten(count, total) == text

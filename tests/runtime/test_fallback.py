"""Memory that runs out on the way: finished tiles stay, the rest goes on with less, and the picture is the same."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from restore_images import FRAME, KEY_FRAME, PHOTO

from livemoments.bundle import Bundle
from livemoments.errors import ResourceError
from livemoments.runtime import restore
from livemoments.runtime.fallback import is_memory, take_less
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import RestoreResult
from livemoments.types import Stage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("fallback") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> RestoreResult:
    return restore(bundle, FRAME, PHOTO, KEY_FRAME, threads=1)


class Says:
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, title: str, total: float | None = None) -> Any:
        from livemoments.progress import SILENT

        return SILENT.task(title, total)

    def say(self, line: str) -> None:
        self.lines.append(line)


class Small(LoggingBackend):
    """Memory for a backend's engines: a rule says whether a run fits."""

    def __init__(self, fits: Callable[[Small, Stage, int], bool], error: Exception) -> None:
        super().__init__(self._check)
        self._fits, self._error = fits, error

    def _check(self, stage: Stage, runs: int) -> None:
        if not self._fits(self, stage, runs):
            raise self._error


def memory_error() -> ResourceError:
    return ResourceError("memory ran out", fix="buy more", of_memory=True)


def never_together(backend: Small, stage: Stage, runs: int) -> bool:
    return not {Stage.REFERENCE, Stage.RESTORATION} <= backend.open_now


def opencv_error(size: int) -> Exception:
    """What OpenCV raises for a picture that no memory holds, or that has no pixels."""
    import cv2

    try:
        cv2.copyMakeBorder(np.zeros((4, 4), np.uint8), size, size, size, size, cv2.BORDER_CONSTANT)
    except cv2.error as error:
        return error
    raise AssertionError("OpenCV had the memory")


def test_what_counts_as_memory() -> None:
    assert is_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert is_memory(MemoryError())
    assert is_memory(opencv_error(500_000_000))
    assert not is_memory(opencv_error(-1))
    assert not is_memory(OSError(errno.ENOENT, "No such file"))
    assert not is_memory(ResourceError("the disk is full"))
    assert not is_memory(ValueError("a bug"))


@pytest.mark.parametrize("error", [memory_error(), MemoryError("no more")])
@pytest.mark.parametrize("policy", ["per-step", "frozen", "every-2"])
def test_two_networks_that_do_not_fit_together_take_turns(bundle: Bundle, policy: str, error: Exception) -> None:
    backend, says = Small(never_together, error), Says()
    options = {"reference": policy}
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, backend=backend, progress=says, **options)
    whole = restore(bundle, FRAME, PHOTO, KEY_FRAME, backend=LoggingBackend(), **options)
    np.testing.assert_array_equal(found.image, whole.image)
    assert found.metadata["memory_fallbacks"] == [
        "only one phase's engines are loaded, and keys and values lie on the disk"
    ]
    assert says.lines == [f"memory ran out after 0 tiles; going on: {found.metadata['memory_fallbacks'][0]}"]
    assert "memory_fallbacks" not in whole.metadata


def test_batches_are_halved_first(bundle: Bundle, expected: RestoreResult) -> None:
    def one_at_a_time(backend: Small, stage: Stage, runs: int) -> bool:
        return sizes.pop(0) <= 2 if sizes and stage is Stage.VAE_DECODER else True

    sizes = [8, 4, 2]
    backend = Small(one_at_a_time, memory_error())
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, batch=8, backend=backend)
    assert found.metadata["memory_fallbacks"] == ["4 at once instead of 8 tiles", "2 at once instead of 4 tiles"]
    assert found.metadata["batch"] == 2
    assert np.abs(found.image.astype(int) - expected.image).max() <= 1


def test_finished_tiles_are_kept(bundle: Bundle, expected: RestoreResult) -> None:
    done = 5

    def until(backend: Small, stage: Stage, runs: int) -> bool:
        failed = any(event[0] == "failed" for event in backend.events)
        if stage is Stage.VAE_DECODER and runs == done and not failed:
            backend.events.append(("failed",))
            return False
        return True

    backend, says = Small(until, memory_error()), Says()
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, backend=backend, progress=says)
    np.testing.assert_array_equal(found.image, expected.image)
    assert len(backend.runs(Stage.VAE_DECODER)) == len(found.plan.tiles)  # none was decoded twice
    assert says.lines[0].startswith(f"memory ran out after {done} tiles")


def test_what_never_fits_ends_with_the_error(bundle: Bundle) -> None:
    backend = Small(lambda _backend, stage, _runs: stage is not Stage.RESTORATION, memory_error())
    with pytest.raises(ResourceError, match="memory ran out"):
        restore(bundle, FRAME, PHOTO, KEY_FRAME, batch=2, backend=backend)
    assert not backend.open_now
    flow = Small(lambda _backend, stage, _runs: stage is not Stage.FLOW, memory_error())
    with pytest.raises(ResourceError, match="memory ran out"):  # the photo's flow: nothing exact takes less
        restore(bundle, FRAME, PHOTO, KEY_FRAME, backend=flow)
    assert flow.events.count(("open", Stage.FLOW)) == 1


def test_a_full_disk_is_not_taken_for_memory(bundle: Bundle) -> None:
    backend = Small(lambda _backend, stage, _runs: stage is not Stage.MOTION, ResourceError("the disk is full"))
    with pytest.raises(ResourceError, match="the disk is full"):
        restore(bundle, FRAME, PHOTO, KEY_FRAME, backend=backend)
    assert backend.events.count(("open", Stage.MOTION)) == 1


def test_every_step_takes_less_and_they_end() -> None:
    options, seen = RestoreOptions(batch=8), []
    while (less := take_less(options)) is not None:
        options, words = less
        seen.append(words)
        assert len(seen) < 10
    assert len(seen) == len(set(seen)) == 4
    assert (options.batch, options.residency, options.kv_store, options.kv_budget_bytes) == (1, "phases", "disk", 1)
    assert options.key() == RestoreOptions().key()
    streamed, words = take_less(options, streams=True) or (options, "")
    assert (streamed.residency, words) == ("streamed", "one block of the transformers is loaded at a time")
    assert take_less(streamed, streams=True) is None


def test_streaming_is_the_last_resort(bundle: Bundle, expected: RestoreResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the options open the back-end, they may open one that streams in its place."""
    opened: list[str] = []

    def open_backend(self: RestoreOptions, _bundle: Bundle) -> LoggingBackend:
        opened.append(self.residency)
        fits = self.residency == "streamed"
        return Small(lambda _backend, stage, _runs: fits or stage is not Stage.RESTORATION, memory_error())

    monkeypatch.setattr(RestoreOptions, "open_backend", open_backend)
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME)
    np.testing.assert_array_equal(found.image, expected.image)
    assert opened == ["all", "streamed"]
    assert found.metadata["memory_fallbacks"][-1] == "one block of the transformers is loaded at a time"

"""Images spread over the workers of a Ray cluster; needs the extra ``ray``.

Every worker is a Ray actor that opens the bundle once and takes one image at a time. An image's files travel to it as
bytes, its result and pictures come back the same way, so workers need no common disk; only the bundle (and the metrics'
weights) must lie at the same path on every machine, and is compared there with this machine's. The noise depends on the
seed and the tile alone, so it does not matter who works on which image. An image whose worker dies goes to another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from livemoments.errors import (
    EngineError,
    ImageError,
    LiveMomentsError,
    MissingExtraError,
    ResourceError,
    UsageError,
)
from livemoments.progress import SILENT, Progress
from livemoments.validate.cost.nvml import GPU_PROVIDERS
from livemoments.validate.harness.image_inputs import ImageInputs
from livemoments.validate.harness.image_worker import FinishedImage, ImageWorker, RunSpec
from livemoments.version import __version__

START_LIMIT_S = 300.0
"""A cluster on which no worker has started by then has no room for one; opening a bundle takes seconds."""
MOST_DEATHS = 3
"""An image that takes its worker with it this often is given up, and the run with it."""
OBJECT_STORE_BYTES = 512 << 20
"""Of a cluster that is started here: each worker has one image's files and pictures in it, some 100 MB."""
Failure = tuple[str, str, str | None]
"""An error's class, message and fix."""
_CONNECT_LIMIT_S = 10.0
_START = "start one with 'ray start --head' on this machine, and name its address"
_GPU_PROVIDERS = (*GPU_PROVIDERS, "rocm", "migraphx")


def run_on_ray(
    spec: RunSpec,
    images: Sequence[ImageInputs],
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = SILENT,
) -> Generator[tuple[ImageInputs, FinishedImage]]:
    """Work on images, in whatever order they finish.

    Args:
        spec: what to do.
        images: what they work on.
        workers: how many; by default one per GPU for providers that use one, else one per machine.
        address: ``HOST:PORT`` or ``auto``: a running cluster that this machine belongs to. By default Ray is started
            on this machine, unless this process has started it already, and ended afterwards.
        progress: where to report the start.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: the cluster cannot be reached, or has no room for so many workers.
        EngineError: the bundle cannot be opened by the workers, or no worker starts.
        ResourceError: memory ran out; an image took three workers with it.
    """
    if not images:
        return
    with connected(address) as ray, contextlib.ExitStack() as stack:
        with progress.task("Starting the workers"):
            team = _Workers(ray, spec, workers, len(images))
            stack.callback(team.dismiss)
            team.wait_for_one()
        yield from team.work(images)


class _Workers:
    """The workers of one run, and what each is doing."""

    def __init__(self, ray: Any, spec: RunSpec, workers: int | None, images: int) -> None:
        self._ray = ray
        uses_gpu = spec.settings.provider.lower() in _GPU_PROVIDERS
        count, cpus = plan_workers(_nodes(ray), workers, uses_gpu=uses_gpu)
        cpus = min(cpus, spec.settings.threads or cpus)
        self._options = {"num_cpus": cpus, "num_gpus": 1 if uses_gpu else 0, "max_restarts": 0}
        settings = dataclasses.replace(spec.settings, threads=cpus)  # as many threads as are set aside for it
        self._given = ray.put((dataclasses.replace(spec, settings=settings), __version__))
        self._starting: dict[Any, Any] = {}  # reference to the answer -> worker
        self._busy: dict[Any, tuple[Any, ImageInputs]] = {}
        self._idle: list[Any] = []
        for _ in range(min(count, images)):
            self._start()

    def wait_for_one(self) -> None:
        """Wait until a worker has opened the bundle."""
        while not self._idle:
            self._await_any()

    def work(self, images: Sequence[ImageInputs]) -> Iterator[tuple[ImageInputs, FinishedImage]]:
        """Give out the images; results as they come."""
        queue = deque(images)
        deaths: Counter[str] = Counter()
        while queue or self._busy:
            while queue and self._idle:
                image = queue.popleft()
                try:
                    task = self._idle[-1].run.remote(image.loaded())
                except ImageError as error:  # a file that vanished since it was indexed
                    yield image, FinishedImage.failed(image.name, error.message)
                    continue
                self._busy[task] = (self._idle.pop(), image)
            if not self._busy and not queue:
                return
            done = self._await_any()
            if done is None:
                continue
            worker, image = self._busy.pop(done)
            try:
                answer = self._ray.get(done)
            except self._ray.exceptions.RayActorError as error:
                deaths[image.name] += 1
                if deaths[image.name] >= MOST_DEATHS:
                    raise ResourceError(
                        f"'{image.name}': {MOST_DEATHS} workers died on it ({_last_line(error)})",
                        fix="give workers more memory (fewer workers, smaller tiles), then go on with the same command",
                    ) from None
                queue.appendleft(image)
                self._start()
                continue
            self._idle.append(worker)
            if not isinstance(answer, FinishedImage):
                _raise_failure(answer)
            yield image, answer

    def dismiss(self) -> None:
        """End every worker."""
        for worker in [*self._idle, *self._starting.values(), *(worker for worker, _ in self._busy.values())]:
            with contextlib.suppress(Exception):
                self._ray.kill(worker)

    def _start(self) -> None:
        actor = self._ray.remote(**self._options)(_Actor).remote(self._given)
        self._starting[actor.ready.remote()] = actor

    def _await_any(self) -> Any:
        """Wait for something to happen: the reference of a finished image, or ``None`` if a worker has started."""
        waiting = [*self._busy, *self._starting]
        timeout_s = None if self._busy or self._idle else START_LIMIT_S
        done, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if not done:
            raise EngineError(
                f"no worker started within {START_LIMIT_S:.0f} s",
                fix="check 'ray status' for free CPUs and GPUs; ask for fewer --workers",
            )
        if done[0] not in self._starting:
            return done[0]
        worker = self._starting.pop(done[0])
        try:
            _raise_failure(self._ray.get(done[0]))
        except self._ray.exceptions.RayActorError as error:
            if not (self._idle or self._busy or self._starting):
                raise EngineError(f"a worker died while it started: {_last_line(error)}") from None
            return None  # the others go on
        self._idle.append(worker)
        return None


class _Actor:
    """What runs on the cluster. Errors of ours travel as data: Ray wraps exceptions, and needs to pickle them."""

    def __init__(self, given: tuple[RunSpec, str]) -> None:
        spec, version = given
        self._worker: ImageWorker | None = None
        self._failure: Failure | None = None
        try:
            if version != __version__:
                raise EngineError(
                    f"{socket.gethostname()} has livemoments-deploy {__version__}, this machine {version}",
                    fix="install the same version on every machine of the cluster",
                )
            self._worker = ImageWorker(spec)
        except LiveMomentsError as error:
            self._failure = _as_data(error)

    def ready(self) -> Failure | None:
        """Why the worker cannot work, or ``None``."""
        return self._failure

    def run(self, image: ImageInputs) -> FinishedImage | Failure:
        assert self._worker is not None  # ready() was asked first
        try:
            return self._worker.run(image)
        except LiveMomentsError as error:
            return _as_data(error)


def plan_workers(nodes: Sequence[tuple[float, float]], workers: int | None, *, uses_gpu: bool) -> tuple[int, int]:
    """How many workers, and how many CPUs each is to have.

    Args:
        nodes: CPUs and GPUs of every machine.
        workers: how many were asked for.
        uses_gpu: each needs a GPU of its own.

    Raises:
        UsageError: there is no room for that many.
    """
    cpus = [int(node[0]) for node in nodes]
    gpus = [int(node[1]) for node in nodes]
    if uses_gpu:
        have = sum(gpus)
        if not have or (workers or 0) > have:
            wanted = f"{workers} workers" if workers else "a worker"
            raise UsageError(
                f"the cluster has {have} GPUs, too few for {wanted}", fix="use --provider cpu, or add GPUs"
            )
        per_gpu = [cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu]
        return workers or have, max(1, min(per_gpu))
    count = workers or sum(1 for cpu in cpus if cpu)
    if count < 1 or count > sum(cpus):
        raise UsageError(
            f"the cluster has {sum(cpus)} CPUs, too few for {max(1, count)} workers", fix="use fewer --workers"
        )
    fitting = [size for size in range(1, max(cpus) + 1) if sum(cpu // size for cpu in cpus) >= count]
    return count, max(fitting)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected; what was started here is ended here, and runs within the block share it.

    Args:
        address: as for :func:`run_on_ray`.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers otherwise
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("the engine 'ray'", "ray", missing=error.name) from None
    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        _check_reachable(address)
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "error"}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(
            f"no Ray cluster at '{address or 'local'}': {_last_line(error)}", fix=_START if address else None
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, then end the process.

    Raises:
        UsageError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_LIMIT_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at '{address}': {error}", fix=_START) from None


def _nodes(ray: Any) -> list[tuple[float, float]]:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive]


def _as_data(error: LiveMomentsError) -> Failure:
    return type(error).__name__, error.message, error.fix


def _raise_failure(failure: Failure | None) -> None:
    if failure is not None:
        kind, message, fix = failure
        plain = {error.__name__: error for error in (ResourceError, UsageError, EngineError)}
        raise plain.get(kind, EngineError)(message, fix=fix)


def _last_line(error: BaseException) -> str:
    """Where Ray's messages, which hold whole tracebacks, say what it was."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()

"""The process in which one graph is parsed, or one engine built: ``python -m livemoments.export.tensorrt.worker``.

A process of its own gives all memory back, can be ended at any moment, and takes the fatal faults of a library with it.
A :class:`Job` comes on stdin, a line; events go to what was stdout at the start; what the libraries print, to stderr.
When stdin ends, whoever waits for the engine is gone, and so is this process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from livemoments.engine_files import HARDWARE_COMPATIBLE
from livemoments.errors import LiveMomentsError
from livemoments.export.tensorrt.monitor import make_monitor
from livemoments.export.tensorrt.options import BUILDER_FLAGS
from livemoments.export.tensorrt.prepare import prepare
from livemoments.export.tensorrt.protocol import Advanced, Done, Event, Failed, Job, Trouble
from livemoments.heap import peak_resident_bytes
from livemoments.tensorrt.library import Library, load_library
from livemoments.types import Size

_MOST_MESSAGES = 8
_PIECE_BYTES = 1 << 24


class _RefusedError(Exception):
    """Carries a :class:`Failed` to the end."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.while_)
        self.failed = failed


class Channel:
    """Events to the parent; once it is gone, :attr:`is_open` is false."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.is_open = True

    def send(self, event: Event) -> bool:
        """Write an event; whether the parent is still there."""
        try:
            self._stream.write(msgspec.json.encode(event) + b"\n")
            self._stream.flush()
        except OSError:
            self.is_open = False
        return self.is_open


def run(job: Job, channel: Channel) -> Done:
    """Do a job.

    Raises:
        LiveMomentsError: the library or the graph cannot be used at all.
        _RefusedError: the library refused the graph, or the engine cannot be written.
    """
    if job.graph is None:
        from livemoments.export.tensorrt.torch_road import import_torch_tensorrt

        import_torch_tensorrt()
        return Done(0)
    library = load_library(job.library)
    logger, errors = _make_logger(library.module)
    started_s = time.monotonic()
    try:
        builder = library.module.Builder(logger)
    except TypeError:  # a null pointer: no driver, no GPU
        raise _RefusedError(Failed("starting", tuple(errors) or ("the library finds no GPU",))) from None
    weights: Any  # whatever holds their memory, until the engine is built
    if job.torch is None:
        network = builder.create_network(_network_flags(library.module))
        weights = _parse(library, network, logger, job, errors)
    else:
        from livemoments.export.tensorrt.torch_network import make_network

        # what this builder says goes to the first logger of the process, which is ours
        builder, network, weights = make_network(job.torch, Size.parse(job.size), job.batch)
    layers = int(network.num_layers)
    if job.output is None:
        return Done(layers)
    errors.clear()
    config = _configure(library, builder, job)
    config.progress_monitor = make_monitor(library.module, lambda done, phase: channel.send(Advanced(done, phase)))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _RefusedError(Failed("building", tuple(errors[:_MOST_MESSAGES])))
    del weights
    try:
        size = _write(plan, Path(job.output))
        _keep_timings(config, job)
    except OSError as error:
        raise _RefusedError(Failed("writing", (str(error),))) from None
    return Done(layers, size, time.monotonic() - started_s, peak_resident_bytes())


def _parse(library: Library, network: Any, logger: Any, job: Job, errors: list[str]) -> Any:
    """Let the library's parser, which is returned, read the graph into the network."""
    graph = prepare(Path(job.graph or ""), Size.parse(job.size), job.batch)
    parser = library.module.OnnxParser(network, logger)
    if not parser.parse(graph.serialize(), str(graph.path)):
        found = (parser.get_error(index) for index in range(parser.num_errors))
        troubles = tuple(Trouble(e.node_name(), e.node_operator(), _plain(e.desc())) for e in found)
        raise _RefusedError(Failed("parsing", tuple(errors[:_MOST_MESSAGES]), troubles))
    return parser


def _network_flags(module: Any) -> int:
    """Strongly typed: the graph's own types hold. From TensorRT 11 on nothing else exists."""
    typed = module.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    return 0 if typed is None else 1 << int(typed)


def _configure(library: Library, builder: Any, job: Job) -> Any:
    config = builder.create_builder_config()
    if job.sm and library.name == "rtx":
        config.num_compute_capabilities = len(job.sm)
        for index, sm in enumerate(job.sm):
            config.set_compute_capability(library.compute_capability(sm), index)
    for flag in job.flags:
        if flag == HARDWARE_COMPATIBLE:
            config.hardware_compatibility_level = library.module.HardwareCompatibilityLevel.AMPERE_PLUS
        else:
            config.set_flag(library.builder_flag(BUILDER_FLAGS[flag]))
    if job.level is not None:
        config.builder_optimization_level = job.level
    if job.timing_cache is not None:
        file = Path(job.timing_cache)
        known = file.read_bytes() if file.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):  # of another version or GPU
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _keep_timings(config: Any, job: Job) -> None:
    if job.timing_cache is None:
        return
    from livemoments.store.files import write_file

    cache = config.get_timing_cache()
    if cache is not None:
        write_file(job.timing_cache, bytes(memoryview(cache.serialize())))


def _make_logger(module: Any) -> tuple[Any, list[str]]:
    """A logger of the library, and the list that its errors go to."""
    errors: list[str] = []
    serious = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR)

    class Logger(module.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if severity in serious:
                errors.append(_plain(msg))

    return Logger(), errors


def _write(plan: Any, output: Path) -> int:
    view = memoryview(plan)
    with output.open("wb") as stream:
        for start in range(0, len(view), _PIECE_BYTES):
            stream.write(view[start : start + _PIECE_BYTES])
        stream.flush()
        os.fsync(stream.fileno())
    return len(view)


def _plain(text: str) -> str:
    """One line."""
    return " ".join(text.split())


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Entry point of the process."""
    channel = Channel(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    event: Event
    try:
        event = run(job, channel)
    except _RefusedError as refused:
        event = refused.failed
    except LiveMomentsError as error:
        event = Failed("starting", (error.message,), fix=error.fix)
    channel.send(event)


if __name__ == "__main__":
    main()

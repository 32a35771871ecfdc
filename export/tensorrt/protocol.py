"""What passes between the process that plans and the one that builds: a job in, one JSON document a line out."""

from __future__ import annotations

from typing import Literal

import msgspec

from livemoments.manifest import EngineLibrary, Schedule
from livemoments.types import Stage


class TorchSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where torch-tensorrt finds what a graph was exported from, and how it was exported."""

    checkpoint: str
    stage: Stage
    precision: str
    kv_layout: str
    schedule: Schedule


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph to parse, or to build.

    ``graph`` is its file; with ``torch``, torch-tensorrt makes the network of the module behind it instead. ``None``:
    the job is to see whether torch-tensorrt can be imported at all. ``output`` is where the engine goes, ``None`` to
    parse only. ``size`` is ``WxH``. ``flags`` and ``level`` are those of
    :class:`livemoments.export.tensorrt.options.BuildOptions`. ``timing_cache`` is read if it is there, and written.
    """

    library: EngineLibrary
    graph: str | None
    size: str
    batch: int
    torch: TorchSource | None = None
    sm: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    level: int | None = None
    output: str | None = None
    timing_cache: str | None = None


class Trouble(msgspec.Struct, frozen=True):
    """A node that the parser refused: its name, operator and the parser's words."""

    node: str
    operator: str
    message: str


class Advanced(msgspec.Struct, frozen=True, tag="advanced"):
    """``fraction`` of the work is done, ``phase`` is what the library does now."""

    fraction: float
    phase: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Layers parsed, and bytes, seconds and peak resident memory of what was built."""

    layers: int
    bytes: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The library refused: while it parsed (``troubles``) or built (``messages``, its own words).

    ``fix`` is what the user can do about it, where the process that failed knows.
    """

    while_: Literal["starting", "parsing", "building", "writing"]
    messages: tuple[str, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    fix: str | None = None


Event = Advanced | Done | Failed

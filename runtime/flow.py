"""Optical flow for a restoration: by the bundle's RAFT engine, or by OpenCV's DIS without any engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np

from livemoments.bundle import Bundle
from livemoments.dis import dis_flow_between
from livemoments.errors import UsageError
from livemoments.manifest import APPLE_TARGETS
from livemoments.runtime.engine_pool import EnginePool
from livemoments.types import Size, Stage, Tile

FlowKind = Literal["engine", "dis"]
KINDS: tuple[FlowKind, ...] = get_args(FlowKind)

_RAFT_MULTIPLE_PX = 8  # RAFT computes at an eighth of the resolution


FlowOfTile = Callable[[Tile], np.ndarray | None]
"""A recorded flow of a tile, (2, h, w) float32 in pixels; ``None``: none was recorded, the estimated one counts."""


class FlowEstimator(Protocol):
    """Estimates where the pixels of one image are in another. ``kind`` is recorded in the result."""

    kind: str

    def __call__(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        """Flow in pixels, x then y, from ``image1`` to ``image2``: (B,3,H,W) float32 in [-1,1] -> (B,2,H,W) float32."""


class EngineFlow:
    """RAFT from the bundle. Sides that are no multiple of 8 are padded by replication, split between both ends."""

    kind = "engine"

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool

    def __call__(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        """See :class:`FlowEstimator`.

        Raises:
            UsageError: the bundle's flow graphs have fixed sizes, and none is this one.
            EngineError: the engine failed.
        """
        height, width = image1.shape[2:]
        top, bottom = _split_pad(height)
        left, right = _split_pad(width)
        pad = ((0, 0), (0, 0), (top, bottom), (left, right))
        size = Size(height + top + bottom, width + left + right)
        self._check_size(size)
        images = {"image1": np.pad(image1, pad, mode="edge"), "image2": np.pad(image2, pad, mode="edge")}
        flow = self._pool.run(Stage.FLOW, images, size=size)["flow"]
        assert isinstance(flow, np.ndarray)
        return np.ascontiguousarray(flow[:, :, top : top + height, left : left + width], dtype=np.float32)

    def _check_size(self, size: Size) -> None:
        entry = self._pool.bundle.stage(Stage.FLOW)
        if entry.graph(size) is None:
            have = ", ".join(graph.size for graph in entry.graphs)
            has_packages = self._pool.bundle.manifest.target in APPLE_TARGETS
            raise UsageError(
                f"the bundle's flow engine takes images of {have} only, not {size}",
                fix="pass --flow dis, or export again "
                + (f"with --flow-size {size}" if has_packages else "without --stages"),
            )


class DisFlow:
    """OpenCV's DIS: no engine and a fraction of RAFT's memory; the paper's table 9 shows that the model bears it."""

    kind = "dis"

    def __call__(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        """See :class:`FlowEstimator`."""
        return dis_flow_between(image1, image2)


def resolve_flow(kind: FlowKind | None, bundle: Bundle) -> FlowKind:
    """What estimates the flow of a restoration: what was asked for, or else what the bundle was made for.

    A part of a bundle whose checkpoint has RAFT is not taken for one without: its missing engine stays an error.

    Raises:
        UsageError: neither ``engine`` nor ``dis``, or an engine that the bundle lacks by design.
    """
    has_network = bundle.manifest.model.flow == "raft"
    if kind is None:
        return "engine" if has_network else "dis"
    if kind not in KINDS:
        raise UsageError(f"'{kind}' is no way to estimate flow", fix=f"use {' or '.join(KINDS)}")
    if kind == "engine" and not has_network:
        raise UsageError(
            f"{bundle.path} has no flow engine, for its checkpoint has no RAFT", fix="say --flow dis, or leave it out"
        )
    return kind


def flow_estimator(kind: FlowKind, pool: EnginePool) -> FlowEstimator:
    """The estimator of this kind, which :func:`resolve_flow` gave."""
    return EngineFlow(pool) if kind == "engine" else DisFlow()


def _split_pad(length: int) -> tuple[int, int]:
    """Pixels added before and after, as RAFT's InputPadder splits them (the smaller half first)."""
    pad = -length % _RAFT_MULTIPLE_PX
    return pad // 2, pad - pad // 2

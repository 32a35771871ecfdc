"""Optical flow without an engine; it is in :mod:`livemoments.dis`, for the reference estimates with it too."""

from __future__ import annotations

from livemoments.dis import DisPreset, dis_flow, dis_flow_between

__all__ = ["DisPreset", "dis_flow", "dis_flow_between"]

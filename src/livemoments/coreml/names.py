"""How a bundle's tensors are named in Core ML packages: what writes packages and what runs them agree here."""

from __future__ import annotations

import re

MOTION = "motion_bias"
"""The restoration stage's input (L, B, N, D) of which a chunk of blocks takes its own part."""
_SLICE = re.compile(r"(?P<name>.+)\[(?P<start>\d+):(?P<stop>\d+)\]")
_OUTSIDE = re.compile(r"[^0-9A-Za-z_]")


def feature_name(name: str) -> str:
    """A tensor's name as Core ML allows it: letters, digits and underscores, e.g. ``reference_k_0``."""
    return _OUTSIDE.sub("_", name)


def slice_name(name: str, start: int, stop: int) -> str:
    """The name of entries [start, stop) of a tensor's first axis, e.g. ``motion_bias[0:6]``."""
    return f"{name}[{start}:{stop}]"


def parse_slice(name: str) -> tuple[str, int, int] | None:
    """The tensor, start and stop of such a name, or ``None``."""
    match = _SLICE.fullmatch(name)
    return None if match is None else (match["name"], int(match["start"]), int(match["stop"]))

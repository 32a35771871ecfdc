"""What is decided for each linear of a graph: the words in which recipes, sensitivity and search speak to rewrites."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from livemoments.graphs.linears import LinearId


class Action(enum.Enum):
    """What happens to one linear."""

    KEEP = "keep"
    """It stays as the source bundle has it."""
    INT8_STATIC = "int8-static"
    """8-bit weights (per output channel) and activations (ranges from calibration)."""
    INT8_DYNAMIC = "int8-dynamic"
    """8-bit weights (per output channel) and activations, whose range is taken at every run."""
    WEIGHT_INT8 = "weight-int8"
    """8-bit weights in blocks along the inputs; activations stay."""
    WEIGHT_INT4 = "weight-int4"
    """4-bit weights in blocks along the inputs; activations stay."""
    PALETTE = "palette"
    """Weights as indices into tables of their values; activations stay. For Core ML packages."""
    FP8 = "fp8"
    """E4M3 weights (per output channel) and activations (ranges from calibration)."""

    @property
    def needs_calibration(self) -> bool:
        """Whether the range of its input must be known."""
        return self in (Action.INT8_STATIC, Action.FP8)


Mix = Mapping[LinearId, Action]
"""What happens to each linear; those that are not named are kept."""

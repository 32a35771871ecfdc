"""Every number of a rung from one pass over two tensors, in pieces, so that large ones cost no copies in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from livemoments.distances import cosine_of, psnr_of, relative_of, sqnr_of

PIECE_ELEMENTS = 1 << 20
"""Elements in float64 at a time: 8 MiB for each operand."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a tensor is from the reference's.

    Attributes:
        rel_l2: ``||value - reference|| / ||reference||``; NaN if either holds one.
        sqnr_db: ``-20 log10(rel_l2)``; infinite for equal tensors.
        cosine: the cosine of the angle between the flattened tensors.
        max_abs: largest absolute difference.
        psnr_db: for images: against ``peak``; ``None`` for other tensors.
    """

    rel_l2: float
    sqnr_db: float
    cosine: float
    max_abs: float
    psnr_db: float | None = None


def tensor_distance(value: np.ndarray, reference: np.ndarray, *, peak: float | None = None) -> Distance:
    """Compare two tensors of one shape.

    Args:
        value: the engine's.
        reference: what it should be.
        peak: range of an image's values (1, 2 for [-1, 1], 255), for the PSNR; ``None``: not an image.

    Returns:
        The numbers; infinitely far apart if the shapes differ (a batch of one broadcasts).
    """
    if value.shape != reference.shape:
        return Distance(math.inf, -math.inf, 0.0, math.inf, None if peak is None else -math.inf)
    flat_value, flat_reference = value.reshape(-1), reference.reshape(-1)
    distance = length = own = dot = most = 0.0
    for start in range(0, flat_value.size, PIECE_ELEMENTS):
        piece = slice(start, start + PIECE_ELEMENTS)
        a = flat_value[piece].astype(np.float64)
        b = flat_reference[piece].astype(np.float64)
        own += float(a @ a)
        length += float(b @ b)
        dot += float(a @ b)
        a -= b
        distance += float(a @ a)
        largest = float(np.abs(a).max())
        most = largest if math.isnan(largest) else max(most, largest)
    error = relative_of(distance, length)
    return Distance(
        rel_l2=error,
        sqnr_db=sqnr_of(error),
        cosine=cosine_of(dot, own, length),
        max_abs=most,
        psnr_db=None if peak is None else psnr_of(distance / max(flat_value.size, 1), peak),
    )

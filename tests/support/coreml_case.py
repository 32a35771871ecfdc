"""What a reference case is: a program of one operator in several forms, its inputs, and what they should give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Body = Callable[..., Any]


class Case(NamedTuple):
    """A program of one operator in several forms."""

    inputs: dict[str, Array]
    body: Body
    want: Callable[..., Sequence[Array]]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)

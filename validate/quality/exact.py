"""Mean and standard deviation of a stream of numbers, exactly: the same bits in any order.

A double is a whole multiple of 2^-1074, so the sums of values and of squares are fractions within some hundred bytes
for any count of them.
"""

from __future__ import annotations

import math
from fractions import Fraction


class ExactMoments:
    """Count, sum and sum of squares of finite doubles."""

    def __init__(self) -> None:
        self.count = 0
        self._total = self._squares = Fraction(0)

    def add(self, value: float) -> None:
        """Take a number.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in a mean")
        exact = Fraction(value)
        self.count += 1
        self._total += exact
        self._squares += exact * exact

    @property
    def mean(self) -> float | None:
        """The mean, rounded once; ``None`` of nothing."""
        return float(self._total / self.count) if self.count else None

    @property
    def std(self) -> float | None:
        """The population's standard deviation; 0 of one number, ``None`` of nothing."""
        if not self.count:
            return None
        return math.sqrt(self._squares / self.count - (self._total / self.count) ** 2)  # exact, so never below 0

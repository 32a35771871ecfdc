"""Mean and standard deviation of a stream of numbers, exactly: the same bits in any order.

A double is a whole multiple of 2^-1074, so sums of values and of squares are kept as whole numbers; both stay within
some hundred bytes for any count.
"""

from __future__ import annotations

import math
from fractions import Fraction

_UNIT_BITS = 1074
"""The smallest double is 2^-1074."""


class ExactMoments:
    """Count, sum and sum of squares of finite doubles."""

    def __init__(self) -> None:
        self.count = 0
        self._total = 0  # in units of 2^-1074
        self._squares = 0  # in units of 2^-2148

    def add(self, value: float) -> None:
        """Take a number.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in a mean")
        numerator, denominator = value.as_integer_ratio()
        whole = (numerator << _UNIT_BITS) // denominator  # denominators are powers of two up to 2^1074
        self.count += 1
        self._total += whole
        self._squares += whole * whole

    @property
    def mean(self) -> float | None:
        """The mean, rounded once; ``None`` of nothing."""
        return float(Fraction(self._total, self.count << _UNIT_BITS)) if self.count else None

    @property
    def std(self) -> float | None:
        """The population's standard deviation; 0 of one number, ``None`` of nothing."""
        if not self.count:
            return None
        spread = self.count * self._squares - self._total**2  # never negative: nothing was rounded
        return math.sqrt(Fraction(spread, self.count**2 << 2 * _UNIT_BITS))

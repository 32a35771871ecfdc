"""How much quality quantizing may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from livemoments.distances import mse_of, psnr_of
from livemoments.errors import UsageError

if TYPE_CHECKING:
    from livemoments.quantize.search.photo_loss import Score

Goal = Literal["size", "speed"]

_BUDGET = re.compile(r"\s*(\d{1,3}(?:\.\d{1,4})?)\s*dB(-of-quality)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for the loss.

    Attributes:
        db: either the least PSNR of the photos against the source engine's, or how much of their PSNR against the truth
            they may lose to the source engine's.
        of_quality: which of the two.
    """

    db: float
    of_quality: bool = False

    def __str__(self) -> str:
        return f"{self.db:g}dB" + ("-of-quality" if self.of_quality else "")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``42dB`` or ``0.1dB-of-quality``.

        Raises:
            UsageError: it is neither, or zero.
        """
        match = _BUDGET.fullmatch(text)
        if match is None or float(match[1]) == 0:
            raise UsageError(
                f"'{text}' is not a budget",
                fix="write 42dB (PSNR from the source's photo) or 0.1dB-of-quality (PSNR lost against the truth)",
            )
        return cls(float(match[1]), of_quality=match[2] is not None)

    def allowed_mse(self, source: Score) -> float:
        """The error from the source's photos that is about allowed; exact for a PSNR budget.

        Noise that is independent of the source's own error adds to it: a loss of d dB is an error of
        ``(10^(d/10) - 1)`` times the source's.

        Raises:
            UsageError: the budget is one of quality and a photo has no truth.
        """
        if not self.of_quality:
            return mse_of(self.db)
        if source.truth_mse is None:
            raise UsageError(
                "a budget of quality needs photos whose perfect restoration is known", fix="give the budget as 42dB"
            )
        return source.truth_mse * (10 ** (self.db / 10) - 1)

    def is_kept(self, source: Score, score: Score) -> bool:
        """Whether measured photos are within the budget."""
        return self.spent_db(source, score) <= self.db if self.of_quality else score.psnr_db >= self.db

    def spent_db(self, source: Score, score: Score) -> float:
        """What the budget is about: the PSNR from the source's photo, or the quality lost (negative: gained)."""
        if not self.of_quality:
            return score.psnr_db
        if source.truth_mse is None or score.truth_mse is None:
            raise UsageError("a budget of quality needs photos whose perfect restoration is known")
        return psnr_of(source.truth_mse) - psnr_of(score.truth_mse)

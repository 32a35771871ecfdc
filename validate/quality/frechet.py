"""The Frechet distance of two sets of features (Heusel et al. 2017), from running sums: O(d^2) memory for any number.

``|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))``. The trace of the root is that of ``(C1^(1/2) C2 C1^(1/2))^(1/2)``,
which is symmetric, so two symmetric eigenvalue problems give it; everything is float64.
"""

from __future__ import annotations

import numpy as np

from livemoments.errors import UsageError


class FeatureSums:
    """Count, sum and sum of outer products of features that arrive in blocks.

    Attributes:
        count: features so far.
        total: (d,) float64; empty before the first.
        outer: (d, d) float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = np.zeros(0)
        self.outer = np.zeros((0, 0))

    def add(self, features: np.ndarray) -> None:
        """Take a block of (n, d) features.

        Raises:
            UsageError: another number of features than before.
        """
        if features.shape[0] == 0:
            return
        block = features.astype(np.float64)
        width = block.shape[1]
        if not self.count:
            self.total, self.outer = np.zeros(width), np.zeros((width, width))
        if width != len(self.total):
            raise UsageError(f"{width} features a patch cannot be added to {len(self.total)}")
        self.count += len(block)
        self.total += block.sum(axis=0)
        self.outer += block.T @ block

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """(d,) and (d, d), the covariance with Bessel's correction, as in the reference implementation.

        Raises:
            UsageError: there are fewer than two features.
        """
        if self.count < 2:
            raise UsageError("the Frechet distance needs at least two patches")
        mean = self.total / self.count
        return mean, (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: FeatureSums, second: FeatureSums) -> float:
    """The distance of two sets of features.

    Raises:
        UsageError: a set has fewer than two, or their lengths differ.
    """
    if first.count and second.count and len(first.total) != len(second.total):
        raise UsageError(f"features of lengths {len(first.total)} and {len(second.total)} cannot be compared")
    return gaussian_distance(*first.mean_and_covariance(), *second.mean_and_covariance())


def gaussian_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The Frechet distance of two Gaussians: (d,) means and (d, d) symmetric, positive semidefinite covariances."""
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T  # rounding leaves values just below 0
    product = root @ cov2 @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    distance = float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * shared)
    return max(distance, 0.0)

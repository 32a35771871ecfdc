"""Sets of Live Photos with ground truth: found, described, read."""

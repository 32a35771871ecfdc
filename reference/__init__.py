"""Upstream's networks and pipeline in PyTorch, computed exactly as upstream does, and its checkpoints."""

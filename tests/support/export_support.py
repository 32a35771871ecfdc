"""The smallest checkpoint that still has every part: what the exporter's tests export."""

from __future__ import annotations

from pathlib import Path

from livemoments.reference.checkpoint_sizes import CheckpointSizes
from livemoments.reference.random_checkpoint import make_checkpoint

NANO = CheckpointSizes(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    prompt_tokens=3,
    joint_attention_dim=24,
    pooled_projection_dim=16,
    sample_size=16,
    pos_embed_max_size=32,
    motion_widths=(16, 32),
    vae_channels=(8, 16),
    vae_layers_per_block=1,
    vae_norm_groups=4,
)


def make_nano(folder: Path) -> Path:
    """Write it; a token covers 4 pixels."""
    return make_checkpoint(folder, size=NANO, seed=5)

"""Tiles: where they lie, which part of the key photo each one reads (PCR), and how they are blended."""

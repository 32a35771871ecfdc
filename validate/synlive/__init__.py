"""Test sets made from one's own videos, degraded as Live Photos are."""

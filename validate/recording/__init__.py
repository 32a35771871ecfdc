"""Recordings: what the reference computed for a photo, kept with its inputs and noise."""

"""Graphs cut into chains of smaller ones, and the back-end that loads a transformer a block at a time."""

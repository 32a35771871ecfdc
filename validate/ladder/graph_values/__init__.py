"""The values inside a stage's graph: where they are, what they should be, how far off they are."""

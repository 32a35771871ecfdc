"""A checkpoint to a bundle: every stage traced to a graph, optimized by passes, and held against the reference."""

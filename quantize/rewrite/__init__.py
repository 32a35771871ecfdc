"""Graphs with other linears: one module for each way to store and multiply them."""

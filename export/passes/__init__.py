"""Passes over the exported modules and graphs: each takes work out and names what it took."""

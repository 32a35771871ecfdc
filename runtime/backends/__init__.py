"""What runs a graph: one interface, one module a library."""

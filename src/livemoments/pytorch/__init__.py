"""Bundles of PyTorch networks: the modules themselves with folded tables, run by PyTorch on a GPU or a CPU."""

"""What enters the linears while a bundle restores photos, and the ranges that quantizers should cover."""

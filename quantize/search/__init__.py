"""Which layers may be quantized: sensitivity of each, and the mix that keeps a budget."""

"""Core ML packages quantized: their linears found, coremltools' compression applied, and what it wrote checked."""

"""A checkpoint's stages as Core ML packages: modules of fixed shape, their conversion, and the gate on what was written."""

"""A checkpoint's stages as Core ML packages: modules of fixed shape, conversion, and the gate on what was written."""

"""A checkpoint's stages as Core AI packages, checked by Apple's own runtime; beta, as the library is."""

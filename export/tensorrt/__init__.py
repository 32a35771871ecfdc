"""Engines of TensorRT and TensorRT for RTX, built from a bundle's graphs; no torch is needed."""

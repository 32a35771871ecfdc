"""Engines of TensorRT and TensorRT for RTX without torch: found, loaded and run on an NVIDIA GPU."""

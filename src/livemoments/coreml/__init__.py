"""Core ML packages (``.mlpackage``) on any system: read from disk, and run operator by operator on torch's kernels."""

"""The operators of ML Programs on torch's kernels, one family a module, as iOS 18 defines them.

The definitions are those of coremltools' operator reference (apple.github.io/coremltools, "MIL Ops").
"""

"""Written ONNX graphs, read and cut without torch."""

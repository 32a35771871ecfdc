"""A graph's weights, read one at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from livemoments.errors import BundleError


def read_tensor(tensor: ir.TensorProtocol) -> np.ndarray:
    """A tensor's values, in memory of their own.

    Weights beside a graph are read here rather than by onnx_ir, which keeps the whole file mapped and refuses files
    with more than one hard link: stores that keep equal files once have those. What such a link could smuggle in, the
    hashes of ``Bundle.open`` keep out.

    Raises:
        BundleError: the values lie outside of the graph's folder, or the file ends before they do.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    path = Path(tensor.path)
    if path.name != os.fspath(tensor.location):
        raise BundleError(path, "a weight lies outside of its graph's folder", fix="export the bundle again")
    count = math.prod(tensor.shape.numpy())
    array: np.ndarray = np.fromfile(path, tensor.dtype.numpy(), count, offset=tensor.offset or 0)
    if array.size != count:
        raise BundleError(path, f"ends within '{tensor.name}'", fix="copy the bundle again, or export it again")
    return array.reshape(tensor.shape.numpy())

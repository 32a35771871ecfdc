"""Back-ends whose dependencies are optional: a missing module becomes an error that names the extra to install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from livemoments.errors import MissingExtraError

# What the extras of pyproject.toml bring (a test compares them).
OPTIONAL_MODULES = frozenset(
    {
        "DISTS_pytorch",
        "av",
        "coreai",
        "coreai_opt",
        "coreai_torch",
        "coremltools",
        "cuda",
        "diffusers",
        "huggingface_hub",
        "jinja2",
        "lief",
        "lpips",
        "matplotlib",
        "modelopt",
        "onnx",
        "onnx_graphsurgeon",
        "onnx_ir",
        "onnxscript",
        "onnxslim",
        "pillow_heif",
        "piq",
        "pyiqa",
        "pynvml",
        "ray",
        "safetensors",
        "skimage",
        "sklearn",
        "tensorrt",
        "tensorrt_rtx",
        "torch",
        "torch_tensorrt",
        "transformers",
        "yaml",
    }
)


@contextlib.contextmanager
def needs_extra(feature: str, extra: str) -> Iterator[None]:
    """Within the block, an optional module that is not installed is the user's to mend; any other one is a bug.

    Args:
        feature: the feature that was asked for, e.g. ``"exporting"``.
        extra: the extra of pyproject.toml that brings all of the feature's modules.

    Raises:
        MissingExtraError: a module of :data:`OPTIONAL_MODULES` was not found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in OPTIONAL_MODULES:
            raise
        raise MissingExtraError(feature, extra, missing=missing) from None

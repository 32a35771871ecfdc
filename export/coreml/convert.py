"""A module of fixed shape to an ``.mlpackage``, as an ML Program for iOS 18 and macOS 15."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livemoments.coreml.names import feature_name
from livemoments.errors import EngineError
from livemoments.export.coreml import lowerings
from livemoments.export.coreml.modules import Part

LEFT_OUT = frozenset({"common::fuse_elementwise_to_batchnorm"})
"""Passes of the converter that do not run: this one makes batch norms of multiplications and additions, with an epsilon
of 1e-5 that nobody asked for; the VAE's outputs are then off by 1e-5."""


def convert(part: Part, path: Path) -> None:
    """Convert a module and save the package; the types in the program are those of the module.

    Modules hold their own precision: half-precision modules take what must not be rounded to float32 themselves (group
    normalisation's statistics). The converter's own pass to float16 does not know these islands and would undo them.

    Args:
        part: the module with its weights, its inputs and outputs.
        path: the package to write.

    Raises:
        EngineError: the converter does not accept the module.
    """
    with _quiet():
        import coremltools as ct

        lowerings.install()
        program = torch.export.export(part.module, examples(part), strict=False).run_decompositions({})
        kinds = {"float16": np.float16, "float32": np.float32, "int32": np.int32}
        pipeline = ct.PassPipeline.DEFAULT  # a new one: a pipeline that is used twice silently keeps what it did first
        pipeline.remove_passes(LEFT_OUT)
        try:
            model = ct.convert(
                program,
                inputs=[
                    ct.TensorType(name=feature_name(spec.name), shape=spec.shape, dtype=kinds[spec.dtype])
                    for spec in part.inputs
                ],
                outputs=[ct.TensorType(name=feature_name(spec.name), dtype=kinds[spec.dtype]) for spec in part.outputs],
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.precision.FLOAT32,
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
        except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
            raise EngineError(f"{path.name}: coremltools does not convert the stage ({error})") from error
        model.save(str(path))


def merge(packages: Mapping[str, str], path: Path) -> None:
    """Join packages in one, each as a function; constants that are equal are stored once.

    Args:
        packages: their paths, by the functions' names; the first is what runs unasked.
        path: the package to write.
    """
    with _quiet():
        import coremltools as ct

        together = ct.utils.MultiFunctionDescriptor()
        for function, package in packages.items():
            together.add_function(package, src_function_name="main", target_function_name=function)
        together.default_function_name = next(iter(packages))
        ct.utils.save_multifunction(together, str(path))


def examples(part: Part) -> tuple[torch.Tensor, ...]:
    """Tensors of the inputs' shapes and types, to trace with."""
    shapes = [[int(axis) for axis in spec.shape] for spec in part.inputs]
    types = [getattr(torch, spec.dtype) for spec in part.inputs]
    return tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """coremltools reports its progress on standard error, and at import every part that only a Mac has."""
    logger: Any = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)

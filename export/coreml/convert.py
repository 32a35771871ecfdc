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
CONVERTER_ERRORS = (ValueError, NotImplementedError, TypeError, RuntimeError)
"""What coremltools raises of programs that it does not take."""


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
    with converter() as ct:
        lowerings.install()
        program = torch.export.export(part.module, examples(part), strict=False).run_decompositions({})
        kinds = {"float16": np.float16, "float32": np.float32, "int32": np.int32}
        try:
            save_program(
                program,
                path,
                inputs=[
                    ct.TensorType(name=feature_name(spec.name), shape=spec.shape, dtype=kinds[spec.dtype])
                    for spec in part.inputs
                ],
                outputs=[ct.TensorType(name=feature_name(spec.name), dtype=kinds[spec.dtype]) for spec in part.outputs],
            )
        except CONVERTER_ERRORS as error:
            raise EngineError(f"{path.name}: coremltools does not convert the stage ({error})") from error


def save_program(program: Any, path: Path, *, optimize: bool = True, **features: Any) -> None:
    """Write a program as a package, its types untouched; within :func:`converter`.

    Args:
        program: of torch.export, or coremltools' own.
        path: the package to write.
        optimize: run the converter's passes; not a second time on a program that was read from a package: one of them
            adds a treatment of negative indices each time.
        features: ``inputs`` and ``outputs``, where the program does not say them itself.
    """
    import coremltools as ct

    # A new one: a pipeline that is used twice silently keeps what it did first.
    pipeline = ct.PassPipeline.DEFAULT if optimize else ct.PassPipeline.EMPTY
    pipeline.remove_passes(LEFT_OUT)
    ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=pipeline,
        skip_model_load=True,
        **features,
    ).save(str(path))


def merge(packages: Mapping[str, str], path: Path) -> None:
    """Join packages in one, each as a function; constants that are equal are stored once.

    Args:
        packages: their paths, by the functions' names; the first is what runs unasked.
        path: the package to write.
    """
    with converter() as ct:
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
def converter() -> Iterator[Any]:
    """coremltools, kept quiet: it reports its progress on standard error, and at import all that only a Mac has."""
    logger: Any = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            import coremltools

            yield coremltools
        finally:
            logger.setLevel(level)

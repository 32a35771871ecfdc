"""Packages made by coremltools for tests, saved and opened again."""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

logging.getLogger("coremltools").setLevel(logging.CRITICAL)  # it lists at import what only a Mac has
ct = pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import types  # noqa: E402

from livemoments.coreml.interpreter import Interpreter, Precision  # noqa: E402
from livemoments.coreml.package import Package, model_proto  # noqa: E402

DTYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}

__all__ = ["DTYPES", "MODEL", "build", "changed", "ct", "interpret", "mb", "save", "types"]


def save(
    body: Callable[..., Any], inputs: Mapping[str, np.ndarray], path: Path, *, states: Mapping[str, Any] | None = None
) -> Path:
    """Save the program that ``body`` builds from its inputs, untouched by any optimization.

    Args:
        body: takes the inputs (then the states) as MIL's variables, returns one variable or several.
        inputs: examples of the inputs, for names, shapes and types.
        path: the package.
        states: the shape of each state (float16).
    """
    specs = [mb.TensorSpec(array.shape, DTYPES[array.dtype.name]) for array in inputs.values()]
    specs += [mb.StateTensorSpec(shape, types.fp16) for shape in (states or {}).values()]
    names = [*inputs, *(states or {})]
    namespace: dict[str, Any] = {"body": body}
    exec(f"def named({', '.join(names)}): return body({', '.join(names)})", namespace)  # MIL reads the names
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(namespace["named"])
    # The converter collects garbage twice, among everything that was imported: most of a small program's time.
    gc.freeze()
    try:
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    finally:
        gc.unfreeze()
    model.save(str(path))
    return path


def build(body: Callable[..., Any], inputs: Mapping[str, np.ndarray], **options: Any) -> Package:
    """The same, opened again from a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        return Package.open(save(body, inputs, Path(folder) / "program.mlpackage", **options))


def interpret(
    body: Callable[..., Any], inputs: Mapping[str, np.ndarray], precision: Precision = "float64"
) -> list[np.ndarray]:
    """What the interpreter answers for the saved program, output by output."""
    return list(Interpreter(build(body, inputs), precision=precision).run(inputs).values())


MODEL = "Data/com.apple.CoreML/model.mlmodel"
"""Where a package keeps its program."""


def changed(package: Path, place: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a package with its program changed.

    Args:
        package: stays as it is.
        place: the copy.
        change: gets the program's block, a protobuf.
    """
    shutil.copytree(package, place)
    spec = model_proto().FromString((place / MODEL).read_bytes())
    change(spec.mlProgram.functions["main"].block_specializations["CoreML8"])
    (place / MODEL).write_bytes(spec.SerializeToString())
    return place

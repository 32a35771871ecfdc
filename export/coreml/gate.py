"""The check on a package that was just written: the program is the module, and its roundings cost what torch's cost.

Two numbers, on the reference's own inputs:

* ``unrounded``: the package run by the interpreter without any rounding in between, against the module computing in
  float32 with the very weights that were written (rounded to half precision, if they are). What is left is float32's
  summation order, so a wrong operator stands out, in half-precision packages as well: there it would hide in the
  rounding. It does the work of a second conversion to float32, of the very file that is delivered.
* ``drift``: a half-precision package run with its roundings, against the module with unrounded weights in float32. The
  module itself in half precision drifts too (``torch_drift``); the package may by twice that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from livemoments.coreml.interpreter import Interpreter, Precision
from livemoments.coreml.names import feature_name
from livemoments.coreml.package import Package
from livemoments.distances import relative_l2
from livemoments.errors import ParityError
from livemoments.export.coreml.modules import Part
from livemoments.types import TensorSpec

UNROUNDED_REL_L2 = 5e-6
"""Limit of ``unrounded``: relative L2 of the worst output; 4e-7 to 1.2e-6 was measured (docs/coreml.md)."""
DRIFT_RATIO = 2.0
"""Limit of ``drift``, in ``torch_drift``: the order of roundings differs; 0.9 to 1.2 was measured."""

Arrays = Mapping[str, np.ndarray]


class PartParity(msgspec.Struct, frozen=True):
    """What was measured, relative L2 of the worst output; the drifts are 0 in float32."""

    unrounded: float
    drift: float = 0.0
    torch_drift: float = 0.0


def check_part(
    path: Path, own: Part, exact: Part, inputs: Arrays, what: str
) -> tuple[PartParity, dict[str, np.ndarray]]:
    """Hold a written package against its module, on one set of inputs.

    Args:
        path: the package.
        own: what was converted.
        exact: the same module in float32 with unrounded weights; ``own`` itself where it is that.
        inputs: float32 (``step`` int32), by name.
        what: the part, for the error.

    Returns:
        The distances, and what the exact module makes of the inputs.

    Raises:
        ParityError: a limit is passed, or an output is not finite.
    """
    package = Package.open(path)
    truth = run_module(exact.module, exact, inputs)
    wide = Part(copy.deepcopy(own.module).float(), _widened(own.inputs), _widened(own.outputs))
    rounded = {spec.name: inputs[spec.name].astype(spec.dtype) for spec in own.inputs}
    want = run_module(wide.module, wide, rounded)
    got = run_package(package, own, rounded, "float32")
    unrounded = _worst(got, want, what)
    if unrounded[0] > UNROUNDED_REL_L2:
        raise ParityError(
            f"{what}: the package's '{unrounded[1]}' is {unrounded[0]:.3g} from the module's (relative L2, nothing "
            f"rounded), the limit is {UNROUNDED_REL_L2:.3g}: the conversion changed what is computed",
            fix="report it with the versions of torch and coremltools",
        )
    if own is exact:
        return PartParity(unrounded[0]), truth
    half = run_module(own.module, own, rounded)
    drifts = []
    for name, value in run_package(package, own, rounded, "declared").items():
        drift, torch_drift = (_worst({name: v}, {name: truth[name]}, what)[0] for v in (value, half[name]))
        if drift > DRIFT_RATIO * torch_drift:
            raise ParityError(
                f"{what}: with the package's roundings '{name}' is {drift:.3g} from float32 (relative L2), torch's own "
                f"half precision {torch_drift:.3g}; the limit is {DRIFT_RATIO} times that",
                fix="export with --precision fp32",
            )
        drifts.append((drift, torch_drift))
    return PartParity(unrounded[0], *max(drifts)), truth


def run_module(module: nn.Module, part: Part, inputs: Arrays) -> dict[str, np.ndarray]:
    """The module's outputs by name, in its own types; inputs are converted to the part's."""
    tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name].astype(spec.dtype))) for spec in part.inputs]
    with torch.inference_mode():
        found = module(*tensors)
    found = found if isinstance(found, tuple) else (found,)
    return {spec.name: value.numpy() for spec, value in zip(part.outputs, found, strict=True)}


def run_package(package: Package, part: Part, inputs: Arrays, precision: Precision) -> dict[str, np.ndarray]:
    """The package's outputs by the part's names, from the interpreter."""
    feeds = {feature_name(spec.name): inputs[spec.name].astype(spec.dtype) for spec in part.inputs}
    found = Interpreter(package, precision=precision).run(feeds)
    return {spec.name: found[feature_name(spec.name)] for spec in part.outputs}


def _worst(got: Arrays, want: Arrays, what: str) -> tuple[float, str]:
    for name, value in got.items():
        if not np.isfinite(value).all():
            raise ParityError(f"{what}: '{name}' holds NaN or infinity", fix="export with --precision fp32")
    return max(
        (relative_l2(value.astype(np.float64), want[name].astype(np.float64)), name) for name, value in got.items()
    )


def _widened(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(s.name, "float32" if s.dtype == "float16" else s.dtype, s.shape) for s in specs)

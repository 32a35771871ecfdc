"""A module of fixed shape to an ``.aimodel``, with its weights as they are or in fewer bits."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from livemoments.coreml.names import feature_name
from livemoments.errors import EngineError
from livemoments.export.coreai.attention import compute_operands
from livemoments.export.coreml.convert import examples
from livemoments.export.coreml.modules import Part

_BLOCK = 32
"""Inputs of a linear that share a scale at 4 bits; at 8, all of one output do."""
_LEAST_ELEMENTS = 2048
"""Smaller weights stay as they are: they are no saving."""


def convert(part: Part, path: Path, *, bits: int | None = None) -> None:
    """Convert a module and save the package; the types in the program are those of the module.

    Args:
        part: the module with its weights, its inputs and outputs.
        path: the package to write.
        bits: of the weights of linears and convolutions: 8 (symmetric, a scale an output) or 4 (symmetric, a scale for
            32 inputs); ``None`` leaves them as they are.

    Raises:
        EngineError: the converter or the compressor does not accept the module.
    """
    with _quiet():
        from coreai_torch import TorchConverter

        program = traced(part)
        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)  # without stack traces, which hold local paths
        try:
            converter.add_exported_program(
                program,
                input_names=[feature_name(spec.name) for spec in part.inputs],
                output_names=[feature_name(spec.name) for spec in part.outputs],
            )
            model = converter.to_coreai()
            if bits is not None:
                _compress(model, bits)
        except (ValueError, NotImplementedError, TypeError, RuntimeError, AssertionError) as error:
            raise EngineError(f"{path.name}: Core AI's tools do not convert the stage ({error})") from error
        model.save_asset(path)


def traced(part: Part) -> ExportedProgram:
    """The module as an exported program in the operators that the converter takes, attention's operands computed."""
    from coreai_torch import get_decomp_table

    program = torch.export.export(part.module, examples(part), strict=False).run_decompositions(get_decomp_table())
    compute_operands(program)
    return program


def _compress(model: Any, bits: int) -> None:
    """Quantize a program's weights in place."""
    from coreai_opt.coreai_utils import CompressionGranularity, DType, quantize_weights
    from coreai_opt.coreai_utils.common import QScheme

    how = (
        {"dtype": DType.INT8, "granularity": CompressionGranularity.PER_CHANNEL}
        if bits == 8
        else {"dtype": DType.INT4, "granularity": CompressionGranularity.PER_BLOCK, "block_size": _BLOCK}
    )
    quantize_weights(model, qscheme=QScheme.SYMMETRIC, weight_num_threshold=_LEAST_ELEMENTS, in_place=True, **how)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converter prints its progress, and warns of versions at import."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield

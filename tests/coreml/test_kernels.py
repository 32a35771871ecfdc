"""Every operator of the interpreter, from a saved package, against numpy and scipy in float64 on random inputs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")
pytest.importorskip("scipy")

from coreml_programs import build
from coreml_references import CASES

from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.kernels.registry import KERNELS

LIMIT = 1e-12
"""Largest difference, of the largest value; both sides compute in float64."""


@pytest.fixture(name="rng")
def fixture_rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")  # shown when the test fails
    return np.random.default_rng(seed)


def test_every_operator_has_a_reference() -> None:
    assert set(CASES) == set(KERNELS)


@pytest.mark.parametrize("kind", CASES)
def test_operator_equals_its_reference(kind: str, rng: np.random.Generator) -> None:
    case = CASES[kind](rng)
    package = build(case.body, case.inputs)
    interpreter = Interpreter(package, precision="float64")
    assert kind in {operation.kind for operation in interpreter.function.operations}
    got = list(interpreter.run(case.inputs).values())
    wide = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in case.inputs.items()}
    want = case.want(**wide)
    assert len(got) == len(want)
    for index, (found, expected) in enumerate(zip(got, want, strict=True)):
        assert found.shape == expected.shape, f"output {index}"
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
        assert difference <= LIMIT * max(1.0, np.abs(expected.astype(np.float64)).max()), f"output {index}"

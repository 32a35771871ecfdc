"""The check of a conversion: a float32 package, run by Apple's own runtime, is the module.

Packages with fewer bits are made of the same operators by the same converter. A wrong operator would hide in their
rounding, so it is looked for in a twin: the same stage converted in float32, checked, and thrown away. The delivered
file is then held against the reference as every target's is (``validate/limits.toml``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from livemoments.coreai.backend import LoadedPackage
from livemoments.coreml.names import feature_name
from livemoments.distances import relative_l2
from livemoments.errors import ParityError
from livemoments.export.coreml.gate import UNROUNDED_REL_L2, run_module
from livemoments.export.coreml.modules import Part


def check_twin(package: Path, part: Part, inputs: Mapping[str, np.ndarray], what: str) -> float:
    """Hold a float32 package against its module, on one set of inputs.

    Args:
        package: the ``.aimodel``.
        part: what was converted, in float32.
        inputs: by the part's names.
        what: the part, for the error.

    Returns:
        Relative L2 of the worst output.

    Raises:
        ParityError: it is beyond :data:`livemoments.export.coreml.gate.UNROUNDED_REL_L2`, or not finite.
    """
    want = run_module(part.module, part, inputs)
    loaded = LoadedPackage(package)
    try:
        got = loaded.run({feature_name(spec.name): inputs[spec.name].astype(spec.dtype) for spec in part.inputs})
    finally:
        loaded.close()
    distances = {name: relative_l2(got[feature_name(name)], value) for name, value in want.items()}
    name, worst = max(distances.items(), key=lambda entry: entry[1])
    if not worst <= UNROUNDED_REL_L2:  # NaN is not either
        raise ParityError(
            f"{what}: the package's '{name}' is {worst:.3g} from the module's (relative L2, in float32), the limit is "
            f"{UNROUNDED_REL_L2:.3g}: the conversion changed what is computed",
            fix="report it with the versions of torch and coreai-torch",
        )
    return worst

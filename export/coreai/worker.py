"""One package, in a process of its own: ``python -m livemoments.export.coreai.worker JOB ANSWER``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.export.coreml.gate import PartParity
from livemoments.export.coreml.process import Answer, measured, serve
from livemoments.export.coreml.worker import Job, with_parts
from livemoments.types import Size


def run(job: Job) -> Answer:
    """Convert and save one package, and check its twin in float32.

    Raises:
        LiveMomentsError: it does not convert, or does not pass its check.
    """
    from livemoments.export.coreai.convert import convert
    from livemoments.export.coreml.modules import build
    from livemoments.export.opening import open_planner
    from livemoments.export.options import WEIGHT_BITS, ExportOptions

    started = time.monotonic()
    path = Path(job.package)

    def part(precision: str) -> Any:
        options = ExportOptions(target="coreai", precision=precision, steps=job.steps)
        return build(open_planner(job.checkpoint, options), job.stage, Size.parse(job.size), job.span)

    own = part(job.precision)
    parameters = sum(parameter.numel() for parameter in own.module.parameters())
    convert(own, path, bits=WEIGHT_BITS.get(job.precision))
    parity = None
    if job.cases and job.precision == "fp32":
        parity = _check(job, own, path)
    elif job.cases:
        del own
        with tempfile.TemporaryDirectory() as folder:
            twin = Path(folder) / path.name
            exact = part("fp32")
            convert(exact, twin)
            parity = _check(job, exact, twin)
    return measured(path, started, parity, parameters)


def _check(job: Job, exact: Any, package: Path) -> PartParity:
    from livemoments.export.coreai.gate import check_twin

    worst = 0.0
    for file in job.cases:
        with np.load(file) as case:
            inputs = {name: case[name] for name in case.files}
        what = f"stage '{job.stage}' ({job.size})"
        worst = max(worst, check_twin(package, exact, with_parts(inputs, exact), what))
    return PartParity(worst)


if __name__ == "__main__":
    serve(run, Job, *sys.argv[1:], feature="export to Core AI", extra="coreai")

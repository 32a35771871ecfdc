"""One package compressed, in a process of its own: ``python -m livemoments.quantize.packages.worker JOB ANSWER``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import msgspec

from livemoments.coreml.package import Package
from livemoments.export.coreml.convert import merge
from livemoments.export.coreml.process import Answer, measured, serve
from livemoments.quantize.packages.check import check_compressed
from livemoments.quantize.packages.compress import Target, compress
from livemoments.quantize.recipes import Recipe


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to compress.

    Attributes:
        source: a package.
        package: where to write the new one.
        targets: for each of its functions the linears.
        recipe: how.
    """

    source: str
    package: str
    targets: dict[str, tuple[Target, ...]]
    recipe: Recipe


def run(job: Job) -> Answer:
    """Compress one package, function by function, and hold it against its source.

    Raises:
        EngineError: it cannot be compressed, or something else was changed.
    """
    started, path = time.monotonic(), Path(job.package)
    if len(job.targets) == 1:
        ((function, targets),) = job.targets.items()
        compress(Path(job.source), function, path, targets, job.recipe)
    else:
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as work:
            parts = {function: str(Path(work) / f"{function}.mlpackage") for function in job.targets}
            for function, targets in job.targets.items():
                compress(Path(job.source), function, Path(parts[function]), targets, job.recipe)
            merge(parts, path)
    source, written = Package.open(job.source), Package.open(path)
    for function, targets in job.targets.items():
        wanted = {target.constant for target in targets}
        check_compressed(source.functions[function], written.functions[function], wanted, f"{path.name}, '{function}'")
    return measured(path, started)


if __name__ == "__main__":
    serve(run, Job, *sys.argv[1:])

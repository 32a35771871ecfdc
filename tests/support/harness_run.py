"""A run over a data set as a process of its own: ``python harness_run.py BUNDLE DATA COUNT WORK [STOP]``.

Every finished image is said on stdout, so that a test can kill the process; with STOP it waits for that behind so many.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.datasets.index import open_dataset
from livemoments.validate.harness.run import run_images
from livemoments.validate.report_data import ImageResult


def main() -> None:
    bundle, data, count, work = sys.argv[1:5]
    stop = int(sys.argv[5]) if len(sys.argv) > 5 else None
    said = []
    dataset = open_dataset(data)
    dataset = replace(dataset, items=dataset.items[: int(count)])

    def say(result: ImageResult) -> None:
        print(result.name, flush=True)
        said.append(result.name)
        if len(said) == stop:
            time.sleep(60)

    settings = RestoreOptions(flow="dis", reference="frozen", steps=6)
    run_images(Bundle.open(bundle), dataset, work=work, settings=settings, on_result=say)
    print(Path(work).name, "finished", flush=True)


if __name__ == "__main__":
    main()

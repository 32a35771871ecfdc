"""What is Core AI's own in the export of packages; the rest is :mod:`livemoments.export.coreml.pipeline`."""

from __future__ import annotations

from livemoments.coreai.backend import CoreAiBackend
from livemoments.coreai.names import ENTRY, PACKAGE
from livemoments.export.coreml.pipeline import Kind

COREAI = Kind(
    title="Core AI",
    extra="coreai",
    modules=("coreai", "coreai_torch", "coreai_opt"),
    distributions=("torch", "coreai-core", "coreai-torch", "coreai-opt"),
    worker="livemoments.export.coreai.worker",
    suffix=PACKAGE,
    entry=ENTRY,
    in_chunks=False,
    open_files=lambda folder, stage, graph: CoreAiBackend().open_files(folder, stage, graph),
)

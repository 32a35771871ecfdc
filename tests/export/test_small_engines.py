"""The engines that come with the small checkpoint are what today's exporter makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle, trained_checkpoint, trained_recording
from livemoments.errors import CheckpointError
from livemoments.export.pipeline import export_bundle
from livemoments.progress import SILENT
from livemoments.reference.layout import locate
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.preparation import hash_checkpoint

AGAIN = "run tools/make_small_engines.py"
ROUNDING = 1e-6
"""Relative: tables are folded in another order of sums on another processor."""


def test_they_are_of_the_checkpoint_beside_them() -> None:
    bundle, recording = Bundle.open(trained_bundle()), open_recording(trained_recording())
    source = hash_checkpoint(locate(trained_checkpoint()), SILENT)
    assert bundle.manifest.source == source, AGAIN
    assert recording.meta.source == source, AGAIN
    assert recording.meta.settings.tile == str(bundle.tile_sizes[0])
    assert recording.meta.settings.overlap == bundle.manifest.overlap


def test_there_are_none_of_another_name() -> None:
    with pytest.raises(CheckpointError, match="no such trained bundle"):
        trained_bundle("huge")


@pytest.mark.slow
def test_a_fresh_export_has_the_same_graphs_and_weights(tmp_path: Path) -> None:
    ours = Bundle.open(trained_bundle())
    (size,) = ours.tile_sizes
    steps = sorted(map(int, ours.manifest.schedule.plans))
    fresh = export_bundle(
        trained_checkpoint(), tmp_path / "bundle", tiles=(size,), overlap=ours.manifest.overlap, steps=steps
    )
    assert fresh.manifest.schedule == ours.manifest.schedule, AGAIN
    for stage, entry in ours.manifest.stages.items():
        (graph,), (new,) = entry.graphs, fresh.manifest.stages[stage].graphs
        before, now = (onnx.load(str(bundle.path / part.path)).graph for bundle, part in ((ours, graph), (fresh, new)))
        assert [(n.op_type, list(n.input), list(n.output)) for n in before.node] == [
            (n.op_type, list(n.input), list(n.output)) for n in now.node
        ], AGAIN
        old = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in before.initializer}
        assert {tensor.name for tensor in now.initializer} == old.keys(), AGAIN
        for tensor in now.initializer:
            value, known = onnx.numpy_helper.to_array(tensor), old[tensor.name]
            assert value.dtype == known.dtype, AGAIN
            assert np.allclose(value, known, rtol=ROUNDING, atol=ROUNDING * np.abs(known).max(initial=0)), AGAIN
